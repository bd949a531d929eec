"""The records of 42 published classifiers, 4 published DINO backbones, the robust models and the packaged model."""

from dataclasses import replace

from xcit.images.preprocess import DINO_PREPROCESSING, Preprocessing, published_preprocessing
from xcit.weights.fetch import Source
from xcit.zoo.architectures import ARCHITECTURES
from xcit.zoo.records import Accuracy, Checkpoint
from xcit.zoo.robust import ROBUST

# Columns: architecture, image size, distilled; top-1 and top-5 measured by mmpretrain; top-1 measured by the authors;
# the date and the first eight hex digits of the SHA-256 in the name of mmpretrain's file.
# fmt: off
_PUBLISHED: tuple[tuple[str, int, bool, float, float, float, str, str], ...] = (
    ("nano-12-p16", 224, False, 70.35, 89.98, 69.9, "20230213", "ed776c38"),
    ("nano-12-p16", 224, True, 72.36, 91.02, 72.2, "20230213", "fb247f7b"),
    ("tiny-12-p16", 224, False, 77.21, 93.62, 77.1, "20230213", "82c547ca"),
    ("tiny-12-p16", 224, True, 78.7, 94.12, 78.6, "20230213", "d5fde0a3"),
    ("nano-12-p16", 384, True, 74.93, 92.42, 75.4, "20230213", "712db4d4"),
    ("nano-12-p8", 224, False, 73.8, 92.08, 73.8, "20230213", "3370c293"),
    ("nano-12-p8", 224, True, 76.17, 93.08, 76.3, "20230213", "2f87d2b3"),
    ("tiny-24-p16", 224, False, 79.47, 94.85, 79.4, "20230213", "366c1cd0"),
    ("tiny-24-p16", 224, True, 80.51, 95.17, 80.4, "20230213", "b472e80a"),
    ("tiny-12-p16", 384, True, 80.58, 95.38, 80.9, "20230213", "00a20023"),
    ("tiny-12-p8", 224, False, 79.75, 94.88, 79.7, "20230213", "8b02f8f5"),
    ("tiny-12-p8", 224, True, 81.26, 95.46, 81.2, "20230213", "f3f9b44f"),
    ("small-12-p16", 224, False, 81.87, 95.77, 82.0, "20230213", "d36779d2"),
    ("small-12-p16", 224, True, 83.12, 96.41, 83.3, "20230213", "c95bbae1"),
    ("nano-12-p8", 384, True, 77.69, 94.09, 77.8, "20230213", "09d925ef"),
    ("tiny-24-p16", 384, True, 82.43, 96.2, 82.6, "20230213", "20e13917"),
    ("small-24-p16", 224, False, 82.38, 95.93, 82.6, "20230213", "40febe38"),
    ("small-24-p16", 224, True, 83.7, 96.61, 83.9, "20230213", "130d7262"),
    ("tiny-24-p8", 224, False, 81.7, 95.9, 81.9, "20230213", "4b9ba392"),
    ("tiny-24-p8", 224, True, 82.62, 96.16, 82.6, "20230213", "ad9c44b0"),
    ("tiny-12-p8", 384, True, 82.46, 96.22, 82.4, "20230213", "a072174a"),
    ("small-12-p16", 384, True, 84.74, 97.19, 84.7, "20230213", "ba36c982"),
    ("medium-24-p16", 224, False, 82.56, 95.82, 82.7, "20230213", "ad0aa92e"),
    ("medium-24-p16", 224, True, 84.15, 96.82, 84.3, "20230213", "aca5cd0c"),
    ("small-12-p8", 224, False, 83.21, 96.41, 83.4, "20230213", "9e364ce3"),
    ("small-12-p8", 224, True, 83.97, 96.81, 84.2, "20230213", "71886580"),
    ("small-24-p16", 384, True, 85.1, 97.32, 85.1, "20230213", "28fa2d0e"),
    ("tiny-24-p8", 384, True, 83.77, 96.72, 83.7, "20230213", "30d5e5ec"),
    ("small-24-p8", 224, False, 83.62, 96.51, 83.9, "20230213", "280ebcc7"),
    ("small-24-p8", 224, True, 84.68, 97.07, 84.9, "20230213", "f2773c78"),
    ("large-24-p16", 224, False, 82.97, 95.86, 82.9, "20230214", "d29d2529"),
    ("large-24-p16", 224, True, 84.61, 97.07, 84.9, "20230214", "4fea599c"),
    ("medium-24-p16", 384, True, 85.47, 97.49, 85.4, "20230214", "6c23a201"),
    ("small-12-p8", 384, True, 85.12, 97.31, 85.1, "20230214", "9f2178bc"),
    ("medium-24-p8", 224, False, 83.61, 96.23, 83.7, "20230214", "c362850b"),
    ("medium-24-p8", 224, True, 85.0, 97.16, 85.1, "20230214", "625c953b"),
    ("small-24-p8", 384, True, 85.57, 97.6, 85.6, "20230214", "57298eca"),
    ("large-24-p16", 384, True, 85.78, 97.6, 85.8, "20230214", "bd515a34"),
    ("large-24-p8", 224, False, 84.23, 96.58, 84.4, "20230214", "08f2f664"),
    ("large-24-p8", 224, True, 85.14, 97.32, 85.4, "20230214", "8c092b34"),
    ("medium-24-p8", 384, True, 85.87, 97.61, 85.8, "20230214", "5db925e0"),
    ("large-24-p8", 384, True, 86.13, 97.75, 86.0, "20230214", "9f718b1a"),
)
# fmt: on


def _published(
    architecture: str,
    image_size: int,
    distilled: bool,
    top1_mmpretrain: float,
    top5_mmpretrain: float,
    top1_official: float,
    date: str,
    sha256: str,
) -> Checkpoint:
    suffix = "-384px" if image_size == 384 else ""
    name = f"xcit-{architecture}_3rdparty{'-dist' if distilled else ''}_in1k{suffix}"
    base = f"xcit_{architecture.replace('-', '_')}"
    official = f"{base}_{image_size}{'_dist' if distilled else ''}"
    timm = f"{base}_{image_size}.fb{'_dist' if distilled else ''}_in1k"
    aliases = [official, timm, f"timm/{timm}"]
    if image_size == 224 and not distilled:
        # A name that contains no image size means 224 pixels, and a name without "dist" means a model that was trained
        # without distillation. In the official hub, this name has underscores.
        aliases += [f"xcit-{architecture}", base]
    if image_size == 384:
        aliases.append(f"{base}_384")  # timm's name without its tag
    return Checkpoint(
        name=name,
        aliases=tuple(aliases),
        architecture=architecture,
        config=ARCHITECTURES[architecture],
        recipe=f"xcit-{architecture}_8xb128_in1k{suffix}",
        dataset="ImageNet-1k",
        distilled=distilled,
        preprocessing=published_preprocessing("official", image_size),
        accuracies=(
            Accuracy(measured_by="mmpretrain", top1=top1_mmpretrain, top5=top5_mmpretrain),
            Accuracy(measured_by="official", top1=top1_official),
        ),
        sources=(
            Source(kind="huggingface", location=f"timm/{timm}", filename="model.safetensors"),
            Source(
                kind="url",
                location=f"https://dl.fbaipublicfiles.com/xcit/{official}.pth",
                filename=f"{official}.pth",
            ),
            Source(
                kind="url",
                location=f"https://download.openmmlab.com/mmclassification/v0/xcit/{name}_{date}-{sha256}.pth",
                filename=f"{name}_{date}-{sha256}.pth",
                sha256=sha256,
            ),
        ),
    )


# Columns: architecture; top-1 of k-NN and of a linear probe, measured by the authors. They did not publish k.
_DINO: tuple[tuple[str, float, float], ...] = (
    ("small-12-p16", 76.0, 77.8),
    ("small-12-p8", 77.1, 79.2),
    ("medium-24-p16", 76.4, 78.8),
    ("medium-24-p8", 77.9, 80.3),
)


def _dino(architecture: str, top1_knn: float, top1_linear: float) -> Checkpoint:
    name = f"dino_xcit-{architecture}_in1k"
    by_xcit = f"xcit_{architecture.replace('-p', '-cp').replace('-', '_')}_dino"
    by_dino = f"dino_xcit_{architecture.replace('-', '_')}"
    file = f"{by_dino}_pretrain"
    return Checkpoint(
        name=name,
        # Aliases: the name in DINO's own hub, the name without data set, and the names of the two published files.
        aliases=(by_dino, f"dino_xcit-{architecture}", by_xcit, file),
        task="image-features",
        architecture=architecture,
        config=replace(ARCHITECTURES[architecture], num_classes=0),
        recipe=name,
        dataset="ImageNet-1k",
        preprocessing=DINO_PREPROCESSING,
        accuracies=(
            Accuracy(measured_by="official", method="k-NN", top1=top1_knn),
            Accuracy(measured_by="official", method="linear", top1=top1_linear),
        ),
        sources=(
            Source(
                kind="url",
                location=f"https://dl.fbaipublicfiles.com/dino/{file}/{file}.pth",
                filename=f"{file}.pth",
            ),
            Source(
                kind="url",
                location=f"https://dl.fbaipublicfiles.com/xcit/{by_xcit}.pth",
                filename=f"{by_xcit}.pth",
            ),
        ),
    )


PACKAGED = Checkpoint(
    name="xcit-pico-fashion-mnist",
    aliases=("packaged", "xcit-pico-6-p4"),
    architecture="pico-6-p4",
    config=ARCHITECTURES["pico-6-p4"],
    recipe="xcit-pico-fashion-mnist",
    dataset="Fashion-MNIST",
    preprocessing=Preprocessing(image_size=28, resize_to=28, mean=(0.2860,), std=(0.3530,)),
    accuracies=(Accuracy(measured_by="xcit", top1=92.33, top5=99.90),),
    packaged="xcit-pico-fashion-mnist.safetensors",
)
"""The model that is part of this package. It was trained with this package on images of ten types of garment."""

CHECKPOINTS: dict[str, Checkpoint] = {
    record.name: record
    for record in (*(_published(*row) for row in _PUBLISHED), *(_dino(*row) for row in _DINO), *ROBUST, PACKAGED)
}
"""The records of all classifiers and backbones, by name."""
