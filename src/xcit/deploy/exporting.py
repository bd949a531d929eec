"""Exports a model to a file for another runtime, and deletes the file if its outputs differ from the model's."""

import copy
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xcit.deploy.check import Difference, compare, compare_on
from xcit.deploy.formats import FORMATS, Target, format_of, open_run
from xcit.deploy.graphs import Normalization, XCAForm, build_graph, inputs_of
from xcit.deploy.onnx_files import OPSET, newest_opset, write_onnx
from xcit.deploy.openvino_files import convert_onnx
from xcit.deploy.operators import check_operators
from xcit.deploy.quantize import checked_batches, quantize_onnx
from xcit.deploy.sheet import Facts, FeatureOutput, Precision, Sheet
from xcit.deploy.torch_files import write_program
from xcit.errors import XCiTError
from xcit.extras import need_packages
from xcit.models.detection.images import PAD_TO
from xcit.models.timm_calls import resolve_indices
from xcit.writing import whole_file, whole_folder
from xcit.zoo import get_model
from xcit.zoo.kinds import CLASSIFIER, DETECTOR, SEGMENTER, Kind, kind_of_config
from xcit.zoo.names import find_record, is_known

Size = int | tuple[int, int]

RUN_WEIGHTS = "model.safetensors"
"""The name of the weights file in the folder of a training run."""


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """The result of `export`.

    Attributes:
        path: path of the file or folder.
        num_bytes: size of the file or folder in bytes.
        sheet: the description that is stored in the file.
        difference: the difference between the file's outputs and the model's.
    """

    path: Path
    num_bytes: int
    sheet: Sheet
    difference: Difference


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The origin of a model: its name or file, and the licence of its weights ("" if it is not known)."""

    source: str
    licence: str = ""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The arguments of `export` except the model, the path and the target; `export` describes them."""

    size: Size | None = None
    dtype: Precision | None = None
    normalize: bool = False
    features: FeatureOutput | None = None
    calibration: Iterable[Tensor] | None = None
    opset: int | None = None


def export(
    model: str | os.PathLike[str] | nn.Module,
    path: str | os.PathLike[str],
    to: Target | None = None,
    *,
    size: Size | None = None,
    dtype: Precision | None = None,
    normalize: bool = False,
    features: FeatureOutput | None = None,
    calibration: Iterable[Tensor] | None = None,
    opset: int | None = None,
) -> ExportReport:
    """Writes a model to a file for another runtime. By default, the file accepts any batch size and image size.

    The file also contains the class names, preprocessing, task, source and licence. The file of a detector accepts
    one image at a time. Before `export` returns, it compares the file's outputs with the model's, and deletes the
    file if they differ too much. The comparison uses random images of several sizes, or for int8 the images of
    `calibration`.

    Args:
        model: a model, a weights file, the folder of a training run, or a published name. The weights of a published
            name are downloaded if they are not yet on this machine.
        path: the output: a file ending in .onnx or .pt2, or a new or empty folder for OpenVINO.
        to: the runtime; None chooses the runtime by the suffix of `path`. "tensorrt" and "web" write ONNX files, and
            raise an error if the graph contains an operator that TensorRT's parser or onnxruntime-web does not
            support. A file for TensorRT has a fixed image size and computes in float16.
        size: fixed height and width of the images in pixels, or one number for both. None allows every size; for
            TensorRT, None means the size in the model's preprocessing. For a detector, the height and the width must be
            equal and a multiple of 32: an image is resized to fit into this square, and padded.
        dtype: "float32", "float16" or "int8"; "int8" needs `calibration`. None means float16 for TensorRT and float32
            for all other targets.
        normalize: if True, the graph accepts images with values in 0..1, subtracts the mean and divides by the
            standard deviation. If False, the graph accepts normalised images.
        features: the features that the file returns instead of logits; None means logits.
        calibration: for int8 only: batches (B, C, h, w) of normalised images, similar to the images that the file will
            be used on. For a detector, B is 1.
        opset: version of ONNX's operator set, at least 18, for "onnx", "tensorrt" and "web"; None means 18.

    Returns:
        A description of the file, with the difference between its outputs and the model's.

    Raises:
        XCiTError: if the model can't be loaded, the target does not support the model, a package is missing, the path
            can't be written, or the file's outputs differ from the model's.
    """
    wanted = Wanted(
        size=size, dtype=dtype, normalize=normalize, features=features, calibration=calibration, opset=opset
    )
    target = _target(Path(path), to)
    need_packages(f"exporting to {target}", *FORMATS[target].packages)
    return export_model(*_find(model), Path(path), target, wanted)


def export_model(network: Any, origin: Origin, place: Path, target: Target, wanted: Wanted) -> ExportReport:
    """Does what `export` does, for a model that is already loaded; `place` is the output path."""
    form = FORMATS[_target(place, target)]
    kind = kind_of_config(network.config)
    parameter = next(network.parameters())
    if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
        network = copy.deepcopy(network).to("cpu", torch.float32)
    precision: Precision = wanted.dtype or ("float16" if target == "tensorrt" else "float32")
    fixed = _fixed_size(wanted.size, target, network)
    _check_asked(kind, target, precision, fixed, wanted)
    facts = Facts(
        precision=precision,
        size=fixed,
        features=_with_blocks(wanted.features, network),
        normalizes=wanted.normalize,
        source=origin.source,
        licence=origin.licence,
        made_by=_made_by(),
    )
    sheet, normalization = _sheet(network, facts)
    _check_place(place, is_folder=not form.suffix)
    batches = None if wanted.calibration is None else checked_batches(wanted.calibration, network, sheet)
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / f"model{form.suffix}"
        _write(network, sheet, normalization, target, part, batches, wanted.opset or OPSET)
        run = open_run(part, torch.get_num_threads())
        if batches is None:
            least = 2 if target == "torch-export" else 1
            difference = compare(run, network, sheet, normalization, least_patches=least)
        else:
            difference = compare_on(
                run, network, sheet, ((_denormalized(batch, normalization), batch) for batch in batches)
            )
        num_bytes = _keep(part, place)
    return ExportReport(path=place, num_bytes=num_bytes, sheet=sheet, difference=difference)


def _target(path: Path, to: Target | None) -> Target:
    """Returns the target: `to` if it is given, else the target that belongs to the suffix of the path.

    Raises:
        XCiTError: if the path does not fit `to`, or if `to` is None and the suffix is unknown.
    """
    if to is not None and to not in FORMATS:
        raise XCiTError(f"there is no export to {to!r}; choose one of {', '.join(FORMATS)}")
    found = format_of(path)
    if to is None:
        if found is None and path.suffix:
            raise XCiTError(f"{path}: unknown suffix: use .onnx or .pt2, or for OpenVINO a folder without a suffix")
        form = found or FORMATS["openvino"]
        return next(target for target, one in FORMATS.items() if one is form)
    wanted = FORMATS[to].suffix
    if path.suffix != wanted and (wanted or path.suffix in (".onnx", ".pt2", ".xml")):
        what = f"a file ending in {wanted}" if wanted else "a folder"
        raise XCiTError(f"{path}: an export to {to} is {what}")
    return to


def origin_of(name: str) -> Origin:
    """Returns the origin of a model; `name` is a published name or a path."""
    if not is_known(name):
        return Origin(source=name)
    record = find_record(name)
    return Origin(source=record.name, licence=record.licence)


def weights_of(model: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Returns the path of the weights file if `model` is a training run's folder; else returns `model` unchanged.

    Raises:
        XCiTError: if `model` is an exported file.
    """
    name = os.fspath(model)
    if format_of(model) is not None:
        raise XCiTError(f"{name}: is an exported file already: export the model that it was made from")
    weights = Path(name) / RUN_WEIGHTS
    return weights if not is_known(name) and weights.is_file() else model


def _find(model: str | os.PathLike[str] | nn.Module) -> tuple[Any, Origin]:
    """Returns the model and its origin; loads the model if `model` is a name or path."""
    network: Any = model
    if isinstance(model, nn.Module):
        if not any(isinstance(model, kind.model()) for kind in (CLASSIFIER, SEGMENTER, DETECTOR)):
            raise XCiTError(
                f"a {type(model).__name__} can't be exported: give a classifier, backbone, segmenter or detector"
            )
        return network, Origin(source="" if network.info is None else network.info.name)
    return get_model(weights_of(model), pretrained=True), origin_of(os.fspath(model))


def _fixed_size(size: Size | None, target: Target, network: Any) -> tuple[int, int] | None:
    """Returns the fixed height and width of the images, or None if the file will accept every size.

    If `size` is None, the result for TensorRT is the size in the model's preprocessing.
    """
    if size is None and target == "tensorrt":
        spec = getattr(network.info, "preprocessing", None)
        size = getattr(spec, "image_size", None) or getattr(spec, "short_side", None)
        if size is None:
            raise XCiTError(
                "a file for tensorrt has a fixed image size, but the model's preprocessing has none: set size"
                f"{f' to a multiple of {PAD_TO}' if kind_of_config(network.config) is DETECTOR else ''}"
            )
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise XCiTError(f"the size is {height}x{width} pixels, but each side must be at least 1")
    return height, width


def _check_asked(
    kind: Kind[Any, Any, Any],
    target: Target,
    precision: Precision,
    size: tuple[int, int] | None,
    wanted: Wanted,
) -> None:
    """Checks that the export is possible, before the graph is captured.

    Raises:
        XCiTError: if the export is not possible; the message says what to change.
    """
    if precision not in ("float32", "float16", "int8"):
        raise XCiTError(f"there is no dtype {precision!r}: choose float32, float16 or int8")
    if wanted.features is not None and kind is not CLASSIFIER:
        raise XCiTError(f"a {kind.name} gives no features: export its backbone (xcit.get_backbone)")
    if kind is DETECTOR and size is not None and (size[0] != size[1] or size[0] % PAD_TO):
        raise XCiTError(
            f"the size is {size[0]}x{size[1]} pixels; a detector needs a square, with a side that is a multiple of "
            f"{PAD_TO}"
        )
    if (precision == "int8") != (wanted.calibration is not None):
        raise XCiTError("int8 needs images for calibration, and no other dtype uses them: give both or neither")
    if precision == "int8" and target in ("torch-export", "tensorrt"):
        raise XCiTError(f"int8 is for onnx, openvino and web, not for {target}")
    if wanted.opset is not None:
        if FORMATS[target].suffix != ".onnx":
            raise XCiTError(f"an export to {target} has no ONNX operator set: leave opset out")
        if not OPSET <= wanted.opset <= newest_opset():
            raise XCiTError(
                f"the ONNX operator set is {wanted.opset}, but must be {OPSET} to {newest_opset()}: older sets lack "
                "operators that the graph needs, and the installed onnx does not support newer sets"
            )
    if precision != "float16" and target == "tensorrt":
        raise XCiTError("an export to tensorrt is in float16: leave the dtype out")


def _with_blocks(features: FeatureOutput | None, network: Any) -> FeatureOutput | None:
    """Returns the features with block indices counted from 0, so that -1 becomes the index of the last block.

    Raises:
        XCiTError: if a block does not exist, or has no class token although the class token is requested.
    """
    if features is None:
        return None
    config = network.config
    layers = tuple(resolve_indices(features.layers, config.depth + config.cls_depth))
    if features.out_type == "cls_token" and layers[0] < config.depth:
        raise XCiTError(
            f"block {layers[0]} has no class token: the class token enters at block {config.depth} of "
            f"{config.depth + config.cls_depth}; ask for featmap, avg_featmap or raw"
        )
    return FeatureOutput(out_type=features.out_type, layers=layers)


def _sheet(network: Any, facts: Facts) -> tuple[Sheet, Normalization | None]:
    """Returns the description for the file, and the normalization at the start of its graph (None if there is none)."""
    kind, config, info = kind_of_config(network.config), network.config, network.info
    if kind is DETECTOR and facts.size is not None:
        config = replace(config, short_side=facts.size[0], long_side=facts.size[0])
    if facts.features is not None:
        config = replace(config, num_classes=0)
        info = None if info is None else replace(info, class_names=(), class_ids=())
    elif kind is CLASSIFIER and not config.num_classes:
        raise XCiTError("the model has no classifier: choose the features to export")
    if not facts.normalizes:
        return Sheet(kind=kind, config=config, info=info, facts=facts), None
    spec = config if kind is DETECTOR else getattr(info, "preprocessing", None)
    if spec is None:
        raise XCiTError("it is not known how to normalise images for the model: give mean and std, or set model.info")
    channels = len(spec.mean)
    none = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    if kind is DETECTOR:
        config = replace(config, **none)
    else:
        info = replace(info, preprocessing=replace(spec, **none))
    return Sheet(kind=kind, config=config, info=info, facts=facts), Normalization(mean=spec.mean, std=spec.std)


def _write(
    network: nn.Module,
    sheet: Sheet,
    normalization: Normalization | None,
    target: Target,
    path: Path,
    batches: Sequence[Tensor] | None,
    opset: int,
) -> None:
    """Writes the file to a temporary path."""
    is_half, texts = sheet.facts.precision == "float16", sheet.texts()
    # For OpenVINO, the graph stays in float32: `convert_onnx` stores its weights as float16, and the device decides the
    # precision of the computation.
    graph = build_graph(
        network,
        sheet,
        normalization=normalization,
        xca_by=_xca_form(sheet, target),
        dtype=torch.float16 if is_half and target != "openvino" else torch.float32,
    )
    if target == "torch-export":
        write_program(graph, path, texts)
        return
    onnx = path.with_name("captured.onnx")
    write_onnx(graph, onnx, texts, opset)
    if batches is not None:
        captured, onnx = onnx, path.with_name("quantized.onnx")
        inputs = [inputs_of(sheet, _denormalized(batch, normalization)) for batch in batches]
        quantize_onnx(captured, onnx, [dict(zip(sheet.input_names, values, strict=True)) for values in inputs])
    if target == "openvino":
        path.mkdir()
        convert_onnx(onnx, path, texts, halves=is_half)
    else:
        check_operators(onnx, target)
        onnx.rename(path)


def _xca_form(sheet: Sheet, target: Target) -> XCAForm:
    """Returns the form of XCA (see `ops.xca_in_graph`) in a graph that accepts every image size."""
    if sheet.kind is DETECTOR:  # the images of detectors are large, so there are many tokens
        return "sums"
    # Only the form "tokens" multiplies tokens by the weights of queries, keys and values; quantisation needs these
    # products. The form "size" is a branch in the graph, and not all tools support branches.
    return "size" if target in ("onnx", "openvino") and sheet.facts.precision != "int8" else "tokens"


def _check_place(place: Path, *, is_folder: bool) -> None:
    """Checks that the output path can be written. This check comes first, because an export can take minutes.

    Raises:
        XCiTError: if the parent folder does not exist, or if the path for OpenVINO exists and is not an empty folder.
    """
    if not place.parent.is_dir():
        raise XCiTError(f"{place}: can't be written: there is no folder {place.parent}")
    if is_folder and place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise XCiTError(f"{place}: already exists: choose another folder, or remove it")


def _denormalized(batch: Tensor, normalization: Normalization | None) -> Tensor:
    """Converts normalised images to the input of the file: undoes the normalization that the graph itself does."""
    if normalization is None:
        return batch
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (normalization.mean, normalization.std))
    return batch * std + mean


def _keep(part: Path, place: Path) -> int:
    """Copies the temporary file or folder to its final path, and returns its size in bytes."""
    if part.is_dir():
        with whole_folder(place) as folder:
            for file in part.iterdir():
                shutil.copy(file, folder / file.name)
        return sum(file.stat().st_size for file in part.iterdir())
    with whole_file(place) as file:
        shutil.copyfile(part, file)
    return part.stat().st_size


def _made_by() -> str:
    return f"xcit {version('xcit')}, torch {torch.__version__}"
