"""Tests the errors of `use_kernels`; the tests of the kernels' outputs are in kernels/."""

import pytest

from xcit.errors import XCiTError
from xcit.models import XCiT, XCiTConfig

pytest.importorskip("triton", reason="Triton is not installed: it comes with torch for Linux")

from gpu.kernels.use import use_kernels


def test_a_model_on_the_cpu_is_refused() -> None:
    model = XCiT(XCiTConfig(embed_dim=16, depth=1, num_heads=2, cls_depth=1))
    with pytest.raises(XCiTError, match="need a CUDA GPU, but the model is on cpu"):
        use_kernels(model)
