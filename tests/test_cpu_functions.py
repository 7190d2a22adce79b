"""Vectorised exp, erf, tanh, sigmoid and log of the cpu target, against float64 over the range of float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from lowerkit.graph.load import load_model
from lowerkit.targets.cpu.target import CpuTarget

#: Function -> itself in float64, and its largest error in units in the last place.
FUNCTIONS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "Erf": (np.vectorize(math.erf, otypes=[np.float64]), 4),
    "Exp": (np.exp, 2),
    "Log": (np.log, 2),
    "Sigmoid": (lambda x: np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x))), 3),
    "Tanh": (np.tanh, 3),
}
SPECIAL = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1e-38, -1e-38, 3.4e38, -3.4e38, 1, -1])


def everywhere(step: int) -> np.ndarray:
    """Float32 of all bit patterns in steps, in both signs."""
    bits = np.arange(0, 0x7F800000, step, dtype=np.int64).astype(np.uint32).view(np.float32)
    return np.concatenate([SPECIAL.astype(np.float32), bits, -bits])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_over_the_range_of_float32(name: str, tmp_path: Path) -> None:
    exact, units = FUNCTIONS[name]
    x = everywhere(30011)
    values = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, x.shape) for n in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node(name, ["x"], ["y"])], "g", values[:1], values[1:])
    opset = onnx.helper.make_opsetid("", 20)
    path = tmp_path / "f.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9), path)
    target = CpuTarget()
    target.emit(load_model(path), {}, tmp_path)
    got = target.open(tmp_path, {"threads": 1})({"x": x})["y"]
    with np.errstate(all="ignore"):
        expected = exact(x.astype(np.float64))
        nearest = expected.astype(np.float32)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(nearest))
        np.testing.assert_array_equal(np.isinf(got), np.isinf(nearest))
        finite = np.isfinite(nearest)
        unit = np.spacing(np.abs(nearest[finite])).astype(np.float64)
        error = np.abs(got[finite] - expected[finite]) / unit
    assert error.max() <= units, (x[finite][error.argmax()], error.max())
    zeros = got[:2]
    if name in ("Erf", "Tanh"):
        np.testing.assert_array_equal(np.signbit(zeros), [False, True])


@pytest.mark.parametrize("width", [8, 47, 48])
def test_rows_are_looked_up_whole(width: int, tmp_path: Path) -> None:
    """Indices count from the end too; one out of range gives NaN."""
    table = np.random.default_rng(0).standard_normal((9, width)).astype(np.float32)
    i = np.array([[0, 8, -1, -9], [9, -10, 2**40, 3]], np.int64)
    inputs = [onnx.helper.make_tensor_value_info("i", onnx.TensorProto.INT64, i.shape)]
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (*i.shape, width))
    node = onnx.helper.make_node("Gather", ["table", "i"], ["y"])
    constants = [onnx.numpy_helper.from_array(table, "table")]
    graph = onnx.helper.make_graph([node], "g", inputs, [output], constants)
    opset = onnx.helper.make_opsetid("", 20)
    path = tmp_path / "g.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9), path)
    target = CpuTarget()
    target.emit(load_model(path), {}, tmp_path)
    got = target.open(tmp_path, {"threads": 1})({"i": i})["y"]
    np.testing.assert_array_equal(got[0], table[[0, 8, 8, 0]])
    assert np.isnan(got[1, :3]).all()
    np.testing.assert_array_equal(got[1, 3], table[3])


@pytest.mark.parametrize("name", ["Max", "Min"])
def test_a_nan_is_neither_the_largest_nor_lost(name: str, tmp_path: Path) -> None:
    a = np.array([1, np.nan, 2, np.nan, -np.inf], np.float32)
    b = np.array([np.nan, 1, 3, np.nan, np.inf], np.float32)
    values = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, a.shape) for n in "aby"]
    constants = [onnx.numpy_helper.from_array(np.float32(2.5), "c")]
    node = onnx.helper.make_node(name, ["a", "c", "b"], ["y"])
    graph = onnx.helper.make_graph([node], "g", values[:2], values[2:], constants)
    path = tmp_path / "m.onnx"
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9), path
    )
    target = CpuTarget()
    target.emit(load_model(path), {}, tmp_path)
    got = target.open(tmp_path, {"threads": 1})({"a": a, "b": b})["y"]
    choose = np.maximum if name == "Max" else np.minimum
    np.testing.assert_array_equal(got, choose(choose(a, np.float32(2.5)), b))
