"""Tests initial weights, copied stems and frozen stages, and errors that are found before any data is read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from xcit.config import override
from xcit.data.loader import AugmentationConfig
from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing
from xcit.models import XCiT, XCiTConfig
from xcit.training.engine.config import OptimizerConfig, RunConfig
from xcit.training.engine.optimizer import build_optimizer
from xcit.training.recipes import get_recipe
from xcit.training.tasks.classification import ClassificationConfig, ClassificationTask
from xcit.training.tasks.initialization import InitializeConfig, check_initialize, initialize
from xcit.zoo import ARCHITECTURES, get_model, save_model

SHAPE = XCiTConfig(patch_size=4, embed_dim=8, depth=3, num_heads=2, num_classes=5)
PACKAGED = "xcit-pico-fashion-mnist"


def build(config: XCiTConfig, seed: int) -> XCiT:
    torch.manual_seed(seed)
    model = XCiT(config)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features)
    return model


@pytest.fixture
def trained(tmp_path: Path) -> XCiT:
    """Saves a second model of the same shape to trained.safetensors, and returns the model."""
    model = build(SHAPE, seed=1)
    save_model(model, tmp_path / "trained.safetensors")
    return model


def same(a: XCiT, b: XCiT, prefix: str = "") -> bool:
    names = [name for name in a.state_dict() if name.startswith(prefix)]
    assert names
    return all(torch.equal(a.state_dict()[name], b.state_dict()[name]) for name in names)


# Weights


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_file_s_weights_are_taken_over(trained: XCiT, tmp_path: Path, form: str) -> None:
    model = build(replace(SHAPE, drop_path_rate=0.2), seed=2)
    initialize(model, InitializeConfig(weights=form.format(tmp_path / "trained.safetensors")))
    assert same(model, trained)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.config.drop_path_rate == 0.2


@pytest.mark.parametrize("num_classes", [1, 7])
def test_a_head_of_other_classes_stays_new(trained: XCiT, tmp_path: Path, num_classes: int) -> None:
    model: Any = build(replace(SHAPE, num_classes=num_classes), seed=2)
    head: Any = model.head.weight.clone()
    initialize(model, InitializeConfig(weights=str(tmp_path / "trained.safetensors")))
    assert torch.equal(model.head.weight, head)
    trunk = [name for name in trained.state_dict() if not name.startswith("head.")]
    assert all(torch.equal(model.state_dict()[name], trained.state_dict()[name]) for name in trunk)


def test_a_file_without_a_head_leaves_the_new_one(tmp_path: Path) -> None:
    backbone = build(replace(SHAPE, num_classes=0), seed=1)
    save_model(backbone, tmp_path / "backbone.safetensors")
    model: Any = build(SHAPE, seed=2)
    head: Any = model.head.weight.clone()
    initialize(model, InitializeConfig(weights=str(tmp_path / "backbone.safetensors")))
    assert torch.equal(model.head.weight, head)
    assert same(backbone, model)


def test_timm_s_format_is_read(tmp_path: Path) -> None:
    from timm.models.xcit import Xcit

    torch.manual_seed(1)
    theirs = Xcit(patch_size=8, embed_dim=16, depth=2, num_heads=2, eta=1.0, tokens_norm=True, num_classes=5).eval()
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    model = build(XCiTConfig(patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5), seed=2).eval()
    initialize(model, InitializeConfig(weights=str(tmp_path / "timm.pth")))
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(images), theirs(images))


@pytest.mark.parametrize("name", [PACKAGED, "packaged"])
@pytest.mark.parametrize("num_classes", [10, 4])
def test_a_checkpoint_s_weights_are_taken_over_by_name(name: str, num_classes: int) -> None:
    model: Any = build(replace(ARCHITECTURES["pico-6-p4"], num_classes=num_classes), seed=2)
    initialize(model, InitializeConfig(weights=name))
    packaged: Any = get_model(PACKAGED, pretrained=True)
    assert same(packaged, model, "blocks.")
    assert same(packaged, model, "stem.")
    if num_classes == 10:
        assert same(packaged, model)


# The stem


@pytest.mark.parametrize("depth", [1, 3])
def test_a_stem_is_copied_and_frozen_alone(trained: XCiT, tmp_path: Path, depth: int) -> None:
    model = build(replace(SHAPE, depth=depth, num_classes=2), seed=2)
    untouched = build(replace(SHAPE, depth=depth, num_classes=2), seed=2)
    initialize(model, InitializeConfig(stem=str(tmp_path / "trained.safetensors")))
    for name, tensor in model.state_dict().items():
        source = trained if name.startswith("stem.") else untouched
        assert torch.equal(tensor, source.state_dict()[name]), name
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {
        name for name, _ in model.named_parameters() if name.startswith("stem.")
    }


def test_a_stem_is_taken_by_a_checkpoint_s_name() -> None:
    model: Any = build(replace(ARCHITECTURES["pico-6-p4"], depth=2, num_classes=3), seed=2)
    initialize(model, InitializeConfig(stem=PACKAGED))
    packaged: Any = get_model(PACKAGED, pretrained=True)
    assert same(packaged, model, "stem.")


def test_the_stem_wins_over_the_weights(trained: XCiT, tmp_path: Path) -> None:
    other = build(SHAPE, seed=3)
    save_model(other, tmp_path / "other.safetensors")
    model = build(SHAPE, seed=2)
    files = (str(tmp_path / name) for name in ("trained.safetensors", "other.safetensors"))
    initialize(model, InitializeConfig(weights=next(files), stem=next(files)))
    assert same(other, model, "stem.")
    assert same(trained, model, "blocks.")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": 16}, r"its embed_dim is 8, but the model's is 16"),
        ({"patch_size": 8}, r"its patch_size is 4, but the model's is 8"),
        ({"in_channels": 1}, r"its in_channels is 3, but the model's is 1"),
    ],
)
def test_a_stem_of_another_shape_is_refused(
    trained: XCiT, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    model = build(replace(SHAPE, **changes), seed=2)
    path = tmp_path / "trained.safetensors"
    with pytest.raises(XCiTError, match=rf"^initialize\.stem: {path} does not fit: {message}$"):
        initialize(model, InitializeConfig(stem=str(path)))


def test_surgery_on_the_authors_recipe_is_one_field() -> None:
    recipe = get_recipe("xcit-large-24-p8_official_in1k")
    config: Any = override(recipe, {"initialize.stem": "xcit-large-24-p8_3rdparty_in1k"})
    check_initialize(config.initialize, config.model)
    wrong: Any = override(recipe, {"initialize.stem": "xcit-medium-24-p8_3rdparty_in1k"})
    with pytest.raises(XCiTError, match=r"medium-24-p8_3rdparty_in1k does not fit: its embed_dim is 512, .* 768"):
        check_initialize(wrong.initialize, wrong.model)


# Frozen stages


@pytest.mark.parametrize(
    ("freeze", "prefixes"),
    [
        (("stem",), ("stem.",)),
        (("stem", "position"), ("stem.", "position.")),
        (("blocks.1",), ("blocks.1.",)),
        (("blocks.0-1", "cls_blocks.1"), ("blocks.0.", "blocks.1.", "cls_blocks.1.")),
        (
            ("stem", "position", "blocks.0-2", "cls_token", "cls_blocks.0-1", "norm"),
            ("stem.", "position.", "blocks.", "cls_token", "cls_blocks.", "norm."),
        ),
        (("head",), ("head.",)),
    ],
)
def test_stages_are_frozen_by_name(freeze: tuple[str, ...], prefixes: tuple[str, ...]) -> None:
    model = build(SHAPE, seed=1)
    initialize(model, InitializeConfig(freeze=freeze))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith(prefixes)}


def test_block_1_is_not_block_10() -> None:
    model = build(replace(SHAPE, depth=11), seed=1)
    initialize(model, InitializeConfig(freeze=("blocks.1",)))
    assert all(parameter.requires_grad for parameter in model.blocks[10].parameters())


def test_a_step_moves_all_but_what_is_frozen() -> None:
    model = build(SHAPE, seed=1)
    initialize(model, InitializeConfig(freeze=("stem", "blocks.0")))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, OptimizerConfig(lr=0.1))
    model(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))).square().mean().backward()
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if not name.startswith(("stem.", "blocks.0."))}


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (("blocks.3",), r"no stage is called 'blocks\.3'; did you mean 'blocks\.\d'\?"),
        (("blocks.1-3",), r"no stage is called 'blocks\.3'; did you mean"),
        (("blocks.2-1",), r"no stage is called 'blocks\.2-1'; did you mean 'blocks\.2'\?"),
        (("steem",), r"no stage is called 'steem'; did you mean 'stem'\?"),
        (("@",), r"no stage is called '@'; there are: stem, position, blocks\.0, blocks\.1, blocks\.2, cls_token, "),
        (
            ("stem", "position", "blocks.0-2", "cls_token", "cls_blocks.0-1", "norm", "head"),
            "names every stage: nothing is left to train",
        ),
    ],
)
def test_stages_that_can_t_be_frozen(freeze: tuple[str, ...], message: str) -> None:
    with pytest.raises(XCiTError, match=rf"^initialize\.freeze.*{message}"):
        check_initialize(InitializeConfig(freeze=freeze), SHAPE)


def test_a_model_without_class_attention_has_no_such_stages() -> None:
    config = replace(SHAPE, cls_depth=0, global_pool="avg")
    check_initialize(InitializeConfig(freeze=("stem",)), config)
    with pytest.raises(XCiTError, match="no stage is called 'cls_token'"):
        check_initialize(InitializeConfig(freeze=("cls_token",)), config)


# Before anything is read


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": "no.safetensors"}, r"^initialize\.weights: no\.safetensors: no such file$"),
        ({"stem": "no/stem.pth"}, r"^initialize\.stem: no/stem\.pth: no such file$"),
        (
            {"weights": "xcit-nano-12-p16_3rdparty_in2k"},
            r"^initialize\.weights: no model .* did you mean 'xcit-nano-12",
        ),
        ({"weights": PACKAGED}, r"its in_channels is 1, but the model's is 3$"),
        ({"weights": "xcit-nano-12-p16_3rdparty_in1k"}, r"does not fit: its patch_size is 16, but the model's is 4$"),
        ({"stem": "xcit-nano-12-p16_3rdparty_in1k"}, r"does not fit: its patch_size is 16, but the model's is 4$"),
    ],
)
def test_a_source_that_can_t_be_is_found_at_once(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(XCiTError, match=message):
        check_initialize(InitializeConfig(**fields), SHAPE)


def test_the_task_looks_at_the_weights_before_the_data() -> None:
    config = ClassificationConfig(
        name="x",
        model=SHAPE,
        preprocessing=Preprocessing(image_size=8, resize_to=8),
        data="no-such-folder",
        initialize=InitializeConfig(weights="no.pth"),
    )
    with pytest.raises(XCiTError, match=r"no\.pth: no such file"):
        ClassificationTask(config)


def test_a_file_of_other_channels_is_refused(trained: XCiT, tmp_path: Path) -> None:
    model = build(replace(SHAPE, in_channels=1), seed=2)
    with pytest.raises(XCiTError, match=r"trained\.safetensors does not fit the model(.|\n)*stem\.0\.conv\.weight"):
        initialize(model, InitializeConfig(weights=str(tmp_path / "trained.safetensors")))


# In a task


def test_a_checkpoint_is_tuned_on_a_folder_of_other_classes(trained: XCiT, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for shade, name in ((40, "dark"), (128, "grey"), (220, "light")):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8), (shade,) * 3).save(tmp_path / "data" / split / name / "0.png")
    recipe: Any = get_recipe("xcit-nano-12-p16_transfer")
    config = replace(
        recipe,
        data=str(tmp_path / "data"),
        model=replace(SHAPE, num_classes=0),
        preprocessing=Preprocessing(image_size=8, resize_to=8),
        initialize=InitializeConfig(weights=str(tmp_path / "trained.safetensors"), freeze=("stem",)),
        augmentation=AugmentationConfig(crop="padded"),
        run=RunConfig(batch_size=3, num_workers=0),
    )
    task = ClassificationTask(config)
    assert task.config.model == replace(SHAPE, num_classes=3)
    assert isinstance(task.model, XCiT)
    assert same(trained, task.model, "blocks.")
    assert not any(parameter.requires_grad for parameter in task.model.stem.parameters())
    before = task.evaluate(task.model)["val_loss"]
    optimizer = build_optimizer(task.model, replace(recipe.optimizer, lr=0.02))
    for epoch in range(10):
        for batch in task.train_batches(epoch):
            optimizer.zero_grad()
            task.loss(task.model, batch)["loss"].backward()
            optimizer.step()
    assert task.evaluate(task.model)["val_loss"] < before
    task.export(task.model, tmp_path / "model.safetensors")
    exported = get_model(tmp_path / "model.safetensors")
    assert exported.num_classes == 3
    assert exported.info is not None
    assert exported.info.class_names == ("dark", "grey", "light")


def test_a_run_that_goes_on_freezes_the_same_and_needs_no_files() -> None:
    assert InitializeConfig(weights="gone.pth", freeze=("position",)).frozen_only() == InitializeConfig(
        freeze=("position",)
    )
    with_stem = InitializeConfig(stem="gone.pth", freeze=("blocks.0",))
    assert with_stem.frozen_only() == InitializeConfig(freeze=("blocks.0", "stem"))
    assert with_stem.frozen_only().frozen_only() == with_stem.frozen_only()
