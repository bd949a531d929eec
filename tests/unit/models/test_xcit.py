"""Tests the errors of the config, the tokens that each output uses, and that no unneeded block runs."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing
from xcit.models import ModelInfo, XCiT, XCiTConfig

DEPTH, CLS_DEPTH, DIM = 3, 2, 16
CONFIG = XCiTConfig(patch_size=4, embed_dim=DIM, depth=DEPTH, num_heads=4, cls_depth=CLS_DEPTH, num_classes=5)
HEIGHT, WIDTH = 13, 18
GRID = (4, 5)
N = GRID[0] * GRID[1]


@pytest.fixture
def model() -> XCiT:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return XCiT(CONFIG).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def outputs(model: XCiT, images: Tensor) -> dict[int, Tensor]:
    """Returns the tokens after each block, collected by hooks; the last tokens are those after the final norm."""
    tokens: dict[int, Tensor] = {}
    hooks = [
        block.register_forward_hook(lambda module, inputs, output, index=index: tokens.update({index: output}))
        for index, block in enumerate([*model.blocks, *model.cls_blocks])
    ]
    model.forward_features(images)
    for hook in hooks:
        hook.remove()
    tokens[DEPTH + CLS_DEPTH - 1] = model.norm(tokens[DEPTH + CLS_DEPTH - 1])
    return tokens


@pytest.fixture
def calls(model: XCiT) -> list[int]:
    """Collects the blocks that ran, in order."""
    ran: list[int] = []
    for index, block in enumerate([*model.blocks, *model.cls_blocks]):
        block.register_forward_hook(lambda module, inputs, output, index=index: ran.append(index))
    return ran


# --- config


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("patch_size", 7, r"patch_size is 7, but must be one of \(4, 8, 16\)"),
        ("embed_dim", 0, "embed_dim is 0, but must be at least 1"),
        ("depth", 0, "depth is 0, but must be at least 1"),
        ("num_heads", 0, "num_heads is 0, but must be at least 1"),
        ("in_channels", 0, "in_channels is 0, but must be at least 1"),
        ("cls_depth", -1, "cls_depth is -1, but must be at least 0"),
        ("num_classes", -1, "num_classes is -1, but must be at least 0"),
        ("embed_dim", 15, "embed_dim 15 must be a multiple of 2 for patches of 4 pixels"),
        ("num_heads", 3, "embed_dim 16 must be a multiple of num_heads 3"),
        ("mlp_ratio", 0.0, "mlp_ratio is 0.0, but must be positive and finite"),
        ("mlp_ratio", -1.0, "mlp_ratio is -1.0, but must be positive and finite"),
        ("mlp_ratio", float("nan"), "mlp_ratio is nan, but must be positive and finite"),
        ("drop_path_rate", 1.0, r"drop_path_rate is 1.0, but must be in \[0, 1\)"),
        ("drop_path_rate", -0.1, r"drop_path_rate is -0.1, but must be in \[0, 1\)"),
        ("global_pool", "max", "global_pool is 'max', but must be 'cls', 'avg' or 'none'"),
        ("cls_depth", 0, "global_pool 'cls' needs a class token: cls_depth must be at least 1"),
    ],
)
def test_an_impossible_config_is_an_error(field: str, value: Any, message: str) -> None:
    with pytest.raises(XCiTError, match=f"^XCiTConfig: {message}$"):
        replace(CONFIG, **{field: value})


@pytest.mark.parametrize(("patch_size", "widths"), [(16, [2, 4, 8, 16]), (8, [4, 8, 16]), (4, [8, 16])])
def test_the_stem_doubles_its_width_up_to_the_embedding(patch_size: int, widths: list[int]) -> None:
    stem: Any = XCiT(replace(CONFIG, patch_size=patch_size)).stem
    assert [layer.conv.out_channels for layer in stem] == widths
    assert [layer.conv.bias for layer in stem] == [None] * len(widths)


def test_a_new_model_starts_as_described() -> None:
    model: Any = XCiT(replace(CONFIG, layer_scale=1e-5, drop_path_rate=0.2))
    assert torch.equal(model.blocks[1].scale_lpi, torch.full((DIM,), 1e-5))
    assert torch.equal(model.cls_blocks[0].scale_attn, torch.full((DIM,), 1e-5))
    assert torch.equal(model.blocks[0].xca.temperature, torch.ones(4, 1, 1))
    assert torch.equal(model.blocks[0].xca.qkv.bias, torch.zeros(3 * DIM))
    assert 0 < model.cls_token.abs().max() <= 2
    # Every block has the same drop-path rate; the rate does not grow with depth.
    assert [block.drop_path_rate for block in model.blocks] == [0.2] * DEPTH
    assert (model.num_classes, model.embed_dim, model.num_features) == (5, DIM, DIM)
    assert model.info is None


# The parameter names of this project's own file format: a change would break every stored file.
BLOCK_NAMES = """
norm_xca.weight norm_xca.bias xca.temperature xca.qkv.weight xca.qkv.bias xca.proj.weight xca.proj.bias scale_xca
norm_lpi.weight norm_lpi.bias lpi.conv1.weight lpi.conv1.bias lpi.norm.weight lpi.norm.bias lpi.norm.running_mean
lpi.norm.running_var lpi.norm.num_batches_tracked lpi.conv2.weight lpi.conv2.bias scale_lpi
norm_mlp.weight norm_mlp.bias mlp.fc1.weight mlp.fc1.bias mlp.fc2.weight mlp.fc2.bias scale_mlp
"""
CLS_BLOCK_NAMES = """
norm_attn.weight norm_attn.bias attn.q.weight attn.q.bias attn.k.weight attn.k.bias attn.v.weight attn.v.bias
attn.proj.weight attn.proj.bias scale_attn
norm_mlp.weight norm_mlp.bias mlp.fc1.weight mlp.fc1.bias mlp.fc2.weight mlp.fc2.bias scale_mlp
"""
STEM_NAMES = "conv.weight norm.weight norm.bias norm.running_mean norm.running_var norm.num_batches_tracked"


def test_parameter_names(model: XCiT) -> None:
    expected = {"position.projection.weight", "position.projection.bias", "head.weight", "head.bias"}
    expected |= {"cls_token", "norm.weight", "norm.bias"}
    expected |= {f"stem.{i}.{name}" for i in range(2) for name in STEM_NAMES.split()}
    expected |= {f"blocks.{i}.{name}" for i in range(DEPTH) for name in BLOCK_NAMES.split()}
    expected |= {f"cls_blocks.{i}.{name}" for i in range(CLS_DEPTH) for name in CLS_BLOCK_NAMES.split()}
    assert set(model.state_dict()) == expected


def test_a_backbone_of_patch_tokens_alone_has_no_class_parts() -> None:
    model = XCiT(replace(CONFIG, cls_depth=0, global_pool="avg", num_classes=0, qkv_bias=False))
    names = set(model.state_dict())
    assert not [name for name in names if name.startswith(("cls_", "norm.", "head.")) or name.endswith("qkv.bias")]


# --- forward


def test_forward_pools_the_class_token(model: XCiT, images: Tensor, outputs: dict[int, Tensor]) -> None:
    assert torch.equal(model(images), model.head(outputs[4][:, 0]))
    assert torch.equal(model.forward_features(images), outputs[4])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (3, 16, 16),
            r"images must be \(batch, 3, height, width\), not \(3, 16, 16\): images\[None\] is a batch of one",
        ),
        ((1, 1, 16, 16), "images have 1 channels, the model takes 3"),
        ((1, 3, 16, 3), "images are 16x3 pixels, smaller than one patch of 4x4"),
    ],
)
def test_images_that_do_not_fit_are_an_error(model: XCiT, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(XCiTError, match=message):
        model(torch.zeros(shape))


@pytest.mark.parametrize(("name", "pool"), [("avg", "avg"), ("token", "cls"), ("", "none"), ("none", "none")])
def test_reset_classifier_renews_the_head_and_the_pooling(
    model: XCiT, images: Tensor, outputs: dict[int, Tensor], name: str, pool: Any
) -> None:
    model.info = ModelInfo(
        name="x", preprocessing=Preprocessing(), class_names=tuple("abcde"), class_ids=tuple("vwxyz")
    )
    model.double().eval()
    model.reset_classifier(7, name)
    assert model.config == replace(CONFIG, num_classes=7, global_pool=pool)
    assert model.head.weight.dtype == torch.float64
    assert torch.equal(model.get_parameter("head.bias"), torch.zeros(7, dtype=torch.float64))
    assert not model.head.training
    # The old class names do not apply to the new head.
    assert model.info == ModelInfo(name="x", preprocessing=Preprocessing())
    tokens = model.forward_features(images.double())
    pooled = {"avg": tokens[:, 1:].mean(dim=1), "cls": tokens[:, 0], "none": tokens}[pool]
    assert torch.equal(model(images.double()), model.head(pooled))
    assert torch.equal(model.forward_head(tokens, pre_logits=True), pooled)


def test_reset_classifier_keeps_the_pooling_unless_told(model: XCiT, images: Tensor) -> None:
    model.reset_classifier(0)
    assert model.config == replace(CONFIG, num_classes=0)
    assert model(images).shape == (2, DIM)


def test_reset_classifier_refuses_what_the_model_cannot_do(model: XCiT) -> None:
    with pytest.raises(XCiTError, match="global_pool is 'max'"):
        model.reset_classifier(7, "max")
    with pytest.raises(XCiTError, match="num_classes is -1"):
        model.reset_classifier(-1)
    with pytest.raises(XCiTError, match="needs a class token"):
        XCiT(replace(CONFIG, cls_depth=0, global_pool="avg")).reset_classifier(7, "token")


# --- extract_feat

LAST = DEPTH + CLS_DEPTH - 1


@pytest.mark.parametrize("out_indices", [(-1,), -1, LAST, [0], (0, 2), [2, 3], (-2, 1, -1), (4, -1), range(5)], ids=str)
@pytest.mark.parametrize("out_type", ["cls_token", "featmap", "avg_featmap", "raw"])
def test_extract_feat(
    model: XCiT, images: Tensor, outputs: dict[int, Tensor], out_type: Any, out_indices: int | list[int]
) -> None:
    wanted = [out_indices] if isinstance(out_indices, int) else out_indices
    wanted = sorted({index % (DEPTH + CLS_DEPTH) for index in wanted})
    if out_type == "cls_token" and wanted[0] < DEPTH:
        with pytest.raises(
            XCiTError, match=f"block {wanted[0]} has no class token: the class token enters at block 3 of 5"
        ):
            model.extract_feat(images, out_type=out_type, out_indices=out_indices)
        return
    features = model.extract_feat(images, out_type=out_type, out_indices=out_indices)
    assert isinstance(features, tuple)
    for feature, index in zip(features, wanted, strict=True):
        tokens = outputs[index]
        patches = tokens[:, 1:] if index >= DEPTH else tokens
        match out_type:
            case "cls_token":
                expected = tokens[:, 0]
                assert expected.shape == (2, DIM)
            case "raw":
                expected = tokens
                assert expected.shape == (2, N + (index >= DEPTH), DIM)
            case "avg_featmap":
                expected = patches.mean(dim=1)
                assert expected.shape == (2, DIM)
            case "featmap":
                expected = patches.reshape(2, *GRID, DIM).permute(0, 3, 1, 2)
                assert expected.shape == (2, DIM, *GRID)
        assert torch.equal(feature, expected)


def test_extract_feat_gives_the_normed_class_token_by_default(
    model: XCiT, images: Tensor, outputs: dict[int, Tensor]
) -> None:
    for stage in ("neck", "backbone"):
        features = model.extract_feat(images, stage=stage)
        assert isinstance(features, tuple) and len(features) == 1
        assert torch.equal(features[0], outputs[LAST][:, 0])
    feature: Any = model.extract_feat(images, stage="pre_logits")
    assert torch.equal(feature, outputs[LAST][:, 0])
    assert torch.equal(model.head(feature), model(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": "head"}, "stage is 'head', but must be 'backbone', 'neck' or 'pre_logits'"),
        ({"out_type": "patch"}, "out_type is 'patch', but must be 'cls_token', 'featmap', 'avg_featmap' or 'raw'"),
        ({"out_indices": 5}, "there is no block 5: the model has 5 blocks, counted from 0"),
        ({"out_indices": [0, -6]}, "there is no block -6: the model has 5 blocks, counted from 0"),
        ({"out_indices": []}, "no block was asked for: the list of indices is empty"),
    ],
)
def test_extract_feat_errors(model: XCiT, images: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(XCiTError, match=message):
        model.extract_feat(images, **options)


@pytest.mark.parametrize(
    ("out_indices", "ran"), [([0], [0]), ([1, 0], [0, 1]), ([2], [0, 1, 2]), ([3], [0, 1, 2, 3, 4])]
)
def test_extract_feat_runs_no_more_than_it_needs(
    model: XCiT, images: Tensor, calls: list[int], out_indices: list[int], ran: list[int]
) -> None:
    model.extract_feat(images, out_type="raw", out_indices=out_indices)
    assert calls == ran


def test_extract_feat_without_class_attention(images: Tensor) -> None:
    model = XCiT(replace(CONFIG, cls_depth=0, global_pool="avg")).eval()
    (feature,) = model.extract_feat(images, out_type="featmap")
    pooled = model.forward_head(model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(feature.flatten(2).mean(dim=2), pooled)
    with pytest.raises(XCiTError, match="has no class token"):
        model.extract_feat(images)


# --- forward_intermediates


@pytest.mark.parametrize(
    ("stop_early", "intermediates_only", "ran"),
    [
        (False, False, [0, 1, 2, 3, 4]),
        (True, False, [0, 1, 3, 4]),
        (False, True, [0, 1, 2]),
        (True, True, [0, 1]),
    ],
)
def test_forward_intermediates_runs_no_more_than_asked(
    model: XCiT, images: Tensor, calls: list[int], stop_early: bool, intermediates_only: bool, ran: list[int]
) -> None:
    model.forward_intermediates(images, [1, 0], stop_early=stop_early, intermediates_only=intermediates_only)
    assert calls == ran


def test_forward_intermediates_are_the_xca_blocks_tokens(
    model: XCiT, images: Tensor, outputs: dict[int, Tensor]
) -> None:
    final, intermediates = model.forward_intermediates(images, [-1, 0], output_fmt="NLC")
    assert torch.equal(final, outputs[LAST])
    for tokens, index in zip(intermediates, (0, 2), strict=True):
        assert torch.equal(tokens, outputs[index])
    maps = model.forward_intermediates(images, 1, norm=True, intermediates_only=True)
    assert len(maps) == 1
    assert torch.equal(maps[0], model.norm(outputs[2]).reshape(2, *GRID, DIM).permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"indices": 0}, "the last 0 blocks were requested, but the model has 3"),
        ({"indices": 4}, "the last 4 blocks were requested, but the model has 3"),
        ({"indices": [3]}, "there is no block 3: the model has 3"),
        ({"indices": []}, "no block was asked for"),
        ({"output_fmt": "NHWC"}, "output_fmt is 'NHWC', but must be 'NCHW' or 'NLC'"),
    ],
)
def test_forward_intermediates_errors(model: XCiT, images: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(XCiTError, match=message):
        model.forward_intermediates(images, **options)


# --- the nano models' norm


@pytest.mark.parametrize("tokens_norm", [True, False])
def test_tokens_norm_decides_whether_patches_are_normed_in_class_attention(images: Tensor, tokens_norm: bool) -> None:
    model = XCiT(replace(CONFIG, tokens_norm=tokens_norm)).eval()
    block: Any = model.cls_blocks[0]
    with torch.no_grad():
        block.norm_mlp.weight.mul_(3)
    tokens = torch.randn(2, 1 + N, DIM, generator=torch.Generator().manual_seed(0))
    patches = (tokens + block.scale_attn * block.norm_attn(tokens))[:, 1:]
    expected = 2 * (block.norm_mlp(patches) if tokens_norm else patches)
    torch.testing.assert_close(block(tokens)[:, 1:], expected)
