"""The records of the adversarially trained XCiTs of Debenedetti, Sehwag and Mittal (arXiv 2209.07399).

Nine models are in the releases of RobustBench. Three more models are only on the authors' Google Drive, from which a
program can't download. The models for CIFAR have the layers of models for patches of 16, but the first two convolutions
of their stem have stride 1, so their patches have 4 pixels per side.
"""

from dataclasses import replace

from xcit.images.preprocess import Preprocessing, published_preprocessing
from xcit.weights.fetch import Source
from xcit.zoo.architectures import ARCHITECTURES
from xcit.zoo.records import Accuracy, Checkpoint

_RELEASE = "https://github.com/RobustBench/robustbench/releases/download/v1.1"

# The ImageNet models accept images in 0..1 without normalisation. The size of an attack refers to this range.
_IMAGENET = replace(published_preprocessing("official", 224), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
_CIFAR10 = Preprocessing(image_size=32, resize_to=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2471, 0.2435, 0.2616))
_CIFAR100 = Preprocessing(image_size=32, resize_to=32, mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))

# Columns: RobustBench's name of the data set; our name of the data set; patch size; number of classes; preprocessing;
# size of the attack; models. Columns of a model: letter of its size; architecture; accuracy (%) without an attack;
# accuracy (%) under AutoAttack; id of its file on the authors' Google Drive.
# fmt: off
_Model = tuple[str, str, float, float, str]
_IN_RELEASES: tuple[tuple[str, str, str, int, Preprocessing, str, tuple[_Model, ...]], ...] = (
    ("imagenet", "ImageNet-1k", "p16", 1000, _IMAGENET, "4/255", (
        ("s", "small-12", 72.34, 41.78, "1wbx18o4l_ECyEYo9eyHnIYPlSNRMpO-D"),
        ("m", "medium-12", 74.04, 45.24, "184utgGfgh6m_GDBe_mETWf0HmxksGCHH"),
        ("l", "large-12", 73.76, 47.60, "154l0cWMtBMK64yG7gn3fzoTQSATHR8H5"),
    )),
    ("cifar10", "CIFAR-10", "p4", 10, _CIFAR10, "8/255", (
        ("s", "small-12", 90.06, 56.14, "1hu7Z4LhR4OOL3gmbHuT9ljRTSKIxGbPs"),
        ("m", "medium-12", 91.30, 57.27, "1yan2zUNA6s6zDc0MOkfgCr3ctjWcQEI0"),
        ("l", "large-12", 91.73, 57.58, "1NWI77UiSD5nOx6dQgvIyPRYQof-8ke-y"),
    )),
    ("cifar100", "CIFAR-100", "p4", 100, _CIFAR100, "8/255", (
        ("s", "small-12", 67.34, 32.19, "13vFwvVWEESfWWpoicPhD08HtzYszeyUr"),
        ("m", "medium-12", 69.21, 34.21, "1YXnGsY3yvvaMucMwyfhDHIUchOSungj2"),
        ("l", "large-12", 70.76, 35.08, "1Sg4BQ5pBdlR_M41VDxOlYxCl1_It8elL"),
    )),
)
# The ImageNet models for attacks of size 8/255. The columns are the columns of a model in the table above.
_ON_DRIVE: tuple[_Model, ...] = (
    ("s", "small-12", 63.46, 25.00, "1lFcXruv6lUz9XqxvXTzyA_7YLprPZq2q"),
    ("m", "medium-12", 67.80, 26.58, "1Nw86jzlXLEGbFQZtd39i0Mampwh2ZAFv"),
    ("l", "large-12", 69.24, 28.74, "1UPDBDkirsxUGBEDrznJrTZ0JR173nMlv"),
)
# fmt: on


def _record(
    name: str, architecture: str, dataset: str, num_classes: int, spec: Preprocessing, drive: str
) -> Checkpoint:
    return Checkpoint(
        name=name,
        aliases=(),
        architecture=architecture,
        config=replace(ARCHITECTURES[architecture], num_classes=num_classes),
        recipe="",
        dataset=dataset,
        preprocessing=spec,
        accuracies=(),
        by_hand=f"https://drive.google.com/file/d/{drive}/view",
        licence="not stated",
    )


def _robust() -> list[Checkpoint]:
    records = []
    for data, dataset, patches, num_classes, spec, size, rows in _IN_RELEASES:
        for letter, model, clean, attacked, drive in rows:
            name = f"debenedetti2022light_xcit_{letter}12_{data}_linf"
            file = f"debenedetti2022light-xcit-{letter}-{data}-linf.pth.tar"
            records.append(
                replace(
                    _record(name, f"{model}-{patches}", dataset, num_classes, spec, drive),
                    # RobustBench's name, made of the model, the data set and the threat model.
                    aliases=(f"Debenedetti2022Light_XCiT-{letter.upper()}12_{data}_Linf",),
                    accuracies=_figures("RobustBench", clean, attacked, size),
                    sources=(Source(kind="url", location=f"{_RELEASE}/{file}", filename=file),),
                    licence="MIT",
                )
            )
    for letter, model, clean, attacked, drive in _ON_DRIVE:
        name = f"debenedetti2022light_xcit_{letter}12_imagenet_linf_eps8"
        records.append(
            replace(
                _record(name, f"{model}-p16", "ImageNet-1k", 1000, _IMAGENET, drive),
                accuracies=_figures("official", clean, attacked, "8/255"),
            )
        )
    return records


def _figures(measured_by: str, clean: float, attacked: float, size: str) -> tuple[Accuracy, ...]:
    return (
        Accuracy(measured_by=measured_by, top1=clean),
        Accuracy(measured_by=measured_by, top1=attacked, attack=f"AutoAttack, Linf {size}"),
    )


ROBUST: tuple[Checkpoint, ...] = tuple(_robust())
"""The records of the twelve robust models."""
