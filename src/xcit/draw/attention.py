"""Draws class attention, and the covariances and temperatures of XCA (cross-covariance attention).

A map of class attention has one cell per patch. Maps are enlarged to the size of the image without interpolation,
because a smooth picture would show details that the model did not compute.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xcit.draw.cells import Cells, at_image_size, largest_cells
from xcit.extras import need_packages

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAP_COLOURS = "inferno"
"""A perceptually uniform colour map, in which 0 is black."""

_COVARIANCE_COLOURS = "RdBu_r"
"""A colour map in which uncorrelated channels are white."""

_LEFT_OUT = "0.35"
"""The grey of cells that `threshold` excludes. The colour map does not contain this grey."""

_GAP = "0.8"
"""The grey of the gaps between two covariance matrices; white gaps would look like cosines of 0."""

_BRIGHTEST = 0.995
"""The value at this quantile gets the brightest colour.

The maximum is not used, because a few cells have such large values that all other cells would be almost black.
"""

_DPI = 130


def require_matplotlib() -> None:
    """Checks that matplotlib is installed, so that a missing package is reported before any data are computed.

    Raises:
        XCiTError: if matplotlib is not installed.
    """
    need_packages("a picture of attention", "matplotlib")


def draw_class_attention(
    image: NDArray[np.uint8],
    heads: Cells,
    class_token: Cells,
    patch_size: int,
    path: Path,
    *,
    title: str,
    threshold: float | None = None,
) -> None:
    """Draws the image, the picture of `overlay_mean`, and the map of each head.

    The colour of a cell shows the cell's share of the attention, divided by its share in an even distribution over all
    tokens. All heads share one colour bar. The mean has a colour scale of its own. The title of a map shows the number
    of the head and the share of its attention on the class token.

    Args:
        image: uint8 (h, w, 3).
        heads: (M, H, W), the attention of each of M heads over H x W patches.
        class_token: (M,), the share of each head's attention on the class token itself.
        patch_size: distance between neighbouring cells, in pixels.
        path: path of the PNG file to write.
        title: title of the picture.
        threshold: if not None, only the cells with the largest values are shown in each map. Together, these cells have
            at least this share of the map's sum.
    """
    require_matplotlib()
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    num_heads = len(heads)
    times_even = _times_even(heads)
    top = _top(times_even)
    scale = Normalize(0, top)
    colours = colormaps[_MAP_COLOURS].with_extremes(bad=_LEFT_OUT)
    height, width = image.shape[:2]
    figure, panels, bar_place = _grid(num_heads + 2, width / height)
    figure.suptitle(title, fontsize=9, y=0.985, va="top", parse_math=False)
    panels[0].imshow(image)
    panels[0].set_title("image", fontsize=8)
    panels[1].imshow(np.asarray(overlay_mean(image, heads, patch_size, threshold=threshold)))
    panels[1].set_title("mean of the heads, own scale", fontsize=8)
    shown = times_even if threshold is None else np.where(largest_cells(heads, threshold), times_even, np.nan)
    for index, (panel, head) in enumerate(
        zip(panels[2:], at_image_size(shown, image.shape[:2], patch_size), strict=True)
    ):
        drawn = panel.imshow(head, cmap=colours, norm=scale)
        panel.set_title(f"head {index} (class token {class_token[index]:.1%})", fontsize=8)
    extend = "max" if np.nanmax(times_even) > top else "neither"
    bar = figure.colorbar(drawn, cax=bar_place, extend=extend, extendfrac=0.03)
    bar.set_label("attention, times the even share", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    figure.savefig(path, format="png", dpi=_DPI)


def overlay_mean(
    image: NDArray[np.uint8], heads: Cells, patch_size: int, *, threshold: float | None = None
) -> Image.Image:
    """Returns a picture of the image in grey, with the mean of all heads' maps in colour on top.

    Args:
        image: uint8 (h, w, 3).
        heads: (M, H, W), the attention of each of M heads over H x W patches.
        patch_size: distance between neighbouring cells, in pixels.
        threshold: if not None, only the cells with the largest values of the mean are coloured. Together, these cells
            have at least this share of the mean's sum. At all other cells, the picture shows the image, darkened.

    Raises:
        XCiTError: if matplotlib is missing, or the threshold is out of range.
    """
    require_matplotlib()
    from matplotlib import colormaps

    mean = heads.mean(axis=0)
    times_even = _times_even(mean)
    values = at_image_size(np.clip(times_even / _top(times_even), 0, 1), image.shape[:2], patch_size)[..., None]
    counts, values = np.isfinite(values), np.nan_to_num(values)
    colour = colormaps[_MAP_COLOURS](values[..., 0])[..., :3]
    grey = np.asarray(Image.fromarray(image).convert("L"), dtype=np.float32)[..., None] / 255
    # A cell with more attention shows more of the colour and less of the image.
    strength = 0.35 + 0.4 * values
    mixed = np.where(counts, (1 - strength) * grey + strength * colour, grey)
    if threshold is not None:
        kept = at_image_size(largest_cells(mean, threshold), image.shape[:2], patch_size)[..., None]
        mixed = np.where(kept, mixed, 0.65 * grey)
    return Image.fromarray(np.rint(255 * mixed).astype(np.uint8))


def draw_channel_attention(covariance: Cells, path: Path, *, title: str) -> None:
    """Draws the covariance matrices of XCA for an image: a row per block, a column per head, and one colour bar.

    Args:
        covariance: (L, M, C, C) for L blocks and M heads: the cosine between each query channel (row) and each key
            channel (column), from -1 to 1.
        path: path of the PNG file to write.
        title: title of the picture.
    """
    require_matplotlib()
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_blocks, num_heads, size, _ = covariance.shape
    # All matrices are drawn as one image with gaps, because hundreds of panels would take minutes.
    gap = math.ceil(size / 16)
    tiles = np.pad(covariance, ((0, 0), (0, 0), (0, gap), (0, gap)), constant_values=np.nan)
    step = size + gap
    mosaic = tiles.transpose(0, 2, 1, 3).reshape(num_blocks * step, num_heads * step)[:-gap, :-gap]
    side = min(1.1, 12 / max(num_blocks, num_heads))
    wide, high = side * num_heads, side * num_blocks
    left, bottom, bar_room = 0.6, 0.5, 0.95
    width, height = left + wide + bar_room, bottom + max(high, 1.5) + 0.35
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=9, y=1 - 0.08 / height, va="top", parse_math=False)
    axes = figure.add_axes((left / width, bottom / height, wide / width, high / height))
    bar_place = figure.add_axes(((left + wide + 0.12) / width, bottom / height, 0.14 / width, max(high, 1.5) / height))
    colours = colormaps[_COVARIANCE_COLOURS].with_extremes(bad=_GAP)
    drawn = axes.imshow(mosaic, cmap=colours, vmin=-1, vmax=1)
    for axis, count in ((axes.xaxis, num_heads), (axes.yaxis, num_blocks)):
        axis.set_ticks(step * np.arange(count) + (size - 1) / 2, labels=[str(index) for index in range(count)])
    axes.set_xlabel("head", fontsize=8)
    axes.set_ylabel("XCA block", fontsize=8)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(drawn, cax=bar_place)
    bar.set_label("cosine over the patches", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    figure.savefig(path, format="png", dpi=_DPI)


def draw_temperatures(temperatures: Cells, title: str, path: Path) -> None:
    """Draws the learned temperature of every head in every block, and the mean of each block.

    The heads are points without lines, because a head is not related to the heads of other blocks.

    Args:
        temperatures: (L, M), for L blocks and M heads.
        title: title of the picture.
        path: path of the PNG file to write.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    blocks = np.arange(len(temperatures))
    figure = Figure(figsize=(5.5, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = np.repeat(blocks, temperatures.shape[1])
    axes.plot(places, temperatures.ravel(), "o", color="#3b6ea5", alpha=0.7, markersize=4, label="a head")
    axes.plot(blocks, temperatures.mean(axis=1), color="#d1603d", label="mean of a block")
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.set(xlabel="XCA block", ylabel="temperature, times the cosines")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, format="png", dpi=_DPI)


def _times_even(shares: Cells) -> Cells:
    """Divides shares of attention (..., H, W) by the share of a token in an even distribution, 1 / (N + 1).

    N is the number of cells that are not NaN; NaN marks cells that the model ignored. The class token is one more
    token.
    """
    num_tokens = int(np.isfinite(shares.reshape(-1, *shares.shape[-2:])[0]).sum()) + 1
    return shares * num_tokens


def _top(times_even: Cells) -> float:
    """Returns the value that gets the brightest colour: the quantile `_BRIGHTEST` of the values, with a minimum of 1.

    A value of 1 is the share of a token in an even distribution. Without this minimum, small differences between small
    shares would look large. If all values are below 1, the function returns the largest value, without the minimum.
    """
    highest = float(np.nanmax(times_even))
    top = max(float(np.nanquantile(times_even, _BRIGHTEST)), 1.0)
    return min(highest, top) or 1.0


def _grid(num_panels: int, aspect: float) -> "tuple[Figure, list[Axes], Axes]":
    """Creates a figure with equal panels, row by row, and axes for a colour bar to the right of the panels.

    The positions are computed here, in inches, because matplotlib's layout engines would take more time than the
    drawing itself. `aspect` is the width of a panel divided by its height.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fewest = math.ceil(num_panels**0.5)
    num_columns = min(range(fewest, max(fewest, 8) + 1), key=lambda count: -num_panels % count)  # fewest empty panels
    num_rows = math.ceil(num_panels / num_columns)
    aspect = min(max(aspect, 0.25), 4)
    panel_height = 2.2 / aspect**0.5
    panel_width = panel_height * aspect
    gap, above, bar_room = 0.08, 0.26, 0.75  # inches: gap between panels, height of a title, width of the bar
    step_x, step_y = panel_width + gap, panel_height + above
    width, height = gap + num_columns * step_x + bar_room, gap + num_rows * step_y + 0.22
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)

    def place(left: float, bottom: float, wide: float, high: float) -> "Axes":
        return figure.add_axes((left / width, bottom / height, wide / width, high / height))

    panels = []
    for index in range(num_panels):
        row, column = divmod(index, num_columns)
        bottom = gap + (num_rows - 1 - row) * step_y
        panels.append(place(gap + column * step_x, bottom, panel_width, panel_height))
        panels[-1].set_axis_off()
    bar = place(gap + num_columns * step_x, gap, 0.14, (num_rows - 1) * step_y + panel_height)
    return figure, panels, bar
