"""Packed programs against the tensor programs that they pack."""

from __future__ import annotations

import numpy as np
import pytest
from he_models import uniform
from helpers import parse
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import chebyshev

from lowerkit.errors import PlanError, UnsupportedError
from lowerkit.targets.he import polynomial
from lowerkit.targets.he.packed import Packed
from lowerkit.targets.he.packing.affine import PACKINGS
from lowerkit.targets.he.packing.batch import one_of
from lowerkit.targets.he.packing.network import pack
from lowerkit.targets.he.parameters import vectors_of
from lowerkit.targets.he.program import Polynomial, Program
from lowerkit.targets.he.reading import read
from lowerkit.targets.he.split import split


def check(program: Program, samples: list[dict[str, np.ndarray]], slots: int, packing: str) -> Packed:
    """Compare all tensors of the packed program with the tensor program's; returns the former."""
    network = pack(program, slots, packing)
    divided = split(one_of(program)[0], slots, tiled=packing != "diagonals")
    for sample in samples:
        values = network.program.run(vectors_of(network, sample))
        expected = {**(divided.run(sample) if divided.parts else {}), **program.run(sample)}
        assert set(program.outputs) <= set(network.tensors)
        for name, parts in network.tensors.items():
            found = np.full(expected[name].size, np.nan)
            for part in parts:
                found[part.elements] = values[part.value][part.slots]
            np.testing.assert_allclose(found, expected[name].ravel(), atol=1e-9)
        for name, layout in network.layouts.items():  # which other slots hold what they are said to
            if name in network.values:
                held, found = layout.held(), values[network.values[name]]
                used = held >= 0
                np.testing.assert_allclose(found[used], expected[name].ravel()[held[used]], atol=1e-9)
                assert not layout.clean or not found[~used].any()
    return network.program


@settings(max_examples=40)
@given(
    sizes=st.tuples(*[st.integers(1, 40)] * 3),
    packing=st.sampled_from(PACKINGS),
    slots=st.sampled_from([64, 256]),
    seed=st.integers(0, 99),
)
def test_dense_layers(sizes: tuple[int, int, int], packing: str, slots: int, seed: int) -> None:
    a, b, c = sizes
    rng = np.random.default_rng(seed)
    model = parse(
        f"(float[1,{a}] x) => (float[1,{c}] y) {{ h = Gemm (x, w, d) s = Mul (h, h) y = MatMul (s, v) }}",
        w=rng.standard_normal((a, b)).astype(np.float32),
        d=rng.standard_normal(b).astype(np.float32),
        v=rng.standard_normal((b, c)).astype(np.float32),
    )
    check(read(model), uniform(model, 1, seed), slots, packing)


@settings(max_examples=12)
@given(
    channels=st.tuples(*[st.integers(1, 4)] * 3),
    size=st.integers(6, 9),
    kernel=st.integers(1, 3),
    pad=st.integers(0, 1),
    stride=st.integers(1, 2),
    pool=st.booleans(),
    packing=st.sampled_from(PACKINGS),
)
def test_convolutions(
    channels: tuple[int, int, int], size: int, kernel: int, pad: int, stride: int, pool: bool, packing: str
) -> None:
    a, b, c = channels
    rng = np.random.default_rng(size)
    pooled = "p = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (s)" if pool else "p = Identity (s)"
    text = f"""(float[1,{a},{size},{size}] x) => (y) {{
        h = Conv <pads = [{pad}, {pad}, {pad}, {pad}], strides = [{stride}, {stride}]> (x, w)
        s = Mul (h, h)
        {pooled}
        y = Conv (p, v)
    }}"""
    side = (size + 2 * pad - kernel) // stride + 1
    side = side // 2 if pool else side
    text = text.replace("(y)", f"(float[1,{c},{side},{side}] y)")
    model = parse(
        text,
        w=rng.standard_normal((b, a, kernel, kernel)).astype(np.float32),
        v=rng.standard_normal((c, b, 1, 1)).astype(np.float32),
    )
    check(read(model), uniform(model, 1), 1024, packing)


@pytest.mark.parametrize("packing", PACKINGS)
def test_residual_connections(packing: str) -> None:
    rng = np.random.default_rng(2)
    model = parse(
        """(float[1,12] x) => (float[1,5] y) {
            h = MatMul (x, w)
            s = Mul (h, h)
            u = MatMul (s, v)
            r = Add (x, u)
            q = Mul (r, r)
            z = Sub (q, s)
            y = MatMul (z, t)
        }""",
        w=rng.standard_normal((12, 12)).astype(np.float32),
        v=rng.standard_normal((12, 12)).astype(np.float32),
        t=rng.standard_normal((12, 5)).astype(np.float32),
    )
    check(read(model), uniform(model, 1), 64, packing)


def test_pooling_takes_rotations_and_no_level() -> None:
    model = parse(
        """(float[1,1,8,8] x) => (float[1,3] y) {
            h = Conv <pads = [1, 1, 1, 1]> (x, w)
            s = Mul (h, h)
            p = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (s)
            f = Flatten (p)
            y = MatMul (f, v)
        }""",
        w=np.random.default_rng(0).standard_normal((4, 1, 3, 3)).astype(np.float32),
        v=np.random.default_rng(1).standard_normal((64, 3)).astype(np.float32),
    )
    packed = check(read(model), uniform(model, 1), 256, "auto")
    assert max(packed.depths()) == 3


def test_tiles_need_no_rotation_of_the_input() -> None:
    rng = np.random.default_rng(0)
    model = parse(
        "(float[1,64] x) => (float[1,8] y) { y = MatMul (x, w) }",
        w=rng.standard_normal((64, 8)).astype(np.float32),
    )
    packed = check(read(model), uniform(model, 1), 128, "tiles")
    rotated = [packed.ops[op.args[0]].kind for op in packed.ops if op.kind == "rotate"]
    assert "input" not in rotated
    kinds = [op.kind for op in packed.ops]
    assert 4 <= kinds.count("mul_plain") == kinds.count("input") < 64  # 4 = 64 * 8 / 128


def test_too_many_numbers_for_the_slots_are_refused() -> None:
    model = parse(
        "(float[1,4] x) => (float[1,200] y) { h = MatMul (x, w) y = Mul (h, h) }",
        w=np.ones((4, 200), np.float32),
    )
    with pytest.raises(UnsupportedError, match="do not fit into 128 slots"):
        pack(read(model), 128, parts=1)
    with pytest.raises(PlanError, match="packing"):
        pack(read(model), 256, "rows")


@pytest.mark.parametrize("degree", range(1, 32))
def test_polynomials_at_the_least_depth(degree: int) -> None:
    rng = np.random.default_rng(degree)
    step = Polynomial("y", (32,), "n", "x", tuple(rng.standard_normal(degree + 1)), -1, 1)
    program = Packed(32)
    value = polynomial.emit(program, program.input(), step)
    x = rng.uniform(-1, 1, 32)
    np.testing.assert_allclose(program.run([x])[value], chebyshev.chebval(x, step.coefficients), atol=1e-12)
    assert program.depths()[value] == polynomial.depth(step) == int(np.ceil(np.log2(degree + 1)))
