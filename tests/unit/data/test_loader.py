"""Tests that training batches depend only on seed and epoch, and that evaluation reads each readable image one time."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from xcit.data.classification import ImageFiles
from xcit.data.loader import (
    AugmentationConfig,
    LoaderConfig,
    TrainLoader,
    _PartSampler,
    evaluation_batches,
    train_transform,
)
from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing, preprocess

SPEC = Preprocessing(image_size=16, resize_to=16)
GREY = Preprocessing(image_size=16, resize_to=16, mean=(0.3,), std=(0.4,))
STRONG = AugmentationConfig(rand_augment="rand-m9-n2-mstd0.5-inc1", color_jitter=0.4, random_erasing=0.5)

# torch warns if a loader has more workers than the machine has cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

Batches = list[tuple[Tensor, Tensor]]


class Noise:
    """Images of which each has its own class, so that the label identifies the image."""

    def __init__(self, num_images: int) -> None:
        self.num_images = num_images

    @property
    def class_ids(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.num_images)))

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        pixels = np.random.default_rng(index).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        return Image.fromarray(pixels), index

    def image_name(self, index: int) -> str:
        return f"noise {index}"


def loader(num_workers: int = 0, seed: int = 0, num_images: int = 10) -> TrainLoader:
    transform = train_transform(STRONG, SPEC)
    return TrainLoader(Noise(num_images), transform, LoaderConfig(batch_size=4, seed=seed, num_workers=num_workers))


def epoch_of(loader: TrainLoader, epoch: int) -> Batches:
    return [(images.clone(), labels.clone()) for images, labels in loader.batches(epoch)]


def equal(one: Batches, other: Batches) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other, strict=True)
    )


@pytest.fixture(scope="module")
def first_epochs() -> list[Batches]:
    ours = loader()
    return [epoch_of(ours, epoch) for epoch in range(3)]


def test_batches_are_whole_and_their_images_differ(first_epochs: list[Batches]) -> None:
    batches = first_epochs[0]
    assert len(batches) == loader().num_steps == 2  # 10 images in batches of 4: an epoch skips two images
    for images, labels in batches:
        assert (images.shape, images.dtype) == ((4, 3, 16, 16), torch.float32)
        assert labels.dtype == torch.int64
    seen = torch.cat([labels for _, labels in batches]).tolist()
    assert len(set(seen)) == 8


def test_epochs_differ_in_order_and_in_draws(first_epochs: list[Batches]) -> None:
    by_label = [
        {int(label): image for images, labels in batches for image, label in zip(images, labels, strict=True)}
        for batches in first_epochs
    ]
    assert [list(images) for images in by_label[:2]] != [list(images) for images in by_label[1:]]
    both = by_label[0].keys() & by_label[1].keys()
    assert both
    assert not any(torch.equal(by_label[0][label], by_label[1][label]) for label in both)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_the_same_batches_for_any_number_of_workers_and_order_of_epochs(
    first_epochs: list[Batches], num_workers: int
) -> None:
    ours = loader(num_workers)
    # The order of epochs does not change their batches: a resumed run starts with a later epoch.
    for epoch in (2, 0, 1, 1):
        random.seed(epoch + 5)
        np.random.seed(epoch + 6)
        torch.manual_seed(epoch + 7)
        assert equal(epoch_of(ours, epoch), first_epochs[epoch])


def test_another_seed_gives_other_batches(first_epochs: list[Batches]) -> None:
    assert not equal(epoch_of(loader(seed=1), 0), first_epochs[0])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_main_process_keeps_its_random_numbers(num_workers: int) -> None:
    ours = loader(num_workers)
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    for epoch in (0, 1):
        before = random.getstate(), np.random.get_state(), torch.get_rng_state()
        for _ in ours.batches(epoch):
            pass
        assert random.getstate() == before[0]
        assert str(np.random.get_state()) == str(before[1])
        assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_next_image_takes_the_place_of_an_unreadable_one(tmp_path: Path, num_workers: int) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for index, path in enumerate(paths):
        Noise(5)[index][0].save(path)
    paths[2].write_bytes(b"")
    images = ImageFiles(list(zip(paths, range(5), strict=True)), tuple("abcde"))
    ours = TrainLoader(
        images, train_transform(STRONG, SPEC), LoaderConfig(batch_size=5, seed=0, num_workers=num_workers)
    )
    for epoch in (0, 1):
        ((batch, labels),) = ours.batches(epoch)
        assert sorted(labels.tolist()) == [0, 1, 3, 3, 4]
        assert len(batch) == 5
    assert ours.unreadable == [f"{paths[2]}: the file is empty (0 bytes)"]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_nothing_but_unreadable_images_is_one_line(tmp_path: Path, num_workers: int) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(b"")
    images = ImageFiles([(path, 0)] * 4, ("x",))
    ours = TrainLoader(
        images, train_transform(STRONG, SPEC), LoaderConfig(batch_size=4, seed=0, num_workers=num_workers)
    )
    with pytest.raises(XCiTError) as caught:
        list(ours.batches(0))
    assert str(caught.value) == f"4 successive images can't be read; the first: {path}: the file is empty (0 bytes)"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_goes_on_from_any_step(num_workers: int) -> None:
    ours = loader(num_workers, num_images=17)
    whole = epoch_of(ours, 1)
    assert len(whole) == 4
    for first_step in (1, 3, 4):
        rest = [(images.clone(), labels.clone()) for images, labels in ours.batches(1, first_step)]
        assert equal(rest, whole[first_step:])


@pytest.mark.parametrize(("world_size", "num_parts"), [(1, 2), (2, 2), (2, 4)])
@pytest.mark.parametrize("num_repeats", [1, 3])
def test_the_parts_of_all_processes_make_the_whole_batches(world_size: int, num_parts: int, num_repeats: int) -> None:
    def part_loader(rank: int, world_size: int, num_parts: int) -> TrainLoader:
        return TrainLoader(
            Noise(18),
            train_transform(STRONG, SPEC),
            LoaderConfig(
                batch_size=8,
                seed=0,
                num_workers=0,
                num_parts=num_parts,
                world_size=world_size,
                rank=rank,
                num_repeats=num_repeats,
            ),
        )

    whole = epoch_of(part_loader(0, 1, 1), 0)
    own = [epoch_of(part_loader(rank, world_size, num_parts), 0) for rank in range(world_size)]
    turns = num_parts // world_size
    assert [len(batches) for batches in own] == [turns * len(whole)] * world_size
    for step, (images, labels) in enumerate(whole):
        for part in range(num_parts):
            part_images, part_labels = own[part % world_size][step * turns + part // world_size]
            assert torch.equal(part_labels, labels[part::num_parts])
            assert torch.equal(part_images, images[part::num_parts])


def test_repeats_are_augmented_each_on_its_own() -> None:
    ours = TrainLoader(
        Noise(12), train_transform(STRONG, SPEC), LoaderConfig(batch_size=6, seed=0, num_workers=0, num_repeats=3)
    )
    batches = epoch_of(ours, 0)
    assert len(batches) == ours.num_steps == 2  # as long as an epoch without repeats
    for images, labels in batches:
        assert labels.tolist() == [labels[0]] * 3 + [labels[3]] * 3
        assert len(images.unique(dim=0)) == 6
    assert {*batches[0][1].tolist()}.isdisjoint(batches[1][1].tolist())


@pytest.mark.parametrize("crop", ["random_resized", "padded"])
@pytest.mark.parametrize("spec", [SPEC, GREY], ids=["rgb", "grey"])
def test_transforms_give_the_model_s_input(crop: str, spec: Preprocessing) -> None:
    config = AugmentationConfig(crop=crop, rand_augment="rand-m9-n2-mstd0.5-inc1", random_erasing=1.0)  # type: ignore[arg-type]
    tensor = train_transform(config, spec)(Noise(1)[0][0])
    assert tensor.shape == (len(spec.mean), 16, 16)
    assert tensor.isfinite().all()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_crops_are_resized_as_the_config_says(interpolation: str) -> None:
    from torchvision import transforms

    config = AugmentationConfig(scale=(0.3, 0.6), interpolation=interpolation)  # type: ignore[arg-type]
    theirs = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                SPEC.image_size, (0.3, 0.6), interpolation=transforms.InterpolationMode(interpolation)
            ),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(SPEC.mean, SPEC.std),
        ]
    )
    image = Noise(1)[0][0].convert("RGB")
    found = []
    for transform in (train_transform(config, SPEC), theirs):
        torch.manual_seed(5)
        found.append(transform(image))
    assert torch.equal(*found)


def test_without_augmentation_a_transform_prepares_as_evaluation_does() -> None:
    config = AugmentationConfig(crop="padded", padding=0, flip=0.0)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8))
    for spec in (SPEC, GREY):
        assert torch.equal(train_transform(config, spec)(image), preprocess(image, spec))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flip": 1.5}, "flip is 1.5"),
        ({"mixup": -1.0}, "mixup is -1.0"),
        ({"scale": (0.5, 0.1)}, r"scale is \(0.5, 0.1\)"),
    ],
)
def test_impossible_augmentations_are_named(changes: dict[str, float], message: str) -> None:
    with pytest.raises(XCiTError, match=message):
        AugmentationConfig(**changes)  # type: ignore[arg-type]


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(XCiTError, match="rand_augment is 'cartwheel', but must be a policy of timm"):
        train_transform(AugmentationConfig(rand_augment="cartwheel"), SPEC)


# Evaluation


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_takes_each_image_once_in_order(num_workers: int) -> None:
    batches = list(evaluation_batches(Noise(10), SPEC, batch_size=4, num_workers=num_workers))
    assert [len(images) for images, _, _ in batches] == [4, 4, 2]
    assert torch.cat([labels for _, labels, _ in batches]).tolist() == list(range(10))
    assert all(reasons == [] for _, _, reasons in batches)
    images = torch.cat([images for images, _, _ in batches])
    assert all(torch.equal(images[index], preprocess(Noise(10)[index][0], SPEC)) for index in range(10))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_cannot_be_read_is_left_out_and_named(tmp_path: Path, num_workers: int) -> None:
    paths = [tmp_path / name for name in ("a.png", "empty.png", "b.png", "hair.png", "missing.png", "text.png")]
    for path in (paths[0], paths[2]):
        Image.new("RGB", (8, 8), "red").save(path)
    paths[1].write_bytes(b"")
    Image.new("L", (1, 600_000)).save(paths[3])  # scaled up to 16 pixels, it would take gigabytes
    paths[5].write_text("no image")
    images = ImageFiles([(path, label) for label, path in enumerate(paths)], tuple("abcdef"))
    batches = list(evaluation_batches(images, SPEC, batch_size=3, num_workers=num_workers))
    assert [labels.tolist() for _, labels, _ in batches] == [[0, 2], []]
    assert batches[1][0].shape == (0, 3, 16, 16)
    reasons = [reason for _, _, reasons in batches for reason in reasons]
    assert [reason.split(": ")[0] for reason in reasons] == [str(paths[index]) for index in (1, 3, 4, 5)]
    assert "the file is empty" in reasons[0]
    assert "too elongated" in reasons[1]
    assert "no such file" in reasons[2]
    assert "looks like text" in reasons[3]


@pytest.mark.parametrize(("num_parts", "world_size"), [(1, 1), (2, 1), (4, 2)])
def test_parts_of_one_group_each_but_for_what_is_left_over(num_parts: int, world_size: int) -> None:
    groups = [int(index % 3 == 0) for index in range(50)]
    parts: dict[int, list[list[int]]] = {}
    for rank in range(world_size):
        sampler = _PartSampler(
            50,
            LoaderConfig(
                batch_size=8,
                num_parts=num_parts,
                world_size=world_size,
                rank=rank,
                seed=0,
                num_workers=0,
                num_repeats=1,
            ),
            groups=groups,
        )
        own = [[key.image for key in part] for part in sampler]
        assert len(own) == len(sampler) == 6 * num_parts // world_size
        parts[rank] = own
    everything = [part for own in parts.values() for part in own]
    images = [image for part in everything for image in part]
    assert len(images) == len(set(images)) == 48
    mixed = [part for part in everything if len({groups[image] for image in part}) > 1]
    assert len(mixed) <= 2
    sampler.epoch = 1
    assert [[key.image for key in part] for part in sampler] != parts[world_size - 1]
