import math
from pathlib import Path
from typing import Any

import pytest
import torch
from beside_peers import BenchResult, compare, comparison
from beside_peers.contenders import build
from beside_peers.work import Case, Inference, Work

from xcit.errors import XCiTError

SMALL: dict[str, Any] = {"memory": False, "rounds": 2, "device": "cpu", "threads": 1}


@pytest.fixture(autouse=True)
def _small_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xcit.measure.clock.CPU_SIDES", (64,))


@pytest.fixture(scope="module")
def progress() -> list[int]:
    return []


@pytest.fixture(scope="module")
def result(progress: list[int]) -> BenchResult:
    contenders = ("xcit", "xcit-plain", "timm")
    return compare(
        ["xcit_nano_12_p16"],
        (32, 64),
        contenders,
        started=lambda n: progress.append(-n),
        advance=progress.append,
        **SMALL,
    )


def test_every_contender_at_every_size(result: BenchResult) -> None:
    assert (result.contenders, result.rounds, result.dtype) == (("xcit", "xcit-plain", "timm"), 2, "float32")
    (model,) = result.models
    assert model.model == "nano-12-p16"
    assert [(size.image_size, size.num_tokens) for size in model.sizes] == [(32, 4), (64, 16)]
    for size in model.sizes:
        assert [m.contender for m in size.measurements] == [*result.contenders]
        assert not size.failures
        for measurement in size.measurements:
            assert len(measurement.seconds) == 2
            assert measurement.milliseconds == pytest.approx(1000 * sum(measurement.seconds) / 2)
            assert measurement.difference < 1e-5
            assert measurement.peak_share == pytest.approx(
                size.flops / (measurement.milliseconds / 1000) / result.machine.matrix_peak
            )
            assert measurement.peak_memory is None


def test_ratios_are_to_the_first(result: BenchResult) -> None:
    for size in result.models[0].sizes:
        first, *others = size.measurements
        assert first.ratio is None
        assert first.ratio_quartiles is None
        for other in others:
            assert other.ratio == pytest.approx(other.milliseconds / first.milliseconds)
            assert other.ratio_quartiles[0] <= other.ratio_quartiles[1]


def test_growth_is_fitted(result: BenchResult) -> None:
    small, large = result.models[0].sizes
    for growth, before, after in zip(result.models[0].growth, small.measurements, large.measurements, strict=True):
        assert growth.time == pytest.approx(math.log(after.milliseconds / before.milliseconds, 4))
        assert growth.memory is None


def test_machine_and_progress(result: BenchResult, progress: list[int]) -> None:
    assert [version.split()[0] for version in result.machine.versions] == ["Python", "torch", "timm"]
    assert result.machine.name
    assert (result.machine.device, result.machine.threads) == ("cpu", 1)
    assert progress[0] == -18
    assert sum(progress) == 0


def test_the_number_of_threads_is_as_before() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert compare(["pico-6-p4"], [28], ["xcit"], **SMALL).machine.threads == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_training() -> None:
    found = compare(["nano-12-p16"], [32], ["xcit-plain", "timm"], train=True, batch_size=3, **SMALL)
    ours, theirs = found.models[0].sizes[0].measurements
    assert found.train
    assert ours.difference < 1e-5
    assert theirs.difference < 1e-4
    assert ours.milliseconds == pytest.approx(1000 * sum(ours.seconds) / 2 / 3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_differs_by_rounding(dtype: Any) -> None:
    found = compare(["nano-12-p16"], [32], ["xcit", "timm"], dtype=dtype, **SMALL)
    for measurement in found.models[0].sizes[0].measurements:
        assert 1e-4 < measurement.difference < comparison.TOLERANCES[dtype]


def test_where_one_fails_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def build_but_one(name: str, case: Case, folder: Path) -> Work:
        if name == "xcit":
            raise RuntimeError("no compiler\nwas found")
        return build(name, case, folder)

    monkeypatch.setattr(comparison, "build", build_but_one)
    lines: list[str] = []
    found = compare(["pico-6-p4"], [28], ["xcit", "xcit-plain"], announce=lines.append, **SMALL)
    (size,) = found.models[0].sizes
    assert lines == ["pico-6-p4 at 28 px: xcit: RuntimeError: no compiler was found"]
    assert (size.failures[0].what, size.failures[0].reason) == ("xcit", "RuntimeError: no compiler was found")
    assert [(m.contender, m.ratio) for m in size.measurements] == [("xcit-plain", None)]


def test_other_outputs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def build_wrong(name: str, case: Case, folder: Path) -> Work:
        right = build(name, case, folder)
        return Inference(lambda images: right() * 1.001, case.images())

    monkeypatch.setattr(comparison, "build", build_wrong)
    with pytest.raises(XCiTError, match=r"xcit-plain does not compute what pico-6-p4 does at 28 px: .* by 1\.0e-03"):
        compare(["pico-6-p4"], [28], ["xcit-plain"], **SMALL)


@pytest.mark.parametrize(
    ("models", "sizes", "changes", "message"),
    [
        (["resnet"], [32], {}, "no architecture or model is called 'resnet'"),
        (["nano-12-p61"], [32], {}, "no architecture or model is called 'nano-12-p61'; did you mean 'nano-12-p16'"),
        (["nano-12-p16"], [32, 8], {}, "images are 8x8 pixels, smaller than one patch of 16x16"),
        ([], [32], {}, "nothing to measure: name at least one model, one size and one contender"),
        (["nano-12-p16"], [0], {}, "size is 0, but must be at least 1"),
        (["nano-12-p16"], [32], {"rounds": 0}, "rounds is 0, but must be at least 1"),
        (["nano-12-p16"], [16], {"train": True}, "nano-12-p16 can't be measured at 16 px: ValueError: Expected more"),
    ],
)
def test_mistakes(models: list[str], sizes: list[int], changes: dict, message: str) -> None:
    with pytest.raises(XCiTError) as error:
        compare(models, sizes, ["xcit-plain"], **(SMALL | changes))
    assert message in str(error.value)
