"""Tests what other libraries do to a model: hooks, LoRA, pruning, parametrisation, quantisation.

Every kind of model and every layer is tested."""

import copy
import io
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_models import IMAGES, KINDS, build, forward, layers
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param)


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_hook_on_each_module_fires_and_changes_nothing(model: nn.Module) -> None:
    with torch.no_grad():
        expected = forward(model)
        fired: set[str] = set()
        for name, module in model.named_modules():
            if not isinstance(module, nn.ModuleList | nn.ModuleDict):
                module.register_forward_hook(lambda module, inputs, output, name=name: fired.update({name}))
        close(forward(model), expected)
    with_parameters = {name for name, module in model.named_modules() if [*module.parameters(recurse=False)]}
    silent = {name for name in with_parameters - fired if not name.endswith(("rpn", "roi_heads"))}
    assert not silent


def _moved(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """Adds a different number to each element, so that no norm or softmax cancels the change."""
    return output + torch.arange(output.numel(), dtype=output.dtype).sin().view_as(output)


def test_a_hook_that_changes_one_layers_output_changes_the_models(model: nn.Module) -> None:
    with torch.no_grad():
        expected = forward(model)
        for name, layer in layers(model).items():
            handle = layer.register_forward_hook(_moved)
            changed = forward(model)
            handle.remove()
            assert not torch.allclose(changed, expected, rtol=1e-6, atol=1e-7), name
        close(forward(model), expected)


def test_hooks_for_all_modules(model: nn.Module) -> None:
    seen: set[int] = set()
    with torch.no_grad():
        expected = forward(model)
        handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.update({id(module)}))
        try:
            close(forward(model), expected)
        finally:
            handle.remove()
    assert {id(layer) for layer in layers(model).values()} <= seen


def test_lora_on_each_layer_learns_and_merges(model: nn.Module) -> None:
    peft = pytest.importorskip("peft")
    names = [name for name, layer in layers(model).items() if getattr(layer, "groups", 1) == 1]
    expected = forward(model).detach()
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=names, r=2, init_lora_weights=False))
    adapted.eval()
    inner = adapted.base_model.model
    out = forward(inner)
    assert not torch.allclose(out, expected, atol=1e-4)
    out.square().sum().backward()
    gradients = {name: value.grad for name, value in adapted.named_parameters() if "lora_" in name}
    assert len(gradients) == 2 * len(names)
    for name, gradient in gradients.items():
        assert gradient is not None and gradient.abs().max() > 0, name
    close(forward(adapted.merge_and_unload()).detach(), out.detach())


class Doubled(nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        return 2 * value


@torch.no_grad()
def test_a_parametrised_layer_is_what_its_weights_say(model: nn.Module) -> None:
    for name in layers(model):
        doubled, parametrised = copy.deepcopy(model), copy.deepcopy(model)
        doubled.get_parameter(f"{name}.weight").mul_(2)
        parametrize.register_parametrization(parametrised.get_submodule(name), "weight", Doubled())
        torch.testing.assert_close(forward(parametrised), forward(doubled), rtol=2e-4, atol=2e-4, msg=name)


def test_pruned_layers_are_trained_for_several_steps(model: nn.Module) -> None:
    pruned: dict[str, Any] = layers(model)
    for layer in pruned.values():
        prune.l1_unstructured(layer, "weight", amount=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = forward(model).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    with torch.no_grad():
        out = forward(model)
        for layer in pruned.values():
            assert layer.weight.eq(0).float().mean() >= 0.4
            prune.remove(layer, "weight")
        close(forward(model), out)


def test_dynamic_quantisation(model: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a deprecation warning of torch
        quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
        with torch.no_grad():
            out, expected = forward(quantised), forward(model)
    assert any("quantized" in type(module).__module__ for module in quantised.modules())
    assert (out - expected).norm() < 0.2 * expected.norm()
    assert not torch.equal(out, expected)


def test_weight_only_int8_of_torchao(model: nn.Module) -> None:
    torchao = pytest.importorskip("torchao.quantization")
    quantised = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torchao.quantize_(quantised, torchao.Int8WeightOnlyConfig())
        with torch.no_grad():
            out, expected = forward(quantised), forward(model)
    assert (out - expected).norm() < 0.1 * expected.norm()
    assert not torch.equal(out, expected)


def test_quantisation_aware_training_of_torchao(model: Any) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    qat = pytest.importorskip("torchao.quantization.qat")
    names = layers(model, nn.Linear)
    base = quantization.Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int8, weight_granularity=quantization.PerAxis(0)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization.quantize_(model, qat.QATConfig(base, step="prepare"))
        quantised: set[str] = set()
        for name in names:
            fake: Any = model.get_submodule(name).weight_fake_quantizer
            fake.register_forward_hook(lambda *_, name=name: quantised.update({name}))
        forward(model).square().mean().backward()
        assert quantised == set(names)
        for name in names:
            assert model.get_submodule(name).weight.grad.abs().max() > 0, name
        torch.optim.SGD(model.parameters(), lr=1e-4).step()
        with torch.no_grad():
            prepared = forward(model)
            quantization.quantize_(model, qat.QATConfig(base, step="convert"))
            close(forward(model), prepared)
    assert all(type(model.get_submodule(name).weight) is not nn.Parameter for name in names)


@torch.no_grad()
def test_copies_are_the_same(model: nn.Module) -> None:
    expected = forward(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for copied in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert torch.equal(forward(copied), expected)


def test_gradients_of_one_image_are_half_of_those_of_two_copies(model: nn.Module) -> None:
    model.double()
    image = IMAGES[:1].double()

    def gradients(images: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        forward(model, images).square().sum().backward()
        return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}

    one, two = gradients(image), gradients(torch.cat([image, image]))
    assert len(one) > 20
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, two[name] / 2, rtol=1e-7, atol=1e-9, msg=name)


# The tensors that a hook receives


@torch.no_grad()
def test_a_branch_shows_its_output_before_layer_scale() -> None:
    model: Any = build("classifier")
    seen: dict[str, Tensor] = {}
    block: Any = model.blocks[0]
    for name in ("xca", "lpi", "mlp"):
        getattr(block, name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: output})
        )
    forward(model)
    first = dict(seen)
    block.scale_mlp.mul_(100)
    forward(model)
    assert torch.equal(seen["mlp"], first["mlp"])


@torch.no_grad()
def test_listeners_to_the_end_see_all_tokens() -> None:
    model: Any = build("classifier")
    shapes = {}
    expected = forward(model)
    for name, module in (("norm", model.norm), ("block", model.cls_blocks[-1])):
        module.register_forward_hook(lambda module, inputs, output, name=name: shapes.update({name: output.shape}))
    close(forward(model), expected)
    assert shapes == {"norm": (2, 1 + 4 * 5, 16), "block": (2, 1 + 4 * 5, 16)}


@torch.no_grad()
def test_what_hooks_on_fused_blocks_keep_does_not_change_under_them() -> None:
    model: Any = build("classifier")
    model = model.fuse()
    kept: list[tuple[Tensor, Tensor]] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: kept.append((output, output.clone())))
    forward(model)
    assert len(kept) == 2
    assert all(torch.equal(output, then) for output, then in kept)


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    yield
    assert not nn.modules.module._global_forward_hooks
