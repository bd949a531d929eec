"""Tests sizes and crops for images of any size: compares them with torchvision's and with the rules."""

import warnings

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from xcit.images.preprocess import Preprocessing, SegmentationPreprocessing, preprocess, resize_short_side
from xcit.images.resize_8bit import fitted_size, resize_bilinear_8bit, resize_nearest_8bit

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from torchvision import transforms

QUICK = settings(max_examples=80, deadline=None, derandomize=True)
sides = st.integers(1, 70)


def picture(width: int, height: int, mode: str) -> Image.Image:
    pixels = np.random.default_rng(width * 100 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@QUICK
@given(sides, sides, st.integers(1, 48), st.integers(1, 48), st.booleans(), st.sampled_from(["RGB", "L"]))
def test_any_picture_is_prepared_as_torchvision_does(
    width: int, height: int, image_size: int, resize_to: int, is_exact: bool, mode: str
) -> None:
    mean, std = ((0.3, 0.4, 0.5), (0.2, 0.3, 0.25)) if mode == "RGB" else ((0.3,), (0.2,))
    resize = "exact" if is_exact else "short_side"
    spec = Preprocessing(image_size=image_size, resize=resize, resize_to=resize_to, mean=mean, std=std)  # type: ignore[arg-type]
    image = picture(width, height, mode)
    found = preprocess(image, spec)
    steps = [
        transforms.Resize((image_size, image_size) if is_exact else resize_to, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(image_size),
        transforms.ToTensor(),
        transforms.Normalize(mean, std),
    ]
    assert found.shape == (len(mean), image_size, image_size)
    assert torch.equal(found, transforms.Compose(steps)(image))


@QUICK
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 64))
def test_the_short_side_is_what_was_asked_for(width: int, height: int, size: int) -> None:
    scaled = resize_short_side(Image.new("L", (width, height)), size)
    assert min(scaled.size) == size
    assert (scaled.width <= scaled.height) == (width <= height) or scaled.width == scaled.height
    assert max(scaled.size) == int(size * max(width, height) / min(width, height))


@QUICK
@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(1, 3000), st.integers(1, 3000))
def test_a_fitted_size_is_the_largest_within_both_bounds(height: int, width: int, one: int, other: int) -> None:
    short_side, long_side = sorted((one, other))
    found = fitted_size(height, width, long_side=long_side, short_side=short_side)
    assert max(found) <= long_side and min(found) <= short_side and min(found) >= 1
    # One of the two bounds is reached; the other side may be rounded by half a pixel.
    assert max(found) == long_side or min(found) == short_side
    scale = min(long_side / max(height, width), short_side / min(height, width))
    for length, new in ((height, found[0]), (width, found[1])):
        assert new == 1 or abs(new - length * scale) <= 0.5 + 1e-6


@QUICK
@given(sides, sides, st.integers(1, 40), st.integers(1, 40))
def test_resized_pixels_stay_within_what_there_was(height: int, width: int, new_height: int, new_width: int) -> None:
    pixels = np.asarray(picture(width, height, "RGB"))
    for resize in (resize_bilinear_8bit, resize_nearest_8bit):
        found = resize(pixels, (new_height, new_width))
        assert found.shape == (new_height, new_width, 3) and found.dtype == np.uint8
        assert (found.min(axis=(0, 1)) >= pixels.min(axis=(0, 1))).all()
        assert (found.max(axis=(0, 1)) <= pixels.max(axis=(0, 1))).all()
    labels = pixels[:, :, 0]
    assert set(np.unique(resize_nearest_8bit(labels, (new_height, new_width)))) <= set(np.unique(labels))


@QUICK
@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(1, 512), st.integers(1, 4))
def test_another_size_keeps_the_proportions(image_size: int, resize_to: int, size: int, factor: int) -> None:
    spec = Preprocessing(image_size=image_size, resize_to=resize_to)
    changed = spec.changed(size=size)
    assert changed.image_size == size
    assert abs(changed.resize_to - max(1.0, resize_to * size / image_size)) <= 0.5
    assert spec.changed(size=image_size) == spec
    dense = SegmentationPreprocessing(long_side=size * factor, short_side=size)
    assert dense.changed(size=image_size).long_side == image_size * factor
