"""DINO pre-training (arXiv 2104.14294): a student sees one crop, and predicts a teacher's output for another crop.

The teacher's weights are a moving average of the student's weights. A centre, which is a moving average of the
teacher's logits, is subtracted from these logits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcit.data.classification import ImageSubset, problems_of
from xcit.data.loader import TrainLoader
from xcit.data.multi_crop import MultiCropConfig, multi_crop_transform
from xcit.data.unlabelled import open_unlabelled_images
from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing
from xcit.models import ModelInfo, XCiT, XCiTConfig
from xcit.models.dino import DINO, NUM_GLOBAL, DINOHeadConfig
from xcit.models.modes import evaluating
from xcit.training.engine.config import OptimizerConfig, RunConfig, ScheduleConfig
from xcit.training.engine.optimizer import cosine
from xcit.training.engine.task import ALONE, Layout, Reduce
from xcit.training.tasks.base import TaskWithLoader, loader_config
from xcit.training.tasks.collapse import CollapseWatch, feature_spread
from xcit.training.tasks.labelled_data import evaluation_batches_of
from xcit.zoo import save_model


@dataclass(frozen=True, kw_only=True)
class TeachingConfig:
    """Settings of teacher, student and centre. The defaults are the published values.

    Attributes:
        student_temperature: temperature of the student's softmax.
        teacher_temperature: temperature of the teacher's softmax; a lower temperature gives sharper targets.
        first_teacher_temperature: temperature of the teacher's softmax in the first epoch of the warm-up.
        warmup_epochs: number of epochs of the warm-up, in which the teacher's temperature changes linearly to
            `teacher_temperature`; 0 means no warm-up.
        teacher_momentum: momentum of the teacher's moving average at the first step. The momentum rises to 1 along half
            a period of a cosine.
        center_momentum: momentum of the moving average of the centre.
        freeze_last_layer: number of epochs, at the start of the run, in which the last layer of the head is frozen.
    """

    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    first_teacher_temperature: float = 0.04
    warmup_epochs: int = 0
    teacher_momentum: float = 0.996
    center_momentum: float = 0.9
    freeze_last_layer: int = 1

    def __post_init__(self) -> None:
        def need(name: str, condition: bool, must: str) -> None:
            if not condition:
                raise XCiTError(f"dino.{name} is {getattr(self, name)}, but must be {must}")

        for name in ("student_temperature", "teacher_temperature", "first_teacher_temperature"):
            need(name, 0 < getattr(self, name) < float("inf"), "above 0")
        for name in ("teacher_momentum", "center_momentum"):
            need(name, 0 <= getattr(self, name) <= 1, "in 0..1")
        for name in ("warmup_epochs", "freeze_last_layer"):
            need(name, getattr(self, name) >= 0, "0 or more")

    def temperature(self, epoch: int) -> float:
        """Returns the teacher's temperature in an epoch, counted from 0."""
        if epoch >= self.warmup_epochs:
            return self.teacher_temperature
        share = epoch / (self.warmup_epochs - 1) if epoch else 0.0
        return self.first_teacher_temperature + share * (self.teacher_temperature - self.first_teacher_temperature)

    def momentum(self, step: int, num_steps: int) -> float:
        """Returns the teacher's momentum at a step, counted from 0, of a run of `num_steps` steps."""
        return cosine(self.teacher_momentum, 1.0, step / num_steps)


@dataclass(frozen=True, kw_only=True)
class DINOConfig:
    """The config of a DINO run.

    Attributes:
        name: name of the recipe or run. The exported backbone gets the same name.
        task: name of the task. In a YAML file, it determines the class of the config.
        model: architecture of the backbone, without a classifier. Only the student uses stochastic depth.
        preprocessing: preprocessing for the exported backbone and the evaluation. Its normalisation is used for all
            crops, and its image size for global crops.
        data: images without labels, see `open_unlabelled_images`.
        num_watched: number of training images (a fixed selection) on which the features are evaluated.
        head: the projection head.
        crops: number, size and augmentation of the crops.
        dino: temperatures, momenta and other settings of teacher, student and centre.
        optimizer: optimiser and its settings.
        schedule: number of epochs, and the schedule of the learning rate.
        run: batch size, precision and other settings of the run.
    """

    name: str
    task: Literal["dino"] = "dino"
    model: XCiTConfig
    preprocessing: Preprocessing
    data: str = ""
    num_watched: int = 1000
    head: DINOHeadConfig = field(default_factory=DINOHeadConfig)
    crops: MultiCropConfig = field(default_factory=MultiCropConfig)
    dino: TeachingConfig = field(default_factory=TeachingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if self.num_watched < 2:
            raise XCiTError(f"num_watched is {self.num_watched}, but must be at least 2")
        if self.run.ema_decay:
            raise XCiTError(
                "run.ema_decay must be 0: DINO exports its teacher, which already is a moving average of weights"
            )
        patch = self.model.patch_size
        sizes = {"preprocessing.image_size": self.preprocessing.image_size}
        if self.crops.num_local:
            sizes["crops.local_size"] = self.crops.local_size
        for name, size in sizes.items():
            if size < patch:
                raise XCiTError(f"{name} is {size}, smaller than one patch of {patch}x{patch}")


def teacher_probabilities(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """Returns the targets (2*B, K) of the student: softmax((logits - center) / temperature).

    Args:
        logits: the teacher's logits (2*B, K) for the two global crops of B images.
        center: the centre (1, K).
        temperature: temperature of the teacher's softmax.
    """
    return ((logits - center) / temperature).softmax(dim=-1).detach()


def dino_loss(student_logits: Tensor, targets: Tensor, *, num_crops: int, student_temperature: float) -> Tensor:
    """Computes the cross-entropy between teacher and student, averaged over all pairs of different crops.

    A pair is a global crop g, which the teacher sees, and any other crop v, which the student sees. The loss of a pair
    is -sum(targets[g] * log softmax(student_logits[v] / student_temperature)), averaged over the batch.

    Args:
        student_logits: (V*B, K) for V crops of each of B images; the two global crops come first.
        targets: (2*B, K), the teacher's targets for the two global crops.
        num_crops: V.
        student_temperature: temperature of the student's softmax.
    """
    views = (student_logits / student_temperature).log_softmax(dim=-1).chunk(num_crops)
    terms = [
        -(target * view).sum(dim=-1).mean()
        for g, target in enumerate(targets.chunk(NUM_GLOBAL))
        for v, view in enumerate(views)
        if v != g
    ]
    return torch.stack(terms).mean()


class DINOTask(TaskWithLoader):
    """The DINO task, built from a config: student, teacher, data, loss and evaluation for the engine.

    Attributes:
        config: the config, unchanged.
        notes: lines for the user about the data.
        problems: lines for the user about problems in the data.

    Raises:
        XCiTError: if the data are missing, or fields contradict each other.
    """

    watch = ""

    def __init__(self, config: DINOConfig, layout: Layout | None = None) -> None:
        layout = layout or Layout(batch_size=config.run.batch_size)
        if not config.data:
            raise XCiTError(f"{config.name} has no data of its own: set data to a folder of images")
        images = open_unlabelled_images(config.data)
        source = getattr(images, "source", "")
        self.notes = (f"found {len(images)} images{f' in {source}' if source else ''}; their labels are not used",)
        self.problems = problems_of(images)
        self.config = config
        torch.manual_seed(config.run.seed)
        self.model: nn.Module = DINO(config.model, config.head)
        # The selection does not depend on the run's seed, so that runs can be compared.
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        self._watched = ImageSubset(images, order[: config.num_watched].tolist())
        self._loader: TrainLoader[list[Tensor]] = TrainLoader(
            images,
            multi_crop_transform(config.crops, config.preprocessing),
            loader_config(config.run, layout),
        )
        self._batch_size = layout.batch_size
        self._epoch = 0
        # The sum of the teacher's logits over the parts that this process computes in a step.
        self._logits_sum: Tensor | None = None
        self._collapse = CollapseWatch(num_outputs=config.head.out_dim)

    def train_batches(self, epoch: int, first_step: int = 0) -> Iterator[list[Tensor]]:
        """Yields this process's parts of an epoch's batches: lists of crops (B, C, h, w), global crops first."""
        return (crops for crops, _ in self._loader.batches(epoch, first_step))

    def begin_epoch(self, model: nn.Module, epoch: int) -> None:
        """Sets the teacher to training mode, so that its batch norms use the batch's statistics, as in the student."""
        assert isinstance(model, DINO)
        model.teacher.train()
        self._epoch = epoch

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Returns the loss, and the teacher's entropy, divergence from the student, and feature spread."""
        output = model(batch)
        settings = self.config.dino
        targets = teacher_probabilities(output.teacher_logits, output.center, settings.temperature(self._epoch))
        loss = dino_loss(
            output.student_logits, targets, num_crops=len(batch), student_temperature=settings.student_temperature
        )
        logits_sum = output.teacher_logits.sum(dim=0, keepdim=True)
        self._logits_sum = logits_sum if self._logits_sum is None else self._logits_sum + logits_sum
        entropy = _entropy(targets).mean()
        return {
            "loss": loss,
            "teacher_entropy": entropy,
            # A cross-entropy is the entropy plus the divergence. The same is true for the means over the pairs, because
            # every target occurs in the same number of pairs.
            "teacher_student_kl": loss.detach() - entropy,
            "feature_spread": feature_spread(output.teacher_features.float()),
        }

    def before_update(self, model: nn.Module, step: int) -> None:
        """Freezes the head's last layer in the first epochs: the optimiser skips parameters that have no gradient."""
        assert isinstance(model, DINO)
        if step < self.config.dino.freeze_last_layer * self.num_steps:
            for parameter in model.student.head.last_layer.parameters():
                parameter.grad = None

    @torch.no_grad()
    def after_update(self, model: nn.Module, step: int, reduce: Reduce) -> None:
        """Updates two moving averages: the teacher's parameters, and the centre of the teacher's logits."""
        assert isinstance(model, DINO) and self._logits_sum is not None
        settings = self.config.dino
        momentum = settings.momentum(step, self.config.schedule.epochs * self.num_steps)
        for own, other in zip(model.teacher.parameters(), model.student.parameters(), strict=True):
            own.mul_(momentum).add_(other, alpha=1 - momentum)
        mean = reduce(self._logits_sum) / (NUM_GLOBAL * self._batch_size)
        model.center.mul_(settings.center_momentum).add_(mean, alpha=1 - settings.center_momentum)
        self._logits_sum = None

    def concerns(self, step: int, losses: dict[str, float]) -> Sequence[str]:
        """Returns a warning if a collapse of the features has begun."""
        return self._collapse.look(step, losses)

    def evaluate(
        self, model: nn.Module, layout: Layout = ALONE, reduce: Reduce = lambda tensor: tensor
    ) -> dict[str, float]:
        """Returns the teacher's entropy (nats) and feature spread on training images without augmentation."""
        assert isinstance(model, DINO)
        device = model.center.device
        batches = evaluation_batches_of(
            self._watched,
            self.config.preprocessing,
            batch_size=250,
            num_workers=self.config.run.num_workers,
            layout=layout,
        )
        temperature = self.config.dino.temperature(self._epoch)
        embed_dim = self.config.model.embed_dim
        # Sums over the images: unit features, squares of the unit features, entropies, and the number of images.
        sums = torch.zeros(2 * embed_dim + 2, dtype=torch.float64, device=device)
        with evaluating(model.teacher), torch.inference_mode():
            for images, _, _ in batches:
                if len(images):
                    features, logits = model.teacher([images.to(device)])
                    unit = F.normalize(features.double(), dim=-1)
                    entropy = _entropy(teacher_probabilities(logits, model.center, temperature))
                    scalars = torch.stack([entropy.double(), torch.ones_like(entropy).double()], dim=1)
                    sums += torch.cat([unit, unit.square(), scalars], dim=1).sum(dim=0)
        total, squares, (entropy_sum, count) = reduce(sums).split([embed_dim, embed_dim, 2])
        if count == 0:
            raise XCiTError(f"none of the {len(self._watched)} images for the evaluation could be read")
        deviation = (squares / count - (total / count).square()).clamp(min=0).sqrt()
        return {
            "feature_spread": deviation.mean().item() * embed_dim**0.5,
            "teacher_entropy": (entropy_sum / count).item(),
        }

    def export(self, model: nn.Module, path: Path) -> None:
        """Writes the teacher's backbone, with its config and preprocessing, to one safetensors file."""
        assert isinstance(model, DINO)
        backbone = XCiT(replace(self.config.model, drop_path_rate=0.0))
        backbone.load_state_dict(model.teacher.backbone.state_dict())
        backbone.info = ModelInfo(name=self.config.name, preprocessing=self.config.preprocessing)
        save_model(backbone, path)


def _entropy(probabilities: Tensor) -> Tensor:
    """Returns the entropies (B,) in nats of distributions (B, K)."""
    return torch.special.entr(probabilities).sum(dim=-1)
