"""Tests the cache for the features of a data set: its key depends on everything that changes the features."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from xcit.data.classification import open_labelled_images
from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing, preprocess
from xcit.models import XCiT
from xcit.training.engine.config import RunConfig
from xcit.training.engine.distribution import Processes
from xcit.training.tasks.labelled_features import (
    LabelledFeatures,
    backbone_digest,
    extract,
    feature_cache,
    open_train_and_val,
    pooled_feature,
)

CPU = torch.device("cpu")


class Extraction:
    """Extracts the features of the training split at each call, with the given settings, and records messages."""

    def __init__(self, model: XCiT, data: Path, cache: Path | None) -> None:
        assert model.info is not None
        self.model, self.data, self.cache, self.spec = model, data, cache, model.info.preprocessing
        self.reported: list[int] = []
        self.announced: list[str] = []

    def __call__(self, spec: Preprocessing | None = None, **run: object) -> LabelledFeatures:
        config = RunConfig(batch_size=4, num_workers=0, **run)  # type: ignore[arg-type]
        self.reported.clear()
        return extract(
            self.model,
            open_labelled_images(str(self.data), "train"),
            spec or self.spec,
            Processes(config, CPU),
            run=config,
            cache=self.cache,
            report=self.reported.append,
            announce=self.announced.append,
        )

    @property
    def was_computed(self) -> bool:
        """Whether the last call computed the features, and did not read them from the cache."""
        return self.reported == [4, 4, 4, 4, 2]


@pytest.fixture
def extraction(tiny: XCiT, splits: Path, tmp_path: Path) -> Extraction:
    return Extraction(tiny, splits, tmp_path / "cache")


def files(extraction: Extraction) -> list[Path]:
    assert extraction.cache is not None
    return sorted(extraction.cache.iterdir())


def test_features_are_what_the_model_gives_of_each_image(extraction: Extraction) -> None:
    found = extraction()
    assert extraction.was_computed
    images = open_labelled_images(str(extraction.data), "train")
    assert found.labels.tolist() == [images[index][1] for index in range(18)] == [0] * 6 + [1] * 6 + [2] * 6
    with torch.inference_mode():
        for index, feature in enumerate(found.features):
            pixels = preprocess(images[index][0], extraction.spec)
            torch.testing.assert_close(feature, extraction.model(pixels[None])[0], rtol=1e-4, atol=1e-5)
    assert found.unreadable == ()


def test_the_second_time_they_are_taken_from_the_file(extraction: Extraction) -> None:
    first = extraction()
    second = extraction()
    assert not extraction.was_computed
    assert extraction.reported == [18]
    assert torch.equal(second.features, first.features)
    assert torch.equal(second.labels, first.labels)
    assert [path.suffix for path in files(extraction)] == [".safetensors"]
    # The contents of the cached file are used.
    content = load_file(files(extraction)[0])
    save_file(content | {"labels": content["labels"] + 1}, files(extraction)[0], metadata={"unreadable": '["a"]'})
    third = extraction()
    assert third.labels.tolist() == [label + 1 for label in first.labels.tolist()]
    assert third.unreadable == ("a",)


def test_what_they_depend_on_makes_another_file(extraction: Extraction) -> None:
    extraction()
    extraction(replace(extraction.spec, resize_to=20))
    assert extraction.was_computed
    extraction(dtype="bfloat16")
    assert extraction.was_computed
    (extraction.data / "train" / "red" / "0.png").write_bytes((extraction.data / "val" / "red" / "0.png").read_bytes())
    extraction()
    assert extraction.was_computed
    extraction.model.get_parameter("norm.bias").data[0] += 1e-3
    extraction()
    assert extraction.was_computed
    assert len(files(extraction)) == 5
    extraction()
    assert not extraction.was_computed


def test_the_classifier_is_nothing_they_depend_on(tiny: XCiT) -> None:
    before = backbone_digest(tiny)
    tiny.reset_classifier(7)
    assert backbone_digest(tiny) == before
    tiny.reset_classifier(7, "avg")
    assert backbone_digest(tiny) != before


def test_unreadable_images_are_kept_in_mind(extraction: Extraction) -> None:
    path = extraction.data / "train" / "green" / "3.png"
    path.write_text("text")
    for computed in (True, False):
        found = extraction()
        assert extraction.was_computed is computed
        assert found.unreadable == (f"{path}: not an image that can be read (it looks like text)",)
        assert found.features.shape == (17, 16)
        assert found.labels.tolist() == [0] * 6 + [1] * 5 + [2] * 6


def test_where_nothing_can_be_read_it_is_told(extraction: Extraction) -> None:
    for path in (extraction.data / "train").rglob("*.png"):
        path.write_text("text")
    with pytest.raises(XCiTError, match=r"none of the 18 images could be read; the first: .*0\.png: not an image"):
        extraction()


@pytest.mark.parametrize("content", [b"", b"text", b"\x10\0\0\0\0\0\0\0{}"])
def test_a_damaged_file_is_replaced(extraction: Extraction, content: bytes) -> None:
    first = extraction()
    (path,) = files(extraction)
    path.write_bytes(content)
    assert torch.equal(extraction().features, first.features)
    assert extraction.was_computed
    extraction()
    assert not extraction.was_computed


def test_without_a_folder_nothing_is_kept(extraction: Extraction) -> None:
    cache, extraction.cache = extraction.cache, None
    extraction()
    extraction()
    assert extraction.was_computed
    assert cache is not None
    assert not cache.exists()


def test_a_folder_that_can_t_be_written_costs_the_cache_only(extraction: Extraction) -> None:
    assert extraction.cache is not None
    extraction.cache.write_text("a file")
    assert len(extraction().labels) == 18
    (line,) = extraction.announced
    assert line.startswith("warning: the features could not be cached: ")


def test_the_feature_is_what_the_head_reads(tiny: XCiT) -> None:
    images = torch.rand(2, 3, 16, 24)
    tiny.reset_classifier(3)
    for pool in ("cls", "avg"):
        tiny.reset_classifier(3, pool)
        with torch.inference_mode():
            assert torch.equal(tiny.head(pooled_feature(tiny, images)), tiny(images))


def test_the_cache_is_beside_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XCIT_CACHE", str(tmp_path))
    assert feature_cache() == tmp_path / "features"


def test_a_known_data_set_has_both_splits(fashion_mnist: Path) -> None:
    train, val = open_train_and_val("fashion-mnist")
    assert (len(train), len(val)) == (60_000, 10_000)
