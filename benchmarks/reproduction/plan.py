"""Lists the measurements that reproduce the published figures: one per model and protocol."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from xcit.images.preprocess import Preprocessing, published_preprocessing
from xcit.zoo import RECORDS, Checkpoint, Record
from xcit.zoo.records import DenseRecord

TOLERANCE = 0.1
"""Largest difference, in percentage points, between a measured figure and the published figure."""

NUM_IMAGES = {"ImageNet-1k": 50_000, "COCO": 5_000, "ADE20K": 2_000, "CIFAR-10": 10_000, "CIFAR-100": 10_000}
"""Numbers of images of the splits of the published figures: validation splits, and test splits of CIFAR."""


_ROBUSTBENCH = "5,000 images that RobustBench chose"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The measurement of one checkpoint on one data set.

    Attributes:
        record: record of the checkpoint.
        method: "classifier", "k-NN" or "linear"; for robust models also the attack; for a dense model its task.
        protocol: who measured the published figures; this determines the preprocessing.
        published: published figures in percent, by metric.
        spec: preprocessing of a classifier's images; None for a dense model.
        impossible: the reason why this package can't make the measurement; "" if it can.
        others: the images of the published figure, if it was not measured on the whole split; else "".
        notes: further notes on the figure, for the page.
    """

    record: Record
    method: str
    protocol: str
    published: Mapping[str, float]
    spec: Preprocessing | None = None
    impossible: str = ""
    others: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def key(self) -> str:
        """The measurement's name, which is used for file names."""
        return f"{self.record.name}--{self.method}--{self.protocol}".replace(" ", "-").replace("/", "-")

    @property
    def dataset(self) -> str:
        """The data set of the measurement."""
        return self.record.dataset


def plan(records: Iterable[Record] | None = None) -> list[Measurement]:
    """Returns the measurements of some records; None means all published records. The packaged model has none."""
    found = [record for record in (RECORDS.values() if records is None else records) if record.packaged is None]
    return [measurement for record in found for measurement in _of(record)]


def _of(record: Record) -> list[Measurement]:
    if isinstance(record, DenseRecord):
        by = {figure.measured_by for figure in record.figures}
        published = {figure.metric: figure.value for figure in record.figures}
        return [Measurement(record=record, method=record.task, protocol=", ".join(sorted(by)), published=published)]
    assert isinstance(record, Checkpoint)
    measurements = []
    for accuracy in record.accuracies:
        published = {"top-1": accuracy.top1} | ({} if accuracy.top5 is None else {"top-5": accuracy.top5})
        spec = record.preprocessing
        if accuracy.measured_by == "mmpretrain":
            spec = published_preprocessing("mmpretrain", spec.image_size)
        measurements.append(
            Measurement(
                record=record,
                method=f"{accuracy.method}, {accuracy.attack}" if accuracy.attack else accuracy.method,
                protocol=accuracy.measured_by,
                published=published,
                spec=spec,
                impossible=f"this package has no {accuracy.attack.partition(',')[0]}" if accuracy.attack else "",
                others=_ROBUSTBENCH if (accuracy.measured_by, record.dataset) == ("RobustBench", "ImageNet-1k") else "",
                notes=("the published k is unknown: the best of 10, 20, 100 and 200",)
                if accuracy.method == "k-NN"
                else (),
            )
        )
    return measurements
