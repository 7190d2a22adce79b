"""Designs that do not fit are refused, and say why."""

from __future__ import annotations

import numpy as np
import pytest

from lowerkit.cli import _options
from lowerkit.errors import PlanError, UnsupportedError
from lowerkit.targets.fpga.cost import cost
from lowerkit.targets.fpga.dataflow import network
from lowerkit.targets.fpga.design import Design, Layer, Port
from lowerkit.targets.fpga.devices import DEVICES, device
from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.kernels.linear import linear
from lowerkit.targets.fpga.target import FpgaTarget

F = Fixed(16, 6)


def dense(inner: int, columns: int) -> Design:
    """One layer whose weights take all of their 16 bits."""
    weights = np.resize(np.arange(-(2**15), 2**15), (inner, columns))
    kernel, schedule = linear("l0_dense", (1,), weights, F, F, F, reuse=inner * columns // 16)
    values = {"x": Port("x", (1, inner), F), "y": Port("y", (1, columns), F)}
    layer = Layer("l0_dense", "/dense/MatMul", "MatMul", kernel, ("x",), ("y",), schedule)
    return Design("dense", (values["x"],), (values["y"],), values, {}, (layer,))


def test_too_large_for_one_and_not_for_the_other() -> None:
    """2^18 weights of 16 bits are 4 Mbit: more than the 3.66 of an ECP5-85k, less than the 4.92 of an XC7Z020."""
    net = network(dense(512, 512))
    cost(net, device("pynq-z2")).check()
    with pytest.raises(UnsupportedError) as refused:
        cost(net, device("ECP5-85K")).check()
    text = str(refused.value)
    for part in ("l0_dense", "/dense/MatMul", "4.05 Mbit", "3.66 Mbit", "ecp5-85k", "LFE5U-85F", "--device"):
        assert part in text


def test_capacities() -> None:
    """Of the data sheets' tables, which round: 32.1 Mb, 4.9 Mb, 3744 Kb."""
    assert round(DEVICES["zcu102"].memory_bits / 2**20, 1) == 32.1
    assert round(DEVICES["pynq-z2"].memory_bits / 2**20, 1) == 4.9
    assert DEVICES["ecp5-85k"].memory_bits == 3744 * 1024
    assert DEVICES["ecp5-85k"].part is None


def test_options() -> None:
    assert _options(["width=8"], device="zcu102", threads=None) == {"width": 8, "device": "zcu102"}
    with pytest.raises(PlanError, match="Known: zcu102"):
        FpgaTarget().complete(None, [], {"device": "virtex"})  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="axi"):
        FpgaTarget().complete(None, [], {"interface": "usb"})  # type: ignore[arg-type]
