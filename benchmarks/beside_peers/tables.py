"""Formats a comparison as text: the machine, a table for each model, and the growth of time and memory."""

from beside_peers.results import BenchResult, Measurement, ModelResult
from xcit.measure.clock import headings, three_digits

MEGABYTE = 1e6


def heading(result: BenchResult) -> tuple[str, str]:
    """Returns two lines: first machine and versions, then the settings and the FLOP/s of matrix products."""
    what = "training step (forward, loss, backward)" if result.train else "inference"
    return headings(result.machine, f"{what}, {result.dtype}, batch {result.batch_size}", result.rounds)


def headers(result: BenchResult) -> tuple[str, ...]:
    """Returns the headings of the columns of `rows`."""
    first = result.contenders[0]
    columns = ["px", "tokens", "contender", "ms/image", f"{first} is faster by", "quartiles"]
    if _has_memory(result):
        columns.append("peak MB/image")
    return (*columns, "of peak", "difference")


def rows(result: BenchResult, model: ModelResult) -> list[tuple[tuple[str, ...], ...]]:
    """Returns the cells of a model's table: for each image size, one row per contender."""
    groups = []
    for size in model.sizes:
        group = []
        for measurement in size.measurements:
            cells = [f"{size.image_size}", f"{size.num_tokens:,}", *_cells(measurement)]
            if not _has_memory(result):
                del cells[6]
            group.append(tuple(cells))
        groups.append(tuple(group))
    return groups


def growth_lines(model: ModelResult) -> list[str]:
    """Returns one line per contender with its fitted exponents; no lines if there are fewer than two sizes."""
    lines = []
    for growth in model.growth:
        parts = [
            f"{what} as tokens^{exponent:.2f}"
            for what, exponent in (("time", growth.time), ("memory", growth.memory))
            if exponent is not None
        ]
        if parts:
            lines.append(f"{growth.contender}: {', '.join(parts)}")
    return lines


def markdown(result: BenchResult) -> str:
    """Returns the whole comparison in Markdown."""
    lines = [*(f"{line}  " for line in heading(result))]
    columns = headers(result)
    for model in result.models:
        lines += ["", f"### {model.model}", "", _markdown_row(columns)]
        lines.append(_markdown_row(["---" if name == "contender" else "---:" for name in columns]))
        lines += [_markdown_row(row) for group in rows(result, model) for row in group]
        if growth := growth_lines(model):
            lines += ["", "Fitted growth:", "", *(f"- {line}" for line in growth)]
        failures = [(size.image_size, failure) for size in model.sizes for failure in size.failures]
        if failures:
            lines += ["", "Not measured:", ""]
            lines += [f"- {failure.what} at {size} px: {failure.reason}" for size, failure in failures]
    return "\n".join(lines) + "\n"


def _cells(measurement: Measurement) -> tuple[str, ...]:
    memory, quartiles = measurement.peak_memory, measurement.ratio_quartiles
    return (
        measurement.contender,
        three_digits(measurement.milliseconds),
        "" if measurement.ratio is None else f"{measurement.ratio:.2f}x",
        "" if quartiles is None else f"{quartiles[0]:.2f}-{quartiles[1]:.2f}",
        "" if memory is None else three_digits(memory / MEGABYTE),
        f"{measurement.peak_share:.0%}",
        f"{measurement.difference:.0e}",
    )


def _has_memory(result: BenchResult) -> bool:
    return any(m.peak_memory is not None for model in result.models for s in model.sizes for m in s.measurements)


def _markdown_row(cells: tuple[str, ...] | list[str]) -> str:
    return f"| {' | '.join(cells)} |"
