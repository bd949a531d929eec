"""Draws the confusion matrix of a classifier."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xcit.writing import whole_file

_MAX_NAMED = 40
"""The largest number of classes for which names and counts are drawn. For more classes, the text would be too small."""


def draw_confusion(confusion: NDArray[np.integer], names: Sequence[str], title: str, path: Path) -> None:
    """Draws a confusion matrix. The colour of a cell shows its number of images divided by the sum of its row.

    Args:
        confusion: numbers of images (classes, classes), with a row per true class and a column per predicted class.
        names: names of the classes.
        title: title of the picture.
        path: path of the PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shares = confusion / confusion.sum(axis=1, keepdims=True).clip(min=1)
    num_classes = len(names)
    named = num_classes <= _MAX_NAMED
    side = 3 + 0.55 * num_classes if named else 10
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # The square root makes rare confusions visible beside the diagonal.
    image = axes.imshow(shares**0.5, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title(title, parse_math=False)
    if named:
        axes.set_xticks(range(num_classes), names, rotation=45, ha="right", parse_math=False)
        axes.set_yticks(range(num_classes), names, parse_math=False)
        for row in range(num_classes):
            for column in range(num_classes):
                if count := int(confusion[row, column]):
                    color = "white" if shares[row, column] > 0.4 else "black"
                    axes.text(column, row, f"{count}", ha="center", va="center", color=color, fontsize=8)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    ticks = (0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1)
    bar.set_ticks([tick**0.5 for tick in ticks], labels=[f"{tick:.0%}" for tick in ticks])
    with whole_file(path) as part:
        figure.savefig(part, format="png", dpi=110)
