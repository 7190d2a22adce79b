"""Small networks of layers, from x to y."""

from __future__ import annotations

import numpy as np

from lowerkit.targets.fpga.design import Design, Layer, Port
from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.kernels import layout
from lowerkit.targets.fpga.kernels.elementwise import add, relu
from lowerkit.targets.fpga.kernels.linear import linear
from lowerkit.targets.fpga.kernels.schedule import Built

BYTE = Fixed.parse("ap_fixed<8,4>")
SQUARE = np.random.default_rng(1).integers(-9, 9, (8, 8))


def chained(*layers: tuple[Built, tuple[str, ...], str]) -> Design:
    """Layers with the values that they read and write, from x to y, all of one format."""
    values: dict[str, Port] = {}
    made = []
    for (kernel, schedule), reads, write in layers:
        for array, value in zip((*kernel.inputs, *kernel.outputs), (*reads, write), strict=True):
            values.setdefault(value, Port(value, array.shape, BYTE))
        made.append(Layer(kernel.name, f"node {write}", "Any", kernel, reads, (write,), schedule))
    return Design("net", (values["x"],), (values["y"],), values, {}, tuple(made))


NETWORKS = {
    # Beats of 1, 6 and 4 codes.
    "chain": chained(
        (linear("a", (3,), np.resize(SQUARE, (6, 4)), BYTE, BYTE, BYTE), ("x",), "h"),
        (relu("r", (3, 4), BYTE, BYTE), ("h",), "g"),
        (linear("b", (3,), np.resize(SQUARE, (4, 5)), BYTE, BYTE, BYTE, reuse=5), ("g",), "y"),
    ),
    # Paths that meet again, one of them through two buffers.
    "skip": chained(
        (relu("r", (2, 8), BYTE, BYTE), ("x",), "a"),
        (linear("l", (2,), SQUARE, BYTE, BYTE, BYTE, reuse=64), ("a",), "b"),
        (layout.transpose("t", (2, 8), (1, 0), BYTE), ("b",), "c"),
        (layout.transpose("u", (8, 2), (1, 0), BYTE), ("c",), "d"),
        (add("s", (2, 8), (2, 8), BYTE, BYTE, BYTE), ("d", "a"), "y"),
    ),
    # A value with three readers, and a skip within a skip, as the input is read late again, and a name that
    # simulators write otherwise.
    "nested": chained(
        (linear("l", (16,), SQUARE, BYTE, BYTE, BYTE, reuse=8), ("x",), "b"),
        (add("n", (16, 8), (16, 8), BYTE, BYTE, BYTE), ("b", "x"), "a__0"),
        (layout.transpose("t", (16, 8), (1, 0), BYTE), ("a__0",), "c"),
        (layout.transpose("u", (8, 16), (1, 0), BYTE), ("c",), "d"),
        (add("s", (16, 8), (16, 8), BYTE, BYTE, BYTE), ("d", "a__0"), "e"),
        (add("z", (16, 8), (16, 8), BYTE, BYTE, BYTE), ("e", "x"), "y"),
    ),
}
