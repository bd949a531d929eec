"""Compares our training loader with timm's `create_loader`, with equal files, augmentation, batch size and workers.

    python benchmarks/loader.py [ROUNDS] [--num-images 256] [--batch-size 32] [--workers 1 2] [--profile]

JPEG files with noise and shapes, in ImageNet's usual size, are written to a temporary folder. Each round runs one epoch
of each loader in turn, so that a slow moment of the machine affects all of them. The workers run for all rounds.
timm's loader is measured in two forms: with normalisation in the workers, like ours, and with its prefetcher, which
receives bytes from the workers and normalises batches in the main process. With --profile, each loader runs one epoch
in this process, and the functions with the longest times are printed.
"""

import argparse
import cProfile
import os
import platform
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import PIL
import timm
import torch
from PIL import Image, ImageDraw, ImageFilter
from timm.data import ImageDataset, create_loader
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

import xcit
from xcit.data.classification import open_labelled_images
from xcit.data.loader import AugmentationConfig, LoaderConfig, TrainLoader, train_transform
from xcit.images.preprocess import Preprocessing
from xcit.machine import processor

IMAGE_SIZE, JPEG_SIZE = 224, (500, 375)
RANDOM_ERASING = 0.25

RAND_AUGMENT = "rand-m9-inc1"
"""The recipes' RandAugment policy without noise on the magnitude: at 10, timm's posterize fails with Pillow 13."""

NUM_CLASSES = 4

Epoch = Callable[[], Iterable[object]]


def draw_jpegs(folder: Path, num_images: int) -> None:
    """Writes pictures of about 100 KB each to one folder per class."""
    draw = np.random.default_rng(0)
    width, height = JPEG_SIZE
    for index in range(num_images):
        noise = Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
        image = noise.filter(ImageFilter.GaussianBlur(1.0))
        pen = ImageDraw.Draw(image)
        for _ in range(12):
            (x, y), radius = draw.integers((0, 0), JPEG_SIZE), draw.integers(10, 80)
            colour = tuple(int(value) for value in draw.integers(0, 256, 3))
            shape = pen.ellipse if draw.random() < 0.5 else pen.rectangle
            shape((int(x - radius), int(y - radius), int(x + radius), int(y + radius)), fill=colour)
        place = folder / str(index % NUM_CLASSES)
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{index}.jpg", quality=93)


def ours(folder: Path, *, batch_size: int, num_workers: int) -> Epoch:
    """Returns a function that starts the next epoch of our loader."""
    augmentation = AugmentationConfig(rand_augment=RAND_AUGMENT, random_erasing=RANDOM_ERASING)
    spec = Preprocessing(
        image_size=IMAGE_SIZE, resize_to=IMAGE_SIZE, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD
    )
    images = open_labelled_images(str(folder), "train")
    transform = train_transform(augmentation, spec)
    loader = TrainLoader(images, transform, LoaderConfig(batch_size=batch_size, seed=0, num_workers=num_workers))
    epochs = iter(range(10**9))
    return lambda: loader.batches(next(epochs))


def theirs(folder: Path, *, batch_size: int, num_workers: int, use_prefetcher: bool) -> Epoch:
    """Returns a function that starts the next epoch of timm's loader."""
    loader = create_loader(
        ImageDataset(str(folder)),
        input_size=(3, IMAGE_SIZE, IMAGE_SIZE),
        batch_size=batch_size,
        is_training=True,
        auto_augment=RAND_AUGMENT,
        re_prob=RANDOM_ERASING,
        re_mode="pixel",
        color_jitter=None,
        interpolation="bicubic",
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        use_prefetcher=use_prefetcher,
        device=torch.device("cpu"),
    )
    return lambda: loader


def loaders(folder: Path, *, batch_size: int, num_workers: int) -> dict[str, Epoch]:
    return {
        "xcit": ours(folder, batch_size=batch_size, num_workers=num_workers),
        "timm": theirs(folder, batch_size=batch_size, num_workers=num_workers, use_prefetcher=False),
        "timm, prefetcher": theirs(folder, batch_size=batch_size, num_workers=num_workers, use_prefetcher=True),
    }


def seconds(epoch: Epoch) -> float:
    """Returns the time in seconds to read all batches of an epoch."""
    started = time.perf_counter()
    for _ in epoch():
        pass
    return time.perf_counter() - started


def show_profile(folder: Path, batch_size: int) -> None:
    """Prints the functions in which each loader spends its time, without worker processes."""
    for name, epoch in loaders(folder, batch_size=batch_size, num_workers=0).items():
        seconds(epoch)
        recorded = cProfile.Profile()
        recorded.runcall(seconds, epoch)
        print(f"--- {name}")
        pstats.Stats(recorded).sort_stats("tottime").print_stats(18)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", nargs="?", type=int, default=7)
    parser.add_argument("--num-images", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{platform.platform()}, {processor()}, {usable} of {os.cpu_count()} cores")
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}, Pillow "
        f"{PIL.__version__}, xcit {xcit.__version__}; {arguments.num_images} images, {arguments.rounds} rounds"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        draw_jpegs(folder, arguments.num_images)
        num_bytes = statistics.median(path.stat().st_size for path in folder.rglob("*.jpg"))
        print(f"JPEG files of {JPEG_SIZE[0]} x {JPEG_SIZE[1]} pixels, {num_bytes / 1000:.0f} KB")
        if arguments.profile:
            show_profile(folder, arguments.batch_size)
            return
        num_taken = arguments.num_images // arguments.batch_size * arguments.batch_size
        for num_workers in arguments.workers:
            epochs = loaders(folder, batch_size=arguments.batch_size, num_workers=num_workers)
            times: dict[str, list[float]] = {name: [] for name in epochs}
            for epoch in epochs.values():
                seconds(epoch)  # not counted, because it starts the workers
            for _ in range(arguments.rounds):
                for name, epoch in epochs.items():
                    times[name].append(seconds(epoch))
            medians = {name: statistics.median(values) for name, values in times.items()}
            print(f"{f'workers {num_workers}':18s} {'images/s':>8s} {'time, x ours':>13s}   quartiles")
            for name, values in times.items():
                ratios = [other / own for other, own in zip(values, times["xcit"], strict=True)]
                low, _, high = statistics.quantiles(ratios, n=4)
                print(
                    f"{name:18s} {num_taken / medians[name]:8.1f} {medians[name] / medians['xcit']:12.3f}x   "
                    f"{low:.3f}-{high:.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
