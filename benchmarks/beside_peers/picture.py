"""Draws time and peak memory per image against the number of tokens: logarithmic axes, and one line per contender."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from beside_peers.results import BenchResult, Growth, Measurement, ModelResult
from beside_peers.tables import MEGABYTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Our contenders are blue, and timm's are orange. The lines of compiled contenders are dashed. Marks and dashes also
# distinguish the lines in a print without colours.
_STYLES = {
    "xcit": ("#08519c", "-", "o"),
    "xcit-plain": ("#6baed6", "-", "s"),
    "xcit-compile": ("#08519c", "--", "^"),
    "timm": ("#d95f02", "-", "D"),
    "timm-compile": ("#d95f02", "--", "v"),
    "onnxruntime": ("0.4", "-.", "P"),
}


def draw_growth(result: BenchResult, model: ModelResult, path: Path) -> None:
    """Draws a model's measurements in two panels, time and memory; in one panel if memory was not measured.

    Args:
        result: the comparison.
        model: the result of one model of the comparison.
        path: path of the PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    has_memory = any(m.peak_memory is not None for size in model.sizes for m in size.measurements)
    num_panels = 2 if has_memory else 1
    figure = Figure(figsize=(1.5 + 5.2 * num_panels, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    what = "training step" if result.train else "inference"
    threads = f", {result.machine.threads} threads" if result.machine.device == "cpu" else ""
    figure.suptitle(
        f"{model.model}, {what}\n{result.dtype}, batch {result.batch_size}, {result.machine.name}{threads}",
        fontsize="medium",
        parse_math=False,
    )
    axes = figure.add_subplot(1, num_panels, 1)
    _draw(axes, result, model, lambda m: m.milliseconds, lambda g: g.time)
    axes.set(ylabel="milliseconds an image", title="time")
    if has_memory:
        axes = figure.add_subplot(1, num_panels, 2)
        _draw(axes, result, model, lambda m: m.peak_memory and m.peak_memory / MEGABYTE, lambda g: g.memory)
        axes.set(ylabel="MB an image", title="peak memory above model and input")
    figure.savefig(path, dpi=110)


def _draw(
    axes: "Axes",
    result: BenchResult,
    model: ModelResult,
    value: Callable[[Measurement], float | None],
    exponent: Callable[[Growth], float | None],
) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set(xscale="log", yscale="log", xlabel="tokens (pixels a side)")
    for growth in model.growth:
        points = [
            (size.num_tokens, found)
            for size in model.sizes
            for measurement in size.measurements
            if measurement.contender == growth.contender and (found := value(measurement))
        ]
        if not points:
            continue
        color, line, mark = _STYLES[growth.contender]
        slope = exponent(growth)
        label = growth.contender if slope is None else f"{growth.contender}: tokens$^{{{slope:.2f}}}$"
        axes.plot(*zip(*sorted(points), strict=True), line, color=color, marker=mark, markersize=6, label=label)
    if len(model.sizes) == 1:
        (size,) = model.sizes
        axes.set_xlim(size.num_tokens / 4, size.num_tokens * 4)  # otherwise it would be at the edge
    places = _spaced([(size.num_tokens, size.image_size) for size in model.sizes])
    axes.set_xticks([tokens for tokens, _ in places], [f"{tokens:,}\n({side})" for tokens, side in places])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,.10g}"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best")


def _spaced(places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns ticks of a logarithmic axis with labels that do not overlap; the largest tick is always included."""
    ordered = sorted(set(places), reverse=True)
    room = (ordered[0][0] / ordered[-1][0]) ** (1 / 7)
    kept = ordered[:1]
    for place in ordered[1:]:
        if kept[-1][0] >= place[0] * room:
            kept.append(place)
    return kept
