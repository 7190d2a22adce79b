"""Transposed convolutions by constant weights, channels last: one small convolution for each phase of the result.

With stride s the result's pixel y gets x[i] w[r] wherever i s + r - pad = y. Pixels of one phase a = y mod s meet the
same taps r = t s + (a + pad) mod s, t = 0, 1, ..., and the inputs i = y div s + (a + pad) div s - t: a convolution of
stride 1 by ceil(k / s) taps. No product with a zero between the pixels is computed, and nothing is added up in
memory. (Shi et al., "Is the deconvolution layer the same as a convolutional layer?", arXiv:1609.07009.)
"""

from __future__ import annotations

import numpy as np
from tvm import relax, te
from tvm.ir import Expr

from lowerkit.targets.cpu.kernels.conv import CUT, PHASES, call, padded, registers, tile


def conv2d_transpose(
    bb: relax.BlockBuilder,
    x: relax.Expr,
    weight: np.ndarray,
    strides: tuple[int, int],
    padding: tuple[int, int],
    size: tuple[int, int],
    lanes: int,
) -> relax.Expr:
    """Float32 `x` [N, H, W, C] spread by `weight` [C, O, kh, kw]: the call of [N, *size, O].

    Args:
        padding: rows and columns that are cut from the top and the left; `size` says what is cut from the others.
    """
    n, h, w, depth = (int(dim) for dim in x.ty.shape)
    channels = weight.shape[1]
    (sh, sw), (top, left), (height, width) = strides, padding, size
    taps = [-(-weight.shape[2 + axis] // strides[axis]) for axis in (0, 1)]
    # Quotients of the result's pixels by the stride, and zeros before and after the image for the taps to meet.
    rows, columns = -(-height // sh), -(-width // sw)
    before = [max(0, taps[axis] - 1 - padding[axis] // strides[axis]) for axis in (0, 1)]
    after = [
        max(0, count - 1 + (strides[axis] - 1 + padding[axis]) // strides[axis] - (extent - 1))
        for axis, count, extent in ((0, rows, h), (1, columns, w))
    ]
    _, vectors = tile(columns, channels, registers(lanes), lanes)
    filled = -(-channels // (vectors * lanes)) * vectors * lanes
    # Whole phases; what is beyond `size` is cut off afterwards.
    whole = (n, rows * sh, columns * sw, channels)

    def compute(data: te.Tensor, panels: te.Tensor) -> te.Tensor:
        source = padded(data, (before[0], before[1], after[0], after[1]))
        t, u = te.reduce_axis((0, taps[0]), "t"), te.reduce_axis((0, taps[1]), "u")
        c = te.reduce_axis((0, depth), "c")

        def product(b: Expr, i: Expr, j: Expr, o: Expr) -> Expr:
            row = i // sh + (i % sh + top) // sh - t + before[0]
            column = j // sw + (j % sw + left) // sw - u + before[1]
            weights = panels[i % sh, j % sw, o // lanes, t, u, c, o % lanes]
            return te.sum(source[b, row, column, c] * weights, axis=[t, u, c])

        # The schedule has to know the strides, which are nowhere else.
        y = te.compute((*whole[:3], filled), product, name=PHASES, attrs={"strides": list(strides)})
        return y if filled == channels else te.compute(whole, lambda *i: y(*i), name=CUT)

    y = call(bb, compute, x, _pack(weight, strides, padding, filled, lanes), "conv2d_transpose")
    if (height, width) == whole[1:3]:
        return y
    return relax.op.strided_slice(bb.emit(y), [1, 2], [0, 0], [height, width])


def _pack(
    weight: np.ndarray, strides: tuple[int, int], padding: tuple[int, int], filled: int, lanes: int
) -> np.ndarray:
    """[C, O, kh, kw] -> [sh, sw, filled / lanes, taps, taps, C, lanes]; zeros for what a phase or a panel lacks."""
    depth, channels, *kernel = weight.shape
    taps = [-(-size // stride) for size, stride in zip(kernel, strides, strict=True)]
    whole = np.zeros((depth, filled, taps[0] * strides[0], taps[1] * strides[1]), weight.dtype)
    whole[:, :channels, : kernel[0], : kernel[1]] = weight
    # [C, panel, lane, t, a, u, e], where a and e are phases without the padding.
    split = whole.reshape(depth, filled // lanes, lanes, taps[0], strides[0], taps[1], strides[1])
    phases = split.transpose(4, 6, 1, 3, 5, 0, 2)
    return np.ascontiguousarray(np.roll(phases, [-p for p in padding], axis=(0, 1)))
