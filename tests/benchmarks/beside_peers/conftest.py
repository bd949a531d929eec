"""A comparison with made-up round figures."""

from collections.abc import Callable

import pytest
from beside_peers import BenchResult, Failure, Growth, Machine, Measurement, ModelResult, SizeResult


def _measured(contender: str, milliseconds: float, ratio: float | None, memory: float | None) -> Measurement:
    return Measurement(
        contender=contender,
        seconds=(milliseconds / 1000,) * 3,
        milliseconds=milliseconds,
        ratio=ratio,
        ratio_quartiles=None if ratio is None else (ratio - 0.1, ratio + 0.1),
        peak_memory=memory,
        peak_share=0.456,
        difference=3.4e-7,
    )


def _make_result(*, memory: bool = True, sizes: tuple[int, ...] = (224, 448), train: bool = False) -> BenchResult:
    """Returns a comparison of three contenders with made-up figures.

    The time and the memory of xcit grow linearly with the number of tokens. timm takes twice the time, and its memory
    grows with the power 1.5. timm-compile failed."""
    results = []
    for size in sizes:
        tokens = (size // 16) ** 2
        results.append(
            SizeResult(
                image_size=size,
                num_tokens=tokens,
                flops=10**9 * tokens,
                measurements=(
                    _measured("xcit", 0.1 * tokens, None, 1e4 * tokens if memory else None),
                    _measured("timm", 0.2 * tokens, 2.0, 1e3 * tokens**1.5 if memory else None),
                ),
                failures=(Failure(what="timm-compile", reason="InductorError: no compiler"),),
            )
        )
    several = len(sizes) > 1
    growth = (
        Growth(contender="xcit", time=1.0 if several else None, memory=1.0 if several and memory else None),
        Growth(contender="timm", time=1.0 if several else None, memory=1.5 if several and memory else None),
        Growth(contender="timm-compile", time=None, memory=None),
    )
    return BenchResult(
        machine=Machine(
            name="Some CPU", device="cpu", threads=2, matrix_peak=123.4e9, versions=("Python 3.11.7", "torch 2.9.0")
        ),
        contenders=("xcit", "timm", "timm-compile"),
        train=train,
        dtype="float32",
        batch_size=1,
        rounds=3,
        models=(ModelResult(model="small-12-p16", sizes=tuple(results), growth=growth),),
    )


@pytest.fixture
def make_result() -> Callable[..., BenchResult]:
    return _make_result


@pytest.fixture
def result() -> BenchResult:
    return _make_result()
