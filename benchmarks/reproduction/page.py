"""Writes the page of results: every published figure and the measured figure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from reproduction.plan import NUM_IMAGES, TOLERANCE, Measurement
from reproduction.results import Result

_HEAD = "| model | published by | figure | published | measured | difference | |"
_RULE = "|---|---|---|---:|---:|---:|---|"

AS_PUBLISHED, DIFFERS, PARTIAL, MISSING = "as published", "**differs**", "of other images", "not measured"
"""The verdicts; in the page, an explanation may follow."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One figure: the cells of its table row without the last, and the verdict, which is the last cell."""

    cells: tuple[str, ...]
    verdict: str


def page(measurements: Sequence[Measurement], results: Mapping[str, Result], command: str) -> str:
    """Returns the whole page, in Markdown.

    Args:
        measurements: all requested measurements.
        results: results of the measurements that were made or that failed, by the measurement's key.
        command: the command that writes the page, for the first sentence.
    """
    lines = {measurement.key: [*_lines(measurement, results.get(measurement.key))] for measurement in measurements}
    flat = [line for group in lines.values() for line in group]
    counts = {
        verdict: sum(line.verdict.startswith(verdict) for line in flat)
        for verdict in (AS_PUBLISHED, DIFFERS, PARTIAL, MISSING)
    }
    machines = sorted({result.machine for result in results.values()})
    versions = sorted({", ".join(result.versions) for result in results.values()})
    text = [
        "# The published numbers, measured",
        "",
        f"This page is written by `{command}`; do not edit it. Each model was measured in float32, by the protocol of",
        f"its published figure. Figures that differ by more than {TOLERANCE} percentage points are marked.",
        "",
        f"Of {len(flat)} figures, {counts[AS_PUBLISHED]} are as published, and {counts[DIFFERS]} differ. "
        f"{counts[PARTIAL]} were measured on other images than the published figures, so they can't be compared. "
        f"{counts[MISSING]} were not measured.",
        "",
        *(f"- on {machine}" for machine in machines),
        *(f"- with {one}" for one in versions),
        "",
    ]
    for title, group in _sections(measurements):
        text += [f"## {title}", "", _HEAD, _RULE]
        text += [f"| {' | '.join((*line.cells, line.verdict))} |" for one in group for line in lines[one.key]]
        text += [""]
    return "\n".join(text)


def _sections(measurements: Sequence[Measurement]) -> Iterator[tuple[str, list[Measurement]]]:
    titles = dict.fromkeys(f"{one.dataset}, {one.record.task}" for one in measurements)
    for title in titles:
        yield title, [one for one in measurements if f"{one.dataset}, {one.record.task}" == title]


def _lines(measurement: Measurement, result: Result | None) -> Iterator[Line]:
    how = measurement.protocol
    if measurement.method not in ("classifier", measurement.record.task):
        how += f", {measurement.method}"
    for metric, published in measurement.published.items():
        first = (measurement.record.name, how, metric, f"{published:.2f}")
        if result is None or result.failure or measurement.impossible:
            reason = measurement.impossible or (result.failure if result is not None else "")
            yield Line(cells=(*first, "", ""), verdict=f"{MISSING}{f': {reason}' if reason else ''}".replace("|", "/"))
            continue
        measured = result.figures[metric]
        yield Line(
            cells=(*first, f"{measured:.2f}", f"{measured - published:+.2f}"),
            verdict=_verdict(measurement, result, measured - published),
        )


def _verdict(measurement: Measurement, result: Result, difference: float) -> str:
    whole = NUM_IMAGES[measurement.dataset]
    notes = [*((result.note,) if result.note else ()), *measurement.notes]
    if result.num_images != whole or measurement.others:
        of_them = f"{result.num_images:,} of {whole:,} here"
        notes.insert(0, f"{of_them}, {measurement.others} there" if measurement.others else of_them)
        verdict = PARTIAL
    else:
        # Rounded, so that floating-point errors do not make a difference larger than the tolerance.
        verdict = DIFFERS if round(abs(difference), 6) > TOLERANCE else AS_PUBLISHED
    if result.num_unreadable:
        notes.append(f"{result.num_unreadable} images could not be read")
    return f"{verdict} ({'; '.join(notes)})" if notes else verdict
