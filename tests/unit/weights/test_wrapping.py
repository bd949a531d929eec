"""Tests weights as users save them: under keys, with prefixes, with counters and averages in the same file."""

import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from xcit.errors import XCiTError
from xcit.models import XCiT, XCiTConfig
from xcit.weights.files import read_checkpoint
from xcit.weights.formats import FORMATS, Format, from_native
from xcit.weights.wrapping import split_key

torch.manual_seed(0)
MODEL = XCiT(XCiTConfig(embed_dim=16, depth=2, num_heads=2, num_classes=5))
STATE = {name: tensor.clone() for name, tensor in MODEL.state_dict().items()}
OTHER = {name: tensor + 1 for name, tensor in STATE.items()}


def prefixed(prefix: str, state: dict[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def read(folder: Path, content: object, key: str | None = None) -> dict[str, Tensor]:
    torch.save(content, folder / "file.pth")
    return read_checkpoint(folder / "file.pth", key=key).state


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor] = STATE) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


WRAPPED = {
    "flat": STATE,
    "model": {"model": STATE, "epoch": 3},
    "model_state_dict": {"model_state_dict": STATE, "optimizer_state_dict": {"state": {}}},
    "net": {"net": STATE, "acc": 93.1},
    "network": {"network": STATE},
    "any key of its own": {"classifier_weights": STATE, "epoch": 1},
    "deep": {"checkpoint": {"state_dict": STATE}},
    "Lightning": {"state_dict": prefixed("model."), "hyper_parameters": {"lr": 0.1}},
    "Lightning, another attribute": {"state_dict": prefixed("encoder.")},
    "Lightning, compiled": {"state_dict": prefixed("model._orig_mod.")},
    "Lightning with a loss": {"state_dict": prefixed("net.") | {"loss.weight": torch.ones(5)}},
    "DataParallel": {"state_dict": prefixed("module.")},
    "DataParallel of a wrapper": prefixed("module.model."),
    "DataParallel within": {"net": prefixed("model.module.")},
    "SWA": {"n_averaged": torch.tensor(7), **prefixed("module.")},
    "SWA within": {"model": {"n_averaged": torch.tensor(7), **prefixed("module.")}},
    "EMA alone": {"model_ema": STATE, "epoch": 3},
    "EMA alone, timm's": {"state_dict_ema": prefixed("module.")},
    "EMA alone, mmengine's": {"ema_state_dict": {"steps": torch.tensor(9), **prefixed("module.")}},
    "FSDP": prefixed("_fsdp_wrapped_module."),
    "compiled blocks": {name.replace("blocks.0.", "blocks.0._orig_mod.", 1): STATE[name] for name in STATE},
    "trained before its average": {"model_ema": OTHER, "model": STATE},
    "trained before its average, timm's": {"state_dict_ema": OTHER, "state_dict": STATE},
    "Lightning with an average": {"state_dict": prefixed("model.") | prefixed("model_ema.", OTHER)},
    "Lightning with a teacher": {"state_dict": prefixed("teacher.", OTHER) | prefixed("model.")},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_whatever_is_around_them_the_weights_are_found(name: str, tmp_path: Path) -> None:
    assert_same(read(tmp_path, WRAPPED[name]))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("prefix", ["model.", "module.", "net.model.", "learner.module.backbone_net."])
def test_prefixes_come_off_every_format_and_file(prefix: str, format: Format, tmp_path: Path) -> None:
    content = prefixed(prefix, from_native(STATE, format))
    assert_same(read(tmp_path, {"state_dict": content}))
    save_file(content, tmp_path / "file.safetensors")
    stored = read_checkpoint(tmp_path / "file.safetensors")
    assert stored.format == format
    assert_same(stored.state)


def test_torchs_own_averaged_model(tmp_path: Path) -> None:
    averaged = AveragedModel(MODEL)
    averaged.update_parameters(MODEL)
    torch.save(averaged.state_dict(), tmp_path / "swa.pt")
    stored = read_checkpoint(tmp_path / "swa.pt")
    assert_same(stored.state)
    assert stored.set_aside == ("n_averaged",)


KEYS = [
    ({"model": OTHER, "model_ema": STATE}, "model_ema"),
    ({"state_dict": OTHER, "state_dict_ema": prefixed("module.")}, "state_dict_ema"),
    ({"state_dict": prefixed("model.", OTHER) | prefixed("ema_model.")}, "ema_model"),
    ({"state_dict": prefixed("model.", OTHER) | prefixed("ema_model.")}, "state_dict.ema_model"),
    ({"state_dict": prefixed("online.", OTHER) | prefixed("target.")}, "target"),
    ({"a": {"state_dict": OTHER}, "b": {"state_dict": STATE}}, "b"),
    ({"generator": OTHER, "encoder": STATE}, "encoder"),
]


@pytest.mark.parametrize(("content", "key"), KEYS)
def test_a_key_chooses_and_may_stand_after_the_path(content: object, key: str, tmp_path: Path) -> None:
    assert_same(read(tmp_path, content, key))
    assert_same(read_checkpoint(f"{tmp_path / 'file.pth'}#{key}").state)


def test_a_prefix_of_a_safetensors_file_is_a_key_too(tmp_path: Path) -> None:
    save_file(prefixed("online.", OTHER) | prefixed("target."), tmp_path / "two.safetensors")
    assert_same(read_checkpoint(tmp_path / "two.safetensors", key="target").state)


def test_where_it_is_not_clear_the_message_names_the_keys(tmp_path: Path) -> None:
    with pytest.raises(XCiTError) as caught:
        read(tmp_path, {"state_dict": prefixed("online.", OTHER) | prefixed("target.")})
    assert str(caught.value) == (
        f"{tmp_path / 'file.pth'} contains several sets of weights: choose one with key (--key) state_dict.online or "
        "state_dict.target"
    )
    with pytest.raises(XCiTError) as caught:
        read(tmp_path, {"model": STATE, "model_ema": OTHER}, "ema")
    assert str(caught.value) == (
        f"{tmp_path / 'file.pth'} has no weights under 'ema'; its top-level keys are: model, model_ema; weights are "
        "under: model, model_ema"
    )


def test_a_file_with_a_hash_in_its_name_has_no_key(tmp_path: Path) -> None:
    path = tmp_path / "run#3.pth"
    torch.save(STATE, path)
    assert split_key(path) == (path, None)
    assert_same(read_checkpoint(path).state)
    assert split_key(f"{path}#model") == (path, "model")
    assert split_key("folder#1/last.pth") == (Path("folder#1/last.pth"), None)


@pytest.mark.parametrize(
    ("mean", "std"),
    [("normalize.mean", "normalize.std"), ("0.mean", "0.std"), ("mu", "sigma"), ("norm_in.mean", "norm_in.std")],
)
@pytest.mark.parametrize("channels", [1, 3, 6])
def test_a_normalisation_before_the_model_is_read(mean: str, std: str, channels: int, tmp_path: Path) -> None:
    values = [0.4914 + index / 100 for index in range(channels)]
    content = {
        mean: torch.tensor(values).view(1, -1, 1, 1),
        std: torch.full((1, channels, 1, 1), 0.2471),
        **prefixed("model." if "." in mean else ""),
    }
    torch.save(content, tmp_path / "file.pth")
    stored = read_checkpoint(tmp_path / "file.pth")
    assert_same(stored.state)
    assert stored.normalization == (tuple(float(f"{value:.7g}") for value in values), (0.2471,) * channels)
    assert set(stored.set_aside) == {mean, std}


def test_lightnings_hyper_parameters_are_passed_over(tmp_path: Path) -> None:
    """Most checkpoints of Lightning contain its class AttributeDict, which is missing here when the file is read."""
    name = "lightning.fabric.utilities.data"
    parts = [".".join(name.split(".")[: count + 1]) for count in range(4)]
    module = types.ModuleType(name)
    kind = type("AttributeDict", (dict,), {"__module__": name, "__qualname__": "AttributeDict"})
    module.AttributeDict = kind  # type: ignore[attr-defined]
    content = {"state_dict": prefixed("model."), "hyper_parameters": kind(lr=0.1, data=Path("data"), sizes=[1, 2])}
    with pytest.MonkeyPatch.context() as patch:
        for part in parts[:-1]:
            patch.setitem(sys.modules, part, types.ModuleType(part))
        patch.setitem(sys.modules, name, module)
        torch.save(content, tmp_path / "last.ckpt")
    assert_same(read_checkpoint(tmp_path / "last.ckpt").state)


def test_a_head_beside_the_model_is_named_as_left_out(tmp_path: Path) -> None:
    content = prefixed("model.") | {"projector.weight": nn.Linear(2, 2).weight.detach()}
    torch.save(content, tmp_path / "file.pth")
    assert read_checkpoint(tmp_path / "file.pth").set_aside == ("projector.weight",)
