from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from xcit.errors import XCiTError
from xcit.models import XCiT, XCiTConfig
from xcit.weights.files import digest, read_checkpoint, write_safetensors
from xcit.weights.formats import FORMATS, Format, from_native
from xcit.zoo.conversion import convert

METADATA = {"config": '{"embed_dim": 16}', "licence": "Apache-2.0"}


def random_state(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Returns a state dict of random bits, including NaN and infinity, so that tests compare bit for bit."""
    config = XCiTConfig(
        patch_size=(4, 8, 16)[seed % 3], embed_dim=16 * (1 + seed % 2), depth=2, num_heads=2, num_classes=3
    )
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in XCiT(config).state_dict().items():
        dtype_of = dtype if tensor.is_floating_point() else torch.int64
        flat = torch.randint(0, 256, (tensor.numel() * dtype_of.itemsize,), dtype=torch.uint8, generator=generator)
        state[name] = flat.view(dtype_of).reshape(tensor.shape)
    return state


def assert_bits_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert (one[name].dtype, one[name].shape) == (other[name].dtype, other[name].shape)
        assert torch.equal(one[name].reshape(-1).view(torch.uint8), other[name].reshape(-1).view(torch.uint8)), name


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.safetensors"
    write_safetensors(path, random_state(0), METADATA)
    return path


@pytest.mark.parametrize(
    ("seed", "dtype", "suffixes"),
    [
        (0, torch.float32, (".safetensors", ".safetensors")),
        (1, torch.bfloat16, (".pth", ".pth")),
        (2, torch.float16, (".safetensors", ".pth")),
        (3, torch.float64, (".pth", ".safetensors")),
    ],
)
def test_round_trips_between_all_formats(
    tmp_path: Path, seed: int, dtype: torch.dtype, suffixes: tuple[str, str]
) -> None:
    state = random_state(seed, dtype)
    start = tmp_path / "start.safetensors"
    write_safetensors(start, state, {})
    for one in FORMATS:
        first = tmp_path / f"{one}{suffixes[0]}"
        convert(start, first, one)
        assert_bits_equal(read_checkpoint(first).state, state)
        for other in FORMATS:
            second = tmp_path / f"{one}-{other}{suffixes[1]}"
            assert convert(first, second, other).format == one
            stored = read_checkpoint(second)
            assert (stored.format, stored.set_aside) == (other, ())
            assert_bits_equal(stored.state, state)
            assert digest(stored.state) == digest(state)


@pytest.mark.parametrize("suffixes", [(".pth", ".safetensors"), (".safetensors", ".pth")])
def test_a_backbone_goes_to_dino_s_format_and_back(tmp_path: Path, suffixes: tuple[str, str]) -> None:
    state = {name: tensor for name, tensor in random_state(0).items() if not name.startswith("head.")}
    start = tmp_path / "start.safetensors"
    write_safetensors(start, state, {})
    dino = tmp_path / f"dino{suffixes[0]}"
    convert(start, dino, "dino")
    if dino.suffix == ".pth":  # the published form: a state dict without a wrapper
        assert torch.load(dino, weights_only=True).keys() == from_native(state, "official").keys()
    assert read_checkpoint(dino).format == "dino"
    for to in (*FORMATS, "dino"):
        back = tmp_path / f"{to}{suffixes[1]}"
        assert convert(dino, back, to).format == "dino"
        assert_bits_equal(read_checkpoint(back).state, state)
        assert digest(read_checkpoint(back).state) == digest(state)


def test_dino_s_format_has_no_place_for_a_classifier(tmp_path: Path, source: Path) -> None:
    with pytest.raises(XCiTError, match=r"source\.safetensors has a classifier, but DINO's format contains none"):
        convert(source, tmp_path / "dino.pth", "dino")
    assert not (tmp_path / "dino.pth").exists()


def test_the_student_of_a_full_dino_checkpoint_is_had_by_its_key(tmp_path: Path, source: Path) -> None:
    networks = [
        {name: tensor for name, tensor in random_state(seed).items() if not name.startswith("head.")} for seed in (0, 3)
    ]
    head = {"module.head.last_layer.weight_g": torch.ones(3, 1)}
    student, teacher = (
        {f"module.backbone.{name}": tensor for name, tensor in from_native(state, "official").items()} | head
        for state in networks
    )
    path = tmp_path / "full.pth"
    torch.save({"student": student, "teacher": teacher, "epoch": 3}, path)
    for key, state in ((None, networks[1]), ("teacher", networks[1]), ("student", networks[0])):
        stored = convert(path, tmp_path / "out.safetensors", "xcit", key=key, overwrite=True)
        assert (stored.format, stored.set_aside) == ("dino", ("head.last_layer.weight_g",))
        assert_bits_equal(read_checkpoint(tmp_path / "out.safetensors").state, state)
    with pytest.raises(
        XCiTError, match=r"full\.pth has no weights under 'ema'; its top-level keys are: student, teacher"
    ):
        convert(path, tmp_path / "other.pth", "xcit", key="ema")
    with pytest.raises(XCiTError, match=r"source\.safetensors contains one set of weights, which needs no key"):
        convert(source, tmp_path / "other.pth", "xcit", key="student")


@pytest.mark.parametrize("to", FORMATS)
def test_safetensors_keeps_metadata_and_the_digest_of_native_names(tmp_path: Path, source: Path, to: Format) -> None:
    path = tmp_path / "out.safetensors"
    convert(source, path, to)
    stored = read_checkpoint(path)
    assert stored.metadata == METADATA | {"digest": digest(random_state(0))}
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == from_native(random_state(0), to).keys()


@pytest.mark.parametrize(
    ("to", "keys"), [("official", {"model"}), ("mmpretrain", {"state_dict", "meta"}), ("timm", None), ("xcit", None)]
)
def test_pickles_are_wrapped_as_each_format_has_it(
    tmp_path: Path, source: Path, to: Format, keys: set[str] | None
) -> None:
    path = tmp_path / "out.pth"
    convert(source, path, to)
    loaded = torch.load(path, weights_only=True)
    names = from_native(random_state(0), to).keys()
    assert loaded.keys() == (keys or names)
    if keys:
        assert loaded["model" if to == "official" else "state_dict"].keys() == names


def test_a_converted_pickle_holds_no_more_than_its_tensors(tmp_path: Path) -> None:
    state = random_state(0)
    size = sum(tensor.nbytes for tensor in state.values())
    official = tmp_path / "official.pth"
    convert_from = tmp_path / "full.pth"
    # A view of a large storage, for example a part of a qkv weight, but must be saved without the rest of the storage.
    base = torch.zeros(1_000_000)
    state["norm.weight"] = base[: state["norm.weight"].numel()]
    torch.save(state, convert_from)
    convert(convert_from, official, "official")
    convert(official, tmp_path / "timm.pth", "timm")
    overhead = 600 * len(state)
    assert official.stat().st_size < size + overhead
    assert (tmp_path / "timm.pth").stat().st_size < size + overhead


def test_reports_what_the_new_file_has_not(tmp_path: Path) -> None:
    official = from_native(random_state(0), "official")
    dense = {f"backbone.{name}": tensor for name, tensor in official.items() if not name.startswith("head.")}
    dense["decode_head.conv_seg.weight"] = torch.zeros(3)
    torch.save({"state_dict": dense, "meta": {}}, tmp_path / "dense.pth")
    stored = convert(tmp_path / "dense.pth", tmp_path / "out.safetensors", "timm")
    assert (stored.format, stored.set_aside) == ("dense", ("decode_head.conv_seg.weight",))
    assert read_checkpoint(tmp_path / "out.safetensors").format == "timm"


def test_existing_files_are_only_overwritten_when_asked(tmp_path: Path, source: Path) -> None:
    path = tmp_path / "out.pth"
    path.write_text("precious")
    with pytest.raises(XCiTError, match="exists"):
        convert(source, path, "timm")
    assert path.read_text() == "precious"
    convert(source, path, "timm", overwrite=True)
    assert read_checkpoint(path).format == "timm"


def test_the_source_is_never_overwritten(tmp_path: Path, source: Path) -> None:
    before = source.read_bytes()
    link = tmp_path / "link.safetensors"
    link.symlink_to(source)
    for destination in (source, link, tmp_path / "." / source.name):
        with pytest.raises(XCiTError, match="is the source file"):
            convert(source, destination, "timm", overwrite=True)
    assert source.read_bytes() == before


def test_wrong_suffix_format_and_folder_are_named(tmp_path: Path, source: Path) -> None:
    with pytest.raises(XCiTError, match=r"out\.onnx must end in \.safetensors"):
        convert(source, tmp_path / "out.onnx", "timm")
    with pytest.raises(XCiTError, match="unknown format 'keras': choose one of xcit, official, timm, mmpretrain"):
        convert(source, tmp_path / "out.pth", "keras")
    with pytest.raises(XCiTError, match=r"can't be written: No such file or directory"):
        convert(source, tmp_path / "nowhere" / "out.pth", "timm")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.safetensors"]
