"""Detection and instance segmentation: the config, the evaluation, and the task that the engine trains."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from xcit.data.coco import CocoImages, open_coco
from xcit.data.detection_transforms import (
    DetectionAugmentation,
    TrainableImages,
    augmented_annotations,
    collate_detections,
    picture_pixels,
)
from xcit.data.inputs import as_stored
from xcit.data.loader import TrainLoader
from xcit.errors import XCiTError, some_of
from xcit.images.rows import ImageRows, rows_info
from xcit.inference.detect import MAX_OBJECTS, detect_large, detected_objects
from xcit.inference.full_size import FullSize, answer_each
from xcit.inference.reading import Unreadable
from xcit.models.detection.config import DetectorInfo, MaskRCNNConfig
from xcit.models.modes import evaluating
from xcit.streaming import Report
from xcit.training.engine.config import OptimizerConfig, RunConfig, ScheduleConfig
from xcit.training.engine.task import ALONE, Layout, Reduce
from xcit.training.tasks.average_precision import NAMES, DetectionRow, Precision, average_precision
from xcit.training.tasks.base import TaskWithLoader, check_class_weights, loader_config, with_classes_of
from xcit.training.tasks.dense_backbone import take_backbone
from xcit.training.tasks.evaluation import none_readable, one_by_one
from xcit.training.tasks.sources import find_source

if TYPE_CHECKING:
    from xcit.models.detection.mask_rcnn import MaskRCNN
    from xcit.models.detection.roi_heads import Detections


@dataclass(frozen=True, kw_only=True)
class DetectionConfig:
    """The config of a detection run.

    Attributes:
        name: name of the recipe or run. The exported model gets the same name.
        task: name of the task. In a YAML file, it determines the class of the config.
        model: architecture of the model, and the preprocessing in evaluation; `num_classes` 0 means the number of
            classes of the data.
        data: a folder or JSON file in COCO's format, see `open_coco`.
        backbone_weights: initial weights of the backbone: the name or file of a classifier, a feature backbone, a
            detector or a segmenter; "" for random weights.
        train_on_empty: whether to train also on images without objects. The published models were trained without such
            images.
        ignore_exif: whether boxes and masks refer to the image as it is stored, without the rotation in its EXIF data.
        class_weights: weight of each class in the loss of the box classifier, one number per class; the background has
            weight 1. If empty, all classes have the same weight. The other four losses have no class weights.
        augmentation: augmentation of training images.
        optimizer: optimiser and its settings.
        schedule: number of epochs, and the schedule of the learning rate.
        run: batch size, precision and other settings of the run.
    """

    name: str
    task: Literal["detection"] = "detection"
    model: MaskRCNNConfig
    data: str = ""
    backbone_weights: str = ""
    train_on_empty: bool = False
    ignore_exif: bool = False
    class_weights: tuple[float, ...] = ()
    augmentation: DetectionAugmentation = field(default_factory=DetectionAugmentation)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        check_class_weights(self.class_weights, self.model.num_classes)


@dataclass(frozen=True, kw_only=True)
class DetectionReport:
    """Results of the evaluation of a detector on annotated images.

    Attributes:
        num_images: number of images that could be read and were evaluated.
        precision: COCO's twelve numbers for boxes, and for masks.
        unreadable: one line for each image that this process could not read.
    """

    num_images: int
    precision: Precision
    unreadable: tuple[str, ...]

    def figures(self) -> dict[str, float]:
        """Returns AP, AP50 and AP75 of boxes and of masks (percent), by name."""
        return {
            f"{kind}_{name}": value
            for kind, values in (("box", self.precision.boxes), ("mask", self.precision.masks))
            for name, value in list(zip(NAMES, values, strict=True))[:3]
        }


class _MeasuredImages(Dataset[tuple[int, Tensor | None, str]]):
    """The images to evaluate. An item is (index, pixels uint8 (C, h, w), "").

    For an image that can't be read, the item is (index, None, reason).
    """

    def __init__(self, images: CocoImages, num_channels: int) -> None:
        self.images, self.num_channels = images, num_channels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, Tensor | None, str]:
        try:
            pixels = picture_pixels(self.images.read(index), self.num_channels)
        except XCiTError as error:
            return index, None, str(error)
        return index, torch.from_numpy(pixels.transpose(2, 0, 1).copy()), ""


def evaluate_detection(
    model: nn.Module,
    images: CocoImages,
    *,
    num_workers: int = 0,
    layout: Layout = ALONE,
    full_size: FullSize | None = None,
    report: Callable[[int], None] = lambda _: None,
) -> DetectionReport:
    """Evaluates a detector on annotated images, one image at a time. Each image is counted once.

    Args:
        model: a detector. It is in evaluation mode during the evaluation.
        images: the images to evaluate. Their classes are matched with the model's classes by name, or by order if the
            model's classes have no names.
        num_workers: number of processes that read images; with 0 this process reads them.
        layout: rank of this process, and number of processes. Each process evaluates its share of the
            images, and gets the results for all images.
        full_size: options to process images at their original size, in stripes. None means that images are resized as
            the model's config says.
        report: called with 1 after each image.

    Raises:
        XCiTError: if a class of the images is not a class of the model, if no image could be read, or if the images
            have no objects.
    """
    from xcit.models.detection.mask_rcnn import MaskRCNN

    assert isinstance(model, MaskRCNN)
    category_of = match_categories(model, images)
    results = (
        _found_whole(model, images, layout, full_size) if full_size else _found(model, images, layout, num_workers)
    )
    rows, seen, unreadable = list[DetectionRow](), list[int](), list[str]()
    with evaluating(model):
        for index, detections in results:
            if isinstance(detections, str):
                unreadable.append(detections)
            else:
                seen.append(index)
                for found in detected_objects(detections, images.images[index].size):
                    if found.label in category_of:
                        rows.append(DetectionRow(index, category_of[found.label], found.score, found.box, found.mask))
            report(1)
    if layout.world_size > 1:
        shares: list[Any] = [None] * layout.world_size
        torch.distributed.all_gather_object(shares, (rows, seen))
        rows = [row for share, _ in shares for row in share]
        seen = [index for _, share in shares for index in share]
    if not seen:
        raise none_readable(len(images), "images", unreadable)
    # Detections with equal scores are ranked in the order of the rows. After sorting, this order does not depend on the
    # number of processes.
    rows.sort(key=lambda row: row.image)
    precision = average_precision(images, sorted(seen), rows)
    return DetectionReport(num_images=len(seen), precision=precision, unreadable=tuple(unreadable))


def _found(
    model: "MaskRCNN", images: CocoImages, layout: Layout, num_workers: int
) -> Iterator[tuple[int, "Detections | str"]]:
    """Yields the index and the detections of each image in this process's share.

    The images are resized as the model's config says. For an image that can't be read, the reason is yielded instead of
    the detections.
    """
    measured = _MeasuredImages(images, model.config.backbone.in_channels)
    for index, pixels, reason in one_by_one(measured, len(images), layout, num_workers):
        yield index, reason or model.detect(pixels)


def _found_whole(
    model: "MaskRCNN", images: CocoImages, layout: Layout, full_size: FullSize
) -> Iterator[tuple[int, "Detections | str"]]:
    """Yields the index and the detections of each image in this process's share.

    The images are processed at their original size. For an image that can't be read, the reason is yielded instead of
    the detections.
    """
    from xcit.models.detection.roi_heads import MIN_SCORE

    for index in layout.share(len(images)):
        image = images.images[index]

        def answer(rows: ImageRows, size: tuple[int, int] = image.size) -> tuple["Detections", Report]:
            if (rows.height, rows.width) != size:
                raise XCiTError(
                    f"{rows_info(rows).name}: {rows.width} x {rows.height} pixels, but {size[1]} x {size[0]} in "
                    f"{images.source}: the annotations do not fit the image"
                )
            return detect_large(rows, model, min_score=MIN_SCORE, max_objects=MAX_OBJECTS, full_size=full_size)

        source = as_stored(image.path) if images.ignore_exif else image.path
        ((_, found),) = answer_each([source], full_size, answer)
        yield index, found.reason if isinstance(found, Unreadable) else found


def match_categories(model: "MaskRCNN", images: CocoImages) -> dict[int, int]:
    """Maps a model's labels, counted from 1, to the data set's category ids; labels without a category are left out.

    Raises:
        XCiTError: if a class of the data set is not a class of the model.
    """
    names = model.info.class_names if model.info is not None else ()
    if not names:
        if model.num_classes != len(images.class_names):
            raise XCiTError(
                f"{images.source} has {len(images.class_names)} classes, and the model has "
                f"{model.num_classes} classes without names"
            )
        return dict(enumerate(images.category_ids, start=1))
    label_of = {name: label for label, name in enumerate(names, start=1)}
    if lacking := [name for name in images.class_names if name not in label_of]:
        raise XCiTError(
            f"{images.source} has {len(images.class_names)} classes, but the model's {len(names)} classes do not "
            f"include {some_of(map(repr, lacking))}"
        )
    return {label_of[name]: number for name, number in zip(images.class_names, images.category_ids, strict=True)}


class DetectionTask(TaskWithLoader):
    """The detection task, built from a config: the model, data, losses and evaluation for the engine.

    Attributes:
        config: the config, in which a `num_classes` of 0 is replaced by the number of classes of the data.
        notes: lines for the user about the data.
        problems: one line for the user for each kind of problem in the data.

    Raises:
        XCiTError: if the data are missing, if training and validation images have different classes, or if weights
            can't be loaded or do not fit.
    """

    watch = "box_AP"

    def __init__(self, config: DetectionConfig, layout: Layout | None = None) -> None:
        from xcit.models.detection.mask_rcnn import MaskRCNN

        layout = layout or Layout(batch_size=config.run.batch_size)
        if not config.data:
            raise XCiTError(f"{config.name} has no data of its own: set data to a folder in COCO's format")
        if config.backbone_weights:
            find_source(config.backbone_weights, "backbone_weights")
        train, self.watched = (
            open_coco(config.data, split, ignore_exif=config.ignore_exif) for split in ("train", "val")
        )
        if set(train.class_names) != set(self.watched.class_names):
            raise XCiTError(f"{config.data}: the training and the validation images have different classes")
        self.notes = (f"found {train.describe()}", f"validated on {self.watched.describe()}")
        self.problems = tuple(dict.fromkeys([*train.problems, *self.watched.problems]))
        num_classes = len(train.class_names)
        self.config = config = with_classes_of(config, num_classes)
        torch.manual_seed(config.run.seed)
        model = MaskRCNN(config.model)
        if config.backbone_weights:
            take_backbone(model, config.backbone_weights)
        if config.class_weights:
            model.roi_heads.class_weights = torch.tensor([*config.class_weights, 1.0])
        model.info = self.info = DetectorInfo(
            name=config.name, class_names=train.class_names, category_ids=train.category_ids
        )
        self.model: nn.Module = model
        images = TrainableImages(
            train, num_channels=config.model.backbone.in_channels, with_empty=config.train_on_empty
        )
        self._loader: TrainLoader[Any] = TrainLoader(
            images,
            partial(augmented_annotations, config=config.augmentation),
            loader_config(config.run, layout),
            groups=images.groups(),
            collate_fn=collate_detections,
        )

    def train_batches(self, epoch: int, first_step: int = 0) -> Iterator[list[list[Tensor]]]:
        """Yields this process's parts of an epoch's batches: four lists, with images, boxes, labels and masks."""
        return (parts for parts, _ in self._loader.batches(epoch, first_step))

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Returns the sum of Mask R-CNN's five losses, and each loss separately."""
        images, *objects = batch
        targets = [
            {"boxes": boxes, "labels": labels, "masks": masks} for boxes, labels, masks in zip(*objects, strict=True)
        ]
        losses: dict[str, Tensor] = model(images, targets)
        total = torch.stack(list(losses.values())).sum()
        return {"loss": total, **{name: loss.detach() for name, loss in losses.items()}}

    def evaluate(
        self, model: nn.Module, layout: Layout = ALONE, reduce: Reduce = lambda tensor: tensor
    ) -> dict[str, float]:
        """Returns AP, AP50 and AP75 (percent) of boxes and masks on the validation images."""
        return evaluate_detection(model, self.watched, num_workers=self.config.run.num_workers, layout=layout).figures()
