"""The C side of a CPU artifact: memory plan, threads, errors, and the library without Python."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm.script import tirx as T

from lowerkit.errors import DataError
from lowerkit.reference import Reference
from lowerkit.targets.cpu import arena, build, c_source
from lowerkit.targets.cpu.arena import Lifetime
from lowerkit.targets.cpu.importer import import_model
from lowerkit.targets.cpu.kernels import CONVERTERS
from lowerkit.targets.cpu.program import Buffer, Call, Program, Where
from lowerkit.targets.cpu.runner import CpuRunner
from lowerkit.targets.cpu.target import CpuTarget

TARGET = CpuTarget()
HEADER = '<ir_version: 10, opset_import: ["" : 23]> '
F32 = np.float32


def parse(text: str, **constants: np.ndarray) -> ir.Model:
    """A model from its text; `constants` become initializers instead of inputs."""
    model = ir.serde.deserialize_model(onnx.parser.parse_model(HEADER + text))
    for name, array in constants.items():
        value = next(v for v in model.graph.inputs if v.name == name)
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=name)
        model.graph.register_initializer(value)
    return model


# The memory plan.


@st.composite
def lifetimes(draw: st.DrawFn) -> list[Lifetime]:
    spans = st.tuples(st.integers(0, 300), st.integers(0, 12), st.integers(0, 6))
    return [
        Lifetime(size, first, first + length) for size, first, length in draw(st.lists(spans, max_size=20))
    ]


@settings(deadline=None)
@given(lifetimes())
def test_values_that_are_alive_together_share_no_byte(values: list[Lifetime]) -> None:
    offsets, size = arena.place(values)
    for i, (value, start) in enumerate(zip(values, offsets, strict=True)):
        assert start % arena.ALIGNMENT == 0
        assert start + value.size <= size
        for other, at in zip(values[:i], offsets[:i], strict=True):
            if value.first <= other.last and other.first <= value.last:
                assert start + value.size <= at or at + other.size <= start
    rounded = [-(-value.size // arena.ALIGNMENT) * arena.ALIGNMENT for value in values]
    alive = [
        sum(n for n, value in zip(rounded, values, strict=True) if value.first <= step <= value.last)
        for step in range(20)
    ]
    assert max(alive) <= size <= sum(rounded)


def test_a_chain_takes_the_memory_of_two_values() -> None:
    values = [Lifetime(1024, step, step + 1) for step in range(9)]
    assert arena.place(values)[1] == 2048


# What the program does.


def test_if_takes_one_branch_and_keeps_what_both_need(tmp_path: Path) -> None:
    model = parse(
        """g (bool c, float[3,5] x) => (float[3,5] y, float[3,5] z) {
            a = Exp(x)
            b = If (c) <
                then_branch = t () => (float[3,5] u) { p = Softmax(a) u = Add(p, x) },
                else_branch = e () => (float[3,5] v) { q = Softmax<axis = 0>(a) v = Mul(q, a) }
            >
            y = Mul(b, a)
            z = Identity(b)
        }"""
    )
    TARGET.emit(model.clone(), {}, tmp_path)
    runner = CpuRunner(tmp_path, 1)
    x = np.random.default_rng(1).standard_normal((3, 5)).astype(F32)
    for condition in (True, False):
        inputs = {"c": np.array(condition), "x": x}
        for name, want in Reference(model)(inputs).items():
            np.testing.assert_allclose(runner(inputs)[name], want, rtol=1e-6, err_msg=f"{name} {condition}")


@pytest.fixture(scope="module")
def topk(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("topk") / "topk.so"
    sources = [build.RUNTIME / "topk.c", build.RUNTIME / "memory.c"]
    # What it would say when there is no memory is part of the whole runtime.
    flags = ["-std=c11", "-O1", "-shared", "-fPIC", "-Wl,--defsym=lk_fail=0"]
    subprocess.run(["gcc", *flags, *sources, "-o", path], check=True)
    return ctypes.CDLL(str(path))


@pytest.mark.parametrize("size", [1, 2, 7, 48, 49])
@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"])
def test_topk_orders_ties_zeros_and_nan(size: int, largest: int, dtype: str, topk: ctypes.CDLL) -> None:
    kind, rng = np.dtype(dtype), np.random.default_rng(2)
    x = rng.integers(0 if kind.kind == "u" else -4, 5, (3, size, 5)).astype(kind)
    if kind.kind == "f":
        x[rng.random(x.shape) < 0.1] = np.nan
        x[rng.random(x.shape) < 0.1] = -np.nan
        x[rng.random(x.shape) < 0.1] = -0.0
        x[rng.random(x.shape) < 0.1] = np.inf
    else:
        x[rng.random(x.shape) < 0.1] = np.iinfo(kind).max
        x[rng.random(x.shape) < 0.1] = np.iinfo(kind).min
    for k in {1, (size + 1) // 2, size}:
        values, indices = np.zeros((3, k, 5), kind), np.zeros((3, k, 5), np.int64)
        numbers = [ctypes.c_int64(n) for n in (3, size, 5, k)]
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (x, values, indices)]
        shape = ctypes.c_char(kind.kind.encode()), ctypes.c_int(kind.itemsize)
        assert topk.lk_topk(pointers[0], *shape, *numbers, ctypes.c_int(largest), *pointers[1:]) == 0
        # A stable sort by value, NaN last, gives equal elements in their order.
        ranks = np.unique(x, return_inverse=True)[1].reshape(x.shape)
        order = np.argsort(-ranks if largest else ranks, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(indices, order)
        np.testing.assert_array_equal(values, np.take_along_axis(x, order, 1))


# Errors and threads.


@T.prim_func(private=True, s_tir=True)
def positive(x: T.Buffer((64,), "float32"), y: T.Buffer((64,), "float32")):
    T.func_attr({"tirx.noalias": True})
    for i in T.parallel(64):
        with T.sblock("positive"):
            v = T.axis.spatial(64, i)
            assert x[v] > T.float32(0), ("ValueError", ["an element is not positive"])
            y[v] = x[v] + T.float32(1)


def library(directory: Path, function: tvm.tirx.PrimFunc, size: int) -> Path:
    """The library of a model of one kernel, from float32[size] to float32[size]."""
    buffers = Buffer(Where.INPUT, 4 * size), Buffer(Where.OUTPUT, 4 * size)
    program = Program((Call("k_kernel", buffers),), constants=b"", arena=0)
    keys = ("name", "dtype", "shape")
    specs = [[dict(zip(keys, spec, strict=True)) for spec in side] for side in (inputs, outputs)]
    build.write_objects(program, kernels, "x86-64-v2", tmp_path, *specs)
    sources = sorted(build.RUNTIME.glob("*.c"))
    flags = ["-std=c11", "-g", "-O1", "-pthread", "-Wall", "-Wextra", "-Werror", f"-I{build.RUNTIME}"]
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    own = ["program.c", "constants.o", "kernels.o", "-lm"]
    subprocess.run(["gcc", *flags, *sanitize, *sources, *own, "-o", "example"], cwd=tmp_path, check=True)
    run_binary([tmp_path / "example", "3", "5"], mixed)


def test_a_feature_that_no_processor_has_is_refused_before_anything_runs(tmp_path: Path) -> None:
    """The same check that refuses an AVX-512 artifact on an AVX2 processor, where this one has all that exist."""
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "internal.h"\nint main(void) {\n'
        '    const char *const known[] = {"sse4_2", NULL}, *const unknown[] = {"sse4_2", "avx9000", "ssse3", NULL};\n'
        '    printf("%s %s", lk_lacking(known) ? "lacks" : "has", lk_lacking(unknown));\n    return 0;\n}\n'
    )
    command = ["gcc", f"-I{build.RUNTIME}", "main.c", build.RUNTIME / "features.c", "-o", "main"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert subprocess.run([tmp_path / "main"], capture_output=True, text=True).stdout == "has avx9000"


def test_names_become_c_strings() -> None:
    assert c_source._text('a"\\b?é\n') == '"a\\042\\134b\\077\\303\\251\\012"'


def test_names_of_any_kind_pass_through(tmp_path: Path) -> None:
    model = parse("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    model.graph.inputs[0].name = 'x"\\%s/é'
    TARGET.emit(model, {}, tmp_path)
    runner = CpuRunner(tmp_path, 1)
    np.testing.assert_array_equal(runner({'x"\\%s/é': np.ones(2, F32)})["y"], [-1, -1])
    with pytest.raises(DataError, match="is missing"):
        runner({})
