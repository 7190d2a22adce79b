"""Dense layers by constant weights, packed when compiling so that loads are contiguous.

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
    return {"relax.matmul": _matmul}


def _matmul(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    a, b = call.args
    weight = _constant(b)
    shape = _static_shape(a)
    if weight is None or weight.ndim != 2 or shape is None or len(shape) < 2 or _product(shape[:-1]) == 1:
        return _by_tvm("relax.matmul", bb, call)
    depth, width = weight.shape
    if depth == 0 or width < PANEL or str(a.ty.dtype) != "float32":
        return _by_tvm("relax.matmul", bb, call)

    def dense(x: te.Tensor, panels: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, depth), "k")
        return te.compute(
            [*shape[:-1], width],
            lambda *i: te.sum(x(*i[:-1], k) * panels[i[-1] // PANEL, k, i[-1] % PANEL], axis=k),
            name="dense_packed",
        )

    return bb.call_te(dense, a, relax.const(pack(weight)), primfunc_name_hint="dense")


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


def _product(dims: list[int]) -> int:
    return int(np.prod(dims, dtype=np.int64))


def _by_tvm(name: str, bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    return Op.get(name).get_attr("FLegalize")(bb, call)
