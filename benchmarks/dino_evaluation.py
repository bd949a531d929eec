"""Measures a model's features on Fashion-MNIST, and compares them with an untrained model's features and raw pixels.

    python benchmarks/dino_evaluation.py runs/dino/model.safetensors [--data fashion-mnist] [--seed 0]
        [--before runs/dino/step-937.pt ...]

One run measures everything and prints a Markdown table: k-NN on the validation images for each k, and a linear probe.
The untrained model has random weights from --seed and initial batch-norm statistics. Raw pixels are grey or RGB in
0..1, at the model's image size. In each row, k and the probe's learning rate are the best on the validation images, so
the best figures are slightly too high. The probe trains without augmentation. With --augmented it uses the published
protocol, which computes the training features again in each epoch. --before adds earlier checkpoints of the same run
(see `--run.keep_checkpoints`), which are measured by k-NN only.
"""

import argparse
import platform
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import xcit
from xcit.data.classification import LabelledImages
from xcit.images.preprocess import Preprocessing, preprocess
from xcit.measure.knn import KNNReport, evaluate_knn, knn_accuracies
from xcit.measure.linear import LinearReport, train_linear
from xcit.models import XCiT
from xcit.training.tasks.labelled_features import open_train_and_val

LRS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Learning rates for a batch of 256. The first is the published rate; small models on small data need higher rates."""


def untrained(model: XCiT, seed: int) -> XCiT:
    """Returns the same model with random initial weights."""
    torch.manual_seed(seed)
    fresh = XCiT(replace(model.config, num_classes=0)).eval()
    assert model.info is not None
    fresh.info = replace(model.info, name="untrained", class_names=(), class_ids=())
    return fresh


def pixels_of(images: LabelledImages, spec: Preprocessing) -> tuple[np.ndarray, np.ndarray]:
    """Returns pixels (N, C*h*w) in 0..1 and labels (N,) of images that are scaled and cropped as for the model."""
    plain = replace(spec, mean=(0.0,) * len(spec.mean), std=(1.0,) * len(spec.std))
    rows, labels = [], []
    for index in range(len(images)):
        image, label = images[index]
        rows.append(preprocess(image, plain).flatten().numpy())
        labels.append(label)
    return np.stack(rows), np.array(labels)


def row(name: str, knn: KNNReport, linear: LinearReport | None) -> str:
    """Returns a line of the table."""
    cells = [f"{accuracy.top1:.2f}" for accuracy in knn.accuracies]
    probe = "" if linear is None else f"{linear.best.top1:.2f} (lr {linear.best.lr:g})"
    return " | ".join(["", name, f"**{knn.best.top1:.2f}** (k {knn.best.k})", *cells, probe, ""]).strip()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a weights file, or a name of the zoo")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--before", nargs="+", type=Path, default=[], help="earlier checkpoints of the same run")
    parser.add_argument("--seed", type=int, default=0, help="seed of the untrained model")
    parser.add_argument("--epochs", type=int, default=100, help="epochs of the linear probe")
    parser.add_argument("--batch-size", type=int, default=1024, help="batch size of the linear probe")
    parser.add_argument("--augmented", action="store_true", help="use the published protocol of the linear probe")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device")
    arguments = parser.parse_args()
    model = xcit.get_model(arguments.checkpoint, pretrained=True)
    if model.info is None:
        parser.error(f"{arguments.checkpoint} does not say how to prepare images")
    splits = open_train_and_val(arguments.data)
    common = {"num_workers": arguments.workers, "device": arguments.device}
    rows = []
    for name, network in (
        (model.info.name, model),
        (f"untrained, seed {arguments.seed}", untrained(model, arguments.seed)),
    ):
        knn = evaluate_knn(network, splits, **common)
        with tempfile.TemporaryDirectory() as folder:
            linear = train_linear(
                network,
                arguments.data,
                Path(folder) / "run",
                lrs=LRS,
                epochs=arguments.epochs,
                augmented=arguments.augmented,
                batch_size=arguments.batch_size,
                **common,
            )
        rows.append(row(name, knn, linear))
    for path in arguments.before:
        earlier = untrained(model, 0)
        xcit.load_weights(earlier, path)
        rows.append(row(path.stem, evaluate_knn(earlier, splits, **common), None))
    pixels = [array for images in splits for array in pixels_of(images, model.info.preprocessing)]
    raw = knn_accuracies(*pixels)
    rows.append(row("raw pixels", raw, None))

    print(f"{platform.platform()}, torch {torch.__version__}, xcit {xcit.__version__}")
    print(f"{arguments.data}: {raw.num_train} training and {raw.num_val} validation images; top-1 in percent")
    crops = "random crops, as published" if arguments.augmented else "centre crops"
    print(
        f"linear: {arguments.epochs} epochs of {crops}, global batch {arguments.batch_size}, best of {len(LRS)} rates\n"
    )
    ks = [accuracy.k for accuracy in raw.accuracies]
    head = ["features", "best k-NN", *(f"k {k}" for k in ks), "linear"]
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
