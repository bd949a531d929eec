"""Tests the metadata of files, and what is inferred from tensor shapes if there is no metadata."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing
from xcit.models import ModelInfo, XCiT, XCiTConfig
from xcit.weights.files import digest, read_checkpoint, write_safetensors
from xcit.zoo import get_model, load_file, save_model
from xcit.zoo.architectures import ARCHITECTURES, PUBLISHED_ARCHITECTURES
from xcit.zoo.kinds import CLASSIFIER
from xcit.zoo.shapes import config_from_state
from xcit.zoo.statement import Statement, model_metadata, read_metadata
from xcit.zoo.stored import empty_model

# All fields differ from their defaults.
CONFIG = XCiTConfig(
    patch_size=4,
    embed_dim=16,
    depth=1,
    num_heads=2,
    mlp_ratio=2.0,
    qkv_bias=False,
    cls_depth=1,
    tokens_norm=False,
    layer_scale=0.5,
    in_channels=1,
    num_classes=3,
    global_pool="avg",
    drop_path_rate=0.1,
)
INFO = ModelInfo(
    name="little",
    preprocessing=Preprocessing(image_size=12, resize="exact", resize_to=14, mean=(0.25,), std=(0.5,)),
    class_names=("cat", "dog", "Löwe"),
    class_ids=("n1", "n2", "n3"),
)


def little(info: ModelInfo | None = INFO) -> XCiT:
    model = XCiT(CONFIG).eval()
    model.info = info
    return model


def write(path: Path, metadata: dict[str, str]) -> Path:
    write_safetensors(path, little().state_dict(), metadata)
    return path


@pytest.mark.parametrize("info", [INFO, None])
def test_a_saved_model_comes_back_with_all_that_is_known_of_it(tmp_path: Path, info: ModelInfo | None) -> None:
    model, path = little(info), tmp_path / "little.safetensors"
    save_model(model, path)
    for loaded in (load_file(path), get_model(path), get_model(str(path))):
        assert loaded.config == CONFIG
        assert loaded.info == info
        assert not loaded.training
        assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
        images = torch.rand(2, 1, 12, 16)
        assert torch.equal(loaded(images), model(images))
    assert {file.name for file in tmp_path.iterdir()} == {path.name}


def test_the_file_states_its_digest_and_is_plain_json_inside(tmp_path: Path) -> None:
    model, path = little(), tmp_path / "little.safetensors"
    save_model(model, path)
    metadata = read_checkpoint(path).metadata
    assert metadata["digest"] == digest(model.state_dict())
    assert metadata["format"] == "pt"
    content = json.loads(metadata["xcit"])
    assert content["config"]["embed_dim"] == 16
    assert content["info"]["class_names"] == ["cat", "dog", "Löwe"]


def test_a_model_that_cannot_be_saved_leaves_what_was_there(tmp_path: Path) -> None:
    with pytest.raises(XCiTError, match=r"can't be written: No such file or directory"):
        save_model(little(), tmp_path / "nowhere" / "little.safetensors")


@pytest.mark.parametrize(
    "content",
    [
        "{broken",
        "[]",
        "3",
        "{}",
        '{"config": {"embed_dim": 16, "colour": "red"}}',
        '{"config": {"embed_dim": "16"}}',
        '{"config": {"embed_dim": -16}}',
        '{"config": []}',
        '{"config": {}, "info": {"name": "little"}}',
        '{"config": {}, "info": 3}',
        '{"config": {}, "info": "abc"}',
        '{"config": {}, "info": {"name": "x", "preprocessing": {"mean": 1}, "class_names": [], "class_ids": []}}',
        '{"config": {}, "info": {"name": "x", "preprocessing": {"mean": [], "std": []}, "class_names": null}}',
    ],
)
def test_broken_metadata_are_named(tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "broken.safetensors", {"xcit": content})
    with pytest.raises(XCiTError, match=r"broken\.safetensors: its metadata can't be read: ") as caught:
        load_file(path)
    assert "\n" not in str(caught.value)


def test_files_of_others_have_no_metadata_of_ours(tmp_path: Path) -> None:
    stored = read_checkpoint(write(tmp_path / "other.safetensors", {"format": "pt", "licence": "MIT"}))
    assert read_metadata(stored) is None
    stored = read_checkpoint(write(tmp_path / "ours.safetensors", model_metadata(CONFIG, INFO)))
    assert read_metadata(stored) == Statement(kind=CLASSIFIER, config=CONFIG, info=INFO)


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if not ARCHITECTURES[name].stem_strides])
def test_shapes_tell_the_architecture(architecture: str) -> None:
    config = ARCHITECTURES[architecture]
    with torch.device("meta"):
        state = XCiT(config).state_dict()
    assert config_from_state(state, "file") == config
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    assert config_from_state(headless, "file").num_classes == 0
    assert config_from_state(headless, "file").tokens_norm == config.tokens_norm
    patches = {name: t for name, t in headless.items() if not name.startswith(("cls_", "norm."))}
    backbone = config_from_state(patches, "file")
    assert (backbone.cls_depth, backbone.global_pool, backbone.depth) == (0, "none", config.depth)


def test_shapes_tell_classes_and_channels() -> None:
    with torch.device("meta"):
        state = XCiT(
            XCiTConfig(embed_dim=128, num_heads=4, tokens_norm=False, in_channels=4, num_classes=7)
        ).state_dict()
    found = config_from_state(state, "file")
    assert (found.num_classes, found.in_channels) == (7, 4)
    assert found.embed_dim == PUBLISHED_ARCHITECTURES["nano-12-p16"].embed_dim


def test_an_unknown_shape_is_described_with_the_way_out(tmp_path: Path) -> None:
    path = write(tmp_path / "other.safetensors", {})
    with pytest.raises(XCiTError) as caught:
        load_file(path)
    message = str(caught.value)
    assert message.startswith(
        f"{path}: no known architecture has patch_size 4, embed_dim 16, depth 1, num_heads 2, and the file does not"
    )
    assert "xcit.load_weights(model, path)" in message


@pytest.mark.parametrize("missing", ["position.projection.weight", "stem.0.conv.weight", "blocks.0.xca.temperature"])
def test_weights_that_are_no_xcit_are_named(missing: str) -> None:
    state = {name: tensor for name, tensor in little().state_dict().items() if name != missing}
    with pytest.raises(XCiTError, match=f"file: not the weights of an XCiT: no tensor '{missing}'"):
        config_from_state(state, "file")


def test_an_empty_model_is_one_to_be_filled() -> None:
    model = empty_model(CONFIG)
    reference = XCiT(CONFIG)
    assert model.config == CONFIG
    assert {name: (t.shape, t.dtype, t.device) for name, t in model.state_dict().items()} == {
        name: (t.shape, t.dtype, t.device) for name, t in reference.state_dict().items()
    }
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.stem[0].norm.num_batches_tracked == 0
    model.load_state_dict(reference.state_dict())
    assert torch.equal(model.eval()(torch.ones(1, 1, 8, 8)), reference.eval()(torch.ones(1, 1, 8, 8)))


def test_building_a_model_starts_no_compiler() -> None:
    """Drawing normal initial values on the meta device would import sympy and torch._dynamo, which takes seconds."""
    code = (
        "import sys, xcit; from xcit.models import XCiTConfig, SegmenterConfig; from xcit.zoo.stored import on_meta;"
        "xcit.get_model('packaged', pretrained=True);"
        "backbone = XCiTConfig(embed_dim=16, depth=4, num_heads=2, cls_depth=0, num_classes=0, global_pool='none');"
        "[on_meta(SegmenterConfig(kind=kind, backbone=backbone)) for kind in ('upernet', 'sem-fpn')];"
        "print(sorted({'sympy', 'torch._dynamo'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
