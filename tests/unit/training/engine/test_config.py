from typing import Any

import pytest

from xcit.errors import XCiTError
from xcit.training.engine.config import OptimizerConfig, RunConfig, ScheduleConfig


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScheduleConfig(epochs=0), "ScheduleConfig: epochs is 0, but must be at least 1"),
        (lambda: ScheduleConfig(warmup_epochs=-1), "ScheduleConfig: warmup_epochs is -1, but must be 0 or more"),
        (lambda: OptimizerConfig(betas=(0.9, 1.0)), r"OptimizerConfig: betas is \(0.9, 1.0\), but must be in \[0, 1\)"),
        (lambda: RunConfig(seed=-1), "RunConfig: seed is -1, but must be 0 or more"),
        (lambda: RunConfig(evaluate_every=0), "RunConfig: evaluate_every is 0, but must be at least 1"),
    ],
)
def test_impossible_numbers_are_refused(make: Any, message: str) -> None:
    with pytest.raises(XCiTError, match=message):
        make()
