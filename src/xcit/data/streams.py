"""Streams of labelled images, for data larger than a disk: each shard is read sequentially, one after another."""

from collections.abc import Iterator
from typing import Protocol

from xcit.data.named import Split
from xcit.data.samples import StreamSample
from xcit.errors import XCiTError


class LabelledStream(Protocol):
    """Labelled images in shards. The stream can be pickled for other processes; an iterator over a shard can't."""

    @property
    def class_ids(self) -> tuple[str, ...]:
        """The classes' names, in the order of the labels."""

    @property
    def num_images(self) -> int:
        """Number of images in all shards."""

    @property
    def num_shards(self) -> int:
        """Number of shards, which can be read in parallel."""

    def shard(self, index: int) -> Iterator[StreamSample]:
        """Yields the samples of one shard, always in the same order, without decoding any image."""


def is_stream(data: str) -> bool:
    """Whether a name is one for `open_stream`, and not for `open_labelled_images`."""
    return data.startswith(("hf-stream:", "wds:"))


def open_stream(data: str, split: Split, *, num_classes: int | None = None) -> LabelledStream:
    """Opens a stream of labelled images.

    Args:
        data: one of

            - `hf-stream:NAME`: a data set of the Hugging Face Hub or a folder of parquet files, see `open_hub_stream`.
            - `wds:PATTERN`: tar shards in WebDataset's format, at paths or URLs; see `list_shards` for patterns and
              `read_tar` for their contents. Class names are in a file `classes.txt` beside the first shard, one per
              line. The number of images is in a file `sizes.json` or `index.json` beside the shards; without one, local
              shards are counted once.

            Either may end in `#COUNT`, the number of images.
        split: the split of a Hugging Face data set; for tar shards each split has its own pattern.
        num_classes: number of classes, for data without class names; the names are then "0", "1" and so on.

    Raises:
        XCiTError: if there is no such data set, shards are missing, or the number of images or classes is unknown.
    """
    if data.startswith("wds:"):
        from xcit.data.shards import open_shards

        return open_shards(data, num_classes)
    if data.startswith("hf-stream:"):
        from xcit.data.hub import open_hub_stream

        return open_hub_stream(data, split, num_classes)
    raise XCiTError(f"{data}: no stream; streams are 'hf-stream:NAME' and 'wds:PATTERN'")
