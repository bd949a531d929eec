"""Batch norms in several processes.

With `sync_batch_norm`, batch norms are synchronised in each forward pass. Otherwise, their statistics are averaged
after each step.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def synchronise(model: nn.Module, device: torch.device) -> nn.Module:
    """Replaces every batch norm of a model by a batch norm over the images of all processes.

    On a GPU, this is torch's SyncBatchNorm. On a CPU, it is `_CPUSyncBatchNorm`.
    """
    if device.type != "cpu":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return converted
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                together = _CPUSyncBatchNorm(child.num_features, eps=child.eps, momentum=child.momentum)
                together.load_state_dict(child.state_dict())
                setattr(module, name, together.requires_grad_(child.weight.requires_grad))
    return model


def average_statistics(model: nn.Module, reduce: Callable[[Tensor], Tensor], world_size: int) -> None:
    """Replaces the running mean and variance of every batch norm by their average over the processes."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    statistics = [tensor for norm in norms for tensor in (norm.running_mean, norm.running_var) if tensor is not None]
    if not statistics:
        return
    averages = reduce(torch.cat(statistics)) / world_size
    for tensor, average in zip(statistics, averages.split([len(tensor) for tensor in statistics]), strict=True):
        tensor.copy_(average)


class _SumOverProcesses(torch.autograd.Function):
    """Sums a tensor over all processes.

    The gradients are summed too, because the loss of each process depends on the sum.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        torch.distributed.all_reduce(total)
        return total


class _CPUSyncBatchNorm(nn.BatchNorm2d):
    """A batch norm over the images of all processes, for the CPU, because torch's SyncBatchNorm needs a GPU.

    The input has shape (B, D, H, W), which must be the same in all processes.
    """

    def forward(self, image: Tensor) -> Tensor:
        if not self.training:
            return super().forward(image)
        world_size = torch.distributed.get_world_size()
        image = image.float()  # float32 even in autocast, because a mean of squares needs more than 16 bits
        mean = _SumOverProcesses.apply(image.mean(dim=(0, 2, 3))) / world_size
        centred = image - mean[:, None, None]
        variance = _SumOverProcesses.apply(centred.square().mean(dim=(0, 2, 3))) / world_size
        self._move_statistics(mean.detach(), variance.detach(), world_size * image.numel() // image.shape[1])
        scale = (variance + self.eps).rsqrt() * self.weight
        return centred * scale[:, None, None] + self.bias[:, None, None]

    def _move_statistics(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.momentum is not None and self.running_mean is not None and self.running_var is not None
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
