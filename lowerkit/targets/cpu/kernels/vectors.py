"""Vectors of float32 in hand-written TIR: what kernels with loops of their own share.

Such kernels are written with TVM's IRBuilder, so that tails of rows and tiles are code of their own, made by the
same Python functions as the whole ones. Buffers are flat; offsets count elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import tvm
from tvm import relax, tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lowerkit.targets.cpu import features

#: Elements, or more, below which starting threads costs more than they save.
PARALLEL_FROM = 1 << 14
#: TVM's name for functions that nothing is fused with.
_OPAQUE = 8


def flat(buffer: tirx.Buffer) -> tirx.Buffer:
    """The same memory with one axis."""
    size = math.prod(int(dim) for dim in buffer.shape)
    return T.decl_buffer((size,), str(buffer.ty.dtype), data=buffer.data)


def load(buffer: tirx.Buffer, at: Expr | int, lanes: int, stride: int = 1) -> Expr:
    """`lanes` elements from `at` on, `stride` apart."""
    return buffer[tirx.Ramp(at, stride, lanes)] if lanes > 1 else buffer[at]


def store(buffer: tirx.Buffer, value: Expr, at: Expr | int, lanes: int) -> None:
    """`value`, a vector or a number for all lanes, from `at` on."""
    if lanes > 1 and lanes_of(value) == 1:
        value = tirx.Broadcast(value, lanes)
    T.buffer_store(buffer, value, [tirx.Ramp(at, 1, lanes) if lanes > 1 else at])


def filled(number: float, like: Expr) -> Expr:
    """`number` in as many lanes as `like` has."""
    lanes = lanes_of(like)
    return tirx.Broadcast(f32(number), lanes) if lanes > 1 else f32(number)


def lanes_of(value: Expr) -> int:
    """How many numbers `value` is; 1 for one that is no vector."""
    return int(tvm.DataType(str(value.ty.dtype)).lanes)


def across(vector: Expr, lanes: int, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """All lanes of a vector combined, in halves; `lanes` is a power of two."""
    while lanes > 1:
        lanes //= 2
        halves = [T.bind(tirx.Shuffle([vector], list(range(i, i + lanes)))) for i in (0, lanes)]
        vector = T.bind(combine(*halves))
    return vector


def pieces(width: int, lanes: int) -> Iterator[tuple[int, int]]:
    """(start, lanes) of the vectors that cover `width`; the last may be narrower."""
    for start in range(0, width, lanes):
        yield start, min(lanes, width - start)


def loop(count: int) -> T.frame.ForFrame:
    """A loop of 0 to `count`."""
    return T.serial(0, count)


def call_kernel(
    bb: relax.BlockBuilder,
    name: str,
    arguments: Sequence[relax.Expr],
    shape: Sequence[int],
    body: Callable[..., None],
    results: int = 1,
) -> relax.Expr:
    """A call of a new function whose statements `body` writes.

    Args:
        arguments: tensors of static shape; `body` gets a buffer for each, and one for each result.
        shape: of a result, float32.
        results: how many there are; more than one are a tuple.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True, "op_pattern": _OPAQUE})
        buffers = [
            T.arg(f"a{index}", T.buffer([int(dim) for dim in x.ty.shape], str(x.ty.dtype.dtype)))
            for index, x in enumerate(arguments)
        ]
        outs = [
            T.arg("out" if results == 1 else f"out{index}", T.buffer(list(shape), "float32"))
            for index in range(results)
        ]
        with T.sblock("root"):  # a pass of TVM's that looks for reshapes wants one
            T.reads([])
            T.writes([])
            body(*buffers, *outs)
    # A branch of an If has a builder of its own, which does not know the others' names.
    function: tirx.PrimFunc = builder.get().without_attr("global_symbol")
    variable = bb.add_func(function, name)
    types = [relax.TensorType(list(shape), "float32")] * results
    return bb.emit(relax.call_tir(variable, list(arguments), out_ty=types[0] if results == 1 else types))


def f32(value: float) -> Expr:
    """A float32 constant."""
    return tirx.const(value, "float32")


def vector_lanes() -> int:
    """Float32 lanes of a vector register of the processor that is compiled for."""
    target = tvm.target.Target.current(allow_none=True)
    return features.level(str(target.attrs["mcpu"]) if target is not None else features.default_cpu()).lanes


def fuses_products() -> bool:
    """Whether that processor has a fused multiply-add, so that products in sums are not rounded."""
    return vector_lanes() > features.level("x86-64-v2").lanes
