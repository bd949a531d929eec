"""Measures the memory and the time that it takes to open COCO annotations.

    python benchmarks/coco_memory.py [MEGABYTES]

A JSON file of MEGABYTES with random objects is written to a temporary folder. It has COCO's fields, about seven objects
per image, and polygons of COCO's usual length. Memory is printed as a multiple of the file's size. "resident" is the
memory in use after the file is open, and "peak" is the maximum while the file is opened. "worker" is the memory that a
forked process copies when it reads every object. This benchmark needs Linux.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import mask  # noqa: F401 - imported first, so that the module's own memory is not measured

import xcit
from xcit.data.coco import open_coco
from xcit.machine import processor

HEIGHT, WIDTH = 480, 640
BYTES_AN_IMAGE = 5350


def draw_image(draw: np.random.Generator, number: int) -> dict[str, Any]:
    """Returns the JSON entry of a random image."""
    return {
        "license": int(draw.integers(1, 8)),
        "file_name": f"{number:012}.jpg",
        "coco_url": f"http://images.cocodataset.org/train2017/{number:012}.jpg",
        "height": HEIGHT,
        "width": WIDTH,
        "date_captured": "2013-11-14 17:02:52",
        "flickr_url": "http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg",
        "id": number,
    }


def draw_object(draw: np.random.Generator, image: int, number: int) -> dict[str, Any]:
    """Returns the JSON entry of a random object; 1 % of the objects are crowds with RLE masks."""
    x, y, width, height = draw.uniform((0, 0, 5, 5), (500, 380, 140, 100))
    num_points = int(np.clip(draw.lognormal(3.4, 0.7), 4, 200))
    angles = np.sort(draw.uniform(0, 2 * np.pi, num_points))
    points = np.stack([x + width / 2 * (1 + np.cos(angles)), y + height / 2 * (1 + np.sin(angles))], axis=1)
    is_crowd = draw.random() < 0.01
    rle = {"counts": [100, 200, HEIGHT * WIDTH - 300], "size": [HEIGHT, WIDTH]}
    return {
        "segmentation": rle if is_crowd else [points.round(2).ravel().tolist()],
        "area": round(float(width * height * 0.7), 4),
        "iscrowd": int(is_crowd),
        "image_id": image,
        "bbox": [round(float(value), 2) for value in (x, y, width, height)],
        "category_id": int(draw.integers(1, 81)),
        "id": number,
    }


def write(folder: Path, num_images: int) -> str:
    """Writes empty image files and their annotations; returns the path of the annotations."""
    draw = np.random.default_rng(0)
    images = [draw_image(draw, number) for number in range(num_images)]
    owners = np.repeat(np.arange(num_images), draw.integers(1, 14, num_images)).tolist()
    objects = [draw_object(draw, image, number) for number, image in enumerate(owners, start=1)]
    categories = [{"supercategory": "thing", "id": number, "name": f"class {number}"} for number in range(1, 81)]
    (folder / "train").mkdir()
    for image in images:
        (folder / "train" / image["file_name"]).touch()
    path = folder / "train.json"
    path.write_text(json.dumps({"images": images, "annotations": objects, "categories": categories}))
    return str(path)


def memory(field: str, file: str = "status") -> int:
    """Returns a field of the Linux kernel's statistics of this process, in bytes."""
    lines = Path(f"/proc/self/{file}").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def in_child(function: Any, *arguments: Any) -> Any:
    """Calls a function in a forked process, and returns its result."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, json.dumps(function(*arguments)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as file:
        os.close(writer)
        return json.loads(file.read())


def look_at_all(images: Any) -> int:
    """Returns the bytes that this process copies from its parent process when it reads all objects."""
    before = memory("Private_Dirty", "smaps_rollup")
    for image in images.images:
        for one in image.objects:
            assert one.segmentation
    return memory("Private_Dirty", "smaps_rollup") - before


def measure(path: str) -> dict[str, float]:
    """Opens the annotations; returns processor time in seconds, and memory divided by the file's size."""
    size, before, started = Path(path).stat().st_size, memory("VmRSS"), time.process_time()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    images = open_coco(path, "train")
    seconds = time.process_time() - started
    resident, peak = memory("VmRSS") - before, memory("VmHWM") - before
    worker = in_child(look_at_all, images)
    return {"seconds": seconds, "resident": resident / size, "peak": peak / size, "worker": worker / size}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("megabytes", nargs="?", type=int, default=80)
    megabytes = parser.parse_args().megabytes
    print(f"{platform.platform()}, {processor()}, Python {platform.python_version()}, xcit {xcit.__version__}")
    with tempfile.TemporaryDirectory() as temporary:
        # The file is written in a separate process, because the measured code must not reuse freed memory.
        path = Path(in_child(write, Path(temporary), megabytes * 1_000_000 // BYTES_AN_IMAGE))
        found = in_child(measure, str(path))
        print(f"JSON file      {path.stat().st_size / 1e6:7.1f} MB")
        print(f"processor time {found['seconds']:7.2f} s")
        for name in ("resident", "peak", "worker"):
            print(f"{name:14s} {found[name]:7.2f}x the file")


if __name__ == "__main__":
    main()
