"""Tests DINO's published backbones: by name, from files in every published form, and from files without a backbone."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from xcit.errors import XCiTError
from xcit.images.preprocess import DINO_PREPROCESSING
from xcit.models import XCiT, XCiTConfig
from xcit.weights.formats import from_native
from xcit.zoo import ARCHITECTURES, CHECKPOINTS, find_checkpoint, get_model, load_file, load_record, verify

NAMES = [name for name in CHECKPOINTS if name.startswith("dino_")]
NAME = "dino_xcit-small-12-p16_in1k"

State = dict[str, Tensor]


def state_of(config: XCiTConfig, seed: int) -> State:
    """Returns a state dict in which each tensor repeats one number, so that files of whole models are small."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        outline = XCiT(config).state_dict()
    return {
        name: (torch.rand((), generator=generator) + 0.5).to(tensor.dtype).expand(tensor.shape)
        for name, tensor in outline.items()
    }


def full_checkpoint(student: State, teacher: State, *, wrapped_teacher: bool = True) -> dict[str, Any]:
    """Returns a checkpoint with the structure of DINO's published full checkpoints."""
    head = {
        "head.mlp.0.weight": torch.ones(8, 4),
        "head.mlp.0.bias": torch.ones(8),
        "head.last_layer.weight_g": torch.ones(16, 1),
        "head.last_layer.weight_v": torch.ones(16, 8),
    }

    def network(state: State, prefix: str) -> State:
        backbone = {f"backbone.{name}": tensor for name, tensor in from_native(state, "official").items()}
        return {f"{prefix}{name}": tensor for name, tensor in (backbone | head).items()}

    return {
        "student": network(student, "module."),
        "teacher": network(teacher, "module." if wrapped_teacher else ""),
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-3}]},
        "epoch": 100,
        "args": argparse.Namespace(arch="xcit_small_12_p16", out_dim=65536, local_crops_scale=(0.05, 0.4)),
        "dino_loss": {"center": torch.zeros(1, 16)},
        "fp16_scaler": None,
    }


FORMS: dict[str, Callable[[State, State], tuple[Any, dict[str, Any]]]] = {
    "backbone alone": lambda student, teacher: (from_native(teacher, "official"), {}),
    "full": lambda student, teacher: (full_checkpoint(student, teacher), {}),
    "full, bare teacher": lambda student, teacher: (full_checkpoint(student, teacher, wrapped_teacher=False), {}),
    "full, before torch 1.6": lambda student, teacher: (
        full_checkpoint(student, teacher),
        {"_use_new_zipfile_serialization": False},
    ),
}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def write(path: Path, form: str, config: XCiTConfig) -> tuple[State, State]:
    student, teacher = state_of(config, 1), state_of(config, 2)
    content, options = FORMS[form](student, teacher)
    torch.save(content, path, **options)
    return student, teacher


def assert_is(model: Any, state: State) -> None:
    own = model.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in own.items())


@pytest.mark.parametrize("name", NAMES)
def test_by_name_without_weights_there_is_no_head(name: str) -> None:
    with torch.device("meta"):
        model = get_model(name)
    assert model.config == CHECKPOINTS[name].config
    assert (model.num_classes, model.training) == (0, False)
    assert model(torch.empty(3, 3, 224, 224, device="meta")).shape == (3, model.embed_dim)


@pytest.mark.parametrize("name", [NAME, "dino_xcit_small_12_p16", "xcit_small_12_cp16_dino"])
def test_a_file_of_any_form_loads_strictly(tmp_path: Path, form: str, name: str) -> None:
    path = tmp_path / "dino.pth"
    _, teacher = write(path, form, find_checkpoint(name).config)
    model: Any = get_model(name, pretrained=path)
    assert_is(model, teacher)
    assert not model.training
    with torch.inference_mode():
        assert model(torch.rand(2, 3, 32, 48)).shape == (2, 384)
    assert model.info is not None
    assert (model.info.name, model.info.preprocessing) == (NAME, DINO_PREPROCESSING)
    assert (model.info.class_names, model.info.class_ids) == ((), ())


def test_a_file_alone_tells_what_it_is(tmp_path: Path, form: str) -> None:
    path = tmp_path / "my-dino.pth"
    _, teacher = write(path, form, CHECKPOINTS["dino_xcit-small-12-p8_in1k"].config)
    for model in (load_file(path), get_model(path)):
        assert_is(model, teacher)
        assert model.config == CHECKPOINTS["dino_xcit-small-12-p8_in1k"].config
        assert model.info is not None
        assert (model.info.name, model.info.preprocessing) == ("my-dino", DINO_PREPROCESSING)
    verified = verify(path)
    assert (verified.format, verified.architecture) == ("dino", "small-12-p8")


def test_pretrained_takes_the_published_file_from_a_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = find_checkpoint(NAME)
    monkeypatch.setenv("XCIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XCIT_MIRROR", str(tmp_path))
    monkeypatch.setenv("XCIT_OFFLINE", "1")
    for source in record.sources:
        path = tmp_path / source.filename
        _, teacher = write(path, "backbone alone", record.config)
        assert_is(get_model(NAME, pretrained=True), teacher)
        kept = load_record(record)
        assert kept.info is not None
        assert (kept.info.preprocessing, kept.info.class_names) == (DINO_PREPROCESSING, ())
        path.unlink()
        (tmp_path / "cache" / "checkpoints" / f"{NAME}.safetensors").unlink()


def test_a_new_head_on_a_backbone(tmp_path: Path) -> None:
    path = tmp_path / "dino.pth"
    _, teacher = write(path, "full", CHECKPOINTS[NAME].config)
    model: Any = get_model(NAME, pretrained=path, num_classes=10)
    assert model.head.weight.shape == (10, 384)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in teacher.items())


@pytest.mark.parametrize(
    ("architecture", "form", "difference"),
    [
        ("small-12-p8", "backbone alone", "their patch_size is 8, the model's is 16"),
        ("medium-24-p16", "full", "their embed_dim is 512, the model's is 384"),
        ("small-24-p16", "full, bare teacher", "their depth is 24, the model's is 12"),
    ],
)
def test_another_architecture_is_told_in_one_line(
    tmp_path: Path, architecture: str, form: str, difference: str
) -> None:
    path = tmp_path / "dino.pth"
    write(path, form, replace(ARCHITECTURES[architecture], num_classes=0))
    assert error_of(path) == f"{path}: these are weights of another architecture: {difference}"


def test_a_supervised_classifier_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "xcit_small_12_p16_224.pth"
    state = state_of(ARCHITECTURES["small-12-p16"], 1)
    torch.save({"model": from_native(state, "official")}, path)
    assert error_of(path) == (
        f"{path}: the weights include a classifier of 1000 classes, but the model has none: give the name of a model "
        "with a classifier, or pass num_classes=0 to ignore the classifier in the file"
    )
    features: Any = get_model(NAME, pretrained=path, num_classes=0)
    assert_is(features, {name: tensor for name, tensor in state.items() if not name.startswith("head.")})


def test_a_head_without_backbone_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "head.pth"
    content = full_checkpoint({}, {})
    torch.save(content, path)
    assert error_of(path) == f"{path} contains DINO's projection head, but not the backbone"


def test_what_more_than_the_arguments_is_in_a_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "hostile.pth"
    marker = tmp_path / "was-run"

    class Hostile:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (marker,)

    state = state_of(CHECKPOINTS[NAME].config, 1)
    torch.save(full_checkpoint(state, state) | {"args": Hostile()}, path)
    assert "nothing was run" in error_of(path)
    assert not marker.exists()


def error_of(path: Path) -> str:
    with pytest.raises(XCiTError) as caught:
        get_model(NAME, pretrained=path)
    message = str(caught.value)
    assert "\n" not in message
    return message
