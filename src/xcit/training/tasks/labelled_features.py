"""Computes the features of a data set with a frozen model, once per image, and caches the features on disk."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import DataLoader

from xcit.data.classification import ImageSubset, LabelledImages, is_folder_without_validation
from xcit.data.fingerprint import fingerprint
from xcit.data.loader import EvaluationImages, prepare_worker
from xcit.data.streams import is_stream
from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing
from xcit.models import XCiT
from xcit.training.engine.config import RunConfig
from xcit.training.engine.distribution import Processes
from xcit.training.tasks.evaluation import none_readable
from xcit.training.tasks.labelled_data import open_data
from xcit.weights.fetch import cache_dir
from xcit.weights.files import digest, write_safetensors


@dataclass(frozen=True, kw_only=True)
class LabelledFeatures:
    """Features of the N readable images of a data set, in the order of the images.

    Attributes:
        features: (N, D) float32, where D is the width of the model.
        labels: (N,) class indices.
        unreadable: one line for each image that could not be read.
    """

    features: Tensor
    labels: Tensor
    unreadable: tuple[str, ...] = ()


def feature_cache() -> Path:
    """Returns the folder for cached features: the folder `features` in the cache of weights (`XCIT_CACHE`)."""
    return cache_dir() / "features"


def open_train_and_val(
    data: str, holdout: float = 0, announce: Callable[[str], None] = lambda _: None, *, class_map: str = ""
) -> tuple[LabelledImages, LabelledImages]:
    """Opens the training and the validation images of a data set.

    Args:
        data: see `open_labelled_images`.
        holdout: if not 0, the validation images are held out of the training images, as in a run with this `holdout`.
        announce: called with each line for the user about the data and problems in the data.
        class_map: see `open_data`.

    Raises:
        XCiTError: if one split is missing, if a class of the validation images has no training images, if there is only
            one class, and in the cases of `open_labelled_images`.
    """
    if not holdout and is_folder_without_validation(data):
        raise XCiTError(
            f"{data} has no folder val: expected train/<class>/<image> and val/<class>/<image>, or a holdout"
        )
    if is_stream(data):
        raise XCiTError(f"{data}: a stream can't be used here; give a folder of images by class, or 'hf:NAME'")
    opened = open_data(data, val_data="", holdout=holdout, num_classes=0, class_map=class_map)
    for line in (*opened.notes, *(f"warning: {problem}" for problem in opened.problems)):
        announce(line)
    return cast("tuple[LabelledImages, LabelledImages]", (opened.train, opened.watched))


def pooled_feature(model: XCiT, images: Tensor) -> Tensor:
    """Returns the features (B, D) that are the input of a classifier's head: class tokens, or means of patch tokens."""
    return model.forward_head(model.forward_features(images), pre_logits=True)


def check_pooled(model: XCiT) -> None:
    """Checks that a model gives one feature per image.

    Raises:
        XCiTError: if the model does no pooling.
    """
    if model.config.global_pool == "none":
        raise XCiTError(
            "a model without pooling gives tokens, not one feature per image: set global_pool to 'cls' or 'avg'"
        )


def backbone_digest(model: XCiT) -> str:
    """Returns the SHA-256 (hexadecimal) of a model's weights and config, without the head.

    Two models with the same digest give the same features.
    """
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("head.")}
    config = replace(model.config, num_classes=0, drop_path_rate=0.0)
    return hashlib.sha256(f"{digest(state)} {json.dumps(asdict(config))}".encode()).hexdigest()


def extract(
    model: XCiT,
    images: LabelledImages,
    spec: Preprocessing,
    processes: Processes,
    *,
    run: RunConfig,
    cache: Path | None = None,
    report: Callable[[int], None] = lambda _: None,
    announce: Callable[[str], None] = lambda _: None,
) -> LabelledFeatures:
    """Computes the features of all images, or reads them from the cache. Every process gets all features on its device.

    Args:
        model: the model, in evaluation mode, on the device of this process.
        images: the data set.
        spec: the preprocessing of the images.
        processes: the processes that share the work.
        run: settings. Only three of them are used: `dtype` (precision), `num_workers` (number of processes that read
            images) and `batch_size` (number of images that all processes together compute at once).
        cache: folder of the cache; None means no cache. A cached file is used only if it was computed with
            the same weights, data, preprocessing and `dtype`.
        report: called with the number of images of each batch of this process.
        announce: called in the main process with a line for the user, if features could not be cached.

    Raises:
        XCiTError: if no image could be read, or a feature is not finite.
    """
    check_pooled(model)
    path = _place(cache, model, images, spec, run)
    known = None if path is None else _read(path, processes.device)
    # If one process can't find the file (for example on a machine with its own disk), all processes compute features.
    num_missing = processes.reduce(torch.tensor([float(known is None)], device=processes.device)).item()
    if known is not None and not num_missing:
        report(len(processes.layout.share(len(images))))
        return known
    found = _compute(
        model, images, spec, processes, run=run, batch_size=run.batch_size // processes.layout.world_size, report=report
    )
    if path is not None and processes.is_main:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_safetensors(
                path,
                {"features": found.features, "labels": found.labels},
                {"unreadable": json.dumps(found.unreadable)},
            )
        except (XCiTError, OSError) as error:  # the features took minutes to compute, and must not be lost
            announce(f"warning: the features could not be cached: {error}")
    return found


def _compute(
    model: XCiT,
    images: LabelledImages,
    spec: Preprocessing,
    processes: Processes,
    *,
    run: RunConfig,
    batch_size: int,
    report: Callable[[int], None],
) -> LabelledFeatures:
    share, device = processes.layout.share(len(images)), processes.device
    features = torch.zeros(len(images), model.embed_dim, device=device)
    marks = torch.zeros(len(images), dtype=torch.int64, device=device)  # label + 1, or 0 if the image can't be read
    unreadable: list[str] = []
    loader = DataLoader(
        EvaluationImages(ImageSubset(images, share), spec),
        batch_size=batch_size,
        num_workers=run.num_workers,
        worker_init_fn=prepare_worker,
    )
    done = 0
    with torch.inference_mode():
        for batch, labels, reasons in loader:
            rows = torch.tensor(share[done : done + len(labels)], device=device)
            with processes.autocast():
                found = pooled_feature(model, batch.to(device))
            features[rows], marks[rows] = found.float(), labels.to(device) + 1
            unreadable += [reason for reason in reasons if reason]
            done += len(labels)
            report(len(labels))
    if processes.layout.world_size > 1:
        # Each row is 0 in all processes except the process that computed it, so the sum has all rows.
        features, marks = processes.reduce(features), processes.reduce(marks)
        unreadable = sorted(processes.gather(unreadable))
    is_readable = marks > 0
    if not is_readable.any():
        raise none_readable(len(images), "images", unreadable)
    features = features[is_readable]
    if not torch.isfinite(features).all():
        raise XCiTError(
            "the model's features contain NaN or infinity: the weights are bad, or the range of run.dtype is too small"
        )
    return LabelledFeatures(features=features, labels=marks[is_readable] - 1, unreadable=tuple(unreadable))


def _place(cache: Path | None, model: XCiT, images: LabelledImages, spec: Preprocessing, run: RunConfig) -> Path | None:
    """Returns the path of the cached features; None if there is no cache, or if `fingerprint` returns None.

    The name of the file is a hash of everything that the features depend on.
    """
    data = None if cache is None else fingerprint(images)
    if cache is None or data is None:
        return None
    content = {
        "model": backbone_digest(model),
        "data": data,
        "preprocessing": asdict(spec),
        "dtype": run.dtype,
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return cache / f"{key[:32]}.safetensors"


def _read(path: Path, device: torch.device) -> LabelledFeatures | None:
    """Returns the cached features, or None if the file does not exist or is damaged.

    A damaged file is replaced when the features are computed.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return LabelledFeatures(
                features=file.get_tensor("features").to(device),
                labels=file.get_tensor("labels").to(device),
                unreadable=tuple(json.loads(file.metadata()["unreadable"])),
            )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None
