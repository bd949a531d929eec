"""Checks that training in two processes gives the same weights as in one process with the same global batch size.

    python benchmarks/processes.py [--task classification dino] [--epochs 4]

A small model is trained for twenty steps on the CPU: in two processes (started by torchrun) by DDP and by FSDP2, and in
one process. There are two settings:

- Separate batch norms: the single process computes the two halves of each batch one after the other, with all random
  draws. Parameters are compared. Running statistics are not compared: two processes average them, one process updates
  them two times, and no training step reads them.
- Synchronised batch norms: the single process computes each batch undivided. Random draws that depend on the part of a
  batch are off. Parameters and running statistics are compared.

The key biases of class attention are never compared. They add the same number to all scores of a head, and the softmax
ignores that number. So their true gradient is 0, and AdamW turns its rounding errors into full steps.

Two processes and one process also evaluate an odd number of images, and the results are compared. The exit status is 1
if a difference exceeds its limit.
"""

import argparse
import copy
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from squares import HOLDOUT, TASKS, draw_squares, num_training_images, squares_config
from torch import nn

import xcit
from xcit.training.engine.checkpoint import LAST, load_checkpoint
from xcit.training.engine.distribution import Processes
from xcit.training.engine.loop import train_task
from xcit.training.run import build_task
from xcit.training.tasks.classification import ClassificationTask, evaluate_classification
from xcit.training.tasks.dino import DINOTask
from xcit.training.tasks.evaluation import EvaluationConfig
from xcit.training.tasks.table import TrainingConfig

BATCH_SIZE = 8

SHARED_BY = ("ddp", "fsdp2")
"""The ways in which two processes share the model."""

LIMIT = 1e-5
"""Limit of norm(difference) / norm(tensor), with 2-norms."""

WITHOUT_EFFECT = "attn.k.bias"
"""Suffix of the names of parameters that are never compared."""

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Suffixes of the names of running statistics, which are compared only if batch norms are synchronised."""


@dataclass(frozen=True)
class Setting:
    """The task, the use of synchronised batch norms, and how two processes share the model ("" for one process)."""

    task: str
    sync_batch_norm: bool
    parallel: str = ""

    def folder(self, root: Path) -> Path:
        """Returns the folder of the run's files."""
        return root / f"{self.task}-{self.parallel or 'one'}-{'together' if self.sync_batch_norm else 'apart'}"

    def config(self, root: Path, epochs: int) -> TrainingConfig:
        """Returns the run's config."""
        if self.parallel:
            run: dict[str, Any] = {"parallel": self.parallel, "sync_batch_norm": self.sync_batch_norm}
        else:
            run = {"max_device_batch": BATCH_SIZE if self.sync_batch_norm else BATCH_SIZE // 2}
        run["batch_size"] = BATCH_SIZE
        return squares_config(self.task, root / "data", epochs=epochs, run=run, draws_by_part=not self.sync_batch_norm)


def settings(tasks: Iterable[str], shared_by: Iterable[str]) -> list[Setting]:
    """Returns all settings: for each task, separate and synchronised batch norms, and each way to share a model."""
    return [Setting(task, together, way) for task in tasks for together in (False, True) for way in shared_by]


def run_all(all_settings: list[Setting], root: Path, epochs: int) -> None:
    """Trains a model in each setting, and evaluates an untrained copy; runs in every process."""
    for setting in all_settings:
        config, folder = setting.config(root, epochs), setting.folder(root)
        # The process group is not closed here, because it serves all settings.
        processes = Processes(config.run, torch.device("cpu"))
        folder.mkdir(exist_ok=True)
        task, _ = build_task(config, processes.layout)
        fresh = copy.deepcopy(task.model)
        train_task(
            task,
            processes,
            config,
            folder,
        )
        results = evaluate(task, fresh, processes)
        (folder / f"evaluation-{processes.layout.rank}.json").write_text(json.dumps(results))


def evaluate(task: ClassificationTask | DINOTask, fresh: nn.Module, processes: Processes) -> dict[str, Any]:
    """Evaluates a model; returns the figures, and for classification also the counts, from batches of two images."""
    if isinstance(task, DINOTask):
        return {"figures": task.evaluate(fresh, processes.layout, processes.reduce)}
    report = evaluate_classification(
        fresh,
        task.watched,
        task.config.preprocessing,
        EvaluationConfig(batch_size=2),
        num_classes=task.config.model.num_classes,
        layout=processes.layout,
        reduce=processes.reduce,
    )
    counts = {"num_images": report.num_images, "confusion": report.confusion.tolist()}
    return {"figures": report.figures()} | counts


def relative_difference(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Returns norm(value - reference) / norm(reference); only norm(value - reference) if the reference is 0."""
    difference, size = (value - reference).norm().item(), reference.norm().item()
    return difference / size if size else difference


def compare_weights(setting: Setting, root: Path) -> bool:
    """Prints the largest difference of weights between two processes and one; returns whether it is small enough."""
    one = replace(setting, parallel="").folder(root)
    reference, state = load_checkpoint(one / LAST), load_checkpoint(setting.folder(root) / LAST)
    names = [name for name in reference["model"] if not name.endswith(WITHOUT_EFFECT)]
    if not setting.sync_batch_norm:
        names = [name for name in names if not name.endswith(STATISTICS)]
    differences = {
        f"{model}: {name}": relative_difference(state[model][name].double(), reference[model][name].double())
        for model in ("model", "ema")
        if reference[model] is not None
        for name in names
    }
    worst = max(differences, key=differences.__getitem__)
    good = differences[worst] <= LIMIT
    against = "one batch at once" if setting.sync_batch_norm else "two halves in turn"
    print(
        f"{setting.parallel:6s} {against:20s} {'all' if setting.sync_batch_norm else 'parameters':11s} "
        f"{len(differences):7d} {differences[worst]:12.1e}   {'within' if good else 'BEYOND'} the limit   ({worst})"
    )
    return good


def compare_evaluation(setting: Setting, root: Path) -> bool:
    """Prints and returns whether each of two processes has the same evaluation results as one process."""
    expected = json.loads((replace(setting, parallel="").folder(root) / "evaluation-0.json").read_text())
    found = [json.loads((setting.folder(root) / f"evaluation-{rank}.json").read_text()) for rank in range(2)]
    figures = expected.pop("figures")
    same = True
    for one in found:
        own = one.pop("figures")
        same &= own.keys() == figures.keys() and one == expected
        same &= all(abs(own[name] - value) <= LIMIT * abs(value) for name, value in figures.items())
    print(f"{setting.parallel:6s} evaluation of {HOLDOUT} images: {'equal' if same else 'DIFFERENT'}")
    return same and expected.get("num_images", HOLDOUT) == HOLDOUT


def main() -> int:
    """Trains and compares; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, nargs="+", default=TASKS[:1])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--images", type=int, default=16, help="Images of each class.")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)  # used by torchrun
    arguments = parser.parse_args()
    epochs, tasks = arguments.epochs, arguments.task
    if arguments.worker:
        run_all(settings(tasks, SHARED_BY), arguments.worker, epochs)
        torch.distributed.barrier()  # a process must not end while the other still sends
        torch.distributed.destroy_process_group()
        return 0
    print(f"{platform.platform()}, torch {torch.__version__}, xcit {xcit.__version__}")
    good = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        draw_squares(root / "data", arguments.images)
        run_all(settings(tasks, ("",)), root, epochs)
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        worker = [__file__, "--worker", folder, "--epochs", str(epochs), "--task", *tasks]
        subprocess.run([sys.executable, "-m", *launcher, *worker], check=True)
        for task in tasks:
            num_steps = epochs * (num_training_images(task, arguments.images) // BATCH_SIZE)
            print(f"{task}, {num_steps} steps of {BATCH_SIZE} images; largest relative difference, limit {LIMIT:g}")
            print("two    one                  compared    tensors   difference")
            two = settings([task], SHARED_BY)
            good += [compare_weights(setting, root) for setting in two]
            good += [compare_evaluation(setting, root) for setting in two]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
