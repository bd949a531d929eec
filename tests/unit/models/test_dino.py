"""Tests head, student and teacher: their initial weights, their names, and their outputs for a list of crops."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xcit.errors import XCiTError
from xcit.models import XCiTConfig
from xcit.models.dino import DINO, DINOHead, DINOHeadConfig, WeightNormLinear

CONFIG = XCiTConfig(patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=0, in_channels=1, drop_path_rate=0.3)
HEAD = DINOHeadConfig(out_dim=24, hidden_dim=20, bottleneck_dim=12)


@pytest.fixture
def model() -> DINO:
    torch.manual_seed(0)
    return DINO(CONFIG, HEAD)


def crops(*sizes: int, batch: int = 3) -> list[Tensor]:
    return [torch.randn(batch, 1, size, size) for size in sizes]


def test_the_head_begins_as_published() -> None:
    torch.manual_seed(0)
    head = DINOHead(64, DINOHeadConfig(out_dim=512))
    assert [(layer.in_features, layer.out_features) for layer in head.mlp if isinstance(layer, nn.Linear)] == [
        (64, 2048),
        (2048, 2048),
        (2048, 256),
    ]
    for layer in (head.mlp[0], head.mlp[2], head.mlp[4]):
        assert isinstance(layer, nn.Linear)
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert not layer.bias.any()
    last = head.last_layer
    assert torch.equal(last.weight_g, torch.ones(512, 1))
    assert not last.weight_g.requires_grad
    assert last.weight_v.requires_grad
    # As in a linear layer: uniform in -1/16..1/16, where 16 is sqrt(256).
    assert last.weight_v.abs().max().item() == pytest.approx(1 / 16, rel=0.01)
    assert last.weight_v.std().item() == pytest.approx(1 / 16 / 3**0.5, rel=0.02)


def test_lengths_of_the_last_layer_can_be_learned() -> None:
    assert DINOHead(8, replace(HEAD, norm_last_layer=False)).last_layer.weight_g.requires_grad


def test_names_are_the_published_ones() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in DINOHead(16, HEAD).state_dict().items()}
    assert shapes == {
        "mlp.0.weight": (20, 16),
        "mlp.0.bias": (20,),
        "mlp.2.weight": (20, 20),
        "mlp.2.bias": (20,),
        "mlp.4.weight": (12, 20),
        "mlp.4.bias": (12,),
        "last_layer.weight_g": (24, 1),
        "last_layer.weight_v": (24, 12),
    }


def test_the_last_layer_is_torch_s_weight_normalisation() -> None:
    ours = WeightNormLinear(6, 5)
    theirs = nn.utils.parametrizations.weight_norm(nn.Linear(6, 5, bias=False))
    with torch.no_grad():
        ours.weight_g.copy_(torch.rand(5, 1) + 0.5)
    weights = theirs.parametrizations["weight"]
    weights.load_state_dict({"original0": ours.weight_g, "original1": ours.weight_v})
    features = torch.randn(4, 6)
    out, expected = ours(features), theirs(features)
    assert torch.allclose(out, expected, atol=1e-6)
    out.square().sum().backward()
    expected.square().sum().backward()
    for own, other in ((ours.weight_g.grad, weights.original0.grad), (ours.weight_v.grad, weights.original1.grad)):
        assert own is not None
        assert torch.allclose(own, other, atol=1e-5)


def test_logits_are_cosines_in_float32() -> None:
    torch.manual_seed(0)
    head = DINOHead(16, HEAD)
    features = 100 * torch.randn(50, 16)
    hidden = head.mlp(features)
    cosines = nn.functional.cosine_similarity(hidden[:, None], head.last_layer.weight_v[None], dim=-1)
    assert torch.allclose(head(features), cosines, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head.mlp(features).dtype == torch.bfloat16
        assert head(features).dtype == torch.float32


def test_student_and_teacher_begin_alike_and_the_teacher_is_still(model: DINO) -> None:
    student, teacher = model.student.state_dict(), model.teacher.state_dict()
    assert student.keys() == teacher.keys()
    assert all(torch.equal(tensor, teacher[name]) for name, tensor in student.items())
    assert not any(parameter.requires_grad for parameter in model.teacher.parameters())
    assert (model.student.backbone.config.drop_path_rate, model.teacher.backbone.config.drop_path_rate) == (0.3, 0.0)
    assert torch.equal(model.center, torch.zeros(1, 24))
    assert {name.split(".")[0] for name in model.state_dict()} == {"student", "teacher", "center"}


def test_crops_of_one_size_are_computed_together(model: DINO) -> None:
    sizes: dict[str, list[tuple[int, ...]]] = {"student": [], "teacher": []}
    for name, seen in sizes.items():
        backbone: Any = model.get_submodule(name).backbone
        backbone.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(tuple(inputs[0].shape)))
    output = model.train()(crops(12, 12, 8, 8, 8))
    assert sizes == {"student": [(6, 1, 12, 12), (9, 1, 8, 8)], "teacher": [(6, 1, 12, 12)]}
    assert output.student_logits.shape == (15, 24)
    assert output.teacher_logits.shape == (6, 24)
    assert output.teacher_features.shape == (6, 16)
    assert output.student_logits.requires_grad
    assert not output.teacher_logits.requires_grad


def test_logits_are_in_the_order_of_the_crops(model: DINO) -> None:
    model.eval()  # a batch norm would mix the images of a group
    images = crops(12, 12, 8)
    with torch.no_grad():
        output = model(images)
        alone = [model.student.head(model.student.backbone(crop)) for crop in images]
    assert torch.allclose(output.student_logits, torch.cat(alone), atol=1e-5)
    assert torch.allclose(output.teacher_logits, torch.cat(alone[:2]), atol=1e-5)


def test_batch_norms_of_student_and_teacher_see_a_group_of_crops_at_once(model: DINO) -> None:
    images = crops(12, 12, 8)
    model.train()(images)
    stem: Any = model.teacher.backbone.stem[0]
    norm, conv = stem.norm, stem.conv
    seen = conv(torch.cat(images[:2]))
    assert torch.allclose(norm.running_mean, 0.1 * seen.mean(dim=(0, 2, 3)), atol=1e-5)


def test_activations_of_the_student_are_recomputed(model: DINO) -> None:
    model.set_grad_checkpointing(True)
    assert model.student.backbone.grad_checkpointing
    assert not model.teacher.backbone.grad_checkpointing


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 10}, "DINO needs a backbone without a classifier: set model.num_classes to 0, not 10"),
        ({"global_pool": "none"}, "DINO needs one feature per image: set model.global_pool to cls or avg"),
    ],
)
def test_other_backbones_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(XCiTError) as caught:
        DINO(replace(CONFIG, **changes), HEAD)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_an_empty_layer_is_refused() -> None:
    with pytest.raises(XCiTError, match="DINOHeadConfig: out_dim is 0, but must be at least 1"):
        DINOHeadConfig(out_dim=0)
