"""The training loop, for any task and any number of processes.

A run that was stopped and resumed gives the same results as a run that was never stopped.
"""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xcit.errors import XCiTError
from xcit.seeding import seed_all
from xcit.training.engine.averaging import describe_average, move_average
from xcit.training.engine.checkpoint import BEST, LAST, keep_checkpoint, keep_latest, load_checkpoint, save_checkpoint
from xcit.training.engine.config import TrainableConfig
from xcit.training.engine.distribution import Processes
from xcit.training.engine.log import RunLog
from xcit.training.engine.parts import EpochParts, dead_worker, is_dead_worker
from xcit.training.engine.progress import Progress, Stopped
from xcit.training.engine.signals import StopSignals
from xcit.training.engine.state import build_state
from xcit.training.engine.task import Closes, StepHooks, Task
from xcit.writing import remove_unfinished, whole_file

WEIGHTS, BEST_WEIGHTS, UNREADABLE = "model.safetensors", "best.safetensors", "unreadable.txt"
"""Files in a run's folder: the last weights, the best weights (see `train_task`), and the list of unreadable inputs."""

_GPU_INTERVAL = 20
"""Number of steps between two reads of the losses on a GPU. Reads are rare, because each read waits for the GPU."""


def train_task(
    task: Task,
    processes: Processes,
    config: TrainableConfig,
    directory: Path,
    *,
    resume_from: Path | None = None,
    begin: Callable[[], None] = lambda: None,
    report: Callable[[Progress], None] = lambda _: None,
    announce: Callable[[str], None] = lambda _: None,
) -> dict[str, float]:
    """Trains a task, and writes the last weights to `model.safetensors` in the run's folder.

    If the run has a moving average of the weights, the last average is written. The result of a run is its last
    weights, not its best weights, so that the figures (results of the evaluation) have no selection bias.

    The function also writes these files to the folder:

    - `log.jsonl`, the log;
    - `last.pt`, the latest checkpoint, at the end of each epoch and every `save_every_steps` steps;
    - `best.pt` and `best.safetensors`, the checkpoint and the weights with the best figure, if `task.watch` is set;
    - `unreadable.txt`, a list of the inputs that could not be read, if there are any.

    Args:
        task: the task to train.
        processes: this process, and its communication with the other processes.
        config: a config with the sections `run`, `optimizer` and `schedule`.
        directory: the run's folder; it must exist, and be the same for all processes.
        resume_from: the checkpoint to resume from; None starts a new run.
        begin: called once in the main process, before the first step and after the checkpoint is loaded.
        report: called in the main process, every few steps and after each evaluation.
        announce: called in the main process with each line for the user.

    Returns:
        The figures of the last evaluation.

    Raises:
        XCiTError: if there are too few images for one batch, the loss is not finite, too many inputs are unreadable,
            memory is insufficient, or a file can't be read or written. Checkpoints that were already written remain.
        Stopped: after SIGTERM or SIGINT, when the state of the run is saved.
    """
    if task.num_steps == 0:
        raise XCiTError(f"there are fewer training images than one batch of {config.run.batch_size}")
    with StopSignals() as signals, warnings.catch_warnings():
        # The weight of a depthwise convolution has a dimension of size 1. The stride of this dimension has no meaning,
        # but DDP warns if weight and gradient have different strides in this dimension.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        loop = _Loop(
            task=task,
            processes=processes,
            config=config,
            directory=directory,
            signals=signals,
            report=report if processes.is_main else lambda _: None,
            announce=announce if processes.is_main else lambda _: None,
        )
        if resume_from is not None:
            loop.resume(resume_from)
        if processes.is_main:
            begin()
        for line in describe_average(config.run, num_steps=task.num_steps, num_epochs=config.schedule.epochs):
            loop.announce(line)
        try:
            return loop.run_epochs()
        except torch.OutOfMemoryError as error:
            raise XCiTError(
                f"out of memory with {processes.layout.part_size} images at once ({str(error).splitlines()[0]}): "
                "set run.max_device_batch lower, or run.grad_checkpointing true"
            ) from error
        finally:
            loop.close()


@dataclass(kw_only=True)
class _Loop:
    """The training loop of one run, with the state of the run."""

    task: Task
    processes: Processes
    config: TrainableConfig
    directory: Path
    signals: StopSignals
    report: Callable[[Progress], None]
    announce: Callable[[str], None]

    def __post_init__(self) -> None:
        self.num_steps = self.task.num_steps
        self.hooks = self.task if isinstance(self.task, StepHooks) else None
        self.state = build_state(
            self.task.model,
            self.processes,
            run=self.config.run,
            optimizer_config=self.config.optimizer,
            schedule_config=self.config.schedule,
            num_steps=self.num_steps,
        )
        self.log: RunLog | None = None
        if self.processes.is_main:
            remove_unfinished(self.directory)
            self.log = RunLog(self.directory, self.config.run)
        self.last = self.directory / LAST
        self.interval = 1 if self.processes.device.type == "cpu" else _GPU_INTERVAL
        self.started = self.waited = 0.0
        self.num_images = 0

    def resume(self, checkpoint: Path) -> None:
        self.state.load(load_checkpoint(checkpoint), str(checkpoint))
        position = self.state.position
        if self.log is not None:
            self.log.rewind(epochs=position.epoch, steps=self.state.num_steps_done)
        self.announce(
            f"resumed from {checkpoint}: epoch {position.epoch + 1}, step {position.step} of {self.num_steps}"
        )

    def close(self) -> None:
        if self.log is not None:
            self.log.close()
        if isinstance(self.task, Closes):
            self.task.close()

    def run_epochs(self) -> dict[str, float]:
        position, figures = self.state.position, None
        while position.epoch < self.config.schedule.epochs:
            self.train_epoch()
            epoch = position.epoch + 1
            figures = None
            if epoch == self.config.schedule.epochs or epoch % self.config.run.evaluate_every == 0:
                self.save()  # the run may be killed during a long evaluation
                figures = self.evaluate()
            self.write_epoch(figures or {})
            position.epoch, position.step, position.losses = epoch, 0, 0.0
            self.save()
        if figures is None:  # the run was resumed after its last epoch
            figures = self.measure()
        self.export(WEIGHTS)
        return figures

    def train_epoch(self) -> None:
        """Trains from the current position to the end of the epoch."""
        position = self.state.position
        self.started, self.waited, self.num_images = time.perf_counter(), 0.0, 0
        _set_training(self.state.shared)
        if self.hooks is not None:
            self.hooks.begin_epoch(self.state.model, position.epoch)
        if position.step == self.num_steps:
            return
        parts = EpochParts(
            self.task, self.processes.layout, self.signals, epoch=position.epoch, first_step=position.step
        )
        pending: list[dict[str, Tensor]] = []
        while position.step < self.num_steps:
            pending.append(self.step(parts))
            position.step += 1
            ends = position.step == self.num_steps
            saves = (
                self.config.run.save_every_steps > 0
                and position.step % self.config.run.save_every_steps == 0
                and not ends
            )
            if ends or saves or position.step % self.interval == 0:
                stops = self.look(pending)
                pending = []
                if saves or stops:
                    self.save()
                if stops:
                    raise Stopped(self.last, self.signals.received or "another process's signal")

    def step(self, epoch_parts: EpochParts) -> dict[str, Tensor]:
        """Makes one optimiser step, and returns the losses of this process, averaged over its parts of the batch."""
        state, processes = self.state, self.processes
        accumulation = processes.layout.accumulation
        losses: dict[str, Tensor] = {}
        for turn in range(accumulation):
            batch = self.next_batch(epoch_parts)
            # Random draws depend only on the seed, the step and the part, and not on the process.
            seed_all(self.config.run.seed, state.num_steps_done, processes.layout.part(turn))
            with processes.accumulating(state.shared, last=turn + 1 == accumulation):
                with processes.autocast():
                    parts = self.task.loss(state.shared, batch)
                processes.backward(parts["loss"] / accumulation)
            for name, value in parts.items():
                losses[name] = losses.get(name, 0) + value.detach().float() / accumulation
        processes.scaler.unscale_(state.optimizer)
        if self.config.optimizer.clip_grad:
            processes.clip_gradients(state.shared, self.config.optimizer.clip_grad, self.config.optimizer.clip_mode)
        if self.hooks is not None:
            self.hooks.before_update(state.model, state.num_steps_done)
        processes.step(state.optimizer)
        state.optimizer.zero_grad(set_to_none=True)
        if self.hooks is not None:
            self.hooks.after_update(state.model, state.num_steps_done, processes.reduce)
        processes.after_step(state.model)
        done = state.num_steps_done + 1
        state.step_update(done)
        if state.ema is not None:
            move_average(state.ema, state.model, done)
        self.num_images += processes.layout.batch_size
        return losses

    def next_batch(self, epoch_parts: EpochParts) -> Any:
        started = time.perf_counter()
        batch = _to_device(epoch_parts.next(), self.processes.device)
        self.waited += time.perf_counter() - started
        return batch

    def look(self, pending: list[dict[str, Tensor]]) -> bool:
        """Checks the losses of all processes since the last call, and returns whether any process got a stop signal.

        Raises:
            XCiTError: if a loss is not finite, or too many inputs are unreadable.
        """
        names = list(pending[0])
        own = torch.stack([losses[name] for losses in pending for name in names]) / self.processes.layout.world_size
        counts = own.new_tensor([float(bool(self.signals.received)), len(self.task.unreadable)])
        *values, stops, num_unreadable = self.processes.reduce(torch.cat([own, counts])).tolist()
        position = self.state.position
        first = position.step - len(pending)
        steps = [dict(zip(names, values[i : i + len(names)], strict=True)) for i in range(0, len(values), len(names))]
        for step, losses in enumerate(steps, start=first + 1):
            self.check_finite(losses["loss"], step)
            position.losses += losses["loss"]
            self.log_step(step, losses)
            if self.hooks is not None:
                for line in self.hooks.concerns(position.epoch * self.num_steps + step - 1, losses):
                    self.announce(line)
        self.check_readable(int(num_unreadable))
        self.report(self.progress(steps[-1]["loss"]))
        return stops > 0

    def progress(self, loss: float, figures: dict[str, float] | None = None) -> Progress:
        position, speed = self.state.position, self.speed()
        return Progress(
            epoch=position.epoch,
            num_epochs=self.config.schedule.epochs,
            step=position.step,
            num_steps=self.num_steps,
            loss=loss,
            lr=self.state.lr,
            images_per_second=speed["images_per_second"],
            data_wait=speed["data_wait"],
            figures=figures,
        )

    def check_finite(self, loss: float, step: int) -> None:
        if math.isfinite(loss):
            return
        kept = f"the last good checkpoint is {self.last}" if self.last.exists() else "there is no checkpoint yet"
        position = self.state.position
        raise XCiTError(
            f"the loss is {loss} in epoch {position.epoch + 1}, batch {step} of {self.num_steps} "
            f"(step {position.epoch * self.num_steps + step}), at learning rate {self.state.lr:.2e} and batch size "
            f"{self.config.run.batch_size}; {kept}; try a lower optimizer.lr, more schedule.warmup_epochs or "
            "optimizer.clip_grad 1.0"
        )

    def check_readable(self, num_unreadable: int) -> None:
        if num_unreadable <= self.config.run.max_unreadable * self.task.num_inputs:
            return
        self.write_unreadable()
        own = self.task.unreadable
        raise XCiTError(
            f"{num_unreadable} of {self.task.num_inputs} training images can't be read, more than run.max_unreadable "
            f"{self.config.run.max_unreadable:g} allows{f'; one is {own[0]}' if own else ''}; all are listed in "
            f"{self.directory / UNREADABLE}"
        )

    def write_unreadable(self) -> None:
        """Adds to the run's `unreadable.txt` a line for each input that this or another process could not read."""
        lines = self.processes.gather(list(self.task.unreadable))
        path = self.directory / UNREADABLE
        if not lines or not self.processes.is_main:
            return
        known = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        new = [line for line in dict.fromkeys(lines) if line not in known]
        if new:
            with whole_file(path) as part:
                part.write_text("".join(f"{line}\n" for line in [*known, *new]), encoding="utf-8")
            self.announce(f"{len(new)} unreadable training images were skipped, see {path}; the first: {new[0]}")

    def log_step(self, step: int, losses: dict[str, float]) -> None:
        done = self.state.position.epoch * self.num_steps + step
        if self.log is not None and done % self.config.run.log_every == 0:
            epoch = self.state.position.epoch + 1
            self.log.write({"kind": "step", "epoch": epoch, "step": done, **losses, "lr": self.state.lr} | self.speed())

    def speed(self) -> dict[str, float]:
        elapsed = time.perf_counter() - self.started
        return {"images_per_second": self.num_images / elapsed, "data_wait": self.waited / elapsed}

    def evaluate(self) -> dict[str, float]:
        figures = self.measure()
        position = self.state.position
        self.report(self.progress(position.losses / self.num_steps, figures))
        if not self.task.watch:
            return figures
        figure = figures[self.task.watch]
        if position.best is None or figure > position.best:
            position.best = figure
            # The new `position.best` is saved only with the next checkpoint. If the run is killed before that, the
            # resumed run repeats the evaluation and writes `best.pt` again.
            if self.processes.is_main:
                keep_checkpoint(self.last, BEST)
            self.export(BEST_WEIGHTS)
        return figures

    def measure(self) -> dict[str, float]:
        """Evaluates the current state, which is already saved as the last checkpoint, and returns the figures."""
        try:
            return self.task.evaluate(self.state.result(), self.processes.layout, self.processes.reduce)
        except RuntimeError as error:
            if not is_dead_worker(error):
                raise
            # The stop signal may also have killed the processes that read data.
            if self.signals.received:
                raise Stopped(self.last, self.signals.received) from None
            raise dead_worker(error) from error

    def write_epoch(self, figures: dict[str, float]) -> None:
        position = self.state.position
        self.write_unreadable()
        if self.log is not None:
            self.log.write(
                {
                    "kind": "epoch",
                    "epoch": position.epoch + 1,
                    "step": self.state.num_steps_done,
                    "loss": position.losses / self.num_steps,
                    "lr": self.state.lr,
                    "seconds": time.perf_counter() - self.started,
                }
                | self.speed()
                | figures
            )

    def save(self) -> None:
        state = self.state.dump()
        if not self.processes.is_main:
            return
        save_checkpoint(state, self.last)
        if self.config.run.keep_checkpoints:
            keep_latest(self.last, self.state.num_steps_done, self.config.run.keep_checkpoints)

    def export(self, name: str) -> None:
        result = self.state.result()
        if self.processes.is_main:
            self.task.export(result, self.directory / name)


def _set_training(model: nn.Module) -> None:
    """Sets a model to training mode, except modules in which all parameters are frozen.

    These modules are set to evaluation mode. In evaluation mode, batch norms do not update their statistics.
    """
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def _to_device(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    return type(batch)(_to_device(part, device) for part in batch)
