"""Two processes against one with the same global batch: do they reach the same weights?

    python benchmarks/processes.py [--epochs 4]

Twenty steps of a small model, on the CPU, by DDP and by FSDP2 between two processes that torchrun starts, compared with
one process. Without synchronised batch norms that one computes the same two halves of each batch, one after the other:
then all that draws at random is on, and the parameters are compared (the running statistics, which no step of training
reads, are averaged by the two and followed by the one). With them it computes each batch at once, without what draws
for a part of a batch, and all is compared. The key biases of class attention are left out: they move all tokens' scores
alike, which the softmax takes away, so their true gradient is 0, and AdamW makes steps of full size of the rounding
noise that is left. An odd number of images is evaluated by the two too. Exit status 1 beyond the limit.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from squares import HOLDOUT, draw_squares, squares_config

import xcit
from xcit.engine.checkpoint import LAST, load_checkpoint
from xcit.engine.distribution import Processes
from xcit.engine.train import train
from xcit.models import XCiT
from xcit.tasks.classification import ClassificationConfig, ClassificationTask, evaluate_classification

NUM_IMAGES_A_CLASS, BATCH_SIZE = 16, 8
NUM_STEPS = (3 * NUM_IMAGES_A_CLASS - HOLDOUT) // BATCH_SIZE
"""Steps an epoch."""

LIMIT = 1e-5
"""Of a tensor's difference, as a share of the tensor, both by their 2-norms."""

WITHOUT_EFFECT = "attn.k.bias"
"""What the end of a name says of the parameters that are not compared."""


@dataclass(frozen=True)
class Setting:
    """How the batch norms see a batch, and how two processes share the model, "" in one."""

    sync_batch_norm: bool
    parallel: str = ""

    def folder(self, root: Path) -> Path:
        """Where the run's files are."""
        return root / f"{self.parallel or 'one'}-{'together' if self.sync_batch_norm else 'apart'}"

    def config(self, root: Path, epochs: int) -> ClassificationConfig:
        """The run's config."""
        if self.parallel:
            run: dict[str, Any] = {"parallel": self.parallel, "sync_batch_norm": self.sync_batch_norm}
        else:
            run = {"max_device_batch": BATCH_SIZE if self.sync_batch_norm else BATCH_SIZE // 2}
        run["batch_size"] = BATCH_SIZE
        return squares_config(root / "data", epochs=epochs, run=run, draws_by_part=not self.sync_batch_norm)


ONE = [Setting(sync_batch_norm=together) for together in (False, True)]
TWO = [Setting(one.sync_batch_norm, parallel) for one in ONE for parallel in ("ddp", "fsdp2")]


def run_all(settings: list[Setting], root: Path, epochs: int) -> None:
    """Trains by each setting, and evaluates a fresh model; in every process alike."""
    for setting in settings:
        config, folder = setting.config(root, epochs), setting.folder(root)
        # These are not closed: the processes meet once, for all settings.
        processes = Processes(config.run, torch.device("cpu"))
        folder.mkdir(exist_ok=True)
        task = ClassificationTask(config, processes.layout)
        fresh = XCiT(config.model)
        fresh.load_state_dict(task.model.state_dict())
        train(
            task,
            processes,
            run=config.run,
            optimizer_config=config.optimizer,
            schedule_config=config.schedule,
            directory=folder,
        )
        report = evaluate_classification(
            fresh,
            task.watched,
            config.preprocessing,
            num_classes=config.model.num_classes,
            batch_size=2,
            layout=processes.layout,
            reduce=processes.reduce,
        )
        figures = report.figures() | {"num_images": report.num_images, "confusion": report.confusion.tolist()}
        (folder / f"evaluation-{processes.layout.rank}.json").write_text(json.dumps(figures))


def relative_difference(value: torch.Tensor, reference: torch.Tensor) -> float:
    """The difference as a share of the tensor."""
    difference, size = (value - reference).norm().item(), reference.norm().item()
    return difference / size if size else difference


def compare_weights(setting: Setting, root: Path, epochs: int) -> bool:
    """Prints a line; whether the weights are within the limit."""
    reference = load_checkpoint(Setting(setting.sync_batch_norm).folder(root) / LAST)
    state = load_checkpoint(setting.folder(root) / LAST)
    names = list(reference["model"])
    if not setting.sync_batch_norm:
        names = [name for name, _ in XCiT(setting.config(root, epochs).model).named_parameters()]
    names = [name for name in names if not name.endswith(WITHOUT_EFFECT)]
    differences = {
        f"{model}: {name}": relative_difference(state[model][name].double(), reference[model][name].double())
        for model in ("model", "ema")
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
    """Prints a line; whether both processes give the figures of one."""
    expected = json.loads((Setting(setting.sync_batch_norm).folder(root) / "evaluation-0.json").read_text())
    found = [json.loads((setting.folder(root) / f"evaluation-{rank}.json").read_text()) for rank in range(2)]
    loss = expected.pop("val_loss")
    same = all(abs(one.pop("val_loss") / loss - 1) <= LIMIT and one == expected for one in found)
    print(f"{setting.parallel:6s} evaluation of {expected['num_images']} images: {'equal' if same else 'DIFFERENT'}")
    return same and expected["num_images"] == HOLDOUT


def main() -> int:
    """Trains and compares; gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)  # what torchrun starts
    arguments = parser.parse_args()
    epochs = arguments.epochs
    if arguments.worker:
        run_all(TWO, arguments.worker, epochs)
        torch.distributed.destroy_process_group()
        return 0
    print(f"{platform.platform()}, torch {torch.__version__}, xcit {xcit.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        draw_squares(root / "data", NUM_IMAGES_A_CLASS)
        run_all(ONE, root, epochs)
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        worker = [__file__, "--worker", folder, "--epochs", str(epochs)]
        subprocess.run([sys.executable, "-m", *launcher, *worker], check=True)
        print(f"{epochs * NUM_STEPS} steps of {BATCH_SIZE} images; largest relative difference, limit {LIMIT:g}")
        print("two    one                  compared    tensors   difference")
        good = [compare_weights(setting, root, epochs) for setting in TWO]
        good += [compare_evaluation(setting, root) for setting in TWO]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
