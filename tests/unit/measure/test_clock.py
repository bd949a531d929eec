import pytest
import torch

from xcit.measure.clock import matrix_peak, ratio_of_medians, synchronizer, time_rounds


def test_each_round_does_all_and_begins_with_another() -> None:
    done: list[str] = []
    advanced: list[int] = []
    works = {name: (lambda name=name: done.append(name)) for name in "abc"}
    seconds = time_rounds(works, 4, synchronize=lambda: done.append("|"), advance=advanced.append)
    assert "".join(done).replace("||", "|") == "|a|b|c|b|c|a|c|a|b|a|b|c|"
    assert sum(advanced) == 12
    assert list(seconds) == ["a", "b", "c"]
    assert all(len(values) == 4 and min(values) >= 0 for values in seconds.values())


def test_no_works_and_no_rounds() -> None:
    assert time_rounds({}, 3) == {}
    assert time_rounds({"a": lambda: None}, 0) == {"a": ()}


def test_ratio_of_medians_with_quartiles_of_the_rounds() -> None:
    ratio, quartiles = ratio_of_medians([2.0, 4.0, 6.0, 8.0, 100.0], [1.0, 2.0, 2.0, 2.0, 10.0])
    assert ratio == 3.0
    assert quartiles == (2.0, 4.0)  # quartiles of 2, 2, 3, 4, 10


def test_ratio_of_one_round() -> None:
    assert ratio_of_medians([3.0], [2.0]) == (1.5, (1.5, 1.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrix_peak_is_a_speed(dtype: torch.dtype) -> None:
    device = torch.device("cpu")
    synchronizer(device)()
    assert 1e6 < matrix_peak(device, dtype, sides=(32, 128)) < 1e15
