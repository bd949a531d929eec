"""Builds the contenders by name, all with the same seeded random weights, and the work that is measured for each."""

import difflib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from beside_peers.onnx_session import open_session
from beside_peers.results import DType
from beside_peers.work import SEED, Case, Inference, TrainingStep, Work
from xcit.errors import XCiTError
from xcit.models import XCiT
from xcit.weights.formats import from_native
from xcit.zoo.architectures import PUBLISHED_ARCHITECTURES

INFERENCE_CONTENDERS = ("xcit", "xcit-plain", "xcit-compile", "timm", "timm-compile", "onnxruntime")
"""The contenders of inference.

Three are ours: the fused model, the unfused model, and the fused model after `torch.compile`. Three are timm's: its
model, its model after `torch.compile`, and its model in ONNX Runtime.
"""

TRAINING_CONTENDERS = ("xcit-plain", "xcit-compile", "timm", "timm-compile")


def check_contenders(
    contenders: Sequence[str], architectures: Sequence[str], *, train: bool, dtype: DType, device: torch.device
) -> None:
    """Checks, before any measurement, that all contenders can be measured.

    Raises:
        XCiTError: if a name is unknown or occurs twice, or if a contender can't train, needs a missing package, or
            lacks one of the architectures.
    """
    for name in contenders:
        if name not in INFERENCE_CONTENDERS:
            near = difflib.get_close_matches(name, INFERENCE_CONTENDERS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(INFERENCE_CONTENDERS)}"
            raise XCiTError(f"no contender is called {name!r}; {hint}")
        if train and name not in TRAINING_CONTENDERS:
            raise XCiTError(f"{name} can't be trained; contenders for training: {', '.join(TRAINING_CONTENDERS)}")
        if contenders.count(name) > 1:
            raise XCiTError(f"the contender {name} is named twice")
        if name.startswith("timm") or name == "onnxruntime":
            _check_packages(name)
            for architecture in architectures:
                if architecture not in PUBLISHED_ARCHITECTURES:
                    raise XCiTError(f"timm has no {architecture}: compare it with xcit-plain or xcit-compile")
        if name == "onnxruntime" and (dtype != "float32" or device.type != "cpu"):
            raise XCiTError(f"onnxruntime is measured in float32 on the CPU only, not in {dtype} on {device}")


def _check_packages(name: str) -> None:
    packages = ("timm", *(("onnx", "onnxruntime", "onnxscript") if name == "onnxruntime" else ()))
    if missing := [package for package in packages if find_spec(package) is None]:
        raise XCiTError(f"the contender {name} needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def build(name: str, case: Case, folder: Path, *, keeps_memory: bool = True) -> Work:
    """Builds a contender on the case's device and in the case's dtype.

    Args:
        name: a name from `INFERENCE_CONTENDERS`; for a training step, from `TRAINING_CONTENDERS`.
        case: the case to measure.
        folder: folder for ONNX files; a file that an earlier call wrote is used again.
        keeps_memory: whether ONNX Runtime keeps its working memory for the next run, as by default.
    """
    images = case.images()
    if name == "onnxruntime":
        session = open_session(lambda: timm_model(case).eval(), case, folder, keeps_memory=keeps_memory)
        return Inference(session, images)
    model: nn.Module = timm_model(case) if name.startswith("timm") else plain_model(case)
    model = model.train(case.train).to(case.device)
    if not case.train:
        if isinstance(model, XCiT) and name != "xcit-plain":
            model = model.fuse()
        # The dtype is converted after fusing, so that each weight is rounded only one time.
        model, images = model.to(case.torch_dtype), images.to(case.torch_dtype)
    # A compiled model is fastest if it is compiled for only one size.
    forward = torch.compile(model, dynamic=False) if name.endswith("-compile") else model
    if case.train:
        return TrainingStep(model, forward, images, case.labels(), case.torch_dtype)
    return Inference(forward, images)


def build_reference(case: Case) -> Work:
    """Builds the unfused model in float32, independent of the measured dtype."""
    model, images = plain_model(case).train(case.train).to(case.device), case.images()
    if case.train:
        return TrainingStep(model, model, images, case.labels(), torch.float32)
    return Inference(model, images)


def plain_model(case: Case) -> XCiT:
    """Builds our model with seeded random weights, in float32 on the CPU."""
    with torch.device("meta"):  # so that no time is spent on initial weights
        model = XCiT(case.config)
    model.load_state_dict(_random_state(model), assign=True)
    return model


def timm_model(case: Case) -> nn.Module:
    """Builds timm's model with the same weights as `plain_model`."""
    import timm

    with torch.device("meta"):
        outline = XCiT(case.config)
        model: nn.Module = timm.create_model(f"xcit_{case.architecture.replace('-', '_')}_224", pretrained=False)
    model.load_state_dict(from_native(_random_state(outline), "timm"), assign=True)
    return model


def _random_state(model: XCiT) -> dict[str, Tensor]:
    """Returns seeded random values for a model's parameters and buffers, with scales that keep activations near 1.

    Norm statistics, residual scales and temperatures are random too. With their initial values, a model that uses them
    in a wrong way could have the right outputs.
    """
    generator = torch.Generator().manual_seed(SEED)

    def draw(name: str, shape: torch.Size) -> Tensor:
        values = torch.empty(shape)
        leaf = name.rpartition(".")[2]
        if leaf == "num_batches_tracked":
            return torch.tensor(1)
        if leaf in ("running_var", "temperature"):
            return values.uniform_(0.5, 2.0, generator=generator)
        if leaf.startswith("scale_"):
            return values.uniform_(0.1, 1.0, generator=generator)
        if leaf == "weight" and len(shape) == 1:
            return values.uniform_(0.5, 1.5, generator=generator)
        fan_in = shape[1:].numel() if leaf == "weight" else 10  # biases, means and the class token are about 0.3
        return values.normal_(std=fan_in**-0.5, generator=generator)

    return {name: draw(name, value.shape) for name, value in model.state_dict().items()}
