"""Opens streams of labelled images, for data that are larger than the disk. A stream is read shard by shard."""

from collections.abc import Iterator
from typing import Protocol

from xcit.data.named import Split
from xcit.data.samples import StreamSample
from xcit.errors import XCiTError


class LabelledStream(Protocol):
    """Labelled images in shards. The stream can be pickled for other processes, but an iterator over a shard can't."""

    @property
    def class_ids(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the labels."""

    @property
    def num_images(self) -> int:
        """Number of images in all shards."""

    @property
    def num_shards(self) -> int:
        """Number of shards. Several shards can be read in parallel."""

    def shard(self, index: int) -> Iterator[StreamSample]:
        """Yields the samples of one shard, always in the same order. The images are not decoded."""


def is_stream(data: str) -> bool:
    """Returns whether `data` names a stream, which `open_stream` opens (and `open_labelled_images` does not)."""
    return data.startswith(("hf-stream:", "wds:"))


def open_stream(data: str, split: Split, *, num_classes: int | None = None) -> LabelledStream:
    """Opens a stream of labelled images.

    Args:
        data: one of the following.

            - `hf-stream:NAME`: a data set of the Hugging Face Hub or a folder of Parquet files, see `open_hub_stream`.
            - `wds:PATTERN`: tar shards in WebDataset's format, at paths or URLs. `list_shards` describes patterns, and
              `read_tar` describes the contents of shards. Class names are in a file `classes.txt` beside the first
              shard, one per line. The number of images is in a file `sizes.json` or `index.json` beside the shards. If
              there is no such file, the images of shards on disk are counted.

            In both forms, `#COUNT` at the end gives the number of images.
        split: the split of a data set of the Hugging Face Hub. It has no effect on tar shards, because each split has a
            pattern of its own.
        num_classes: number of classes, for data without class names. The class names are then "0", "1" and so on.

    Raises:
        XCiTError: if the data set does not exist, shards are missing, or the number of images or classes is unknown.
    """
    if data.startswith("wds:"):
        from xcit.data.shards import open_shards

        return open_shards(data, num_classes)
    if data.startswith("hf-stream:"):
        from xcit.data.hub import open_hub_stream

        return open_hub_stream(data, split, num_classes)
    raise XCiTError(f"{data}: not a stream; a stream is 'hf-stream:NAME' or 'wds:PATTERN'")
