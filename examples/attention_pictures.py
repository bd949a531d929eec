"""Draws the pictures and prints the figures of docs/attention.md with the packaged model; takes a few minutes.

    python examples/attention_pictures.py [FOLDER]

The two photographs come with scikit-learn. The garments are test images of Fashion-MNIST.
"""

import sys
from itertools import islice
from pathlib import Path

import numpy as np
import sklearn.datasets
from PIL import Image

import xcit
from xcit.cli.predict import packaged_images
from xcit.data.named import open_fashion_mnist
from xcit.draw.attention import draw_temperatures
from xcit.explain import ClassAttentionMaps, channel_attention, class_attention, class_attention_each

PHOTOGRAPHS = Path(sklearn.datasets.__file__).parent / "images"
SANDAL = next(path for path in packaged_images() if path.stem == "sandal")
NUM_MEASURED = 1000


def draw_garments(path: Path, tile: int = 112, gap: int = 4) -> None:
    """Draws the first image of each class (not hand-picked), with the mean attention of both class attention blocks."""
    rows = [class_attention(packaged_images(), block=block) for block in (0, 1)]
    pictures = [[Image.fromarray(maps.image) for maps in rows[0]]]
    pictures += [[maps.overlay() for maps in row] for row in rows]
    step = tile + gap
    sheet = Image.new("RGB", (step * len(rows[0]) - gap, step * len(pictures) - gap), "white")
    for y, row in enumerate(pictures):
        for x, picture in enumerate(row):
            sheet.paste(picture.resize((tile, tile), Image.Resampling.NEAREST), (x * step, y * step))
    sheet.save(path, optimize=True)


def draw_photograph(maps: ClassAttentionMaps, path: Path, width: int = 1000, threshold: float | None = None) -> None:
    """Writes a figure as JPEG, because a PNG of a photograph would take a megabyte."""
    whole = path.with_suffix(".png")
    maps.draw(whole, threshold=threshold)
    with Image.open(whole) as image:
        size = width, round(image.height * width / image.width)
        image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(path, quality=90, subsampling=0)
    whole.unlink()


def share_on(maps: ClassAttentionMaps, mask: np.ndarray) -> list[float]:
    """Returns the shares inside a mask (h, w): of each head's attention, of the mean attention, and of the cells.

    A cell that is partly in the mask counts with that part of its area.
    """
    grid = maps.mean.shape
    cells = maps.to_pixels(np.arange(maps.mean.size).reshape(grid)).ravel()
    inside = (np.bincount(cells, mask.ravel()) / np.bincount(cells)).reshape(grid)
    return [float((shown * inside).sum() / shown.sum()) for shown in (*maps.heads, maps.mean, np.ones(grid))]


def print_row(name: str, block: int, shares: list[float]) -> None:
    print(f"{name:12s} {block:5d} " + " ".join(f"{share:7.1%}" for share in shares))


def measure() -> None:
    print("share of the attention that lies on the object, and the object's share of the cells\n")
    print(
        f"{'images':12s} block "
        + " ".join(f"{name:>7s}" for name in (*(f"head {i}" for i in range(4)), "mean", "cells"))
    )
    model = xcit.get_model("packaged", pretrained=True)
    for block in (0, 1):
        images = (np.asarray(image) for image, _ in islice(open_fashion_mnist("val"), NUM_MEASURED))
        found = class_attention_each(images, model, block=block)
        shares = [share_on(maps, maps.image[..., 0] > 0) for maps in found if isinstance(maps, ClassAttentionMaps)]
        print_row("garments", block, np.mean(shares, axis=0).tolist())
    # The masks were chosen by hand: a disc for the flower, and a rectangle for the pavilion.
    y, x = np.mgrid[:427, :640]
    masks = {"flower": (y - 222) ** 2 + (x - 305) ** 2 < 132**2, "china": (x > 65) & (x < 350) & (y > 30) & (y < 380)}
    for name, mask in masks.items():
        for block in (0, 1):
            (maps,) = class_attention(PHOTOGRAPHS / f"{name}.jpg", model, block=block)
            print_row(f"{name}.jpg", block, share_on(maps, mask))


def draw(out: Path) -> None:
    draw_garments(out / "attention-garments.png")
    (sandal,) = class_attention(SANDAL)
    sandal.draw(out / "attention-sandal.png")
    china, flower = class_attention([PHOTOGRAPHS / "china.jpg", PHOTOGRAPHS / "flower.jpg"])
    draw_photograph(china, out / "attention-china.jpg")
    draw_photograph(flower, out / "attention-flower.jpg", threshold=0.6)
    (channels,) = channel_attention(SANDAL)
    channels.draw(out / "attention-channels.png")
    draw_temperatures(channels.temperatures, "xcit-pico-fashion-mnist", out / "attention-temperatures.png")


if __name__ == "__main__":
    draw(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
    measure()
