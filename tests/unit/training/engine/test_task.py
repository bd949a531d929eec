"""The division of a global batch."""

import pytest

from xcit.errors import XCiTError
from xcit.training.engine.task import Layout, divide


@pytest.mark.parametrize(
    ("batch_size", "world_size", "limit", "accumulation"),
    [
        (1024, 8, 128, 1),  # "8xb128" in the names of recipes
        (1024, 1, 128, 8),
        (1024, 2, 128, 4),
        (1024, 64, 128, 1),
        (1024, 1, 0, 1),
        (1024, 4, 0, 1),
        (1024, 1, 100, 16),  # 100 does not divide 1024; the largest divisor below it is 64
        (30, 2, 4, 5),
    ],
)
def test_a_batch_has_the_fewest_equal_parts(batch_size: int, world_size: int, limit: int, accumulation: int) -> None:
    layout = divide(batch_size, max_device_batch=limit, world_size=world_size)
    assert layout.accumulation == accumulation
    assert layout.part_size * layout.num_parts == batch_size
    assert not limit or layout.part_size <= limit


def test_every_part_is_computed_once() -> None:
    layouts = [Layout(batch_size=24, rank=rank, world_size=3, accumulation=4) for rank in range(3)]
    parts = [layout.part(turn) for turn in range(4) for layout in layouts]
    assert parts == list(range(12))


def test_unequal_shares_are_refused() -> None:
    with pytest.raises(XCiTError, match=r"batch of 100 can't be divided among 3 processes: .* multiple of 3"):
        divide(100, max_device_batch=0, world_size=3)
