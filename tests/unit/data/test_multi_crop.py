"""Tests multi-crop: the number and sizes of crops, seeded draws, and each published step of the augmentation."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from xcit.data.loader import LoaderConfig, TrainLoader
from xcit.data.multi_crop import MultiCropConfig, multi_crop_transform
from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing, preprocess

RGB = Preprocessing(image_size=16, resize_to=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
GREY = Preprocessing(image_size=16, resize_to=16, mean=(0.3,), std=(0.4,))
SMALL = MultiCropConfig(num_local=3, local_size=8)

PLAIN = MultiCropConfig(
    num_local=1,
    local_size=16,
    global_scale=(1.0, 1.0),
    local_scale=(1.0, 1.0),
    flip=0.0,
    jitter=0.0,
    grayscale=0.0,
    blur=(0.0, 0.0, 0.0),
    solarize=0.0,
)
"""Three crops without any change: each is the whole square image. Tests switch on one step and compute its effect."""


class Noise:
    class_ids = ("",)

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        pixels = np.random.default_rng(index).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        return Image.fromarray(pixels), 0

    def image_name(self, index: int) -> str:
        return str(index)


def square(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def make(config: MultiCropConfig, image: Image.Image, spec: Preprocessing = RGB, seed: int = 0) -> list[Tensor]:
    torch.manual_seed(seed)
    return multi_crop_transform(config, spec)(image)


def test_the_defaults_are_published() -> None:
    config = MultiCropConfig()
    assert (config.num_local, config.local_size) == (8, 96)
    assert (config.global_scale, config.local_scale) == ((0.4, 1.0), (0.05, 0.4))
    assert (config.flip, config.jitter, config.jitter_strength) == (0.5, 0.8, (0.4, 0.4, 0.2, 0.1))
    assert (config.grayscale, config.blur, config.blur_radius) == (0.2, (1.0, 0.1, 0.5), (0.1, 2.0))
    assert config.solarize == 0.2


@pytest.mark.parametrize("spec", [RGB, GREY], ids=["rgb", "grey"])
@pytest.mark.parametrize("num_local", [0, 1, 3])
def test_two_global_crops_then_the_local_ones(spec: Preprocessing, num_local: int) -> None:
    crops = make(replace(SMALL, num_local=num_local), Noise()[0][0], spec)
    channels = len(spec.mean)
    assert [crop.shape for crop in crops] == [(channels, 16, 16)] * 2 + [(channels, 8, 8)] * num_local
    assert all(crop.isfinite().all() for crop in crops)
    assert not torch.equal(crops[0], crops[1])


def test_grey_pictures_pass_as_colour_and_colour_ones_as_grey() -> None:
    assert make(SMALL, square("L"))[0].shape == (3, 16, 16)
    assert make(SMALL, square(), GREY)[0].shape == (1, 16, 16)


@pytest.mark.parametrize("spec", [RGB, GREY], ids=["rgb", "grey"])
def test_with_every_step_off_crops_are_what_evaluation_sees(spec: Preprocessing) -> None:
    for crop in make(PLAIN, square(), spec):
        assert torch.equal(crop, preprocess(square(), spec))


STEPS: dict[str, tuple[dict[str, Any], Any, tuple[int, ...]]] = {
    "flip": ({"flip": 1.0}, ImageOps.mirror, (0, 1, 2)),
    "grayscale": ({"grayscale": 1.0}, lambda image: image.convert("L").convert("RGB"), (0, 1, 2)),
    "solarize": ({"solarize": 1.0}, lambda image: ImageOps.solarize(image, 128), (1,)),
    **{
        f"blur {index}": (
            {"blur": tuple(float(index == other) for other in range(3)), "blur_radius": (1.5, 1.5)},
            lambda image: image.filter(ImageFilter.GaussianBlur(1.5)),
            (index,),
        )
        for index in range(3)
    },
}


@pytest.mark.parametrize("step", STEPS)
def test_a_step_happens_to_its_crops_alone(step: str) -> None:
    changes, by_hand, where = STEPS[step]
    for index, crop in enumerate(make(replace(PLAIN, **changes), square())):
        expected = by_hand(square()) if index in where else square()
        assert torch.equal(crop, preprocess(expected, RGB)), index


def test_the_radius_of_a_blur_is_drawn_between_the_two() -> None:
    config = replace(PLAIN, blur=(1.0, 0.0, 0.0), blur_radius=(0.1, 2.0))

    def sharpness(radius: float) -> float:
        return preprocess(square().filter(ImageFilter.GaussianBlur(radius)), RGB).std().item()

    found = [make(config, square(), seed=seed)[0].std().item() for seed in range(20)]
    assert sharpness(2.0) < min(found) < sharpness(1.5)
    assert sharpness(0.5) < max(found) < sharpness(0.05)


def test_the_strengths_of_the_jitter_bound_what_it_does() -> None:
    config = replace(PLAIN, jitter=1.0, jitter_strength=(0.4, 0.0, 0.0, 0.0))
    spec = replace(RGB, mean=(0.0,) * 3, std=(1.0,) * 3)
    plain = Image.new("RGB", (16, 16), (100, 100, 100))
    found = [255 * make(config, plain, spec, seed)[0].mean().item() for seed in range(30)]
    assert 60 <= min(found) < 75
    assert 125 < max(found) <= 140


def test_crops_show_the_share_of_the_area_that_they_should() -> None:
    ramp = Image.fromarray(np.tile(np.arange(0, 256, 2, dtype=np.uint8), (128, 1)))
    config = replace(PLAIN, num_local=1, global_scale=(0.4, 1.0), local_scale=(0.05, 0.4))
    spec = replace(GREY, mean=(0.0,), std=(1.0,))
    widths: dict[int, list[float]] = {0: [], 2: []}
    for seed in range(60):
        crops = make(config, ramp, spec, seed)
        for index, found in widths.items():
            crop = crops[index]
            found.append((crop.max() - crop.min()).item())
    # Bounds of the widths of crops with the configured areas and aspect ratios from 3:4 to 4:3.
    assert 0.4**0.5 * 0.75**0.5 - 0.1 < min(widths[0]) < max(widths[0]) <= 1
    assert 0.05**0.5 * 0.75**0.5 - 0.1 < min(widths[2]) < max(widths[2]) < 0.4**0.5 / 0.75**0.5 + 0.01


def loader(num_workers: int = 0, seed: int = 0) -> TrainLoader[list[Tensor]]:
    transform = multi_crop_transform(SMALL, RGB)
    return TrainLoader(Noise(), transform, LoaderConfig(batch_size=4, seed=seed, num_workers=num_workers))


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_batches_are_lists_of_crops_that_follow_from_seed_epoch_and_image() -> None:
    epochs = [[crops for crops, _ in loader().batches(epoch)] for epoch in range(2)]
    for crops in epochs[0]:
        assert [crop.shape for crop in crops] == [(4, 3, 16, 16)] * 2 + [(4, 3, 8, 8)] * 3
    again = loader(num_workers=2)
    for epoch in (1, 0):
        torch.manual_seed(5)
        for (found, _), expected in zip(again.batches(epoch), epochs[epoch], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not torch.equal(epochs[0][0][0], epochs[1][0][0])
    other = next(loader(seed=1).batches(0))[0]
    assert not torch.equal(other[0], epochs[0][0][0])
    # The rest of an epoch that is resumed in the middle has the same batches.
    rest = [crops for crops, _ in loader().batches(0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(rest[0], epochs[0][1], strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_local": -1}, "num_local is -1, but must be 0 or more"),
        ({"local_size": 0}, "local_size is 0, but must be at least 1"),
        ({"solarize": 1.5}, "solarize is 1.5, but must be in 0..1"),
        ({"blur": (1.0, 0.1, 2.0)}, r"blur is \(1.0, 0.1, 2.0\), but must be three probabilities"),
        (
            {"local_scale": (0.4, 0.05)},
            r"local_scale is \(0.4, 0.05\), but must be two numbers above 0 and at most 1, the smaller one first",
        ),
        ({"global_scale": (0.0, 1.0)}, "global_scale is"),
        ({"blur_radius": (2.0, 0.1)}, "blur_radius is"),
        ({"jitter_strength": (0.4, 0.4, 0.2, 0.6)}, "jitter_strength is .* at most 0.5 in the last number, the hue"),
        ({"jitter_strength": (-0.4, 0.4, 0.2, 0.1)}, "jitter_strength is"),
    ],
)
def test_impossible_crops_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(XCiTError, match=f"MultiCropConfig: {message}"):
        MultiCropConfig(**changes)
