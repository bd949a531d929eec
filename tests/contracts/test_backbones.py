"""Tests properties that every backbone must have, with small configs of all shapes."""

import copy
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from xcit.errors import XCiTError
from xcit.models import XCiT, XCiTConfig, fused

SMALL = XCiTConfig(embed_dim=32, depth=2, num_heads=4, mlp_ratio=2, num_classes=5)
CONFIGS = {
    "p4-grey": replace(SMALL, patch_size=4, in_channels=1),
    "p8-no-qkv-bias-one-cls-block": replace(SMALL, patch_size=8, qkv_bias=False, tokens_norm=False, cls_depth=1),
    "p16-five-channels-avg": replace(SMALL, patch_size=16, in_channels=5, global_pool="avg"),
    "p16-every-token": replace(SMALL, patch_size=16, tokens_norm=False, global_pool="none"),
    "p8-no-class-token-avg": replace(SMALL, patch_size=8, cls_depth=0, global_pool="avg"),
    "p4-no-class-token-every-token": replace(SMALL, patch_size=4, cls_depth=0, global_pool="none"),
    "p4-no-head": replace(SMALL, patch_size=4, num_classes=0),
}


@pytest.fixture(params=CONFIGS.values(), ids=[*CONFIGS])
def config(request: pytest.FixtureRequest) -> XCiTConfig:
    return request.param


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def new_model(config: XCiTConfig) -> XCiT:
    """Returns a model in evaluation mode; its biases, statistics and scales are random too, not at initial values."""
    model = XCiT(config).eval()
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if value.ndim == 1 or name.endswith("temperature"):
                value.add_(torch.rand_like(value), alpha=0.5)
    return model


def new_images(config: XCiTConfig, height: int, width: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, config.in_channels, height, width)


def odd_size(config: XCiTConfig) -> tuple[int, int]:
    return 3 * config.patch_size + 1, 2 * config.patch_size - 1


def loss_of(model: XCiT, images: Tensor) -> Tensor:
    """Returns a loss that depends on the output and on every token, and so on every parameter."""
    tokens = model.forward_features(images)
    return model.forward_head(tokens).square().mean() + (tokens * torch.linspace(-1, 1, tokens.shape[-1])).mean()


def gradients(model: XCiT) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("rows", "columns", "more_h", "more_w"), [(1, 1, 0, 0), (3, 2, 1, -1), (2, 4, 0, 3), (1, 5, 0, 1)]
)
@torch.no_grad()
def test_any_size_from_one_patch_up(config: XCiTConfig, rows: int, columns: int, more_h: int, more_w: int) -> None:
    height, width = rows * config.patch_size + more_h, columns * config.patch_size + more_w
    grid = -(-height // config.patch_size), -(-width // config.patch_size)
    num_tokens = grid[0] * grid[1] + (config.cls_depth > 0)
    model, images = new_model(config), new_images(config, height, width)
    num_outputs = config.num_classes or config.embed_dim
    expected = (2, num_tokens, num_outputs) if config.global_pool == "none" else (2, num_outputs)
    output = model(images)
    assert output.shape == expected
    assert output.isfinite().all()
    assert model.forward_features(images).shape == (2, num_tokens, config.embed_dim)
    (featmap,) = model.extract_feat(images, out_type="featmap")
    assert featmap.shape == (2, config.embed_dim, *grid)


@pytest.mark.parametrize(("less_h", "less_w"), [(1, 0), (0, 1)])
def test_less_than_one_patch_is_an_error(config: XCiTConfig, less_h: int, less_w: int) -> None:
    with pytest.raises(XCiTError, match="smaller than one patch"):
        new_model(config)(new_images(config, config.patch_size - less_h, config.patch_size - less_w))


def test_every_parameter_and_the_image_get_a_gradient(config: XCiTConfig) -> None:
    model = new_model(config).train()
    images = new_images(config, *odd_size(config)).requires_grad_()
    loss_of(model, images).backward()
    for name, gradient in (gradients(model) | {"images": images.grad}).items():
        assert gradient is not None and gradient.isfinite().all(), name
        # Only the key bias of class attention has a gradient of 0: it shifts all scores by the same number, and the
        # softmax ignores the shift.
        assert name.endswith("attn.k.bias") or gradient.abs().max() > 1e-9, name


@pytest.mark.parametrize("training", [False, True])
def test_nothing_is_modified_in_place(config: XCiTConfig, training: bool) -> None:
    model = new_model(config).train(training)
    images = new_images(config, *odd_size(config)).requires_grad_()
    images_before = images.detach().clone()
    state_before = copy.deepcopy(model.state_dict())
    watched = [images, *model.parameters()]
    versions = [tensor._version for tensor in watched]
    loss_of(model, images).backward()
    for index in range(config.depth + config.cls_depth):
        model.extract_feat(images, out_type="raw", out_indices=index)
    assert [tensor._version for tensor in watched] == versions
    assert torch.equal(images, images_before)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, state_before[name])}
    statistics = {name for name, _ in model.named_buffers()}
    assert changed == (statistics if training else set())


@torch.no_grad()
def test_evaluation_is_deterministic_and_each_image_is_alone(config: XCiTConfig) -> None:
    model = new_model(replace(config, drop_path_rate=0.5))
    images = new_images(config, *odd_size(config))
    output = model(images)
    assert torch.equal(model(images), output)
    for image, expected in zip(images, output, strict=True):
        torch.testing.assert_close(model(image[None])[0], expected)


SIZES = ((1, 1), (3, 2), (9, 5), (4, 13))


def close(actual: Tensor, expected: Tensor) -> None:
    """Checks that two tensors are equal within 1e-5 of the largest element."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("numbers_at_once", [2**20, 32 * 7, 1], ids=["whole", "parts", "smallest parts"])
def test_a_fused_copy_gives_the_same(config: XCiTConfig, numbers_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fused.NUMBERS_AT_ONCE, "cpu", numbers_at_once)
    model = new_model(config)
    before = copy.deepcopy(model.state_dict())
    faster = model.fuse()
    num_blocks = config.depth + config.cls_depth
    for rows, columns in SIZES:
        images = new_images(config, rows * config.patch_size - (rows > 1), columns * config.patch_size)
        images_before = images.clone()
        with torch.no_grad():
            close(faster(images), model(images))
            close(faster.forward_features(images), model.forward_features(images))
            for out_type in ("cls_token", "featmap", "avg_featmap", "raw"):
                first = config.depth if out_type == "cls_token" else 0
                indices = range(first, num_blocks)
                if not indices:
                    continue
                ours = model.extract_feat(images, out_type=out_type, out_indices=indices)
                theirs = faster.extract_feat(images, out_type=out_type, out_indices=indices)
                for expected, actual in zip(ours, theirs, strict=True):
                    close(actual, expected)
            last, taken = model.forward_intermediates(images)
            fast_last, fast_taken = faster.forward_intermediates(images)
            for expected, actual in zip([last, *taken], [fast_last, *fast_taken], strict=True):
                close(actual, expected)
        assert torch.equal(images, images_before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_fused_copy_shares_nothing_and_has_no_gradients(config: XCiTConfig) -> None:
    model = new_model(config)
    faster = model.fuse()
    images = new_images(config, *odd_size(config)).requires_grad_()
    expected = faster(images)
    assert not expected.requires_grad
    with torch.no_grad():
        for value in [*model.parameters(), *model.buffers()]:
            value.zero_()
    assert torch.equal(faster(images), expected)
    assert faster.fuse() is faster
    assert not any(parameter.requires_grad for parameter in faster.parameters())
    with pytest.raises(XCiTError, match="can't be trained"):
        faster.train()


def test_a_fused_copy_is_traced_whole_by_the_compiler(config: XCiTConfig) -> None:
    torch.compiler.reset()
    faster = new_model(config).fuse()
    compiled = torch.compile(faster, fullgraph=True, backend="eager")
    images = new_images(config, *odd_size(config))
    close(compiled(images), faster(images))


def test_a_fused_copy_can_be_given_another_head_and_another_precision(config: XCiTConfig) -> None:
    faster = new_model(config).fuse()
    images = new_images(config, *odd_size(config))
    expected = faster(images)
    low = copy.deepcopy(faster).to(torch.bfloat16)(images.bfloat16())
    assert low.dtype == torch.bfloat16
    assert (low.float() - expected).abs().max() <= 0.1 * expected.abs().max()
    faster.reset_classifier(3)
    assert faster(images).shape[-1] == 3


@torch.no_grad()
def test_a_saved_model_comes_back_the_same(config: XCiTConfig, tmp_path: Path) -> None:
    model, images = new_model(config), new_images(config, *odd_size(config))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    again = XCiT(config).eval()
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(again(images), model(images))


def test_gradient_checkpointing_changes_nothing(config: XCiTConfig) -> None:
    plain = new_model(replace(config, drop_path_rate=0.3)).train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.set_grad_checkpointing()
    images = new_images(config, *odd_size(config), batch=4)
    for model in (plain, checkpointed):
        torch.manual_seed(1)
        loss_of(model, images).backward()
    for name, gradient in gradients(plain).items():
        assert torch.equal(gradients(checkpointed)[name], gradient), name
    for name, value in plain.named_buffers():
        assert torch.equal(checkpointed.get_buffer(name), value), name


@torch.no_grad()
def test_bfloat16_is_finite_and_near_float32(config: XCiTConfig) -> None:
    model, images = new_model(config), new_images(config, *odd_size(config))
    expected = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        automatic = model(images)
    half = model.to(torch.bfloat16)(images.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    for output in (automatic, half):
        assert output.isfinite().all()
        assert (output.float() - expected).norm() < 0.05 * expected.norm()


def test_stochastic_depth_drops_each_branch_alone() -> None:
    rate, num_samples = 0.6, 4000
    model = new_model(replace(SMALL, drop_path_rate=rate)).train()
    tokens = torch.randn(num_samples, 2, SMALL.embed_dim)
    with torch.no_grad():
        for block in model.blocks:
            untouched = (block(tokens, 1, 2) == tokens).all(dim=(1, 2)).double().mean()
            # A sample is unchanged if all its three branches are dropped. The rate is the same in every block.
            sigma = (rate**3 * (1 - rate**3) / num_samples) ** 0.5
            assert untouched == pytest.approx(rate**3, abs=4 * sigma)
        for block in model.cls_blocks:
            assert torch.equal(block(tokens), block(tokens))


# --- compilers: only a few shallow configs, because each takes seconds

SHALLOW = {
    "class-attention": replace(SMALL, patch_size=8, depth=1, cls_depth=1),
    "no-class-token": replace(SMALL, patch_size=4, depth=1, cls_depth=0, global_pool="avg"),
}


@pytest.fixture
def _no_compiled_code() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_no_compiled_code")
def test_compiles_as_one_graph_for_all_sizes_with_gradients() -> None:
    config = SHALLOW["class-attention"]
    model = new_model(config)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    parameters = dict(model.named_parameters())
    for height, width in ((25, 15), (16, 39)):
        images = new_images(config, height, width)
        outputs = compiled(images), model(images)
        torch.testing.assert_close(*outputs)
        ours, eager = (torch.autograd.grad(output.square().mean(), list(parameters.values())) for output in outputs)
        for name, gradient, expected in zip(parameters, ours, eager, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.usefixtures("_no_compiled_code")
@torch.no_grad()
def test_compiles_as_one_graph_without_a_class_token() -> None:
    config = SHALLOW["no-class-token"]
    model = new_model(config)
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
    for height, width in ((13, 7), (8, 18)):
        images = new_images(config, height, width)
        torch.testing.assert_close(compiled(images), model(images))


@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.usefixtures("_no_compiled_code")
@torch.no_grad()
def test_inductor_gives_the_same_numbers() -> None:
    config = SHALLOW["class-attention"]
    model, images = new_model(config), new_images(config, 25, 15)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(images), model(images), rtol=1e-4, atol=1e-5)


def dynamic_shapes(config: XCiTConfig) -> dict[str, dict[int, torch.export.Dim]]:
    # torch.export makes a size of 1 a constant. So the smallest dynamic size has 2 patches per side.
    height = torch.export.Dim("height", min=config.patch_size + 1)
    width = torch.export.Dim("width", min=config.patch_size + 1)
    return {"images": {0: torch.export.Dim("batch"), 2: height, 3: width}}


@pytest.mark.parametrize("config", SHALLOW.values(), ids=SHALLOW.keys())
@torch.no_grad()
def test_exports_with_dynamic_batch_height_and_width(config: XCiTConfig) -> None:
    model, patch = new_model(config), config.patch_size
    images = new_images(config, 4 * patch, 3 * patch)
    program = torch.export.export(model, (images,), dynamic_shapes=dynamic_shapes(config)).module()
    for batch, height, width in (
        (2, 4 * patch, 3 * patch),
        (1, 2 * patch - 1, 6 * patch + 1),
        (3, patch + 1, 5 * patch),
    ):
        images = new_images(config, height, width, batch)
        torch.testing.assert_close(program(images), model(images))


@torch.no_grad()
def test_runs_in_onnxruntime_at_sizes_it_was_not_exported_at(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    config = SHALLOW["class-attention"]
    model, path = new_model(config), tmp_path / "model.onnx"
    torch.onnx.export(
        model,
        (new_images(config, 32, 24),),
        path,
        dynamo=True,
        dynamic_shapes=dynamic_shapes(config),
        input_names=["images"],
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch, height, width in ((2, 32, 24), (1, 41, 23), (3, 9, 64)):
        images = new_images(config, height, width, batch)
        (output,) = session.run(None, {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(output), model(images), rtol=1e-4, atol=1e-5)
