"""Quantises an ONNX file to int8: its weights, and the activations that are multiplied by the weights."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xcit.deploy.graphs import inputs_of
from xcit.deploy.quiet import quiet
from xcit.deploy.sheet import Sheet
from xcit.errors import XCiTError
from xcit.extras import need_packages
from xcit.models.modes import evaluating
from xcit.models.refusals import check_batch
from xcit.zoo.kinds import DETECTOR


def checked_batches(batches: Iterable[Tensor], network: Any, sheet: Sheet) -> list[Tensor]:
    """Returns the batches for calibration, float32 on the CPU. It checks them, because capturing a graph takes minutes.

    An image in which a detector finds no objects is left out: it would say nothing about the head for masks.

    Raises:
        XCiTError: if a batch has the wrong shape, or no batch is left.
    """
    found = []
    for batch in batches:
        check_batch(batch, sheet.channels)
        size = sheet.facts.size
        if sheet.kind is not DETECTOR and size is not None and tuple(batch.shape[2:]) != size:
            raise XCiTError(
                f"an image for calibration has {batch.shape[2]}x{batch.shape[3]} pixels, but the file's size is "
                f"{size[0]}x{size[1]}"
            )
        batch = batch.detach().to("cpu", torch.float32)
        inputs_of(sheet, batch)
        if sheet.kind is DETECTOR:
            from xcit.models.detection.roi_heads import MIN_SCORE

            with torch.no_grad(), evaluating(network):
                if not len(network._search(batch[0], torch.ones(4), MIN_SCORE, padded=size).boxes):
                    continue
        found.append(batch)
    if not found:
        what = ", or the detector finds no objects in them" if sheet.kind is DETECTOR else ""
        raise XCiTError(f"there are no images to calibrate on{what}")
    return found


def quantize_onnx(source: Path, target: Path, inputs: Sequence[Mapping[str, Tensor]]) -> None:
    """Applies static quantisation to the convolutions and matrix products that have weights.

    The weights have one scale per output channel. Products of two activations (in the attention) stay in float32,
    because they are a small part of the computation and the softmax is sensitive to their errors. The weights use only
    7 bits: processors without VNNI add two products of 8-bit numbers in 16 bits, which can overflow with 8-bit weights.

    Args:
        source: an ONNX file in float32.
        target: path of the file to write.
        inputs: batches that determine the ranges of the activations. Each batch is a dict from the name of a graph
            input to its tensor. There is at least one batch.
    """
    need_packages("int8", "onnxruntime", "onnx")
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[Mapping[str, Tensor]] = iter(inputs)

        def get_next(self) -> dict[str, Any] | None:
            values = next(self.left, None)
            return None if values is None else {name: value.numpy() for name, value in values.items()}

    prepared = source.with_name("prepared.onnx")
    with quiet():
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            # The ranges are updated every 8 batches, because all activations since the last update are kept in memory.
            extra_options={"MatMulConstBOnly": True, "CalibMaxIntermediateOutputs": 8},
        )
    model, captured = onnx.load(target), onnx.load(source, load_external_data=False)
    onnx.helper.set_model_props(model, {one.key: one.value for one in captured.metadata_props})
    onnx.save(model, target)
