"""Convolutions by constant weights on images whose last axis is the channels.

With channels last a pixel's inputs lie side by side, and so do its outputs: a vector is `lanes` output channels of one
pixel, whatever the stride, dilation or width of the image. Weights are packed into panels of `lanes` output channels,
the last filled up with zeros, so that a register tile of (pixels, vectors) takes one vector of a panel and one
broadcast input per pixel for each step of the reduction. (Georganas et al., "Anatomy of high-performance deep learning
convolutions on SIMD architectures", SC 2018, for the tiles; there the channels are blocked.)

`schedules/conv.py` gives the loops their order: it knows the blocks by the names below.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax, te, tirx
from tvm.ir import Expr

#: Blocks of a convolution that sums over input channels, of one by channel, and of a transposed one.
PANELS, BY_CHANNEL, PHASES = "conv_panels", "conv_by_channel", "conv_phases"
PADDED, CUT = "conv_padded", "conv_cut"
#: Cycles before a sum may be added to again, and a little for what does not start in time.
_LATENCY = 4.3


@dataclass(frozen=True)
class Window:
    """Where the taps of a convolution lie: by axis (height, width); padding is (top, left, bottom, right)."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    padding: tuple[int, int, int, int]

    def output(self, height: int, width: int) -> tuple[int, int]:
        """Size of the result for an image of `height` by `width`."""
        top, left, bottom, right = self.padding
        sizes = []
        for size, axis in ((height + top + bottom, 0), (width + left + right, 1)):
            reach = (self.kernel[axis] - 1) * self.dilations[axis] + 1
            sizes.append((size - reach) // self.strides[axis] + 1)
        return sizes[0], sizes[1]


def tile(width: int, channels: int, registers: int, lanes: int) -> tuple[int, int]:
    """(pixels, vectors) of the register tile for rows of `width` pixels and so many output channels.

    The one with the fewest cycles for a whole row, by a model of a core that starts two multiply-adds per cycle
    and has to load each pixel's input apart.
    """
    panels = -(-channels // lanes)

    def cycles(shape: tuple[int, int]) -> float:
        pixels, vectors = shape
        # A wide tile loads more vectors, which are slower than single numbers.
        step = max(pixels * vectors * (0.5 + 0.01 * vectors), 0.7 * pixels, _LATENCY)
        return -(-width // pixels) * -(-panels // vectors) * step

    shapes = [
        (pixels, vectors)
        for vectors in range(1, 9)
        for pixels in range(1, registers)
        if pixels * vectors + vectors < registers and pixels <= width and vectors <= panels
    ]
    return min(shapes, key=lambda shape: (cycles(shape), shape[1]))


def registers(lanes: int) -> int:
    """Vector registers of a processor whose vectors have `lanes` float32."""
    return 32 if lanes == 16 else 16


def conv2d(
    bb: relax.BlockBuilder,
    x: relax.Expr,
    weight: np.ndarray,
    window: Window,
    lanes: int,
    *,
    channels_first: bool = False,
) -> relax.Expr:
    """The convolution of float32 `x` [N, H, W, C] by `weight` [O, C, kh, kw] as a call: [N, H', W', O].

    With `channels_first` `x` is [N, C, H, W]: inputs are read one by one, so their order matters little.
    """
    shape = [int(dim) for dim in x.ty.shape]
    n, h, w = (shape[0], *shape[2:]) if channels_first else shape[:3]
    channels, depth = weight.shape[:2]
    height, width = window.output(h, w)
    _, vectors = tile(width, channels, registers(lanes), lanes)
    filled = -(-channels // (vectors * lanes)) * vectors * lanes
    (kh, kw), (sh, sw), (dh, dw) = window.kernel, window.strides, window.dilations

    def compute(data: te.Tensor, panels: te.Tensor) -> te.Tensor:
        source = padded(data, window.padding, channels_first)
        r, s, c = te.reduce_axis((0, kh), "r"), te.reduce_axis((0, kw), "s"), te.reduce_axis((0, depth), "c")

        def product(b: Expr, i: Expr, j: Expr, o: Expr) -> Expr:
            row, column = i * sh + r * dh, j * sw + s * dw
            element = source[b, c, row, column] if channels_first else source[b, row, column, c]
            return te.sum(element * panels[o // lanes, r, s, c, o % lanes], axis=[r, s, c])

        y = te.compute((n, height, width, filled), product, name=PANELS)
        return (
            y if filled == channels else te.compute((n, height, width, channels), lambda *i: y(*i), name=CUT)
        )

    return call(bb, compute, x, pack(weight, filled, lanes), "conv2d")


def conv2d_by_channel(
    bb: relax.BlockBuilder, x: relax.Expr, weight: np.ndarray, window: Window
) -> relax.Expr:
    """Each channel of float32 `x` [N, H, W, C] by its own kernel of `weight` [C, 1, kh, kw]: [N, H', W', C]."""
    n, h, w, channels = (int(dim) for dim in x.ty.shape)
    height, width = window.output(h, w)
    (kh, kw), (sh, sw), (dh, dw) = window.kernel, window.strides, window.dilations

    def compute(data: te.Tensor, taps: te.Tensor) -> te.Tensor:
        source = padded(data, window.padding)
        r, s = te.reduce_axis((0, kh), "r"), te.reduce_axis((0, kw), "s")
        return te.compute(
            (n, height, width, channels),
            lambda b, i, j, c: te.sum(
                source[b, i * sh + r * dh, j * sw + s * dw, c] * taps[r, s, c], axis=[r, s]
            ),
            name=BY_CHANNEL,
        )

    taps = np.ascontiguousarray(weight[:, 0].transpose(1, 2, 0))
    return call(bb, compute, x, taps, "conv2d_by_channel")


def pack(weight: np.ndarray, filled: int, lanes: int) -> np.ndarray:
    """[O, C, kh, kw] -> [filled / lanes, kh, kw, C, lanes], zeros for the channels from O on."""
    channels, depth, kh, kw = weight.shape
    whole = np.zeros((filled, depth, kh, kw), weight.dtype)
    whole[:channels] = weight
    return np.ascontiguousarray(whole.reshape(-1, lanes, depth, kh, kw).transpose(0, 3, 4, 2, 1))


def padded(data: te.Tensor, padding: tuple[int, int, int, int], channels_first: bool = False) -> te.Tensor:
    """`data` with a border of zeros (top, left, bottom, right), or itself where there is none to add."""
    if not any(padding):
        return data
    top, left, bottom, right = padding
    shape = [int(dim) for dim in data.shape]
    y, x = (2, 3) if channels_first else (1, 2)
    h, w = shape[y], shape[x]

    def element(*i: Expr) -> Expr:
        inside = tirx.all(i[y] >= top, i[y] < top + h, i[x] >= left, i[x] < left + w)
        at = [*i[:y], i[y] - top, i[x] - left, *i[x + 1 :]]
        return tirx.if_then_else(inside, data(*at), tirx.const(0.0, data.dtype))

    shape[y], shape[x] = h + top + bottom, w + left + right
    return te.compute(shape, element, name=PADDED)


def call(
    bb: relax.BlockBuilder, compute: object, x: relax.Expr, weights: np.ndarray, name: str
) -> relax.Expr:
    """A call of `compute` on `x` and the constant `weights` that elementwise operators are fused into."""
    call = bb.call_te(compute, x, relax.const(weights), primfunc_name_hint=name)
    function = call.args[0]
    module = bb.get()
    # TVM's analysis takes a sum that is cut afterwards for opaque.
    bb.update_func(function, module[function].with_attr("op_pattern", _FUSES_ELEMENTWISE))
    return call


#: TVM's OpPatternKind of convolutions: what follows elementwise is computed on their results at once.
_FUSES_ELEMENTWISE = 4
