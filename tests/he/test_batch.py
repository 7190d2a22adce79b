"""Several samples in one ciphertext."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from he_models import emitted, uniform
from helpers import parse
from test_attention import attention
from test_packing import check

from lowerkit.reference import Reference
from lowerkit.targets.he.packed import Packed
from lowerkit.targets.he.packing.batch import one_of
from lowerkit.targets.he.reading import read
from lowerkit.targets.he.target import HeTarget


def _network(batch: int) -> str:
    return f"""(float[{batch},2,6,6] x) => (float[{batch},3] y) {{
        h = Conv (x, w)
        s = Mul (h, h)
        p = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (s)
        f = Flatten (p)
        y0 = MatMul (f, v)
        y = Add (y0, b)
    }}"""


def _weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    return {
        "w": rng.standard_normal((4, 2, 3, 3)).astype(np.float32),
        "v": rng.standard_normal((16, 3)).astype(np.float32),
        "b": rng.standard_normal(3).astype(np.float32),
    }


def _counts(packed: Packed) -> Counter[str]:
    return Counter(op.kind for op in packed.ops)


@pytest.mark.parametrize("packing", ["auto", "diagonals"])
def test_a_batch_of_attention_takes_the_operations_of_one_sample(packing: str) -> None:
    one, four = attention(4, 2, 4), attention(4, 2, 4, batch=4)
    alone = check(read(one), uniform(one, 1), 256, packing)
    together = check(read(four), uniform(four, 1), 1024, packing)
    assert _counts(together) == _counts(alone)


@pytest.mark.parametrize(
    ("batch", "slots", "ciphertexts"), [(2, 512, 1), (3, 512, 1), (3, 64, 3), (5, 256, 2)]
)
def test_batches_of_any_size(batch: int, slots: int, ciphertexts: int) -> None:
    model = parse(_network(batch), **_weights())
    packed = check(read(model), uniform(model, 2), slots, "auto")
    assert len(packed.outputs) == ciphertexts


def test_samples_that_meet_are_no_batch() -> None:
    model = parse(
        "(float[4,6] x) => (float[4,6] y) { m = ReduceMean <keepdims = 1> (x, a) y = Mul (x, m) }",
        a=np.array([0]),
    )
    program = read(model)
    assert one_of(program) == (program, 1)
    check(program, uniform(model, 1), 64, "auto")


def test_an_encrypted_batch(tmp_path: Path) -> None:
    pytest.importorskip("seal", reason="SEAL is missing: pip install seal-python")
    model = parse(_network(3), **_weights())
    folder = emitted(model, tmp_path / "out")
    run = HeTarget().open(folder, {})
    (sample,) = uniform(model, 1)
    np.testing.assert_allclose(run(sample)["y"], Reference(model)(sample)["y"], atol=1e-4)
