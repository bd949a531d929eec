"""Writes scenes of Fashion-MNIST garments as a data set in COCO's format, with exact boxes and masks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xcit.data.coco_masks import encode_mask
from xcit.data.fashion_scenes import FashionScene, SceneConfig, scenes
from xcit.data.named import FASHION_MNIST_CLASSES, Split
from xcit.writing import whole_folder


def write_detection_scenes(
    folder: Path,
    *,
    num_train: int,
    num_val: int,
    config: SceneConfig | None = None,
    seed: int = 0,
    report: Callable[[int], None] = lambda _: None,
) -> None:
    """Writes training and validation scenes in a format that `open_coco` reads.

    The box and the mask of a garment cover only the visible part of the garment.

    Args:
        folder: a folder that is empty or does not exist.
        num_train: number of training scenes.
        num_val: number of validation scenes.
        config: settings of the scenes; None means the defaults.
        seed: seed of all random numbers.
        report: is called with 1 after each scene.

    Raises:
        XCiTError: if the folder is not empty, or can't be written.
    """
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(FASHION_MNIST_CLASSES)]
    with whole_folder(folder) as part:
        (part / "annotations").mkdir(parents=True)
        counts: tuple[tuple[Split, int], ...] = (("train", num_train), ("val", num_val))
        for split, count in counts:
            (part / split).mkdir()
            images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
            for number, scene in enumerate(scenes(split, count, config=config, seed=seed), start=1):
                name = f"{number:05}.png"
                Image.fromarray(scene.pixels).save(part / split / name)
                height, width = scene.pixels.shape[:2]
                images.append({"id": number, "file_name": name, "height": height, "width": width})
                annotations += _annotations(scene, number, first=len(annotations) + 1)
                report(1)
            content = {"images": images, "categories": categories, "annotations": annotations}
            (part / "annotations" / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")


def _annotations(scene: FashionScene, image: int, first: int) -> list[dict[str, Any]]:
    annotations = []
    for number, garment in enumerate(scene.garments, start=first):
        rows, columns = np.flatnonzero(garment.mask.any(axis=1)), np.flatnonzero(garment.mask.any(axis=0))
        left, top = int(columns[0]), int(rows[0])
        annotations.append(
            {
                "id": number,
                "image_id": image,
                "category_id": garment.label + 1,
                "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
                "area": int(garment.mask.sum()),
                "iscrowd": 0,
                "segmentation": encode_mask(garment.mask),
            }
        )
    return annotations
