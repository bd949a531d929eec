"""Detectors and segmenters trained by two processes, stopped and resumed: real processes, started as people do."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from xcit.weights.files import read_checkpoint

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


TWO = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def command(*arguments: object, processes: int = 1) -> list[str]:
    start = ["-m", *TWO] if processes == 2 else []
    return [sys.executable, *start, "-m", "xcit", *map(str, arguments)]


def environment() -> dict[str, str]:
    """Of every process alike: with other numbers of threads sums are rounded otherwise."""
    return os.environ | {"OMP_NUM_THREADS": "1"}


def train(*arguments: object, processes: int = 1) -> str:
    """Runs to the end; gives what it prints."""
    done = subprocess.run(
        command("train", *arguments, processes=processes), capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


MEASURE = """
import sys
import torch
from torch import nn
from xcit.data.coco import open_coco
from xcit.engine.task import Layout
from xcit.models.detection.mask_rcnn import MaskRCNN
from xcit.models.detection.roi_heads import Detections
from xcit.recipes import get_recipe
from xcit.tasks.detection import evaluate_detection

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

from xcit.tasks.detection import _MeasuredImages
pixels = [pixels for _, pixels, _ in _MeasuredImages(images, 3)]
layout = None
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
def test_two_processes_measure_each_image_once(scenes: Path) -> None:
    Path("measure.py").write_text(MEASURE)
    printed = [
        subprocess.run([sys.executable, *start, "measure.py", str(scenes), *more], capture_output=True, text=True)
        for start, more in (([], []), (["-m", *TWO], ["two"]))
    ]
    assert [done.returncode for done in printed] == [0, 0], printed[1].stderr
    (one,), (first, second) = (done.stdout.splitlines() for done in printed)
    assert one == first == second and one.startswith("5 Precision(boxes=(")
    assert float(one.split("(")[2].split(",")[0]) > 10


@pytest.mark.parametrize("task", RUNS)
def test_two_processes_train_and_measure_as_one_and_a_stopped_run_goes_on_bit_for_bit(task: str, scenes: Path) -> None:
    name, changes = RUNS[task]
    fields = [word for pair in changes.items() for word in pair]
    recipe = (name, "--data", scenes)
    one = train(*recipe, "--out", "one", *fields)
    train(*recipe, "--out", "two", *fields, processes=2)

    # The same parts of each batch, computed by one or by two.
    states = {name: read_checkpoint(Path(name) / "model.safetensors").dense for name in ("one", "two")}
    for name, tensor in states["one"].items():
        if "running" not in name and "tracked" not in name:
            difference = (tensor - states["two"][name]).norm() / tensor.norm().clamp(min=1e-3)
            assert difference < 1e-3, name

    # The very same weights measured by two: each of five images once.
    figures = next(line for line in one.splitlines() if line.startswith("figures"))
    measured = train("one/config.yaml", "--out", "one", "--resume", "--device", "cpu", processes=2)
    assert figures in measured

    # Stopped and resumed.
    stopped = subprocess.Popen(
        command("train", *recipe, "--out", "cut", *fields), stderr=subprocess.PIPE, text=True, env=environment()
    )
    try:
        while stopped.poll() is None and not Path("cut/log.jsonl").exists():
            time.sleep(0.01)
        stopped.send_signal(signal.SIGTERM)
        _, complained = stopped.communicate()
    finally:
        stopped.kill()
    assert stopped.returncode == 75, complained
    train("cut/config.yaml", "--resume", "--device", "cpu")
    cut = read_checkpoint(Path("cut/model.safetensors")).dense
    assert all(torch.equal(tensor, cut[name]) for name, tensor in states["one"].items())
    steps = [json.loads(line)["step"] for line in Path("cut/log.jsonl").read_text().splitlines() if '"step"' in line]
    assert max(steps) == 8
