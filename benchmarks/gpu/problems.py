"""The problems for the Triton kernels: inputs, each kernel, and the same computation in plain PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu.kernels.gram import normalised_gram
from gpu.kernels.lpi import lpi
from gpu.kernels.lpi_training import lpi_training
from xcit.models.layers import NORM_EPS
from xcit.ops import reference

Outputs = tuple[Tensor, ...]
Form = Callable[..., Outputs]

BATCH_NORM_EPS = 1e-5


@dataclass(frozen=True)
class Problem:
    """The inputs of a computation, its forms by name, and the smallest possible number of bytes to read and write.

    A form is one implementation: "eager" is the first, and "triton" is the kernel. `grad` is the gradient of the
    output. If it is given, a run is a forward and a backward pass, and also returns the gradients of all inputs.
    """

    name: str
    shape: str
    inputs: Outputs
    forms: dict[str, Form]
    num_bytes: int
    grad: Tensor | None = None

    def run(self, form: Form) -> Outputs:
        """Returns a form's outputs."""
        return run(form, self.inputs, self.grad)

    def exact(self) -> Outputs:
        """Returns the eager form's outputs in float64."""
        doubles = tuple(value.detach().double() for value in self.inputs)
        return run(self.forms["eager"], doubles, None if self.grad is None else self.grad.double())


def run(form: Form, inputs: Outputs, grad: Tensor | None) -> Outputs:
    if grad is None:
        with torch.no_grad():
            return form(*inputs)
    inputs = tuple(value.detach().requires_grad_() for value in inputs)
    outputs = form(*inputs)
    return (*(value.detach() for value in outputs), *torch.autograd.grad(outputs[0], inputs, grad))


def lpi_problem(batch: int, height: int, width: int, dim: int, dtype: torch.dtype, device: torch.device) -> Problem:
    """Returns the problem of a block's LPI branch in inference, including its LayerNorm and residual."""

    def eager(tokens: Tensor, *parameters: Tensor) -> Outputs:
        norm, norm_bias, weight1, bias1, scale, shift, weight2, bias2 = parameters
        image = F.layer_norm(tokens, (dim,), norm, norm_bias, NORM_EPS).mT.unflatten(2, (height, width)).contiguous()
        affine = lambda hidden: hidden * scale[:, None, None] + shift[:, None, None]  # noqa: E731
        image = reference.lpi(image, weight1, bias1, affine, weight2, bias2)  # type: ignore[arg-type]
        return (tokens + image.flatten(2).mT,)

    def channels_last(tokens: Tensor, *parameters: Tensor) -> Outputs:
        norm, norm_bias, weight1, bias1, scale, shift, weight2, bias2 = parameters
        image = F.layer_norm(tokens, (dim,), norm, norm_bias, NORM_EPS).mT.unflatten(2, (height, width))
        image = F.gelu(F.conv2d(image, weight1, bias1, padding=1, groups=dim))
        image = image * scale[:, None, None] + shift[:, None, None]
        image = F.conv2d(image, weight2, bias2, padding=1, groups=dim)
        return (tokens + image.flatten(2).mT,)

    def kernel(tokens: Tensor, *parameters: Tensor) -> Outputs:
        norm, norm_bias, *others = parameters
        return (lpi(tokens, height, width, norm, norm_bias, NORM_EPS, *others),)

    tokens = torch.randn(batch, height * width, dim, device=device, dtype=dtype)
    shapes = [(dim,), (dim,), (dim, 1, 3, 3), (dim,), (dim,), (dim,), (dim, 1, 3, 3), (dim,)]
    parameters = tuple(0.5 * torch.randn(shape, device=device, dtype=dtype) for shape in shapes)
    return Problem(
        name="lpi",
        shape=f"{batch} x {height} x {width} x {dim}",
        inputs=(tokens, *parameters),
        forms={"eager": eager, "channels-last": channels_last, "triton": kernel},
        num_bytes=2 * tokens.nbytes,
    )


def training_problem(
    batch: int, height: int, width: int, dim: int, dtype: torch.dtype, device: torch.device
) -> Problem:
    """Returns the problem of LPI in training: forward and backward pass."""

    def eager(tokens: Tensor, *parameters: Tensor) -> Outputs:
        weight1, bias1, norm, norm_bias, weight2, bias2 = parameters
        batch_norm = lambda hidden: F.batch_norm(  # noqa: E731
            hidden, None, None, norm, norm_bias, training=True, eps=BATCH_NORM_EPS
        )
        image = tokens.mT.unflatten(2, (height, width)).contiguous()
        image = reference.lpi(image, weight1, bias1, batch_norm, weight2, bias2)  # type: ignore[arg-type]
        return (image.flatten(2).mT,)

    def kernel(tokens: Tensor, *parameters: Tensor) -> Outputs:
        *before, weight2, bias2 = parameters
        return (lpi_training(tokens, height, width, *before, BATCH_NORM_EPS, weight2, bias2)[0],)

    tokens = torch.randn(batch, height * width, dim, device=device, dtype=dtype)
    shapes = [(dim, 1, 3, 3), (dim,), (dim,), (dim,), (dim, 1, 3, 3), (dim,)]
    parameters = tuple(0.5 * torch.randn(shape, device=device, dtype=dtype) for shape in shapes)
    return Problem(
        name="lpi-training",
        shape=f"{batch} x {height} x {width} x {dim}",
        inputs=(tokens, *parameters),
        forms={"eager": eager, "triton": kernel},
        num_bytes=5 * tokens.nbytes,  # x and y, then x, dy and dx
        grad=torch.randn_like(tokens),
    )


def gram_problem(batch: int, num_tokens: int, dim: int, dtype: torch.dtype, device: torch.device) -> Problem:
    """Returns the problem of LayerNorm without its affine part, and the Gram matrix and column sums of its output."""

    def eager(tokens: Tensor) -> Outputs:
        normed = F.layer_norm(tokens, (dim,), eps=NORM_EPS)
        return normed, normed.mT @ normed, normed.sum(dim=1, dtype=torch.promote_types(tokens.dtype, torch.float32))

    def wide(tokens: Tensor) -> Outputs:
        normed = F.layer_norm(tokens, (dim,), eps=NORM_EPS)
        return normed, torch.bmm(normed.mT, normed, out_dtype=torch.float32), normed.sum(dim=1, dtype=torch.float32)

    def kernel(tokens: Tensor) -> Outputs:
        return normalised_gram(tokens, NORM_EPS)

    tokens = torch.randn(batch, num_tokens, dim, device=device, dtype=dtype)
    forms: dict[str, Form] = {"eager": eager, "triton": kernel}
    if device.type == "cuda" and dtype != torch.float32:
        forms["float32-out"] = wide  # keeps the product in float32, as the kernel does
    return Problem(
        name="gram",
        shape=f"{batch} x {num_tokens} x {dim}",
        inputs=(tokens,),
        forms=forms,
        num_bytes=2 * tokens.nbytes + 4 * batch * dim * dim,
    )
