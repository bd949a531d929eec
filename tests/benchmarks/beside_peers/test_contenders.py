import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from beside_peers.contenders import INFERENCE_CONTENDERS, TRAINING_CONTENDERS, build, build_reference, check_contenders
from beside_peers.work import Case

from xcit.errors import XCiTError

CPU = torch.device("cpu")


def case(**changes: object) -> Case:
    settings = {
        "architecture": "nano-12-p16",
        "image_size": 48,
        "batch_size": 2,
        "train": False,
        "dtype": "float32",
        "device": "cpu",
        "threads": 1,
    }
    return Case(**(settings | changes))  # type: ignore[arg-type]


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("name", ["xcit", "xcit-plain", "timm"])
def test_logits_are_those_of_the_reference(name: str, tmp_path: Path) -> None:
    (expected,) = build_reference(case()).outputs()
    (found,) = build(name, case(), tmp_path).outputs()
    assert found.shape == (2, 1000)
    assert difference(found, expected) < 1e-5
    assert difference(found[0], found[1]) > 1e-3, "they depend on the image"


@pytest.mark.parametrize("name", ["xcit-plain", "timm"])
def test_a_training_step_gives_logits_and_all_gradients_and_leaves_none(name: str, tmp_path: Path) -> None:
    step: Any = build(name, case(train=True), tmp_path)
    for found, expected in zip(step.outputs(), build_reference(case(train=True)).outputs(), strict=True):
        assert difference(found, expected) < 1e-4
    assert found.numel() == 3_053_224
    step()
    assert all(parameter.grad is None for parameter in step._model.parameters())


@pytest.mark.parametrize("name", ["xcit", "timm"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_is_of_weights_and_images(name: str, dtype: str, tmp_path: Path) -> None:
    work = build(name, case(dtype=dtype), tmp_path)
    assert work().dtype == getattr(torch, dtype)
    assert work.outputs()[0].dtype == torch.float32


def test_the_packaged_architecture_has_grey_images(tmp_path: Path) -> None:
    pico = case(architecture="pico-6-p4", image_size=28)
    assert pico.images().shape == (2, 1, 28, 28)
    assert build("xcit", pico, tmp_path)().shape == (2, 10)


def check(*names: str, architecture: str = "nano-12-p16", train: bool = False, dtype: str = "float32") -> None:
    check_contenders(names, [architecture], train=train, dtype=dtype, device=CPU)  # type: ignore[arg-type]


def test_all_that_is_there_is_accepted() -> None:
    check(*INFERENCE_CONTENDERS)
    check(*TRAINING_CONTENDERS, train=True)
    check("xcit", "xcit-plain", "xcit-compile", architecture="pico-6-p4")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["xcit", "tim"]}, "no contender is called 'tim'; did you mean 'timm'?"),
        ({"names": ["mmpretrain"]}, "no contender is called 'mmpretrain'; there are: xcit, xcit-plain, "),
        ({"names": ["timm", "timm"]}, "the contender timm is named twice"),
        (
            {"names": ["xcit"], "train": True},
            "xcit can't be trained; contenders for training: xcit-plain, xcit-compile, timm, ",
        ),
        ({"names": ["onnxruntime"], "train": True}, "onnxruntime can't be trained"),
        ({"names": ["onnxruntime"], "dtype": "bfloat16"}, "float32 on the CPU only, not in bfloat16 on cpu"),
        ({"names": ["timm"], "architecture": "pico-6-p4"}, "timm has no pico-6-p4: compare it with xcit-plain"),
    ],
)
def test_mistakes(arguments: dict, message: str) -> None:
    with pytest.raises(XCiTError) as error:
        check(*arguments.pop("names"), **arguments)
    assert message in str(error.value)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnxruntime", "onnxscript"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(XCiTError, match="needs onnxruntime and onnxscript: pip install onnxruntime onnxscript"):
        check("onnxruntime")
    check("timm")
