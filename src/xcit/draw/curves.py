"""Draws the log of a training run: the loss, all results of evaluation, and the learning rate."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xcit.writing import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STRONG, _FAINT, _OTHER = "#08519c", "#9ecae1", "#d95f02"
"""Two blues from the colour map of the confusion matrix, and an orange. They also differ when printed in grey."""

_LABELS = {"top1": "top-1 (%)", "top5": "top-5 (%)"}
"""Axis labels that include the unit, for results with a name that does not include the unit."""

_NO_FIGURES = {"epoch", "step", "loss", "lr", "seconds", "images_per_second", "data_wait"}
"""Numbers in the log line of an epoch. All other numbers in this line are results of evaluation."""

_FEW = 60
"""Curves with at most this number of points are drawn with markers."""


@dataclass(frozen=True, kw_only=True)
class _Curve:
    places: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class _Log:
    """The lines of a log: one line per logged step and one line per epoch, both sorted by step."""

    steps: list[Mapping[str, Any]]
    epochs: list[Mapping[str, Any]]

    @property
    def steps_per_epoch(self) -> float | None:
        """Number of steps per epoch; None if no epoch was finished."""
        return self.epochs[-1]["step"] / self.epochs[-1]["epoch"] if self.epochs else None

    @property
    def end(self) -> float:
        """The position of the last line, in epochs; in steps if no epoch was finished."""
        last: int = max(line["step"] for line in (*self.steps[-1:], *self.epochs[-1:]))
        return last / (self.steps_per_epoch or 1)

    @property
    def figures(self) -> list[str]:
        """The names of the results of evaluation, in the order in which they first occur in the log."""
        names = {name: None for line in self.epochs for name in line if _is_number(line[name])}
        return [name for name in names if name not in _NO_FIGURES]

    def curve(self, lines: Sequence[Mapping[str, Any]], name: str) -> _Curve:
        """Returns the curve of a number over epochs, or over steps if no epoch was finished.

        `name` is the name of the number in the lines, such as "loss". Lines without this number are left out.
        """
        found = [line for line in lines if _is_number(line.get(name))]
        unit = self.steps_per_epoch or 1
        return _Curve(places=[line["step"] / unit for line in found], values=[line[name] for line in found])


def draw_curves(lines: Iterable[Mapping[str, Any]], picture: Path, title: str) -> None:
    """Draws the loss, the results of evaluation and the learning rate of a run over its epochs.

    The loss of single steps has a light colour, and the mean loss of each epoch has a dark colour. If a part of the run
    was logged twice, for example because the run was resumed, the later lines are used. If there are no lines, no
    picture is drawn.

    Args:
        lines: lines of the log of a run.
        picture: path of the PNG file to write.
        title: title of the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    run = _sorted(lines)
    if not run.steps and not run.epochs:
        return
    with_loss = [name for name in run.figures if name.endswith("loss")]
    panels = ["loss", *(name for name in run.figures if name not in with_loss), "lr"]
    num_rows = math.ceil(len(panels) / 2)
    figure = Figure(figsize=(10, 0.5 + 3.1 * num_rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontweight="bold", parse_math=False)
    for index, name in enumerate(panels):
        axes = figure.add_subplot(num_rows, 2, index + 1)
        if name == "loss":
            _draw_loss(axes, run, with_loss)
        elif name == "lr":
            _draw_learning_rate(axes, run)
        else:
            _draw_figure(axes, run.curve(run.epochs, name), _label(name))
        axes.set_xlabel("epoch" if run.epochs else "step")
        axes.set_xlim(0, run.end * 1.02)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    with whole_file(picture) as part:
        figure.savefig(part, format="png", dpi=110)


def _sorted(lines: Iterable[Mapping[str, Any]]) -> _Log:
    by_kind: dict[str, dict[int, Mapping[str, Any]]] = {"step": {}, "epoch": {}}
    for line in lines:
        if line.get("kind") in by_kind and _is_number(line.get("step")):
            by_kind[line["kind"]][line["step"]] = line
    steps, epochs = ([found[step] for step in sorted(found)] for found in by_kind.values())
    return _Log(steps=steps, epochs=epochs)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _draw_loss(axes: "Axes", run: _Log, others: Sequence[str]) -> None:
    steps, epochs = run.curve(run.steps, "loss"), run.curve(run.epochs, "loss")
    if steps.values:
        axes.plot(
            steps.places, steps.values, color=_FAINT, linewidth=0.8, **_marks(steps), label="training, single steps"
        )
    if epochs.values:
        # The mean of an epoch is drawn in the middle of the epoch, because it is the mean over all steps of the epoch.
        middles = [place - 0.5 for place in epochs.places]
        axes.plot(middles, epochs.values, color=_STRONG, **_marks(epochs), label="training, mean of an epoch")
    for index, name in enumerate(others):
        curve = run.curve(run.epochs, name)
        label = "validation" if name == "val_loss" else _label(name)
        axes.plot(curve.places, curve.values, ("-", "--", ":")[index % 3], color=_OTHER, **_marks(curve), label=label)
    axes.set_title("loss")
    axes.legend(frameon=False)


def _draw_figure(axes: "Axes", curve: _Curve, label: str) -> None:
    axes.plot(curve.places, curve.values, color=_STRONG, **_marks(curve))
    highest = max(range(len(curve.values)), key=curve.values.__getitem__)
    axes.plot(curve.places[highest], curve.values[highest], "o", color=_OTHER, markersize=6)
    axes.set_title(
        f"{label}: highest {curve.values[highest]:.2f} in epoch {curve.places[highest]:.0f}, "
        f"last {curve.values[-1]:.2f}",
        parse_math=False,
    )


def _draw_learning_rate(axes: "Axes", run: _Log) -> None:
    # If a short run logged only one step or none, the learning rates at the ends of the epochs are drawn.
    curve = run.curve(run.steps if len(run.steps) > 1 else run.epochs, "lr")
    axes.plot(curve.places, curve.values, color=_STRONG, **_marks(curve))
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    axes.set_title("learning rate")


def _label(name: str) -> str:
    return _LABELS.get(name, name.replace("_", " "))


def _marks(curve: _Curve) -> dict[str, Any]:
    return {"marker": "o", "markersize": 3} if len(curve.values) <= _FEW else {}
