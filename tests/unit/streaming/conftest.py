from collections.abc import Callable
from pathlib import Path

import pytest
from streaming_support import picture, random_model

from xcit.images.array_rows import ArrayRows
from xcit.images.rows import RowsInfo
from xcit.models import XCiT, XCiTConfig
from xcit.streaming import Place, plan


@pytest.fixture
def model() -> XCiT:
    return random_model(XCiTConfig(patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=5))


@pytest.fixture
def source() -> ArrayRows:
    """Returns an image with an identity, as a file has, so that a killed run can be resumed."""
    return ArrayRows(picture(123, 61), RowsInfo(name="picture", identity="picture 1"))


@pytest.fixture
def force(monkeypatch: pytest.MonkeyPatch) -> Callable[[Place, int], None]:
    """Returns `force(place, rows)`, which sets where all plans store tokens, and the number of rows per stripe."""

    original = plan.Costs.plan

    def to(place: Place, rows: int) -> None:
        def forced(self: plan.Costs, _: Place, size: float, output_bytes: int) -> plan.Plan:
            return original(self, place, size, output_bytes)

        monkeypatch.setattr(plan.Costs, "plan", forced)
        monkeypatch.setattr(plan.Costs, "most_rows", property(lambda self: (rows, 8 * rows)))

    return to


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path / "scratch"
