"""The state of a training run: everything that a step changes. The state can be saved to a checkpoint and loaded."""

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
    """The position of a run: number of finished epochs and steps, losses, and the best evaluation result so far.

    A checkpoint does not need the states of random generators, because each random draw depends only on the seed, the
    position and the part of the batch.

    Attributes:
        epoch: index of the current epoch, counted from 0.
        step: number of finished steps of this epoch. After the last step, `step` equals the number of steps per epoch.
            When the epoch has been evaluated, `epoch` increases by 1, and `step` becomes 0.
        losses: sum of the losses of the finished steps of this epoch.
        best: the best evaluation result so far (see `Task.watch`); None before the first evaluation.
    """

    epoch: int = 0
    step: int = 0
    losses: float = 0.0
    best: float | None = None


@dataclass(kw_only=True)
class TrainState:
    """The state of a run: model, averaged model, optimiser, schedules and position.

    Attributes:
        processes: this process, and its communication with the other processes.
        model: the model, without a DDP wrapper.
        shared: the module to call in training: the model, or its DDP wrapper.
        ema: the moving average of the weights; None if the run has no average.
        plain: if the model is sharded, a model with whole weights for evaluation and export; otherwise None.
        optimizer: the optimiser.
        schedule: schedule of the learning rate.
        weight_decay_schedule: schedule of the weight decay.
        num_steps: number of steps per epoch.
        position: the position of the run.
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
        """Learning rate of the next step: the highest of all parameter groups."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    def step_update(self, num_steps_done: int) -> None:
        """Sets the learning rate and the weight decay of the next step."""
        self.schedule.step_update(num_steps_done)
        self.weight_decay_schedule.step_update(num_steps_done)

    def result(self) -> nn.Module:
        """Returns the model to evaluate and export: the averaged model, if there is one.

        All processes must call this method.
        """
        model = self.model if self.ema is None else self.ema.module
        if self.plain is None:
            return model
        self.plain.load_state_dict(whole(model.state_dict()))
        return self.plain

    def dump(self) -> dict[str, Any]:
        """Returns the state as tensors and plain values, with sharded tensors gathered.

        All processes must call this method.
        """
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
        """Loads a state that `dump` returned. The number of processes may have changed since then.

        Args:
            state: the state.
            source: path of the checkpoint, for error messages.

        Raises:
            XCiTError: if the state is damaged, if it belongs to another model or optimiser, or if averaging of weights
                was on before and is off now, or the reverse. It is also an error if the state is from the middle of an
                epoch, and the number or size of the batches has changed. After an error, the run is unchanged.
        """
        check_counts(state, source)
        position = Position(**state["position"])
        if (state["num_steps"], state["batch_size"]) != (self.num_steps, self.processes.layout.batch_size):
            if 0 < position.step < state["num_steps"]:
                raise XCiTError(
                    f"{source} is from step {position.step} of an epoch of {state['num_steps']} batches of "
                    f"{state['batch_size']} images; this run's epochs have {self.num_steps} batches of "
                    f"{self.processes.layout.batch_size} images: keep data and run.batch_size as they were, or resume "
                    "from a checkpoint at the end of an epoch"
                )
            position.step = min(position.step, self.num_steps)
        if state["ema"] is None and self.ema is not None:
            raise XCiTError(f"{source} contains no averaged weights: set run.ema_decay to 0")
        if state["ema"] is not None and self.ema is None:
            raise XCiTError(
                f"{source} contains averaged weights, but run.ema_decay is 0: set it to the value of the earlier run"
            )
        # Everything is checked before anything is loaded, so that the run is unchanged after an error.
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
        # A group may have entries that only another version of torch writes. They are removed, because they would
        # otherwise stay in all later checkpoints.
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
    """Returns the state at the start of a run, on this process's device.

    Args:
        model: the model to train, with its initial weights.
        processes: this process, and its communication with the other processes.
        run: settings of the run.
        optimizer_config: settings of the optimiser.
        schedule_config: settings of the schedule of the learning rate.
        num_steps: number of steps per epoch.
    """
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
