"""Runs exported files as models that have the same methods as the original models.

An opened file is a model: an instance of a subclass of the original model's class, so every function that accepts the
original model also accepts the opened file. It has the config and the info of the original model, but no layers. A
method that the graph does not support raises an `XCiTError`.
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
"""Attributes that contain the layers of a model. An exported file has no layers, so access to them raises an error."""


def load_exported(path: str | os.PathLike[str]) -> "XCiT | Segmenter | MaskRCNN":
    """Opens a file that `export` wrote, and returns it as a model; the runtime of the file's format runs it on the CPU.

    The number of threads is the value of `torch.get_num_threads()` when the file is opened.

    Args:
        path: a file of ONNX or `torch.export`, or an OpenVINO folder.

    Returns:
        A classifier, backbone, segmenter or detector for `predict`, `extract_features`, `segment` or `detect`. Its
        attribute `sheet` describes the file.

    Raises:
        XCiTError: if the file can't be read, its runtime is not installed, or `export` did not write it.
    """
    path = Path(path)
    run = open_run(path, torch.get_num_threads())
    sheet = read_sheet(run.texts, str(path))
    return model_of(run, sheet, path)


def model_of(run: Run, sheet: Sheet, path: Path) -> "XCiT | Segmenter | MaskRCNN":
    """Returns an opened file as a model. `sheet` is the description in the file."""
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
    """Returns the opened file if `model` is the path of an exported file, else the result of `build`.

    Args:
        model: a path or a name.
        kind: the kind of model that an exported file must contain; None allows every kind.
        build: builds the model if `model` is not an exported file.
        changed: whether the user asked for other weights or another shape. This is not possible for an exported file.

    Raises:
        XCiTError: if the exported file can't be opened or contains another kind of model, or if `changed` is True and
            `model` is an exported file.
    """
    if not is_exported(model):
        return build()
    if changed:
        raise XCiTError(
            f"{os.fspath(model)}: an exported file can't be changed: leave --weights, --key and --stem-strides out, or "
            "give the model itself"
        )
    found: Any = load_exported(model)
    return found if kind is None else kind.require(found, os.fspath(model))


class Exported(nn.Module):
    """The base class of all exported files.

    Attributes:
        sheet: the description in the file.
        path: path of the exported file or folder.
    """

    def _open(self, run: Run, sheet: Sheet, path: Path) -> None:
        nn.Module.__init__(self)
        self._runtime, self.sheet, self.path = run, sheet, path
        self.config, self.info = sheet.config, sheet.info
        # Callers read the device and dtype of a model from its first parameter, so this object has an empty parameter.
        # Callers identify a model by a digest of its parameters and buffers, so a buffer contains the file's digest.
        self.place = nn.Parameter(torch.zeros(0), requires_grad=False)
        self.register_buffer("digest", _digest(path))
        self.eval()

    def fuse(self) -> Any:
        """Returns this object unchanged, because its graph is already fused."""
        return self

    def train(self, mode: bool = True) -> Any:
        """Sets evaluation mode if `mode` is False; raises an `XCiTError` if `mode` is True."""
        if mode:
            raise XCiTError(f"{self.path}: an exported file can't be trained: train the model, and export it again")
        return super().train(mode)

    def reset_parameters(self) -> NoReturn:
        """Raises an `XCiTError`, because an exported file has no parameters."""
        self._refuse("first values")

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self  # the runtime's session can't be copied; no copy is needed, because it never changes

    def __getattr__(self, name: str) -> Any:
        if name in _LAYERS:
            self._refuse(f"layers ({name})")
        return super().__getattr__(name)

    def _refuse(self, what: str) -> NoReturn:
        raise XCiTError(f"{self.path}: an exported file has no {what}: it only returns {self.sheet.sentence()}")

    def _outputs(self, images: Tensor, *others: Tensor) -> list[Tensor]:
        if images.dtype != torch.float32:
            raise XCiTError(
                f"{self.path}: an exported file accepts float32 images, and its precision "
                f"({self.sheet.facts.precision}) can't be changed: leave --dtype out"
            )
        size = self.sheet.facts.size
        if size is not None and tuple(images.shape[2:]) != size:
            raise XCiTError(
                f"{self.path}: was exported for images of {size[0]}x{size[1]} pixels, not of "
                f"{images.shape[2]}x{images.shape[3]}: export the model without --size to allow every size"
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
    """A classifier or feature backbone that runs from an exported file."""

    def __init__(self, run: Run, sheet: Sheet, path: Path) -> None:
        self._open(run, sheet, path)
        self.grad_checkpointing, self._pretrained_cfg = False, None

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits (B, num_classes); raises an `XCiTError` if the file returns features."""
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
        """Returns what `XCiT.extract_feat` returns, if the file was exported with exactly the requested features.

        Raises:
            XCiTError: if the file returns logits or other features.
        """
        features = self.sheet.facts.features
        indices = [out_indices] if isinstance(out_indices, int) else out_indices
        blocks = tuple(resolve_indices(indices, self.config.depth + self.config.cls_depth))
        if features is None:
            raise XCiTError(f"{self.path}: only returns logits: to get features, export the model with --features")
        if (out_type, blocks) != (features.out_type, features.layers):
            raise XCiTError(
                f"{self.path}: returns {self.sheet.sentence()}, not {out_type} of {', '.join(map(str, blocks))}: ask "
                f"for --out-type {features.out_type} --layers {','.join(map(str, features.layers))}"
            )
        found = tuple(self._call(images))
        return found[-1] if stage == "pre_logits" else found

    def _pass(
        self, images: Tensor, take: Collection[int], stop: int | None, class_attention: bool, only_class: bool
    ) -> Encoded:
        self._refuse("tokens or intermediates")


class ExportedSegmenter(Exported, Segmenter):
    """A segmenter that runs from an exported file."""

    def __init__(self, run: Run, sheet: Sheet, path: Path) -> None:
        self._open(run, sheet, path)

    def forward(self, images: Tensor, with_auxiliary: bool = False) -> Tensor:
        """Returns logits (B, K, h, w); raises an `XCiTError` if `with_auxiliary` is True."""
        if with_auxiliary:
            self._refuse("auxiliary head")
        return self._call(images)[0]

    @property
    def goes_by_rows(self) -> bool:
        """False: an exported file computes a whole image at a time, and can't compute an image in stripes of rows."""
        return False

    def decode(self, maps: Sequence[Tensor]) -> NoReturn:
        """Raises an `XCiTError`, because the segmentation head is part of the graph and can't run alone."""
        self._refuse("head of its own")


def _digest(path: Path) -> Tensor:
    """Returns a SHA-256 digest of an exported file, or of an OpenVINO folder's graph and weights, as uint8 (32,)."""
    path = path / MODEL if path.is_dir() else path
    found = hashlib.sha256()
    for one in (path, path.with_suffix(".bin")) if path.name == MODEL else (path,):
        with one.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return torch.frombuffer(bytearray(found.digest()), dtype=torch.uint8)
