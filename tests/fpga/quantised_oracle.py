"""The meaning of quantised graphs in exact arithmetic, node by node: rationals where sums are rounded."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from lowerkit.graph.fusions.algebra import constant
from lowerkit.graph.qonnx import DOMAIN

_LIMITS = {ir.DataType.INT8: (-128, 127), ir.DataType.UINT8: (0, 255), ir.DataType.INT16: (-32768, 32767)}


def rational(array: np.ndarray) -> np.ndarray:
    """Every number as a fraction."""
    flat = np.empty(array.size, object)
    flat[:] = [Fraction(float(number)) for number in np.ravel(array)]
    return flat.reshape(array.shape)


def run(model: ir.Model, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every value of the graph for one sample: fractions, but float64 after softmax; integers of QuantizeLinear."""
    values: dict[str, np.ndarray] = {name: rational(array) for name, array in inputs.items()}

    def get(node: ir.Node, index: int) -> np.ndarray:
        value = node.inputs[index]
        assert value is not None
        plain = constant(value)
        return rational(plain) if plain is not None else values[value.name or ""]

    for node in model.graph:
        values[node.outputs[0].name or ""] = _node(node, get)
    return values


def _round(array: np.ndarray) -> np.ndarray:
    return np.vectorize(lambda number: round(Fraction(number)), otypes=[object])(array)


def _along(array: np.ndarray, rank: int, axis: int) -> np.ndarray:
    return (
        array.reshape([-1 if a == axis % rank else 1 for a in range(rank)])
        if array.size > 1
        else array.reshape(())
    )


def _node(node: ir.Node, get) -> np.ndarray:  # type: ignore[no-untyped-def]
    a = get(node, 0)
    ints = node.attributes.get_ints
    if node.domain == DOMAIN:
        return _qonnx(node, get)
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        axis = node.attributes.get_int("axis", 1)
        scale, zero = (_along(get(node, i), a.ndim, axis) for i in (1, 2))
        if node.op_type == "DequantizeLinear":
            return (a - zero) * scale
        low, high = _LIMITS[node.outputs[0].dtype]
        return np.clip(_round(a / scale) + zero, low, high)
    if node.op_type == "Gemm":
        w = get(node, 1)
        return a @ (w.T if node.attributes.get_int("transB", 0) else w) + get(node, 2)
    if node.op_type == "MatMul":
        return a @ get(node, 1)
    if node.op_type in ("Add", "Mul"):
        return a + get(node, 1) if node.op_type == "Add" else a * get(node, 1)
    if node.op_type == "Relu":
        return np.maximum(a, Fraction(0))
    if node.op_type == "Flatten":
        return a.reshape(a.shape[0], -1)
    if node.op_type == "Transpose":
        return a.transpose(node.attributes.get_ints("perm", ()))
    if node.op_type == "Sigmoid":
        return 1 / (1 + np.exp(-a.astype(np.float64)))
    if node.op_type == "Softmax":
        e = np.exp(a.astype(np.float64) - a.astype(np.float64).max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)
    if node.op_type in ("Conv", "MaxPool", "AveragePool"):
        return _windows(node, a, get, ints("pads", (0, 0, 0, 0)), ints("strides", (1, 1)))
    raise NotImplementedError(node.op_type)


def _windows(node: ir.Node, a: np.ndarray, get, pads, strides) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Of one image; the border is None."""
    channels, height, width = a.shape[1:]
    padded = np.full((channels, height + pads[0] + pads[2], width + pads[1] + pads[3]), None, object)
    padded[:, pads[0] : pads[0] + height, pads[1] : pads[1] + width] = a[0]
    conv = node.op_type == "Conv"
    w = get(node, 1) if conv else None
    kh, kw = w.shape[2:] if conv else node.attributes.get_ints("kernel_shape", ())
    outputs, groups = (len(w), node.attributes.get_int("group", 1)) if conv else (channels, channels)
    rows, columns = ((n - k) // s + 1 for n, k, s in zip(padded.shape[1:], (kh, kw), strides, strict=True))
    y = np.empty((1, outputs, rows, columns), object)
    for o, r, c in np.ndindex(outputs, rows, columns):
        first, each = o * groups // outputs * (channels // groups), channels // groups
        part = padded[first : first + each, r * strides[0] :, c * strides[1] :][:, :kh, :kw]
        inside = [n for n in part.ravel() if n is not None]
        if conv:
            terms = [n * f for n, f in zip(part.ravel(), w[o].ravel(), strict=True) if n is not None]
            y[0, o, r, c] = sum(terms) + get(node, 2)[o]
        else:
            y[0, o, r, c] = max(inside) if node.op_type == "MaxPool" else sum(inside) / Fraction(len(inside))
    return y


def _qonnx(node: ir.Node, get) -> np.ndarray:  # type: ignore[no-untyped-def]
    x, scale = get(node, 0), get(node, 1)
    if node.op_type == "BipolarQuant":
        return np.where(x >= 0, Fraction(1), Fraction(-1)) * scale
    zero, bits = get(node, 2), int(get(node, 3).item())
    signed, narrow = (
        node.attributes.get_int(name, default) for name, default in (("signed", 1), ("narrow", 0))
    )
    low, high = (narrow - 2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1 - narrow)
    return (_round(np.clip(x / scale + zero, low, high)) - zero) * scale
