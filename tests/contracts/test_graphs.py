"""Tests that traced and exported graphs of plain and fused models work for every size or raise a one-line error."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from small_models import KINDS, build
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from xcit.errors import XCiTError
from xcit.models import FX_LEAF_MODULES, XCiT, XCiTConfig

SIZES = [(16, 16), (23, 37), (64, 64), (40, 130), (200, 128), (255, 257), (400, 400)]
ONE_PATCH = [(8, 8), (8, 64), (64, 8)]
EXAMPLE = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["plain", "fused"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    model = XCiT(XCiTConfig(patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5)).eval()
    for value in model.parameters():
        if value.ndim > 1:
            nn.init.normal_(value, std=0.1)
    return model.fuse() if request.param == "fused" else model


@pytest.fixture(autouse=True)
def _exporters_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def check(graph: Callable[[Tensor], Tensor], model: nn.Module, sizes: list[tuple[int, int]]) -> None:
    draw = torch.Generator().manual_seed(1)
    for height, width in sizes:
        for batch in (1, 3):
            images = torch.rand(batch, 3, height, width, generator=draw)
            with torch.no_grad():
                torch.testing.assert_close(graph(images), model(images), rtol=1e-4, atol=1e-5, msg=f"{height}x{width}")


def test_trace(model: nn.Module) -> None:
    check(torch.jit.trace(model, EXAMPLE, check_trace=False), model, SIZES + ONE_PATCH)


def _dynamic() -> dict[str, dict[int, object]]:
    return {"images": dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)}


def test_export(model: nn.Module) -> None:
    check(torch.export.export(model, (EXAMPLE,), dynamic_shapes=_dynamic()).module(), model, SIZES)


def test_onnx(model: nn.Module, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        model, (EXAMPLE,), path, input_names=["images"], dynamic_shapes=_dynamic(), dynamo=True, verbose=False
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    check(lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), model, SIZES + ONE_PATCH)


def test_fx_is_refused_in_one_line(model: nn.Module) -> None:
    with pytest.raises(XCiTError, match=r"torch\.fx can't trace") as error:
        torch.fx.symbolic_trace(model)
    assert "\n" not in str(error.value)


def test_traced_around_the_blocks_by_fx() -> None:
    torch.manual_seed(0)
    model = XCiT(XCiTConfig(patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5)).eval()
    extracted = create_feature_extractor(
        model,
        {"blocks.0": "block", "norm": "norm", "head": "logits"},
        tracer_kwargs={"leaf_modules": [*FX_LEAF_MODULES]},
    )
    for height, width in SIZES:
        images = torch.rand(2, 3, height, width)
        with torch.no_grad():
            found = extracted(images)
            assert torch.equal(found["logits"], model(images))
            assert torch.equal(found["norm"], model.forward_features(images)[:, :1])
            tokens = model.forward_intermediates(images, [0], output_fmt="NLC", intermediates_only=True)[0]
            assert torch.equal(found["block"], tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_script_is_refused_in_one_line(kind: str) -> None:
    with pytest.raises(XCiTError, match=r"torch\.jit\.script can't compile \w+: use torch\.jit\.trace") as error:
        torch.jit.script(build(kind))
    assert "\n" not in str(error.value)
