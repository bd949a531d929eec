from pathlib import Path

import pytest
import torch
from torch import Tensor

from xcit.errors import XCiTError
from xcit.models import XCiT, XCiTConfig
from xcit.weights.files import digest, write_pickle, write_safetensors
from xcit.zoo import ARCHITECTURES, save_model, verify
from xcit.zoo.conversion import convert

CONFIG = ARCHITECTURES["pico-6-p4"]


@pytest.fixture
def state() -> dict[str, Tensor]:
    return XCiT(CONFIG).state_dict()


def test_a_good_file(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "good.safetensors"
    write_safetensors(path, state, {})
    found = verify(path)
    assert (found.path, found.format, found.architecture) == (path, "xcit", "pico-6-p4")
    assert found.digest == digest(state)
    assert found.recorded
    assert found.num_tensors == len(state)
    assert found.params == sum(parameter.numel() for parameter in XCiT(CONFIG).parameters())
    assert verify(str(path)) == found


@pytest.mark.parametrize(
    ("form", "suffix"), [("official", ".pth"), ("timm", ".safetensors"), ("mmpretrain", ".pth"), ("xcit", ".pt")]
)
def test_the_digest_is_one_over_all_formats(tmp_path: Path, state: dict[str, Tensor], form: str, suffix: str) -> None:
    path = tmp_path / f"{form}{suffix}"
    write_safetensors(tmp_path / "source.safetensors", state, {})
    convert(tmp_path / "source.safetensors", path, form)
    found = verify(path)
    assert (found.format, found.digest) == (form, digest(state))
    assert found.recorded == (suffix == ".safetensors")  # a pickle can't store the digest


def test_a_name_of_the_zoo() -> None:
    found = verify("packaged")
    assert found.path.name == "xcit-pico-fashion-mnist.safetensors"
    assert (found.architecture, found.recorded) == ("pico-6-p4", True)


def test_a_shape_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    save_model(XCiT(XCiTConfig(patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=3)), path)
    assert verify(path).architecture == "its own config"


def test_a_flipped_bit_is_found(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "flipped.safetensors"
    write_safetensors(path, state, {})
    content = bytearray(path.read_bytes())
    content[-400] ^= 1
    path.write_bytes(content)
    with pytest.raises(XCiTError, match=rf"flipped\.safetensors: damaged: .* the file states {digest(state)}"):
        verify(path)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_values_that_are_no_numbers_are_found(tmp_path: Path, state: dict[str, Tensor], bad: float) -> None:
    path = tmp_path / "bad.safetensors"
    state["blocks.3.scale_lpi"][5] = bad
    state["norm.bias"][0] = bad
    write_safetensors(path, state, {})
    with pytest.raises(
        XCiTError, match=r"2 tensors contain NaN or infinity, the first is (blocks\.3\.scale_lpi|norm\.bias)"
    ):
        verify(path)


def test_a_missing_an_unknown_and_a_reshaped_tensor_are_found(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "wrong.pth"
    del state["norm.bias"]
    state["extra"] = torch.zeros(2)
    state["norm.weight"] = torch.zeros(65)
    write_pickle(path, state)
    with pytest.raises(XCiTError) as caught:
        verify(path)
    assert str(caught.value).splitlines() == [
        f"{path} does not fit the model: 1 missing, 1 unexpected, 1 other shape",
        "  missing: norm.bias 64",
        "  unexpected: extra 2",
        "  other shape: norm.weight is 65, the model's is 64",
    ]


def test_missing_files_and_names_are_named(tmp_path: Path) -> None:
    with pytest.raises(XCiTError, match="no such file"):
        verify(tmp_path / "no.safetensors")
    with pytest.raises(XCiTError, match="no model is called 'xcit-nano'"):
        verify("xcit-nano")
