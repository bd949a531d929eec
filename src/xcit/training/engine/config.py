"""The config sections of the optimiser, the schedule and the run, which every recipe has."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

from xcit.errors import check_field


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW or SGD, with one of the published rules for weight decay.

    Attributes:
        kind: the optimiser.
        lr: learning rate.
        weight_decay: weight decay at the start of the run.
        momentum: momentum of SGD.
        betas: betas of AdamW.
        eps: epsilon of AdamW.
        clip_grad: largest norm of the gradients; 0 means no clipping.
        layer_decay: factor on the learning rate for each block between a parameter and the head (BEiT, arXiv
            2106.08254); 1 gives all parameters the same rate.
        final_weight_decay: weight decay at the end of the run. It follows half a period of a cosine and changes with
            each iteration; None keeps it constant.
        clip_mode: whether `clip_grad` limits the norm of all gradients together, or of each tensor.
        undecayed: parameters without weight decay. "vectors": biases, norms and everything one-dimensional, as in the
            recipes of mmpretrain and of DINO. "vectors_and_tokens": also the parameters in the model's
            `no_weight_decay` (the class token), as in the authors' recipes for ImageNet. "layer_norms": only layer
            norms, as in the published detectors and segmenters.
    """

    kind: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_grad: float = 0.0
    layer_decay: float = 1.0
    final_weight_decay: float | None = None
    clip_mode: Literal["all", "each"] = "all"
    undecayed: Literal["vectors", "vectors_and_tokens", "layer_norms"] = "vectors"

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay", "eps", "clip_grad"):
            check_field(self, name, 0 <= getattr(self, name) < math.inf, "0 or more")
        check_field(self, "momentum", 0 <= self.momentum < 1, "in [0, 1)")
        if self.final_weight_decay is not None:
            check_field(self, "final_weight_decay", 0 <= self.final_weight_decay < math.inf, "0 or more, or null")
            check_field(self, "weight_decay", self.weight_decay > 0, "above 0 where final_weight_decay is set")
        check_field(self, "betas", all(0 <= beta < 1 for beta in self.betas), "in [0, 1)")
        check_field(self, "layer_decay", 0 < self.layer_decay <= 1, "in (0, 1]")
        check_field(
            self,
            "layer_decay",
            self.layer_decay == 1 or self.undecayed != "layer_norms",
            "1 with undecayed layer_norms",
        )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """A warm-up from `warmup_lr` over `warmup_epochs`, then a decrease of the learning rate.

    The learning rate changes with each iteration, or with `by_epoch` at the start of each epoch.

    Attributes:
        epochs: epochs of the run.
        warmup_epochs: epochs of the warm-up, in which the learning rate rises linearly; 0 means no warm-up.
        warmup_lr: learning rate of the first iteration.
        min_lr: learning rate at the end, with "cosine" and "linear".
        by_epoch: whether the learning rate is constant within an epoch.
        kind: "cosine" falls along half a period of a cosine, after the warm-up. "linear" (mmseg's poly with power 1)
            falls linearly over the run. "milestones" multiplies by `decay` at some epochs. During the warm-up of the
            last two, the learning rate is multiplied by a factor that rises to 1, as in mmcv.
        warmup_steps: iterations of the warm-up, instead of `warmup_epochs`, if not 0.
        milestones: epochs, counted from 0, at whose start "milestones" decreases the learning rate.
        decay: the factor by which "milestones" multiplies the learning rate.
    """

    epochs: int = 300
    warmup_epochs: int = 20
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    by_epoch: bool = False
    kind: Literal["cosine", "linear", "milestones"] = "cosine"
    warmup_steps: int = 0
    milestones: tuple[int, ...] = ()
    decay: float = 0.1

    def __post_init__(self) -> None:
        check_field(self, "epochs", self.epochs >= 1, "at least 1")
        for name in ("warmup_epochs", "warmup_lr", "min_lr", "warmup_steps"):
            check_field(self, name, 0 <= getattr(self, name) < math.inf, "0 or more")
        rising = all(0 < one < other for one, other in pairwise((*self.milestones, math.inf)))
        check_field(self, "milestones", rising, "epochs above 0, in rising order")
        check_field(
            self, "milestones", bool(self.milestones) == (self.kind == "milestones"), "given only for kind milestones"
        )
        check_field(self, "decay", 0 < self.decay <= 1, "in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How a run computes.

    Attributes:
        batch_size: global batch size, over all processes and accumulated parts.
        max_device_batch: largest number of images that a process computes at once; gradients of more images are
            accumulated. 0 means no limit.
        seed: seed of the weights, of the order of the data and of all other random draws.
        dtype: float32, or a 16-bit type for autocast; with float16 the loss is scaled.
        parallel: how several processes share a model: "ddp" copies it, "fsdp2" shards it.
        sync_batch_norm: batch norms use the statistics of all processes (of the images that are computed at once)
            instead of those of one process.
        grad_checkpointing: recompute activations in the backward pass: less memory, a third more time.
        compile: compile the model with torch.compile.
        ema_decay: decay of the averaged weights, which are then the ones measured and exported; 0 keeps no average.
        ema_warmup: let the decay rise to `ema_decay`: it is 1 - t^(-2/3) at step t, counted from 1. The average then
            forgets the first weights at once. Without it, as in the authors' runs, this takes about 3 / (1 - ema_decay)
            steps.
        num_workers: number of processes that read data, for each training process.
        max_unreadable: share of the training inputs that may be unreadable before the run fails.
        evaluate_every: epochs between evaluations.
        log_every: steps between lines of the log.
        save_every_steps: steps between checkpoints within an epoch; 0 saves only at the end of epochs.
        keep_checkpoints: number of latest checkpoints to keep beside `last` and `best`.
        trackers: where to log beside the log file: "tensorboard", "wandb".
    """

    batch_size: int = 1024
    max_device_batch: int = 0
    seed: int = 0
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    parallel: Literal["ddp", "fsdp2"] = "ddp"
    sync_batch_norm: bool = False
    grad_checkpointing: bool = False
    compile: bool = False
    ema_decay: float = 0.0
    ema_warmup: bool = False
    num_workers: int = 2
    max_unreadable: float = 0.01
    evaluate_every: int = 1
    log_every: int = 50
    save_every_steps: int = 0
    keep_checkpoints: int = 0
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()

    def __post_init__(self) -> None:
        for name in ("batch_size", "evaluate_every", "log_every"):
            check_field(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("max_device_batch", "seed", "num_workers", "save_every_steps", "keep_checkpoints"):
            check_field(self, name, getattr(self, name) >= 0, "0 or more")
        check_field(self, "ema_decay", 0 <= self.ema_decay < 1, "in [0, 1)")
        check_field(self, "ema_warmup", self.ema_decay > 0 or not self.ema_warmup, "false without ema_decay")
        check_field(self, "max_unreadable", 0 <= self.max_unreadable <= 1, "in 0..1")


class TrainableConfig(Protocol):
    """The parts of a task's config that the engine reads."""

    @property
    def optimizer(self) -> OptimizerConfig:
        """Settings of AdamW or SGD."""

    @property
    def schedule(self) -> ScheduleConfig:
        """Epochs and learning rate."""

    @property
    def run(self) -> RunConfig:
        """How to compute."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """The three sections that the engine reads, for a task without a config of its own."""

    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    run: RunConfig
