"""Tests the shapes of the public outputs of every kind of model, plain and fused, for images of any size."""

from typing import Any

import pytest
import small_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xcit.models import XCiT, XCiTPyramid

QUICK = settings(max_examples=12, deadline=None, derandomize=True)

B, D, K = 2, 16, 4
sizes = st.tuples(st.integers(8, 70), st.integers(8, 70))


@pytest.fixture(scope="module")
def models() -> dict[tuple[str, bool], Any]:
    """Returns each kind of model, unfused and fused."""
    kinds = [kind for kind in small_models.KINDS if kind != "dino"]
    plain: dict[str, Any] = {kind: small_models.build(kind) for kind in kinds}
    plain["backbone"] = XCiT(small_models.BACKBONE).eval()
    found = {(kind, False): model for kind, model in plain.items()}
    return found | {(kind, True): model.fuse() for kind, model in plain.items()}


def images_of(size: tuple[int, int], batch: int = B) -> Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(size[0] * 100 + size[1]))


def cells(length: int, stride: int) -> int:
    return -(-length // stride)


def check(tensor: Tensor, *shape: int) -> None:
    assert tuple(tensor.shape) == shape
    assert tensor.dtype == torch.float32 and tensor.isfinite().all()


@pytest.mark.parametrize("fused", [False, True])
@torch.no_grad()
@QUICK
@given(size=sizes)
def test_a_classifier(models: dict[tuple[str, bool], Any], fused: bool, size: tuple[int, int]) -> None:
    model, images = models["classifier", fused], images_of(size)
    height, width = (cells(length, 8) for length in size)
    depth, num_tokens = model.config.depth, height * width
    check(model(images), B, 5)
    tokens = model.forward_features(images)
    check(tokens, B, 1 + num_tokens, D)
    check(model.forward_head(tokens), B, 5)
    check(model.forward_head(tokens, pre_logits=True), B, D)
    last, maps = model.forward_intermediates(images)
    check(last, B, 1 + num_tokens, D)
    assert len(maps) == depth
    for one in maps:
        check(one, B, D, height, width)
    (flat,) = model.forward_intermediates(images, 1, output_fmt="NLC", intermediates_only=True)
    check(flat, B, num_tokens, D)
    shapes = {"cls_token": (B, D), "avg_featmap": (B, D), "featmap": (B, D, height, width)}
    for out_type, shape in (*shapes.items(), ("raw", (B, 1 + num_tokens, D))):
        (feature,) = model.extract_feat(images, out_type=out_type)
        check(feature, *shape)
    check(model.extract_feat(images, out_type="raw", out_indices=0)[0], B, num_tokens, D)
    check(model.extract_feat(images, "pre_logits"), B, D)


@pytest.mark.parametrize("fused", [False, True])
@torch.no_grad()
@QUICK
@given(size=sizes)
def test_a_backbone(models: dict[tuple[str, bool], Any], fused: bool, size: tuple[int, int]) -> None:
    model, images = models["backbone", fused], images_of(size)
    num_tokens = cells(size[0], 4) * cells(size[1], 4)
    check(model(images), B, num_tokens, D)
    check(model.forward_features(images), B, num_tokens, D)


@torch.no_grad()
@QUICK
@given(size=sizes)
def test_a_pyramid(size: tuple[int, int]) -> None:
    model, images = XCiTPyramid(small_models.BACKBONE).eval(), images_of(size)
    height, width = (cells(length, 4) for length in size)
    for one, factor in zip(model(images), (1, 2, 4, 8), strict=True):
        check(one, B, D, max(1, height // factor), max(1, width // factor))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", ["upernet", "sem-fpn"])
@torch.no_grad()
@QUICK
@given(size=sizes)
def test_a_segmenter(models: dict[tuple[str, bool], Any], kind: str, fused: bool, size: tuple[int, int]) -> None:
    model, images = models[kind, fused], images_of(size)
    check(model(images), B, K, *size)
    output = model(images, with_auxiliary=True)
    check(output.logits, B, K, *size)
    assert (output.auxiliary is None) == (kind == "sem-fpn")
    if output.auxiliary is not None:
        check(output.auxiliary, B, K, *size)


@pytest.mark.parametrize("fused", [False, True])
@QUICK
@given(size=sizes)
def test_a_detector(models: dict[tuple[str, bool], Any], fused: bool, size: tuple[int, int]) -> None:
    model = models["detector", fused]
    (image,) = images_of(size, batch=1)
    found = model.detect(image, min_score=0.0)
    count = len(found.labels)
    assert count <= 100 and found.labels.dtype == torch.int64
    check(found.boxes, count, 4)
    check(found.scores, count)
    side = found.masks.shape[-1]
    check(found.masks, count, side, side)
    assert ((found.labels >= 1) & (found.labels <= K)).all()
    assert (found.scores.diff() <= 0).all()
    # Boxes are inside the original image. They are clipped in the scaled image, so a rounding error is allowed.
    assert (found.boxes >= 0).all() and (found.boxes <= torch.tensor([size[1], size[0]] * 2) * (1 + 1e-6)).all()


@torch.no_grad()
@QUICK
@given(size=sizes, num_local=st.integers(0, 3))
def test_dinos_branches(size: tuple[int, int], num_local: int) -> None:
    branch = small_models.build("dino")
    crops = [images_of(size), images_of(size), *[images_of((8, 12))] * num_local]
    features, logits = branch(crops)
    check(features, (2 + num_local) * B, D)
    check(logits, (2 + num_local) * B, 8)
