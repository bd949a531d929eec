"""Makes models run the Triton kernels of `gpu.kernels`, by an explicit call of `use_kernels`.

The package `xcit` does not use this module: models run plain PyTorch operators, until measurements show on which GPUs
the kernels are faster. Importing it needs Triton. LPI is XCiT's local patch interaction, and XCA its cross-covariance
attention.

Shapes: `B` batch, `H`, `W` token grid, `N = H*W` tokens, `D` width.
"""

import torch
from torch import Tensor, nn

from gpu.kernels import is_available
from gpu.kernels.gram import normalised_gram
from gpu.kernels.lpi import lpi
from gpu.kernels.lpi_training import lpi_training
from xcit import ops
from xcit.errors import XCiTError
from xcit.models.fused import FusedXCABlock, tokens_at_once
from xcit.models.layers import LPI, scaled


def use_kernels(module: nn.Module, *, gram: bool = False) -> None:
    """Makes a model, or one of its submodules, run the kernels; weights and their names do not change.

    A fused model runs LPI with its norm and residual in one kernel. A model that is not fused runs the training
    kernels of LPI.

    Args:
        module: a model, fused or not, on a CUDA device.
        gram: whether a fused model also computes XCA from a Gram matrix, which a kernel computes.

    Raises:
        XCiTError: if the kernels can't run on the model's device, or if no part of the model can use them.
    """
    device = next(module.parameters()).device
    if not is_available(device):
        raise XCiTError(f"the Triton kernels need a CUDA GPU, but the model is on {device}: don't call use_kernels")
    others: dict[type, type] = {FusedXCABlock: GramKernelBlock if gram else KernelBlock}
    if not gram:
        others[LPI] = KernelLPI
    parts = [part for part in module.modules() if type(part) in others]
    if not parts:
        kind = "fused XCA blocks" if gram else "XCA blocks"
        raise XCiTError(f"use_kernels found no {kind} without kernels in {type(module).__name__}")
    for part in parts:
        # Changing the class of a module, unlike creating a new module, keeps its parameters and their names.
        part.__class__ = others[type(part)]


class KernelBlock(FusedXCABlock):
    """A `FusedXCABlock` with LPI in one kernel; the output is a new tensor.

    If there are so many tokens that the block computes them in parts, it uses the plain operators.
    """

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        at_once = tokens_at_once(tokens)
        if at_once is not None and tokens.shape[:2].numel() > at_once:
            return super().forward(tokens, height, width)
        self._xca(tokens)
        norm, conv1, conv2 = self.norm_lpi, self.conv1, self.conv2
        assert conv1.bias is not None and conv2.bias is not None
        scale, shift = self.norm_scale.flatten(), self.norm_shift.flatten()
        first = (norm.weight, norm.bias, norm.eps, conv1.weight, conv1.bias)
        tokens = lpi(tokens, height, width, *first, scale, shift, conv2.weight, conv2.bias)
        self.add_mlp(tokens.flatten(0, 1))
        return tokens


class GramKernelBlock(KernelBlock):
    """A `KernelBlock` that computes XCA from a kernel's Gram matrix; the norm's affine part is folded into weights."""

    def _xca(self, tokens: Tensor) -> None:
        norm = self.norm_xca
        normed, gram, total = normalised_gram(tokens, norm.eps)
        qkv_weight = self.qkv.weight.float()
        weight, bias = qkv_weight * norm.weight.float(), qkv_weight @ norm.bias.float()
        if self.qkv.bias is not None:
            bias = bias + self.qkv.bias.float()
        attention = ops.attention_from_gram(gram, total[:, None], tokens.shape[1], weight, bias, self.temperature)
        matrix, row = ops.mixing_matrix(attention, weight, bias, self.proj.weight, self.proj.bias)
        tokens += row.to(tokens.dtype)
        tokens.baddbmm_(normed, matrix.to(tokens.dtype))


class KernelLPI(LPI):
    """An `LPI` that trains with kernels; in evaluation mode or with a synchronised batch norm, it runs as `LPI`."""

    def forward(self, tokens: Tensor, height: int, width: int, scale: Tensor | None = None) -> Tensor:
        norm = self.norm
        if not norm.training or type(norm) is not nn.BatchNorm2d:
            return super().forward(tokens, height, width, scale)
        device = tokens.device.type
        if torch.is_autocast_enabled(device):
            tokens = tokens.to(torch.get_autocast_dtype(device))
        conv1 = self.conv1
        assert conv1.bias is not None
        first = (conv1.weight, conv1.bias, norm.weight, norm.bias, norm.eps)
        out, mean, variance = lpi_training(tokens, height, width, *first, *scaled(self.conv2, scale))
        self._move_statistics(mean, variance, tokens.shape[:2].numel())
        return out

    @torch.no_grad()
    def _move_statistics(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Updates the running statistics from a batch of `count` tokens, as `nn.BatchNorm2d` does."""
        norm = self.norm
        assert norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (count / max(1, count - 1)), norm.momentum)
