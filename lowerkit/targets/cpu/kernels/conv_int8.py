"""lowerkit::ConvInt8 and ConvInt8Static: convolutions of 8-bit integers, summed exactly in int32.

An image's numbers are q = clip(round(x / s) + z, 0, 255), rounded to nearest even, with one s and z for the image.
Where the product takes signed integers, q - z is stored, and a border is 0; where it takes bytes, a border is z, and
z times the sum of the filters is subtracted from the sums. Both come as float32 [N or 1, 1, 1, 1].
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm import relax, te, tirx
from tvm.ir import Expr
from tvm.tirx.script import builder as T

from lowerkit.targets.cpu.importer import Converter
from lowerkit.targets.cpu.kernels.conv import Window
from lowerkit.targets.cpu.kernels.conv_narrow import FIRST, LAST, NO_WINDOW, bordered, convolve, window_of
from lowerkit.targets.cpu.kernels.gemm.dots import Dot
from lowerkit.targets.cpu.kernels.gemm.machine import Machine
from lowerkit.targets.cpu.kernels.gemm.operators import constant
from lowerkit.targets.cpu.kernels.gemm.quantise import INFINITE
from lowerkit.targets.cpu.kernels.vectors import across, call_kernel, f32, flat, load, loop, store

#: Elements that one task looks through for the extremes of an image.
_PIECE = 1 << 14
#: Steps and zero points, see above.
Levels = list[relax.Expr]


def converters(machine: Machine) -> dict[str, Converter]:
    """Operators of the domain `lowerkit` -> their kernels."""

    def int8(bb: relax.BlockBuilder, inputs: list[relax.Expr], attributes: dict[str, Any]) -> relax.Expr:
        x, w, w_scale = inputs[0], constant(inputs[1]), constant(inputs[2])
        x, channels_first = _image(bb, x, machine)
        levels = _levels_of(bb, x, machine.lanes)
        return _convolution(bb, machine, x, channels_first, levels, w, w_scale, attributes)

    def static(bb: relax.BlockBuilder, inputs: list[relax.Expr], attributes: dict[str, Any]) -> relax.Expr:
        scale, zero, w, w_scale = map(constant, inputs[1:])
        x, channels_first = _image(bb, inputs[0], machine)
        levels = [relax.const(np.asarray(level, np.float32).reshape(1, 1, 1, 1)) for level in (scale, zero)]
        return _convolution(bb, machine, x, channels_first, levels, w, w_scale, attributes)

    return {"ConvInt8": int8, "ConvInt8Static": static}


def _image(bb: relax.BlockBuilder, x: relax.Expr, machine: Machine) -> tuple[relax.Expr, bool]:
    """`x` [N, C, H, W] with its channels last, unless these are too few for a vector; whether they are first."""
    if int(x.ty.shape[1]) < machine.lanes:
        return x, True
    return bb.emit(relax.op.permute_dims(x, LAST)), False


def _convolution(
    bb: relax.BlockBuilder,
    machine: Machine,
    x: relax.Expr,
    channels_first: bool,
    levels: Levels,
    weight: np.ndarray,
    w_scale: np.ndarray,
    attributes: dict[str, Any],
) -> relax.Expr:
    """Float32 `x`, quantised to `levels`, by int8 `weight` [O, C / group, kh, kw] with a scale for each output."""
    window, group = window_of(weight, attributes), int(attributes["group"])
    if group != 1:
        # Sums of so few products gain nothing from integers; in float32 they are exact up to 2^24.
        steps = _quantised(bb, Dot(), x, channels_first, levels, NO_WINDOW)
        steps = bb.emit(relax.op.permute_dims(steps, FIRST))
        filters = relax.const(weight.astype(np.float32))
        padding, (strides, dilations) = list(window.padding), (window.strides, window.dilations)
        sums = bb.emit(relax.op.nn.conv2d(steps, filters, strides, padding, dilations, group))
        sums = bb.emit(relax.op.permute_dims(sums, LAST))
    else:
        image = _quantised(bb, machine.int8, x, channels_first, levels, window)
        sums = convolve(bb, machine, "int8", image, weight, window)
    less = machine.int8.operand == "uint8" and group == 1
    columns = [relax.const(weight.sum(axis=(1, 2, 3), dtype=np.int32))] if less else []
    y = bb.emit_te(_scaled, sums, levels, relax.const(w_scale), *columns, primfunc_name_hint="scale")
    return relax.op.permute_dims(y, FIRST)


def _quantised(
    bb: relax.BlockBuilder, dot: Dot, x: relax.Expr, channels_first: bool, levels: Levels, window: Window
) -> relax.Expr:
    """`x` in whole steps, for `dot`."""
    dtype = dot.operand

    def image(x: te.Tensor, scale: te.Tensor, zero: te.Tensor) -> te.Tensor:
        def narrow(b: Expr, value: Expr) -> Expr:
            z = _of(zero, b)
            q = tirx.nearbyint(value / _of(scale, b)) + z
            q = tirx.min(tirx.max(q, f32(0)), f32(255))  # a NaN becomes 0
            q = q if dtype == "uint8" else q - z
            return q if dtype == "float32" else q.astype("int32").astype(dtype)

        def outside(b: Expr) -> Expr:
            return _of(zero, b).astype("int32").astype(dtype) if dtype == "uint8" else tirx.const(0, dtype)

        return bordered(x, window, dot, narrow, outside, channels_first)

    return bb.emit_te(image, x, *levels, primfunc_name_hint="quantise_image")


def _scaled(sums: te.Tensor, levels: list[te.Tensor], w_scale: te.Tensor, *columns: te.Tensor) -> te.Tensor:
    """The convolution [N, H, W, O] from sums of (q - z) w; or of q w, given those of w for every filter."""
    scale, zero = levels

    def element(b: Expr, i: Expr, j: Expr, o: Expr) -> Expr:
        total = sums(b, i, j, o)
        for column in columns:
            total = total - _of(zero, b).astype("int32") * column(o)
        return total.astype("float32") * _of(scale, b) * w_scale(o)

    return te.compute(sums.shape, element, name="scale")


def _of(levels: te.Tensor, image: Expr) -> Expr:
    """The step or zero point of an image."""
    return levels(image if int(levels.shape[0]) > 1 else 0, 0, 0, 0)


def _levels_of(bb: relax.BlockBuilder, x: relax.Expr, lanes: int) -> Levels:
    """Steps and zero points for the values of each image of float32 `x`, in any order of axes, and 0.

    The step of an image that is not finite is NaN, and so is what is computed with it.
    """
    images, *rest = (int(dim) for dim in x.ty.shape)
    size = math.prod(rest)
    lanes = math.gcd(lanes, 1 << max(size.bit_length() - 1, 0)) if size < lanes else lanes
    pieces = -(-size // _PIECE)

    def extremes(x: tirx.Buffer, out: tirx.Buffer) -> None:
        """The least, the greatest, and the largest magnitude in each lane; magnitudes of NaN are above infinity's."""
        x, out = flat(x), flat(out)
        vectors = -(-size // lanes)
        each = -(-vectors // pieces)
        parallel = images * size >= 2 * _PIECE
        with (T.parallel if parallel else T.serial)(0, images * pieces) as task:
            low, high = (T.alloc_buffer((lanes,), "float32", scope="local") for _ in range(2))
            largest = T.alloc_buffer((lanes,), "int32", scope="local")
            for buffer in (low, high, largest):
                store(buffer, tirx.const(0, str(buffer.ty.dtype)), 0, lanes)
            with loop(each) as v:
                # The last vectors overlap, or are looked at twice, which changes nothing.
                at = tirx.min((task % pieces * each + v) * lanes, size - lanes)
                value = T.bind(load(x, task // pieces * size + at, lanes))
                bits = tirx.reinterpret("int32" if lanes == 1 else f"int32x{lanes}", value)
                magnitude = bits & _all(0x7FFFFFFF, lanes)
                store(low, tirx.min(value, load(low, 0, lanes)), 0, lanes)
                store(high, tirx.max(value, load(high, 0, lanes)), 0, lanes)
                store(largest, tirx.max(magnitude, load(largest, 0, lanes)), 0, lanes)
            for index, buffer in enumerate((low, high, largest)):
                found = load(buffer, 0, lanes)
                found = tirx.reinterpret("float32" if lanes == 1 else f"float32x{lanes}", found)
                store(out, found, (task * 3 + index) * lanes, lanes)

    def levels(found: tirx.Buffer, scale: tirx.Buffer, zero: tirx.Buffer) -> None:
        found, scale, zero = flat(found), flat(scale), flat(zero)
        with loop(images) as b:
            totals = T.alloc_buffer((3 * lanes,), "float32", scope="local")
            for index in range(3):
                store(totals, f32(0), index * lanes, lanes)
            combine = (tirx.min, tirx.max, _larger)
            with loop(pieces) as p:
                for index in range(3):
                    part = load(found, ((b * pieces + p) * 3 + index) * lanes, lanes)
                    store(
                        totals, combine[index](part, load(totals, index * lanes, lanes)), index * lanes, lanes
                    )
            low, high, largest = (
                across(T.bind(load(totals, index * lanes, lanes)), lanes, combine[index])
                for index in range(3)
            )
            step = T.bind((high - low) / f32(255))
            step = T.bind(tirx.Select(step == f32(0), f32(1), step))
            finite = tirx.reinterpret("int32", largest) < tirx.const(INFINITE, "int32")
            store(scale, tirx.Select(finite, step, f32(float("nan"))), b, 1)
            z = tirx.nearbyint((f32(0) - low) / step)
            store(zero, tirx.min(tirx.max(z, f32(0)), f32(255)), b, 1)

    found = call_kernel(bb, "extremes_of_images", [x], [images, pieces, 3 * lanes], extremes)
    both = call_kernel(bb, "levels_of_images", [found], [images, 1, 1, 1], levels, results=2)
    return [bb.emit(relax.TupleGetItem(both, index)) for index in range(2)]


def _larger(a: Expr, b: Expr) -> Expr:
    """The larger magnitude, of which NaN are the largest."""
    dtype = str(a.ty.dtype)
    whole = dtype.replace("float32", "int32")
    return tirx.reinterpret(dtype, tirx.max(*(tirx.reinterpret(whole, x) for x in (a, b))))


def _all(number: int, lanes: int) -> Expr:
    value = tirx.const(number, "int32")
    return tirx.Broadcast(value, lanes) if lanes > 1 else value
