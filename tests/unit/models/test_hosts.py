"""Tests the use of `model.config` by a host library such as Hugging Face's Trainer."""

import copy
import dataclasses
import json
import pickle
from typing import Any

import pytest

import xcit
from xcit.config import from_dict
from xcit.errors import XCiTError
from xcit.models import Segmenter, SegmenterConfig, XCiT, XCiTConfig
from xcit.models.detection.config import MaskRCNNConfig
from xcit.models.detection.mask_rcnn import MaskRCNN
from xcit.zoo import get_model

SHAPE = XCiTConfig(embed_dim=16, depth=4, num_heads=2)
BACKBONE = dataclasses.replace(SHAPE, cls_depth=0, num_classes=0, global_pool="none")


def build(name: str) -> Any:
    if name == "classifier":
        return XCiT(SHAPE)
    if name == "segmenter":
        return Segmenter(SegmenterConfig(kind="sem-fpn", backbone=BACKBONE, num_classes=3, channels=8))
    return MaskRCNN(MaskRCNNConfig(backbone=BACKBONE, num_classes=3, channels=8, box_features=8))


class Host:
    """A host that reads and writes the attributes of a config that transformers' Trainer and its callbacks use."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.model.config.use_cache = False
        self.model.config.pad_token_id = 0
        self.ignored = getattr(self.model.config, "keys_to_ignore_at_inference", ["cache"])
        self.text = self.model.config.to_json_string()
        self.reported = {**self.model.config.to_dict(), "learning_rate": 0.1}


@pytest.mark.parametrize("name", ["classifier", "segmenter", "detector"])
def test_a_host_writes_on_one_models_config_and_reads_its_fields(name: str) -> None:
    shape = build(name).config
    model = build(name)
    host = Host(model)
    assert (model.config.use_cache, model.config.pad_token_id, host.ignored) == (False, 0, ["cache"])
    assert from_dict(type(shape), json.loads(host.text)) == shape
    assert {**dataclasses.asdict(shape), "learning_rate": 0.1} == host.reported
    # The host's attributes are not part of the shape, and only this model's config has them.
    assert model.config == shape
    assert hash(model.config) == hash(shape)
    assert not hasattr(build(name).config, "use_cache")
    assert "use_cache" not in dataclasses.asdict(model.config)


def test_two_models_of_one_config_do_not_share_what_a_host_writes() -> None:
    first, second = XCiT(SHAPE), XCiT(SHAPE)
    Host(first)
    assert not hasattr(second.config, "use_cache")
    assert not hasattr(SHAPE, "use_cache")
    named = get_model("xcit-nano-12-p16")
    Host(named)
    assert not hasattr(get_model("xcit-nano-12-p16").config, "use_cache")


def test_a_written_config_is_copied_pickled_and_saved(tmp_path: Any) -> None:
    model: Any = XCiT(SHAPE)
    Host(model)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert again.config == SHAPE
        assert again.config.use_cache is False
    model.reset_classifier(7)
    assert model.config == dataclasses.replace(SHAPE, num_classes=7)
    xcit.save_model(model, tmp_path / "model.safetensors")
    assert xcit.get_model(tmp_path / "model.safetensors").config == model.config


@pytest.mark.parametrize("name", ["classifier", "segmenter", "detector"])
def test_fields_stay_frozen_and_a_slip_in_a_fields_name_is_told(name: str) -> None:
    config = build(name).config
    with pytest.raises(dataclasses.FrozenInstanceError, match="num_classes"):
        config.num_classes = 5
    with pytest.raises(XCiTError, match=r"no field num_clases; did you mean num_classes\?") as error:
        config.num_clases = 5
    assert "\n" not in str(error.value)
    assert config.num_classes == build(name).config.num_classes
