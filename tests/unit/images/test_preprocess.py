import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing, preprocess, published_preprocessing

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from torchvision import transforms

SIZES = [(1, 1), (5, 3), (3, 5), (32, 32), (33, 32), (32, 33), (47, 61), (64, 64), (100, 31), (31, 100), (640, 33)]
SIZES += [(257, 255), (37, 36), (36, 37), (500, 375), (39, 41)]


def noise(size, mode="RGB"):
    pixels = np.random.default_rng(sum(size)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def by_torchvision(image, spec):
    resize = spec.resize_to if spec.resize == "short_side" else (spec.image_size, spec.image_size)
    steps = [
        transforms.Resize(resize, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(spec.image_size),
        transforms.ToTensor(),
        transforms.Normalize(spec.mean, spec.std),
    ]
    return transforms.Compose(steps)(image.convert("RGB" if len(spec.mean) == 3 else "L"))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    ("image_size", "resize_to", "resize"),
    [
        (32, 32, "short_side"),
        (32, 37, "short_side"),  # as in mmpretrain: an odd margin, divided between two sides
        (33, 36, "short_side"),
        (40, 33, "short_side"),  # padding, because the crop is larger than the image
        (41, 32, "short_side"),
        (32, 32, "exact"),
        (48, 0, "exact"),
    ],
)
def test_bit_equal_to_torchvision(size, image_size, resize_to, resize):
    spec = Preprocessing(image_size=image_size, resize_to=resize_to, resize=resize)
    image = noise(size)
    result = preprocess(image, spec)
    assert result.shape == (3, image_size, image_size)
    assert result.dtype == torch.float32
    assert result.is_contiguous()
    assert torch.equal(result, by_torchvision(image, spec))


@pytest.mark.parametrize("protocol", ["mmpretrain", "official"])
@pytest.mark.parametrize("image_size", [224, 384])
def test_bit_equal_to_torchvision_in_the_published_protocols(protocol, image_size):
    spec = published_preprocessing(protocol, image_size)
    for size in ((500, 375), (231, 400), (30, 20)):
        assert torch.equal(preprocess(noise(size), spec), by_torchvision(noise(size), spec))


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_modes_and_channels(mode, num_channels):
    spec = Preprocessing(image_size=28, resize_to=30, mean=(0.286,) * num_channels, std=(0.353,) * num_channels)
    result = preprocess(noise((45, 31), mode), spec)
    assert result.shape == (num_channels, 28, 28)
    assert torch.equal(result, by_torchvision(noise((45, 31), mode), spec))


def test_the_image_stays_as_it_was():
    image = noise((32, 32))
    before = image.tobytes()
    preprocess(image, Preprocessing(image_size=32, resize_to=32))
    assert image.tobytes() == before


def test_published_preprocessing():
    assert published_preprocessing("mmpretrain", 224) == Preprocessing(image_size=224, resize_to=256)
    assert published_preprocessing("mmpretrain", 384) == Preprocessing(image_size=384, resize="exact", resize_to=384)
    assert published_preprocessing("mmpretrain", 160).resize_to == 183
    assert published_preprocessing("official", 224) == Preprocessing(image_size=224, resize_to=224)
    assert published_preprocessing("official", 384) == Preprocessing(image_size=384, resize_to=384)
    with pytest.raises(XCiTError, match="the protocol is 'timm', but must be 'mmpretrain' or 'official'"):
        published_preprocessing("timm", 224)  # type: ignore[arg-type]


def test_a_hair_of_an_image_is_refused():
    message = "an image of 1 x 5000 pixels is too elongated to scale its short side to 224"
    with pytest.raises(XCiTError, match=message):
        preprocess(Image.new("RGB", (1, 5000)), Preprocessing())


def test_number_of_channels():
    image = noise((32, 32))
    with pytest.raises(XCiTError, match="1 or 3 means and the same number of std, not 2 and 2"):
        preprocess(image, Preprocessing(mean=(0.5, 0.5), std=(0.5, 0.5)))
    with pytest.raises(XCiTError, match="1 or 3 means and the same number of std, not 3 and 1"):
        preprocess(image, Preprocessing(std=(0.5,)))
