"""Max-pooling replaced by average pooling, for arithmetic without comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from lowerkit.passes.activation.bodies import Body
from lowerkit.passes.base import Contract, Method


@dataclass(frozen=True)
class AverageForMaxPool(Method):
    """The mean of each window in place of its maximum; what is padded counts in neither.

    Another function: for a window of n numbers the mean is at most the maximum, and at least the maximum less
    (n - 1)/n of the window's spread, so that both agree where the input hardly changes within a window. Networks
    trained with it lose little; without training the layers behind see smaller numbers, and accuracy is lost.
    The mean is linear: it costs no comparison, and merges into a convolution that follows.

    NaN gives NaN in its windows; infinities stay, and both signs in one window give NaN.
    """

    family: ClassVar[str] = "pool"
    name: ClassVar[str] = "average"
    contract: ClassVar[Contract] = Contract.REPLACE
    source: ClassVar[str] = (
        "Gilad-Bachrach et al., CryptoNets (ICML 2016), section 3.2: scaled mean-pool in place of max-pool"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "one addition per element of a window",
        "gpu": "one addition per element of a window",
        "fpga": "one adder in the comparator's place, and one product per window",
        "he": "rotations and additions alone; no level of its own where a linear layer follows",
    }
    functions: ClassVar[Mapping[str, Body]] = {
        "MaxPool": Body(
            "AverageForMaxPool",
            ("X",),
            "kernel_shape, strides, pads, dilations, ceil_mode",
            "Y = AveragePool <kernel_shape: ints = @kernel_shape, strides: ints = @strides, pads: ints = @pads, "
            "dilations: ints = @dilations, ceil_mode: int = @ceil_mode> (X)",
        )
    }

    def bound(self) -> None:
        """None: another function."""

    def refuses(self, node: ir.Node) -> str | None:
        """Padding that is not spelled out."""
        auto = node.attributes.get_string("auto_pad", "NOTSET")
        return None if auto in ("NOTSET", "VALID") else f"needs explicit pads, not auto_pad = {auto}"

    def attributes(self, node: ir.Node) -> dict[str, Any]:
        """The node's own, its defaults spelled out."""
        kernel = list(node.attributes.get_ints("kernel_shape", ()))
        axes = len(kernel)
        return {
            "kernel_shape": kernel,
            "strides": list(node.attributes.get_ints("strides", [1] * axes)),
            "pads": list(node.attributes.get_ints("pads", [0] * 2 * axes)),
            "dilations": list(node.attributes.get_ints("dilations", [1] * axes)),
            "ceil_mode": node.attributes.get_int("ceil_mode", 0),
        }

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`: x is [batch, channels, *axes]; without `ceil_mode`."""
        kernel: Sequence[int] = attributes["kernel_shape"]
        axes = len(kernel)
        strides = attributes.get("strides", [1] * axes)
        pads, dilations = attributes.get("pads", [0] * 2 * axes), attributes.get("dilations", [1] * axes)
        around = [(0, 0), (0, 0), *zip(pads[:axes], pads[axes:], strict=True)]
        numbers = np.pad(np.asarray(x, np.float64), around)
        counted = np.pad(np.ones(np.shape(x)), around)
        spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        within = tuple(range(2, 2 + axes))

        def sums(a: np.ndarray) -> np.ndarray:
            windows = np.lib.stride_tricks.sliding_window_view(a, spans, within)
            steps = [slice(None, None, s) for s in (*strides, *dilations)]
            found: np.ndarray = windows[(slice(None), slice(None), *steps)].sum(axis=tuple(range(-axes, 0)))
            return found

        result: np.ndarray = sums(numbers) / sums(counted)
        return result
