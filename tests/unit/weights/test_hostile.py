"""Tests files with false sizes or without weights: a one-line error, before the file takes much time or memory."""

import io
import json
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from xcit.config import to_dict
from xcit.errors import XCiTError
from xcit.models import XCiT, XCiTConfig
from xcit.training.recipes import get_recipe
from xcit.weights.files import read_checkpoint
from xcit.weights.pickles import MOST_TENSORS
from xcit.weights.plain import tensor_problem, type_problem, unstored_bytes
from xcit.weights.strict import load_state
from xcit.zoo import get_model

_MODEL = get_recipe("xcit-pico-fashion-mnist").model
assert isinstance(_MODEL, XCiTConfig)
PICO: XCiTConfig = _MODEL
STATE = {name: tensor.clone() for name, tensor in XCiT(PICO).state_dict().items()}
NAME = "blocks.0.xca.qkv.weight"
WEIGHT = STATE[NAME]


def quantised(tensor: Tensor) -> Tensor:
    with warnings.catch_warnings(action="ignore"):
        return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


ODD = {
    "a sparse tensor (sparse_coo)": WEIGHT.to_sparse(),
    "quantised (qint8)": quantised(WEIGHT),
    "without values (on torch's meta device)": WEIGHT.to("meta"),
    "of complex numbers (complex64)": WEIGHT.to(torch.complex64),
}


def refusal(path: Path, content: object) -> str:
    torch.save(content, path)
    with pytest.raises(XCiTError) as caught:
        get_model(str(path))
    return str(caught.value)


@pytest.mark.parametrize(("problem", "tensor"), ODD.items(), ids=[*ODD])
def test_tensors_that_are_no_weights(problem: str, tensor: Tensor, tmp_path: Path) -> None:
    assert tensor_problem(tensor) == problem
    assert f"{NAME} is {problem}" in refusal(tmp_path / "a.pth", STATE | {NAME: tensor})
    model = XCiT(PICO)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(XCiTError, match="does not fit the model"):
        load_state(model, STATE | {NAME: tensor}, "it")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    assert (tensor_problem(WEIGHT.to(dtype)), type_problem(WEIGHT.to(dtype), WEIGHT)) == ("", "")
    torch.save(STATE | {NAME: WEIGHT.to(dtype)}, tmp_path / "a.pth")
    loaded = get_model(str(tmp_path / "a.pth")).state_dict()[NAME]
    assert torch.equal(loaded, WEIGHT.to(dtype).float())


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.uint8, torch.int64])
def test_whole_numbers_in_place_of_weights_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    message = refusal(tmp_path / "a.pth", STATE | {NAME: WEIGHT.to(dtype)})
    assert f"{NAME} is of type {str(dtype)[6:]}, where the model has floating-point numbers" in message


def test_one_number_that_claims_to_fill_the_memory(tmp_path: Path) -> None:
    huge = torch.zeros(1).expand(2**40)
    assert unstored_bytes([WEIGHT, huge]) == 2**42
    path = tmp_path / "a.pth"
    assert "claim 4,398,046,511,104 bytes that are not in the file" in refusal(path, STATE | {NAME: huge})
    # These tensors are in a file with the weights of an XCiT, under names that the reader looks for.
    assert "claim" in refusal(path, {"mean": huge, "std": huge, **STATE})
    # A stride of 0 is allowed for small tensors, for example for a bias of zeros.
    torch.save(STATE | {NAME: torch.zeros(1).expand(WEIGHT.shape)}, path)
    assert get_model(str(path)).state_dict()[NAME].abs().max() == 0


def with_metadata(path: Path, **changes: Any) -> Path:
    config = to_dict(PICO) | changes
    save_file(STATE, path, metadata={"xcit": json.dumps({"config": config}), "format": "pt"})
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 10**6}, "the model's depth requires 1,000,000 layers, but the file has only 217 tensors"),
        ({"cls_depth": 10**9}, "the model's cls_depth requires 1,000,000,000 layers, but the file has only"),
        ({"embed_dim": 2**20}, "does not fit the model: 202 other shape"),
        ({"embed_dim": 2**40}, "no model can have its config"),
        ({"num_classes": 2**45}, "head.weight is 10x64, the model's is 35184372088832x64"),
        (
            {"num_classes": 10**30},
            "num_classes must be a number of at most 64 bits, not 1000000000000000000000000000000",
        ),
        ({"depth": 7}, "does not fit the model"),
        ({"depth": [1]}, "depth must be of type int, not [1]"),
    ],
)
def test_metadata_that_claim_more_than_the_tensors(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = with_metadata(tmp_path / "a.safetensors", **changes)
    with pytest.raises(XCiTError) as caught:
        get_model(str(path))
    assert message in " ".join(str(caught.value).split())


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{}", "[]", "9" * 5000, '{"config": null}', '{"config": {"depth": 1e999}}']
)
def test_metadata_that_are_none(text: str, tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors", metadata={"xcit": text})
    with pytest.raises(XCiTError, match="its metadata can't be read"):
        get_model(str(tmp_path / "a.safetensors"))


def test_too_many_tensors(tmp_path: Path) -> None:
    more = {f"blocks.{number}.x": STATE["norm.bias"] for number in range(MOST_TENSORS)}
    torch.save(STATE | more, tmp_path / "a.pth")  # all with one storage, so that the archive has few entries
    with pytest.raises(XCiTError, match="a state dict of more than 50,000 tensors"):
        read_checkpoint(tmp_path / "a.pth")


def test_block_numbers_that_claim_a_depth(tmp_path: Path) -> None:
    message = refusal(tmp_path / "a.pth", STATE | {"blocks.2999.x": torch.zeros(1)})
    assert "no known architecture has patch_size 4, embed_dim 64, depth 3000" in message


def test_deep_pickles(tmp_path: Path) -> None:
    # {0: {0: ...}} in pickle's format, but nested deeper than `pickle` can write.
    for depth in (50, 100_000):
        path = tmp_path / "a.pth"
        path.write_bytes(b"\x80\x02" + b"}K\x00" * depth + b"}" + b"s" * depth + b".")
        with pytest.raises(XCiTError, match=r"a\.pth (is damaged|has no weights|holds)"):
            read_checkpoint(path)


def test_an_archive_whose_entries_share_their_bytes(tmp_path: Path) -> None:
    """Each entry contains all later entries, so the sizes of 200 entries add up to many times the size of the file."""
    body, names, entries = bytes(2**16), [f"archive/data/{number}" for number in range(199)] + ["archive/data.pkl"], []
    for name in reversed(names):
        header = struct.pack(
            "<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0, zlib.crc32(body), len(body), len(body), len(name), 0
        )
        entries.append((name, zlib.crc32(body), len(body)))
        body = header + name.encode() + body
    file, end = io.BytesIO(), len(body)
    file.write(body)
    offset = 0
    for name, checksum, size in reversed(entries):
        file.seek(0, io.SEEK_END)
        fields = (20, 20, 0, 0, 0, 0, checksum, size, size, len(name), 0, 0, 0, 0, 0, offset)
        file.write(struct.pack("<4s6H3I5H2I", b"PK\1\2", *fields) + name.encode())
        offset += 30 + len(name)
    start = end
    length = file.tell() - start
    file.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, len(names), len(names), length, start, 0))
    (tmp_path / "a.pth").write_bytes(file.getvalue())
    with pytest.raises(XCiTError, match="is damaged: the entries of its archive overlap"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_classifier_under_teacher_alone_keeps_its_head(tmp_path: Path) -> None:
    torch.save({"teacher": STATE}, tmp_path / "a.pth")
    stored = read_checkpoint(tmp_path / "a.pth")
    assert stored.state.keys() == STATE.keys() and stored.set_aside == ()
    model = get_model(str(tmp_path / "a.pth"))
    images = torch.zeros(1, 1, 28, 28)
    reference = XCiT(PICO).eval()
    reference.load_state_dict(STATE)
    with torch.inference_mode():
        assert torch.equal(model(images), reference(images))
