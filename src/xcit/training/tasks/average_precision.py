"""Average precision and recall of boxes and masks (COCO's twelve numbers), computed by faster-coco-eval."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from xcit.data.coco import CocoImages
from xcit.data.coco_masks import to_rle
from xcit.errors import XCiTError
from xcit.extras import imported

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""Names of COCO's twelve numbers.

The first six are the average precision (AP): averaged over the IoU thresholds .50 to .95, at IoU .50, at IoU .75, and
for small, medium and large objects. The last six are the average recall (AR): with at most 1, 10 and 100 detections per
image, and for small, medium and large objects.
"""

DESCRIPTIONS = (
    *(
        (f"Average Precision (AP) @[ IoU={iou:<9} | area={area:>6} | maxDets=100 ]")
        for iou, area in (
            ("0.50:0.95", "all"),
            ("0.50", "all"),
            ("0.75", "all"),
            ("0.50:0.95", "small"),
            ("0.50:0.95", "medium"),
            ("0.50:0.95", "large"),
        )
    ),
    *(
        (f"Average Recall    (AR) @[ IoU=0.50:0.95 | area={area:>6} | maxDets={count:>3} ]")
        for area, count in (
            ("all", 1),
            ("all", 10),
            ("all", 100),
            ("small", 100),
            ("medium", 100),
            ("large", 100),
        )
    ),
)
"""The text that COCO's tools print before each of the twelve numbers."""


class DetectionRow(NamedTuple):
    """One detection: index of the image, category id, score, box (x, y, width, height) and run-length encoded mask."""

    image: int
    category_id: int
    score: float
    box: tuple[float, float, float, float]
    mask: dict[str, Any]


class Precision(NamedTuple):
    """COCO's twelve numbers for boxes and for masks, in percent.

    If no object has a certain size (small, medium or large), the numbers for this size are NaN.
    """

    boxes: tuple[float, ...]
    masks: tuple[float, ...]


def average_precision(images: CocoImages, measured: Sequence[int], rows: Sequence[DetectionRow]) -> Precision:
    """Computes average precision and recall of detections.

    Args:
        images: the data set.
        measured: indices of the images that were evaluated.
        rows: the detections in these images.

    Raises:
        XCiTError: if these images have no objects except crowds, or if faster-coco-eval is not installed.
    """
    coco = imported("faster_coco_eval", "average precision")
    truth = coco.COCO(_truth(images, measured))
    if all(one["iscrowd"] for one in truth.dataset["annotations"]):
        raise XCiTError(
            f"{images.source}: the images that could be read have no objects, so average precision can't be computed"
        )
    ids = {index: images.images[index].id for index in measured}
    common = [{"image_id": ids[row.image], "category_id": row.category_id, "score": row.score} for row in rows]
    found = {
        "bbox": [{**own, "bbox": list(row.box)} for own, row in zip(common, rows, strict=True)],
        # No box is passed here, so that the size (small, medium or large) of a detection is computed from its mask.
        "segm": [{**own, "segmentation": row.mask} for own, row in zip(common, rows, strict=True)],
    }
    stats = []
    for kind, detections in found.items():
        evaluation = coco.COCOeval_faster(truth, truth.loadRes(detections), kind, print_function=lambda *_: None)
        evaluation.run()
        stats.append(tuple(100 * float(value) if value >= 0 else float("nan") for value in evaluation.stats[:12]))
    return Precision(*stats)


def _truth(images: CocoImages, measured: Sequence[int]) -> dict[str, Any]:
    """Returns the evaluated images and their objects in COCO's format, with ids from 1 and run-length encoded masks."""
    annotations = list[dict[str, Any]]()
    for index in measured:
        image = images.images[index]
        for one in image.objects:
            rle = to_rle(one.segmentation, image.size)
            counts = rle["counts"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image.id,
                    "category_id": images.category_ids[one.label],
                    "bbox": list(one.box),
                    "area": one.area,
                    "iscrowd": int(one.is_crowd),
                    "segmentation": {
                        "size": list(image.size),
                        "counts": counts.decode() if isinstance(counts, bytes) else counts,
                    },
                }
            )
    return {
        "images": [
            {
                "id": images.images[index].id,
                "height": images.images[index].size[0],
                "width": images.images[index].size[1],
            }
            for index in measured
        ],
        "categories": [
            {"id": number, "name": name} for number, name in zip(images.category_ids, images.class_names, strict=True)
        ],
        "annotations": annotations,
    }
