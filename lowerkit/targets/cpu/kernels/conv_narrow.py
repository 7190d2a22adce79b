"""Convolutions of narrow numbers, as matrix products that read their rows out of the image.

The image has its channels last, filled up to whole steps of the product, and a border for what lies outside of it. So
the inputs of one row of a kernel lie side by side, and a row of the product is as many runs as the kernel has rows
(or taps, where they are dilated). Nothing is copied. (Georganas et al., "Anatomy of high-performance deep learning
convolutions on SIMD architectures", SC 2018, for float32.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax, te, tirx
from tvm.ir import Expr

from lowerkit.targets.cpu.kernels.conv import Window
from lowerkit.targets.cpu.kernels.gemm.dots import Dot, factor
from lowerkit.targets.cpu.kernels.gemm.machine import Machine
from lowerkit.targets.cpu.kernels.gemm.operators import FUSABLE, product
from lowerkit.targets.cpu.kernels.gemm.panels import layout
from lowerkit.targets.cpu.kernels.gemm.runs import RUNS, Runs
from lowerkit.targets.cpu.kernels.gemm.template import KIND

#: The permutations of four axes that move the channels to the end, and back.
LAST, FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
#: That of a convolution that looks at one pixel.
NO_WINDOW = Window((1, 1), (1, 1), (1, 1), (0, 0, 0, 0))


def window_of(weight: np.ndarray, attributes: dict[str, Any]) -> Window:
    """That of an ONNX Conv by `weight` [O, C, kh, kw]."""
    (kh, kw), (sh, sw), (dh, dw) = weight.shape[2:], attributes["strides"], attributes["dilations"]
    top, left, bottom, right = (int(pad) for pad in attributes["pads"])
    return Window((kh, kw), (int(sh), int(sw)), (int(dh), int(dw)), (top, left, bottom, right))


def bordered(
    x: te.Tensor,
    window: Window,
    dot: Dot,
    narrow: Callable[[Expr, Expr], Expr],
    outside: Callable[[Expr], Expr],
    channels_first: bool = False,
) -> te.Tensor:
    """Float32 `x` [N, H, W, C], or [N, C, H, W], as `convolve` takes it.

    Args:
        narrow: (image, element) -> what is stored of it.
        outside: image -> what is stored beyond its edges.
    """
    n, h, w, c = (int(x.shape[axis]) for axis in ((0, 2, 3, 1) if channels_first else range(4)))
    top, left, bottom, right = window.padding
    channels = -(-c // dot.step) * dot.step if dot.padded else c

    def element(b: Expr, i: Expr, j: Expr, k: Expr) -> Expr:
        y, z = i - top, j - left
        value = narrow(b, x(b, k, y, z) if channels_first else x(b, y, z, k))
        inside = [y >= 0, y < h] * bool(top or bottom) + [z >= 0, z < w] * bool(left or right)
        inside += [k < c] * (channels > c)
        return tirx.if_then_else(tirx.all(*inside), value, outside(b)) if inside else value

    return te.compute((n, h + top + bottom, w + left + right, channels), element, name="narrow_image")


def convolve(
    bb: relax.BlockBuilder, machine: Machine, kind: str, image: relax.Expr, weight: np.ndarray, window: Window
) -> relax.Expr:
    """`image`, as `bordered` makes it, by `weight` [O, C, kh, kw]: the sums [N, H', W', O].

    Args:
        kind: of product, as `Machine.dot` has them.
    """
    n, h, w, channels = (int(dim) for dim in image.ty.shape)
    (kh, kw), (sh, sw), (dh, dw) = window.kernel, window.strides, window.dilations
    filters = np.zeros((kh, kw, channels, len(weight)), weight.dtype)
    filters[:, :, : weight.shape[1]] = weight.transpose(2, 3, 1, 0)
    matrix = filters.reshape(-1, len(weight))
    if (window.kernel, window.strides) == (NO_WINDOW.kernel, NO_WINDOW.strides):
        return product(bb, machine, kind, image, matrix)
    height, width = (h - (kh - 1) * dh - 1) // sh + 1, (w - (kw - 1) * dw - 1) // sw + 1
    together = kw if dw == 1 else 1
    runs = Runs(together * channels, kw // together, (sh, sw * channels), (dh, dw * channels))
    where = layout(machine, kind, n * height * width, len(matrix), len(weight), len(matrix) // runs.length)
    rows = bb.emit(relax.op.reshape(image, [n, h, w * channels]))

    def windows(image: te.Tensor, panels: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, len(matrix)), "k")

        def sums(b: Expr, i: Expr, j: Expr, o: Expr) -> Expr:
            left = image(*runs.place([b, i, j], k.var))
            return te.sum(
                factor(left, str(image.dtype), where.dot.sum) * where.element(panels, k.var, o), axis=k
            )

        attributes = {KIND: kind, RUNS: runs.annotation()}
        return te.compute((n, height, width, len(weight)), sums, name="gemm", attrs=attributes)

    packed = relax.const(where.pack(matrix))
    name = f"conv_{kind}"
    return bb.normalize(bb.call_te(windows, rows, packed, primfunc_name_hint=name, primfunc_attrs=FUSABLE))
