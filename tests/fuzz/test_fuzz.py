"""A short run of the fuzz tests: damaged input gives a correct result or a short error. See `python -m tests.fuzz`."""

import pytest
from tests.fuzz.harness import Target, fuzz
from tests.fuzz.targets import TARGETS

from xcit.errors import XCiTError


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_input(name):
    outcome = fuzz(TARGETS[name], range(60), seed=1)
    assert outcome.failures == {}
    assert outcome.num_read + outcome.num_refused == 60
    assert outcome.num_refused > 0


def test_the_harness_sees_what_goes_wrong(monkeypatch):
    monkeypatch.setattr("tests.fuzz.harness.SECONDS", 2)

    def read(path):
        number = int(path.read_bytes())
        if number == 1:
            raise XCiTError("x")
        if number == 2:
            raise KeyError("y")
        if number == 3:
            raise SystemExit(3)
        if number == 4:
            bytearray(2**31)[:: 2**12] = bytes(2**19)
        if number == 5:
            while True:
                pass

    numbers = iter(range(6))
    inputs = {number: str(number).encode() for number in numbers}
    target = Target("toy", lambda random: inputs[order.pop(0)], read)
    order = list(inputs)
    outcome = fuzz(target, range(6))
    assert (outcome.num_read, outcome.num_refused) == (1, 1)
    assert [*outcome.failures] == [2, 3, 4, 5]
    assert "KeyError: 'y'" in outcome.failures[2] and "SystemExit" in outcome.failures[3]
    assert outcome.memory > 2**30 and "0 MB" not in str(outcome)
    assert outcome.failures[4].startswith("took ") and outcome.failures[5].startswith("took more than")
