"""Checks that TensorRT or onnxruntime-web supports the operators of an ONNX file, without running either of them."""

from pathlib import Path

from xcit.errors import XCiTError

_TENSORRT = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast CastLike Ceil Celu
Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DeformConv DepthToSpace DequantizeLinear Div
Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gelu Gemm
GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization GRU HardSigmoid
HardSwish Hardmax Identity If ImageScaler InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less
LessOrEqual Log LogSoftmax Loop LRN LSTM LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization
Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or Pad ParametricSoftplus Pow PRelu QuantizeLinear
RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum
ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
ReverseSequence RNN RoiAlign Round ScaledTanh Scan Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign
Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile
TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""

TENSORRT = frozenset(_TENSORRT.split())
"""The operators that TensorRT 10.0's parser supports, according to docs/operators.md of onnx-tensorrt."""


def operators_of(path: Path) -> frozenset[str]:
    """Returns the operators of an ONNX file, including the operators in branches and functions.

    An operator of a domain other than ONNX's own is returned as "domain.name".
    """
    import onnx
    from onnx.inliner import inline_local_functions

    found = set()

    def visit(graph: "onnx.GraphProto") -> None:
        for node in graph.node:
            found.add(f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type)
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    visit(attribute.g)

    visit(inline_local_functions(onnx.load(path, load_external_data=False)).graph)
    return frozenset(found)


def check_operators(path: Path, target: str) -> None:
    """Checks that the target supports every operator of an ONNX file.

    TensorRT supports the operators in `TENSORRT`. The WebAssembly build of onnxruntime-web supports every operator of
    ONNX's own domain, with the same kernels as on a CPU. Other targets are not checked.

    Raises:
        XCiTError: if the target does not support an operator; the message contains the names of such operators.
    """
    operators = operators_of(path)
    if target == "tensorrt":
        unknown = {*operators} - TENSORRT
    elif target == "web":
        unknown = {name for name in operators if "." in name}
    else:
        return
    if unknown:
        raise XCiTError(f"{target} does not support {', '.join(sorted(unknown))}, which the graph needs")
