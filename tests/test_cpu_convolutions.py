"""Convolutions with channels last: every shape of window, and what lies between convolutions, against float64."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from tvm import relax

from lowerkit.reference import Reference
from lowerkit.targets.cpu.importer import import_model
from lowerkit.targets.cpu.kernels import CONVERTERS
from lowerkit.targets.cpu.kernels.conv import Window, pack, registers, tile
from lowerkit.targets.cpu.layout import ChannelsLast
from lowerkit.targets.cpu.target import CpuTarget


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def convolved(x: np.ndarray, w: np.ndarray, a: dict[str, Any]) -> np.ndarray:
    """Conv in float64, tap by tap."""
    group, (sh, sw), (dh, dw) = a.get("group", 1), a.get("strides", (1, 1)), a.get("dilations", (1, 1))
    top, left, bottom, right = a.get("pads", (0, 0, 0, 0))
    x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    (n, _, h, width), (o, depth, kh, kw) = x.shape, w.shape
    oh, ow = (h - (kh - 1) * dh - 1) // sh + 1, (width - (kw - 1) * dw - 1) // sw + 1
    y = np.zeros((n, group, o // group, oh, ow))
    by_group = w.astype(np.float64).reshape(group, o // group, depth, kh, kw)
    for r, s in itertools.product(range(kh), range(kw)):
        seen = x[:, :, r * dh :, s * dw :][:, :, : (oh - 1) * sh + 1 : sh, : (ow - 1) * sw + 1 : sw]
        y += np.einsum("ngchw,goc->ngohw", seen.reshape(n, group, depth, oh, ow), by_group[..., r, s])
    return y.reshape(n, o, oh, ow)


def spread(x: np.ndarray, w: np.ndarray, a: dict[str, Any]) -> np.ndarray:
    """ConvTranspose of one group in float64, tap by tap."""
    (sh, sw), (dh, dw) = a.get("strides", (1, 1)), a.get("dilations", (1, 1))
    (top, left, bottom, right), (eh, ew) = a.get("pads", (0, 0, 0, 0)), a.get("output_padding", (0, 0))
    (n, _, h, width), (_, o, kh, kw) = x.shape, w.shape
    size = (h - 1) * sh + (kh - 1) * dh + 1 + eh, (width - 1) * sw + (kw - 1) * dw + 1 + ew
    y = np.zeros((n, o, *size))
    for r, s in itertools.product(range(kh), range(kw)):
        part = np.einsum("nchw,co->nohw", x.astype(np.float64), w[..., r, s])
        y[:, :, r * dh :, s * dw :][:, :, : (h - 1) * sh + 1 : sh, : (width - 1) * sw + 1 : sw] += part
    return y[:, :, top : size[0] - bottom, left : size[1] - right]


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, np.ndarray],
    outputs: Sequence[str],
    constants: dict[str, np.ndarray],
) -> ir.Model:
    """A checked model of `nodes`, all of float32."""
    declared = [helper.make_tensor_value_info(k, onnx.TensorProto.FLOAT, v.shape) for k, v in inputs.items()]
    results = [helper.make_tensor_value_info(k, onnx.TensorProto.FLOAT, None) for k in outputs]
    weights = [numpy_helper.from_array(v, k) for k, v in constants.items()]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", declared, results, weights),
        opset_imports=[helper.make_opsetid("", 23)],
        ir_version=10,
    )
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto, check_type=True))


def run(model: ir.Model, inputs: dict[str, np.ndarray], directory: Path) -> dict[str, np.ndarray]:
    target = CpuTarget()
    target.emit(model, {}, directory)
    return target.open(directory, {"threads": 2})(inputs)


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "one pixel, one channel": ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    "1x1, prime sizes": ((1, 17, 7, 13), (49, 17, 1, 1), {}),
    "1x1, whole tiles": ((2, 16, 3, 12), (48, 16, 1, 1), {}),
    "1x1, one column": ((1, 9, 47, 1), (7, 9, 1, 1), {}),
    "1x1 of one pixel": ((1, 48, 1, 1), (100, 48, 1, 1), {}),
    "1x1, stride 3": ((1, 8, 10, 11), (24, 8, 1, 1), {"strides": [3, 3]}),
    "1x1, odd vectors": ((1, 8, 4, 9), (88, 8, 1, 1), {}),
    "3x3 of 3 channels, stride 2": ((1, 3, 17, 23), (16, 3, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "3x3 of 3 channels, bare": ((1, 3, 8, 9), (17, 3, 3, 3), {}),
    "3x3, uneven padding": ((1, 8, 9, 13), (17, 8, 3, 3), {"pads": [0, 1, 2, 3]}),
    "3x3, dilated": ((1, 7, 15, 16), (9, 7, 3, 3), {"dilations": [2, 2], "pads": [2, 0, 2, 0]}),
    "1x7": ((1, 12, 3, 20), (8, 12, 1, 7), {"pads": [0, 3, 0, 3]}),
    "7x2, stride 3 by 1": ((1, 4, 20, 5), (3, 4, 7, 2), {"strides": [3, 1], "pads": [3, 0, 3, 1]}),
    "larger than its input": ((1, 4, 2, 2), (16, 4, 3, 3), {"pads": [1, 1, 1, 1]}),
    "5x5 by channel, stride 2 by 1": (
        (1, 24, 7, 19), (24, 1, 5, 5), {"group": 24, "strides": [2, 1], "pads": [2, 2, 2, 2]}
    ),
    "3x3 by channel, one channel": ((1, 1, 9, 8), (1, 1, 3, 3), {"pads": [1, 1, 1, 1]}),
    "3x3 by channel, 49 channels": ((2, 49, 5, 7), (49, 1, 3, 3), {"group": 49, "strides": [3, 2]}),
    "7x3 by channel, 60 channels, dilated": (
        (1, 60, 15, 9), (60, 1, 7, 3), {"group": 60, "dilations": [2, 2], "pads": [1, 2, 0, 3]}
    ),
    "two by channel": ((1, 6, 5, 5), (12, 1, 3, 3), {"group": 6}),
    "grouped": ((1, 8, 6, 6), (12, 4, 3, 3), {"group": 2}),
}  # fmt: skip
TRANSPOSED: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "4x4, stride 2": ((1, 16, 5, 7), (16, 24, 4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "3x3, stride 2, odd size": ((1, 7, 4, 6), (7, 17, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "3x3, stride 2, output padding": (
        (1, 9, 4, 6), (9, 8, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}
    ),
    "2x2, stride 3": ((2, 5, 3, 4), (5, 3, 2, 2), {"strides": [3, 3]}),
    "5x2, stride 3 by 1, uneven": ((1, 6, 4, 5), (6, 49, 5, 2), {"strides": [3, 1], "pads": [4, 0, 1, 1]}),
    "3x3, stride 1": ((1, 8, 5, 5), (8, 16, 3, 3), {"pads": [2, 2, 2, 2]}),
    "dilated": ((1, 4, 5, 5), (4, 8, 3, 3), {"dilations": [2, 2]}),
}  # fmt: skip


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_convolutions_of_every_shape(operator: str, tmp_path: Path) -> None:
    # One graph of all of them, for the compiler takes longer to start than to compile a convolution.
    cases = CONVOLUTIONS if operator == "Conv" else TRANSPOSED
    nodes, inputs, constants, wanted = [], {}, {}, {}
    for k, (shape, kernel, attributes) in enumerate(cases.values()):
        channels = kernel[0] if operator == "Conv" else kernel[1]
        x, w, b = (
            normal(*shape, seed=3 * k),
            normal(*kernel, seed=3 * k + 1),
            normal(channels, seed=3 * k + 2),
        )
        inputs[f"x{k}"], constants[f"w{k}"], constants[f"b{k}"] = x, w, b
        nodes.append(helper.make_node(operator, [f"x{k}", f"w{k}", f"b{k}"], [f"c{k}"], **attributes))
        nodes.append(helper.make_node("HardSwish", [f"c{k}"], [f"y{k}"]))
        linear = (convolved if operator == "Conv" else spread)(x, w, attributes) + b[:, None, None]
        wanted[f"y{k}"] = linear * np.clip(linear / 6 + 0.5, 0, 1)
    found = run(graph(nodes, inputs, list(wanted), constants), inputs, tmp_path)
    for k, name in enumerate(cases):
        np.testing.assert_allclose(found[f"y{k}"], wanted[f"y{k}"], rtol=1e-4, atol=1e-4, err_msg=name)


def chain(channels: int) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """Nodes from `x` [1, 3, 16, 12] on: everything that may lie between convolutions, most of it twice used."""
    make = helper.make_node
    squeezed = channels // 2
    nodes = [
        make("Conv", ["x", "w0", "b0"], ["a"], pads=[1, 1, 1, 1], strides=[2, 1]),
        make("HardSwish", ["a"], ["h"]),
        make("Conv", ["h", "w1"], ["d"], group=channels, pads=[2, 2, 2, 2]),
        make("Add", ["h", "d"], ["residual"]),
        make("GlobalAveragePool", ["residual"], ["mean"]),
        make("Conv", ["mean", "w2"], ["s0"]),
        make("Relu", ["s0"], ["s1"]),
        make("Conv", ["s1", "w3"], ["s2"]),
        make("HardSigmoid", ["s2"], ["s3"]),
        make("Mul", ["s3", "residual"], ["scaled"]),
        make("Mul", ["factor", "scaled"], ["scaled1"]),
        make("Sub", ["shift", "scaled1"], ["shifted"]),
        make("MaxPool", ["shifted"], ["p0"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        make("AveragePool", ["shifted"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        make("Concat", ["p0", "p1"], ["joined"], axis=1),
        make("Slice", ["joined", "starts", "ends", "axes"], ["part"]),
        make("Resize", ["part", "", "", "sizes"], ["larger"], mode="linear"),
        make("ReduceMax", ["larger", "width"], ["rows"], keepdims=1),
        make("Sub", ["larger", "rows"], ["centred"]),
        make("Softmax", ["centred"], ["soft"], axis=3),
        make("Mul", ["soft", "centred"], ["weighted"]),
        make("Flatten", ["weighted"], ["flat"], axis=2),
        make("Reshape", ["weighted", "tokens"], ["sequence"]),
        make("Transpose", ["sequence"], ["last"], perm=[0, 2, 1]),
        make("ReduceSum", ["last", "one"], ["total"], keepdims=0),
    ]
    constants = {
        "w0": normal(channels, 3, 3, 3, seed=1),
        "b0": normal(channels, seed=2),
        "w1": normal(channels, 1, 5, 5, seed=3),
        "w2": normal(squeezed, channels, 1, 1, seed=4),
        "w3": normal(channels, squeezed, 1, 1, seed=5),
        "factor": np.array([0.7], np.float32),
        "shift": normal(channels, 1, 1, seed=6),
        "starts": np.array([1, 1]),
        "ends": np.array([4, 2 * channels]),
        "axes": np.array([2, 1]),
        "sizes": np.array([1, 2 * channels - 1, 6, 9]),
        "width": np.array([3]),
        "one": np.array([1]),
        "tokens": np.array([1, 2 * channels - 1, 54]),
    }
    return nodes, constants


def test_what_lies_between_convolutions(tmp_path: Path) -> None:
    nodes, constants = chain(7)
    x = {"x": normal(1, 3, 16, 12)}
    # Values within the chain are outputs too: both orders of them exist then.
    outputs = ["total", "flat", "residual", "joined", "last"]
    wanted = Reference(graph(nodes, x, outputs, constants))(x)
    found = run(graph(nodes, x, outputs, constants), x, tmp_path)
    for name in outputs:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_axes_move_at_the_ends_of_a_chain_alone() -> None:
    nodes, constants = chain(16)
    upto = next(k for k, node in enumerate(nodes) if node.op_type == "Softmax")
    model = graph(nodes[:upto], {"x": normal(1, 3, 16, 12)}, ["centred"], constants)
    module = relax.transform.DeadCodeElimination()(ChannelsLast("x86-64-v3")(import_model(model, CONVERTERS)))
    calls = [b.value for block in module["main"].body.blocks for b in block.bindings]
    moves = [
        c for c in calls if isinstance(c, tvm.ir.Call) and getattr(c.op, "name", "") == "relax.permute_dims"
    ]
    # The first convolution reads its input as it is; the output is asked for in the original order.
    assert len(moves) == 1
    assert [int(dim) for dim in module["main"].ret_ty.shape] == [1, 31, 6, 9]


@given(width=st.integers(1, 300), channels=st.integers(1, 700), lanes=st.sampled_from([4, 8, 16]))
def test_tiles_fit_the_registers(width: int, channels: int, lanes: int) -> None:
    pixels, vectors = tile(width, channels, registers(lanes), lanes)
    assert 1 <= pixels <= width
    # Accumulators, a vector of weights for each of a pixel's, and one broadcast input.
    assert pixels * vectors + vectors + 1 <= registers(lanes)
    assert (vectors - 1) * lanes < channels


@given(
    channels=st.integers(1, 40),
    depth=st.integers(1, 5),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    more=st.integers(0, 3),
)
def test_panels_hold_every_weight_once(channels: int, depth: int, kernel: tuple[int, int], more: int) -> None:
    weight = normal(channels, depth, *kernel)
    filled = 8 * (-(-channels // 8) + more)
    panels = pack(weight, filled, 8)
    assert panels.shape == (filled // 8, *kernel, depth, 8)
    for o in range(filled):
        tap = panels[o // 8, :, :, :, o % 8].transpose(2, 0, 1)
        np.testing.assert_array_equal(tap, weight[o] if o < channels else np.zeros_like(tap))


@given(
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(*[st.integers(0, 3)] * 4),
)
def test_size_of_a_result(
    size: tuple[int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    padding: tuple[int, int, int, int],
) -> None:
    window = Window(kernel, strides, (1, 1), padding)
    ends = [
        len(range(0, extent + before + after - taps + 1, stride))
        for extent, taps, stride, before, after in zip(
            size, kernel, strides, padding[:2], padding[2:], strict=True
        )
    ]
    if min(ends) > 0:
        assert window.output(*size) == tuple(ends)
