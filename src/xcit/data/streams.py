"""Streams of labelled images, for data beyond one disk: shard after shard, each read from its start to its end."""

from collections.abc import Iterator
from typing import Protocol

from xcit.data.named import Split
from xcit.data.samples import StreamSample
from xcit.errors import XCiTError


class LabelledStream(Protocol):
    """Labelled images in shards. It can be sent to other processes; an iterator of a shard stays in its own."""

    @property
    def class_ids(self) -> tuple[str, ...]:
        """The classes' names, in the order of the labels."""

    @property
    def num_images(self) -> int:
        """Images in all shards together."""

    @property
    def num_shards(self) -> int:
        """Parts that can be read side by side."""

    def shard(self, index: int) -> Iterator[StreamSample]:
        """The samples of one shard, always in the same order, without decoding a picture."""


def is_stream(data: str) -> bool:
    """Tells the names that `open_stream` takes from those of `open_labelled_images`."""
    return data.startswith(("hf-stream:", "wds:"))


def open_stream(data: str, split: Split, *, num_classes: int | None = None) -> LabelledStream:
    """Opens a stream of labelled images.

    Args:
        data: one of

            - `hf-stream:NAME`: a data set of the Hugging Face Hub or a folder of parquet files, see `open_hub_stream`.
            - `wds:PATTERN`: tar shards in WebDataset's form, at paths or URLs, see `list_shards` for patterns
              and `read_tar` for what is in them. Class names are in a file `classes.txt` beside the first shard, one a
              line. How many images there are is in a file `sizes.json` or `index.json` beside the shards; else local
              shards are counted once.

            Either may end in `#COUNT`, the number of images.
        split: which split of a Hugging Face data set; each split of tar shards is a pattern of its own.
        num_classes: for data without class names, which are then "0", "1" and so on.

    Raises:
        XCiTError: if there is no such data set, its shards are missing, or the number of images or classes is unknown.
    """
    if data.startswith("wds:"):
        from xcit.data.shards import open_shards

        return open_shards(data, num_classes)
    if data.startswith("hf-stream:"):
        from xcit.data.hub import open_hub_stream

        return open_hub_stream(data, split, num_classes)
    raise XCiTError(f"{data}: no stream; streams are 'hf-stream:NAME' and 'wds:PATTERN'")
