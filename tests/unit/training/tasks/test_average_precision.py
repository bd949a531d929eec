"""Compares average precision with pycocotools on random detections."""

import contextlib
import io
import json
import math
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from xcit.data.coco import CocoImages, open_coco
from xcit.data.coco_masks import encode_mask
from xcit.errors import XCiTError
from xcit.training.tasks.average_precision import NAMES, DetectionRow, average_precision

SIZE = (160, 200)


def rectangle(x: float, y: float, width: float, height: float) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[int(y) : int(y + height) + 1, int(x) : int(x + width) + 1] = 1
    return mask


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> CocoImages:
    """Writes ten images with objects of three categories as polygons, RLE and crowds; the last image has no object."""
    root, draw = tmp_path_factory.mktemp("coco"), np.random.default_rng(0)
    entries: list[Any] = []
    annotations: list[Any] = []
    for number in range(10):
        entries.append({"id": 100 + number, "file_name": f"{number}.png", "height": SIZE[0], "width": SIZE[1]})
        Image.new("RGB", SIZE[::-1]).save(root / f"{number}.png")
        for _ in range(0 if number == 9 else 8):
            x, y = draw.uniform(0, 90, 2).tolist()
            width, height = draw.uniform(5, 100, 2).tolist()
            kind = int(draw.integers(3))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 100 + number,
                    "category_id": [2, 5, 9][int(draw.integers(3))],
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": int(kind == 2),
                    "segmentation": [[x, y, x + width, y, x + width, y + height, x, y + height]]
                    if kind == 0
                    else encode_mask(rectangle(x, y, width, height)),
                }
            )
    values = {
        "info": {},
        "images": entries,
        "categories": [{"id": number, "name": f"class {number}"} for number in (5, 2, 9)],
        "annotations": annotations,
    }
    (root / "all.json").write_text(json.dumps(values))
    return open_coco(root / "all.json", "val")


def random_rows(images: CocoImages, seed: int) -> list[DetectionRow]:
    """Returns detections: two shifted boxes per object, some with another class, and boxes where there is no object."""
    draw, rows = np.random.default_rng(seed), []
    for index, image in enumerate(images.images):
        boxes = [np.array(one.box) + draw.normal(0, 4, 4) for one in image.objects for _ in range(2)]
        boxes += [np.concatenate([draw.uniform(0, 80, 2), draw.uniform(5, 80, 2)]) for _ in range(3)]
        labels = [one.label for one in image.objects for _ in range(2)] + [0, 1, 2]
        for box, label in zip(boxes, labels, strict=True):
            x, y, width, height = np.maximum(box, 1).tolist()
            chosen = label if draw.random() < 0.8 else int(draw.integers(3))
            rows.append(
                DetectionRow(
                    index,
                    images.category_ids[chosen],
                    float(draw.random()),
                    (x, y, width, height),
                    encode_mask(rectangle(x, y, width, height)),
                )
            )
    return rows


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # NumPy 2 warns about pycocotools
def reference(images: CocoImages, measured: list[int], rows: list[DetectionRow], kind: str) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(images.source))
        detections: list[dict[str, Any]] = [
            {"image_id": images.images[row.image].id, "category_id": row.category_id, "score": row.score}
            | ({"bbox": list(row.box)} if kind == "bbox" else {"segmentation": row.mask})
            for row in rows
        ]
        evaluation = COCOeval(truth, truth.loadRes(detections), kind)
        evaluation.params.imgIds = [images.images[index].id for index in measured]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [100 * float(value) if value >= 0 else math.nan for value in evaluation.stats]


@pytest.mark.parametrize(("seed", "num_images"), [(0, 10), (1, 10), (2, 5)])
def test_the_twelve_numbers_are_pycocotools(images: CocoImages, seed: int, num_images: int) -> None:
    measured = list(range(10 - num_images, 10))
    rows = [row for row in random_rows(images, seed) if row.image in measured]
    found = average_precision(images, measured, rows)
    assert len(NAMES) == len(found.boxes) == len(found.masks) == 12
    for kind, values in (("bbox", found.boxes), ("segm", found.masks)):
        np.testing.assert_allclose(values, reference(images, measured, rows, kind), atol=1e-9)
    assert 10 < found.boxes[0] < 90


def test_no_detection_is_a_precision_of_0_and_perfect_ones_of_100(images: CocoImages) -> None:
    everything = list(range(10))
    assert average_precision(images, everything, []).boxes[:3] == (0, 0, 0)
    rows = [
        DetectionRow(index, images.category_ids[one.label], 0.9, one.box, encode_mask(images.masks(index, [one])[0]))
        for index, image in enumerate(images.images)
        for one in image.objects
        if not one.is_crowd
    ]
    found = average_precision(images, everything, rows)
    assert found.boxes[0] == pytest.approx(100) and found.masks[0] == pytest.approx(100)


def test_without_objects_there_is_nothing_to_find(images: CocoImages) -> None:
    with pytest.raises(XCiTError, match="have no objects, so average precision can't be computed"):
        average_precision(images, [9], [])
    crowd = next(index for index, image in enumerate(images.images) if any(not one.is_crowd for one in image.objects))
    assert not math.isnan(average_precision(images, [crowd], []).boxes[0])
