"""From operators to marked products: weights are packed here, and activations brought into the type of the product."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax, te, tirx
from tvm.ir import Expr, Op

from lowerkit.targets.cpu.kernels.bfloat16 import nearest
from lowerkit.targets.cpu.kernels.gemm.dots import Instruction, factor
from lowerkit.targets.cpu.kernels.gemm.machine import Machine
from lowerkit.targets.cpu.kernels.gemm.panels import layout
from lowerkit.targets.cpu.kernels.gemm.quantise import quantise_rows, quantise_with
from lowerkit.targets.cpu.kernels.gemm.template import KIND

#: That a function's result may be taken by elementwise operators in the same function: kOutEWiseFusable.
FUSABLE = {"op_pattern": 4}


def matmul(machine: Machine) -> Callable[[relax.BlockBuilder, relax.Call], relax.Expr]:
    """How to legalise Relax's matmul: float32 by constant weights, or by an operand of the same batch."""

    def legalise(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        x, w = call.args
        left, right = _static_shape(x), _static_shape(w)
        if left is None or right is None or {_dtype(x), _dtype(w)} != {"float32"}:
            return _by_tvm(bb, call)
        if len(left) < 2 or len(right) < 2 or 0 in (*left, *right):
            return _by_tvm(bb, call)
        if isinstance(w, tvm.ir.GenericConst) and len(right) == 2:
            return product(bb, machine, "float32", x, w.value.numpy())
        if left[:-2] == right[:-2]:
            return _product_of_activations(bb, x, w)
        return _by_tvm(bb, call)

    return legalise


def product(
    bb: relax.BlockBuilder,
    machine: Machine,
    kind: str,
    x: relax.Expr,
    weight: np.ndarray,
    scale: np.ndarray | None = None,
) -> relax.Expr:
    """`x` [..., K] by the constant `weight` [K, N], as `Machine.dot(kind)` has them.

    Args:
        scale: [groups, N], factors of the weights of each group of rows.
    """
    *lead, depth = _shape(x)
    width = weight.shape[1]
    groups = len(scale) if scale is not None else 1
    if depth > len(weight):  # rows of x end with zeros
        weight = np.pad(weight, ((0, depth - len(weight)), (0, 0)))
    where = layout(machine, kind, math.prod(lead), depth, width, groups)
    constants = [relax.const(where.pack(weight))]
    if scale is not None:
        constants.append(relax.const(np.pad(scale, ((0, 0), (0, where.columns - width)))))

    def dense(x: te.Tensor, panels: te.Tensor, *scales: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, depth), "k")

        def sums(*place: tirx.Var) -> Expr:
            *row, column = place
            right = where.element(panels, k, column)
            for s in scales:
                right = right * s[tirx.floordiv(k, where.group), column]
            return te.sum(factor(x(*row, k), str(x.dtype), where.dot.sum) * right, axis=k)

        return te.compute([*lead, width], sums, name="gemm", attrs={KIND: kind})

    name = f"gemm_{kind.replace('-', '_')}"
    return bb.normalize(bb.call_te(dense, x, *constants, primfunc_name_hint=name, primfunc_attrs=FUSABLE))


def _product_of_activations(bb: relax.BlockBuilder, x: relax.Expr, y: relax.Expr) -> relax.Expr:
    depth, width = _shape(y)[-2:]

    def batched(x: te.Tensor, y: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, depth), "k")
        shape = [*_shape(x)[:-1], width]
        return te.compute(
            shape,
            lambda *i: te.sum(x(*i[:-1], k) * y(*i[:-2], k, i[-1]), axis=k),
            name="gemm",
            attrs={KIND: "float32"},
        )

    return bb.call_te(batched, x, y, primfunc_name_hint="gemm", primfunc_attrs=FUSABLE)


Converter = Callable[[relax.BlockBuilder, list[relax.Expr], dict[str, Any]], relax.Expr | None]


def converters(machine: Machine) -> dict[str, Converter]:
    """Operators of the domain `lowerkit` -> their kernels."""

    def bf16(bb: relax.BlockBuilder, inputs: list[relax.Expr], _: dict[str, Any]) -> relax.Expr:
        x, weight = inputs[0], constant(inputs[1])
        return product(bb, machine, "bf16", _rounded(bb, machine, x), weight.view(np.uint16))

    def weight_int8(bb: relax.BlockBuilder, inputs: list[relax.Expr], _: dict[str, Any]) -> relax.Expr:
        x, weight, scale = inputs[0], constant(inputs[1]), inputs[2]
        return bb.normalize(relax.op.multiply(product(bb, machine, "weight-int8", x, weight), scale))

    def weight_int4(bb: relax.BlockBuilder, inputs: list[relax.Expr], _: dict[str, Any]) -> relax.Expr:
        x, weight, scale = inputs[0], constant(inputs[1]), constant(inputs[2])
        return product(bb, machine, "weight-int4", x, weight, scale)

    def int8(bb: relax.BlockBuilder, inputs: list[relax.Expr], _: dict[str, Any]) -> relax.Expr:
        x, weight, w_scale = inputs[0], constant(inputs[1]), inputs[2]
        q, scale, zero = quantise_rows(bb, machine.int8, machine.lanes, x)
        return _scaled(bb, machine, q, scale, zero, weight, w_scale)

    def int8_static(bb: relax.BlockBuilder, inputs: list[relax.Expr], _: dict[str, Any]) -> relax.Expr:
        x, x_scale, x_zero, weight, w_scale = *inputs[:3], constant(inputs[3]), inputs[4]
        q = quantise_with(bb, machine.int8, x, x_scale, x_zero)
        return _scaled(bb, machine, q, x_scale, relax.op.astype(x_zero, "int32"), weight, w_scale)

    return {
        "MatMulBf16": bf16,
        "MatMulInt8": int8,
        "MatMulInt8Static": int8_static,
        "MatMulWeightInt4": weight_int4,
        "MatMulWeightInt8": weight_int8,
    }


def _scaled(
    bb: relax.BlockBuilder,
    machine: Machine,
    q: relax.Expr,
    scale: relax.Expr,
    zero: relax.Expr,
    weight: np.ndarray,
    w_scale: relax.Expr,
) -> relax.Expr:
    """(q - zero) by `weight`, in float32 times both scales; in signed types q has its zero subtracted already."""
    sums = product(bb, machine, "int8", q, weight)
    if _dtype(q) == "uint8":
        columns = relax.const(weight.astype(np.int32).sum(axis=0, dtype=np.int32))
        sums = bb.normalize(relax.op.subtract(sums, bb.normalize(relax.op.multiply(zero, columns))))
    y = bb.normalize(relax.op.multiply(bb.normalize(relax.op.astype(sums, "float32")), scale))
    return bb.normalize(relax.op.multiply(y, w_scale))


def _rounded(bb: relax.BlockBuilder, machine: Machine, x: relax.Expr) -> relax.Expr:
    """`x` rounded to bfloat16, nearest even: as float32, or as bits with rows of whole steps."""
    *lead, depth = _shape(x)
    bits_wanted = isinstance(machine.bf16, Instruction)
    step = machine.bf16.step if bits_wanted else 1
    padded = -(-depth // step) * step

    def rounded(x: te.Tensor) -> te.Tensor:
        def element(*i: tirx.Var) -> Expr:
            value = (
                x(*i)
                if padded == depth
                else tirx.if_then_else(i[-1] < depth, x(*i), tirx.const(0, "float32"))
            )
            bits = nearest(value)
            if bits_wanted:
                return (bits >> tirx.const(16, "uint32")).astype("uint16")
            return tirx.reinterpret("float32", bits)

        return te.compute([*lead, padded], element, name="bf16")

    return bb.emit_te(rounded, x, primfunc_name_hint="to_bf16")


def constant(value: relax.Expr) -> np.ndarray:
    """The numbers of weights or scales. Raises ValueError where they are computed."""
    if not isinstance(value, tvm.ir.GenericConst):
        raise ValueError("its weights or scales are not constant")
    array: np.ndarray = value.value.numpy()
    return array


def _dtype(value: relax.Expr) -> str:
    return str(value.ty.dtype.dtype)


def _shape(value: Any) -> list[int]:
    return [int(dim) for dim in (value.shape if isinstance(value, te.Tensor) else value.ty.shape)]


def _static_shape(value: relax.Expr) -> list[int] | None:
    shape = value.ty.shape
    if shape is None or not all(isinstance(dim, tirx.IntImm) for dim in shape):
        return None
    return [int(dim) for dim in shape]


def _by_tvm(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    return Op.get("relax.matmul").get_attr("FLegalize")(bb, call)
