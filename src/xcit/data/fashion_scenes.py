"""Draws scenes of several overlapping Fashion-MNIST garments on a textured background, with exact masks.

`compose` draws a scene and a mask of each garment. Label maps and boxes are computed from the masks. Training scenes
contain Fashion-MNIST's training images, and validation scenes contain its test images, so no garment is in both.

Shapes: `h` and `w` are the height and width of a scene.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xcit.data.named import FASHION_MNIST_CLASSES, Split, open_fashion_mnist
from xcit.errors import XCiTError, check_field
from xcit.seeding import mix_seeds
from xcit.writing import whole_folder

GROUND = "ground"
"""The name of the class of pixels without a garment; it is the first class of the label maps."""

_SPLIT_SEEDS: dict[Split, int] = {"train": 0, "val": 1}

_SEEN = 8
"""Pixels with a larger grey value than this belong to the garment; the grey value of the background is almost 0."""

_TRIES = 10
"""Number of attempts to place a garment, each with a new random size and position. Then the garment is left out."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """Settings for drawing scenes.

    Attributes:
        height: height of a scene, in pixels.
        width: width of a scene, in pixels.
        num_garments: smallest and largest number of garments that are drawn into a scene.
        scale: smallest and largest factor by which a garment of 28 x 28 pixels is enlarged.
        least_visible: smallest share of a garment's pixels that must stay visible. If a new garment would leave a
            smaller share of an earlier garment visible, the new garment is placed elsewhere or left out.
    """

    height: int = 96
    width: int = 128
    num_garments: tuple[int, int] = (2, 6)
    scale: tuple[float, float] = (1.0, 2.0)
    least_visible: float = 0.3

    def __post_init__(self) -> None:
        largest = int(28 * self.scale[1] + 0.5)
        check_field(self, "scale", 0 < self.scale[0] <= self.scale[1], "two factors above 0, the smaller one first")
        if min(self.height, self.width) < largest:
            raise XCiTError(
                f"SceneConfig: a scene of {self.width} x {self.height} is smaller than a garment of {largest} pixels"
            )
        is_rising = 1 <= self.num_garments[0] <= self.num_garments[1]
        check_field(self, "num_garments", is_rising, "two numbers of at least 1, the smaller one first")


@dataclass(frozen=True, kw_only=True)
class Garment:
    """A garment of a scene: its class (index in `FASHION_MNIST_CLASSES`) and the mask (h, w) of its visible pixels."""

    label: int
    mask: Mask


@dataclass(frozen=True, kw_only=True)
class FashionScene:
    """An image, 8-bit (h, w, 3), and its garments from back to front. The garments' masks do not overlap."""

    pixels: NDArray[np.uint8]
    garments: tuple[Garment, ...]

    def label_map(self) -> NDArray[np.uint8]:
        """Returns the label map (h, w): 0 is the background, and k + 1 is class k of `FASHION_MNIST_CLASSES`."""
        labels = np.zeros(self.pixels.shape[:2], np.uint8)
        for garment in self.garments:
            labels[garment.mask] = garment.label + 1
        return labels


def compose(
    garments: Sequence[tuple[Image.Image, int]], config: SceneConfig, draw: np.random.Generator
) -> FashionScene:
    """Draws a scene of random garments.

    Args:
        garments: the images to choose from, grey images of 28 x 28 pixels, each with its class.
        config: settings of the scene.
        draw: generator of all random numbers.
    """
    pixels = _ground(config, draw)
    num_garments = int(draw.integers(config.num_garments[0], config.num_garments[1] + 1))
    placed: list[_Placed] = []
    for index in draw.integers(0, len(garments), num_garments):
        picture, label = garments[int(index)]
        for _ in range(_TRIES):
            grey, place = _enlarged(picture, config, draw)
            mask = np.zeros(pixels.shape[:2], bool)
            mask[place] = grey > _SEEN
            below = [replace(garment, mask=garment.mask & ~mask) for garment in placed]
            if mask.any() and all(garment.is_seen(config.least_visible) for garment in below):
                # Each garment gets a random colour, so that only the shape shows the class.
                tint = draw.uniform(0.45, 1.0, 3)
                pixels[mask] = (grey[mask[place]][:, None] * tint).astype(np.uint8)
                placed = [*below, _Placed(label=label, mask=mask, size=int(mask.sum()))]
                break
    return FashionScene(
        pixels=pixels, garments=tuple(Garment(label=garment.label, mask=garment.mask) for garment in placed)
    )


@dataclass(frozen=True, kw_only=True)
class _Placed(Garment):
    """A garment that later garments may partly hide; `size` is the number of all its pixels, visible or hidden."""

    size: int

    def is_seen(self, least_visible: float) -> bool:
        return bool(self.mask.sum() >= least_visible * self.size)


def scenes(split: Split, count: int, *, config: SceneConfig | None = None, seed: int = 0) -> Iterator[FashionScene]:
    """Yields `count` scenes of a split. A scene depends only on `config`, `seed`, the split and the scene's number.

    Raises:
        XCiTError: if Fashion-MNIST is not on this machine and can't be downloaded.
    """
    garments = open_fashion_mnist(split)
    for number in range(count):
        draw = np.random.default_rng(mix_seeds(seed, _SPLIT_SEEDS[split], number))
        yield compose(garments, config or SceneConfig(), draw)


def write_segmentation_scenes(
    folder: Path,
    *,
    num_train: int,
    num_val: int,
    config: SceneConfig | None = None,
    seed: int = 0,
    report: Callable[[int], None] = lambda _: None,
) -> None:
    """Writes training and validation scenes with label maps, in a format that `open_scenes` reads.

    Args:
        folder: a folder that is empty or does not exist.
        num_train: number of training scenes.
        num_val: number of validation scenes.
        config: settings of the scenes; None means the defaults.
        seed: seed of all random numbers.
        report: is called with 1 after each scene.

    Raises:
        XCiTError: if the folder is not empty, or can't be written.
    """
    with whole_folder(folder) as part:
        counts: tuple[tuple[Split, int], ...] = (("train", num_train), ("val", num_val))
        for split, count in counts:
            for kind in ("images", "labels"):
                (part / kind / split).mkdir(parents=True)
            for number, scene in enumerate(scenes(split, count, config=config, seed=seed)):
                Image.fromarray(scene.pixels).save(part / "images" / split / f"{number:05}.png")
                Image.fromarray(scene.label_map()).save(part / "labels" / split / f"{number:05}.png")
                report(1)
        names = (GROUND, *FASHION_MNIST_CLASSES)
        (part / "classes.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def _ground(config: SceneConfig, draw: np.random.Generator) -> NDArray[np.uint8]:
    """Returns a background of coloured noise with random grain sizes, 8-bit (height, width, 3).

    On a background of one colour, the garments would be too easy to find.
    """
    total = np.zeros((config.height, config.width, 3))
    for grain in draw.choice([3, 6, 12, 24], 2, replace=False):
        rows, columns = -(-config.height // grain) + 1, -(-config.width // grain) + 1
        coarse = Image.fromarray(draw.integers(0, 256, (rows, columns, 3), dtype=np.uint8))
        total += np.asarray(coarse.resize((config.width, config.height), Image.Resampling.BICUBIC), float)
    base, strength = draw.uniform(20, 170, 3), draw.uniform(0.1, 0.35)
    return (base + strength * (total / 2 - 127) + draw.normal(0, 4, total.shape)).clip(0, 255).astype(np.uint8)


def _enlarged(
    picture: Image.Image, config: SceneConfig, draw: np.random.Generator
) -> tuple[NDArray[np.uint8], tuple[slice, slice]]:
    """Enlarges a garment by a random factor, and mirrors it with probability 1/2.

    Returns:
        The grey values of the garment, and its random position as slices of the scene's rows and columns.
    """
    side = int(28 * draw.uniform(*config.scale) + 0.5)
    grey = np.asarray(picture.convert("L").resize((side, side), Image.Resampling.BICUBIC))
    if draw.random() < 0.5:
        grey = grey[:, ::-1]
    top = int(draw.integers(0, config.height - side + 1))
    left = int(draw.integers(0, config.width - side + 1))
    return grey, (slice(top, top + side), slice(left, left + side))
