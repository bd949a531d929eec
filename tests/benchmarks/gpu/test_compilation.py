"""Tests without a GPU that the kernels compile, and that torch.compile accepts their operators.

Triton's interpreter can't test this. No values are computed in these tests.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

triton = pytest.importorskip("triton", reason="Triton is not installed: it comes with torch for Linux")

from gpu.kernels import gram, layer_norm, lpi, lpi_backward, lpi_training  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning")

HOPPER = GPUTarget("cuda", 90, 32)
NUMBERS = ("height", "width", "num_rows", "batch", "num_tokens", "num_steps", "split_tokens")
STRIP = {"dim": 66, "num_channels": 64, "num_columns": 2, "whole": False}
ROWS = {"dim": 66, "num_rows": 4, "width": 128}

KERNELS = [
    (lpi._lpi, STRIP),
    (lpi_training._moments, STRIP),
    (lpi_training._forward, STRIP),
    (lpi_backward._backward_of_norm, STRIP),
    (lpi_backward._backward, STRIP),
    (layer_norm._statistics, ROWS),
    (layer_norm._normalise, ROWS),
    (gram._gram, {"dim": 384, "side": 128, "depth": 64, "upcast": False}),
]


@pytest.mark.parametrize(("kernel", "constants"), KERNELS, ids=lambda value: getattr(value, "__name__", ""))
def test_kernels_compile_for_a_gpu(
    kernel: Any, constants: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kind(name: str) -> str:
        if name in constants and name in kernel.arg_names:
            return "constexpr"
        if name == "eps":
            return "fp32"
        if name in NUMBERS:
            return "i32"
        return "*bf16" if name in ("tokens", "out", "normed", "grad_out", "grad_tokens") else "*fp32"

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    signature = {name: kind(name) for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    assert triton.compile(source, target=HOPPER, options={"num_warps": 4}).asm["cubin"]


def test_operators_tell_shapes_without_running() -> None:
    def describe(function: Callable[..., Any], *inputs: Any) -> list[tuple[tuple[int, ...], torch.dtype]]:
        outputs = function(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        assert all(value.device.type == "cuda" for value in outputs)
        return [(tuple(value.shape), value.dtype) for value in outputs]

    with FakeTensorMode():
        tokens = torch.empty(2, 6, 5, device="cuda", dtype=torch.bfloat16)
        row, taps = torch.empty(5, device="cuda"), torch.empty(5, 1, 3, 3, device="cuda")
        like_tokens, like_row = ((2, 6, 5), torch.bfloat16), ((5,), torch.float32)
        like_taps = ((5, 1, 3, 3), torch.float32)
        first = (tokens, 2, 3, row, row, 1e-6, taps, row)
        assert describe(lpi.lpi, *first, row, row, taps, row) == [like_tokens]
        training = (tokens, 2, 3, taps, row, row, row, 1e-5, taps, row)
        assert describe(lpi_training.lpi_training, *training) == [like_tokens, like_row, like_row]
        grads = describe(lpi_backward.lpi_backward, tokens, *training[:-1], row, row)
        assert grads == [like_tokens, like_taps, like_row, like_row, like_row, like_taps, like_row]
        like_gram = [((2, 5, 5), torch.float32), ((2, 5), torch.float32)]
        assert describe(gram.normalised_gram, tokens, 1e-6) == [like_tokens, *like_gram]
