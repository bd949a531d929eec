"""Compares the recipes with the tables of published training settings."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from xcit.config import load_yaml, override, save_yaml
from xcit.data.detection_transforms import DetectionAugmentation
from xcit.data.multi_crop import MultiCropConfig
from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing
from xcit.models import XCiTConfig
from xcit.models.dino import DINOHeadConfig
from xcit.training.engine.task import divide
from xcit.training.recipes import RECIPES, get_recipe
from xcit.training.tasks.classification import ClassificationConfig
from xcit.training.tasks.detection import DetectionConfig
from xcit.training.tasks.dino import DINOConfig, TeachingConfig
from xcit.training.tasks.distillation import DistillationConfig, check_teacher
from xcit.training.tasks.initialization import InitializeConfig, check_initialize
from xcit.zoo import ARCHITECTURES, CHECKPOINTS, DETECTORS, SEGMENTERS, DetectorRecord, find_checkpoint
from xcit.zoo.architectures import PUBLISHED_ARCHITECTURES
from xcit.zoo.robust import ROBUST

ROWS = json.loads((Path(__file__).parents[2] / "data" / "zoo.json").read_text())
PUBLISHED = sorted({(row["config"], row["architecture"], row["image_size"]) for row in ROWS})


# The settings that both the authors and mmpretrain published for training at 224 pixels, as dotted fields.
COMMON: dict[str, Any] = {
    "optimizer.weight_decay": 0.05,
    "optimizer.betas": (0.9, 0.999),
    "optimizer.eps": 1e-8,
    "optimizer.clip_grad": 0.0,
    "optimizer.clip_mode": "all",
    "optimizer.final_weight_decay": None,
    "optimizer.layer_decay": 1.0,
    "optimizer.lr": 5e-4 * 1024 / 512,
    "optimizer.kind": "adamw",
    "run.batch_size": 1024,
    "run.ema_warmup": False,
    "schedule.min_lr": 1e-5,
    "schedule.kind": "cosine",
    "schedule.by_epoch": False,
    "schedule.warmup_steps": 0,
    "schedule.milestones": (),
    "augmentation.interpolation": "bicubic",
    "augmentation.mixup": 0.8,
    "augmentation.cutmix": 1.0,
    "augmentation.switch": 0.5,
    "augmentation.crop": "random_resized",
    "augmentation.scale": (0.08, 1.0),
    "augmentation.flip": 0.5,
    "augmentation.random_erasing": 0.25,
    # The authors set 0.4, which timm ignores when RandAugment is on.
    "augmentation.color_jitter": 0.0,
    "initialize": InitializeConfig(),
    "class_weights": (),
}
MMPRETRAIN = COMMON | {
    "optimizer.undecayed": "vectors",
    "run.max_device_batch": 128,
    "run.ema_decay": 0.0,
    "run.sync_batch_norm": False,
    "schedule.epochs": 300,
    "schedule.warmup_epochs": 20,
    "schedule.warmup_lr": 1e-3 * 1e-3,
    "augmentation.rand_augment": "rand-m9-n2-mstd0.5-inc1",
    "augmentation.label_smoothing": 0.0,
    "augmentation.num_repeats": 1,
    "distillation": DistillationConfig(),
    "model.drop_path_rate": 0.0,
}
MMPRETRAIN_384 = MMPRETRAIN | {"augmentation.rand_augment": "", "augmentation.random_erasing": 0.0}
OFFICIAL = COMMON | {
    "optimizer.undecayed": "vectors_and_tokens",
    "run.max_device_batch": 128,
    "run.ema_decay": 0.99996,
    "run.sync_batch_norm": True,
    "schedule.epochs": 400,
    "schedule.warmup_epochs": 5,
    "schedule.warmup_lr": 1e-6,
    "augmentation.rand_augment": "rand-m9-mstd0.5-inc1",
    "augmentation.label_smoothing": 0.1,
    "augmentation.num_repeats": 3,
    "distillation": DistillationConfig(),
}
UNUSED = {"momentum", "decay", "padding"}
"""Fields for other optimisers, schedules or crops; these recipes do not use them."""

# The value of small-12 is from the authors' command; the other three are from their detection and segmentation configs.
OFFICIAL_DROP_PATH = {"tiny-12": 0.0, "small-12": 0.05, "small-24": 0.1, "medium-24": 0.15}


DINO_PUBLISHED = ["small-12-p16", "small-12-p8", "medium-24-p16", "medium-24-p8"]
# The defaults of the authors' code, with 64 images per GPU on a node of eight.
DINO: dict[str, Any] = {
    "run.batch_size": 512,
    "run.max_device_batch": 64,
    "run.sync_batch_norm": True,
    "run.ema_decay": 0.0,
    "run.seed": 0,
    "run.num_workers": 10,
    "run.dtype": "bfloat16",
    "optimizer.lr": 5e-4 * 512 / 256,
    "optimizer.weight_decay": 0.04,
    "optimizer.final_weight_decay": 0.4,
    "optimizer.betas": (0.9, 0.999),
    "optimizer.eps": 1e-8,
    "optimizer.clip_grad": 3.0,
    "optimizer.clip_mode": "each",
    "optimizer.layer_decay": 1.0,
    "optimizer.undecayed": "vectors",
    "schedule.epochs": 100,
    "schedule.warmup_epochs": 10,
    "schedule.warmup_lr": 0.0,
    "schedule.min_lr": 1e-6,
}


def field(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def agrees(config: ClassificationConfig | DINOConfig, table: dict[str, Any]) -> bool:
    found = {name: field(config, name) for name in table}
    assert found == table
    return True


def test_the_names_are_these() -> None:
    assert len(PUBLISHED) == 28
    assert len(PUBLISHED_ARCHITECTURES) == 14
    families = ("official_in1k", "official-dist_in1k", "ours-ft384_in1k", "transfer", "multi-label")
    assert set(RECIPES) == {
        *(name for name, _, _ in PUBLISHED),
        *(f"xcit-{architecture}_{family}" for architecture in PUBLISHED_ARCHITECTURES for family in families),
        "xcit-pico-fashion-mnist",
        *(f"dino_xcit-{architecture}_in1k" for architecture in DINO_PUBLISHED),
        "dino_xcit-pico_fashion-mnist",
        *SEGMENTERS,
        "upernet_xcit-pico_fashion-scenes",
        "sem-fpn_xcit-pico_fashion-scenes",
        *DETECTORS,
        "mask-rcnn_xcit-pico_fashion-scenes",
    }
    assert all(get_recipe(name).name == name for name in RECIPES)


@pytest.mark.parametrize(("name", "architecture", "image_size"), PUBLISHED)
def test_a_published_recipe_is_what_was_published(name: str, architecture: str, image_size: int) -> None:
    at_224 = image_size == 224
    assert name == f"xcit-{architecture}_8xb128_in1k{'' if at_224 else '-384px'}"
    found: Any = get_recipe(name)
    assert found.name == name
    assert found.model == ARCHITECTURES[architecture]
    assert found.model.drop_path_rate == 0  # mmpretrain trains without stochastic depth
    # 224 pixels: short side to 256, then a centre crop; 384 pixels: resized to the square without a crop.
    assert found.preprocessing == (
        Preprocessing(image_size=224, resize="short_side", resize_to=256)
        if at_224
        else Preprocessing(image_size=384, resize="exact", resize_to=384)
    )
    assert (found.data, found.holdout) == ("", 0)
    assert agrees(found, MMPRETRAIN if at_224 else MMPRETRAIN_384)


def test_the_tables_name_every_number_of_a_recipe() -> None:
    """The tables above have a value for every field that changes the training."""
    recipe = get_recipe("xcit-nano-12-p16_8xb128_in1k")
    for section in ("optimizer", "schedule", "augmentation"):
        named = {name.partition(".")[2] for name in OFFICIAL if name.startswith(section)}
        assert {part.name for part in dataclasses.fields(getattr(recipe, section))} - named <= UNUSED
    assert set(OFFICIAL) == set(MMPRETRAIN) - {"model.drop_path_rate"}


@pytest.mark.parametrize("architecture", PUBLISHED_ARCHITECTURES)
def test_the_authors_recipe_is_what_they_published(architecture: str) -> None:
    plain: Any = get_recipe(f"xcit-{architecture}_official_in1k")
    assert agrees(plain, OFFICIAL)
    assert plain.preprocessing == Preprocessing(image_size=224, resize="short_side", resize_to=224)
    assert replace(plain.model, drop_path_rate=0.0) == ARCHITECTURES[architecture]
    size = architecture.rpartition("-")[0]
    rates: Any = OFFICIAL_DROP_PATH | {"nano-12": 0.0, "tiny-24": 0.05, "large-24": 0.2}  # these three are our choice
    assert plain.model.drop_path_rate == rates[size]

    distilled: Any = get_recipe(f"xcit-{architecture}_official-dist_in1k")
    assert distilled.distillation == DistillationConfig(
        teacher="timm/regnety_160.deit_in1k", kind="hard", alpha=0.5, temperature=1.0
    )
    assert replace(distilled, name=plain.name, distillation=DistillationConfig()) == plain


def test_the_authors_teacher_is_one_that_timm_has() -> None:
    recipe: Any = get_recipe("xcit-nano-12-p16_official-dist_in1k")
    check_teacher(recipe.distillation, recipe.preprocessing, recipe.model.num_classes)


def test_erasing_takes_the_published_share_of_the_area() -> None:
    from timm.data.random_erasing import RandomErasing

    erasing = RandomErasing()
    assert (erasing.min_area, erasing.max_area) == (0.02, 1 / 3)


@pytest.mark.parametrize("world_size", [1, 2, 8, 16])
@pytest.mark.parametrize("family", ["8xb128_in1k", "official_in1k"])
def test_the_batch_is_1024_on_any_number_of_gpus_up_to_128_at_once(family: str, world_size: int) -> None:
    run = get_recipe(f"xcit-nano-12-p16_{family}").run
    layout = divide(run.batch_size, max_device_batch=run.max_device_batch, world_size=world_size)
    assert layout.part_size == min(128, 1024 // world_size)
    assert layout.part_size * layout.num_parts == 1024


@pytest.mark.parametrize("architecture", PUBLISHED_ARCHITECTURES)
def test_384_pixels_from_224_says_that_it_is_ours(architecture: str) -> None:
    recipe: Any = get_recipe(f"xcit-{architecture}_ours-ft384_in1k")
    assert recipe.preprocessing == Preprocessing(image_size=384, resize="short_side", resize_to=384)
    assert (recipe.optimizer.lr, recipe.optimizer.weight_decay, recipe.schedule.epochs) == (5e-5, 1e-8, 30)
    assert recipe.schedule.min_lr < recipe.optimizer.lr
    record = find_checkpoint(recipe.initialize.weights)
    assert (record.architecture, record.preprocessing.image_size, record.distilled) == (architecture, 224, True)
    check_initialize(recipe.initialize, recipe.model)
    official: Any = get_recipe(f"xcit-{architecture}_official_in1k")
    assert recipe.augmentation == official.augmentation
    assert recipe.optimizer.undecayed == official.optimizer.undecayed
    assert recipe.model == official.model


@pytest.mark.parametrize("architecture", PUBLISHED_ARCHITECTURES)
def test_transfer_takes_the_classes_of_the_data(architecture: str) -> None:
    recipe: Any = get_recipe(f"xcit-{architecture}_transfer")
    assert recipe.model == replace(ARCHITECTURES[architecture], num_classes=0)
    record = find_checkpoint(recipe.initialize.weights)
    assert (record.architecture, record.distilled) == (architecture, True)
    assert recipe.preprocessing == record.preprocessing
    check_initialize(recipe.initialize, recipe.model)
    assert (recipe.run.batch_size, recipe.run.ema_decay) == (32, 0.0)
    assert recipe.schedule.min_lr < recipe.optimizer.lr
    # At every depth, the first layers have 1 to 3 % of the learning rate.
    first_block = recipe.optimizer.layer_decay ** (recipe.model.depth + recipe.model.cls_depth)
    assert 0.01 < first_block < 0.03


@pytest.mark.parametrize("architecture", ["nano-12-p8", "large-24-p16"])
def test_several_classes_are_trained_as_one_is(architecture: str) -> None:
    recipe: Any = get_recipe(f"xcit-{architecture}_multi-label")
    transfer: Any = get_recipe(f"xcit-{architecture}_transfer")
    for name in ("model", "preprocessing", "initialize", "optimizer", "schedule", "run"):
        assert getattr(recipe, name) == getattr(transfer, name)
    assert recipe.augmentation == replace(transfer.augmentation, label_smoothing=0.0)


def test_every_checkpoint_has_its_recipe() -> None:
    for record in CHECKPOINTS.values():
        if record in ROBUST:  # they were trained on attacked images, so there is no recipe
            assert record.recipe == ""
            continue
        recipe: Any = get_recipe(record.recipe)
        assert replace(recipe.model, drop_path_rate=0.0) == record.config
        assert recipe.preprocessing.image_size == record.preprocessing.image_size


@pytest.mark.parametrize("name", RECIPES)
def test_yaml_gives_every_recipe_back(name: str, tmp_path: Path) -> None:
    recipe = get_recipe(name)
    model = recipe.model if isinstance(recipe.model, XCiTConfig) else recipe.model.backbone
    spec = recipe.model if isinstance(recipe, DetectionConfig) else recipe.preprocessing
    assert model.in_channels == len(spec.mean)
    path = tmp_path / "config.yaml"
    save_yaml(recipe, path)
    assert load_yaml(type(recipe), path) == recipe
    assert get_recipe(str(path)) == recipe


@pytest.mark.parametrize("record", DETECTORS.values(), ids=DETECTORS)
def test_a_detection_recipe_is_what_was_published(record: DetectorRecord) -> None:
    recipe = get_recipe(record.recipe)
    assert isinstance(recipe, DetectionConfig)
    assert replace(recipe.model, backbone=replace(recipe.model.backbone, drop_path_rate=0.0)) == record.model
    rates = {"tiny-12": 0.0, "small-12": 0.05, "small-24": 0.1, "medium-24": 0.15}
    assert recipe.model.backbone.drop_path_rate == rates[record.architecture.rpartition("-")[0]]
    optimizer, schedule, run = recipe.optimizer, recipe.schedule, recipe.run
    assert (optimizer.kind, optimizer.lr, optimizer.weight_decay, optimizer.betas) == (
        "adamw",
        1e-4,
        0.05,
        (0.9, 0.999),
    )
    assert (optimizer.undecayed, optimizer.clip_grad, optimizer.eps) == ("layer_norms", 0.0, 1e-8)
    assert (schedule.kind, schedule.epochs, schedule.milestones, schedule.decay) == ("milestones", 36, (27, 33), 0.1)
    assert schedule.warmup_steps == 500
    assert schedule.warmup_lr == pytest.approx(1e-7)
    assert (run.batch_size, run.max_device_batch, run.sync_batch_norm) == (16, 2, True)
    assert recipe.augmentation == DetectionAugmentation()
    assert find_checkpoint(recipe.backbone_weights).architecture == record.architecture


def test_a_file_without_a_task_is_of_classification(tmp_path: Path) -> None:
    recipe = get_recipe("xcit-nano-12-p16_transfer")
    path = tmp_path / "config.yaml"
    save_yaml(recipe, path)
    text = path.read_text()
    path.write_text(text.replace("task: classification\n", ""))
    assert path.read_text() != text
    assert get_recipe(str(path)) == recipe


def test_an_unknown_task_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("name: x\ntask: moco\n")
    with pytest.raises(XCiTError) as caught:
        get_recipe(str(path))
    assert (
        str(caught.value) == f"{path}: no task is called 'moco'; the tasks are: "
        "classification, multi-label, dino, segmentation, detection"
    )


def test_a_run_s_yaml_keeps_what_was_changed(tmp_path: Path) -> None:
    recipe: Any = override(
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
        ("xcit-small-12-p16_offical_in1k", "xcit-small-12-p16_official_in1k"),
        ("xcit-small-24-p8_tranfer", "xcit-small-24-p8_transfer"),
        ("dino-xcit-small-12-p8_in1k", "dino_xcit-small-12-p8_in1k"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(written: str, meant: str) -> None:
    with pytest.raises(XCiTError) as caught:
        get_recipe(written)
    assert str(caught.value) == f"no recipe is called {Path(written).stem!r}; did you mean {meant!r}?"


def test_a_name_like_no_other_lists_the_kinds() -> None:
    with pytest.raises(
        XCiTError,
        match=r"no recipe is called '@@@'; there are: .*_8xb128_in1k, .*_multi-label; `xcit config` lists all$",
    ):
        get_recipe("@@@")


def test_a_missing_yaml_is_named() -> None:
    with pytest.raises(XCiTError, match=r"runs/no\.yaml: No such file or directory"):
        get_recipe("runs/no.yaml")


def test_the_packaged_recipe_never_watches_the_test_images() -> None:
    recipe: Any = get_recipe("xcit-pico-fashion-mnist")
    assert recipe.data == "fashion-mnist"
    assert recipe.holdout > 0
    assert recipe.model == ARCHITECTURES["pico-6-p4"]
    assert recipe.preprocessing == CHECKPOINTS["xcit-pico-fashion-mnist"].preprocessing


@pytest.mark.parametrize("architecture", DINO_PUBLISHED)
def test_a_dino_recipe_has_the_published_settings(architecture: str) -> None:
    recipe = get_recipe(f"dino_xcit-{architecture}_in1k")
    assert isinstance(recipe, DINOConfig)
    assert recipe.model == replace(ARCHITECTURES[architecture], num_classes=0, drop_path_rate=0.1)
    # As in DINO's k-NN evaluation: short side to 256, centre crop of 224.
    assert recipe.preprocessing == Preprocessing(image_size=224, resize="short_side", resize_to=256)
    # Other tests compare the defaults of these three configs with the published values.
    assert recipe.head == DINOHeadConfig()
    assert recipe.crops == MultiCropConfig()
    assert recipe.dino == TeachingConfig()
    assert agrees(recipe, DINO)


def test_the_small_dino_recipe_takes_the_packaged_model_s_images() -> None:
    recipe: Any = get_recipe("dino_xcit-pico_fashion-mnist")
    packaged: Any = get_recipe("xcit-pico-fashion-mnist")
    assert recipe.model.in_channels == packaged.model.in_channels
    assert recipe.preprocessing == packaged.preprocessing
    assert recipe.data == "fashion-mnist"
