"""Knowledge distillation: the predictions of a trained model (the teacher) are a second target besides the labels."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcit.data.samples import numbered_classes
from xcit.errors import XCiTError, check_field, some_of
from xcit.images.preprocess import IMAGENET_MEAN, Preprocessing
from xcit.training.tasks.sources import find_source
from xcit.zoo import get_xcit
from xcit.zoo.names import is_known

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

_TIMM = "timm/"


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """A teacher, and the weight of the teacher's loss: loss = (1 - alpha) * label_loss + alpha * teacher_loss.

    Attributes:
        teacher: "timm/<model>" for timm's pretrained weights, or the name or file of an XCiT; "" for no teacher.
        kind: definition of `teacher_loss`. "hard": the cross-entropy against the teacher's top-1 class (DeiT, arXiv
            2012.12877, section 4). "soft": the Kullback-Leibler divergence between the probabilities of teacher and
            student, both at `temperature` T, times T^2 (arXiv 1503.02531). As in the authors' code, the divergence is
            averaged over images and classes. So with K classes, the result is 1/K of the usual divergence, which is a
            sum over the classes.
        alpha: weight of `teacher_loss` in the loss, 0..1.
        temperature: temperature T of "soft". The default in the authors' code is 1; DeiT's comparison used 3.
    """

    teacher: str = ""
    kind: Literal["hard", "soft"] = "hard"
    alpha: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_field(self, "alpha", 0 <= self.alpha <= 1, "in 0..1")
        check_field(self, "temperature", 0 < self.temperature < float("inf"), "above 0")


class Teacher:
    """A trained classifier in evaluation mode, without gradients.

    The teacher gets the same images as the student (also images that are mixed by mixup or CutMix), but with the
    teacher's own normalisation.
    """

    def __init__(
        self, model: nn.Module, config: DistillationConfig, *, own: Preprocessing, given: Preprocessing
    ) -> None:
        """Creates a teacher.

        Args:
            model: the trained classifier.
            config: kind of the loss, and temperature.
            own: preprocessing of the teacher; only its mean and std are used.
            given: preprocessing of the images that the teacher gets; only its mean and std are used.
        """
        self.model, self.config = model.eval().requires_grad_(False), config
        own_mean, own_std, mean, std = (
            torch.tensor(numbers)[:, None, None] for numbers in (own.mean, own.std, given.mean, given.std)
        )
        self._same = torch.equal(own_mean, mean) and torch.equal(own_std, std)
        self._scale, self._shift = std / own_std, (mean - own_mean) / own_std

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Returns logits (B, num_classes) in float32 for images (B, C, h, w) with the student's normalisation."""
        if self._scale.device != images.device:
            self.model.to(images.device)
            self._scale, self._shift = self._scale.to(images.device), self._shift.to(images.device)
        if not self._same:
            images = images * self._scale + self._shift
        logits: Tensor = self.model(images)
        return logits.float()

    def loss(self, images: Tensor, logits: Tensor) -> Tensor:
        """Returns the teacher's loss (a scalar) for images (B, C, h, w) and the student's logits (B, num_classes)."""
        target, logits = self.logits(images), logits.float()
        if self.config.kind == "hard":
            return F.cross_entropy(logits, target.argmax(dim=1))
        temperature = self.config.temperature
        student, teacher = ((numbers / temperature).log_softmax(dim=1) for numbers in (logits, target))
        return temperature**2 * F.kl_div(student, teacher, reduction="sum", log_target=True) / logits.numel()


def check_teacher(config: DistillationConfig, spec: Preprocessing, num_classes: int) -> None:
    """Checks a teacher before anything is read or downloaded.

    Args:
        config: the settings. If there is no teacher, nothing is checked.
        spec: the run's preprocessing.
        num_classes: the run's number of classes; 0 if it is not known yet.

    Raises:
        XCiTError: if there is no such teacher, or if the teacher's number of classes or channels is known and does not
            fit.
    """
    if not config.teacher:
        return
    if _is_timms(config.teacher):
        known = _timm_config(config.teacher)
        classes, channels = known.num_classes, known.input_size[0]
    else:
        record = find_source(config.teacher, "distillation.teacher")
        if record is None:
            return
        classes, channels = record.config.num_classes, record.config.in_channels
    _check_channels(config.teacher, channels, spec)
    if num_classes and classes != num_classes:
        raise XCiTError(f"distillation.teacher: {config.teacher} has {classes} classes, but this run has {num_classes}")


def load_teacher(
    config: DistillationConfig, spec: Preprocessing, *, num_classes: int, class_ids: Sequence[str] = ()
) -> Teacher:
    """Loads the teacher. If necessary, the teacher is downloaded first.

    Args:
        config: name of the teacher, kind of the loss, and temperature.
        spec: the run's preprocessing.
        num_classes: the run's number of classes.
        class_ids: the data's class names in the order of the labels, if known. The names "0", "1", ... are ignored.

    Raises:
        XCiTError: if the teacher can't be loaded, does not accept the images, or if its classes are not those of the
            data.
    """
    check_teacher(config, spec, num_classes)
    if _is_timms(config.teacher):
        model, own, names = _load_timms(config.teacher)
    else:
        model, own, names = _load_xcit(config.teacher, spec)
    _check_channels(config.teacher, len(own.mean), spec)
    if names and class_ids and tuple(class_ids) not in (*names, numbered_classes(num_classes)):
        raise XCiTError(
            f"distillation.teacher: the classes of {config.teacher} and of the data differ, or have a different order: "
            f"the teacher has {some_of(map(repr, names[0]))}, but the data have {some_of(map(repr, class_ids))}"
        )
    teacher = Teacher(model, config, own=own, given=spec)
    size = spec.image_size
    try:
        shape = tuple(teacher.logits(torch.zeros(1, len(spec.mean), size, size)).shape)
    except (RuntimeError, AssertionError, XCiTError) as error:
        reason = " ".join(str(error).split())
        raise XCiTError(
            f"distillation.teacher: {config.teacher} does not accept images of {size}x{size} pixels: {reason}"
        ) from None
    if shape != (1, num_classes):
        raise XCiTError(
            f"distillation.teacher: {config.teacher} gives {shape[-1]} numbers per image, the data have {num_classes} "
            "classes"
        )
    return teacher


_Loaded = tuple[nn.Module, Preprocessing, list[tuple[str, ...]]]
"""A teacher, its own preprocessing, and all known lists of names for its classes."""


def _load_xcit(source: str, spec: Preprocessing) -> _Loaded:
    model = get_xcit(source, pretrained=True)
    if model.info is None:  # all published XCiTs use ImageNet's mean and std
        return model, Preprocessing() if model.config.in_channels == len(IMAGENET_MEAN) else spec, []
    return model, model.info.preprocessing, [names for names in (model.info.class_ids, model.info.class_names) if names]


def _load_timms(source: str) -> _Loaded:
    import timm

    try:
        model = timm.create_model(source.removeprefix(_TIMM), pretrained=True)
    except Exception as error:  # the class of the exception depends on the versions of timm and the Hub's client
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise XCiTError(f"distillation.teacher: {source} can't be loaded: {reason}") from error
    known = _timm_config(source)
    names = tuple(known.label_names or ())
    return model, Preprocessing(mean=tuple(known.mean), std=tuple(known.std)), [names] if names else []


def _is_timms(teacher: str) -> bool:
    """Returns whether to load the teacher with timm. This package loads timm's XCiTs itself."""
    return teacher.startswith(_TIMM) and not is_known(teacher)


def _timm_config(teacher: str) -> "PretrainedCfg":
    """Returns timm's config of a pretrained model, without loading the model.

    Raises:
        XCiTError: if timm has no such model; the message suggests the nearest name.
    """
    import timm

    name = teacher.removeprefix(_TIMM)
    if not timm.models.is_model_pretrained(name):
        near = difflib.get_close_matches(name, timm.list_models(pretrained=True), n=1)
        hint = f"did you mean '{_TIMM}{near[0]}'?" if near else "timm.list_models(pretrained=True) lists all"
        raise XCiTError(f"distillation.teacher: timm has no pretrained model {name!r}; {hint}")
    config = timm.models.get_pretrained_cfg(name)
    assert config is not None
    return config


def _check_channels(teacher: str, channels: int, spec: Preprocessing) -> None:
    if channels != len(spec.mean):
        raise XCiTError(
            f"distillation.teacher: {teacher} accepts images with {channels} channels, but this run's images have "
            f"{len(spec.mean)}"
        )
