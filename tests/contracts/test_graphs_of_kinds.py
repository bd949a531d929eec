"""Tests graphs of models with a backbone (DINO, segmenters, detector), and the number of their recompilations."""

import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import build
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from xcit import ops
from xcit.errors import XCiTError
from xcit.ops import reference

EXAMPLE = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
SIZES = [(64, 64), (41, 130), (128, 97)]
SMALL = [(4, 40), (5, 9), (23, 37)]
SHAPES = {"images": dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)}
MODELS = ("dino", "sem-fpn", "fused sem-fpn", "upernet", "fused upernet")


@pytest.fixture(autouse=True)
def _exporters_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def _no_compiled_code() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def model_of(name: str) -> nn.Module:
    model: Any = build(name.removeprefix("fused "))
    if name == "dino":
        return nn.Sequential(model.backbone, model.head).eval()
    return model.fuse() if name.startswith("fused") else model


def check(graph: Callable[[Tensor], Tensor], model: nn.Module, sizes: list[tuple[int, int]]) -> None:
    draw = torch.Generator().manual_seed(1)
    for height, width in sizes:
        for batch in (1, 3):
            images = torch.rand(batch, 3, height, width, generator=draw)
            with torch.no_grad():
                torch.testing.assert_close(graph(images), model(images), rtol=1e-4, atol=1e-4, msg=f"{height}x{width}")


@pytest.mark.parametrize("name", MODELS)
def test_trace(name: str) -> None:
    model = model_of(name)
    traced = torch.jit.trace(model, EXAMPLE, check_trace=False)
    check(traced, model, SIZES)
    if name == "dino":
        check(traced, model, SMALL)
    else:  # the smallest map of this image has fewer pooling windows than the example's
        with pytest.raises(RuntimeError, match="Output size is too small"), torch.no_grad():
            traced(EXAMPLE[:, :, :23, :37])


@pytest.mark.parametrize("name", ["sem-fpn", "fused upernet"])
def test_export(name: str) -> None:
    model = model_of(name)
    graph = torch.export.export(model, (EXAMPLE,), dynamic_shapes=SHAPES).module()
    check(graph, model, [(64, 64), (128, 97), (90, 255)])
    with pytest.raises(AssertionError, match="Guard failed"):
        graph(EXAMPLE[:, :, :23, :37])


def test_onnx_of_adaptive_pooling(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, path = model_of("upernet"), tmp_path / "model.onnx"
    torch.onnx.export(
        model, (EXAMPLE,), path, input_names=["images"], dynamic_shapes=SHAPES, dynamo=True, verbose=False
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    check(lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), model, SIZES + SMALL)


@pytest.mark.parametrize("name", ["detector", "fused detector"])
def test_a_detector_is_refused_in_one_line_and_its_backbone_is_not(name: str) -> None:
    model: Any = model_of(name)
    images = [EXAMPLE[0]]
    for make in (
        lambda: torch.jit.trace(model, (images,)),
        lambda: torch.export.export(model, (images,)),
        lambda: torch.fx.symbolic_trace(model),
    ):
        with pytest.raises(XCiTError, match=r"a detector can't be traced or exported.*model\.backbone") as error:
            make()
        assert "\n" not in str(error.value)
    traced = torch.jit.trace(model.backbone, EXAMPLE, check_trace=False)
    for ours, theirs in zip(traced(EXAMPLE[:, :, :, :41]), model.backbone(EXAMPLE[:, :, :, :41]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


# --- the compiler


def times_compiled(model: nn.Module) -> int:
    torch.compiler.reset()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)
    sides = [(64, 64), (64, 80), (80, 65), (67, 65), (71, 93), (40, 130), (33, 47), (129, 97)]
    with torch.no_grad():
        for height, width in sides:
            images = EXAMPLE.new_ones(2, 3, height, width)
            torch.testing.assert_close(compiled(images), model(images), rtol=1e-4, atol=1e-4)
    return counter.frame_count


@pytest.mark.usefixtures("_no_compiled_code")
def test_a_fused_model_is_compiled_no_more_often_than_the_plain_one() -> None:
    plain, fused = (times_compiled(model_of(kind)) for kind in ("classifier", "fused classifier"))
    assert fused <= plain <= 4


@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.usefixtures("_no_compiled_code")
def test_inductor_gives_xcas_gradients_of_one_image_in_heads_of_8_channels() -> None:
    dim, num_heads, num_tokens = 32, 4, 131
    draw = torch.Generator().manual_seed(0)
    shapes = ((1, num_tokens, dim), (3 * dim, dim), (3 * dim,), (num_heads, 1, 1), (dim, dim), (dim,))
    inputs = [torch.randn(shape, generator=draw).requires_grad_() for shape in shapes]
    weights = torch.randn(1, num_tokens, dim, generator=draw)

    def run(xca: Callable[..., Tensor]) -> list[Tensor]:
        out = xca(*inputs)
        return [out, *torch.autograd.grad((out * weights).sum(), inputs)]

    for ours, theirs in zip(run(torch.compile(ops.xca)), run(reference.xca), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
