"""Trains a ViT from timm in the same way as the packaged model, and compares both models on Fashion-MNIST.

    python benchmarks/vision_transformer.py train runs/vit    # an hour or two on one processor core; can be resumed
    python benchmarks/vision_transformer.py compare runs/vit runs/xcit-pico-fashion-mnist

The ViT has the same number of blocks, heads and patches as the packaged model, and the same width. Its MLPs are a
little wider, so that the numbers of parameters differ by less than 0.2%. Its training is the recipe
`xcit-pico-fashion-mnist` with a third of the learning rate. With the recipe's own learning rate, the ViT's loss in the
second epoch was still 1.09, and the XCiT's was 0.83.
"""

import platform
import statistics
import sys
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from xcit.config import override
from xcit.data.classification import open_labelled_images
from xcit.training.engine.distribution import Processes
from xcit.training.engine.log import read_log
from xcit.training.engine.loop import train_task
from xcit.training.engine.progress import Progress
from xcit.training.recipes import get_recipe
from xcit.training.tasks.classification import ClassificationTask, evaluate_classification
from xcit.training.tasks.evaluation import EvaluationConfig
from xcit.zoo import get_model

RECIPE = "xcit-pico-fashion-mnist"
VIT_LEARNING_RATE = "1e-3"


def build_vit() -> nn.Module:
    return VisionTransformer(
        img_size=28, patch_size=4, in_chans=1, num_classes=10, embed_dim=64, depth=8, num_heads=4, mlp_ratio=4.4375
    )


class ViTTask(ClassificationTask):
    """The task of the recipe, with a ViT as the model."""

    def __init__(self) -> None:
        super().__init__(override(get_recipe(RECIPE), {"optimizer.lr": VIT_LEARNING_RATE}))
        torch.manual_seed(self.config.run.seed)
        self.model = build_vit()

    def export(self, model: nn.Module, path: Path) -> None:
        """Writes only the weights to a file, because a ViT is not a model of this package."""
        save_file(model.state_dict(), path)


def train_vit(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    task = ViTTask()
    config = task.config

    def report(progress: Progress) -> None:
        if progress.figures is not None:
            print(f"epoch {progress.epoch + 1}/{progress.num_epochs}: loss {progress.loss:.3f}", progress.figures)

    train_task(
        task,
        Processes(config.run, torch.device("cpu")),
        config,
        folder,
        resume_from=folder / "last.pt" if (folder / "last.pt").exists() else None,
        report=report,
        announce=print,
    )


def compare(vit_run: Path, xcit_run: Path) -> None:
    vit = build_vit()
    vit.load_state_dict(load_file(vit_run / "model.safetensors"))
    xcit = get_model(str(xcit_run / "model.safetensors"))
    spec, images = get_recipe(RECIPE).preprocessing, open_labelled_images("fashion-mnist", "val")
    print(f"{platform.platform()}, torch {torch.__version__}, timm {timm.__version__}")
    heads = ("parameters", "epochs", "images/s", "train loss", "test top-1", "test loss")
    print(f"{'model':<12}" + "".join(f"{head:>12}" for head in heads))
    for name, model, run in (("XCiT pico", xcit, xcit_run), ("timm ViT", vit, vit_run)):
        epochs = [line for line in read_log(run / "log.jsonl") if line["kind"] == "epoch"]
        speed = statistics.median(line["images_per_second"] for line in epochs)
        report = evaluate_classification(model.eval(), images, spec, EvaluationConfig(batch_size=500), num_classes=10)
        print(
            f"{name:<12}{sum(p.numel() for p in model.parameters()):>12,}{len(epochs):>12}{speed:>12.0f}"
            f"{epochs[-1]['loss']:>12.3f}{report.top1:>11.2f}%{report.loss:>12.4f}"
        )


if __name__ == "__main__":
    verb, *folders = sys.argv[1:]
    {"train": train_vit, "compare": compare}[verb](*map(Path, folders))
