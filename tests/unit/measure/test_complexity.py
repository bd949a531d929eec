"""Compares counts of parameters and FLOPs with 42 published rows, and with a simple count by hooks on the layers."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from xcit.errors import XCiTError
from xcit.measure.complexity import Complexity, complexity, fitted_exponent
from xcit.models import XCiT, XCiTConfig
from xcit.models.layers import XCA, ClassAttention
from xcit.zoo.architectures import PUBLISHED_ARCHITECTURES

ZOO = json.loads((Path(__file__).parents[2] / "data" / "zoo.json").read_text())
SMALL = XCiTConfig(patch_size=4, embed_dim=16, depth=2, num_heads=4, num_classes=3, in_channels=1)


def test_there_are_42_rows_and_14_architectures() -> None:
    assert len(ZOO) == 42
    assert {row["architecture"] for row in ZOO} == set(PUBLISHED_ARCHITECTURES)


@pytest.mark.parametrize(
    ("architecture", "image_size"), sorted({(row["architecture"], row["image_size"]) for row in ZOO})
)
def test_published_counts_without_error(architecture: str, image_size: int) -> None:
    counted = complexity(PUBLISHED_ARCHITECTURES[architecture], image_size)
    rows = [row for row in ZOO if (row["architecture"], row["image_size"]) == (architecture, image_size)]
    assert [(row["params"], row["flops"]) for row in rows] == [(counted.params, counted.flops)] * len(rows)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (13, 30), (4, 4)])
@pytest.mark.parametrize("tokens_norm", [True, False])
@pytest.mark.parametrize("cls_depth", [0, 2])
def test_equal_to_a_count_layer_by_layer(height: int, width: int, tokens_norm: bool, cls_depth: int) -> None:
    config = XCiTConfig(
        patch_size=4,
        embed_dim=16,
        depth=2,
        num_heads=4,
        mlp_ratio=2.5,
        cls_depth=cls_depth,
        tokens_norm=tokens_norm,
        global_pool="cls" if cls_depth else "avg",
    )
    model = XCiT(config).eval()
    flops: Counter[str] = Counter()

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        match module:
            case nn.Linear():
                flops["linear"] += output.numel() * module.in_features
            case nn.Conv2d():
                flops["conv"] += output.numel() * module.weight[0].numel()
            case nn.LayerNorm():
                flops["layer norm"] += 5 * output.numel()
            case nn.BatchNorm2d():
                flops["batch norm"] += 2 * output.numel()
            case XCA():  # products between the linear layers
                num_tokens, dim = inputs[0].shape[1:]
                flops["xca"] += 2 * num_tokens * dim * (dim // config.num_heads)
            case ClassAttention():
                flops["class attention"] += 2 * inputs[0].shape[1] * config.embed_dim

    for name, module in model.named_modules():
        if name != "head":
            module.register_forward_hook(count)
    with torch.no_grad():
        model.forward_features(torch.zeros(1, 3, height, width))

    counted = complexity(model, (height, width))
    assert counted.flops == sum(flops.values())
    assert counted.params == sum(parameter.numel() for parameter in model.parameters())


def test_a_model_and_its_config_count_the_same() -> None:
    model = XCiT(SMALL)
    model.reset_classifier(7)
    assert complexity(model, 28) == complexity(model.config, (28, 28))


def test_image_size_and_tokens_are_reported() -> None:
    counted = complexity(SMALL, (13, 30))
    assert isinstance(counted, Complexity)
    assert counted.image_size == (13, 30)
    assert counted.num_tokens == 4 * 8


def test_torch_flops_are_twice_the_products_of_the_forward_pass() -> None:
    # This model has depth 1 and no class attention and no head, so its products can be counted by hand.
    config = XCiTConfig(
        patch_size=4, embed_dim=16, depth=1, num_heads=2, mlp_ratio=2, cls_depth=0, num_classes=0, global_pool="avg"
    )
    counted = complexity(config, 16)
    stem = 9 * 3 * 8 * 8 * 8 + 9 * 8 * 16 * 4 * 4
    position = 16 * 64 * 16
    block = 16 * (4 * 16 * 16 + 2 * 16 * 8 + 2 * 9 * 16 + 2 * 16 * 32)
    assert counted.torch_flops == 2 * (stem + position + block)


def test_the_head_costs_torch_flops_and_params_but_no_published_flops() -> None:
    with_head, without = complexity(SMALL, 28), complexity(replace(SMALL, num_classes=0), 28)
    assert with_head.flops == without.flops
    assert with_head.torch_flops - without.torch_flops == 2 * 16 * 3
    assert with_head.params - without.params == 16 * 3 + 3


def test_an_image_below_one_patch_is_an_error() -> None:
    with pytest.raises(XCiTError, match="smaller than one patch of 4x4"):
        complexity(SMALL, (3, 8))


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 0.5, 1.0, 2.25])
def test_exponent_of_an_exact_power_law(exponent: float) -> None:
    points = [(x, 7 * x**exponent) for x in (3.0, 10.0, 200.0, 4096.0)]
    assert fitted_exponent(points) == pytest.approx(exponent, abs=1e-12)


def test_exponent_needs_two_places() -> None:
    assert fitted_exponent([]) is None
    assert fitted_exponent([(2, 3), (2, 4)]) is None


def test_cost_is_linear_in_the_tokens() -> None:
    counts = [complexity(PUBLISHED_ARCHITECTURES["small-12-p8"], size) for size in (224, 384, 1024)]
    exponent = fitted_exponent([(counted.num_tokens, counted.flops) for counted in counts])
    assert exponent == pytest.approx(1, abs=0.001)
