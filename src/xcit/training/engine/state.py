"""Everything that a training step changes, and how it is saved to a checkpoint and loaded from it."""

import copy
import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from xcit.errors import XCiTError
from xcit.training.engine.averaging import build_average
from xcit.training.engine.config import OptimizerConfig, RunConfig, ScheduleConfig
from xcit.training.engine.distribution import Processes, sharded_like, whole
from xcit.training.engine.optimizer import WeightDecaySchedule, build_optimizer
from xcit.training.engine.restored import check_counts, check_optimizer, check_tensors

if TYPE_CHECKING:
    import timm.scheduler.scheduler
    import timm.utils


@dataclass(kw_only=True)
class Position:
    """The position of a run: `step` steps into epoch `epoch`, both counted from 0.

    Between an epoch's last step and its evaluation, `step` is the number of steps of an epoch. `losses` is the sum of
    the epoch's losses so far, and `best` the best figure so far. No generator's state is needed: in every process, each
    random draw follows from the seed, the position and the part of the batch.
    """

    epoch: int = 0
    step: int = 0
    losses: float = 0.0
    best: float | None = None


@dataclass(kw_only=True)
class TrainState:
    """Model, averaged model, optimiser, schedules and position.

    Attributes:
        model: the model itself.
        shared: the module that is called in training: the model, or the wrapper that synchronises its copies or
            shards.
        ema: the averaged weights, if the run keeps them.
        plain: if the model is sharded, a model with whole weights for evaluation and export.
    """

    processes: Processes
    model: nn.Module
    shared: nn.Module
    ema: "timm.utils.ModelEmaV3 | None"
    plain: nn.Module | None
    optimizer: torch.optim.Optimizer
    schedule: "timm.scheduler.scheduler.Scheduler"
    weight_decay_schedule: WeightDecaySchedule
    num_steps: int
    position: Position = field(default_factory=Position)

    @property
    def num_steps_done(self) -> int:
        """Number of optimiser steps since the start of the run."""
        return self.position.epoch * self.num_steps + self.position.step

    @property
    def lr(self) -> float:
        """Learning rate of the next step, of the parameter group with the highest one."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    def step_update(self, num_steps_done: int) -> None:
        """Sets the learning rate and the weight decay of the next step."""
        self.schedule.step_update(num_steps_done)
        self.weight_decay_schedule.step_update(num_steps_done)

    def result(self) -> nn.Module:
        """Returns the model to measure and export: the averaged one, if there is one. All processes must call it."""
        model = self.model if self.ema is None else self.ema.module
        if self.plain is None:
            return model
        self.plain.load_state_dict(whole(model.state_dict()))
        return self.plain

    def dump(self) -> dict[str, Any]:
        """Returns tensors and plain values; sharded tensors are gathered. All processes must call it."""
        return {
            "model": whole(self.model.state_dict()),
            "optimizer": whole(self.optimizer.state_dict()),
            "ema": None if self.ema is None else whole(self.ema.module.state_dict()),
            "scaler": self.processes.scaler.state_dict(),
            "position": dataclasses.asdict(self.position),
            "num_steps": self.num_steps,
            "batch_size": self.processes.layout.batch_size,
        }

    def load(self, state: dict[str, Any], source: str) -> None:
        """Loads a state that `dump` returned; the number of processes may be different now.

        Raises:
            XCiTError: if the state is damaged, belongs to another model or optimiser, or is from the middle of an epoch
                with other batches. Nothing is loaded then.
        """
        check_counts(state, source)
        position = Position(**state["position"])
        if (state["num_steps"], state["batch_size"]) != (self.num_steps, self.processes.layout.batch_size):
            if 0 < position.step < state["num_steps"]:
                raise XCiTError(
                    f"{source} is from step {position.step} of an epoch of {state['num_steps']} batches of "
                    f"{state['batch_size']}; this run's epochs have {self.num_steps} of "
                    f"{self.processes.layout.batch_size}: keep data and run.batch_size, or resume from an epoch's end"
                )
            position.step = min(position.step, self.num_steps)
        if (state["ema"] is None) != (self.ema is None):
            raise XCiTError(f"{source} was written with another run.ema_decay: keep averaging on or off as it was")
        # Everything is checked before anything is loaded, so that a run never has only a part of the state.
        check_tensors(self.model.state_dict(), state["model"], source)
        if self.ema is not None:
            check_tensors(self.ema.module.state_dict(), state["ema"], source)
        check_optimizer(self.optimizer, state["optimizer"], source)
        _load_whole(self.model, state["model"])
        if self.ema is not None:
            _load_whole(self.ema.module, state["ema"])
        self.optimizer.load_state_dict(self._sharded_optimizer_state(state["optimizer"]))
        if state["scaler"]:
            self.processes.scaler.load_state_dict(state["scaler"])
        self.position = position
        self.step_update(self.num_steps_done)

    def _sharded_optimizer_state(self, state: dict[str, Any]) -> dict[str, Any]:
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        moments = {
            index: {name: sharded_like(value, parameters[index]) for name, value in of_one.items()}
            for index, of_one in state["state"].items()
        }
        # Entries of a group that another version of torch wrote would otherwise stay in all later checkpoints.
        groups = [
            {name: value for name, value in group.items() if name in own}
            for group, own in zip(state["param_groups"], self.optimizer.param_groups, strict=True)
        ]
        return {"state": moments, "param_groups": groups}


def build_state(
    model: nn.Module,
    processes: Processes,
    *,
    run: RunConfig,
    optimizer_config: OptimizerConfig,
    schedule_config: ScheduleConfig,
    num_steps: int,
) -> TrainState:
    """Returns the state at the start of a run, on the processes' devices."""
    from xcit.training.engine.schedule import build_schedule  # imported here, because it needs timm

    model = processes.prepare_model(model)
    plain = copy.deepcopy(model) if processes.is_sharded else None
    ema = build_average(model, run, is_sharded=processes.is_sharded)
    if ema is not None and processes.is_sharded:
        processes.shard(ema.module)
    shared = processes.share_model(model)
    optimizer = build_optimizer(model, optimizer_config)
    schedule = build_schedule(optimizer, schedule_config, num_steps)
    decay = WeightDecaySchedule(optimizer, optimizer_config.final_weight_decay, schedule_config.epochs * num_steps)
    state = TrainState(
        processes=processes,
        model=model,
        shared=shared,
        ema=ema,
        plain=plain,
        optimizer=optimizer,
        schedule=schedule,
        weight_decay_schedule=decay,
        num_steps=num_steps,
    )
    state.step_update(0)
    return state


def _load_whole(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    own = model.state_dict()
    model.load_state_dict({name: sharded_like(tensor, own.get(name, tensor)) for name, tensor in state.items()})
