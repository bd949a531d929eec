"""Compares the times of launch shapes of the Triton kernels, to choose the constants in kernels/."""

import itertools
import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from gpu.bench import Bench
from gpu.kernels import gram, tiles
from gpu.problems import Problem, gram_problem, lpi_problem, training_problem

Choose = Callable[[dict[str, int]], AbstractContextManager[None]]


@contextmanager
def constants(module: Any, **values: Any) -> Iterator[None]:
    """Changes a module's constants inside the `with` block."""
    kept = {name: getattr(module, name) for name in values}
    try:
        for name, value in values.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in kept.items():
            setattr(module, name, value)


def tune(bench: Bench, deadline: float) -> None:
    """Times every choice of constants on batches of 256 for small-12-p8 and small-12-p16 at 224 pixels."""
    batch, sides, dim = (1, (2,), 8) if bench.tiny else (256, (28, 14), 384)
    place = (bench.dtype, bench.device)
    strips = [
        (64, 7, 2),
        (64, 4, 2),
        (64, 14, 2),
        (64, 7, 1),
        (32, 7, 1),
        (128, 7, 2),
        (128, 4, 2),
        (128, 2, 2),
        (128, 7, 4),
    ]
    forward = [{"channels": channels, "columns": columns, "warps": warps} for channels, columns, warps in strips]
    strips = [(64, 7, 2), (64, 4, 2), (64, 2, 2), (32, 7, 1), (128, 4, 4), (128, 2, 2)]
    backward = [{"channels": channels, "columns": columns, "warps": warps} for channels, columns, warps in strips]
    products = [
        {"side": side, "depth": depth, "warps": warps, "stages": stages}
        for side, depth, warps, stages in itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4))
        if side * depth * stages <= 2**15 and (side, warps) != (64, 8)
    ]
    if bench.tiny:
        forward, backward, products = forward[:1], [], products[:2]
    for side in sides:
        for name, options in (("lpi", forward), ("gram", products), ("lpi-training", backward)):
            with bench.report.attempt(f"tune {name}"):
                if name == "gram":
                    _compare(bench, gram_problem(batch, side * side, dim, *place), options, _gram_choice, deadline)
                else:
                    make = lpi_problem if name == "lpi" else training_problem
                    _compare(bench, make(batch, side, side, dim, *place), options, _lpi_choice, deadline)


def _compare(bench: Bench, problem: Problem, options: list[dict[str, int]], choose: Choose, deadline: float) -> None:
    bench.report.say(f"\nTUNE {problem.name}: {problem.shape}")
    runs = {}
    for option in options:

        def run(option: dict[str, int] = option) -> None:
            with choose(option):
                problem.run(problem.forms["triton"])

        if bench.out_of_time(deadline):
            break
        label = ", ".join(f"{key} {value}" for key, value in option.items())
        with bench.report.attempt(label):
            run()
            runs[label] = run
    taken = bench.clock.take_turns(runs)
    for label, seconds in sorted(taken.items(), key=lambda item: statistics.median(item[1])):
        bench.report.say(f"    {1000 * statistics.median(seconds):9.3f} ms  {label}")
        bench.report.record("tune", problem=problem.name, shape=problem.shape, choice=label, seconds=seconds)


@contextmanager
def _lpi_choice(option: dict[str, int]) -> Iterator[None]:
    with constants(
        tiles,
        CHANNELS=option["channels"],
        NUM_WARPS=option["warps"],
        columns_at_once=lambda width, most: min(option["columns"], width),
    ):
        yield


@contextmanager
def _gram_choice(option: dict[str, int]) -> Iterator[None]:
    tile = gram.Tile(side=option["side"], depth=option["depth"], num_warps=option["warps"], num_stages=option["stages"])
    with constants(gram, choose_tile=lambda dim, dtype: tile):
        yield
