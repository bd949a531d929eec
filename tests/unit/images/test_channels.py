"""Tests images with any number of channels, from an array or a file to the model's input."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

import xcit
from xcit.errors import XCiTError
from xcit.images.channels import preprocess_channels, read_channels
from xcit.images.preprocess import Preprocessing
from xcit.models import ModelInfo
from xcit.zoo import save_model

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 5), dtype=np.uint8)
SPEC = Preprocessing(image_size=32, resize_to=36, mean=(0.1, 0.2, 0.3, 0.4, 0.5), std=(0.5, 0.4, 0.3, 0.2, 0.1))


@pytest.mark.parametrize(
    "source",
    [
        PIXELS,
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        torch.from_numpy(PIXELS).permute(2, 0, 1).float() / 255,
        PIXELS.astype(np.uint16) * 257,
    ],
)
def test_arrays_and_tensors_of_any_type_are_the_same_pixels(source: np.ndarray | torch.Tensor) -> None:
    assert np.array_equal(read_channels(source, 5), PIXELS)


def test_files_of_numpy(tmp_path: Path) -> None:
    np.save(tmp_path / "field.npy", PIXELS)
    assert np.array_equal(read_channels(tmp_path / "field.npy", 5), PIXELS)
    with pytest.raises(XCiTError, match=r"field\.npy: shape \(40, 50, 5\) is not \(H, W, C\) with the model's 4"):
        read_channels(tmp_path / "field.npy", 4)
    with pytest.raises(XCiTError, match=r"none\.npy: no such file"):
        read_channels(tmp_path / "none.npy", 5)
    (tmp_path / "text.npy").write_text("text")
    with pytest.raises(XCiTError, match=r"text\.npy: not a \.npy file of numbers"):
        read_channels(tmp_path / "text.npy", 5)
    with pytest.raises(XCiTError, match=r"a\.png: the model takes 5 channels: give an array"):
        read_channels("a.png", 5)
    with pytest.raises(XCiTError, match=r"image array: floating-point pixels must be in 0\.\.1"):
        read_channels(PIXELS.astype(np.float32), 5)


def test_each_channel_is_prepared_with_its_own_mean_and_std() -> None:
    """Compares with torchvision: each channel is resized and cropped as a grey image, then all are normalised."""
    steps = v2.Compose(
        [v2.ToPILImage(), v2.Resize(36, v2.InterpolationMode.BICUBIC), v2.CenterCrop(32), v2.PILToTensor()]
    )
    channels = torch.cat([steps(torch.from_numpy(PIXELS[:, :, index])[None]) for index in range(5)])
    expected = v2.functional.normalize(channels.float() / 255, SPEC.mean, SPEC.std)
    assert torch.equal(preprocess_channels(PIXELS, SPEC), expected)


def test_from_the_file_of_a_model_to_its_answer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = xcit.XCiT(xcit.XCiTConfig(embed_dim=16, depth=1, num_heads=2, in_channels=5, num_classes=3)).eval()
    model.info = ModelInfo(name="field", preprocessing=SPEC)
    save_model(model, tmp_path / "model.safetensors")
    np.save(tmp_path / "field.npy", PIXELS)
    with torch.no_grad():
        scores = model(preprocess_channels(PIXELS, SPEC)[None]).softmax(dim=-1)[0]
    by_array, by_file = xcit.predict([PIXELS, tmp_path / "field.npy"], tmp_path / "model.safetensors")
    assert by_array.classes == by_file.classes
    assert {one.index: one.score for one in by_array.classes} == pytest.approx(dict(enumerate(scores.tolist())))
    (features,) = xcit.extract_features(PIXELS, tmp_path / "model.safetensors")
    assert features.layers[2].shape == (16,)


def test_changed_preprocessing() -> None:
    assert SPEC.changed(size=64) == Preprocessing(image_size=64, resize_to=72, mean=SPEC.mean, std=SPEC.std)
    assert SPEC.changed(mean=(0.5,), std=(1.0,)).mean == (0.5,) * 5
    with pytest.raises(XCiTError, match="mean has 3 numbers, but the model has 5 channels"):
        SPEC.changed(mean=(0.1, 0.2, 0.3))
    exact = Preprocessing(resize="exact", image_size=384, resize_to=384)
    assert exact.changed(size=224).image_size == 224
