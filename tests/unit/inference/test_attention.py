"""Tests attention maps: they equal the softmax of the formulas, add up to 1 and fit the image."""

import itertools
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from xcit.errors import XCiTError
from xcit.explain import (
    channel_attention,
    channel_attention_each,
    class_attention,
    class_attention_each,
    largest_cells,
)
from xcit.images.preprocess import Preprocessing, normalize
from xcit.inference.reading import Unreadable
from xcit.models import ModelInfo, XCiT, XCiTConfig
from xcit.models.layers import Stem
from xcit.zoo import get_model, save_model

PATCH, HEADS, DIM = 4, 2, 16
CONFIG = XCiTConfig(patch_size=PATCH, embed_dim=DIM, depth=3, num_heads=HEADS, num_classes=5)
SIZES = [(4, 4), (5, 4), (28, 28), (13, 18), (31, 5), (6, 40)]
"""Heights and widths in pixels: one patch, multiples of the patch, and other sizes."""


def new_model(config: XCiTConfig = CONFIG) -> XCiT:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = XCiT(config).eval()
        for parameter in network.parameters():  # so large that the attention is uneven
            parameter.data += 0.4 * torch.randn_like(parameter)
    mean = (0.4,) * config.in_channels
    network.info = ModelInfo(name="small", preprocessing=Preprocessing(image_size=28, mean=mean, std=mean))
    return network


@pytest.fixture(scope="module")
def model() -> XCiT:
    return new_model()


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 100 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def inputs_of(model: XCiT, name: str, image: np.ndarray) -> torch.Tensor:
    """Returns the input tokens of a layer for an image, without the batch dimension."""
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(normalize(Image.fromarray(image), model.info.preprocessing)[None])
    hook.remove()
    return seen[0][0]


def softmax(numbers: list[float]) -> list[float]:
    exponentials = [math.exp(number - max(numbers)) for number in numbers]
    return [exponential / sum(exponentials) for exponential in exponentials]


# --- class attention


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_shares_sum_to_one_on_the_grid_of_the_whole_image(model, height, width, block):
    (maps,) = class_attention(picture(height, width), model, block=block)
    assert maps.heads.shape == (HEADS, math.ceil(height / PATCH), math.ceil(width / PATCH))
    assert maps.heads.dtype == maps.class_token.dtype == np.float32
    assert maps.heads.min() >= 0
    np.testing.assert_allclose(maps.heads.sum(axis=(1, 2)) + maps.class_token, 1, atol=1e-5)
    np.testing.assert_allclose(maps.mean, sum(maps.heads) / HEADS, atol=1e-7)
    np.testing.assert_array_equal(maps.image, picture(height, width))
    assert (maps.block, maps.patch_size) == (block, PATCH)


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize(("height", "width"), [(13, 18), (8, 8)])
def test_equals_a_plain_loop(model, height, width, block):
    image = picture(height, width)
    (maps,) = class_attention(image, model, block=block)
    layer = model.cls_blocks[block].attn
    tokens = inputs_of(model, f"cls_blocks.{block}.attn", image).double()
    queries, keys = (linear.weight.detach().double() @ tokens.T for linear in (layer.q, layer.k))
    queries, keys = queries + layer.q.bias.detach()[:, None], keys + layer.k.bias.detach()[:, None]
    size = DIM // HEADS
    for head in range(HEADS):
        channels = range(head * size, (head + 1) * size)
        scores = [
            sum(float(queries[c, 0] * keys[c, token]) for c in channels) / math.sqrt(size)
            for token in range(len(tokens))
        ]
        expected = softmax(scores)
        assert maps.class_token[head] == pytest.approx(expected[0], abs=1e-5)
        np.testing.assert_allclose(maps.heads[head].ravel(), expected[1:], atol=1e-5)
    assert maps.heads.max() > 2 / len(tokens), "attention must be uneven for the test to tell anything"


def test_it_is_the_attention_that_the_layer_uses(model):
    image = picture(13, 18)
    (maps,) = class_attention(image, model, block=1)
    layer = model.cls_blocks[1].attn
    tokens = inputs_of(model, "cls_blocks.1.attn", image)
    attention = np.concatenate([maps.class_token[:, None], maps.heads.reshape(HEADS, -1)], axis=1)
    with torch.no_grad():
        values = layer.v(tokens).unflatten(1, (HEADS, -1)).transpose(0, 1)
        mixed = layer.proj((torch.from_numpy(attention)[:, None] @ values).flatten()[None])
        torch.testing.assert_close(mixed, layer(tokens[None]), atol=1e-5, rtol=1e-5)


def test_blocks_count_from_the_end_too(model):
    image = picture(12, 12)
    by_block = {block: class_attention(image, model, block=block)[0] for block in (-2, -1, 0, 1)}
    for negative in (-2, -1):
        assert by_block[negative].block == negative + 2
        np.testing.assert_array_equal(by_block[negative].heads, by_block[negative + 2].heads)
    assert not np.allclose(by_block[0].heads, by_block[1].heads)
    np.testing.assert_array_equal(class_attention(image, model)[0].heads, by_block[1].heads)


def test_sources_of_any_kind_give_the_same(model, tmp_path):
    image = picture(13, 18)
    path = tmp_path / "a.png"
    Image.fromarray(image).save(path)
    expected = class_attention(image, model)[0].heads
    sources = [path, str(path), Image.fromarray(image), image / 255, torch.from_numpy(image).permute(2, 0, 1)]
    found = class_attention(sources, model)
    assert [maps.source for maps in found] == [str(path), str(path), "image 2", "image 3", "image 4"]
    for maps in found:
        np.testing.assert_array_equal(maps.heads, expected)


def test_resize_scales_the_short_side(model):
    image = Image.fromarray(picture(13, 18))
    (maps,) = class_attention(image, model, resize=26)
    assert maps.image.shape == (26, 36, 3)
    scaled = image.resize((36, 26), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(maps.image, np.asarray(scaled))
    np.testing.assert_array_equal(maps.heads, class_attention(scaled, model)[0].heads)


def test_a_grey_model_shows_what_it_saw():
    model = new_model(XCiTConfig(patch_size=PATCH, embed_dim=DIM, depth=1, num_heads=HEADS, in_channels=1))
    image = Image.fromarray(picture(9, 11))
    (maps,) = class_attention(image, model)
    np.testing.assert_array_equal(maps.image, np.asarray(image.convert("L").convert("RGB")))
    (again,) = class_attention(maps.image, model)
    np.testing.assert_array_equal(again.heads, maps.heads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(model, dtype):
    exact, rough = (class_attention(picture(13, 18), model, dtype=precision)[0] for precision in (torch.float32, dtype))
    np.testing.assert_allclose(rough.heads.sum(axis=(1, 2)) + rough.class_token, 1, atol=1e-5)
    np.testing.assert_allclose(rough.heads, exact.heads, atol=0.1)


# --- cells and pixels


@pytest.mark.parametrize("patch_size", [4, 8, 16])
def test_cells_look_at_the_pixels_around_multiples_of_the_patch(patch_size):
    """Cell i depends on equally many pixels on both sides of pixel i * patch_size; `to_pixels` relies on this."""
    stem = Stem(1, 32, XCiTConfig(patch_size=patch_size).strides).eval()
    for cell in (1, 2):
        image = torch.rand(1, 1, 4 * patch_size, 4 * patch_size, requires_grad=True)
        stem(image)[0, :, cell, cell].sum().backward()
        seen = image.grad[0, 0].abs().sum(dim=0).nonzero().flatten()
        assert (seen[0] + seen[-1]) / 2 == cell * patch_size
        assert len(seen) == 2 * patch_size - 1


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_each_pixel_takes_the_nearest_cell(model, height, width):
    (maps,) = class_attention(picture(height, width), model)
    rows, columns = maps.mean.shape
    places = np.arange(rows * columns).reshape(rows, columns)
    drawn = maps.to_pixels(places)
    assert drawn.shape == (height, width)
    for y, x in itertools.product(range(height), range(width)):
        row, column = divmod(drawn[y, x], columns)
        assert abs(y - row * PATCH) == min(abs(y - other * PATCH) for other in range(rows))
        assert abs(x - column * PATCH) == min(abs(x - other * PATCH) for other in range(columns))
    assert set(drawn.ravel()) == set(places.ravel()), "every cell is seen"
    assert maps.to_pixels(maps.heads).shape == (HEADS, height, width)


# --- channels


def test_channel_attention_equals_the_softmax_formula(model):
    image = picture(9, 14)
    (maps,) = channel_attention(image, model)
    size = DIM // HEADS
    assert maps.covariance.shape == maps.attention.shape == (3, HEADS, size, size)
    assert maps.temperatures.shape == (3, HEADS)
    np.testing.assert_allclose(maps.attention.sum(axis=-1), 1, atol=1e-5)
    for index, block in enumerate(model.blocks):
        tokens = inputs_of(model, f"blocks.{index}.xca", image).double()
        mixed = tokens @ block.xca.qkv.weight.detach().double().T + block.xca.qkv.bias.detach().double()
        np.testing.assert_array_equal(maps.temperatures[index], block.xca.temperature.detach().flatten().numpy())
        for head, row in itertools.product(range(HEADS), range(size)):
            query = mixed[:, head * size + row]
            cosines = []
            for column in range(size):
                key = mixed[:, DIM + head * size + column]
                cosines.append(float(query @ key / (query.norm() * key.norm())))
            np.testing.assert_allclose(maps.covariance[index, head, row], cosines, atol=1e-5)
            expected = softmax([cosine * float(maps.temperatures[index, head]) for cosine in cosines])
            np.testing.assert_allclose(maps.attention[index, head, row], expected, atol=1e-5)


def test_it_is_the_channel_attention_that_the_layer_uses(model):
    image = picture(9, 14)
    (maps,) = channel_attention(image, model)
    for index, block in enumerate(model.blocks):
        tokens = inputs_of(model, f"blocks.{index}.xca", image)
        with torch.no_grad():
            values = block.xca.qkv(tokens)[:, 2 * DIM :].T.unflatten(0, (HEADS, -1))  # (M, C, N)
            mixed = block.xca.proj((torch.from_numpy(maps.attention[index]) @ values).flatten(0, 1).T)
            torch.testing.assert_close(mixed, block.xca(tokens[None])[0], atol=1e-5, rtol=1e-5)


def test_channel_attention_needs_no_class_token():
    config = XCiTConfig(
        patch_size=PATCH, embed_dim=DIM, depth=2, num_heads=HEADS, cls_depth=0, global_pool="avg", qkv_bias=False
    )
    (maps,) = channel_attention(picture(9, 14), new_model(config))
    assert maps.attention.shape == (2, HEADS, DIM // HEADS, DIM // HEADS)


# --- the largest cells


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 1.0])
def test_largest_cells_hold_the_share_and_none_could_be_spared(share):
    maps = np.random.default_rng(0).random((5, 3, 4)).astype(np.float32) ** 3
    kept = largest_cells(maps, share)
    assert kept.shape == maps.shape
    assert kept.dtype == np.bool_
    for cells, keep in zip(maps.astype(np.float64), kept, strict=True):
        assert cells[keep].sum() >= share * cells.sum() - 1e-12
        assert cells[keep].sum() - cells[keep].min() < share * cells.sum()
        assert not keep.all() or share > 0.9
        assert cells[keep].min() >= max(cells[~keep], default=0), "no cell left out is larger"


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_no_smaller_set_holds_the_share(share):
    """Compares with a search through all subsets of six cells."""
    cells = np.random.default_rng(1).random((2, 3)).astype(np.float32)
    fewest = min(
        len(chosen)
        for count in range(7)
        for chosen in itertools.combinations(cells.ravel().astype(np.float64), count)
        if sum(chosen) >= share * cells.sum(dtype=np.float64)
    )
    assert largest_cells(cells, share).sum() == fewest


def test_largest_cells_of_special_maps():
    even = np.full((2, 2), 0.25, dtype=np.float32)
    assert largest_cells(even, 0.5).tolist() == [[True, True], [False, False]]
    assert largest_cells(np.zeros((2, 2), dtype=np.float32), 0.6).sum() == 0
    single = np.array([[0, 1], [0, 0]], dtype=np.float32)
    assert largest_cells(single, 1.0).tolist() == [[False, True], [False, False]]


@pytest.mark.parametrize("share", [0, -1, 1.1, math.nan])
def test_impossible_shares(share):
    with pytest.raises(XCiTError, match=r"the share of the attention to keep is .*, but must be above 0 and at most 1"):
        largest_cells(np.ones((2, 2), dtype=np.float32), share)


# --- mistakes


def test_model_without_class_attention():
    config = XCiTConfig(patch_size=PATCH, embed_dim=DIM, depth=1, num_heads=HEADS, cls_depth=0, global_pool="avg")
    with pytest.raises(XCiTError, match="small has no class attention: its cls_depth is 0"):
        class_attention(picture(8, 8), new_model(config))


@pytest.mark.parametrize("block", [2, -3])
def test_block_that_is_not_there(model, block):
    with pytest.raises(XCiTError, match=f"no class attention block {block}: small has 2, counted from 0"):
        class_attention(picture(8, 8), model, block=block)


@pytest.mark.parametrize("verb", [class_attention, channel_attention])
def test_resize_to_less_than_a_patch(model, verb):
    with pytest.raises(XCiTError, match="resize is 3, but must be at least one patch of 4 pixels"):
        verb(picture(8, 8), model, resize=3)


@pytest.mark.parametrize("verb", [class_attention, channel_attention])
def test_image_smaller_than_a_patch(model, verb):
    message = "^image 1: 9 x 3 pixels, smaller than one patch of 4 x 4; use resize to make the image larger$"
    small = verb([picture(8, 8), picture(3, 9)], model)[1]
    assert isinstance(small, Unreadable) and re.search(message, small.reason)
    assert verb(picture(3, 9), model, resize=4)


@pytest.mark.parametrize("each", [class_attention_each, channel_attention_each])
def test_unreadable_ones_are_reported_in_their_place(model, each):
    found = list(each(["nowhere.png", picture(8, 8), picture(3, 3), picture(5, 5)], model))
    assert [isinstance(result, Unreadable) for result in found] == [True, False, True, False]
    assert found[0].reason == "nowhere.png: no such file"


@pytest.mark.parametrize("each", [class_attention_each, channel_attention_each])
def test_an_image_too_large_for_the_memory_is_reported(model, each):
    def refuse(module, inputs):
        if inputs[0].shape[-1] > 20:
            raise torch.OutOfMemoryError("out of memory")

    fused = model.fuse()
    fused.embedding.register_forward_pre_hook(refuse)
    found = list(each([picture(8, 8), picture(8, 24), picture(8, 8)], fused))
    assert [isinstance(result, Unreadable) for result in found] == [False, True, False]
    assert found[1].reason == "image 1: not enough memory for 24 x 8 pixels; use resize to make the image smaller"


# --- the model


def num_hooks(model: XCiT) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("verb", [class_attention, channel_attention])
def test_model_is_left_as_it_was(verb):
    own = new_model().train()
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    verb([picture(8, 8), picture(9, 9)], own)
    assert own.training
    assert num_hooks(own) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.state_dict().items())


@pytest.mark.parametrize("each", [class_attention_each, channel_attention_each])
def test_hooks_are_gone_between_images_and_after_an_error(model, each):
    fused = model.fuse()
    results = each([picture(8, 8), picture(9, 9)], fused)
    next(results)
    assert num_hooks(fused) == 0
    list(results)

    def stop(module, inputs):
        raise RuntimeError("stop")

    hook = fused.norm.register_forward_pre_hook(stop)
    with pytest.raises(RuntimeError, match="stop"):
        list(each([picture(8, 8)], fused))
    hook.remove()
    assert num_hooks(fused) == 0


def test_a_fused_model_gives_the_same(model):
    image = picture(13, 18)
    for dtype in (torch.float32, torch.bfloat16):
        for fused in (model.fuse(), model.fuse().to(torch.bfloat16)):
            (maps,) = class_attention(image, fused, dtype=dtype)
            np.testing.assert_allclose(maps.heads, class_attention(image, model, dtype=dtype)[0].heads, atol=0.05)
    np.testing.assert_array_equal(
        channel_attention(image, model.fuse())[0].attention, channel_attention(image, model)[0].attention
    )


def test_a_model_without_a_head_and_one_from_a_file(tmp_path):
    model: Any = get_model("packaged", pretrained=True)
    expected = class_attention(picture(28, 28))[0].heads
    info = model.info
    model.reset_classifier(0)
    model.info = info
    np.testing.assert_array_equal(class_attention(picture(28, 28), model)[0].heads, expected)
    save_model(model, tmp_path / "own.safetensors")
    np.testing.assert_array_equal(class_attention(picture(28, 28), tmp_path / "own.safetensors")[0].heads, expected)
