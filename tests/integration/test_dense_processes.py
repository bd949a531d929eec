"""Tests detectors and segmenters in two processes: training, measuring, stopping and resuming."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forked import Forked

from xcit.zoo.stored import read_weights

pytestmark = pytest.mark.timeout(1800)

COMMON = {
    "--run.batch_size": 4, "--run.max_device_batch": 2, "--run.num_workers": 0, "--run.log_every": 1,
    "--run.evaluate_every": 2, "--schedule.epochs": 2, "--model.backbone.depth": 2, "--model.out_indices": "0,0,1,1",
    "--model.channels": 16, "--device": "cpu",
}  # fmt: skip
RUNS = {
    "detection": ("mask-rcnn_xcit-pico_fashion-scenes", COMMON | {"--schedule.warmup_epochs": 0}),
    "segmentation": ("sem-fpn_xcit-pico_fashion-scenes", COMMON | {"--epoch_steps": 4, "--schedule.warmup_steps": 1}),
}


MEASURE = """
import sys
import torch
from torch import nn
from xcit.data.coco import open_coco
from xcit.training.engine.task import ALONE, Layout
from xcit.models.detection.mask_rcnn import MaskRCNN
from xcit.models.detection.roi_heads import Detections
from xcit.training.recipes import get_recipe
from xcit.training.tasks.detection import evaluate_detection

images = open_coco(sys.argv[1], "val")

class Knowing(MaskRCNN):
    # Finds what is there, a little beside it, and takes some for another class.
    def detect(self, image):
        index = next(i for i in range(len(images)) if torch.equal(pixels[i], image))
        draw = torch.Generator().manual_seed(index)
        boxes = torch.tensor([one.box for one in images.images[index].objects])
        boxes[:, 2:] += boxes[:, :2]
        boxes += 2 * torch.randn(boxes.shape, generator=draw)
        labels = torch.tensor([one.label + 1 for one in images.images[index].objects])
        labels[torch.rand(len(labels), generator=draw) < 0.2] = 1
        scores = (torch.rand(len(labels), generator=draw) * 4).round() / 4  # ties too
        return Detections(boxes, labels, scores, torch.ones(len(labels), 28, 28))

from xcit.training.tasks.detection import _MeasuredImages
pixels = [pixels for _, pixels, _ in _MeasuredImages(images, 3)]
layout = ALONE
if len(sys.argv) > 2:
    torch.distributed.init_process_group("gloo")
    layout = Layout(batch_size=2, rank=torch.distributed.get_rank(), world_size=2)
report = evaluate_detection(Knowing(get_recipe("mask-rcnn_xcit-pico_fashion-scenes").model), images, layout=layout)
sys.stdout.write(f"{report.num_images} {report.precision}" + chr(10))  # in one piece, for two write
"""


@pytest.fixture
def scenes(make_scenes, task: str) -> Path:
    return make_scenes(task, 16, 5)


@pytest.mark.parametrize("task", ["detection"])
def test_two_processes_measure_each_image_once(start: Callable[..., Forked], scenes: Path) -> None:
    Path("measure.py").write_text(MEASURE)
    printed = [
        start("measure.py", scenes).finish(),
        start("measure.py", scenes, "two", processes=2).finish(),
    ]
    assert [done.status for done in printed] == [0, 0], printed[1].err
    (one,), (first, second) = (done.out.splitlines() for done in printed)
    assert one == first == second and one.startswith("5 Precision(boxes=(")
    assert float(one.split("(")[2].split(",")[0]) > 10


@pytest.mark.parametrize("task", RUNS)
def test_two_processes_train_and_measure_as_one_and_a_stopped_run_goes_on_bit_for_bit(
    start: Callable[..., Forked], task: str, scenes: Path
) -> None:
    def train(*arguments: object, processes: int = 1) -> str:
        done = start("-m", "xcit", "train", *arguments, processes=processes).finish()
        assert done.status == 0, done.out + done.err
        return done.out

    name, changes = RUNS[task]
    fields = [word for pair in changes.items() for word in pair]
    recipe = (name, "--data", scenes)
    one = train(*recipe, "--out", "one", *fields)
    train(*recipe, "--out", "two", *fields, processes=2)

    # One process and two processes compute the same parts of each batch, so weights differ only by rounding.
    states = {name: read_weights(Path(name) / "model.safetensors").dense for name in ("one", "two")}
    for name, tensor in states["one"].items():
        if "running" not in name and "tracked" not in name:
            difference = (tensor - states["two"][name]).norm() / tensor.norm().clamp(min=1e-3)
            assert difference < 1e-3, name

    # Two processes measure the weights of the first run: each of the five images one time.
    figures = next(line for line in one.splitlines() if line.startswith("figures"))
    measured = train("one/config.yaml", "--out", "one", "--resume", "--device", "cpu", processes=2)
    assert figures in measured

    # The run is stopped and resumed.
    stopped = start("-m", "xcit", "train", *recipe, "--out", "cut", *fields)
    while stopped.running and not Path("cut/log.jsonl").exists():
        time.sleep(0.01)
    stopped.send(signal.SIGTERM)
    done = stopped.finish()
    assert done.status == 75, done.err
    train("cut/config.yaml", "--resume", "--device", "cpu")
    cut = read_weights(Path("cut/model.safetensors")).dense
    assert all(torch.equal(tensor, cut[name]) for name, tensor in states["one"].items())
    steps = [json.loads(line)["step"] for line in Path("cut/log.jsonl").read_text().splitlines() if '"step"' in line]
    assert max(steps) == 8
