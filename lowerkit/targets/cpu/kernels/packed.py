"""Convolutions by constant weights, packed when compiling so that loads are contiguous.

A panel holds the weights of PANEL output channels side by side for each step of the reduction, which is what
the inner loop of a matrix product reads. The last panel is padded with zeros.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax, te, tirx
from tvm.ir import Op

#: Output channels of a panel: two AVX registers, or one AVX-512 register, of float32.
PANEL = 16


def legalizations() -> dict[str, object]:
    """Relax operator -> how to legalise it, for LegalizeOps; what does not apply is left to TVM."""
    return {"relax.nn.conv2d": _conv2d}


def _conv2d(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    x, w = call.args
    attrs = call.attrs
    weight = _constant(w)
    shape, out = _static_shape(x), _static_shape(call)
    plain = attrs.data_layout == "NCHW" and attrs.kernel_layout == "OIHW" and attrs.out_layout == "NCHW"
    if weight is None or shape is None or out is None or not plain or attrs.groups != 1:
        return _by_tvm("relax.nn.conv2d", bb, call)
    channels, depth, kh, kw = weight.shape
    (sh, sw), (dh, dw) = (int(s) for s in attrs.strides), (int(d) for d in attrs.dilation)
    # Along a row of outputs that fills vectors, TVM's own order of loops reads contiguously already.
    if channels % 8 or str(x.ty.dtype) != "float32" or (sw == 1 and out[3] % 8 == 0):
        return _by_tvm("relax.nn.conv2d", bb, call)
    top, left, bottom, right = (int(p) for p in attrs.padding)
    batch, _, height, width = shape

    def conv(data: te.Tensor, panels: te.Tensor) -> te.Tensor:
        source = data
        if top or left or bottom or right:
            zero = tirx.const(0.0, "float32")
            source = te.compute(
                (batch, depth, height + top + bottom, width + left + right),
                lambda n, c, i, j: tirx.if_then_else(
                    tirx.all(i >= top, i < top + height, j >= left, j < left + width),
                    data[n, c, i - top, j - left],
                    zero,
                ),
                name="pad_temp",
            )
        c = te.reduce_axis((0, depth), "c")
        r = te.reduce_axis((0, kh), "r")
        s = te.reduce_axis((0, kw), "s")
        return te.compute(
            out,
            lambda n, o, i, j: te.sum(
                source[n, c, i * sh + r * dh, j * sw + s * dw] * panels[o // PANEL, c, r, s, o % PANEL],
                axis=[c, r, s],
            ),
            name="conv2d_packed",
        )

    packed = pack(weight.reshape(channels, -1).T).reshape(-1, depth, kh, kw, PANEL)
    return bb.call_te(conv, x, relax.const(packed), primfunc_name_hint="conv2d")


def pack(weight: np.ndarray) -> np.ndarray:
    """[K, N] -> [ceil(N / PANEL), K, PANEL], the last panel padded with zeros."""
    depth, width = weight.shape
    count = -(-width // PANEL)
    padded = np.zeros((depth, count * PANEL), weight.dtype)
    padded[:, :width] = weight
    return np.ascontiguousarray(padded.reshape(depth, count, PANEL).transpose(1, 0, 2))


def _constant(value: relax.Expr) -> np.ndarray | None:
    if isinstance(value, tvm.ir.GenericConst):
        array: np.ndarray = value.value.numpy()
        return array if array.dtype == np.float32 else None
    return None


def _static_shape(value: relax.Expr) -> list[int] | None:
    shape = value.ty.shape
    if shape is None or not all(isinstance(dim, tirx.IntImm) for dim in shape):
        return None
    return [int(dim) for dim in shape]


def _by_tvm(name: str, bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    return Op.get(name).get_attr("FLegalize")(bb, call)
