"""Tests that a stream's batches depend only on seed, epoch and slots (processes x workers), also after a resume."""

import io
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from xcit.data.loader import AugmentationConfig, LoaderConfig, train_transform
from xcit.data.samples import StreamSample, unreadable_sample
from xcit.data.shards import open_shards
from xcit.data.stream_loader import StreamTrainLoader, stream_evaluation_batches
from xcit.data.streams import open_stream
from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing, preprocess

SPEC = Preprocessing(image_size=8, resize_to=8)
STRONG = AugmentationConfig(rand_augment="rand-m9-n2-mstd0.5-inc1", random_erasing=0.5)

# torch warns if a loader has more workers than the machine has cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

Batches = list[tuple[Tensor, Tensor]]


@dataclass
class Numbered:
    """A stream of shards with `sizes` images; an image's label identifies it. Images in `broken` can't be read."""

    sizes: tuple[int, ...]
    broken: frozenset[int] = frozenset()
    read: list[int] = field(default_factory=list)

    @property
    def class_ids(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.num_images)))

    @property
    def num_images(self) -> int:
        return sum(self.sizes)

    @property
    def num_shards(self) -> int:
        return len(self.sizes)

    def shard(self, index: int) -> Iterator[StreamSample]:
        start = sum(self.sizes[:index])
        for number in range(start, start + self.sizes[index]):
            yield StreamSample(f"image {number}", number, partial(self._load, number))

    def _load(self, number: int) -> bytes:
        self.read.append(number)
        if number in self.broken:
            return b""
        file = io.BytesIO()
        picture(number).save(file, "PNG")
        return file.getvalue()


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (10, 12, 3), dtype=np.uint8))


@pytest.fixture
def stream() -> Numbered:
    return Numbered((5, 3, 7, 6, 4, 5, 2, 8))


def loader(stream: Any, **changes: Any) -> StreamTrainLoader:
    options = {"batch_size": 4, "seed": 0, "num_workers": 0, "shuffle_buffer": 4} | changes
    buffer = options.pop("shuffle_buffer")
    return StreamTrainLoader(stream, train_transform(STRONG, SPEC), LoaderConfig(**options), shuffle_buffer=buffer)


def batches_of(loader: StreamTrainLoader, epoch: int = 0, first_step: int = 0) -> Batches:
    return [(images.clone(), labels.clone()) for images, labels in loader.batches(epoch, first_step)]


def labels_of(batches: Batches) -> list[int]:
    return torch.cat([labels for _, labels in batches]).tolist()


def equal(one: Batches, other: Batches) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other, strict=True)
    )


def test_an_epoch_is_every_image_once_in_a_new_order(stream: Numbered) -> None:
    ours = loader(stream)
    assert (ours.num_steps, ours.num_inputs) == (10, 40)
    epochs = [batches_of(ours, epoch) for epoch in range(2)]
    for batches in epochs:
        assert [(images.shape, labels.dtype) for images, labels in batches] == [((4, 3, 8, 8), torch.int64)] * 10
        assert sorted(labels_of(batches)) == list(range(40))
    assert labels_of(epochs[0]) != labels_of(epochs[1])
    assert labels_of(epochs[0]) != labels_of(batches_of(loader(stream, seed=1)))
    by_label = [
        {label: image for images, labels in batches for image, label in zip(images, labels.tolist(), strict=True)}
        for batches in epochs
    ]
    assert not any(torch.equal(by_label[0][label], by_label[1][label]) for label in range(40))


def test_the_buffer_shuffles_across_shards() -> None:
    stream = Numbered((8,) * 4)
    in_order = labels_of(batches_of(loader(stream, shuffle_buffer=1)))
    shards = [label // 8 for label in in_order]
    assert shards == sorted(shards, key=shards.index) and in_order != sorted(in_order)  # shards in random order
    assert all(in_order[start : start + 8] == sorted(in_order[start : start + 8]) for start in range(0, 32, 8))
    mixed = [label // 8 for label in labels_of(batches_of(loader(stream, shuffle_buffer=12)))]
    assert mixed != sorted(mixed, key=mixed.index)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_may_begin_at_any_step(stream: Numbered, num_workers: int) -> None:
    stream.broken = frozenset(random.Random(0).sample(range(40), 12))
    whole = batches_of(loader(stream, num_workers=num_workers), epoch=1)
    assert len(whole) == 10
    ours = loader(stream, num_workers=num_workers)
    for first_step in (3, 0, 4, 9, 10) if num_workers else range(11):
        random.seed(first_step)
        torch.manual_seed(first_step)
        assert equal(batches_of(ours, 1, first_step), whole[first_step:])


def test_an_epoch_that_is_left_half_way(stream: Numbered) -> None:
    ours = loader(stream, num_workers=2)
    whole = batches_of(loader(stream, num_workers=2), epoch=3)
    begun: Any = ours.batches(2)
    next(begun)
    begun.close()
    assert equal(batches_of(ours, 3), whole)


def test_what_is_left_out_is_not_read(stream: Numbered) -> None:
    batches_of(loader(stream), 0, first_step=8)
    assert len(stream.read) == 8


@pytest.mark.parametrize("num_workers", [0, 2])
def test_processes_divide_the_parts_of_each_batch(stream: Numbered, num_workers: int) -> None:
    ranks = [
        batches_of(loader(stream, world_size=2, num_parts=4, rank=rank, num_workers=num_workers)) for rank in range(2)
    ]
    assert [len(batches) for batches in ranks] == [20, 20]  # ten steps of two parts of one image
    assert all(images.shape == (1, 3, 8, 8) for batches in ranks for images, _ in batches)
    seen = [set(labels_of(batches)) for batches in ranks]
    assert not seen[0] & seen[1]  # their shards differ
    resumed = loader(stream, world_size=2, num_parts=4, rank=1, num_workers=num_workers)
    assert equal(batches_of(resumed, 0, first_step=3), ranks[1][6:])


def test_slots_alone_decide_what_a_step_sees(stream: Numbered) -> None:
    """Two processes with one worker each yield the same batches as one process with two workers."""
    one = batches_of(loader(stream, num_parts=2, num_workers=2))
    two = [batches_of(loader(stream, num_parts=2, world_size=2, rank=rank, num_workers=1)) for rank in range(2)]
    assert equal(one, [part for parts in zip(*two, strict=True) for part in parts])


def test_a_slot_starts_its_shards_over() -> None:
    stream = Numbered((2, 10))
    ranks = [batches_of(loader(stream, num_parts=2, world_size=2, rank=rank)) for rank in range(2)]
    assert [len(batches) for batches in ranks] == [3, 3]
    small, large = sorted((labels_of(batches) for batches in ranks), key=lambda labels: len(set(labels)))
    assert Counter(small) == {0: 3, 1: 3}
    assert all(sorted(small[start : start + 2]) == [0, 1] for start in (0, 2, 4))
    assert len(set(large)) == 6
    images = torch.cat([images for images, _ in next(b for b in ranks if labels_of(b) == small)])
    assert len({image.numpy().tobytes() for image in images}) > 2  # each repeat has new random draws


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_image_is_named_and_the_next_takes_its_place(stream: Numbered, num_workers: int) -> None:
    whole = labels_of(batches_of(loader(stream, num_workers=num_workers)))
    stream.broken = frozenset({whole[5], whole[30]})
    ours = loader(stream, num_workers=num_workers)
    labels = labels_of(batches_of(ours))
    assert [place for place in range(40) if labels[place] != whole[place]] == [5, 30]
    assert not stream.broken & set(labels)
    assert sorted(ours.unreadable) == sorted(f"image {label}: the file is empty (0 bytes)" for label in stream.broken)
    batches_of(ours)
    assert len(ours.unreadable) == 2


def test_nothing_readable_is_one_line() -> None:
    stream = Numbered((4, 4), broken=frozenset(range(8)))
    with pytest.raises(
        XCiTError, match=r"^100 successive images can't be read; the first: image \d: the file is empty"
    ):
        batches_of(loader(stream))


def test_shards_without_images() -> None:
    class Empty(Numbered):
        def shard(self, index: int) -> Iterator[StreamSample]:
            return iter(())

    with pytest.raises(XCiTError, match="2 of the shards have no images"):
        batches_of(loader(Empty((4, 4))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_repeats": 3}, "num_repeats is 3, but a stream gives each image once: set augmentation.num_repeats to 1"),
        ({"world_size": 9, "batch_size": 9, "num_parts": 9}, "8 shards can't be divided among 9 processes: write"),
        ({"world_size": 2, "num_parts": 2, "num_workers": 5}, "set run.num_workers to at most 4, or write the data"),
    ],
)
def test_impossible_divisions(stream: Numbered, changes: dict[str, int], message: str) -> None:
    with pytest.raises(XCiTError) as caught:
        loader(stream, **changes)
    assert message in str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_main_process_keeps_its_random_numbers(stream: Numbered, num_workers: int) -> None:
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    batches_of(loader(stream, num_workers=num_workers))
    assert (random.getstate(), str(np.random.get_state())) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.fixture
def shards(tmp_path: Path, png: Callable[[int], bytes], write_tar: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Writes four tar shards of six images; the last shard is cut off."""
    monkeypatch.setenv("XCIT_CACHE", str(tmp_path / "cache"))
    for shard in range(4):
        files: dict[Any, Any] = {}
        for sample in range(6):
            files |= {f"{sample}.cls": str(6 * shard + sample).encode(), f"{sample}.png": png(sample)}
        path = write_tar(tmp_path / f"{shard}.tar", files)
        if shard == 3:
            data = path.read_bytes()
            path.write_bytes(data[: data.index(b"4.png") + 100])
    return f"wds:{tmp_path}/*.tar"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_shard_that_is_cut_off_is_named(shards: str, num_workers: int) -> None:
    ours = loader(open_stream(shards, "train", num_classes=24), num_workers=num_workers)
    assert ours.num_inputs == 23  # the damaged rest of a shard counts as one
    whole = batches_of(ours)
    assert [line.partition(".tar: ")[2] for line in ours.unreadable] in (
        [],  # read in another epoch
        ["the archive is damaged or cut off (truncated header)"],
    )
    for epoch in (1, 2):
        batches_of(ours, epoch)
    assert [line.rpartition("/")[2] for line in ours.unreadable] == [
        "3.tar: the archive is damaged or cut off (truncated header)"
    ]
    resumed = loader(open_stream(shards, "train", num_classes=24), num_workers=num_workers)
    assert equal(batches_of(resumed, 0, 2), whole[2:])


# Evaluation


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 3, 9])
def test_each_image_is_measured_once(stream: Numbered, world_size: int, num_workers: int) -> None:
    stream.broken = frozenset({3, 17})
    labels: list[int] = []
    reasons: list[str] = []
    for rank in range(world_size):
        for images, some, why in stream_evaluation_batches(
            stream, SPEC, batch_size=4, num_workers=num_workers, world_size=world_size, rank=rank
        ):
            assert len(images) + len(why) <= 4
            for image, label in zip(images, some.tolist(), strict=True):
                assert torch.equal(image, preprocess(picture(label), SPEC))
            labels += some.tolist()
            reasons += why
    assert sorted(labels) == [label for label in range(40) if label not in stream.broken]
    assert sorted(reasons) == [f"image {label}: the file is empty (0 bytes)" for label in (17, 3)]


def test_what_cannot_be_prepared_is_named() -> None:
    class Hair(Numbered):
        def shard(self, index: int) -> Iterator[StreamSample]:
            yield unreadable_sample("broken", "cut off")
            yield from super().shard(index)

        def _load(self, number: int) -> bytes:
            file = io.BytesIO()
            Image.new("L", (1, 600_000)).save(file, "PNG")  # scaled up to 16 pixels, it would take gigabytes
            return file.getvalue()

    spec = Preprocessing(image_size=16, resize_to=16)
    ((images, labels, reasons),) = stream_evaluation_batches(Hair((1,)), spec, batch_size=4, num_workers=0)
    assert (images.shape, labels.tolist()) == ((0, 3, 16, 16), [])
    assert reasons[0] == "broken: cut off"
    assert reasons[1].startswith("image 0: an image of 1 x 600000 pixels is too elongated")


def test_shards_are_measured(shards: str) -> None:
    stream = open_stream(shards, "val", num_classes=24)
    batches = list(stream_evaluation_batches(stream, SPEC, batch_size=8, num_workers=1))
    assert torch.cat([labels for _, labels, _ in batches]).tolist() == list(range(22))
    assert sum(len(reasons) for _, _, reasons in batches) == 1


def test_workers_read_over_http_what_their_parent_has_looked_at(
    tmp_path: Path, serve: Any, png: Any, write_tar: Any
) -> None:
    """Workers must not use the connections of the process that opened the stream."""
    for shard in range(2):
        write_tar(tmp_path / f"{shard}.tar", {f"{shard}.png": png(shard), f"{shard}.cls": b"%d" % shard})
    stream = open_shards(f"wds:{serve(tmp_path)}/{{0..1}}.tar#2", 2)
    spec = Preprocessing(image_size=4, resize_to=4)
    batches = stream_evaluation_batches(stream, spec, batch_size=1, num_workers=2)
    assert sorted(int(labels) for _, labels, _ in batches) == [0, 1]
