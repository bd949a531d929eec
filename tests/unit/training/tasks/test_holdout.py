"""Tests the validation images of a run: the validation split or held-out training images, equal in all commands."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from xcit.data.classification import LabelledImages
from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing
from xcit.models import XCiTConfig
from xcit.training.engine.config import RunConfig
from xcit.training.recipes import get_recipe
from xcit.training.run import describe_watching
from xcit.training.tasks.classification import ClassificationConfig, ClassificationTask
from xcit.training.tasks.labelled_data import OpenedData, open_data, open_measured
from xcit.training.tasks.labelled_features import open_train_and_val


def write(root: Path, **counts: int) -> str:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (8, 8), (index, 0, 0)).save(root / name / f"{index}.png")
    return str(root)


def opened(data: str, holdout: float | None = 0, val_data: str = "") -> OpenedData:
    return open_data(data, val_data=val_data, holdout=holdout, num_classes=0)


def names(images: object) -> set[str]:
    listed: LabelledImages = images  # type: ignore[assignment]
    return {listed.image_name(index) for index in range(len(listed))}


def test_a_class_without_images_to_measure_on_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train", ant=2, bee=2, cat=2, dog=2)
    write(tmp_path / "val", cat=1, ant=2)
    (tmp_path / "val" / "dog").mkdir()
    found = opened(str(tmp_path))
    watched: LabelledImages = found.watched  # type: ignore[assignment]
    assert watched.class_ids == ("ant", "bee", "cat", "dog")
    assert [watched[index][1] for index in range(3)] == [0, 0, 2]
    assert found.problems == (f"{tmp_path}: no validation images for 2 of the 4 classes: 'bee', 'dog'",)
    assert found.notes == (
        f"found 4 classes: ant, bee, cat, dog; 8 images in {tmp_path / 'train'}",
        f"validated on 3 images in {tmp_path / 'val'}",
    )
    lines: list[str] = []
    _, val = open_train_and_val(str(tmp_path), announce=lines.append)
    assert [val[index][1] for index in range(3)] == [0, 0, 2]
    assert lines == [*found.notes, f"warning: {found.problems[0]}"]


def test_a_class_that_was_not_trained_on_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "train", ant=2, bee=2)
    write(tmp_path / "val", ant=1, cow=1)
    with pytest.raises(XCiTError, match="different classes: 'cow' is not among the 2 training classes, 'ant', 'bee'"):
        opened(str(tmp_path))


def test_one_class_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(XCiTError, match=r"only: only one class, 'cat'"):
        opened(write(tmp_path / "only", cat=3))


def test_a_holdout_is_impossible_beside_images_to_measure_on(tmp_path: Path) -> None:
    write(tmp_path / "train", ant=3, bee=3)
    write(tmp_path / "valid", ant=1, bee=1)
    for holdout in (1, 0.2):
        for call in (opened, open_measured, open_train_and_val):
            with pytest.raises(XCiTError, match=f"holdout is {holdout}, but .* has validation images"):
                call(str(tmp_path), holdout)
    assert len(opened(str(tmp_path / "train"), 1).watched) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("holdout", [3, 0.25])
def test_every_verb_holds_out_the_same_images(tmp_path: Path, holdout: float) -> None:
    data = write(tmp_path, ant=8, bee=5)
    found = opened(data, holdout)
    kept = names(found.watched)
    assert len(kept) == 3
    assert names(found.train) | kept == names(opened(data).train)
    assert not names(found.train) & kept
    assert names(open_measured(data, holdout)) == kept
    train, val = open_train_and_val(data, holdout)
    assert (names(train), names(val)) == (names(found.train), kept)
    assert found.notes[1].startswith(
        f"3 of these images are held out for validation, 10 are used for training (holdout {holdout}"
    )


def test_a_share_is_of_each_class_and_leaves_each_some(tmp_path: Path) -> None:
    found = opened(write(tmp_path, ant=20, bee=2, cow=1), 0.2)
    kept = [Path(name).parent.name for name in names(found.watched)]
    assert {name: kept.count(name) for name in ("ant", "bee", "cow")} == {"ant": 4, "bee": 1, "cow": 0}
    trained = {Path(name).parent.name for name in names(found.train)}
    assert trained == {"ant", "bee", "cow"}
    with pytest.raises(XCiTError, match="every class has one image"):
        opened(write(tmp_path / "more", ant=1, bee=1), 0.2)


def test_left_open_it_is_a_fifth_of_a_folder_that_has_nothing_to_measure_on(tmp_path: Path) -> None:
    data = write(tmp_path / "flat", ant=10, bee=10)
    found = opened(data, None)
    assert (found.holdout, len(names(found.watched)), len(names(found.train))) == (0.2, 4, 16)
    write(tmp_path / "both" / "train", ant=2, bee=2)
    write(tmp_path / "both" / "val", ant=1, bee=1)
    assert opened(str(tmp_path / "both"), None).holdout == 0
    assert opened(data, None, val_data=str(tmp_path / "both")).holdout == 0
    recipe = get_recipe("xcit-small-12-p16_transfer")
    assert isinstance(recipe, ClassificationConfig)
    assert recipe.holdout is None


def test_a_run_keeps_what_was_decided_and_names_it(tmp_path: Path) -> None:
    config = ClassificationConfig(
        name="few",
        model=XCiTConfig(patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=0),
        preprocessing=Preprocessing(image_size=8, resize_to=8),
        data=write(tmp_path, ant=10, bee=10),
        holdout=None,
        run=RunConfig(batch_size=4, num_workers=0),
    )
    task = ClassificationTask(config)
    assert task.config.holdout == 0.2
    assert task.notes == (
        f"found 2 classes: ant, bee; 20 images in {tmp_path}",
        "4 of these images are held out for validation, 16 are used for training (holdout 0.2)",
    )
    assert not describe_watching(task.config)
    (warning,) = describe_watching(ClassificationTask(replace(config, holdout=0)).config)
    assert "the figures are measured on the training images" in warning


@pytest.mark.parametrize("holdout", [-1, float("inf"), float("nan")])
def test_what_is_no_holdout(holdout: float) -> None:
    recipe = get_recipe("xcit-small-12-p16_transfer")
    with pytest.raises(XCiTError, match="must be a number of images, or a share below 1"):
        replace(recipe, holdout=holdout)  # type: ignore[arg-type]


@pytest.mark.parametrize("holdout", [1.5, 20, 100])
def test_more_than_there_are(tmp_path: Path, holdout: float) -> None:
    data = write(tmp_path, ant=10, bee=10)
    with pytest.raises(XCiTError, match="must be a share below 1, or a whole number of images below 20"):
        opened(data, holdout)
