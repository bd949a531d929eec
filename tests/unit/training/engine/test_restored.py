"""Tests checkpoints that are damaged or from another program: one line of error, and an unchanged run."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from xcit.errors import XCiTError
from xcit.training.engine.config import OptimizerConfig, RunConfig, ScheduleConfig
from xcit.training.engine.distribution import Processes
from xcit.training.engine.state import TrainState, build_state

RUN = RunConfig(batch_size=2, num_workers=0, ema_decay=0.9)


def new_state(kind: str = "adamw") -> TrainState:
    torch.manual_seed(0)
    return build_state(
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)),
        Processes(RUN, torch.device("cpu")),
        run=RUN,
        optimizer_config=OptimizerConfig(kind=kind, undecayed="vectors"),  # type: ignore[arg-type]
        schedule_config=ScheduleConfig(epochs=2, warmup_epochs=0),
        num_steps=3,
    )


def stepped(kind: str = "adamw") -> TrainState:
    state = new_state(kind)
    for _ in range(2):
        state.model(torch.randn(5, 3)).square().sum().backward()
        state.optimizer.step()
    state.position.epoch, state.position.step, state.position.best = 1, 2, 0.25
    state.step_update(state.num_steps_done)
    return state


def changed(state: dict[str, Any], place: str, value: object) -> dict[str, Any]:
    """Returns a copy of a state with a new value at a path such as "optimizer/param_groups/0/lr".

    The value `KeyError` removes the entry."""
    state = copy.deepcopy(state)
    *sections, last = place.split("/")
    target: Any = state
    for section in sections:
        target = target[int(section) if section.isdigit() else section]
    if value is KeyError:
        del target[last]
    else:
        target[int(last) if last.isdigit() else last] = value
    return state


def flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [part for key, each in value.items() for part in (key, *flat(each))]
    if isinstance(value, list | tuple):
        return [part for each in value for part in flat(each)]
    return [value.tolist() if isinstance(value, torch.Tensor) else value]


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_what_a_run_wrote_comes_back(kind: str) -> None:
    dumped = stepped(kind).dump()
    state = new_state(kind)
    assert flat(state.dump()) != flat(dumped)
    state.load(dumped, "last.pt")
    assert flat(state.dump()) == flat(dumped)
    # Another version of torch may write a state with unknown settings, and without settings that torch can add.
    for group in dumped["optimizer"]["param_groups"]:
        group["a setting to come"] = 1
        del group["foreach"]
    state.load(dumped, "last.pt")
    assert "a setting to come" not in state.dump()["optimizer"]["param_groups"][0]


def some(*values: Any) -> tuple[Any, ...]:
    return values


EXPANDED = torch.zeros(1).expand(2**40)

DAMAGE: tuple[tuple[str, object, str], ...] = (
    *((name, KeyError, f"it has no '{name}'") for name in ("model", "ema", "scaler", "position", "batch_size")),
    *(("num_steps", value, "num_steps is not a number above 0") for value in some(0, -1, 2.0, None, "3", True)),
    *(("position", value, "its position is not a dictionary") for value in some(None, 1.5, [])),
    ("position/epoch", KeyError, "its position has missing or unknown entries"),
    ("position/extra", 1, "its position has missing or unknown entries"),
    *(("position/epoch", value, "not whole numbers from 0") for value in some(-1, 0.5, None, "1", [], True)),
    ("position/epoch", 10**30, "in an epoch that no run reaches"),
    ("position/step", 4, "its step is after the end of the epoch"),
    ("position/losses", "x", "its losses are not a number"),
    ("position/best", [], "its best figure is not a number"),
    *(("scaler", value, "its loss scale is not a dictionary") for value in some(None, [], 1.0)),
    ("scaler", {"scale": float("nan")}, "its loss scale is not finite"),
    ("scaler", {"scale": 0.0, "_growth_tracker": 0}, "its loss scale is 0"),
    ("ema", None, "contains no averaged weights: set run.ema_decay to 0"),
    ("ema", [], "its weights are not a dictionary"),
    ("model", {}, "9 tensors are missing, 0 unexpected: missing '0.weight'"),
    ("model/0.weight", KeyError, "1 tensors are missing"),
    ("model/7.weight", torch.zeros(1), "1 unexpected: unexpected '7.weight'"),
    ("model/0.weight", torch.zeros(3, 4), r"size mismatch of 0\.weight: \[3, 4\], this run's shape is \[4, 3\]"),
    ("model/0.weight", EXPANDED, "size mismatch"),
    ("model/0.weight", [1.0], r"0\.weight is not a tensor, but of type list"),
    ("model/0.weight", torch.zeros(4, 3).to_sparse(), r"0\.weight is a sparse tensor"),
    ("model/0.weight", torch.zeros(4, 3, dtype=torch.complex64), r"0\.weight is of complex numbers"),
    ("model/0.weight", torch.zeros(4, 3, dtype=torch.int8), r"0\.weight is of type int8"),
    ("ema/2.bias", torch.zeros(2, device="meta"), r"2\.bias is without values"),
    *(
        ("optimizer", value, "not a dictionary|groups or moments are missing")
        for value in some(None, [], {}, {"state": {}})
    ),
    ("optimizer/param_groups", [], "0 parameters, not 6"),
    ("optimizer/param_groups/0", None, "an invalid parameter group"),
    ("optimizer/param_groups/0/params", [7, 7, 7, 7], "the numbering of its parameters"),
    ("optimizer/param_groups/0/params", [[], {}, "", None], "the numbering of its parameters"),
    ("optimizer/param_groups/0/params", [0, 1, 2], "5 parameters, not 6"),
    ("optimizer/param_groups/0/lr", KeyError, "lr of a group"),
    *(
        ("optimizer/param_groups/0/lr", value, "lr of a group")
        for value in some("x", None, True, float("nan"), 10**400)
    ),
    *(("optimizer/param_groups/0/betas", value, "betas of a group") for value in some(0.9, (0.9,), (0.9, "x"), None)),
    ("optimizer/param_groups/0/amsgrad", "yes", "amsgrad of a group"),
    ("optimizer/state/9", {}, "a parameter that does not exist"),
    ("optimizer/state/0", [], "the moments of parameter 0"),
    ("optimizer/state/0/exp_avg", KeyError, "the moments of parameter 0"),
    ("optimizer/state/0/exp_avg", torch.zeros(9), "size mismatch of exp_avg of parameter 0"),
    ("optimizer/state/0/exp_avg", 1.0, "exp_avg of parameter 0 is not a tensor"),
    ("optimizer/state/0/step", torch.zeros(4), "step of parameter 0"),
    ("optimizer/state/0/step", torch.tensor(float("nan")), "step of parameter 0"),
)


@pytest.mark.parametrize(("place", "value", "message"), DAMAGE)
def test_damage_is_named_and_nothing_is_taken_over(place: str, value: object, message: str) -> None:
    dumped = changed(stepped().dump(), place, value)
    state = new_state()
    before = flat(state.dump())
    with pytest.raises(XCiTError, match=message) as caught:
        state.load(dumped, "last.pt")
    assert "last.pt" in str(caught.value)
    assert flat(state.dump()) == before


def test_another_optimiser_is_told(tmp_path: Path) -> None:
    make: Callable[[], dict[str, Any]] = stepped("sgd").dump
    with pytest.raises(
        XCiTError, match=r"last\.pt does not fit this run: its optimiser's state is damaged, or from another optimiser"
    ):
        new_state().load(make(), "last.pt")
