"""The config sections of the optimiser, the schedule and the run, which every recipe has."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

from xcit.errors import check_field


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW or SGD; what is not decayed is one of the published rules, by `undecayed`.

    "vectors": biases, norms and everything one-dimensional, as in mmpretrain's recipes and DINO's.
    "vectors_and_tokens": also what the model's `no_weight_decay` names, the class token, as in the authors' recipes for
    ImageNet. "layer_norms": these alone, as in the published detectors and segmenters.

    `betas` and `eps` are AdamW's, `momentum` is SGD's. `clip_grad` is the largest norm of the gradients, of all
    together or, by `clip_mode`, of each tensor; 0 is off. `layer_decay` multiplies the learning rate once for each
    block between a parameter and the head (BEiT, arXiv 2106.08254); 1 gives all the same. `final_weight_decay` is where
    half a cosine over the run takes the weight decay, a step an iteration; none leaves it.
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
    """Warm-up from `warmup_lr` over `warmup_epochs`, then the learning rate's way down.

    The learning rate moves with each iteration, or with `by_epoch` at each epoch's begin.

    Attributes:
        epochs: of the run.
        warmup_epochs: of the warm-up, which rises in a straight line; 0 is none.
        warmup_steps: counts the warm-up in iterations instead, if not 0.
        warmup_lr: the first iteration's learning rate.
        min_lr: where "cosine" and "linear" end.
        by_epoch: whether the learning rate stands still within an epoch.
        kind: "cosine" falls by half a cosine that begins after the warm-up; "linear" (mmseg's poly of power 1) falls in
            a straight line over the run, and "milestones" by `decay` at some epochs: these two are multiplied by a
            factor that rises to 1 as they warm up (mmcv's way).
        milestones: epochs, counted from 0, at whose begin "milestones" falls.
        decay: by what it is multiplied there.
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
            self, "milestones", bool(self.milestones) == (self.kind == "milestones"), "given for kind milestones alone"
        )
        check_field(self, "decay", 0 < self.decay <= 1, "in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How a run computes.

    Attributes:
        batch_size: the global batch, over all processes and accumulation.
        max_device_batch: images a process takes at once; more are accumulated. 0 is no limit.
        seed: of the weights, the order of the data and every draw.
        dtype: float32, or a 16-bit one for autocast; float16 scales the loss.
        parallel: how several processes share a model: "ddp" copies it, "fsdp2" shards it.
        sync_batch_norm: batch norms see the global batch (or what of it is computed at once) instead of a process's.
        grad_checkpointing: recompute activations in the backward pass: less memory, a third more time.
        compile: torch.compile the model.
        ema_decay: of the averaged weights, which are then what is measured and exported; 0 keeps none.
        ema_warmup: let the decay rise to `ema_decay`: 1 - t^(-2/3) at step t, counted from 1. The average then forgets
            the start at once; without it, as in the authors' runs, only after some 3 / (1 - ema_decay) steps.
        num_workers: processes that read data, for each training process.
        max_unreadable: share of the training inputs that may be unreadable before the run fails.
        evaluate_every: epochs.
        log_every: steps.
        save_every_steps: steps between checkpoints inside an epoch; 0 saves at the ends of epochs only.
        keep_checkpoints: how many of the latest checkpoints are kept beside `last` and `best`.
        trackers: beside the log file: "tensorboard", "wandb".
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
    """What the engine reads of a task's config."""

    @property
    def optimizer(self) -> OptimizerConfig:
        """AdamW's numbers, or SGD's."""

    @property
    def schedule(self) -> ScheduleConfig:
        """Epochs and learning rate."""

    @property
    def run(self) -> RunConfig:
        """How to compute."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """These three alone, of a task without a config of its own."""

    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    run: RunConfig
