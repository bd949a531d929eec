"""Draws one picture with scenes of garments, their true labels, and the results of trained models.

    python examples/scene_pictures.py segmentation SCENES OUT.png MODEL.safetensors [MODEL.safetensors ...]
    python examples/scene_pictures.py detection SCENES OUT.png MODEL.safetensors [MODEL.safetensors ...]

SCENES is a folder from `xcit make-data fashion-scenes`. The picture shows the first scenes of its validation split;
none is hand-picked.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from xcit.data.coco import CocoImages, open_coco
from xcit.data.coco_masks import decode_mask, encode_mask
from xcit.data.segmentation import open_scenes
from xcit.draw.labels import palette
from xcit.inference.detect import DetectedObject, DetectedObjects, detect
from xcit.inference.segment import segment

ENLARGED = 2
"""Factor by which scenes are enlarged for segmentation."""

ENLARGED_FOR_TEXT = 4
"""Factor by which scenes are enlarged for detection; it is larger, because class names must fit."""

GAP, HEADING = 6, 22


def sheet(
    columns: Sequence[str], rows: Sequence[Sequence[Image.Image]], legend: Sequence[tuple[str, tuple[int, ...]]]
) -> Image.Image:
    """Returns one picture: headings, below them rows of pictures of the same size, and below the rows a legend."""
    font, (width, height) = ImageFont.load_default(13), rows[0][0].size
    whole_width = len(columns) * (width + GAP) - GAP
    entry = 24 + int(max((font.getlength(name) for name, _ in legend), default=0))
    per_line = max(1, whole_width // entry)
    legend_height = -(-len(legend) // per_line) * HEADING
    whole = Image.new("RGB", (whole_width, HEADING + len(rows) * (height + GAP) + legend_height), "white")
    draw = ImageDraw.Draw(whole)
    for x, name in enumerate(columns):
        draw.text((x * (width + GAP), 3), name, fill="black", font=font)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            whole.paste(picture, (x * (width + GAP), HEADING + y * (height + GAP)))
    top = HEADING + len(rows) * (height + GAP)
    for place, (name, colour) in enumerate(legend):
        left, line = place % per_line * entry, top + place // per_line * HEADING
        draw.rectangle((left + 2, line + 3, left + 16, line + 17), fill=colour, outline="black")
        draw.text((left + 21, line + 2), name, fill="black", font=font)
    return whole


def enlarged(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Enlarges each pixel to a square of `factor` x `factor` pixels; the first two axes are height and width."""
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def segmentation(scenes_folder: str, models: Sequence[str], count: int) -> Image.Image:
    """Returns one row per scene: the scene, its true labels, and the labels of each model."""
    scenes = open_scenes(scenes_folder, "val")
    shown = [scenes[index][0] for index in range(count)]
    colours = palette(len(scenes.class_names))
    maps = [[scene.labels for scene in shown]]
    maps += [[found.labels for found in segment([scene.image for scene in shown], model)] for model in models]
    rows = []
    for index, scene in enumerate(shown):
        pixels = [np.asarray(scene.image), *(colours[own[index]] for own in maps)]
        rows.append([Image.fromarray(enlarged(picture, ENLARGED)) for picture in pixels])
    legend = [(name, tuple(map(int, colour))) for name, colour in zip(scenes.class_names, colours, strict=True)]
    return sheet(["scene", "truth", *map(title, models)], rows, legend)


def truth(images: CocoImages, index: int) -> DetectedObjects:
    """Returns the annotations of an image as detections."""
    image = images.images[index]
    objects = tuple(
        DetectedObject(
            label=one.label + 1,
            name=images.class_names[one.label],
            score=1.0,
            box=one.box,
            mask=encode_mask(decode_mask(one.segmentation, image.size)),
        )
        for one in image.objects
    )
    picture = np.asarray(images.read(index))
    return DetectedObjects(source=str(image.path), image=picture, size=image.size, objects=objects)


def large(found: DetectedObjects, factor: int) -> Image.Image:
    """Enlarges an image and its detections, and draws the detections."""
    size = found.image.shape[0], found.image.shape[1]
    objects = tuple(
        DetectedObject(
            label=one.label,
            name=one.name,
            score=one.score,
            box=tuple(factor * value for value in one.box),
            mask=encode_mask(enlarged(decode_mask(one.mask, size), factor)),
        )
        for one in found.objects
    )
    pixels = enlarged(found.image, factor)
    whole = (pixels.shape[0], pixels.shape[1])
    return DetectedObjects(source=found.source, image=pixels, size=whole, objects=objects).picture()


def detection(scenes_folder: str, models: Sequence[str], count: int) -> Image.Image:
    """Returns one row per scene: its true objects, and the detections of each model."""
    images = open_coco(scenes_folder, "val")
    columns = [[truth(images, index) for index in range(count)]]
    columns += [detect([images.images[index].path for index in range(count)], model) for model in models]
    rows = [[large(column[index], ENLARGED_FOR_TEXT) for column in columns] for index in range(count)]
    return sheet(["truth", *map(title, models)], rows, [])


def title(model: str) -> str:
    """Returns a run's name, which is the name of its folder."""
    return Path(model).absolute().parent.name


def main() -> None:
    """Draws and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["segmentation", "detection"])
    parser.add_argument("scenes")
    parser.add_argument("out", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--count", type=int, default=4, help="number of scenes")
    arguments = parser.parse_args()
    draw = segmentation if arguments.task == "segmentation" else detection
    draw(arguments.scenes, arguments.models, arguments.count).save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
