"""The published recipes against the table of mmpretrain's training numbers."""

import json
from pathlib import Path

import pytest

from xcit.data.loader import AugmentationConfig
from xcit.engine.config import OptimizerConfig, ScheduleConfig, load_yaml, override, save_yaml
from xcit.errors import XCiTError
from xcit.models import Preprocessing
from xcit.recipes import RECIPES, get_recipe
from xcit.tasks.classification import ClassificationConfig
from xcit.zoo import ARCHITECTURES, CHECKPOINTS

ROWS = json.loads((Path(__file__).parents[1] / "data" / "zoo.json").read_text())
PUBLISHED = sorted({(row["config"], row["architecture"], row["image_size"]) for row in ROWS})


def test_the_28_published_names_are_there_and_ours() -> None:
    assert len(PUBLISHED) == 28
    assert set(RECIPES) == {name for name, _, _ in PUBLISHED} | {"xcit-pico-fashion-mnist"}


@pytest.mark.parametrize(("name", "architecture", "image_size"), PUBLISHED)
def test_a_published_recipe_is_what_was_published(name: str, architecture: str, image_size: int) -> None:
    at_224 = image_size == 224
    assert name == f"xcit-{architecture}_8xb128_in1k{'' if at_224 else '-384px'}"
    found = get_recipe(name)
    assert found.name == name
    assert found.model == ARCHITECTURES[architecture]
    assert found.model.drop_path_rate == 0  # no stochastic depth
    # 224: short side to 256, centre crop; 384: straight to the square.
    assert found.preprocessing == (
        Preprocessing(image_size=224, resize="short_side", resize_to=256)
        if at_224
        else Preprocessing(image_size=384, resize="exact", resize_to=384)
    )
    assert (found.data, found.holdout) == ("", 0)
    assert found.optimizer == OptimizerConfig(
        lr=5e-4 * 1024 / 512, weight_decay=0.05, betas=(0.9, 0.999), eps=1e-8, clip_grad=0.0
    )
    # Linear warm-up from a thousandth of the rate.
    assert found.schedule == ScheduleConfig(epochs=300, warmup_epochs=20, warmup_lr=1e-3 * 1e-3, min_lr=1e-5)
    assert (found.run.batch_size, found.run.ema_decay) == (8 * 128, 0.0)
    # RandAugment of two operations and erasing at 224 alone; Mixup and CutMix in both, against plain cross-entropy.
    assert found.augmentation == AugmentationConfig(
        crop="random_resized",
        scale=(0.08, 1.0),
        flip=0.5,
        rand_augment="rand-m9-n2-mstd0.5-inc1" if at_224 else "",
        color_jitter=0.0,
        random_erasing=0.25 if at_224 else 0.0,
        mixup=0.8,
        cutmix=1.0,
        label_smoothing=0.0,
    )


def test_every_checkpoint_has_its_recipe() -> None:
    for record in CHECKPOINTS.values():
        recipe = get_recipe(record.recipe)
        assert recipe.model == record.config
        assert recipe.preprocessing.image_size == record.preprocessing.image_size


@pytest.mark.parametrize("name", RECIPES)
def test_yaml_gives_every_recipe_back(name: str, tmp_path: Path) -> None:
    recipe = get_recipe(name)
    path = tmp_path / "config.yaml"
    save_yaml(recipe, path)
    assert load_yaml(ClassificationConfig, path) == recipe
    assert get_recipe(str(path)) == recipe


def test_a_run_s_yaml_keeps_what_was_changed(tmp_path: Path) -> None:
    recipe = override(
        get_recipe("xcit-nano-12-p16_8xb128_in1k"), {"schedule.epochs": "3", "augmentation.scale": "0.6,1", "data": "d"}
    )
    path = tmp_path / "config.yml"
    save_yaml(recipe, path)
    assert get_recipe(str(path)) == recipe
    assert (recipe.schedule.epochs, recipe.augmentation.scale, recipe.data) == (3, (0.6, 1.0), "d")


@pytest.mark.parametrize(
    "written",
    [
        "xcit-nano-12-p16_8xb128_in1k",
        "xcit-nano-12-p16_8xb128_in1k.py",
        "configs/xcit/xcit-nano-12-p16_8xb128_in1k.py",
        "/anywhere/mmpretrain/configs/xcit/xcit-nano-12-p16_8xb128_in1k.py",
    ],
)
def test_paths_of_mmpretrain_s_configs_mean_the_recipe(written: str) -> None:
    assert get_recipe(written) == RECIPES["xcit-nano-12-p16_8xb128_in1k"]()


def test_a_config_file_is_never_run(tmp_path: Path) -> None:
    path = tmp_path / "xcit-nano-12-p16_8xb128_in1k.py"
    path.write_text("raise SystemExit('run')")
    assert get_recipe(str(path)).name == "xcit-nano-12-p16_8xb128_in1k"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("xcit-nano-12-p16_8xb128_in1", "xcit-nano-12-p16_8xb128_in1k"),
        ("configs/xcit/xcit-tiny-24-p8_8xb128-in1k-384px.py", "xcit-tiny-24-p8_8xb128_in1k-384px"),
        ("xcit-pico-fashionmnist", "xcit-pico-fashion-mnist"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(written: str, meant: str) -> None:
    with pytest.raises(XCiTError) as caught:
        get_recipe(written)
    assert str(caught.value) == f"no recipe is called {Path(written).stem!r}; did you mean {meant!r}?"


def test_a_name_like_no_other_lists_them_all() -> None:
    with pytest.raises(XCiTError, match=r"no recipe is called '@@@'; there are: xcit-nano-12-p16_8xb128_in1k, "):
        get_recipe("@@@")


def test_a_missing_yaml_is_named() -> None:
    with pytest.raises(XCiTError, match=r"runs/no\.yaml: No such file or directory"):
        get_recipe("runs/no.yaml")


def test_the_packaged_recipe_never_watches_the_test_images() -> None:
    recipe = get_recipe("xcit-pico-fashion-mnist")
    assert recipe.data == "fashion-mnist"
    assert recipe.holdout > 0
    assert recipe.model == ARCHITECTURES["pico-6-p4"]
    assert recipe.preprocessing == CHECKPOINTS["xcit-pico-fashion-mnist"].preprocessing
