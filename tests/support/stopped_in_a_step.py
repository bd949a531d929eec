"""Makes a training run in which the data-reading processes die in the middle of a step, together with a SIGTERM.

    stopped_in_a_step.py CONFIG FOLDER STEP RANK

At the first part of step STEP of the run (counted from 0), the process RANK receives SIGTERM, and the processes that
read its data are killed. A scheduler does the same at its time limit. The killed processes have read two parts ahead.
So with four or more parts per step, the run notices their death in the middle of the step. The exit status is 0 if the
run stopped correctly.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xcit.data.loader import TrainLoader
from xcit.training.engine.progress import Stopped
from xcit.training.run import train


def main(config: str, folder: str, step: int, rank: int) -> int:
    """Trains as the module's docstring says."""
    whole, killed = TrainLoader.batches, list[int]()

    def cut(self: TrainLoader[Any], epoch: int, first_step: int = 0) -> Iterator[Any]:
        parts = whole(self, epoch, first_step)
        a_step = self._sampler.config.num_parts // self._sampler.config.world_size
        for number, part in enumerate(parts, start=(epoch * self.num_steps + first_step) * a_step):
            if number == step * a_step and not killed and int(os.environ.get("RANK", "0")) == rank:
                os.kill(os.getpid(), signal.SIGTERM)
                for child in multiprocessing.active_children():
                    child.kill()
                    killed.append(number)
                time.sleep(0.2)  # torch's signal handler reports the death immediately
            yield part

    TrainLoader.batches = cut  # type: ignore[method-assign]
    try:
        train(config, Path(folder), device="cpu")
    except Stopped:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
