"""Matrix products of the cpu target against the peak of one core, which is measured in the same process.

    python -m benchmarks.cpu_gemm [--cpu x86-64-v3] [--kinds float32,int8] [--shapes 128x384x384,...] [--json FILE]
    [--markdown FILE]

A row is a product [M, K] by constant [K, N] with a bias behind it, on one thread, without what brings activations
into the product's type (a column of its own). The peak is that of independent multiply-adds of float32 in registers,
measured before and after every product, of which the better counts; for other types the same number is the unit, so
that their columns say how many times float32's peak they reach. Times are CPU times that a tenth of
the calls do not exceed: other work on the machine lengthens the rest. From memory: every call has other weights, of
which no cache holds as many.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx

from benchmarks.tables import Column, publish
from lowerkit.targets.cpu import features
from lowerkit.targets.cpu.kernels.gemm.expressions import ramp, splat
from lowerkit.targets.cpu.kernels.gemm.machine import machine
from lowerkit.targets.cpu.kernels.gemm.operators import converters, matmul
from lowerkit.targets.cpu.schedule import ScheduleForCpu

SHAPES = (
    "128x384x384,128x384x1152,128x384x1536,128x1536x384,197x192x192,197x192x768,197x768x192,"
    "1x784x128,1x384x1536,97x97x97,17x49x47"
)
KINDS = "float32,bf16,int8,weight-int8,weight-int4"
OPERATORS = {
    "bf16": "MatMulBf16",
    "int8": "MatMulInt8",
    "weight-int8": "MatMulWeightInt8",
    "weight-int4": "MatMulWeightInt4",
}
COLUMNS = (
    Column("kind", "{kind}"),
    Column("M x K x N", "{shape}"),
    Column("us", "{us:.1f}"),
    Column("of float32's peak", "{of_peak:.2f}"),
    Column("from memory", "{of_peak_from_memory:.2f}"),
    Column("us for the activations", "{before_us:.1f}"),
)
#: How long a call is repeated, and how often at least.
_SECONDS, _CALLS = 0.3, 30
#: Bytes of weights that no cache holds.
_FROM_MEMORY = 96 << 20


def least(call: Callable[[], object], seconds: float = _SECONDS) -> float:
    """The CPU time that a tenth of the calls within so many seconds take at most."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < _CALLS:
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return sorted(times)[len(times) // 10]


def build(function: tirx.PrimFunc, cpu: str) -> Callable[..., None]:
    """Compile one function."""
    target = tvm.target.Target(features.tvm_target(cpu))
    named = function.with_attr("global_symbol", "main")
    compiled: Callable[..., None] = tvm.compile(tvm.IRModule({"main": named}), target)["main"]
    return compiled


def peak(cpu: str, rounds: int = 20_000) -> Callable[[], float]:
    """A function that measures multiplications and additions a second of independent sums in registers."""
    lanes, sums = features.level(cpu).lanes, 12
    data = tirx.decl_buffer((sums * lanes,), "float32", "data")
    step = tirx.Var("step", "int64")
    places = [[ramp(tirx.const(i * lanes, "int64"), lanes)] for i in range(sums)]
    variables = [tirx.decl_buffer((lanes,), "float32", f"sum{i}") for i in range(sums)]
    whole = [ramp(tirx.const(0, "int64"), lanes)]
    factor, term = (splat(tirx.const(x, "float32"), lanes) for x in (0.5, 0.25))
    body = [tirx.BufferStore(v, tirx.BufferLoad(v, whole) * factor + term, whole) for v in variables]
    many = tirx.For(
        step, tirx.const(0, "int64"), tirx.const(rounds, "int64"), tirx.ForKind.SERIAL, tirx.SeqStmt(body)
    )
    loads = [
        tirx.BufferStore(v, tirx.BufferLoad(data, p), whole) for v, p in zip(variables, places, strict=True)
    ]
    stores = [
        tirx.BufferStore(data, tirx.BufferLoad(v, whole), p) for v, p in zip(variables, places, strict=True)
    ]
    buffers = [tirx.AllocBuffer(v) for v in variables]
    call = build(tirx.PrimFunc([data], tirx.SeqStmt([*buffers, *loads, many, *stores])), cpu)
    array = tvm.runtime.tensor(np.ones(sums * lanes, np.float32))
    return lambda: 2 * sums * lanes * rounds / least(lambda: call(array))


def functions(kind: str, rows: int, depth: int, width: int, cpu: str) -> list[tirx.PrimFunc]:
    """The scheduled functions of a product and a bias, in the order in which they run."""
    rng = np.random.default_rng(0)
    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((rows, depth), "float32"))
    with bb.function("main", [x]):
        with bb.dataflow():
            y = operator(bb, kind, x, rng, width, cpu)
            bias = relax.const(rng.standard_normal(width).astype(np.float32))
            out = bb.emit_output(bb.emit(relax.op.add(y, bias)))
        bb.emit_func_output(out)
    t = relax.transform
    legalise = t.LegalizeOps({"relax.matmul": matmul(machine(cpu))})
    passes = [legalise, t.AnnotateTIROpPattern(), t.FuseOps(), t.FuseTIR(), ScheduleForCpu(cpu)]
    with tvm.target.Target(features.tvm_target(cpu)):
        module = tvm.transform.Sequential(passes)(bb.get())
    calls: list[tirx.PrimFunc] = []
    for binding in module["main"].body.blocks[0].bindings:
        if isinstance(binding.value, relax.Call) and binding.value.op.same_as(
            tvm.ir.Op.get("relax.call_tir")
        ):
            calls.append(module[binding.value.args[0]])
    return calls


def operator(
    bb: relax.BlockBuilder, kind: str, x: relax.Expr, rng: np.random.Generator, width: int, cpu: str
) -> relax.Expr:
    """The product of `x` by random weights."""
    depth = int(x.ty.shape[1])
    if kind == "float32":
        weight = rng.standard_normal((depth, width)).astype(np.float32)
        return bb.emit(relax.op.matmul(x, relax.const(weight)))
    inputs = [x, relax.const(rng.integers(-8, 8, (depth, width)).astype(np.int8))]
    if kind == "bf16":
        inputs[1] = relax.const(rng.integers(16000, 16400, (depth, width)).astype(np.uint16))
    else:
        groups = depth // 32 if kind == "weight-int4" and depth % 32 == 0 else 1
        shape = (groups, width) if kind == "weight-int4" else (width,)
        inputs.append(relax.const(rng.random(shape, np.float32)))
    return bb.emit(converters(machine(cpu))[OPERATORS[kind]](bb, inputs, {}))


def measure(kind: str, shape: str, cpu: str, top: Callable[[], float]) -> dict[str, Any]:
    """One row of the table."""
    rows, depth, width = (int(n) for n in shape.split("x"))
    times = []
    best = top()
    for function in functions(kind, rows, depth, width, cpu):
        call = build(function, cpu)
        rng = np.random.default_rng(1)
        arrays = [_array(parameter, rng) for parameter in function.params]
        times.append(least(partial(call, *arrays)))
    from_memory = least(_with_other_weights(call, arrays))
    best = max(best, top())
    return {
        "kind": kind,
        "shape": shape,
        "us": times[-1] * 1e6,
        "before_us": sum(times[:-1]) * 1e6,
        "of_peak": 2 * rows * depth * width / times[-1] / best,
        "of_peak_from_memory": 2 * rows * depth * width / from_memory / best,
        "peak_gflops": best / 1e9,
    }


def _with_other_weights(
    call: Callable[..., None], arrays: Sequence[tvm.runtime.Tensor]
) -> Callable[[], None]:
    """The product, with the next copy of its weights in every call."""
    x, weights, *rest = arrays
    data = weights.numpy()
    copies = itertools.cycle([tvm.runtime.tensor(data) for _ in range(-(-_FROM_MEMORY // data.nbytes))])
    return lambda: call(x, next(copies), *rest)


def _array(parameter: tirx.Var, rng: np.random.Generator) -> tvm.runtime.Tensor:
    shape, dtype = [int(dim) for dim in parameter.shape], str(parameter.dtype)
    values = rng.standard_normal(shape) if dtype == "float32" else rng.integers(0, 8, shape)
    return tvm.runtime.tensor(np.asarray(values, dtype))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cpu", default=features.default_cpu())
    parser.add_argument("--kinds", default=KINDS)
    parser.add_argument("--shapes", default=SHAPES)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args(arguments)
    top = peak(options.cpu)
    rows = [
        measure(kind, shape, options.cpu, top)
        for kind in options.kinds.split(",")
        for shape in options.shapes.split(",")
    ]
    publish("Matrix products against one core's peak", __doc__, COLUMNS, rows, options.json, options.markdown)


if __name__ == "__main__":
    main()
