"""Lists the measurements that reproduce the published figures: each has one model, one protocol and one data set."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from xcit.images.preprocess import Preprocessing, published_preprocessing
from xcit.zoo import RECORDS, Checkpoint, Record
from xcit.zoo.records import DenseRecord

TOLERANCE = 0.1
"""Percentage points by which a figure may differ from the published one."""

NUM_IMAGES = {"ImageNet-1k": 50_000, "COCO": 5_000, "ADE20K": 2_000, "CIFAR-10": 10_000, "CIFAR-100": 10_000}
"""Numbers of images of the validation splits (for CIFAR: test splits), to which the published figures refer."""


_ROBUSTBENCH = "5,000 images that RobustBench chose"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One run over a data set.

    Attributes:
        record: record of the checkpoint.
        method: "classifier", "k-NN", "linear", or the task of a dense model.
        protocol: who published the figures, which determines how images are prepared.
        published: published figures in percent, by metric.
        spec: preprocessing of a classifier's images.
        impossible: why this package can't make the measurement; "" if it can.
        others: the images of the published figure, if it was not measured on the whole validation split.
        notes: further notes on the figure.
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
        """A name of the measurement, for files."""
        return f"{self.record.name}--{self.method}--{self.protocol}".replace(" ", "-").replace("/", "-")

    @property
    def dataset(self) -> str:
        """The data set of the measurement."""
        return self.record.dataset


def plan(records: Iterable[Record] | None = None) -> list[Measurement]:
    """Returns the measurements of some records; None means all published ones. The packaged model has none."""
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
                notes=("which k was taken was not published: the best of 10, 20, 100 and 200",)
                if accuracy.method == "k-NN"
                else (),
            )
        )
    return measurements
