"""Tests loading models by name or file: one random nano model in files of every format, without a network."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from forked import Forked
from torch import Tensor

from xcit.data.named import FASHION_MNIST_CLASSES
from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing
from xcit.models import XCiT, XCiTPyramid
from xcit.weights.dense import PYRAMID, dense_from_native
from xcit.weights.fetch import Source
from xcit.weights.files import read_checkpoint, write_pickle, write_safetensors
from xcit.weights.formats import from_native
from xcit.zoo import (
    ARCHITECTURES,
    fetch,
    find_checkpoint,
    get_backbone,
    get_model,
    load_file,
    load_record,
    load_weights,
    save_model,
    weights_path,
)
from xcit.zoo.classes import imagenet_class_ids, imagenet_class_names
from xcit.zoo.conversion import convert
from xcit.zoo.get import get_xcit
from xcit.zoo.verification import verify

NAME = "xcit-nano-12-p16_3rdparty_in1k"
RECORD = find_checkpoint(NAME)
IMAGES = torch.linspace(-2, 2, 2 * 3 * 32 * 48).sin().reshape(2, 3, 32, 48)

State = dict[str, Tensor]


class Nano(NamedTuple):
    state: State
    logits: Tensor  # logits of IMAGES
    folder: Path  # folder with a file in each format

    def file(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Nano:
    folder = tmp_path_factory.mktemp("nano")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = XCiT(ARCHITECTURES["nano-12-p16"]).eval()
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
    state = model.state_dict()
    write_safetensors(folder / "xcit.safetensors", state, {})
    convert(folder / "xcit.safetensors", folder / "official.pth", "official")
    convert(folder / "xcit.safetensors", folder / "timm.safetensors", "timm")
    for suffix in ("pth", "safetensors"):
        convert(folder / "xcit.safetensors", folder / f"mmpretrain.{suffix}", "mmpretrain")
    official = from_native(state, "official")
    dino = {name: tensor for name, tensor in official.items() if not name.startswith("head.")}
    write_pickle(folder / "dino.pth", dino)
    student = {f"module.backbone.{name}": tensor for name, tensor in dino.items()}
    teacher = {f"backbone.{name}": tensor for name, tensor in dino.items()} | {"head.mlp.0.weight": torch.zeros(4, 128)}
    torch.save({"student": student, "teacher": teacher, "epoch": 3}, folder / "dino_full.pth")
    patches = {name: t for name, t in dino.items() if not name.startswith(("cls_", "norm."))}
    dense = {f"backbone.{name}": tensor for name, tensor in patches.items()}
    dense |= {"backbone.fpn1.0.weight": torch.zeros(4), "decode_head.conv_seg.weight": torch.zeros(3)}
    torch.save({"state_dict": dense, "meta": {}}, folder / "dense.pth")
    with torch.inference_mode():
        return Nano(state, model(IMAGES), folder)


@pytest.fixture(autouse=True)
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Uses an empty cache and an empty mirror, and no network."""
    from huggingface_hub import constants

    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setenv("XCIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XCIT_MIRROR", str(folder))
    monkeypatch.setenv("XCIT_OFFLINE", "1")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return folder


def put(nano: Nano, file: str, mirror: Path, name: str) -> Path:
    path = mirror / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(nano.file(file).read_bytes())
    return path


def flip_a_bit(path: Path) -> None:
    """Changes one bit of a weight in the middle of a safetensors file; the file stays readable, the weight finite."""
    content = bytearray(path.read_bytes())
    data = 8 + int.from_bytes(content[:8], "little")
    content[data + (len(content) - data) // 8 * 4] ^= 1
    path.write_bytes(content)


def cached(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "checkpoints" / f"{NAME}.safetensors"


def assert_is_nano(model: Any, nano: Nano) -> None:
    assert not model.training
    state = model.state_dict()
    assert state.keys() == nano.state.keys()
    assert all(torch.equal(tensor, nano.state[name]) for name, tensor in state.items())
    with torch.inference_mode():
        assert torch.allclose(model(IMAGES), nano.logits, rtol=1e-5, atol=1e-6)


def error_of(*args: Any, **options: Any) -> str:
    with pytest.raises(XCiTError) as caught:
        get_model(*args, **options)
    return str(caught.value)


# By name


def test_without_pretrained_weights_are_random() -> None:
    one, other = get_model("xcit-nano-12-p16"), get_model("XCIT_nano_12_p16_224")
    assert one.config == other.config == ARCHITECTURES["nano-12-p16"]
    assert not one.training
    assert one.info is None
    assert not torch.equal(one.get_parameter("head.weight"), other.get_parameter("head.weight"))
    assert get_model("xcit-nano-12-p16", num_classes=7).get_parameter("head.weight").shape == (7, 128)
    assert get_model("xcit-nano-12-p16", num_classes=0)(IMAGES).shape == (2, 128)
    assert next(get_model("xcit-nano-12-p16", device="meta").parameters()).device.type == "meta"


def test_unknown_name_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="no model is called 'xcit-nano-12-p15'; did you mean 'xcit-nano-12-p16'"):
        get_model("xcit-nano-12-p15", pretrained=True)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("xcit.safetensors", f"{NAME}.safetensors"),
        ("mmpretrain.safetensors", f"{NAME}.safetensors"),  # the contents decide, not the name
        ("timm.safetensors", "xcit_nano_12_p16_224.fb_in1k.safetensors"),
        ("timm.safetensors", "timm/xcit_nano_12_p16_224.fb_in1k/model.safetensors"),
        ("official.pth", "xcit_nano_12_p16_224.pth"),
    ],
)
def test_pretrained_from_a_mirror_in_every_format(
    nano: Nano, mirror: Path, tmp_path: Path, file: str, name: str
) -> None:
    source = put(nano, file, mirror, name)
    model: Any = get_model("xcit-nano-12-p16", pretrained=True)
    assert_is_nano(model, nano)
    assert model.info is not None
    assert model.info.name == NAME
    assert model.info.preprocessing == Preprocessing(image_size=224, resize_to=224)
    assert model.info.class_names == imagenet_class_names()
    assert model.info.class_ids == imagenet_class_ids()
    assert source.exists()
    stored = read_checkpoint(cached(tmp_path))
    assert stored.format == "xcit"
    assert {path.name for path in cached(tmp_path).parent.iterdir() if path.suffix != ".lock"} == {
        cached(tmp_path).name
    }


def test_a_file_with_the_wrong_sha_is_never_loaded(nano: Nano, mirror: Path, tmp_path: Path) -> None:
    published = RECORD.sources[2].filename
    put(nano, "mmpretrain.pth", mirror, published)
    assert f"{published} has the wrong SHA-256" in error_of(NAME, pretrained=True)
    assert not cached(tmp_path).exists()


def test_the_cached_file_is_reused(nano: Nano, mirror: Path, tmp_path: Path) -> None:
    put(nano, "official.pth", mirror, "xcit_nano_12_p16_224.pth")
    get_model(NAME, pretrained=True)
    stamp = cached(tmp_path).stat()
    (mirror / "xcit_nano_12_p16_224.pth").unlink()
    assert_is_nano(get_model(NAME, pretrained=True), nano)
    again = cached(tmp_path).stat()
    assert (again.st_ino, again.st_mtime_ns) == (stamp.st_ino, stamp.st_mtime_ns)


@pytest.mark.parametrize("what", ["flipped", "cut", "empty"])
def test_a_damaged_cache_file_is_fetched_anew(nano: Nano, mirror: Path, tmp_path: Path, what: str) -> None:
    put(nano, "timm.safetensors", mirror, "xcit_nano_12_p16_224.fb_in1k.safetensors")
    path = weights_path(RECORD)
    assert path == cached(tmp_path)
    good = path.read_bytes()
    for get in (get_model, get_backbone):
        if what == "flipped":
            flip_a_bit(path)
        else:
            path.write_bytes(good[: len(good) // 2 if what == "cut" else 0])
        model = get(NAME, pretrained=True)
        assert all(torch.equal(tensor, nano.state[name]) for name, tensor in model.state_dict().items())
        assert read_checkpoint(path).metadata == read_checkpoint(weights_path(RECORD)).metadata
        assert path.stat().st_size == len(good)


@pytest.mark.parametrize("get", [get_model, get_backbone])
def test_a_damaged_cache_file_that_cannot_be_had_again_is_an_error(nano: Nano, mirror: Path, get: object) -> None:
    source = put(nano, "xcit.safetensors", mirror, f"{NAME}.safetensors")
    flip_a_bit(weights_path(RECORD))
    source.unlink()
    for _ in range(2):
        with pytest.raises(XCiTError, match=f"cannot get the weights of {NAME}"):
            get(NAME, pretrained=True)  # type: ignore[operator]


def test_a_damaged_or_wrong_mirror_file_is_refused(nano: Nano, mirror: Path, tmp_path: Path) -> None:
    source = put(nano, "xcit.safetensors", mirror, f"{NAME}.safetensors")
    flip_a_bit(source)
    assert error_of(NAME, pretrained=True) == (
        f"{source}: damaged: its tensors do not match the digest in its metadata"
    )
    write_safetensors(source, nano.state | {"norm.bias": torch.full((128,), float("nan"))}, {})
    assert error_of(NAME, pretrained=True) == f"{source}: tensor norm.bias contains NaN or infinity"
    write_safetensors(source, {name: t for name, t in nano.state.items() if name != "norm.bias"}, {})
    assert "  missing: norm.bias 128" in error_of(NAME, pretrained=True)
    assert source.exists()
    assert not cached(tmp_path).exists()


def test_offline_the_error_names_every_source_and_the_way_out(tmp_path: Path) -> None:
    message = error_of(NAME, pretrained=True)
    assert message.startswith(f"cannot get the weights of {NAME}:\n")
    for source in RECORD.sources:
        assert f"{source.location}: not requested, because XCIT_OFFLINE is set" in message
    assert "Set XCIT_MIRROR to a folder" in message.splitlines()[-1]
    assert f"`xcit fetch {NAME} --to DIR`" in message
    assert "pretrained=PATH" in message
    assert not cached(tmp_path).exists()


def test_fetch_fills_a_folder_that_then_serves_as_a_mirror(
    nano: Nano, mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(nano, "official.pth", mirror, "xcit_nano_12_p16_224.pth")
    path = fetch(NAME, tmp_path / "to" / "carry")
    assert path == tmp_path / "to" / "carry" / f"{NAME}.safetensors"
    assert list(path.parent.iterdir()) == [path]
    cached(tmp_path).unlink()
    monkeypatch.setenv("XCIT_MIRROR", str(path.parent))
    assert_is_nano(get_model(NAME, pretrained=True), nano)


def test_fetch_copies_a_packaged_model_too(tmp_path: Path) -> None:
    path = fetch("packaged", tmp_path)
    assert read_checkpoint(path).metadata == read_checkpoint(fetch("packaged")).metadata


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(XCiTError, match=r"file/inside: can't be made: Not a directory"):
        fetch("packaged", tmp_path / "file" / "inside")


def test_two_processes_that_fetch_at_once_do_not_clash(nano: Nano, mirror: Path, tmp_path: Path) -> None:
    put(nano, "official.pth", mirror, "xcit_nano_12_p16_224.pth")
    program = tmp_path / "program.py"
    program.write_text(f"""
import sys, time
from pathlib import Path
from xcit.weights.files import digest
from xcit.zoo import get_model
own, other = (Path({str(tmp_path)!r}) / name for name in sys.argv[1:])
own.touch()
while not other.exists():
    time.sleep(0.002)
print(digest(get_model({NAME!r}, pretrained=True).state_dict()))
""")
    processes = []
    for names in (("one", "two"), ("two", "one")):
        outputs = tmp_path / f"outputs-{names[0]}"
        outputs.mkdir()
        processes.append(Forked([str(program), *names], 1, outputs))
    results = [process.finish() for process in processes]
    assert [done.status for done in results] == [0, 0], results
    expected = read_checkpoint(nano.file("xcit.safetensors")).metadata["digest"]
    assert [done.out.strip() for done in results] == [expected] * 2
    assert {path.suffix for path in cached(tmp_path).parent.iterdir()} <= {".safetensors", ".lock"}


def test_the_packaged_model_knows_its_classes() -> None:
    model: Any = get_model("packaged", pretrained=True)
    assert model.info is not None
    assert model.info.class_names == FASHION_MNIST_CLASSES
    assert model.info.preprocessing.image_size == 28
    assert model(torch.zeros(1, 1, 28, 28)).shape == (1, 10)
    assert load_record(find_checkpoint("packaged")).info == model.info


# By file


@pytest.mark.parametrize("file", ["xcit.safetensors", "official.pth", "timm.safetensors", "mmpretrain.pth"])
def test_pretrained_is_a_path_in_any_format(nano: Nano, file: str) -> None:
    model: Any = get_model("xcit-nano-12-p16", pretrained=nano.file(file))
    assert_is_nano(model, nano)
    assert model.info is not None
    assert model.info.name == NAME
    assert_is_nano(get_model("xcit-nano-12-p16", pretrained=str(nano.file(file))), nano)
    own = XCiT(ARCHITECTURES["nano-12-p16"])
    load_weights(own, nano.file(file))
    assert_is_nano(own.eval(), nano)


@pytest.mark.parametrize("file", ["xcit.safetensors", "official.pth", "timm.safetensors", "mmpretrain.pth"])
def test_the_model_may_be_given_by_its_file_alone(nano: Nano, file: str) -> None:
    for model in (get_model(nano.file(file)), get_model(str(nano.file(file)), pretrained=True)):
        assert_is_nano(model, nano)
        assert model.config == ARCHITECTURES["nano-12-p16"]
        assert model.info is None


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert (
        error_of("xcit-nano-12-p16", pretrained=tmp_path / "no.pth") == f"cannot read {tmp_path}/no.pth: no such file"
    )
    assert error_of(f"{tmp_path}/no.safetensors") == f"cannot read {tmp_path}/no.safetensors: no such file"


@pytest.mark.parametrize("get", [get_model, get_backbone])
def test_two_files_are_one_too_many(nano: Nano, get: object) -> None:
    with pytest.raises(XCiTError, match=r"two weight files were given: .*official\.pth and other\.pth"):
        get(nano.file("official.pth"), pretrained="other.pth")  # type: ignore[operator]


def test_a_file_of_another_architecture_lists_what_differs(nano: Nano) -> None:
    path = nano.file("timm.safetensors")
    lines = error_of("xcit-nano-12-p8", pretrained=path).splitlines()
    assert lines[0].startswith(f"{path} does not fit the model: ")
    assert "  unexpected: stem.3.conv.weight 128x64x3x3" in lines
    assert "  other shape: stem.0.conv.weight is 16x3x3x3, the model's is 32x3x3x3" in lines
    lines = error_of("xcit-tiny-12-p16", pretrained=path).splitlines()
    assert "  other shape: cls_token is 1x1x128, the model's is 1x1x192" in lines
    assert lines[-1].startswith("  ... and ")


def test_another_number_of_classes_is_explained(nano: Nano, tmp_path: Path) -> None:
    path = tmp_path / "ten.pth"
    write_pickle(path, nano.state | {"head.weight": torch.zeros(10, 128), "head.bias": torch.zeros(10)})
    message = error_of("xcit-nano-12-p16", pretrained=path)
    assert "The file has 10 classes, the model has 1000: pass num_classes=10" in message
    assert "reset_classifier(1000)" in message
    ten: Any = get_model("xcit-nano-12-p16", pretrained=path, num_classes=10)
    assert torch.equal(ten.head.weight, torch.zeros(10, 128))
    assert ten.info is None  # these are not ImageNet's classes
    with pytest.raises(XCiTError, match="The file has 10 classes, the model has 1000"):
        load_weights(XCiT(ARCHITECTURES["nano-12-p16"]), path)


@pytest.mark.parametrize("by_file", [True, False])
def test_num_classes_gives_a_new_head_and_keeps_the_rest(nano: Nano, mirror: Path, by_file: bool) -> None:
    put(nano, "xcit.safetensors", mirror, f"{NAME}.safetensors")
    model: Any = get_model(NAME, pretrained=nano.file("timm.safetensors") if by_file else True, num_classes=10)
    assert model.config.num_classes == model.num_classes == 10
    assert model.head.weight.shape == (10, 128)
    assert not torch.equal(model.head.weight, nano.state["head.weight"][:10])
    assert model.head.weight.std() > 0.01
    for name, tensor in model.state_dict().items():
        assert name.startswith("head.") or torch.equal(tensor, nano.state[name])
    assert model.info is not None
    assert (model.info.class_names, model.info.class_ids) == ((), ())
    none = get_model(NAME, pretrained=nano.file("timm.safetensors") if by_file else True, num_classes=0)
    assert none(IMAGES).shape == (2, 128)
    same: Any = get_model(NAME, pretrained=True, num_classes=1000)
    assert_is_nano(same, nano)
    assert same.info is not None
    assert len(same.info.class_names) == 1000


@pytest.mark.parametrize("file", ["dino.pth", "dino_full.pth"])
def test_a_dino_backbone_has_no_classifier(nano: Nano, file: str) -> None:
    path = nano.file(file)
    assert error_of("xcit-nano-12-p16", pretrained=path) == (
        f"{path}: a backbone without a classifier; pass num_classes=0 for its features, or the number of classes for "
        "a new random head"
    )
    features = get_model("xcit-nano-12-p16", pretrained=path, num_classes=0)
    assert all(torch.equal(tensor, nano.state[name]) for name, tensor in features.state_dict().items())
    assert features(IMAGES).shape == (2, 128)
    assert features.info is None
    for num_classes in (10, 1000):
        with_head = get_model("xcit-nano-12-p16", pretrained=path, num_classes=num_classes)
        assert with_head(IMAGES).shape == (2, num_classes)
        assert with_head.info is None
    assert load_file(path).num_classes == 0


def test_a_dense_checkpoint_is_for_get_backbone(nano: Nano) -> None:
    path = nano.file("dense.pth")
    message = error_of("xcit-nano-12-p16", pretrained=path)
    assert message.startswith(f"{path}: these are the weights of a detector or segmenter")
    assert "xcit.get_backbone(" in message
    assert "\n" not in message


def test_a_damaged_own_file_is_refused(nano: Nano, tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    save_model(load_file(nano.file("xcit.safetensors")), path)
    flip_a_bit(path)
    for attempt in (
        partial(get_model, path),
        partial(get_model, NAME, pretrained=path),
        partial(get_backbone, path),
        partial(get_backbone, NAME, pretrained=path),
        partial(load_weights, XCiT(ARCHITECTURES["nano-12-p16"]), path),
    ):
        with pytest.raises(XCiTError, match=r"own\.safetensors: damaged: its tensors do not match"):
            attempt()


# Backbones


@pytest.mark.parametrize("file", ["official.pth", "timm.safetensors", "mmpretrain.pth", "dino.pth", "dense.pth"])
def test_a_backbone_from_any_file(nano: Nano, file: str) -> None:
    for backbone in (get_backbone(nano.file(file)), get_backbone("xcit-nano-12-p16", pretrained=nano.file(file))):
        state = backbone.state_dict()
        assert {name.split(".")[0] for name in state} == {"stem", "position", "blocks"}
        assert all(torch.equal(tensor, nano.state[name]) for name, tensor in state.items())
        assert not backbone.training
        assert (backbone.config.cls_depth, backbone.config.num_classes) == (0, 0)


def test_a_backbone_gives_the_intermediates_of_its_classifier(nano: Nano, mirror: Path) -> None:
    put(nano, "xcit.safetensors", mirror, f"{NAME}.safetensors")
    classifier: Any = get_model(NAME, pretrained=True)
    backbone = get_backbone(NAME, pretrained=True)
    with torch.inference_mode():
        expected = classifier.forward_intermediates(IMAGES, [2, 5, 11], intermediates_only=True)
        found = backbone.forward_intermediates(IMAGES, [2, 5, 11], intermediates_only=True)
        assert backbone(IMAGES).shape == (2, 6, 128)
    assert len(found) == 3
    assert found[0].shape == (2, 128, 2, 3)
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


def test_a_random_backbone() -> None:
    backbone = get_backbone("xcit-nano-12-p16")
    assert (backbone.config.cls_depth, backbone.config.global_pool) == (0, "none")
    assert not hasattr(backbone, "cls_token")
    assert next(get_backbone("xcit-nano-12-p16", device="meta").parameters()).device.type == "meta"
    with pytest.raises(XCiTError, match="did you mean"):
        get_backbone("xcit-nano-12-p61")


def test_a_backbone_of_another_architecture_is_an_error(nano: Nano) -> None:
    with pytest.raises(XCiTError, match=r"dense\.pth does not fit the model"):
        get_backbone("xcit-tiny-12-p16", pretrained=nano.file("dense.pth"))


def test_a_pyramid_of_any_file(nano: Nano, tmp_path: Path) -> None:
    for file in ("official.pth", "dino.pth"):
        pyramid = get_backbone(nano.file(file), pyramid=True)
        assert isinstance(pyramid, XCiTPyramid)
        assert not pyramid.training
        assert all(torch.equal(tensor, nano.state[name]) for name, tensor in pyramid.xcit.state_dict().items())
    whole = {f"backbone.{name}": tensor for name, tensor in pyramid.state_dict().items()}
    published = dense_from_native(whole, PYRAMID) | {"roi_head.weight": torch.zeros(1)}
    torch.save({"state_dict": published, "meta": {}}, tmp_path / "whole.pth")
    for model, source in ((tmp_path / "whole.pth", False), ("xcit-nano-12-p16", tmp_path / "whole.pth")):
        found = get_backbone(model, source, pyramid=True, out_indices=(0, 1, 2, 3))
        assert found.out_indices == (0, 1, 2, 3)
        assert all(torch.equal(tensor, whole[f"backbone.{name}"]) for name, tensor in found.state_dict().items())
        with torch.inference_mode():
            assert [map.shape[-2:] for map in found(IMAGES)] == [(8, 12), (4, 6), (2, 3), (1, 1)]


def test_a_random_pyramid_and_its_blocks() -> None:
    assert get_backbone("xcit-nano-12-p16", pyramid=True).out_indices == (3, 5, 7, 11)
    with pytest.raises(XCiTError, match="pyramid=True"):
        get_backbone("xcit-nano-12-p16", out_indices=(0, 1, 2, 3))  # type: ignore[call-overload]
    with pytest.raises(XCiTError, match="out_indices"):
        get_backbone("xcit-nano-12-p16", pyramid=True, out_indices=(1, 2))


# By URL


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Yields the URL of a web server, and the folder that it serves."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    folder = tmp_path / "site"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", folder
        server.shutdown()
        thread.join()


def test_pretrained_is_a_url(nano: Nano, site: tuple[str, Path]) -> None:
    url, folder = site
    put(nano, "timm.safetensors", folder, "a/model.safetensors")
    # A file with the same name at another URL is a different file.
    (folder / "b").mkdir()
    write_safetensors(folder / "b" / "model.safetensors", nano.state | {"norm.bias": torch.ones(128)}, {})
    assert_is_nano(get_model(NAME, pretrained=f"{url}/a/model.safetensors"), nano)
    other: Any = get_model(NAME, pretrained=f"{url}/b/model.safetensors")
    assert torch.equal(other.norm.bias, torch.ones(128))
    assert get_backbone(NAME, pretrained=f"{url}/a/model.safetensors?download=true").config.cls_depth == 0
    with pytest.raises(XCiTError, match="HTTP 404"):
        get_model(NAME, pretrained=f"{url}/c/model.safetensors")


def test_a_model_is_a_url(nano: Nano, site: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = site
    put(nano, "timm.safetensors", folder, "a/model.safetensors")
    for model in (f"{url}/a/model.safetensors", f"{url}/a/model.safetensors?download=true"):
        assert_is_nano(get_model(model), nano)
        assert_is_nano(get_model(model, pretrained=True), nano)
        assert_is_nano(get_xcit(model), nano)
    assert get_backbone(f"{url}/a/model.safetensors").config.cls_depth == 0
    assert_is_nano(get_model((folder / "a" / "model.safetensors").as_uri()), nano)
    assert verify(f"{url}/a/model.safetensors").num_tensors == len(nano.state)
    with pytest.raises(XCiTError, match=f"{url}/none: .*HTTP 404"):
        get_model(f"{url}/none")
    with pytest.raises(XCiTError, match="two weight files were given: http"):
        get_model(f"{url}/a/model.safetensors", pretrained=str(tmp_path / "x.pth"))


@pytest.mark.parametrize("what", ["page", "error text", "cut off", "another model"])
def test_a_url_that_answers_with_something_else_leaves_nothing(
    nano: Nano, site: tuple[str, Path], tmp_path: Path, what: str
) -> None:
    url, folder = site
    whole = nano.file("official.pth").read_bytes()
    torch.save({"weight": torch.ones(3)}, tmp_path / "other.pth")
    answers = {
        "page": (b"\n<!DOCTYPE html><html>log in</html>", "is a web page"),
        "error text": (b"Too many requests\n", "is neither a safetensors file nor a PyTorch checkpoint"),
        "cut off": (whole[: len(whole) // 2], "is incomplete or damaged"),
        "another model": ((tmp_path / "other.pth").read_bytes(), "contains no XCiT weights"),
    }
    content, reason = answers[what]
    (folder / "nano.pth").write_bytes(content)
    message = error_of(NAME, pretrained=f"{url}/nano.pth")
    assert message.startswith(f"{url}/nano.pth {reason}")
    assert "\n" not in message
    downloads = tmp_path / "cache" / "downloads"
    assert [path.name for path in downloads.iterdir() if path.suffix != ".lock"] == []
    (folder / "nano.pth").write_bytes(whole)
    assert_is_nano(get_model(NAME, pretrained=f"{url}/nano.pth"), nano)
    # A file that is already in the cache is checked too.
    (kept,) = (path for path in downloads.iterdir() if path.suffix != ".lock")
    kept.write_bytes(content)
    assert_is_nano(get_model(NAME, pretrained=f"{url}/nano.pth"), nano)


def test_a_file_url_is_its_file(nano: Nano, tmp_path: Path) -> None:
    assert_is_nano(get_model(NAME, pretrained=nano.file("official.pth").as_uri()), nano)
    assert not (tmp_path / "cache").exists()


def test_a_download_that_is_no_checkpoint_is_not_kept(
    nano: Nano, site: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = site
    source = Source(kind="url", location=f"{url}/nano.pth", filename="nano.pth")
    record = replace(RECORD, sources=(source,))
    (folder / "nano.pth").write_text("<html>Please log in to this network</html>")
    monkeypatch.delenv("XCIT_OFFLINE")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(XCiTError, match="a web page"):
        load_record(record)
    put(nano, "official.pth", folder, "nano.pth")
    assert_is_nano(load_record(record), nano)
    # The downloaded file is deleted after its conversion.
    assert [path.name for path in (tmp_path / "cache" / "downloads").iterdir() if path.suffix != ".lock"] == []


def test_the_next_source_is_tried_where_one_has_something_else(nano: Nano, mirror: Path, tmp_path: Path) -> None:
    (mirror / "xcit_nano_12_p16_224.fb_in1k.safetensors").write_text("<html>log in</html>")
    put(nano, "official.pth", mirror, "xcit_nano_12_p16_224.pth")
    assert_is_nano(get_model(NAME, pretrained=True), nano)


def test_where_all_sources_have_something_else_each_is_named(mirror: Path) -> None:
    (mirror / "xcit_nano_12_p16_224.fb_in1k.safetensors").write_text("<html>log in</html>")
    (mirror / "xcit_nano_12_p16_224.pth").write_bytes(b"")
    with pytest.raises(XCiTError, match=r"(?s)safetensors is a web page.*\.pth is empty.*Set XCIT_MIRROR"):
        get_model(NAME, pretrained=True)
