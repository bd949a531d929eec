"""Tests that the data of a training step depends only on seed, epoch and step, not on processes, workers or stops."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xcit.data.loader import LoaderConfig, _PartSampler
from xcit.data.shards import _expand_braces, list_shards
from xcit.data.stream_loader import StreamTrainLoader
from xcit.errors import XCiTError

QUICK = settings(max_examples=60, deadline=None, derandomize=True)

# torch warns if a loader has more workers than the machine has cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@dataclass(frozen=True)
class Division:
    """The division of an epoch: images, parts of a batch, processes, parts per process and step, and the seeds."""

    num_images: int
    part_size: int
    world_size: int
    accumulation: int
    seed: int
    epoch: int
    num_repeats: int

    @property
    def num_parts(self) -> int:
        return self.world_size * self.accumulation

    def config(self, rank: int = 0, world_size: int | None = None, num_workers: int = 0) -> LoaderConfig:
        return LoaderConfig(
            batch_size=self.part_size * self.num_parts,
            seed=self.seed,
            num_workers=num_workers,
            num_parts=self.num_parts,
            world_size=self.world_size if world_size is None else world_size,
            rank=rank,
            num_repeats=self.num_repeats,
        )


divisions = st.builds(
    Division,
    num_images=st.integers(1, 60),
    part_size=st.integers(1, 4),
    world_size=st.integers(1, 4),
    accumulation=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 400),
    num_repeats=st.sampled_from([1, 1, 1, 3]),
)


def sampled(division: Division, groups: list[int] | None, first_step: int = 0, **of: Any) -> list[list[Any]]:
    sampler = _PartSampler(division.num_images, division.config(**of), groups)
    sampler.epoch, sampler.first_step = division.epoch, first_step
    found = list(sampler)
    assert len(found) == len(sampler)
    return found


@QUICK
@given(divisions, st.one_of(st.none(), st.integers(1, 4)))
def test_any_number_of_processes_takes_the_same_parts(division: Division, num_groups: int | None) -> None:
    groups = None if num_groups is None else [index * 7 % num_groups for index in range(division.num_images)]
    alone = sampled(division, groups, world_size=1)
    shares = [sampled(division, groups, rank=rank) for rank in range(division.world_size)]
    assert [part for turn in zip(*shares, strict=True) for part in turn] == alone
    assert all(len(part) == division.part_size for part in alone)
    num_steps = division.num_images // (division.part_size * division.num_parts)
    assert len(alone) == num_steps * division.num_parts
    if division.num_repeats == 1:  # each image at most once, and only existing images
        images = [key.image for part in alone for key in part]
        assert len(set(images)) == len(images) and set(images) <= set(range(division.num_images))


@QUICK
@given(divisions, st.integers(0, 60), st.data())
def test_a_stopped_epoch_goes_on_where_it_was(division: Division, step: int, data: st.DataObject) -> None:
    num_steps = division.num_images // (division.part_size * division.num_parts)
    step, rank = min(step, num_steps), data.draw(st.integers(0, division.world_size - 1))
    whole = sampled(division, None, rank=rank)
    assert sampled(division, None, first_step=step, rank=rank) == whole[step * division.accumulation :]
    other = sampled(Division(**{**vars(division), "epoch": division.epoch + 1}), None, rank=rank)
    assert division.num_images < 20 or not whole or other != whole  # another epoch, another order


# ---- streams


@dataclass(frozen=True)
class Sample:
    """A sample in which the picture is the name."""

    name: int
    label: int = 0

    def read(self) -> int:
        return self.name

    def fetched(self) -> "Sample":
        return self


@dataclass(frozen=True)
class Stream:
    """Shards of consecutive numbers."""

    sizes: tuple[int, ...]
    class_ids: tuple[str, ...] = ("a", "b")

    @property
    def num_shards(self) -> int:
        return len(self.sizes)

    @property
    def num_images(self) -> int:
        return sum(self.sizes)

    def shard(self, index: int) -> Iterator[Sample]:
        first = sum(self.sizes[:index])
        return iter([Sample(first + number) for number in range(self.sizes[index])])


def streamed(
    stream: Stream, division: Division, rank: int, num_workers: int, buffer: int, step: int
) -> list[list[int]]:
    """Returns this process's parts from a step on, in the order in which a loader takes them from its workers."""
    config = division.config(rank=rank, num_workers=num_workers)
    as_it_is: Any = lambda picture: picture  # noqa: E731
    epoch: Any = StreamTrainLoader(stream, as_it_is, config, shuffle_buffer=buffer)._parts  # type: ignore[arg-type]
    epoch.start_at(division.epoch, step)
    workers: list[Any] = [None] if not num_workers else [SimpleNamespace(id=number) for number in range(num_workers)]
    parts = []
    for worker in workers:
        with mock.patch("xcit.data.stream_loader.get_worker_info", lambda worker=worker: worker):
            parts.append([[image for image, _, _ in part] for part in epoch])
    turns = itertools.zip_longest(*parts)
    return [part for turn in turns for part in turn if part is not None]


@QUICK
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
    divisions.filter(lambda division: division.num_repeats == 1),
    st.integers(0, 3),
    st.integers(1, 12),
    st.data(),
)
def test_a_stopped_stream_goes_on_where_it_was(
    sizes: list[int], division: Division, num_workers: int, buffer: int, data: st.DataObject
) -> None:
    stream = Stream(tuple(sizes))
    if len(sizes) < division.world_size * max(num_workers, 1):
        with pytest.raises(XCiTError, match=f"^{len(sizes)} shards can't be divided among"):
            streamed(stream, division, 0, num_workers, buffer, 0)
        return
    num_steps = stream.num_images // (division.part_size * division.num_parts)
    step = data.draw(st.integers(0, num_steps))
    seen: list[int] = []
    for rank in range(division.world_size):
        whole = streamed(stream, division, rank, num_workers, buffer, 0)
        assert len(whole) == num_steps * division.accumulation
        assert all(len(part) == division.part_size for part in whole)
        assert streamed(stream, division, rank, num_workers, buffer, step) == whole[step * division.accumulation :]
        own = {image for part in whole for image in part}
        assert own <= set(range(stream.num_images)) and own.isdisjoint(seen)  # no process reads another's shards
        seen += own


# ---- names of shards

words = st.text("abz09._-/", max_size=3)
ranges = st.tuples(st.integers(0, 30), st.integers(1, 6), st.integers(0, 3)).map(
    lambda numbers: (numbers[0], numbers[0] + numbers[1], numbers[2])
)


@st.composite
def braces(draw: st.DrawFn) -> tuple[str, list[str]]:
    """Draws a pattern with braces, and the names that it stands for."""
    pattern, names = "s", ["s"]
    for _ in range(draw(st.integers(1, 3))):
        if draw(st.booleans()):
            first, last, zeros = draw(ranges)
            width = len(str(last)) + zeros
            spelled = f"{first:0{width}d}" if zeros else str(first)
            values = [f"{n:0{width}d}" if spelled.startswith("0") and len(spelled) > 1 else str(n)
                      for n in range(first, last + 1)]  # fmt: skip
            pattern += f"{{{spelled}..{last}}}"
        else:
            values = draw(st.lists(words, min_size=2, max_size=4))
            pattern += f"{{{','.join(values)}}}"
        between = draw(words)
        names = [name + value + between for name in names for value in values]
        pattern += between
    return pattern, names


@QUICK
@given(braces())
def test_braces_stand_for_each_of_their_alternatives_in_order(pair: tuple[str, list[str]]) -> None:
    pattern, names = pair
    assert _expand_braces(pattern) == names


def test_patterns_joined_name_each_shard_once(tmp_path: Any) -> None:
    for number in range(12):
        (tmp_path / f"{number:03}.tar").touch()
    parts = [f"{tmp_path}/{{000..007}}.tar", f"{tmp_path}/*.tar", f"{tmp_path}/{{005,011}}.tar"]
    random.Random(0).shuffle(parts)
    found = list_shards("::".join(parts))
    assert sorted(found) == [f"{tmp_path}/{number:03}.tar" for number in range(12)]
