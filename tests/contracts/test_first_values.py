"""Tests the values of models that are built on the meta device: after loading, and after `reset_parameters`."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import BACKBONE, CLASSIFIER, FEATURES, forward
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from xcit.errors import XCiTError
from xcit.models import SegmenterConfig, XCiT, XCiTPyramid, build_segmenter
from xcit.models.detection.config import MaskRCNNConfig
from xcit.models.detection.mask_rcnn import MaskRCNN
from xcit.models.dino import DINO, DINOHeadConfig

SHAPE: dict[str, Any] = {"backbone": BACKBONE, "num_classes": 4, "channels": 16}
BUILD: dict[str, Callable[[], Any]] = {
    "classifier": lambda: XCiT(CLASSIFIER),
    "dino": lambda: DINO(FEATURES, DINOHeadConfig(out_dim=8, hidden_dim=16, bottleneck_dim=8)),
    "pyramid": lambda: XCiTPyramid(BACKBONE),
    "upernet": lambda: build_segmenter(SegmenterConfig(kind="upernet", auxiliary_channels=8, **SHAPE)),
    "sem-fpn": lambda: build_segmenter(SegmenterConfig(kind="sem-fpn", **SHAPE)),
    "detector": lambda: MaskRCNN(MaskRCNNConfig(box_features=16, **SHAPE)),
}


def given_memory(kind: str) -> Any:
    """Returns a model that was built on the meta device and then moved to memory full of NaN (integers: -1)."""
    with torch.device("meta"):
        model = BUILD[kind]()
    assert all(value.is_meta for value in model.state_dict().values())
    model.to_empty(device="cpu")
    for value in model.state_dict().values():
        value.fill_(torch.nan if value.is_floating_point() else -1)
    return model


def walk(model: Any) -> None:
    """Sets initial values by `reset_parameters` of each module, as FSDP2's guide and torchtitan do."""
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


def check_values(found: dict[str, Tensor], expected: dict[str, Tensor], same_spread: bool) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        own = found[name]
        if value.unique().numel() == 1 and (same_spread or not name.endswith("bias")):
            assert torch.equal(own, value), name
        else:
            assert own.isfinite().all(), name
            if same_spread and value.numel() >= 64:
                assert 0.6 < own.std() / value.std() < 1.6, name
                assert own.mean().abs() < 0.5 * value.std(), name


@pytest.mark.parametrize("kind", BUILD)
def test_reset_parameters_gives_what_construction_gives(kind: str) -> None:
    torch.manual_seed(0)
    model = given_memory(kind)
    model.reset_parameters()
    expected = BUILD[kind]()
    check_values(model.state_dict(), expected.state_dict(), same_spread=True)
    flags = {name: value.requires_grad for name, value in expected.named_parameters()}
    assert {name: value.requires_grad for name, value in model.named_parameters()} == flags
    if kind == "dino":
        teacher = model.teacher.state_dict()
        assert all(torch.equal(value, teacher[name]) for name, value in model.student.state_dict().items())


@pytest.mark.parametrize("kind", BUILD)
def test_a_walk_over_all_modules_leaves_nothing_unset(kind: str) -> None:
    torch.manual_seed(0)
    model = given_memory(kind)
    walk(model)
    check_values(model.state_dict(), BUILD[kind]().state_dict(), same_spread=False)
    if kind == "classifier":
        assert 0 < model.cls_token.std() < 0.04


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("kind", BUILD)
def test_loading_sets_all(kind: str, assign: bool) -> None:
    torch.manual_seed(0)
    original = BUILD[kind]().eval()
    if assign:
        with torch.device("meta"):
            model = BUILD[kind]()
    else:
        model = given_memory(kind)
    model.load_state_dict(copy.deepcopy(original.state_dict()), strict=True, assign=assign)
    model.eval()
    assert not any(value.is_meta for value in [*model.parameters(), *model.buffers()])
    flags = [(name, value.requires_grad) for name, value in original.named_parameters()]
    assert [(name, value.requires_grad) for name, value in model.named_parameters()] == flags
    with torch.no_grad():
        if kind == "dino":
            model, original = model.student, original.student
        if kind == "pyramid":
            images = torch.rand(1, 3, 32, 40)
            assert all(map(torch.equal, model(images), original(images)))
        else:
            assert torch.equal(forward(model), forward(original))


@pytest.mark.parametrize("kind", BUILD)
def test_shapes_by_fake_tensors(kind: str) -> None:
    with torch.no_grad(), FakeTensorMode():
        model = BUILD[kind]().eval()
        images = torch.rand(2, 3, 32, 40)
        if kind == "dino":
            assert model.student([images])[1].shape == (2, 8)
        elif kind == "detector":
            assert model._maps(images)[0].shape[-2:] == (8, 10)
        elif kind == "pyramid":
            assert [level.shape[-1] for level in model(images)] == [10, 5, 2, 1]
        else:
            assert model(images).shape[:2] == (2, 5 if kind == "classifier" else 4)


def test_a_fused_model_has_no_first_values() -> None:
    with pytest.raises(XCiTError, match="a fused model can't be reset"):
        XCiT(CLASSIFIER).fuse().reset_parameters()
