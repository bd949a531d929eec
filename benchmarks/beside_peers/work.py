"""The work that is measured for each contender: a forward pass or a training step, on a batch of seeded noise."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beside_peers.results import DType
from xcit.models import XCiT, XCiTConfig
from xcit.weights.formats import to_native
from xcit.zoo.architectures import ARCHITECTURES

SEED = 0


@dataclass(frozen=True, kw_only=True)
class Case:
    """The settings of a measurement: a forward pass or a training step, on a batch of square images.

    `device` is a device string of torch, and `threads` is the number of CPU threads.
    """

    architecture: str
    image_size: int
    batch_size: int
    train: bool
    dtype: DType
    device: str
    threads: int

    @property
    def config(self) -> XCiTConfig:
        """The architecture's config."""
        return ARCHITECTURES[self.architecture]

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as a `torch.dtype`."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def images(self) -> Tensor:
        """Returns seeded noise (B, channels, size, size) in float32, with values that `dtype` can represent."""
        size = self.image_size
        generator = torch.Generator().manual_seed(SEED)
        images = torch.randn(self.batch_size, self.config.in_channels, size, size, generator=generator)
        return images.to(self.torch_dtype).float().to(self.device)

    def labels(self) -> Tensor:
        """Returns a random class for each image."""
        generator = torch.Generator().manual_seed(SEED)
        return torch.randint(self.config.num_classes, (self.batch_size,), generator=generator).to(self.device)


class Inference:
    """A forward pass without gradients; a call returns the logits."""

    def __init__(self, forward: Callable[[Tensor], Tensor], images: Tensor) -> None:
        self._forward, self._images = forward, images

    def __call__(self) -> Tensor:
        """Runs once."""
        with torch.inference_mode():
            return self._forward(self._images)

    def outputs(self) -> list[Tensor]:
        """Returns the values to compare: the logits."""
        return [self().float()]


class TrainingStep:
    """A forward pass, the cross-entropy and a backward pass, without an optimiser; a call returns the logits.

    After a call, the gradients are None.

    Args:
        model: the model; its parameters receive the gradients.
        forward: the model itself, or the result of `torch.compile`.
        images: images in float32.
        labels: class indices of the images.
        dtype: dtype of autocast, as in `xcit train`; float32 means no autocast.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[[Tensor], Tensor],
        images: Tensor,
        labels: Tensor,
        dtype: torch.dtype,
    ) -> None:
        self._model, self._forward, self._images, self._labels, self._dtype = model, forward, images, labels, dtype

    def __call__(self) -> Tensor:
        """Runs once."""
        logits = self._step()
        self._model.zero_grad(set_to_none=True)
        return logits

    def outputs(self) -> list[Tensor]:
        """Returns the values to compare: the logits, and one vector of all gradients, sorted by our parameter names."""
        logits = self._step()
        gradients = {name: _gradient(parameter) for name, parameter in self._model.named_parameters()}
        self._model.zero_grad(set_to_none=True)
        if not isinstance(self._model, XCiT):
            gradients = to_native(gradients, "timm")
        return [logits.float(), torch.cat([gradients[name].flatten() for name in sorted(gradients)])]

    def _step(self) -> Tensor:
        autocast: AbstractContextManager[object] = nullcontext()
        if self._dtype != torch.float32:
            autocast = torch.autocast(self._images.device.type, dtype=self._dtype)
        with autocast:
            logits = self._forward(self._images)
            loss = F.cross_entropy(logits, self._labels)
        loss.backward()
        return logits.detach()


Work = Inference | TrainingStep


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad.detach().clone()
