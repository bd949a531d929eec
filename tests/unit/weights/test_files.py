import argparse
import hashlib
import json
import os
import pickle
import resource
import signal
import struct
import sys
import threading
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from xcit.errors import XCiTError
from xcit.models import XCiT, XCiTConfig
from xcit.weights.files import StoredWeights, digest, read_checkpoint, write_pickle, write_safetensors
from xcit.weights.formats import FORMATS, Format, from_native

DENSE_KEYS = Path(__file__).parents[2] / "data" / "dense_keys_sample.json"


def small_state(**changes: Any) -> dict[str, Tensor]:
    config = XCiTConfig(**({"embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5} | changes))
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else torch.tensor(2**40 + 1)
        for name, tensor in XCiT(config).state_dict().items()
    }


STATE = small_state()
OFFICIAL = from_native(STATE, "official")
BACKBONE = {name: tensor for name, tensor in STATE.items() if not name.startswith("head.")}
OFFICIAL_BACKBONE = from_native(BACKBONE, "official")


def assert_state(stored: StoredWeights, expected: dict[str, Tensor]) -> None:
    assert stored.state.keys() == expected.keys()
    for name, tensor in stored.state.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name


def saved(path: Path, content: object, **options: bool) -> Path:
    torch.save(content, path, **options)
    return path


def error_of(path: Path) -> str:
    with pytest.raises(XCiTError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message.replace(str(path), "FILE")


# Files that are read


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ""])
def test_reads_each_format_in_either_file_type_whatever_its_suffix(tmp_path: Path, format: Format, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    published = from_native(STATE, format)
    if suffix == ".pth":
        torch.save(published, path)
    else:
        save_file(published, path, metadata={"format": "pt"})
    stored = read_checkpoint(str(path))
    assert_state(stored, STATE)
    assert (stored.format, stored.set_aside, stored.path) == (format, (), path)
    assert stored.metadata == ({} if suffix == ".pth" else {"format": "pt"})


def test_reads_torchs_old_file_format(tmp_path: Path) -> None:
    path = saved(tmp_path / "old.pth", {"model": OFFICIAL}, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path)
    assert_state(read_checkpoint(path), STATE)


def test_reads_an_official_training_checkpoint(tmp_path: Path) -> None:
    content = {
        "model": OrderedDict(OFFICIAL),
        "optimizer": {
            "state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(2)}},
            "param_groups": [{"lr": 5e-4}],
        },
        "model_ema": {name: tensor + 1 for name, tensor in OFFICIAL.items() if tensor.is_floating_point()},
        "epoch": 399,
        "args": argparse.Namespace(lr=5e-4, model="xcit_small_12_p16", device=torch.device("cpu")),
    }
    stored = read_checkpoint(saved(tmp_path / "official.pth", content))
    assert_state(stored, STATE)
    assert (stored.format, stored.set_aside) == ("official", ())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("format", FORMATS)
def test_prefixes_of_wrapping_modules_come_off(tmp_path: Path, prefix: str, format: Format) -> None:
    content = {"model": {prefix + name: tensor for name, tensor in from_native(STATE, format).items()}}
    stored = read_checkpoint(saved(tmp_path / "wrapped.pth", content))
    assert_state(stored, STATE)
    assert stored.format == format


def test_parameters_come_back_as_plain_tensors(tmp_path: Path) -> None:
    content = {name: torch.nn.Parameter(t) if t.is_floating_point() else t for name, t in OFFICIAL.items()}
    stored = read_checkpoint(saved(tmp_path / "parameters.pth", content))
    assert_state(stored, STATE)
    assert not any(tensor.requires_grad for tensor in stored.state.values())


def test_mmpretrain_sets_aside_what_is_neither_backbone_nor_head(tmp_path: Path) -> None:
    content = {
        "state_dict": from_native(STATE, "mmpretrain") | {"data_preprocessor.mean": torch.zeros(3)},
        "meta": {"mmcls_version": "1.0"},
    }
    stored = read_checkpoint(saved(tmp_path / "mm.pth", content))
    assert_state(stored, STATE)
    assert (stored.format, stored.set_aside) == ("mmpretrain", ("data_preprocessor.mean",))


def test_raw_dino_backbone(tmp_path: Path) -> None:
    stored = read_checkpoint(saved(tmp_path / "dino.pth", OFFICIAL_BACKBONE))
    assert_state(stored, BACKBONE)
    assert (stored.format, stored.set_aside) == ("dino", ())


def test_full_dino_checkpoint_gives_the_teacher(tmp_path: Path) -> None:
    head = {"head.mlp.0.weight": torch.ones(4, 16), "head.last_layer.weight_g": torch.ones(8, 1)}
    teacher = {f"backbone.{name}": tensor for name, tensor in OFFICIAL_BACKBONE.items()} | head
    content = {
        "student": {f"module.{name}": torch.zeros_like(tensor) for name, tensor in teacher.items()},
        "teacher": teacher,
        "optimizer": {"state": {}, "param_groups": []},
        "epoch": 300,
        "args": argparse.Namespace(arch="xcit_small_12_p16"),
        "dino_loss": {"center": torch.zeros(1, 8)},
    }
    stored = read_checkpoint(saved(tmp_path / "full.pth", content))
    assert_state(stored, BACKBONE)
    assert (stored.format, stored.set_aside) == ("dino", tuple(head))
    content["teacher"] = {f"module.{name}": tensor for name, tensor in teacher.items()}
    assert_state(read_checkpoint(saved(tmp_path / "wrapped.pth", content)), BACKBONE)
    content["teacher"] = OFFICIAL_BACKBONE | head
    bare = read_checkpoint(saved(tmp_path / "bare.pth", content))
    assert_state(bare, BACKBONE)
    assert (bare.format, bare.set_aside) == ("dino", tuple(head))


def test_checkpoint_of_our_own_dino_run_gives_the_teacher_or_the_student(tmp_path: Path) -> None:
    head = {"head.mlp.0.weight": torch.ones(4, 16)}
    teacher = {f"backbone.{name}": tensor for name, tensor in BACKBONE.items()} | head
    model = {f"teacher.{name}": tensor for name, tensor in teacher.items()}
    model |= {f"student.{name}": tensor + 1 for name, tensor in teacher.items()} | {"center": torch.zeros(1, 8)}
    path = saved(tmp_path / "last.pt", {"model": model, "optimizer": {}, "num_steps": 9})
    stored = read_checkpoint(path)
    assert_state(stored, BACKBONE)
    assert (stored.format, stored.set_aside) == ("dino", (*head, "center"))
    assert_state(read_checkpoint(path, key="student"), {name: tensor + 1 for name, tensor in BACKBONE.items()})


def test_a_dino_head_alone_is_no_xcit(tmp_path: Path) -> None:
    head = {"module.head.mlp.0.weight": torch.ones(4, 16), "module.head.last_layer.weight_g": torch.ones(8, 1)}
    path = saved(tmp_path / "head.pth", {"student": head, "teacher": head})
    with pytest.raises(XCiTError) as caught:
        read_checkpoint(path)
    assert str(caught.value) == f"{path} contains DINO's projection head, but not the backbone"


def test_dense_checkpoint_with_the_real_names(tmp_path: Path) -> None:
    keys: dict[str, list[int]] = json.loads(DENSE_KEYS.read_text())
    # Tensors of one repeated number: only names and shapes matter here, and the file stays small.
    state = {name: torch.zeros(()).expand(shape) for name, shape in keys.items()}
    path = saved(tmp_path / "dense.pth", {"meta": {"CLASSES": ("wall", "sky")}, "state_dict": state})
    stored = read_checkpoint(path)
    config = XCiTConfig(embed_dim=192, depth=12, num_heads=4, cls_depth=0, num_classes=0, global_pool="none")
    expected = {name: tensor.shape for name, tensor in XCiT(config).state_dict().items()}
    assert stored.format == "dense"
    assert {name: tensor.shape for name, tensor in stored.state.items()} == expected
    assert len(stored.state) + len(stored.set_aside) == len(keys)
    assert {name.split(".")[0] for name in stored.set_aside} == {"backbone", "decode_head", "auxiliary_head"}
    assert {name.split(".")[1] for name in stored.set_aside if name.startswith("backbone")} == {"fpn1", "fpn2"}


def test_detector_with_an_mmpretrain_backbone(tmp_path: Path) -> None:
    state = from_native(BACKBONE, "mmpretrain") | {"neck.lateral_convs.0.conv.weight": torch.zeros(1)}
    stored = read_checkpoint(saved(tmp_path / "det.pth", {"state_dict": state, "meta": {}}))
    assert_state(stored, BACKBONE)
    assert stored.set_aside == ("neck.lateral_convs.0.conv.weight",)


# Code in pickles that must not run


class Runs:
    """An object that is pickled as a call of a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def touch(canary: Path) -> list[tuple[str, Runs]]:
    command = f"touch {canary}"
    code = f"__import__('pathlib').Path({str(canary)!r}).touch()"
    return [
        ("system", Runs(os.system, command)),
        ("eval", Runs(eval, code)),
        ("exec", Runs(exec, code)),
        ("open", Runs(open, str(canary), "w")),
        ("import", Runs(__import__, "os")),
        ("load", Runs(torch.load, str(canary))),
    ]


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_pickles_are_refused_by_name_and_not_run(tmp_path: Path, number: int, zipped: bool) -> None:
    canary = tmp_path / "canary"
    name, attack = touch(canary)[number]
    content = {"model": OFFICIAL, "args": attack}
    path = saved(tmp_path / "hostile.pth", content, _use_new_zipfile_serialization=zipped)
    message = error_of(path)
    assert name in message
    assert "nothing was run" in message
    assert not canary.exists()
    if name in ("system", "eval", "exec"):
        # Without the protection, this pickle runs code.
        torch.load(path, weights_only=False)
        assert canary.exists()


def test_a_chain_through_the_allowed_getattr_runs_nothing(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    # getattr is allowed for mmengine's logs, but replaced by a stub. This pickle asks it for globals of an allowed
    # class, and calls the result.
    pickled = b"".join(
        [
            b"\x80\x02",
            b"c__builtin__\ngetattr\n(ctorch\nSize\nX\x0b\x00\x00\x00__globals__tR",
            b"(X" + struct.pack("<I", len(str(canary))) + str(canary).encode() + b"tR.",
        ]
    )
    path = tmp_path / "chain.pth"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (("data.pkl", pickled), ("version", b"3\n"), ("byteorder", b"little")):
            archive.writestr(f"chain/{name}", data)
    assert "nothing was run" in error_of(path)
    assert not canary.exists()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_plain_pickles_are_refused(tmp_path: Path, protocol: int) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / "plain.pth"
    path.write_bytes(pickle.dumps({"model": Runs(os.system, f"touch {canary}")}, protocol=protocol))
    error_of(path)
    assert not canary.exists()


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pth", XCiT(XCiTConfig(embed_dim=16, depth=1, num_heads=2)))
    assert "'xcit.models.xcit.XCiT'" in error_of(path)


@pytest.fixture
def history_buffer() -> Iterator[type]:
    """Yields a class like mmengine's HistoryBuffer, in mmengine's module; tests remove the module before reading."""

    class HistoryBuffer:
        def __init__(self) -> None:
            self.max_length = 10
            self._log_history = np.array([0.5, 0.25])
            self._count_history = np.array([1, 1])
            self._statistics_methods = {"mean": HistoryBuffer.mean, "max": HistoryBuffer.max}

        def mean(self) -> float:
            return float(self._log_history.mean())

        def max(self) -> float:
            return float(self._log_history.max())

    names = ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer")
    modules = {name: types.ModuleType(name) for name in names}
    HistoryBuffer.__module__ = names[-1]
    HistoryBuffer.__qualname__ = "HistoryBuffer"
    for method in (HistoryBuffer.mean, HistoryBuffer.max):
        method.__module__, method.__qualname__ = names[-1], f"HistoryBuffer.{method.__name__}"
    modules[names[-1]].HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    sys.modules |= modules
    yield HistoryBuffer
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("zipped", [True, False])
def test_mmengine_logs_and_numpy_values_load_as_nothing(tmp_path: Path, history_buffer: type, zipped: bool) -> None:
    content = {
        "meta": {"epoch": np.int64(3), "best": np.float64(0.7), "palette": np.zeros((2, 3)), "names": ["a", "b"]},
        "message_hub": {"log_scalars": OrderedDict({"train/loss": history_buffer()})},
        "state_dict": from_native(STATE, "mmpretrain"),
    }
    path = saved(tmp_path / "mm.pth", content, _use_new_zipfile_serialization=zipped)
    for name in [name for name in sys.modules if name.startswith("mmengine")]:
        del sys.modules[name]
    allowed = torch.serialization.get_safe_globals()
    assert_state(read_checkpoint(path), STATE)
    assert not any(name.startswith("mmengine") for name in sys.modules)
    assert set(torch.serialization.get_safe_globals()) == set(allowed)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_names_of_numpy_1_load_too(tmp_path: Path) -> None:
    content = {"meta": {"best": np.float64(0.7), "seen": np.arange(3)}, "state_dict": from_native(STATE, "mmpretrain")}
    new = saved(tmp_path / "new.pth", content)
    old = tmp_path / "old.pth"
    with zipfile.ZipFile(new) as source, zipfile.ZipFile(old, "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            assert not entry.filename.endswith("data.pkl") or b"numpy._core.multiarray" in data
            target.writestr(entry.filename, data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert_state(read_checkpoint(old), STATE)


def test_threads_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = saved(tmp_path / "args.pth", {"model": OFFICIAL, "args": argparse.Namespace(lr=1.0)})
    failures: list[BaseException] = []

    def read() -> None:
        try:
            for _ in range(5):
                read_checkpoint(path)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# Files that are no checkpoints


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>Sign in</html>", "a web page"),
        (b"\n  <html><body>404</body></html>", "a web page"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>', "a web page or other markup"),
        (b'{"error": "not found"}', "a JSON or text file"),
        (b'{"meta":{"a":1}}', "a JSON or text file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "a Git LFS pointer"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "a PNG image"),
        (b"\xff\xd8\xff\xe0" + bytes(40), "a JPEG image"),
        (b"\x1f\x8b\x08" + bytes(40), "a gzip archive"),
        (b"just words", "neither a safetensors file nor a PyTorch checkpoint"),
        (bytes(1000), "neither a safetensors file nor a PyTorch checkpoint"),
        (b"PK", "incomplete or damaged"),
        (b"\x80", "damaged"),
        (b"\x80\x02}q\x00.", "damaged"),
        (b"\x80\x02" + bytes(range(256)), "damaged"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    assert words in error_of(path)


def test_missing_file_folder_and_device(tmp_path: Path) -> None:
    assert error_of(tmp_path / "absent.pth") == "cannot read FILE: no such file"
    assert "is a folder" in error_of(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "no regular file" in error_of(tmp_path / "pipe")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_unreadable_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "secret.pth", OFFICIAL)
    path.chmod(0)
    assert "Permission denied" in error_of(path)


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
@pytest.mark.parametrize("part", [0.0005, 0.01, 0.5, 0.9, 0.999])
def test_truncated_files_are_refused(tmp_path: Path, kind: str, part: float) -> None:
    path = tmp_path / ("cut.safetensors" if kind == "safetensors" else "cut.pth")
    if kind == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(OFFICIAL, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: max(1, int(part * len(content)))])
    assert "damaged" in error_of(path)


def test_one_wrong_bit_in_a_zip_is_seen(tmp_path: Path) -> None:
    path = saved(tmp_path / "bit.pth", OFFICIAL)
    content = bytearray(path.read_bytes())
    place = content.find(STATE["norm.weight"].numpy().tobytes())
    assert place > 0
    content[place] ^= 1
    path.write_bytes(content)
    assert "checksum" in error_of(path)


def test_other_zip_archives(tmp_path: Path) -> None:
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photo.txt", "no photo")
    assert "a zip archive, but not a PyTorch checkpoint" in error_of(path)
    packed = tmp_path / "packed.pth"
    plain = saved(tmp_path / "plain.pth", OFFICIAL)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert "a zip archive, but not a PyTorch checkpoint" in error_of(packed)


def test_a_torchscript_program_is_named(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("script/data.pkl", b"\x80\x02}.")
        archive.writestr("script/constants.pkl", b"\x80\x02).")
    assert "a TorchScript program" in error_of(path)


def test_an_exported_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"\x08\x0a\x12\x07pytorch")
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), tmp_path / "a.pt2")
    for name in ("a.onnx", "a.pt2"):
        assert "FILE is an exported file, not a checkpoint" in error_of(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "contains a list, not named tensors"),
        (torch.ones(3), "contains a Tensor, not named tensors"),
        ({}, "its top-level keys are: none"),
        ({"optimizer": {"state": {0: torch.ones(1)}}, "epoch": 3}, "its top-level keys are: optimizer, epoch"),
        ({"model": {"a": 1}}, "its top-level keys are: model"),
        ({f"layer{i}.weight": torch.ones(1) for i in range(20)}, "no XCiT weights; it contains layer0.weight, "),
        (
            {"state_dict": {"backbone.layer1.0.conv1.weight": torch.ones(1)}},
            "it contains backbone.layer1.0.conv1.weight",
        ),
        ({"module.cls_token": torch.ones(1), "cls_token": torch.ones(1)}, "two state dicts in one"),
    ],
)
def test_files_without_xcit_weights_show_what_they_have(tmp_path: Path, content: object, words: str) -> None:
    message = error_of(saved(tmp_path / "other.pth", content))
    assert words in message
    assert len(message) < 300


def test_safetensors_of_another_model_or_of_nothing(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.ones(1)}, tmp_path / "resnet.safetensors")
    assert error_of(tmp_path / "resnet.safetensors") == "FILE contains no XCiT weights; it contains conv1.weight"
    save_file({}, tmp_path / "none.safetensors")
    assert error_of(tmp_path / "none.safetensors") == "FILE contains no XCiT weights; it contains no tensors"


# Writing files


def test_written_safetensors_hold_all_bits_and_the_digest(tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    metadata = {"name": "xcit-test"}
    write_safetensors(path, STATE, metadata)
    stored = read_checkpoint(path)
    assert_state(stored, STATE)
    assert stored.metadata == {"name": "xcit-test", "digest": digest(STATE)}
    assert metadata == {"name": "xcit-test"}
    assert [file.name for file in tmp_path.iterdir()] == ["out.safetensors"]


def test_views_transposes_and_gradients_are_written(tmp_path: Path) -> None:
    weight = torch.randn(5, 16, requires_grad=True)
    base = torch.randn(2, 16)
    state = STATE | {"head.weight": weight.t().t(), "norm.weight": base[0], "norm.bias": base[1]}
    state["position.projection.weight"] = torch.randn(64, 16, 1, 1).transpose(0, 1)
    write_safetensors(tmp_path / "out.safetensors", state, {})
    assert_state(read_checkpoint(tmp_path / "out.safetensors"), state)
    write_pickle(tmp_path / "out.pth", state)
    assert_state(read_checkpoint(tmp_path / "out.pth"), state)


def test_files_are_as_readable_as_any_other(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    write_safetensors(tmp_path / "out.safetensors", STATE, {})
    write_pickle(tmp_path / "out.pth", STATE)
    for name in ("out.safetensors", "out.pth"):
        assert (tmp_path / name).stat().st_mode == plain.stat().st_mode


@pytest.fixture
def small_files_only() -> Iterator[None]:
    """Limits files of this process to 4 kB, so that writing fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_files_only")
@pytest.mark.parametrize(
    "write", [lambda path: write_safetensors(path, STATE, {}), lambda path: write_pickle(path, STATE)]
)
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "out.bin"
    path.write_text("precious")
    with pytest.raises(XCiTError, match=r"can't be written: .*File too large") as caught:
        write(path)
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["out.bin"]
    assert path.read_text() == "precious"


def test_a_bad_destination_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "absent" / "a.safetensors", tmp_path / "file" / "a.safetensors", tmp_path / "folder"):
        with pytest.raises(XCiTError) as caught:
            write_safetensors(path, STATE, {})
        assert str(caught.value).startswith(f"{path}: can't be written: ")
        assert "\n" not in str(caught.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write every folder")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(XCiTError, match="Permission denied"):
        write_safetensors(tmp_path / "a.safetensors", STATE, {})
    tmp_path.chmod(0o700)


# Digest


def test_digest_does_not_depend_on_order_or_layout() -> None:
    assert digest(dict(reversed(STATE.items()))) == digest(STATE)
    matrix = torch.randn(3, 4)
    assert digest({"a": matrix.t()}) == digest({"a": matrix.t().contiguous()})
    assert digest({"a": torch.nn.Parameter(matrix)}) == digest({"a": matrix})


def test_digest_of_a_known_state() -> None:
    state = {"b": torch.tensor(3), "a": torch.tensor([1.0, -2.0], dtype=torch.bfloat16), "c": torch.zeros(0, 2)}
    hashed = b"a torch.bfloat16 [2]\n\x80\x3f\x00\xc0b torch.int64 []\n\3\0\0\0\0\0\0\0c torch.float32 [0, 2]\n"
    assert digest(state) == hashlib.sha256(hashed).hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        {"b": torch.zeros(2, 2)},
        {"a": torch.zeros(4)},
        {"a": torch.zeros(2, 2, dtype=torch.float64)},
        {"a": torch.zeros(2, 2, dtype=torch.int32)},
        {"a": torch.tensor([[0.0, 0.0], [0.0, -0.0]])},
        {"a": torch.zeros(2, 2), "b": torch.zeros(0)},
        {},
    ],
)
def test_digest_sees_every_difference(other: dict[str, Tensor]) -> None:
    assert digest(other) != digest({"a": torch.zeros(2, 2)})


def test_a_pickle_under_the_name_of_a_safetensors_file(tmp_path: Path) -> None:
    state = XCiT(XCiTConfig(embed_dim=16, depth=1, num_heads=2, num_classes=3)).state_dict()
    path = tmp_path / "weights.safetensors"
    torch.save(state, tmp_path / "weights.pth")
    (tmp_path / "weights.pth").rename(path)
    assert digest(read_checkpoint(path).state) == digest(state)
