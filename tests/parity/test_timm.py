"""Compares our model with timm's XCiT, an independent implementation, with the same random weights.

All values of a checkpoint are random, also batch-norm statistics, residual scales, temperatures and biases. So a wrong
or unused value changes the outputs. This file has its own map of names, independent of the map in `xcit.weights`. So
each map checks the other.
"""

import copy
import re
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from xcit.models import XCiT
from xcit.zoo.architectures import PUBLISHED_ARCHITECTURES

SIZES = ((224, 224), (160, 256), (200, 233))
SMALL_SIZES = ((112, 112), (80, 128), (104, 117))
"""Sizes for the largest models: they have the same layers as small models, and take half a minute at full size."""

# timm's name -> our name; the rules are applied one after another.
RENAMES = (
    (r"^patch_embed\.proj\.(\d+)\.0\.", lambda m: f"stem.{int(m[1]) // 2}.conv."),
    (r"^patch_embed\.proj\.(\d+)\.1\.", lambda m: f"stem.{int(m[1]) // 2}.norm."),
    (r"^pos_embed\.token_projection\.", "position.projection."),
    (r"^(blocks\.\d+)\.norm1\.", r"\1.norm_xca."),
    (r"^(blocks\.\d+)\.attn\.", r"\1.xca."),
    (r"^(blocks\.\d+)\.gamma1$", r"\1.scale_xca"),
    (r"^(blocks\.\d+)\.norm3\.", r"\1.norm_lpi."),
    (r"^(blocks\.\d+)\.local_mp\.bn\.", r"\1.lpi.norm."),
    (r"^(blocks\.\d+)\.local_mp\.", r"\1.lpi."),
    (r"^(blocks\.\d+)\.gamma3$", r"\1.scale_lpi"),
    (r"^cls_attn_blocks\.(\d+)\.norm1\.", r"cls_blocks.\1.norm_attn."),
    (r"^cls_attn_blocks\.(\d+)\.gamma1$", r"cls_blocks.\1.scale_attn"),
    (r"^cls_attn_blocks\.", "cls_blocks."),
    (r"^((?:cls_)?blocks\.\d+)\.norm2\.", r"\1.norm_mlp."),
    (r"^((?:cls_)?blocks\.\d+)\.gamma2$", r"\1.scale_mlp"),
)


def our_name(name: str) -> str:
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def random_state(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Returns random values for all parameters and buffers of timm's model; their scales keep activations near 1."""
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, shape: torch.Size) -> Tensor:
        def uniform(low: float, high: float) -> Tensor:
            return torch.empty(shape).uniform_(low, high, generator=generator)

        if name.endswith("num_batches_tracked"):
            return torch.tensor(5)
        if name.endswith(("running_var", "temperature")):
            return uniform(0.5, 2.0)
        if "gamma" in name:
            return uniform(0.1, 1.0)
        if len(shape) == 1 and name.endswith("weight"):
            return uniform(0.5, 1.5)
        normal = torch.empty(shape).normal_(generator=generator)
        if len(shape) == 1 or name == "cls_token":  # biases, running means
            return normal.mul_(0.3)
        return normal.mul_(shape[1:].numel() ** -0.5)

    return {name: draw(name, value.shape) for name, value in model.state_dict().items()}


def build_pair(architecture: str) -> tuple[XCiT, Any]:
    """Returns our model and timm's model in evaluation mode; they share the storage of their random weights."""
    config = PUBLISHED_ARCHITECTURES[architecture]
    with torch.device("meta"):  # saves the time of setting first values
        theirs = timm.create_model(f"xcit_{architecture.replace('-', '_')}_224", pretrained=False)
        ours = XCiT(config)
    state = random_state(theirs)
    theirs.load_state_dict(state, assign=True)
    ours.load_state_dict({our_name(name): value for name, value in state.items()}, assign=True)
    return ours.eval(), theirs.eval()


def images_of(batch: int, height: int, width: int) -> Tensor:
    """Returns images with smooth colours and some noise.

    With pure noise, the class tokens of different images would be almost equal.
    """
    generator = torch.Generator().manual_seed(1)
    colours = torch.randn(batch, 3, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(colours, size=(height, width), mode="bilinear")
    return 2 * smooth + 0.3 * torch.randn(batch, 3, height, width, generator=generator)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).norm() / theirs.norm())


def block_outputs(model: Any, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Returns the logits, and the output tokens of each block."""
    outputs: list[Tensor] = []
    class_attention: Any = model.cls_blocks if isinstance(model, XCiT) else model.cls_attn_blocks
    hooks = [
        block.register_forward_hook(lambda block, inputs, output: outputs.append(output))
        for block in [*model.blocks, *class_attention]
    ]
    with torch.inference_mode():
        model.forward_features(images)
        for hook in hooks:
            hook.remove()
        return model(images), outputs


@pytest.mark.parametrize("architecture", PUBLISHED_ARCHITECTURES)
def test_logits_and_the_tokens_of_every_block(architecture: str) -> None:
    ours, theirs = build_pair(architecture)
    batch = 2 if ours.config.embed_dim <= 192 else 1
    is_large = ours.config.embed_dim * ours.config.depth > 384 * 12
    for height, width in SMALL_SIZES if is_large else SIZES:
        images = images_of(batch, height, width)
        our_logits, our_tokens = block_outputs(ours, images)
        their_logits, their_tokens = block_outputs(theirs, images)
        assert len(our_tokens) == ours.config.depth + 2
        errors = [relative_error(a, b) for a, b in zip(our_tokens, their_tokens, strict=True)]
        errors.append(relative_error(our_logits, their_logits))
        assert max(errors) <= 1e-5, f"{height}x{width}: {errors}"
        # The comparison is meaningful only if the logits are neither tiny nor huge.
        assert 0.1 < their_logits.std() < 100
        if batch == 2:
            assert relative_error(their_logits[0], their_logits[1]) > 0.02


def gradients(model: Any, images: Tensor) -> dict[str, Tensor]:
    """Returns gradients, by our parameter names, of a loss that depends on every token and every logit.

    The gradient of the images has the name "images".
    """
    generator = torch.Generator().manual_seed(2)
    images = images.clone().requires_grad_()
    tokens = model.forward_features(images)
    logits = model.forward_head(tokens)
    loss = (logits * torch.randn(logits.shape, generator=generator)).mean()
    loss = loss + (tokens * torch.randn(tokens.shape, generator=generator)).mean()
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    found["images"] = images.grad
    assert not [name for name, gradient in found.items() if gradient is None]
    return found if isinstance(model, XCiT) else {our_name(name): gradient for name, gradient in found.items()}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("architecture", ["nano-12-p16", "tiny-12-p8"])
def test_gradients_of_all_parameters_and_of_the_images(architecture: str, training: bool) -> None:
    ours, theirs = build_pair(architecture)
    ours = copy.deepcopy(ours)  # the weights are shared, and training changes batch-norm statistics in place
    images = images_of(2, 112, 136)
    our_gradients = gradients(ours.train(training), images)
    their_gradients = gradients(theirs.train(training), images)
    assert our_gradients.keys() == their_gradients.keys()
    errors = {}
    for name, theirs_gradient in their_gradients.items():
        if name.endswith("attn.k.bias"):
            # The key bias shifts all scores by the same number, which the softmax ignores. So the true gradient is 0,
            # and both gradients are only rounding errors.
            scale = 1e-5 * their_gradients[name.replace("bias", "weight")].norm()
            assert our_gradients[name].norm() < scale
            assert theirs_gradient.norm() < scale
        else:
            errors[name] = relative_error(our_gradients[name], theirs_gradient)
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= 1e-4, f"{worst}: {errors[worst]}"

    statistics = {our_name(name): value for name, value in theirs.named_buffers()}
    assert statistics.keys() == dict(ours.named_buffers()).keys()
    for name, value in ours.named_buffers():
        assert relative_error(value.double(), statistics[name].double()) <= 1e-6, name
        if name.endswith("num_batches_tracked"):
            assert value == 5 + training


@pytest.fixture(scope="module")
def pair() -> tuple[XCiT, Any]:
    return build_pair("nano-12-p16")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return images_of(2, 100, 133)


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert relative_error(ours, theirs) <= 1e-5


@torch.no_grad()
def test_forward_features_and_forward_head(pair: tuple[XCiT, Any], images: Tensor) -> None:
    ours, theirs = pair
    tokens = theirs.forward_features(images)
    assert_same(ours.forward_features(images), tokens)
    for pre_logits in (False, True):
        assert_same(ours.forward_head(tokens, pre_logits), theirs.forward_head(tokens, pre_logits=pre_logits))


@pytest.mark.parametrize(("norm", "output_fmt"), [(False, "NCHW"), (True, "NCHW"), (False, "NLC"), (True, "NLC")])
@pytest.mark.parametrize("indices", [None, 3, [1, 4], [-1, 0, -5], (7, 7)], ids=str)
@torch.no_grad()
def test_forward_intermediates(
    pair: tuple[XCiT, Any], indices: int | list[int] | None, norm: bool, output_fmt: Any
) -> None:
    ours, theirs = pair
    images = images_of(1, 40, 57)
    for stop_early in (False, True):
        our_tokens, our_maps = ours.forward_intermediates(images, indices, norm, stop_early, output_fmt)
        their_tokens, their_maps = theirs.forward_intermediates(images, indices, norm, stop_early, output_fmt)
        assert_same(our_tokens, their_tokens)
        only: Any = ours.forward_intermediates(images, indices, norm, stop_early, output_fmt, intermediates_only=True)
        for a, b, c in zip(our_maps, their_maps, only, strict=True):
            assert_same(a, b)
            assert torch.equal(a, c)


@pytest.mark.parametrize("pool", ["avg", "token", ""])
@pytest.mark.parametrize("num_classes", [7, 0])
@torch.no_grad()
def test_reset_classifier(images: Tensor, pool: str, num_classes: int) -> None:
    ours, theirs = build_pair("nano-12-p16")
    ours.reset_classifier(num_classes, pool)
    theirs.reset_classifier(num_classes, pool)
    if num_classes:
        ours.head.load_state_dict(theirs.head.state_dict())
    assert ours.num_classes == theirs.num_classes == num_classes
    assert_same(ours(images), theirs(images))
    assert_same(
        ours.forward_head(ours.forward_features(images), pre_logits=True),
        theirs.forward_head(theirs.forward_features(images), pre_logits=True),
    )
