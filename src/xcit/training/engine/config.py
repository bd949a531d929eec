"""The three config sections that every recipe has: optimiser, schedule and run."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

from xcit.errors import check_field


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Settings of the optimiser, AdamW or SGD.

    Attributes:
        kind: the optimiser.
        lr: learning rate.
        weight_decay: weight decay at the start of the run.
        momentum: momentum of SGD.
        betas: betas of AdamW.
        eps: epsilon of AdamW.
        clip_grad: maximum norm of the gradients (see `clip_mode`); 0 means no clipping.
        layer_decay: the learning rate of a parameter is multiplied by this factor once for each block between the
            parameter and the head (BEiT, arXiv 2106.08254). With 1, all parameters have the same learning rate.
        final_weight_decay: weight decay at the end of the run. The weight decay changes at each step, along half a
            period of a cosine. None keeps the weight decay constant.
        clip_mode: "all" limits the norm of all gradients together; "each" limits the norm of each parameter's gradient.
        undecayed: which parameters have no weight decay. "vectors": biases and all other one-dimensional parameters, as
            in the recipes of mmpretrain and of DINO. "vectors_and_tokens": also the parameters in the model's
            `no_weight_decay` (the class token), as in the authors' recipes for ImageNet. "layer_norms": only the
            parameters of layer norms, as in the published detectors and segmenters.
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
            check_field(self, "weight_decay", self.weight_decay > 0, "above 0 if final_weight_decay is set")
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
    """Schedule of the learning rate: a warm-up that starts at `warmup_lr`, then a decrease.

    Attributes:
        epochs: number of epochs of the run.
        warmup_epochs: number of epochs of the warm-up, in which the learning rate rises linearly; 0 means no warm-up.
        warmup_lr: learning rate at the first step of the warm-up.
        min_lr: learning rate at the end of the run, for "cosine" and "linear".
        by_epoch: whether the learning rate changes only at the start of each epoch. Otherwise it changes at each step.
        kind: how the learning rate decreases. "cosine": along half a period of a cosine, after the warm-up. "linear"
            (mmseg's poly with power 1): linearly over the whole run. "milestones": the learning rate is multiplied by
            `decay` at each epoch in `milestones`. With "linear" and "milestones", the decreasing learning rate is also
            multiplied during the warm-up by a factor that rises to 1, as in mmcv.
        warmup_steps: number of steps of the warm-up. If this is not 0, `warmup_epochs` is ignored.
        milestones: for "milestones": the learning rate decreases at the start of these epochs, counted from 0.
        decay: for "milestones": factor by which the learning rate is multiplied at each milestone.
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
    """Settings of a run: batch size, precision, processes, averaged weights, evaluation, log and checkpoints.

    Attributes:
        batch_size: global batch size: number of images in an optimiser step, over all processes.
        max_device_batch: maximum number of images in a forward pass of a process. If a process has more images in a
            step, it makes several passes and accumulates the gradients. 0 means no limit.
        seed: seed of the weights, of the order of the data and of all other random draws.
        dtype: float32, or the 16-bit type for autocast; with float16 the loss is scaled.
        parallel: how several processes train one model. "ddp": each process has a copy. "fsdp2": the weights are
            sharded.
        sync_batch_norm: whether batch norms compute their statistics over the images of all processes. Otherwise each
            process uses only its own images. In both cases, only the images of the current forward pass are used.
        grad_checkpointing: recompute activations in the backward pass. A step then needs less memory, but about a third
            more time.
        compile: compile the model with torch.compile.
        ema_decay: decay of the moving average of the weights; 0 means no average. If there is an average, it is
            evaluated and exported instead of the trained weights.
        ema_warmup: let the decay rise to `ema_decay`. At step t, counted from 1, the decay is 1 - t^(-2/3), but at most
            `ema_decay`. So the average contains nothing of the initial weights from the first step on. Without the
            warm-up, as in the authors' runs, the initial weights are still 5% of the average after about
            3 / (1 - ema_decay) steps.
        num_workers: number of processes that read data, for each training process; with 0 the training process itself
            reads data.
        max_unreadable: share (0..1) of the training images that may be unreadable. If there are more, the run fails.
        evaluate_every: number of epochs between evaluations.
        log_every: number of steps between lines of the log.
        save_every_steps: number of steps between checkpoints within an epoch. With 0, checkpoints are written only at
            the end of each epoch.
        keep_checkpoints: number of latest checkpoints to keep, in addition to `last.pt` and `best.pt`.
        trackers: programs that receive the numbers of the log, in addition to the log file: "tensorboard", "wandb".
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
        """Settings of the optimiser."""

    @property
    def schedule(self) -> ScheduleConfig:
        """Number of epochs, and the schedule of the learning rate."""

    @property
    def run(self) -> RunConfig:
        """Batch size, precision and other settings of the run."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """A config with only the three sections that the engine reads, for a task that has no config class."""

    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    run: RunConfig
