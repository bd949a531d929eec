"""Tests a detector on an image in stripes: it finds the objects of the whole image, also after a kill and a resume."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from streaming_support import picture

from xcit.errors import XCiTError
from xcit.images.array_rows import ArrayRows
from xcit.images.rows import Pixels, RowsInfo
from xcit.machine import peak_resident_memory
from xcit.models import XCiTConfig
from xcit.models.detection.config import MaskRCNNConfig
from xcit.models.detection.mask_rcnn import MaskRCNN
from xcit.models.detection.roi_heads import Detections
from xcit.streaming import Budget, Place, Report, detection
from xcit.streaming.detection import detect_rows

Force = Callable[[Place, int], None]
SIZE = (150, 330)


class Killed(BaseException):
    pass


def detector(patch_size: int) -> MaskRCNN:
    """Returns a detector that finds 100 objects in noise; their scores differ enough to keep their order."""
    backbone = XCiTConfig(
        patch_size=patch_size, embed_dim=16, depth=4, num_heads=2, cls_depth=0, num_classes=0, global_pool="none"
    )
    torch.manual_seed(0)
    model = MaskRCNN(MaskRCNNConfig(backbone=backbone, num_classes=3, channels=8, box_features=16)).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1 and "temperature" not in name:
                value.normal_(std=value[0].numel() ** -0.5)
        model.rpn.head.bbox_pred.weight.mul_(0.3)
        model.roi_heads.box_predictor.bbox_pred.weight.mul_(0.3)
        for name, buffer in model.named_buffers():
            if "running_var" in name:
                buffer.uniform_(0.5, 2)
    return model.fuse()


@pytest.fixture(scope="module")
def model() -> MaskRCNN:
    return detector(16)


@pytest.fixture(scope="module")
def expected(model: MaskRCNN) -> Detections:
    return whole(model, picture(*SIZE))


def whole(model: MaskRCNN, pixels: Pixels, max_objects: int = 100) -> Detections:
    """The objects of the image in memory."""
    sides = min(pixels.shape[:2]), max(pixels.shape[:2])
    return model.detect(torch.from_numpy(pixels).permute(2, 0, 1), sides=sides, max_objects=max_objects, min_score=0.05)


def rows_of(pixels: Pixels, identity: str | None = "picture") -> ArrayRows:
    return ArrayRows(pixels, RowsInfo(name="picture", identity=identity))


def streamed(
    model: MaskRCNN,
    source: ArrayRows,
    memory: Budget | str = "1GB",
    *,
    max_objects: int = 100,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Detections, Report]:
    return detect_rows(model, source, min_score=0.05, max_objects=max_objects, memory=memory, progress=progress)


def assert_same(found: Detections, expected: Detections) -> None:
    assert torch.equal(found.labels, expected.labels) and len(found.labels) > 20
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-2)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.masks, expected.masks, rtol=0, atol=1e-4)


@pytest.mark.parametrize("place", ["device", "scratch"])
@pytest.mark.parametrize(
    ("patch_size", "size"),
    [(4, (75, 61)), (8, (133, 247)), (16, (310, 205)), (16, (64, 96)), (16, (20, 300)), (16, (331, 9)), (8, (3, 5))],
)
def test_objects_are_those_of_the_whole_image(
    patch_size: int, size: tuple[int, int], place: Place, force: Force, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(place, 2)
    monkeypatch.setattr(detection, "_MOST_NUMBERS", 1)  # a row of stride 32 at a time
    model, pixels = detector(patch_size), picture(*size)
    expected = whole(model, pixels)
    memory = Budget(memory=10**9, scratch=tmp_path)
    if min(size) < 32:  # narrow images: only labels and boxes are compared
        found, _ = streamed(model, rows_of(pixels), memory)
        assert torch.equal(found.labels, expected.labels)
        torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-2)
    else:
        found, report = streamed(model, rows_of(pixels), memory)
        assert_same(found, expected)
        assert (report.height, report.width) == size and (report.bytes_written > 0) == (place == "scratch")
    assert not list(tmp_path.iterdir())


def test_thousands_of_objects(model: MaskRCNN) -> None:
    pixels = picture(*SIZE)
    expected = whole(model, pixels, 1100)
    assert len(expected.scores) == 1100
    found, _ = streamed(model, rows_of(pixels), max_objects=1100)
    # With so many objects, rounding may change the order of two objects, and which of two is suppressed.
    apart = torch.cdist(found.boxes, expected.boxes, p=torch.inf)
    apart[found.labels[:, None] != expected.labels] = torch.inf
    assert (apart.amin(dim=0) < 1e-2).float().mean() > 0.99


def test_what_a_mask_leaves_out_has_no_objects_and_no_say(model: MaskRCNN) -> None:
    pixels, mask = picture(*SIZE), np.ones(SIZE, bool)
    mask[:, 112:256] = False
    other = pixels.copy()
    other[:, 112:256] = 77
    found = []
    for image in (pixels, other):
        source = rows_of(image)
        source.read_mask = lambda start, end: mask[start:end]  # type: ignore[attr-defined]
        found.append(streamed(model, source)[0])
    assert_same(*found)
    middle = (found[0].boxes[:, 0] + found[0].boxes[:, 2]) / 2
    assert not ((middle > 112) & (middle < 256)).any() and (middle < 112).any() and (middle > 256).any()


@pytest.mark.parametrize("at", [2.5, 7, 12, 15])
def test_a_run_that_is_killed_goes_on(
    model: MaskRCNN, expected: Detections, force: Force, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: float
) -> None:
    force("scratch", 3)
    monkeypatch.setattr(detection, "_MOST_NUMBERS", 1)
    memory, source = Budget(memory=10**9, scratch=tmp_path), rows_of(picture(*SIZE))
    height = 10  # of the tokens of the padded image

    def kill(done: int, total: int) -> None:
        assert total == 15 * height  # five passes of the backbone, and ten for the neck
        if done >= at * height:
            raise Killed

    with pytest.raises(Killed):
        streamed(model, source, memory, progress=kill)
    done: list[int] = []
    found, report = streamed(model, source, memory, progress=lambda rows, _: done.append(rows))
    assert_same(found, expected)
    assert report.resumed_from == min(int(at), 5)
    # In the pass of the neck, at most one stripe is computed again.
    assert done[0] >= at * height - (height if at < 5 else 0)
    assert not list(tmp_path.iterdir())


_KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from streaming_support import picture
from test_detection import SIZE, detector, rows_of, streamed
from xcit.streaming import Budget, detection, plan

original = plan.Costs.plan
plan.Costs.plan = lambda self, place, size, outputs: original(self, "scratch", size / 8, outputs)
detection._MOST_NUMBERS = 1

def kill(done, total):
    if done >= total - 40:
        os.kill(os.getpid(), signal.SIGKILL)

streamed(detector(16), rows_of(picture(*SIZE)), Budget(memory=10**9, scratch=Path(sys.argv[1])), progress=kill)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system can't kill so")
def test_a_killed_process_goes_on(
    model: MaskRCNN, expected: Detections, force: Force, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [str(Path(__file__).parents[2] / "support"), str(Path(__file__).parent), *sys.path]
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(places)}
    arguments = [sys.executable, "-c", _KILLED, str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    force("scratch", 3)
    monkeypatch.setattr(detection, "_MOST_NUMBERS", 1)
    rows: list[int] = []
    memory = Budget(memory=10**9, scratch=tmp_path)
    found, report = streamed(model, rows_of(picture(*SIZE)), memory, progress=lambda done, _: rows.append(done))
    assert_same(found, expected)
    assert report.resumed_from == 5 and rows[0] >= 150 - 40
    assert not list(tmp_path.iterdir())


def test_levels_that_a_crash_has_changed_are_made_anew(
    model: MaskRCNN, expected: Detections, force: Force, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    force("scratch", 3)
    monkeypatch.setattr(detection, "_MOST_NUMBERS", 1)
    memory, source = Budget(memory=10**9, scratch=tmp_path), rows_of(picture(*SIZE))

    def kill(done: int, total: int) -> None:
        if done >= total - 20:  # before the last stripe
            raise Killed

    with pytest.raises(Killed):
        streamed(model, source, memory, progress=kill)
    (level,) = tmp_path.rglob("level-0.bin")
    (state,) = (path for path in tmp_path.rglob("state.json") if "neck" in path.read_text())
    assert 0 < json.loads(state.read_text())["head"]["neck"]["done"] < 40
    with level.open("r+b") as file:
        file.seek(100)
        file.write(b"\x12\x34")
    done: list[int] = []
    assert_same(streamed(model, source, memory, progress=lambda rows, _: done.append(rows))[0], expected)
    assert done[0] <= 70  # the whole pass over the neck


def test_what_can_not_be_is_said_before_the_first_pass(
    model: MaskRCNN, force: Force, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def progress(done: int, total: int) -> None:
        raise AssertionError

    source = rows_of(picture(*SIZE))
    with pytest.raises(XCiTError, match=r"picture: the head of the model takes .* give more memory"):
        streamed(model, source, "50MB", progress=progress)
    force("scratch", 3)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**5))
    with pytest.raises(XCiTError, match=r"of scratch files are needed, 0\.00 GB are free: give another"):
        streamed(model, source, Budget(memory=10**9, scratch=tmp_path), progress=progress)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["fpn.layer_blocks.1.0", "rpn.head.cls_logits", "backbone.pyramid.stride8.0"])
def test_layers_that_do_more_than_their_weights_say_are_refused(name: str) -> None:
    model = detector(16)
    model.get_submodule(name).register_forward_hook(lambda *_: None)
    with pytest.raises(
        XCiTError, match=r"can't process an image in stripes, because .* is hooked, wrapped or replaced"
    ):
        streamed(model, rows_of(picture(64, 64)))


def test_a_model_that_is_not_fused_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    backbone = XCiTConfig(embed_dim=16, depth=2, num_heads=2, cls_depth=0, num_classes=0, global_pool="none")
    model = MaskRCNN(MaskRCNNConfig(backbone=backbone, num_classes=3, channels=8, box_features=16)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    streamed(model, rows_of(picture(64, 64)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


_MEASURE = """
import ctypes, gc, json, sys
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(1)
from xcit.models import XCiTConfig
from xcit.models.detection.config import MaskRCNNConfig
from xcit.models.detection.mask_rcnn import MaskRCNN
from xcit.streaming import Budget
from xcit.streaming.detection import detect_rows

class Stripes:
    channels = 3
    def __init__(self, height, width):
        self.height, self.width = height, width
    def read(self, start, end):
        return np.full((end - start, self.width, 3), start % 256, np.uint8)

backbone = XCiTConfig(patch_size=16, embed_dim=32, depth=2, cls_depth=0, num_classes=0, global_pool="none", num_heads=2)
model = MaskRCNN(MaskRCNNConfig(backbone=backbone, num_classes=2, channels=128, box_features=64)).eval().fuse()
detect_rows(model, Stripes(64, 64), min_score=0.5, max_objects=100, memory=10**9)  # what is loaded with the first call
found = []
for height, width, bound in json.loads(sys.argv[2]):
    gc.collect()
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
    budget = Budget(memory=bound, scratch=Path(sys.argv[1]))
    _, report = detect_rows(model, Stripes(height, width), min_score=0.5, max_objects=100, memory=budget)
    found.append([report.bytes_written > 0, bound, report.peak_bytes])
print(json.dumps(found))
"""


@pytest.mark.skipif(peak_resident_memory() is None, reason="this system does not say what a process takes")
def test_the_bound_is_kept(tmp_path: Path) -> None:
    cases = [(768, 1536, 300 * 10**6), (1024, 2048, 200 * 10**6)]
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [sys.executable, "-c", _MEASURE, str(tmp_path), json.dumps(cases)]
    done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found = json.loads(done.stdout)
    assert [on_scratch for on_scratch, _, _ in found] == [False, True]
    assert all(measured <= bound for _, bound, measured in found), found
