"""Compares our logits with RobustBench's XCiTs, for files of random weights with RobustBench's keys and shapes.

RobustBench builds timm's XCiT for patches of 16. For CIFAR it then sets the strides of the first two convolutions to 1,
and puts a normalisation layer before the model. The reference in these tests is built in the same way.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models.xcit import Xcit
from torch import Tensor, nn

import xcit
from xcit.errors import XCiTError
from xcit.images.preprocess import preprocess
from xcit.weights.formats import from_native, to_native
from xcit.zoo.robust import ROBUST

SHAPES = {"s": (384, 8), "m": (512, 8), "l": (768, 16)}
STATISTICS = {
    "imagenet": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
CLASSES = {"imagenet": 1000, "cifar10": 10, "cifar100": 100}
CIFAR = ("s", "cifar10")


def reference(letter: str, data: str) -> Xcit:
    torch.manual_seed(1)
    width, heads = SHAPES[letter]
    model: Any = Xcit(
        patch_size=16,
        embed_dim=width,
        depth=12,
        num_heads=heads,
        eta=1.0,
        tokens_norm=True,
        num_classes=CLASSES[data],
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.running_mean, std=0.1)
    if data != "imagenet":
        for index in (0, 2):
            model.patch_embed.proj[index][0].stride = (1, 1)
    return model.eval()


def picture(data: str) -> Image.Image:
    side = 224 if data == "imagenet" else 32
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


def expected(model: nn.Module, data: str) -> Tensor:
    pixels = torch.from_numpy(np.asarray(picture(data)).copy()).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in STATISTICS[data])
    with torch.no_grad():
        return model((pixels - mean) / std)


def logits_of(model: Any, data: str) -> Tensor:
    with torch.no_grad():
        return model(preprocess(picture(data), model.info.preprocessing)[None])


def saved(folder: Path, letter: str, data: str, model: nn.Module, name: str = "") -> Path:
    path = folder / (name or f"debenedetti2022light-xcit-{letter}-{data}-linf.pth.tar")
    torch.save(model.state_dict(), path)
    return path


@pytest.mark.parametrize("data", CLASSES)
@pytest.mark.parametrize("letter", SHAPES)
def test_a_published_file_gives_its_models_logits(letter: str, data: str, tmp_path: Path) -> None:
    model = reference(letter, data)
    path = saved(tmp_path, letter, data, model)
    record = next(one for one in ROBUST if one.sources and one.sources[0].filename == path.name)
    want = expected(model, data)
    for found in (xcit.get_model(path), xcit.get_model(record.name, pretrained=path)):
        assert found.config == record.config
        assert found.info == record.info()
        assert not found.info.assumed
        torch.testing.assert_close(logits_of(found, data), want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits_of(found.fuse(), data), want, atol=1e-5, rtol=1e-5)


def test_the_published_file_from_a_mirror_is_cached_and_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = reference(*CIFAR)
    saved(tmp_path, *CIFAR, model)
    monkeypatch.setenv("XCIT_MIRROR", str(tmp_path))
    monkeypatch.setenv("XCIT_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        found = xcit.get_model("Debenedetti2022Light_XCiT-S12_cifar10_Linf", pretrained=True)
        torch.testing.assert_close(logits_of(found, "cifar10"), expected(model, "cifar10"), atol=1e-5, rtol=1e-5)
    # The cached file stores the model's strides, so the strides are known under any file name.
    (cached,) = (tmp_path / "cache" / "checkpoints").glob("*.safetensors")
    renamed: Any = xcit.get_model(cached.rename(tmp_path / "anything.safetensors"))
    assert renamed.config.strides == (1, 1, 2, 2)


@pytest.mark.parametrize("official", [False, True])
def test_the_whole_model_with_its_normalisation_says_how_to_prepare_images(official: bool, tmp_path: Path) -> None:
    """Saves a file as `torch.save(model.state_dict())` does for a model from RobustBench's `load_model`."""
    model = reference(*CIFAR)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if official:
        state = from_native(to_native(state, "timm"), "official")
    mean, std = STATISTICS["cifar10"]
    whole = {
        "normalize.mean": torch.tensor(mean).view(1, 3, 1, 1),
        "normalize.std": torch.tensor(std).view(1, 3, 1, 1),
        **{f"model.{name}": tensor for name, tensor in state.items()},
    }
    torch.save(whole, tmp_path / "mine.pth")
    save_file(whole, tmp_path / "mine.safetensors")
    for path in (tmp_path / "mine.pth", tmp_path / "mine.safetensors"):
        found: Any = xcit.get_model(path, stem_strides=(1, 1, 2, 2))
        assert (found.info.preprocessing.mean, found.info.preprocessing.std) == (mean, std)
        assert found.info.assumed  # the image size is assumed
        pixels = torch.from_numpy(np.asarray(picture("cifar10")).copy()).permute(2, 0, 1)[None].float() / 255
        spec = found.info.preprocessing
        normalised = (pixels - torch.tensor(spec.mean).view(1, 3, 1, 1)) / torch.tensor(spec.std).view(1, 3, 1, 1)
        with torch.no_grad():
            torch.testing.assert_close(found(normalised), expected(model, "cifar10"), atol=1e-5, rtol=1e-5)


def test_of_a_file_from_nowhere_a_line_says_what_was_assumed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = reference(*CIFAR)
    path = saved(tmp_path, *CIFAR, model, "mine.pth")
    normalised = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = model(normalised)
        assumed = xcit.get_model(path)
        (line,) = caplog.messages
        assert line == (
            f"{path} does not state its model: loaded as small-12-p16 with stem strides 2, 2, 2, 2 (patches of 16); if "
            "the weights were trained with other strides, pass stem_strides (--stem-strides)"
        )
        assert not torch.allclose(assumed(normalised), want, atol=1e-2)
        caplog.clear()
        told = xcit.get_model(path, stem_strides=(1, 1, 2, 2))
        named = xcit.get_model("xcit-small-12-p4", pretrained=path, num_classes=10)
        assert not caplog.messages
        for found in (told, named):
            torch.testing.assert_close(found(normalised), want, atol=1e-5, rtol=1e-5)
    by_name: Any = xcit.get_model("xcit-small-12-p16", pretrained=path, num_classes=10)
    assert by_name.config.patch_size == 16
    assert "loaded as small-12-p16" in caplog.text


def test_a_known_file_is_not_loaded_with_other_strides_by_accident(tmp_path: Path) -> None:
    path = saved(tmp_path, *CIFAR, reference(*CIFAR))
    with pytest.raises(
        XCiTError, match=r"its stem has strides 1, 1, 2, 2, but the model's stem has 2, 2, 2, 2: give only"
    ):
        xcit.get_model("xcit-small-12-p16", pretrained=path, num_classes=10)
    with pytest.raises(XCiTError, match=r"its stem has strides 1, 1, 2, 2"):
        xcit.get_backbone("xcit-small-12-p16", pretrained=path)
    with pytest.raises(XCiTError, match=r"its stem has strides 1, 1, 2, 2"):
        xcit.load_weights(xcit.XCiT(xcit.XCiTConfig(num_classes=10)), path)
    asked: Any = xcit.get_model("xcit-small-12-p16", pretrained=path, num_classes=10, stem_strides=(2, 2, 2, 2))
    assert asked.config.patch_size == 16


def test_a_converted_file_keeps_its_strides_under_any_name(tmp_path: Path) -> None:
    from xcit.zoo import convert

    model = reference(*CIFAR)
    path = saved(tmp_path, *CIFAR, model)
    for to in ("xcit", "timm"):
        convert(path, tmp_path / f"{to}.safetensors", to)
        found: Any = xcit.get_model(tmp_path / f"{to}.safetensors")
        assert found.config.strides == (1, 1, 2, 2)
        torch.testing.assert_close(logits_of(found, "cifar10"), expected(model, "cifar10"), atol=1e-5, rtol=1e-5)


def test_timms_create_model_of_a_robust_record() -> None:
    import xcit.integrations.timm  # noqa: F401 - registers

    model: Any = timm.create_model("debenedetti2022light_xcit_s12_cifar10_linf").eval()
    assert (model.config.patch_size, model.num_classes) == (4, 10)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
