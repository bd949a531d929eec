"""Quantises the weights of an ONNX file, and the activations that they are multiplied with, to int8."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from xcit.deploy.quiet import quiet
from xcit.errors import XCiTError
from xcit.extras import need_packages


def quantize_onnx(source: Path, target: Path, inputs: Sequence[Mapping[str, Tensor]]) -> None:
    """Quantises convolutions and matrix products with weights, statically, with one scale per channel of the weights.

    The matrix products of two activations (in the attention) stay in float32: they are few, and the softmax is sharp.
    The weights have 7 bits, because processors without VNNI add pairs of products of unsigned and signed bytes in 16
    bits, which would overflow with 8 bits.

    Args:
        source: an ONNX file in float32.
        target: path of the file to write.
        inputs: inputs of the graph by name; they determine the ranges of the activations.

    Raises:
        XCiTError: if there are no images.
    """
    if not inputs:
        raise XCiTError("there are no images to calibrate on")
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
            # The ranges are updated every few images, because all activations are kept in memory until then.
            extra_options={"MatMulConstBOnly": True, "CalibMaxIntermediateOutputs": 8},
        )
    model, captured = onnx.load(target), onnx.load(source, load_external_data=False)
    onnx.helper.set_model_props(model, {one.key: one.value for one in captured.metadata_props})
    onnx.save(model, target)
