"""Tests low-rank adapters: training, saved files, resuming, and the use of the run's folder by other programs."""

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import xcit
from xcit.errors import XCiTError
from xcit.models import XCiT, XCiTConfig
from xcit.training.recipes import get_recipe
from xcit.training.tasks.low_rank import LoRAConfig, adapt
from xcit.zoo import find_checkpoint
from xcit.zoo.conversion import convert

FIELDS: dict[str, Any] = {
    "holdout": None,
    "initialize.weights": "packaged",
    "lora.rank": 2,
    "lora.dropout": 0.1,
    "model.num_classes": 0,
    "schedule.epochs": 2,
    "schedule.warmup_epochs": 0,
    "optimizer.lr": 5e-3,
    "augmentation.mixup": 0,
    "augmentation.cutmix": 0,
    "run.batch_size": 8,
    "run.ema_decay": 0,
    "run.log_every": 1,
    "run.num_workers": 0,
    "run.save_every_steps": 1,
    "run.keep_checkpoints": 9,
}


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """Imports peft and torchao without their warnings: torchao's modules warn when Python compiles them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import peft
        import torchao.quantization

        assert peft and torchao


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for name, middle in (("dark", 60), ("light", 190)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(middle - 50, middle + 50, (28, 28), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


def trained(data: Path, folder: Path, resume: Path | None = None, **fields: Any) -> dict[str, float]:
    changed = {**FIELDS, "data": str(data), **fields}
    return xcit.train("xcit-pico-fashion-mnist", folder, fields=changed, resume=resume, device="cpu")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    trained(data, folder)
    return folder


def tensors(adapter: Path) -> dict[str, Tensor]:
    return load_file(adapter / "adapter_model.safetensors")


def test_a_run_keeps_what_it_learned_alone(run: Path) -> None:
    assert not [*run.glob("*.safetensors")]
    for name in ("model-adapter", "best-adapter"):
        assert {path.name for path in (run / name).iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    learned = tensors(run / "model-adapter")
    assert all("lora_" in name or ".head." in name for name in learned)
    assert any(tensor.abs().max() > 0 for name, tensor in learned.items() if "lora_B" in name)
    size = (run / "model-adapter" / "adapter_model.safetensors").stat().st_size
    assert size < (run / "last.pt").stat().st_size / 10


def test_a_stopped_run_goes_on_exactly(run: Path, data: Path, tmp_path: Path) -> None:
    trained(data, tmp_path / "again", resume=run / "step-00000004.pt")
    one, other = tensors(run / "model-adapter"), tensors(tmp_path / "again" / "model-adapter")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    configs = [folder / "model-adapter" / "adapter_config.json" for folder in (run, tmp_path / "again")]
    assert configs[0].read_text() == configs[1].read_text()


def test_the_adapter_is_a_model_for_every_verb(run: Path, data: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    adapter = run / "model-adapter"
    merged = xcit.get_model(adapter)
    assert isinstance(merged, XCiT) and merged.info is not None and merged.info.class_names == ("dark", "light")
    assert {name for name, _ in merged.named_parameters()} == {
        name for name, _ in xcit.get_model("packaged").named_parameters()
    }
    images = torch.rand(3, 1, 28, 28)
    theirs = PeftModel.from_pretrained(xcit.get_model("packaged", pretrained=True, num_classes=2), str(adapter)).eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(images), theirs(images), rtol=1e-4, atol=1e-5)
        convert(adapter, tmp_path / "merged.safetensors", "xcit")
        convert(adapter, tmp_path / "folder", "timm-hub")
        for path in (tmp_path / "merged.safetensors", tmp_path / "folder"):
            assert torch.equal(xcit.get_model(path)(images), merged(images))
    assert xcit.verify(adapter).params == sum(parameter.numel() for parameter in merged.parameters())
    dark = data / "val" / "dark" / "0.png"
    assert xcit.predict(dark, model=adapter)[0].classes[0].name == "dark"


def test_peft_s_own_adapter_of_our_model(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = xcit.get_model("packaged", pretrained=True, num_classes=3)
    config = LoraConfig(target_modules=["qkv"], r=2, init_lora_weights=False, modules_to_save=["head"])
    adapted = get_peft_model(model, config).eval()
    images = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        expected = adapted(images)
    adapted.save_pretrained(str(tmp_path))
    with pytest.raises(XCiTError, match="does not state the base model: set base_model_name_or_path"):
        xcit.get_model(tmp_path)
    settings = tmp_path / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"base_model_name_or_path": "packaged"}))
    with torch.no_grad():
        torch.testing.assert_close(xcit.get_model(tmp_path)(images), expected, rtol=1e-4, atol=1e-5)


def edit(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def other_weights(adapter: Path) -> None:
    torch.manual_seed(3)
    other = xcit.get_model("packaged")
    assert isinstance(other, XCiT)
    xcit.save_model(other, adapter.parent / "other.safetensors")
    edit(adapter, base_model_name_or_path=str(adapter.parent / "other.safetensors"))


def without_config(adapter: Path) -> None:
    state = tensors(adapter)
    save_file(state, adapter / "adapter_model.safetensors")
    edit(adapter, r=7)


BAD: dict[str, Callable[[Path], None]] = {
    r"has an adapter_config\.json but no adapter_model": lambda adapter: (
        adapter / "adapter_model.safetensors"
    ).unlink(),
    r"not an adapter of PEFT, or damaged": cut,
    r"adapts nowhere\.pth \(base_model_name_or_path in adapter_config\.json\): cannot read": lambda adapter: edit(
        adapter, base_model_name_or_path="nowhere.pth"
    ),
    r"the weights of .*other\.safetensors have changed since this adapter was trained": other_weights,
    r"its adapter does not fit packaged": without_config,
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_adapter_is_told_in_one_line(message: str, run: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for path in (run / "model-adapter").iterdir():
        (adapter / path.name).write_bytes(path.read_bytes())
    BAD[message](adapter)
    with pytest.raises(XCiTError, match=message) as caught:
        xcit.get_model(adapter)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"initialize.weights": ""}, "lora.rank adapts a trained model: set initialize.weights"),
        ({"initialize.stem": "packaged"}, "do not set initialize.stem"),
        ({"run.parallel": "fsdp2"}, "lora.rank can't be combined with run.parallel fsdp2"),
        ({"lora.layers": ["qvk"]}, "no linear layer has a name that ends in one of qvk"),
        ({"lora.rank": -1}, "lora.rank is -1, but must be 0 or more"),
        ({"lora.alpha": 0}, "lora.alpha is 0, but must be at least 1"),
    ],
)
def test_what_can_t_be_adapted_is_named(fields: dict[str, Any], message: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(XCiTError, match=message):
        trained(data, tmp_path / "run", **fields)
    assert not (tmp_path / "run").exists()


def test_several_classes_an_image(data: Path, tmp_path: Path) -> None:
    lines = [
        "file,dark,light",
        *(f"{name}/{index}.png,{int(name == 'dark')},1" for name in ("dark", "light") for index in range(12)),
    ]
    (data / "train" / "train.csv").write_text("\n".join(lines) + "\n")
    recipe = get_recipe("xcit-nano-12-p16_multi-label")
    packaged = find_checkpoint("packaged")
    fields = {
        "model": packaged.config,
        "preprocessing": packaged.preprocessing,
        "data": str(data / "train" / "train.csv"),
    }
    small = {name: value for name, value in FIELDS.items() if not name.startswith(("augmentation.", "run.keep"))}
    chosen = {**fields, **small, "holdout": 4, "schedule.epochs": 1, "optimizer.layer_decay": 1, "model.num_classes": 0}
    xcit.train(recipe, tmp_path / "run", fields=chosen, device="cpu")
    model = xcit.get_model(tmp_path / "run" / "model-adapter")
    assert isinstance(model, XCiT) and model.info is not None
    assert model.info.is_multi_label and model.info.class_names == ("dark", "light")


def test_a_run_without_adapters_does_not_go_on_with_them(run: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(XCiTError, match=r"does not fit this run: \d+ tensors are missing"):
        trained(data, tmp_path / "run", resume=run / "step-00000004.pt", **{"lora.rank": 0})


def test_only_adapters_and_head_learn() -> None:
    config = XCiTConfig(patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3)
    torch.manual_seed(0)
    model = XCiT(config).eval()
    images = torch.rand(1, 3, 16, 16)
    before = model(images)
    adapted = adapt(model, LoRAConfig(rank=2))
    torch.testing.assert_close(adapted(images), before)
    learned = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or name.startswith("head.") for name in learned) and "head.weight" in learned
    assert sum("lora_A" in name for name in learned) == 2 * 4 + 2 * 6
    frozen = XCiT(replace(config, num_classes=0, cls_depth=1))
    assert not any(name.startswith("head.") for name, _ in adapt(frozen, LoRAConfig(rank=2)).named_parameters())
