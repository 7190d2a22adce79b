"""The C side of a CPU artifact: memory plan, threads, errors, and the library without Python."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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
from lowerkit.targets.cpu import arena, build, c_source, features
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
            np.testing.assert_allclose(runner(inputs)[name], want, rtol=1e-5, atol=1e-6, err_msg=name)


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
    specs = [[{"name": name, "dtype": "float32", "shape": [size]}] for name in "xy"]
    build.write_objects(program, {"k_kernel": function}, "x86-64-v2", directory, *specs)
    build.link(directory, directory / "model.so")
    return directory / "model.so"


def opened(path: Path, threads: int) -> tuple[ctypes.CDLL, ctypes.c_void_p]:
    loaded, model = ctypes.CDLL(str(path)), ctypes.c_void_p()
    loaded.lowerkit_error.restype = ctypes.c_char_p
    assert loaded.lowerkit_open(ctypes.byref(model), threads) == 0, loaded.lowerkit_error()
    return loaded, model


def call(loaded: ctypes.CDLL, model: ctypes.c_void_p, x: np.ndarray, y: np.ndarray) -> int:
    pointers = [(ctypes.c_void_p * 1)(array.ctypes.data) for array in (x, y)]
    return int(loaded.lowerkit_run(model, *pointers))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_an_assertion_of_a_kernel_is_an_error_with_its_text(threads: int, tmp_path: Path) -> None:
    loaded, model = opened(library(tmp_path, positive, 64), threads)
    y = np.zeros(64, F32)
    for bad in (0, 40, 63):
        x = np.ones(64, F32)
        x[bad] = -1
        assert call(loaded, model, x, y) == 4
        text = loaded.lowerkit_error().decode()
        assert text == "kernel 'k_kernel' stopped: ValueError: an element is not positive"
        assert call(loaded, model, np.ones(64, F32), y) == 0
        np.testing.assert_array_equal(y, 2)
    loaded.lowerkit_close(model)


@T.prim_func(private=True, s_tir=True)
def scratch(x: T.Buffer((77,), "float32"), y: T.Buffer((77,), "float32")):
    T.func_attr({"tirx.noalias": True})
    for i in T.parallel(77):
        with T.sblock("outer"):
            v = T.axis.spatial(77, i)
            tile = T.sblock_alloc_buffer((9000,), "float32")
            for j in range(9000):
                with T.sblock("fill"):
                    w = T.axis.spatial(9000, j)
                    tile[w] = x[v] + T.Cast("float32", w)
            y[v] = tile[v] + tile[8999]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_scratch_memory_of_threads_is_apart(threads: int, tmp_path: Path) -> None:
    loaded, model = opened(library(tmp_path, scratch, 77), threads)
    x, y = np.arange(77, dtype=F32), np.zeros(77, F32)
    for _ in range(200 // threads):
        y[:] = 0
        assert call(loaded, model, x, y) == 0
        np.testing.assert_array_equal(y, 3 * x + 8999)
    loaded.lowerkit_close(model)


def test_buffers_at_any_address_are_taken(tmp_path: Path) -> None:
    loaded, model = opened(library(tmp_path, scratch, 77), 1)
    x = np.arange(77, dtype=F32)
    for offset in (0, 1, 4, 32):
        memory = np.zeros(1024, np.uint8)
        source, target = memory[offset : offset + 308], memory[512 + offset : 820 + offset]
        source[:] = x.view(np.uint8)
        assert call(loaded, model, source, target) == 0
        np.testing.assert_array_equal(np.frombuffer(target.tobytes(), F32), 3 * x + 8999)
    loaded.lowerkit_close(model)


WIDE = "g (float[64,256] x, float[256,256] w) => (float[64,256] y) { a = MatMul(x, w) b = Tanh(a) y = MatMul(b, w) }"


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wide")
    weights = np.random.default_rng(3).standard_normal((256, 256)).astype(F32)
    TARGET.emit(parse(WIDE, w=weights), {}, directory)
    return directory


@pytest.mark.parametrize("threads", [2, 4])
def test_loops_have_no_race(threads: int, pool_stress: Path) -> None:
    # Without random addresses, which ThreadSanitizer may not find room beside.
    command = ["setarch", "-R", pool_stress, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if "unexpected memory mapping" in done.stderr or "setarch: failed" in done.stderr:
        pytest.skip("ThreadSanitizer does not run here")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def pool_stress(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pool") / "stress"
    sources = [Path(__file__).parent / "cpu_pool.c", *(build.RUNTIME / f"{name}.c" for name in POOL_SOURCES)]
    flags = ["-std=gnu11", "-g", "-O1", "-pthread", "-fsanitize=thread", f"-I{build.RUNTIME}"]
    subprocess.run(["gcc", *flags, *sources, "-o", path], check=True)
    return path


POOL_SOURCES = ("pool", "memory", "model", "features")


def test_models_compute_side_by_side(wide: Path, tmp_path: Path) -> None:
    TARGET.emit(parse("g (float[64,256] x) => (float[64,256] y) { y = Softmax(x) }"), {}, tmp_path)
    runners = [CpuRunner(wide, 2), CpuRunner(tmp_path, 2), CpuRunner(wide, 1)]
    inputs = {"x": np.random.default_rng(8).standard_normal((64, 256)).astype(F32)}
    expected = [runner(inputs)["y"] for runner in runners]
    with ThreadPoolExecutor(len(runners)) as threads:
        for _ in range(20):
            for found, want in zip(threads.map(lambda r: r(inputs)["y"], runners), expected, strict=True):
                np.testing.assert_array_equal(found, want)


def test_threads_sleep_between_calls(wide: Path) -> None:
    runners = [CpuRunner(wide, threads) for threads in (2, 4)]
    inputs = {"x": np.ones((64, 256), F32)}
    for runner in runners:
        runner(inputs)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.005


def test_a_child_of_fork_is_refused_and_may_open_again(wide: Path) -> None:
    code = (
        "import os, sys, numpy as np; from lowerkit.targets.cpu.runner import CpuRunner, DataError\n"
        "runner, x = CpuRunner(sys.argv[1], 2), {'x': np.ones((64, 256), np.float32)}\n"
        "want = runner(x)['y']\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try: runner(x)\n"
        "    except DataError as error: refused = 'before fork()' in str(error)\n"
        "    runner = None\n"
        "    os._exit(0 if refused and (CpuRunner(sys.argv[1], 2)(x)['y'] == want).all() else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or int((runner(x)['y'] != want).any()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, wide], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_steps_are_timed_by_name(wide: Path) -> None:
    steps = CpuRunner(wide, 1).profile({"x": np.ones((64, 256), F32)})
    assert [name for name, _ in steps][-1].startswith("k_")
    assert all(0 < seconds < 1 for _, seconds in steps)


def test_only_the_public_functions_are_visible(wide: Path) -> None:
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", wide / "model.so"], capture_output=True, text=True
    )
    assert symbols.returncode == 0
    names = {line.split()[-1] for line in symbols.stdout.splitlines()}
    assert "lowerkit_run" in names
    assert all(name.startswith("lowerkit_") for name in names)


# Without Python.

MIXED = """g (float[7,49] x, int64[3] i, float[49,47] w, int64[1] k) => (float[7,5] v, int64[7,5] j, float[3,47] t) {
    a = MatMul(x, w)
    b = Softmax(a)
    v, j = TopK(b, k)
    t = Gather(b, i)
}"""


@pytest.fixture(scope="module")
def mixed() -> ir.Model:
    weights = np.random.default_rng(5).standard_normal((49, 47)).astype(F32)
    return parse(MIXED, w=weights, k=np.array([5]))


def run_binary(command: Sequence[str | Path], model: ir.Model) -> None:
    """Run the example program, and compare what it writes with onnxruntime."""
    inputs = {"x": np.random.default_rng(6).standard_normal((7, 49)).astype(F32), "i": np.array([6, 0, 3])}
    data = b"".join(array.tobytes() for array in inputs.values())
    done = subprocess.run(command, input=data, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    assert b"output v: float32 [7, 5]" in done.stderr
    rest = done.stdout
    for want in Reference(model)(inputs).values():
        found = np.frombuffer(rest[: want.nbytes], want.dtype).reshape(want.shape)
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)
        rest = rest[want.nbytes :]
    assert rest == b""


def test_the_c_example_runs_the_library_alone(mixed: ir.Model, tmp_path: Path) -> None:
    TARGET.emit(mixed.clone(), {}, tmp_path)
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    command = ["gcc", *flags, "example.c", "model.so", "-Wl,-rpath,$ORIGIN", "-o", "example"]
    subprocess.run(command, cwd=tmp_path, check=True)
    linked = subprocess.run(["ldd", tmp_path / "example"], capture_output=True, text=True, check=True).stdout
    assert "python" not in linked
    assert "tvm" not in linked
    run_binary([tmp_path / "example", "2", "3"], mixed)
    cut = subprocess.run([tmp_path / "example"], input=b"1234", capture_output=True, check=False)
    assert cut.returncode == 1
    assert b"stdin ends before input x" in cut.stderr


def test_the_c_code_is_clean_under_sanitizers(mixed: ir.Model, tmp_path: Path) -> None:
    with tvm.target.Target(features.tvm_target("x86-64-v2")):
        program, kernels = build.lower(import_model(mixed.clone(), CONVERTERS), "x86-64-v2")
    inputs = [("x", "float32", [7, 49]), ("i", "int64", [3])]
    outputs = [("v", "float32", [7, 5]), ("j", "int64", [7, 5]), ("t", "float32", [3, 47])]
    keys = ("name", "dtype", "shape")
    specs = [[dict(zip(keys, spec, strict=True)) for spec in side] for side in (inputs, outputs)]
    build.write_objects(program, kernels, "x86-64-v2", tmp_path, *specs)
    sources = sorted(build.RUNTIME.glob("*.c"))
    flags = [*build.CFLAGS, "-O1", "-g", "-Werror", f"-I{build.RUNTIME}"]
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
