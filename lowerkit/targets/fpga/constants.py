"""Constants of a graph as numbers, and as the codes and scales that quantised graphs store them in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lowerkit.errors import UnsupportedError
from lowerkit.graph import qonnx
from lowerkit.graph.domain import describe_node
from lowerkit.graph.fusions.algebra import constant

#: Products of such codes and a float32 scale are exact in float64.
EXACT = 1 << 29


@dataclass(frozen=True)
class Coded:
    """Numbers codes * scales.

    Attributes:
        codes: int64, less the code of 0.
        scales: float32 numbers in float64, broadcast with `codes`.
        width: bits of a code with its sign, at least 2.
        bipolar: all codes are -1 or 1.
    """

    codes: np.ndarray
    scales: np.ndarray
    width: int
    bipolar: bool = False

    @property
    def numbers(self) -> np.ndarray:
        """Exact, float64. Raises ValueError where that cannot be."""
        if self.codes.size and int(np.abs(self.codes).max()) > EXACT:
            raise ValueError(f"codes of constants go beyond {EXACT}")
        found: np.ndarray = self.codes * self.scales
        return found


def known(value: ir.Value | None) -> np.ndarray | None:
    """A constant, plain or stored in codes, float64; None for data."""
    plain = constant(value)
    if plain is not None:
        return plain.astype(np.float64)
    found = coded(value)
    return None if found is None else found.numbers


def coded(value: ir.Value | None) -> Coded | None:
    """A constant behind DequantizeLinear, Quant or BipolarQuant, transposed perhaps; None for anything else."""
    node = value.producer() if value is not None else None
    if node is None:
        return None
    if node.op_type == "DequantizeLinear":
        return _dequantised(node)
    if node.domain == qonnx.DOMAIN:
        return _quant(node)
    if node.op_type == "Transpose":
        found = coded(node.inputs[0])
        if found is None:
            return None
        order = node.attributes.get_ints("perm", tuple(reversed(range(found.codes.ndim))))
        scales = np.broadcast_to(found.scales, found.codes.shape).transpose(order)
        return Coded(found.codes.transpose(order), scales, found.width, found.bipolar)
    return None


def _dequantised(node: ir.Node) -> Coded | None:
    codes = _integers(node.inputs[0])
    if codes is None:
        return None
    scales = needed(node, 1)
    zeros = needed(node, 2) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
    if node.attributes.get_int("block_size", 0):
        raise UnsupportedError("no kernel for scales of blocks", node=describe_node(node))
    if scales.size > 1:
        shape = [1] * codes.ndim
        shape[node.attributes.get_int("axis", 1)] = scales.size
        scales = scales.reshape(shape)
        zeros = zeros.reshape(shape) if zeros.size > 1 else zeros
    elif scales.ndim:
        scales, zeros = scales.reshape(()), zeros.reshape(())
    found = codes.astype(np.int64) - zeros.astype(np.int64)
    return Coded(found.reshape(codes.shape), scales, _width(found))


def _integers(value: ir.Value | None) -> np.ndarray | None:
    """Constant codes, or what QuantizeLinear makes of a plain constant, as training leaves it."""
    found, node = constant(value), value.producer() if value is not None else None
    if found is not None or node is None or node.op_type != "QuantizeLinear":
        return found
    plain = constant(node.inputs[0])
    if plain is None or value is None or value.dtype is None:
        return None
    scales = needed(node, 1)
    zeros = needed(node, 2) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
    if scales.size > 1:
        shape = [1] * plain.ndim
        shape[node.attributes.get_int("axis", 1)] = scales.size
        scales, zeros = scales.reshape(shape), zeros.reshape(shape) if zeros.size > 1 else zeros
    whole = np.round(plain.astype(np.float64) / scales) + zeros
    codes: np.ndarray = np.clip(whole, value.dtype.min, value.dtype.max).astype(np.int64)
    return codes


def _quant(node: ir.Node) -> Coded | None:
    """What the operator makes of a plain constant."""
    plain = constant(node.inputs[0])
    if plain is None:
        return None
    scales = needed(node, 1)
    if node.op_type == "BipolarQuant":
        return Coded(np.where(plain < 0, -1, 1).astype(np.int64), scales, 2, bipolar=True)
    zero, low, high = quant_limits(node)
    # The quotient is of two float32, which float64 rounds to the same whole number.
    codes = np.round(np.clip(plain.astype(np.float64) / scales + zero, low, high)).astype(np.int64) - zero
    return Coded(codes, scales, _width(codes))


def quant_limits(node: ir.Node) -> tuple[int, int, int]:
    """The code of 0, the least and the greatest code of a Quant node. Raises UnsupportedError."""
    zeros, widths = needed(node, 2), needed(node, 3)
    if zeros.size != 1 or widths.size != 1 or zeros.item() % 1 or widths.item() % 1:
        reason = "no kernel for zero points and widths that are not one whole number"
        raise UnsupportedError(reason, node=describe_node(node))
    zero, width = int(zeros.item()), int(widths.item())
    if zero % 2:
        # It rounds after the zero is added, so that ties would go to odd distances from it.
        raise UnsupportedError(
            f"no kernel for Quant with an odd zero point, {zero}", node=describe_node(node)
        )
    narrow = node.attributes.get_int("narrow", 0)
    if node.attributes.get_int("signed", 1):
        return zero, narrow - (1 << (width - 1)), (1 << (width - 1)) - 1
    return zero, 0, (1 << width) - 1 - narrow


def needed(node: ir.Node, index: int) -> np.ndarray:
    """A plain constant among the inputs, float64. Raises UnsupportedError for data."""
    found = constant(node.inputs[index]) if index < len(node.inputs) else None
    if found is None:
        raise UnsupportedError(f"input {index} is not a constant", node=describe_node(node))
    return found.astype(np.float64)


def _width(codes: np.ndarray) -> int:
    """Bits that hold the codes and their negatives."""
    return max(int(np.abs(codes).max(initial=0)).bit_length() + 1, 2)
