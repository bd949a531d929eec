"""The readers that are fuzzed. A target makes damaged inputs for a reader, and checks the reader's results."""

import contextlib
import io
import json
import pickle
import socket
import tarfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save
from tests.fuzz.harness import Target
from tests.fuzz.mutation import damaged, damaged_value

from xcit.config import override, to_dict
from xcit.data.coco import open_coco
from xcit.data.tar_samples import read_tar
from xcit.errors import XCiTError
from xcit.images.read import read_image, read_labels
from xcit.models import XCiT, XCiTConfig
from xcit.training.engine.checkpoint import load_checkpoint
from xcit.training.engine.config import OptimizerConfig, RunConfig, ScheduleConfig
from xcit.training.engine.distribution import Processes
from xcit.training.engine.state import TrainState, build_state
from xcit.training.recipes import get_recipe
from xcit.weights.download import download
from xcit.zoo import get_model

_TINY = XCiTConfig(embed_dim=16, depth=1, num_heads=2, patch_size=8, num_classes=3, cls_depth=1)
_PICO: Any = get_recipe("xcit-pico-fashion-mnist").model  # a known shape: its files need no metadata
_FEW_PIXELS = 24


def _encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def _noise(mode: str, side: int = _FEW_PIXELS) -> Image.Image:
    shape = (side, side) if mode in ("L", "1", "P", "I;16") else (side, side, len(mode))
    values = np.random.default_rng(0).integers(0, 256, shape)
    if mode == "I;16":
        return Image.fromarray((values * 250).astype(np.uint16))
    image = Image.fromarray(values.astype(np.uint8), None if mode in ("P", "1") else mode)
    return image.convert(mode)


# Pictures


@cache
def _pictures() -> tuple[bytes, ...]:
    rgb = _noise("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    found = [_encoded(_noise(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
    found += [_encoded(_noise(mode), "JPEG", exif=exif) for mode in ("L", "RGB", "CMYK")]
    found += [_encoded(rgb, "TIFF", compression=name) for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg")]
    found += [_encoded(rgb, name) for name in ("GIF", "BMP", "PPM", "TGA", "PCX", "SGI", "WEBP", "JPEG2000", "ICO")]
    found += [_encoded(rgb, "JPEG", progressive=True), _encoded(rgb, "PNG", icc_profile=b"x" * 200)]
    return (*found, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"%PDF-1.4\n", b"<svg/>")


def _read_picture(path: Path) -> None:
    image = read_image(path)
    assert image.mode == "RGB" and min(image.size) > 0
    assert np.asarray(image).shape == (image.height, image.width, 3)


# Label maps


@cache
def _label_maps() -> tuple[bytes, ...]:
    values = np.random.default_rng(0).integers(0, 2, (_FEW_PIXELS, _FEW_PIXELS)).astype(np.uint8)
    grey, palette = Image.fromarray(values), Image.fromarray(values).convert("P")
    found = [_encoded(grey, "PNG"), _encoded(grey.convert("1"), "PNG"), _encoded(grey.convert("I;16"), "PNG")]
    found += [_encoded(palette, "PNG", bits=bits) for bits in (1, 2, 4, 8)]
    return (*found, _encoded(grey, "TIFF"), _encoded(_noise("RGB"), "PNG"))


def _read_labels(path: Path) -> None:
    labels = read_labels(path)
    assert labels.ndim == 2 and labels.dtype == np.uint8


# Checkpoints


@cache
def _state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    assert isinstance(_PICO, XCiTConfig)
    return XCiT(_PICO).state_dict()


def _odd_tensors(random: Random) -> torch.Tensor:
    like = random.choice(list(_state().values()))
    return random.choice(
        (
            lambda: torch.zeros(1).expand(2**40),
            lambda: torch.zeros(1).expand(like.shape) if like.shape else torch.zeros(0),
            lambda: like.float().to_sparse() if like.ndim else like,
            lambda: _quantised(like),
            lambda: torch.empty(like.shape, device="meta"),
            lambda: like.to(torch.complex64),
            lambda: like.bool(),
            lambda: like.half(),
            lambda: torch.full_like(like.float(), float("nan")),
            lambda: torch.zeros(0),
            lambda: torch.zeros((1,) * 30),
            lambda: like[None],
        )
    )()


def _quantised(tensor: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings(action="ignore"):  # deprecated, but it occurs in files
        return torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8)


def _checkpoint(random: Random) -> bytes:
    state: Any = dict(_state())
    if random.random() < 0.7:
        for _ in range(random.choice((1, 1, 2, 5))):
            name = random.choice(list(state))
            match random.randrange(6):
                case 0:
                    del state[name]
                case 1:
                    state[random.choice((f"module.{name}", name.upper(), "", "head.weight"))] = state.pop(name)
                case 2:
                    state |= {f"blocks.{n}.x": torch.zeros(1) for n in range(random.choice((3, 3000)))}
                case _:
                    state[name] = _odd_tensors(random)
        state = random.choice((state, {"state_dict": state}, {"model": state, "epoch": 3}, {"teacher": state}))
        if random.random() < 0.2:
            state = damaged_value(state, random)
    file = io.BytesIO()
    with _what_can_be_written():
        match random.randrange(4):
            case 0:
                file = io.BytesIO(save(state, random.choice((None, {"xcit": "{}"}, _metadata(random)))))
            case 1:
                torch.save(state, file, _use_new_zipfile_serialization=False)
            case 2 if random.random() < 0.2:  # refused: such a pickle calls a function to build tensors
                pickle.dump(state, file, protocol=2)
            case _:
                torch.save(state, file)
    data = file.getvalue()
    if not data:
        torch.save(state, file)
        data = file.getvalue()
    return damaged(data, random) if random.random() < 0.6 else data


def _metadata(random: Random) -> dict[str, str]:
    info = {"format_version": 1, "config": to_dict(_PICO), "name": "x", "class_names": ["a", "b", "c"]}
    return {"xcit": json.dumps(damaged_value(info, random, (10**6, -1, 0, None, "x", 2**40, [], 1.5)), default=str)}


@contextlib.contextmanager
def _what_can_be_written() -> Iterator[None]:
    """Ignores the errors of writing: some damaged states can't be written in some formats."""
    with contextlib.suppress(
        ValueError, TypeError, RuntimeError, AttributeError, KeyError, OverflowError, pickle.PicklingError
    ):
        yield


def _read_checkpoint(path: Path) -> None:
    model: Any = get_model(str(path))
    assert isinstance(model.config, XCiTConfig)
    assert all(value.device.type == "cpu" for value in model.state_dict().values())
    with torch.inference_mode():
        model.eval()(torch.zeros(1, model.config.in_channels, 32, 32))


# Configs


@cache
def _config_texts() -> tuple[Any, ...]:
    names = ("xcit-pico-fashion-mnist", "dino_xcit-pico_fashion-mnist", "mask-rcnn_xcit-pico_fashion-scenes")
    return tuple(to_dict(get_recipe(name)) for name in names)


_YAML_TEXTS = ("2001-99-99", "9" * 5000, "[" * 500, "&a [*a]", "*a", "!!python/object:os.system x", "{a: b", "? - : x")


def _config(random: Random) -> bytes:
    values = random.choice(_config_texts())
    if random.random() < 0.7:
        values = damaged_value(values, random)
    try:
        text = yaml.safe_dump(values, sort_keys=False)
    except (yaml.YAMLError, RecursionError, ValueError):  # an integer with more digits than Python converts to text
        text = "a: 1"
    if random.random() < 0.2:
        lines = text.splitlines()
        at = random.randrange(len(lines))
        lines[at] = f"{lines[at].partition(':')[0]}: {random.choice(_YAML_TEXTS)}"
        text = "\n".join(lines)
    data = text.encode("utf-8", errors="surrogatepass")
    return damaged(data, random) if random.random() < 0.3 else data


def _read_config(path: Path) -> None:
    config = get_recipe(str(path))
    assert to_dict(config)["task"] in ("classification", "dino", "segmentation", "detection")


_DOTTED = ("optimizer.lr", "run.seed", "run.batch_size", "model.embed_dim", "preprocessing.mean", "data", "initialize")


def _dotted(random: Random) -> bytes:
    value = random.choice((*_YAML_TEXTS, "1e3", "null", "nan", "-1", "1,2,3", "a,b", "[1, [2]]", "0x10", "1:20", "yes"))
    line = f"{random.choice(_DOTTED)}={value}"
    return damaged(line.encode(), random) if random.random() < 0.4 else line.encode()


def _read_dotted(path: Path) -> None:
    name, _, value = path.read_bytes().decode(errors="replace").partition("=")
    config = override(get_recipe("xcit-pico-fashion-mnist"), {name: value})
    assert type(config) is type(get_recipe("xcit-pico-fashion-mnist"))


# COCO


@cache
def _coco() -> dict[str, Any]:
    polygon = [1.0, 1.0, 9.0, 1.0, 9.0, 9.0, 1.0, 9.0]
    rle = {"counts": [10, 5, _FEW_PIXELS**2 - 15], "size": [_FEW_PIXELS, _FEW_PIXELS]}
    packed = {"counts": "PPYo", "size": [_FEW_PIXELS, _FEW_PIXELS]}
    forms = ([polygon], [polygon, polygon[:6]], rle, packed, None)
    images = [{"id": n, "file_name": f"{n}.png", "height": _FEW_PIXELS, "width": _FEW_PIXELS} for n in (1, 2)]
    annotations = [
        {"id": n, "image_id": 1 + n % 2, "category_id": 1 + n % 3, "bbox": [1, 1, 8, 8], "area": 64.0, "iscrowd": 0}
        | {"segmentation": form}
        for n, form in enumerate(forms, start=1)
    ]
    categories = [{"id": n, "name": name} for n, name in enumerate(("cat", "dog", "cow"), start=1)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def _coco_json(random: Random) -> bytes:
    odd: tuple[Any, ...] = (
        *(2**63, 10**30, 1e308, -1, 0, None, "1", "x", [], {}, [1, 2], 0.5, 1.0, True),
        [0] * 9,
        [[1, 2, 3, 4]],
    )
    value = damaged_value(_coco(), random, odd) if random.random() < 0.8 else _coco()
    data = json.dumps(value).encode()
    return damaged(data, random) if random.random() < 0.4 else data


def _read_coco(path: Path) -> None:
    for number in (1, 2):
        picture = path.with_name(f"{number}.png")
        if not picture.exists():
            _noise("RGB").save(picture)
    images = open_coco(path, "val")
    for index, image in enumerate(images.images):
        try:
            images.read(index)
        except XCiTError:
            continue
        height, width = image.size
        assert all(0 <= found.label < len(images.class_names) for found in image.objects)
        assert all(np.isfinite(found.box).all() for found in image.objects)
        masks = images.masks(index, image.objects)
        assert masks.shape == (len(image.objects), height, width) and set(np.unique(masks)) <= {0, 1}


# Tar shards


def _tar(files: Mapping[str, bytes], mode: Any) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


@cache
def _shard_files() -> dict[str, bytes]:
    pictures = _pictures()
    return {
        **{f"{n:04d}.png": pictures[n] for n in range(4)},
        **{f"{n:04d}.cls": str(n).encode() for n in range(4)},
        "b/5.jpg": pictures[8],
        "b/5.json": b'{"label": 2}',
    }


def _shard(random: Random) -> bytes:
    files = dict(sorted(_shard_files().items()))
    if random.random() < 0.5:
        name = random.choice(list(files))
        files[name] = random.choice((b"", b"-1", b"9" * 5000, b"1e9", b"[]", b'{"label": []}', b'{"label": 1e999}'))
    if random.random() < 0.2:
        files[random.choice(("../x.png", "/dev/zero", "a\nb.cls", "é" * 200 + ".jpg", "..cls", "c.d.png"))] = b"1"
    data = _tar(files, random.choice(("w:", "w:", "w:gz")))  # the reader uses the file's content, not its name
    return damaged(data, random)


def _read_shard(path: Path) -> None:
    problem: XCiTError | None = None
    for sample in read_tar(str(path), 10):
        try:
            data = sample.load()
        except XCiTError as error:
            problem = problem or error
            continue
        assert 0 <= sample.label < 10 and isinstance(data, bytes)
    if problem is not None:  # only this sample is lost; counts as a refusal
        raise problem


# HTTP answers


_BODY = bytes(range(256)) * 40


def _answer(random: Random) -> bytes:
    headers = random.choice(
        (
            b'HTTP/1.1 200 OK\r\nContent-Length: 10240\r\nETag: "1"\r\n\r\n' + _BODY,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2800\r\n" + _BODY + b"\r\n0\r\n\r\n",
            b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-10239/10240\r\n\r\n" + _BODY,
            b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 15\r\n\r\n<html>no</html>",
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        )
    )
    return damaged(headers, random)


class _Server:
    """Sends the same bytes to every connection, and closes the connection."""

    def __init__(self, data: bytes) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/weights.pth"
        self._data = data
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.recv(65536)
                    connection.sendall(self._data)
                except OSError:
                    continue

    def close(self) -> None:
        self._socket.close()


def _read_answer(path: Path) -> None:
    server = _Server(path.read_bytes())
    destination = path.with_name("weights.pth")
    destination.unlink(missing_ok=True)
    try:
        download(server.url, destination)
        assert destination.is_file()
    except XCiTError:
        assert not destination.exists()
        raise
    finally:
        server.close()
        for left in path.parent.glob("*weights*"):
            left.unlink()


# A run's last.pt


@cache
def _run_state() -> TrainState:
    run = RunConfig(batch_size=2, num_workers=0, ema_decay=0.9)
    processes = Processes(run, torch.device("cpu"))
    torch.manual_seed(0)
    return build_state(
        XCiT(_TINY),
        processes,
        run=run,
        optimizer_config=OptimizerConfig(),
        schedule_config=ScheduleConfig(epochs=2),
        num_steps=3,
    )


@cache
def _dumped() -> dict[str, Any]:
    state = _run_state()
    for parameter in state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    return state.dump()


def _last_pt(random: Random) -> bytes:
    state = damaged_value(_dumped(), random) if random.random() < 0.8 else _dumped()
    file = io.BytesIO()
    try:
        torch.save(state, file)
    except (RecursionError, OverflowError):
        file = io.BytesIO()
        torch.save(_dumped(), file)
    return damaged(file.getvalue(), random) if random.random() < 0.4 else file.getvalue()


def _read_last_pt(path: Path) -> None:
    state = _run_state()
    state.load(load_checkpoint(path), str(path))
    assert state.position.epoch >= 0 and state.position.step >= 0


def _of(seeds: Callable[[], tuple[bytes, ...]]) -> Callable[[Random], bytes]:
    return lambda random: damaged(random.choice(seeds()), random, seeds())


TARGETS = {
    target.name: target
    for target in (
        Target("pictures", _of(_pictures), _read_picture),
        Target("labels", _of(_label_maps), _read_labels, ".png"),
        Target("checkpoints", _checkpoint, _read_checkpoint, ".pth"),
        Target("yaml", _config, _read_config, ".yaml"),
        Target("dotted", _dotted, _read_dotted),
        Target("coco", _coco_json, _read_coco, ".json"),
        Target("tar", _shard, _read_shard, ".tar"),
        Target("http", _answer, _read_answer),
        Target("last", _last_pt, _read_last_pt, ".pt"),
    )
}
"""The targets, by name."""
