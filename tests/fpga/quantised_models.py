"""Small quantised models for tests: onnxruntime's QDQ, and QONNX built by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

QONNX = "qonnx.custom_op.general"


class Samples(CalibrationDataReader):
    """Calibration samples of one input `x`."""

    def __init__(self, arrays: list[np.ndarray]) -> None:
        self.left: Iterator[np.ndarray] = iter(arrays)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next one, or None."""
        found = next(self.left, None)
        return None if found is None else {"x": found}


def build(
    nodes: list[onnx.NodeProto],
    shape: tuple[int, ...],
    weights: dict[str, np.ndarray],
    *,
    qonnx: bool = False,
    opset: int = 17,
    rank: int = 2,
) -> onnx.ModelProto:
    """A model from `x` of a shape to `y`."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, *(f"n{i}" for i in range(rank - 1))))],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    domains = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(QONNX, 1)] if qonnx else [])
    return helper.make_model(graph, opset_imports=domains, ir_version=8)


def f32(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    """Normal numbers."""
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def quantised(model: onnx.ModelProto, samples: list[np.ndarray], folder: Path, **options: object) -> Path:
    """The file of the model quantised by onnxruntime, QDQ, with weights per channel."""
    plain, path = folder / "plain.onnx", folder / "qdq.onnx"
    onnx.save(model, plain)
    given = {
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
        "per_channel": True,
        **options,
    }
    quantize_static(plain, path, Samples(samples), quant_format=QuantFormat.QDQ, **given)
    return path


def mlp(rng: np.random.Generator) -> onnx.ModelProto:
    """Gemm, Relu, MatMul and Add."""
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], "fc1", transB=1),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "w2"], ["m"], "fc2"),
        helper.make_node("Add", ["m", "b2"], ["y"], "bias"),
    ]
    weights = {
        "w1": f32(rng, 16, 12, scale=0.3),
        "b1": f32(rng, 16),
        "w2": f32(rng, 16, 5, scale=0.3),
        "b2": f32(rng, 5),
    }
    return build(nodes, (1, 12), weights)


def cnn(rng: np.random.Generator) -> onnx.ModelProto:
    """Padded convolutions, a residual, poolings and a softmax."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2", pads=[1, 1, 1, 1], group=2),
        helper.make_node("Add", ["r1", "c2"], ["a"], "residual"),
        helper.make_node("MaxPool", ["a"], ["p"], "max", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node(
            "AveragePool", ["p"], ["v"], "mean", kernel_shape=[2, 2], strides=[2, 2], pads=[1, 1, 0, 0]
        ),
        helper.make_node("Flatten", ["v"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["g"], "fc", transB=1),
        helper.make_node("Softmax", ["g"], ["y"], "softmax"),
    ]
    weights = {
        "w1": f32(rng, 4, 2, 3, 3, scale=0.3), "b1": f32(rng, 4, scale=0.3),
        "w2": f32(rng, 4, 2, 3, 3, scale=0.3), "b2": f32(rng, 4, scale=0.3),
        "w3": f32(rng, 5, 16, scale=0.5), "b3": f32(rng, 5, scale=0.3),
    }  # fmt: skip
    return build(nodes, (1, 2, 8, 8), weights)


def attention(rng: np.random.Generator) -> onnx.ModelProto:
    """A head with a residual, a sigmoid and a mean."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["q"], "query"),
        helper.make_node("Transpose", ["q"], ["k"], "key", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "k"], ["l"], "logits"),
        helper.make_node("Mul", ["l", "factor"], ["m"], "scale"),
        helper.make_node("Softmax", ["m"], ["p"], "softmax"),
        helper.make_node("MatMul", ["p", "q"], ["o"], "head"),
        helper.make_node("Add", ["x", "o"], ["r"], "residual"),
        helper.make_node("Sigmoid", ["r"], ["s"], "sigmoid"),
        helper.make_node("Mul", ["r", "s"], ["y"], "gate"),
    ]
    return build(
        nodes, (1, 6, 8), {"w": f32(rng, 8, 8, scale=0.4), "factor": np.asarray(np.float32(0.35))}, rank=3
    )


def _quant(source: str, target: str, name: str, bits: str, **attributes: object) -> onnx.NodeProto:
    given = {"signed": 1, "narrow": 0, "rounding_mode": "ROUND", **attributes}
    return helper.make_node(
        "Quant", [source, f"{name}.s", "zero", bits], [target], name, domain=QONNX, **given
    )


def qonnx_mlp(rng: np.random.Generator) -> onnx.ModelProto:
    """Weights of 4 bits per column, ternary and binary ones, activations of 4 and 3 bits and of a sign."""
    nodes = [
        _quant("x", "xq", "qx", "b8"),
        _quant("w1", "w1q", "q1", "b4", narrow=1),
        helper.make_node("MatMul", ["xq", "w1q"], ["h1"], "fc1"),
        helper.make_node("Add", ["h1", "bias"], ["h1b"], "bias1"),
        helper.make_node("Relu", ["h1b"], ["r1"], "relu1"),
        _quant("r1", "a1", "qa", "b3", signed=0),
        _quant("w2", "w2q", "q2", "b2", narrow=1),
        helper.make_node("MatMul", ["a1", "w2q"], ["h2"], "fc2"),
        helper.make_node("BipolarQuant", ["h2", "one"], ["a2"], "sign", domain=QONNX),
        helper.make_node("BipolarQuant", ["w3", "q3.s"], ["w3q"], "q3", domain=QONNX),
        helper.make_node("MatMul", ["a2", "w3q"], ["h3"], "fc3"),
        _quant("h3", "y", "qy", "b8"),
    ]
    scalars = {
        "zero": 0.0,
        "b8": 8,
        "b4": 4,
        "b3": 3,
        "b2": 2,
        "one": 1.0,
        "qx.s": 0.03,
        "qa.s": 0.37,
        "q2.s": 0.21,
        "q3.s": 0.11,
        "qy.s": 0.013,
    }
    weights = {name: np.float32(number) for name, number in scalars.items()}
    weights |= {
        "w1": f32(rng, 10, 12, scale=0.5), "bias": f32(rng, 12),
        "q1.s": (0.05 + rng.random((1, 12)) / 10).astype(np.float32),
        "w2": f32(rng, 12, 9, scale=0.2), "w3": f32(rng, 9, 4),
    }  # fmt: skip
    return build(nodes, (1, 10), {n: np.asarray(a) for n, a in weights.items()}, qonnx=True)
