"""Tensors that take several ciphertexts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from he_models import completed, emitted, uniform
from helpers import parse
from hypothesis import given, settings
from hypothesis import strategies as st
from test_attention import attention
from test_packing import check

from lowerkit.errors import UnsupportedError
from lowerkit.passes.registry import make
from lowerkit.reference import Reference
from lowerkit.targets.he.program import Polynomial, Product
from lowerkit.targets.he.reading import read
from lowerkit.targets.he.split import split
from lowerkit.targets.he.target import HeTarget


def _dense(inputs: int, hidden: int, outputs: int, seed: int = 0) -> tuple[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    weights = {
        "w": rng.standard_normal((inputs, hidden)).astype(np.float32) / np.float32(np.sqrt(inputs)),
        "d": rng.standard_normal(hidden).astype(np.float32),
        "v": rng.standard_normal((hidden, outputs)).astype(np.float32) / np.float32(np.sqrt(hidden)),
    }
    return (
        f"(float[1,{inputs}] x) => (float[1,{outputs}] y) {{ h = Gemm (x, w, d) s = Mul (h, h) y = MatMul (s, v) }}",
        weights,
    )


@settings(max_examples=15)
@given(
    sizes=st.tuples(*[st.integers(1, 70)] * 3),
    packing=st.sampled_from(["auto", "diagonals"]),
    seed=st.integers(0, 9),
)
def test_dense_layers_of_any_size(sizes: tuple[int, int, int], packing: str, seed: int) -> None:
    text, weights = _dense(*sizes, seed)
    model = parse(text, **weights)
    check(read(model), uniform(model, 1, seed), 32, packing)


@pytest.mark.parametrize("packing", ["auto", "diagonals"])
def test_convolutions_by_channels(packing: str) -> None:
    rng = np.random.default_rng(1)
    model = parse(
        """(float[1,2,8,8] x) => (float[1,3] y) {
            h = Conv <pads = [1, 1, 1, 1]> (x, w)
            s = Mul (h, h)
            p = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (s)
            q = Conv (p, u)
            f = Flatten (q)
            y = MatMul (f, v)
        }""",
        w=rng.standard_normal((6, 2, 3, 3)).astype(np.float32),
        u=rng.standard_normal((8, 6, 2, 2)).astype(np.float32),
        v=rng.standard_normal((72, 3)).astype(np.float32),
    )
    program = read(model)
    squares = next(step.name for step in program.steps if isinstance(step, Product))
    assert len(split(program, 128).parts[squares]) == 3
    check(program, uniform(model, 1), 128, packing)


@pytest.mark.parametrize("packing", ["auto", "diagonals"])
@pytest.mark.parametrize(
    ("tokens", "slots", "parts"), [(4, 64, 2), (4, 32, 4), (9, 256, 6)], ids=["heads", "rows too", "many"]
)
def test_attention_by_heads_and_rows(tokens: int, slots: int, parts: int, packing: str) -> None:
    model = attention(tokens, 2, 4)
    program = read(model)
    divided = split(program, slots)
    products = [name for name in divided.parts if isinstance(program[name], Product) and program[name].axes]
    assert {len(divided.parts[name]) for name in products} == {parts}
    # Softmax goes part by part: no product reads a value that was made only to bring parts together.
    assert not [s.name for s in divided.steps if s.name.endswith((".left", ".right"))]
    check(program, uniform(model, 1), slots, packing)


def test_inputs_outputs_and_residual_connections_are_divided() -> None:
    rng = np.random.default_rng(2)
    model = parse(
        "(float[1,40] x) => (float[1,40] y) { h = MatMul (x, w) s = Mul (h, x) y = Add (s, x) }",
        w=rng.standard_normal((40, 40)).astype(np.float32),
    )
    program = read(model)
    divided = split(program, 16)
    assert [len(divided.parts[name]) for name in ("x", "y")] == [3, 3]
    packed = check(program, uniform(model, 2), 16, "auto")
    assert len(packed.outputs) == 3


def test_a_product_of_parts_that_do_not_line_up_selects() -> None:
    model = parse(
        """(float[1,6,6] x) => (float[1,6,6] y) {
            h = MatMul (x, w) t = Transpose <perm = [0, 2, 1]> (x) y = Mul (h, t)
        }""",
        w=np.random.default_rng(3).standard_normal((6, 6)).astype(np.float32),
    )
    program = read(model)
    assert [s.name for s in split(program, 16).steps if s.name.endswith(".right")]
    check(program, uniform(model, 1), 16, "auto")


def test_polynomials_go_part_by_part() -> None:
    text, weights = _dense(8, 100, 4)
    model = parse(text.replace("s = Mul (h, h)", "s = Gelu (h)"), **weights)
    (node,) = (node for node in model.graph if node.op_type == "Gelu")
    make("gelu", "interval-poly", {"low": -8.0, "high": 8.0, "degree": 7}).rewrite(model, node)
    program = read(model)
    assert sum(isinstance(step, Polynomial) for step in split(program, 32).steps) == 4
    check(program, uniform(model, 1), 32, "auto")


def test_a_small_ring_is_enough_for_wide_layers_or_refused(tmp_path: Path) -> None:
    pytest.importorskip("seal", reason="SEAL is missing: pip install seal-python")
    text, weights = _dense(16, 3000, 4)
    model = parse(text, **weights)
    with pytest.raises(UnsupportedError, match="do not fit into 2048 slots"):
        completed(model, uniform(model, 1), ring=4096, parts=1, insecure_for_testing=True)
    folder = emitted(model, tmp_path / "out", ring=4096, insecure_for_testing=True)
    run = HeTarget().open(folder, {})
    (sample,) = uniform(model, 1)
    np.testing.assert_allclose(run(sample)["y"], Reference(model)(sample)["y"], atol=1e-3)
