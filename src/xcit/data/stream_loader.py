"""Loads streams of labelled images as batches: shuffled and augmented for training, each image once for evaluation."""

import random
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from itertools import chain, count, islice, repeat

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from xcit.data.loader import (
    NUM_SUBSTITUTES,
    ImageTransform,
    LoaderConfig,
    Sample,
    collate,
    end_workers,
    prepare_worker,
    prepared,
    readable_batches,
    received_batches,
)
from xcit.data.samples import StreamSample
from xcit.data.streams import LabelledStream
from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing
from xcit.seeding import mix_seeds, own_randomness, seed_all

_FIRST_FILL = 100
"""Number of samples in the shuffle buffer before the first sample is yielded.

Then two samples are added for each sample that is yielded, until the buffer is full.
"""


class StreamTrainLoader:
    """A loader of shuffled batches of a stream for training: images (B, C, h, w) and labels (B,).

    It corresponds to `TrainLoader`. A slot is the share of the data for one worker of one process. In each epoch, the
    shards are shuffled and divided among the slots. If there are n slots, each slot yields every n-th part of the
    global batches (see `LoaderConfig.num_parts`). A slot reads its own shards through a shuffle buffer. If these shards
    have too few images for the epoch, the slot reads them again from the first shard. The order of the images and all
    random numbers depend only on the seed, the epoch and the number of slots.

    Attributes:
        num_steps: number of global batches per epoch. Images that do not fill a batch are left out of the epoch.
        num_inputs: number of images in the stream.
        unreadable: one message for each image that could not be read so far, without duplicates.

    Raises:
        XCiTError: if there are fewer shards than slots, or `config.num_repeats` is not 1.
    """

    def __init__(
        self,
        stream: LabelledStream,
        transform: ImageTransform,
        config: LoaderConfig,
        *,
        shuffle_buffer: int = 2000,
    ) -> None:
        """Creates the loader.

        Args:
            stream: the stream to read.
            transform: a transform from an image to a tensor.
            config: settings of the loader. `num_repeats` must be 1, because a stream yields each image once.
            shuffle_buffer: number of undecoded images in the shuffle buffer of each worker.
        """
        if config.num_repeats != 1:
            raise XCiTError(
                f"num_repeats is {config.num_repeats}, but a stream gives each image once: set "
                "augmentation.num_repeats to 1"
            )
        _check_shards(stream.num_shards, config.world_size, config.num_workers)
        self._parts = _TrainParts(stream, transform, config, shuffle_buffer)
        self.num_steps, self.num_inputs = self._parts.num_steps, stream.num_images
        self.unreadable: list[str] = []
        self._loader = DataLoader(
            self._parts,
            batch_size=None,  # an item is a whole part
            collate_fn=collate,
            num_workers=config.num_workers,
            persistent_workers=config.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=prepare_worker,
            # torch's loader draws a random number whenever it starts its workers, and a resumed run starts them at
            # other times. With a separate generator, these draws do not change the random numbers of the model.
            generator=torch.Generator(),
        )

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields this process's parts of the batches of an epoch, from the batch with the number `first_step`."""
        self._parts.start_at(epoch, first_step)
        return received_batches(self._loader, self.unreadable)

    def close(self) -> None:
        """Ends the worker processes."""
        end_workers(self._loader)


def _check_shards(num_shards: int, world_size: int, num_workers: int) -> None:
    if num_shards < world_size:
        raise XCiTError(
            f"{num_shards} shards can't be divided among {world_size} processes: "
            "write the data as more, smaller shards, or use fewer processes"
        )
    if num_shards < world_size * num_workers:
        raise XCiTError(
            f"{num_shards} shards can't be divided among {world_size * num_workers} readers ({world_size} processes "
            f"with {num_workers} workers each): set run.num_workers to at most {num_shards // world_size}, or write "
            "the data as more, smaller shards"
        )


class _TrainParts(IterableDataset[list[Sample[Tensor]]]):
    """A data set that yields the parts of global batches for one process. A part is a list of samples.

    A process has n workers and n slots (see `StreamTrainLoader`), and each worker reads one slot. Part k of the process
    in an epoch contains images of slot k % n. torch's loader takes parts from the workers in turn. So worker i reads
    slot i if the epoch begins at step 0. If the epoch begins at a later step, because a run is resumed, the slots are
    assigned to the workers in another order, and each worker skips the samples of earlier steps.
    """

    def __init__(
        self, stream: LabelledStream, transform: ImageTransform, config: LoaderConfig, shuffle_buffer: int
    ) -> None:
        self.stream, self.transform, self.seed = stream, transform, config.seed
        self.num_steps = stream.num_images // config.batch_size
        self.part_size, self.parts_a_step = config.batch_size // config.num_parts, config.num_parts // config.world_size
        self.world_size, self.rank, self.num_roles = config.world_size, config.rank, max(config.num_workers, 1)
        self.shuffle_buffer = max(shuffle_buffer, 1)
        # Epoch and first step are in shared memory, so that workers that are already running see new values.
        self._start = torch.zeros(2, dtype=torch.int64).share_memory_()

    def start_at(self, epoch: int, first_step: int) -> None:
        """Sets the epoch and the step at which the next iterators begin."""
        self._start[0], self._start[1] = epoch, first_step

    def __iter__(self) -> Iterator[list[Sample[Tensor]]]:
        epoch, first_step = self._start.tolist()
        worker = get_worker_info()
        first_part, num_parts = first_step * self.parts_a_step, self.num_steps * self.parts_a_step
        turn = first_part + (worker.id if worker else 0)
        role = turn % self.num_roles
        num_before = len(range(role, first_part, self.num_roles))
        num_left = len(range(turn, num_parts, self.num_roles))
        return islice(self._slot(epoch, role * self.world_size + self.rank, num_before * self.part_size), num_left)

    def _slot(self, epoch: int, slot: int, first: int) -> Iterator[list[Sample[Tensor]]]:
        """Yields the parts of a slot endlessly, from the sample with the number `first`."""
        samples = self._shuffled(epoch, slot, first)
        waiting: deque[StreamSample] = deque()
        for place in count(first, self.part_size):
            # A worker has its own random generators. In the main process, the model uses the same generators as this
            # function, so their states must be restored.
            with nullcontext() if get_worker_info() else own_randomness():
                part = []
                for index in range(place, place + self.part_size):
                    image, label, unreadable = _read_first(waiting, samples)
                    seed_all(self.seed, epoch, slot, index)
                    part.append((self.transform(image), label, unreadable))
                    waiting.popleft()
            yield part

    def _shuffled(self, epoch: int, slot: int, first: int) -> Iterator[StreamSample]:
        """Yields the samples of a slot endlessly, in shuffled order, from the sample with the number `first`.

        After the last shard of the slot, the first shard is read again. The image files of skipped samples are not read
        if the shards are uncompressed files on disk.
        """
        order = list(range(self.stream.num_shards))
        random.Random(mix_seeds(self.seed, epoch)).shuffle(order)
        shards = order[slot :: self.world_size * self.num_roles]
        draws = random.Random(mix_seeds(self.seed, epoch, slot))
        place = 0
        while True:
            samples = chain.from_iterable(map(self.stream.shard, shards))
            buffer: list[StreamSample] = []
            for fill in chain(range(_FIRST_FILL, self.shuffle_buffer), repeat(self.shuffle_buffer)):
                for sample in islice(samples, max(fill - len(buffer), 0)):
                    # The image file is read when the sample enters the buffer, because a disk is fast for sequential
                    # reads and slow for random reads.
                    buffer.append(sample if place < first else sample.fetched())
                if not buffer:
                    break
                chosen = draws.randrange(len(buffer))
                buffer[chosen], buffer[-1] = buffer[-1], buffer[chosen]
                sample = buffer.pop()
                if place >= first:
                    yield sample
                place += 1
            if place == 0:
                raise XCiTError(f"{len(shards)} of the shards have no images: they may have another format")


def _read_first(
    waiting: deque[StreamSample], samples: Iterator[StreamSample]
) -> tuple[Image.Image, int, tuple[str, ...]]:
    """Returns the first readable image in `waiting`, its label, and messages about the unreadable images before it.

    If no image in `waiting` is readable, samples from `samples` are appended to it until one is readable. No sample is
    removed from `waiting`, so an image that replaces an unreadable image is used again when its own turn comes.
    Unreadable images therefore do not change the order.
    """
    unreadable: list[str] = []
    for place in range(NUM_SUBSTITUTES):
        if place == len(waiting):
            waiting.append(next(samples))
        try:
            return waiting[place].read(), waiting[place].label, tuple(unreadable)
        except XCiTError as error:
            unreadable.append(str(error))
    raise XCiTError(f"{len(unreadable)} successive images can't be read; the first: {unreadable[0]}")


class _EvaluationStream(IterableDataset[tuple[Tensor, int, str]]):
    """A data set of the preprocessed images in one process's shards; each of n workers reads every n-th shard."""

    def __init__(self, stream: LabelledStream, spec: Preprocessing, world_size: int, rank: int) -> None:
        self.stream, self.spec, self.world_size, self.rank = stream, spec, world_size, rank

    def __iter__(self) -> Iterator[tuple[Tensor, int, str]]:
        worker = get_worker_info()
        shards = range(self.rank, self.stream.num_shards, self.world_size)
        for shard in shards[worker.id :: worker.num_workers] if worker else shards:
            for sample in self.stream.shard(shard):
                yield prepared(partial(_read, sample), sample.name, self.spec)


def _read(sample: StreamSample) -> tuple[Image.Image, int]:
    return sample.read(), sample.label


def stream_evaluation_batches(
    stream: LabelledStream,
    spec: Preprocessing,
    *,
    batch_size: int,
    num_workers: int,
    world_size: int = 1,
    rank: int = 0,
) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
    """Yields batches as `evaluation_batches` does, for the shards `rank`, `rank + world_size`, ... of a stream.

    All processes together yield each image once. A process without shards yields no batches.
    """
    loader = DataLoader(
        _EvaluationStream(stream, spec, world_size, rank),
        batch_size=batch_size,
        num_workers=num_workers,
        worker_init_fn=prepare_worker,
    )
    return readable_batches(loader)
