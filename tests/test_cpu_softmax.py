"""Softmax along rows of every length that the cpu target treats differently, against float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from lowerkit.graph.load import load_model
from lowerkit.numerics.rows import softmax_rows
from lowerkit.targets.cpu.target import CpuTarget

#: Of any element, beside float64 and beside the rounding of differences of logits, which are exponents: half a unit
#: in the last place, and what is below 32 counts as that.
LIMIT = 2e-6
#: Below this, elements are subnormal, or not written at all.
LEAST = 2.0**-126


def softmax(x: np.ndarray, directory: Path, threads: int = 2) -> np.ndarray:
    """What the target computes of `x` along its last axis."""
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, x.shape) for name in "xy"]
    node = onnx.helper.make_node("Softmax", ["x"], ["y"])
    opset = onnx.helper.make_opsetid("", 20)
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9), directory / "f.onnx")
    target = CpuTarget()
    target.emit(load_model(directory / "f.onnx"), {}, directory)
    return np.asarray(target.open(directory, {"threads": threads})({"x": x})["y"])


def check(got: np.ndarray, x: np.ndarray) -> None:
    """Relative errors of what is a number, and NaN where float64 has it."""
    with np.errstate(invalid="ignore", over="ignore"):
        exact = softmax_rows(x)
        rounding = np.spacing(np.clip(x.max(axis=-1, keepdims=True) - x, 31, 128)) / 2
    np.testing.assert_array_equal(np.isnan(got), np.isnan(exact))
    number = ~np.isnan(exact)
    error = np.abs(got[number] - exact[number])
    np.testing.assert_array_less(error, (LIMIT + rounding[number]) * exact[number] + LEAST)


def ugly(rows: np.ndarray) -> np.ndarray:
    """`rows`, of which the first 11 get what is hard for sums that are relative to a guess."""
    x, width = rows.copy(), rows.shape[1]
    x[0, : width // 2] -= 200  # the guess is far below, and the larger ones are in later blocks
    x[1, -1] = 1e4
    x[2, width // 3] = 3e38
    x[3, :-1] = -np.inf
    x[4] = -np.inf
    x[5] = np.finfo(np.float32).min
    x[6, width // 2] = np.inf
    x[7, -1] = np.nan
    x[8, 0] = np.nan
    x[9] = np.linspace(-300, 300, width)
    x[10, : width - width // 4] = -np.inf
    return x


#: In one register, in cache, in blocks, in parts of blocks, and of none a multiple.
@pytest.mark.parametrize("width", [1, 7, 8, 9, 47, 48, 49, 1024, 4096, 4099, 65536, 65537, 69632, 200003])
def test_rows_of_any_length(width: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(width)
    x = rng.normal(0, 4, (13, width)).astype(np.float32)
    x = ugly(x) if width > 2 else x
    check(softmax(x, tmp_path), x)


@pytest.mark.parametrize("width", [64, 4096, 8192, 65536, 131072 + 4096 + 8])
def test_results_larger_than_the_caches(width: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(width)
    x = ugly(rng.normal(0, 4, (max(11, -(-(1 << 22) // width)), width)).astype(np.float32))
    check(softmax(x, tmp_path), x)


@pytest.mark.parametrize("width", [8192, 200003])
def test_threads_do_not_change_a_bit(width: int, tmp_path: Path) -> None:
    x = ugly(np.random.default_rng(0).normal(0, 30, (11, width)).astype(np.float32))
    (tmp_path / "1").mkdir(), (tmp_path / "2").mkdir()
    one, two = (softmax(x, tmp_path / str(n), threads=n) for n in (1, 2))
    np.testing.assert_array_equal(one, two)
