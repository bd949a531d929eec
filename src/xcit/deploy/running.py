"""Runs exported files with the same calls as the models that they were made from.

An opened file is an instance of a subclass of its model's class, so that every function that takes the model takes the
file too. It has the config and the info, but no layers. A call that the graph does not support raises an `XCiTError`.
"""

import hashlib
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from xcit.deploy.formats import Run, is_exported, open_run
from xcit.deploy.openvino_files import MODEL
from xcit.deploy.sheet import Sheet, read_sheet
from xcit.errors import XCiTError
from xcit.models import Segmenter, XCiT
from xcit.models.refusals import check_batch
from xcit.models.timm_calls import resolve_indices
from xcit.models.xcit import Encoded, OutType
from xcit.zoo.kinds import DETECTOR, SEGMENTER, Kind

if TYPE_CHECKING:
    from xcit.models.detection.mask_rcnn import MaskRCNN

Model = TypeVar("Model")

_LAYERS = (
    "stem",
    "position",
    "embedding",
    "blocks",
    "cls_blocks",
    "cls_token",
    "norm",
    "head",
    "backbone",
    "fpn",
    "rpn",
)
"""Attributes by which callers access the parts of a model."""


def load_exported(path: str | os.PathLike[str]) -> "XCiT | Segmenter | MaskRCNN":
    """Opens a file that `export` wrote as a model with the same call; it runs in the file's own runtime, on the CPU.

    Args:
        path: a file of ONNX or `torch.export`, or a folder of OpenVINO.

    Returns:
        A classifier, backbone, segmenter or detector, which `predict`, `extract_features`, `segment` and `detect`
        take. Its attribute `sheet` says how it was exported. It uses as many threads as torch does at the time of this
        call.

    Raises:
        XCiTError: if the file can't be read, its runtime is not installed, or `export` did not write it.
    """
    path = Path(path)
    run = open_run(path, torch.get_num_threads())
    sheet = read_sheet(run.texts, str(path))
    return model_of(run, sheet, path)


def model_of(run: Run, sheet: Sheet, path: Path) -> "XCiT | Segmenter | MaskRCNN":
    """Returns an open file as a model."""
    if sheet.kind is DETECTOR:
        from xcit.deploy.running_detector import ExportedDetector

        return ExportedDetector(run, sheet, path)
    return (ExportedSegmenter if sheet.kind is SEGMENTER else ExportedXCiT)(run, sheet, path)


def exported_or(
    model: str | os.PathLike[str],
    kind: Kind[Any, Any, Any] | None,
    build: Callable[[], Model],
    *,
    changed: bool = False,
) -> Model:
    """Opens an exported file, or calls `build` if `model` is not one. Only this function distinguishes the two cases.

    Args:
        model: a path or a name.
        kind: the kind that the model must have; None allows every kind.
        build: returns the model if it is not an exported file.
        changed: whether the user asked for other weights or another shape, which an exported file can't have.

    Raises:
        XCiTError: if the file can't be opened, is of another kind, or `changed` is set.
    """
    if not is_exported(model):
        return build()
    if changed:
        raise XCiTError(
            f"{os.fspath(model)}: an exported file is whole: leave --weights, --key and --stem-strides out, or give "
            "the model itself"
        )
    found: Any = load_exported(model)
    return found if kind is None else kind.require(found, os.fspath(model))


class Exported(nn.Module):
    """The base class of all exported files.

    Attributes:
        sheet: the description in the file.
        path: the file.
    """

    def _open(self, run: Run, sheet: Sheet, path: Path) -> None:
        nn.Module.__init__(self)
        self._runtime, self.sheet, self.path = run, sheet, path
        self.config, self.info = sheet.config, sheet.info
        # Callers take the device and dtype of a model from its first parameter, and identify it by a digest of all its
        # values.
        self.place = nn.Parameter(torch.zeros(0), requires_grad=False)
        self.register_buffer("digest", _digest(path))
        self.eval()

    def fuse(self) -> Any:
        """Returns the model itself, because its graph is already fused."""
        return self

    def train(self, mode: bool = True) -> Any:
        """Sets evaluation mode; training mode raises an `XCiTError`."""
        if mode:
            raise XCiTError(f"{self.path}: an exported file can't be trained: train the model, and export that")
        return super().train(mode)

    def reset_parameters(self) -> NoReturn:
        """Raises an `XCiTError`, because an exported file has no parameters."""
        self._refuse("first values")

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self  # a session can't be copied, and has no state

    def __getattr__(self, name: str) -> Any:
        if name in _LAYERS:
            self._refuse(f"layers ({name})")
        return super().__getattr__(name)

    def _refuse(self, what: str) -> NoReturn:
        raise XCiTError(f"{self.path}: an exported file has no {what}: it gives {self.sheet.sentence()} alone")

    def _outputs(self, images: Tensor, *others: Tensor) -> list[Tensor]:
        if images.dtype != torch.float32:
            raise XCiTError(
                f"{self.path}: an exported file takes float32 images and computes in {self.sheet.facts.precision}, as "
                "it was exported: leave --dtype out"
            )
        size = self.sheet.facts.size
        if size is not None and tuple(images.shape[2:]) != size:
            raise XCiTError(
                f"{self.path}: was exported for images of {size[0]}x{size[1]} pixels, not of "
                f"{images.shape[2]}x{images.shape[3]}: export it without --size for every size"
            )
        found = self._runtime([value.detach().cpu() for value in (images, *others)])
        return [value.to(images.device) for value in found]

    def _call(self, images: Tensor) -> list[Tensor]:
        check_batch(images, self.sheet.channels)
        patch = self.sheet.kind.backbone(self.config).patch_size
        if min(images.shape[2:]) < patch:
            raise XCiTError(
                f"images are {images.shape[2]}x{images.shape[3]} pixels, smaller than one patch of {patch}x{patch}"
            )
        return self._outputs(images)


class ExportedXCiT(Exported, XCiT):
    """A classifier or feature backbone in a file."""

    def __init__(self, run: Run, sheet: Sheet, path: Path) -> None:
        self._open(run, sheet, path)
        self.grad_checkpointing, self._pretrained_cfg = False, None

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits (B, num_classes)."""
        if self.sheet.facts.features is not None:
            self._refuse("logits")
        return self._call(images)[0]

    def extract_feat(
        self,
        images: Tensor,
        stage: Literal["backbone", "neck", "pre_logits"] = "neck",
        *,
        out_type: OutType = "cls_token",
        out_indices: int | Sequence[int] = (-1,),
    ) -> tuple[Tensor, ...] | Tensor:
        """Does what `XCiT.extract_feat` does, only for the features that the file was exported with.

        Raises:
            XCiTError: if other features are requested.
        """
        features = self.sheet.facts.features
        indices = [out_indices] if isinstance(out_indices, int) else out_indices
        blocks = tuple(resolve_indices(indices, self.config.depth + self.config.cls_depth))
        if features is None:
            raise XCiTError(f"{self.path}: was exported for its logits: export it with --features for features")
        if (out_type, blocks) != (features.out_type, features.layers):
            raise XCiTError(
                f"{self.path}: gives {self.sheet.sentence()}, not {out_type} of {', '.join(map(str, blocks))}: ask for "
                f"--out-type {features.out_type} --layers {','.join(map(str, features.layers))}"
            )
        found = tuple(self._call(images))
        return found[-1] if stage == "pre_logits" else found

    def _pass(
        self, images: Tensor, take: Collection[int], stop: int | None, class_attention: bool, only_class: bool
    ) -> Encoded:
        self._refuse("tokens or intermediates")


class ExportedSegmenter(Exported, Segmenter):
    """A segmenter in a file."""

    def __init__(self, run: Run, sheet: Sheet, path: Path) -> None:
        self._open(run, sheet, path)

    def forward(self, images: Tensor, with_auxiliary: bool = False) -> Tensor:
        """Returns logits (B, K, h, w)."""
        if with_auxiliary:
            self._refuse("auxiliary head")
        return self._call(images)[0]

    @property
    def goes_by_rows(self) -> bool:
        """False: the file computes a whole image, and has no layers that take rows."""
        return False

    def decode(self, maps: Sequence[Tensor]) -> NoReturn:
        """Raises an `XCiTError`, because the head is part of the graph."""
        self._refuse("head of its own")


def _digest(path: Path) -> Tensor:
    """Returns the SHA-256 of a file, or of the files of a folder, as uint8 (32,)."""
    path = path / MODEL if path.is_dir() else path
    found = hashlib.sha256()
    for one in (path, path.with_suffix(".bin")) if path.name == MODEL else (path,):
        with one.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return torch.frombuffer(bytearray(found.digest()), dtype=torch.uint8)
