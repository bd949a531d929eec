"""Tests explainers and counters of other libraries with our models: captum, Grad-CAM, Opacus, FLOP counters."""

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import timm
import torch
from small_models import KINDS, build
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from xcit.models import XCiT
from xcit.models.detection.mask_rcnn import MaskRCNN
from xcit.zoo import ARCHITECTURES

IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
GRID = (8, 12)


@pytest.fixture(autouse=True)
def _clients_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Scores(nn.Module):
    """Computes two numbers per image that depend on all outputs of a model: the form of output that explainers need."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        model: Any = self.model
        if isinstance(model, XCiT):
            parts = [model(images)]
        elif isinstance(model, MaskRCNN):
            logits, steps = model.rpn(model._maps(images))
            parts = [*logits, *steps]
        elif hasattr(model, "decode"):
            parts = [part for part in model(images, with_auxiliary=True) if part is not None]
        else:
            parts = [model([images])[1]]
        row = torch.cat([part.flatten(1) for part in parts], dim=1)
        return torch.stack([row.mean(dim=1), row.sin().mean(dim=1)], dim=1)


BRANCHES = (".xca", ".xca.qkv", ".xca.proj", ".lpi", ".lpi.conv2", ".mlp", ".mlp.fc2")


def listened(model: nn.Module) -> list[str]:
    """Returns the names of blocks, branches and norms, with the prefix of the backbone in the model."""
    found = []
    for name, _ in model.named_modules():
        block = name.rpartition("blocks.")[2]
        if name.endswith((*BRANCHES, "norm_xca", "norm_mlp", ".attn", ".stem")) or block.isdigit():
            found.append(name)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_captum_sees_each_layers_numbers_and_gradients(kind: str) -> None:
    attr = pytest.importorskip("captum.attr")
    model = Scores(build(kind))
    names = listened(model)
    assert len(names) >= 20
    for name in names:
        layer = model.get_submodule(name)
        kept: list[Tensor] = []
        handle = layer.register_forward_hook(lambda module, inputs, output, kept=kept: kept.append(output))
        score = model(IMAGES)[:, 1].sum()
        handle.remove()
        (gradient,) = torch.autograd.grad(score, kept[0])
        assert gradient.abs().max() > 0, name
        activation = attr.LayerActivation(model, layer).attribute(IMAGES)
        torch.testing.assert_close(activation, kept[0], rtol=1e-4, atol=1e-5, msg=name)
        product = attr.LayerGradientXActivation(model, layer).attribute(IMAGES, target=1)
        torch.testing.assert_close(product, kept[0] * gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_captums_attributions_of_a_block_add_up_to_the_models_change() -> None:
    attr = pytest.importorskip("captum.attr")
    model: Any = build("classifier")
    with torch.no_grad():
        change = (model(IMAGES) - model(torch.zeros_like(IMAGES)))[:, 1]
    for layer in (model.blocks[0], model.blocks[1], model.cls_blocks[0], model.cls_blocks[1], model.norm):
        found = attr.LayerIntegratedGradients(model, layer).attribute(IMAGES, target=1, n_steps=100)
        torch.testing.assert_close(found.flatten(1).sum(dim=1), change, rtol=0.02, atol=2e-3)


def test_captum_leaves_out_parts_of_the_image() -> None:
    attr = pytest.importorskip("captum.attr")
    model = build("classifier")
    patches = torch.arange(4).repeat_interleave(16 * 96).view(1, 1, 64, 96)  # four horizontal stripes
    with torch.no_grad():
        found = attr.FeatureAblation(model).attribute(IMAGES, target=1, feature_mask=patches)
        changed = torch.where(patches == 2, 0, IMAGES)
        expected = (model(IMAGES) - model(changed))[:, 1]
    torch.testing.assert_close(found[:, 0, 40, 0], expected, rtol=1e-4, atol=1e-5)


def as_map(tokens: Tensor) -> Tensor:
    """Converts tokens (B, N, D) or (B, 1+N, D) to (B, D, H, W)."""
    return tokens[:, -GRID[0] * GRID[1] :].transpose(1, 2).unflatten(2, GRID)


@pytest.mark.parametrize("name", ["blocks.1.norm_xca", "blocks.1.norm_mlp", "blocks.1", "blocks.0.lpi", "cls_blocks.0"])
def test_grad_cam_is_the_published_formula(name: str) -> None:
    cams = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    model = build("classifier")
    layer = model.get_submodule(name)
    with cams.GradCAM(model=model, target_layers=[layer], reshape_transform=as_map) as cam:
        found = cam(input_tensor=IMAGES, targets=[targets.ClassifierOutputTarget(1)] * 2)
    kept: list[Tensor] = []
    layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    (gradient,) = torch.autograd.grad(model(IMAGES)[:, 1].sum(), kept[0])
    weights = as_map(gradient).mean(dim=(2, 3), keepdim=True)
    expected = (weights * as_map(kept[0])).sum(dim=1).relu().detach()
    expected = nn.functional.interpolate(expected[:, None], IMAGES.shape[2:], mode="bilinear")[:, 0]
    assert found.shape == (2, 64, 96) and found.max() > 0.5
    for one, other in zip(found, expected.numpy(), strict=True):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.98


def gradients_one_by_one(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    found: dict[str, list[Tensor]] = {name: [] for name, _ in model.named_parameters()}
    for image in images:
        model.zero_grad()
        model(image[None]).square().mean().backward()
        for name, value in model.named_parameters():
            assert value.grad is not None
            found[name].append(value.grad.clone())
    return {name: torch.stack(values) for name, values in found.items()}


@pytest.fixture
def private() -> nn.Module:
    """Returns a classifier in which Opacus has replaced the batch norms; skips the test if Opacus is not installed."""
    validators = pytest.importorskip("opacus.validators")
    model = validators.ModuleValidator.fix(build("classifier").train())
    assert not validators.ModuleValidator.validate(model, strict=False)
    return model


@pytest.mark.parametrize("mode", ["hooks", "functorch"])
def test_opacus_gradients_are_those_of_single_images(private: Any, mode: str) -> None:
    utils = pytest.importorskip("opacus.grad_sample.utils")
    expected = gradients_one_by_one(copy.deepcopy(private), IMAGES)
    wrapped = utils.wrap_model(private, grad_sample_mode=mode, loss_reduction="sum")
    wrapped(IMAGES).square().mean(dim=1).sum().backward()
    for name, value in private.named_parameters():
        torch.testing.assert_close(value.grad_sample, expected[name], rtol=1e-5, atol=1e-5, msg=name)


def test_opacus_trains(private: nn.Module) -> None:
    opacus = pytest.importorskip("opacus")
    data = torch.utils.data.TensorDataset(torch.rand(8, 3, 32, 32), torch.arange(8) % 5)
    before = copy.deepcopy(private.state_dict())
    model, optimizer, loader = opacus.PrivacyEngine().make_private(
        module=private,
        optimizer=torch.optim.SGD(private.parameters(), lr=0.1),
        data_loader=torch.utils.data.DataLoader(data, batch_size=8),
        noise_multiplier=0.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    for images, labels in loader:
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    for name, value in private.named_parameters():
        if not name.endswith("k.bias"):  # its gradient is 0, because the softmax ignores the key bias
            assert not torch.equal(value, before[name]), name


@pytest.mark.parametrize("kind", ["classifier", "sem-fpn"])
def test_gradients_of_each_image_by_torch_func(kind: str) -> None:
    model = build(kind)
    for module in [*model.modules()]:  # vmap's own derivative of a batch norm is wrong in torch 2.15
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.GroupNorm(2, child.num_features))
    values = {name: value.detach() for name, value in model.named_parameters()}

    def loss(values: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(model, values, (image[None],)).square().mean()

    found = vmap(grad(loss), in_dims=(None, 0))(values, IMAGES)
    for name, expected in gradients_one_by_one(model, IMAGES).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-4, msg=name)


# Counters


class Counted(TorchDispatchMode):
    """Returns the number of multiply-accumulates of all matrix products, counted by a dispatch mode, without hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function: Any, types: Any, inputs: Any = (), options: Any = None) -> Any:
        out = function(*inputs, **(options or {}))
        if function in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            self.total += out.numel() * inputs[0].shape[-1]
        elif function in (torch.ops.aten.addmm.default, torch.ops.aten.baddbmm.default):
            self.total += out.numel() * inputs[1].shape[-1]
        return out


@torch.no_grad()
def test_counters_count_what_they_count_of_timms_model() -> None:
    ours = XCiT(ARCHITECTURES["nano-12-p16"]).eval()
    theirs = timm.create_model("xcit_nano_12_p16_224").eval()
    images = torch.rand(1, 3, 224, 224)
    totals, products = [], []
    for model in (ours, theirs):
        with FlopCounterMode(display=False) as flops:
            model(images)
        with Counted() as counted:
            model(images)
        totals.append(flops.get_total_flops())
        products.append(counted.total)
    assert totals[0] == totals[1]
    assert products[0] == pytest.approx(products[1], rel=0.01)
