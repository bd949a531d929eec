"""The training loop: any task, one process; resumable at each epoch's end."""

import json
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm.scheduler
import timm.utils
import torch
from torch import nn

from xcit.engine.checkpoint import load_checkpoint, save_checkpoint
from xcit.engine.config import OptimizerConfig, RunConfig, ScheduleConfig
from xcit.engine.optimizer import build_optimizer, build_schedule
from xcit.engine.task import Task
from xcit.errors import XCiTError
from xcit.seeding import seed_all


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is: after each step, and with figures after each epoch's evaluation."""

    epoch: int
    num_epochs: int
    step: int
    num_steps: int
    loss: float
    lr: float
    images_per_second: float
    figures: dict[str, float] | None = None


def train(
    task: Task,
    *,
    run: RunConfig,
    optimizer_config: OptimizerConfig,
    schedule_config: ScheduleConfig,
    directory: Path,
    device: torch.device,
    resume: bool = False,
    report: Callable[[Progress], None] = lambda _: None,
) -> dict[str, float]:
    """Trains a task and exports its last weights, averaged ones if the run keeps them, to `model.safetensors`.

    The directory gets `last.pt` after every epoch and `log.jsonl` with a line an epoch. No weights are chosen by the
    evaluation: the last ones are the result.

    Args:
        task: what to train; its model is moved to `device`.
        run: batch, seed, precision, averaging.
        optimizer_config: AdamW's numbers.
        schedule_config: epochs and learning rate.
        directory: where the run's files go; it must exist.
        device: where to compute.
        resume: go on from `last.pt`.
        report: called after every step.

    Returns:
        The figures of the last evaluation.

    Raises:
        XCiTError: if the loss is not finite (the last good checkpoint stays), or a file can't be read or written.
    """
    steps_per_epoch = len(task.train_batches(0))
    if steps_per_epoch == 0:
        raise XCiTError(f"fewer training images than one batch of {run.batch_size}")
    model = task.model.to(device)
    optimizer = build_optimizer(model, optimizer_config)
    state = _State(
        model=model,
        optimizer=optimizer,
        schedule=build_schedule(optimizer, schedule_config, steps_per_epoch),
        ema=timm.utils.ModelEmaV3(model, decay=run.ema_decay) if run.ema_decay else None,
    )
    last, log = directory / "last.pt", directory / "log.jsonl"
    first_epoch = state.load(load_checkpoint(last)) if resume else 0
    state.schedule.step_update(first_epoch * steps_per_epoch)
    figures: dict[str, float] = {}
    for epoch in range(first_epoch, schedule_config.epochs):
        progress, line = _train_epoch(
            state,
            task,
            run=run,
            clip_grad=optimizer_config.clip_grad,
            device=device,
            epoch=epoch,
            num_epochs=schedule_config.epochs,
            last=last,
            report=report,
        )
        final = epoch + 1 == schedule_config.epochs
        if final or (epoch + 1) % run.evaluate_every == 0:
            figures = task.evaluate(state.result)
            report(replace(progress, figures=figures))
            line |= figures
        save_checkpoint(state.dump(epoch + 1), last)
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    if not figures:  # resumed after the last epoch
        figures = task.evaluate(state.result)
    task.export(state.result, directory / "model.safetensors", figures)
    return figures


@dataclass(frozen=True, kw_only=True)
class _State:
    """All that a step changes."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: timm.scheduler.CosineLRScheduler
    ema: timm.utils.ModelEmaV3 | None

    @property
    def result(self) -> nn.Module:
        """The model that is measured and exported: the averaged one if the run keeps it."""
        return self.model if self.ema is None else self.ema.module

    def dump(self, epoch: int) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "epoch": epoch,
        }

    def load(self, state: dict[str, Any]) -> int:
        """Takes over what `dump` gave; returns how many epochs are done."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        epoch: int = state["epoch"]
        return epoch


def _train_epoch(
    state: _State,
    task: Task,
    *,
    run: RunConfig,
    clip_grad: float,
    device: torch.device,
    epoch: int,
    num_epochs: int,
    last: Path,
    report: Callable[[Progress], None],
) -> tuple[Progress, dict[str, Any]]:
    """One pass over the training data: where it ended, and what to log of it."""
    # Every source of randomness starts anew from (seed, epoch): a resumed run repeats an uninterrupted one.
    seed_all(run.seed, epoch)
    state.model.train()
    batches = task.train_batches(epoch)
    started, num_images, losses = time.perf_counter(), 0, []
    for step, batch in enumerate(batches):
        batch = _to_device(batch, device)
        with _autocast(run, device):
            loss = task.loss(state.model, batch)["loss"]
        losses.append(loss.detach())
        # Reading the loss waits for the device, so a GPU is asked only now and then.
        if step % (1 if device.type == "cpu" else 20) == 0 or step == len(batches) - 1:
            loss_value = loss.item()
            _check_finite(loss_value, epoch, step, state.optimizer, last)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if clip_grad:
            nn.utils.clip_grad_norm_(state.model.parameters(), clip_grad)
        state.optimizer.step()
        num_steps_done = epoch * len(batches) + step + 1
        state.schedule.step_update(num_steps_done)
        if state.ema is not None:
            state.ema.update(state.model, step=num_steps_done)
        num_images += _batch_length(batch)
        progress = Progress(
            epoch=epoch,
            num_epochs=num_epochs,
            step=step + 1,
            num_steps=len(batches),
            loss=loss_value,
            lr=state.optimizer.param_groups[0]["lr"],
            images_per_second=num_images / (time.perf_counter() - started),
        )
        report(progress)
    return progress, {
        "epoch": epoch + 1,
        "loss": torch.stack(losses).mean().item(),
        "lr": progress.lr,
        "seconds": time.perf_counter() - started,
        "images_per_second": progress.images_per_second,
    }


def _autocast(run: RunConfig, device: torch.device) -> AbstractContextManager[Any]:
    return nullcontext() if run.dtype == "float32" else torch.autocast(device.type, dtype=torch.bfloat16)


def _check_finite(loss: float, epoch: int, step: int, optimizer: torch.optim.Optimizer, last: Path) -> None:
    if math.isfinite(loss):
        return
    kept = (
        f"the last good checkpoint is {last}" if last.exists() else "no epoch was finished, so there is no checkpoint"
    )
    raise XCiTError(
        f"the loss is {loss} in epoch {epoch + 1}, step {step + 1}, at learning rate "
        f"{optimizer.param_groups[0]['lr']:.2e}; {kept}; try a lower optimizer.lr, more schedule.warmup_epochs or "
        "optimizer.clip_grad 1.0"
    )


def _to_device(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    return type(batch)(_to_device(part, device) for part in batch)


def _batch_length(batch: Any) -> int:
    return len(batch if isinstance(batch, torch.Tensor) else batch[0])
