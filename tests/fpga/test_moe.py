"""Mixture of experts: the kernels against numpy, the operator against its spellings, whole blocks against the C++."""

from __future__ import annotations

from trace import trace

import csim
import numpy as np
import pytest
from codes import codes
from hypothesis import given, settings
from hypothesis import strategies as st

from lowerkit.passes.activation.base import ACTIVATIONS
from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.kernels import moe
from lowerkit.targets.fpga.kernels.activation import activation
from lowerkit.targets.fpga.lang.interpret import run

GELU = next(a for a in ACTIVATIONS if a.op == "Gelu")
LOGITS, SHARE = Fixed(12, 4), Fixed(16, 1, signed=False)
FORMATS = moe.Formats(Fixed(10, 3), Fixed(12, 5), Fixed(11, 5), Fixed(14, 6))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.data())
def test_gate_takes_the_largest_and_of_equals_the_first(experts: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, experts))
    normalise = data.draw(st.booleans())
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    # Few different codes, so that many are equal.
    logits = rng.integers(-3, 4, (5, 4, experts)) * data.draw(st.sampled_from([1, 100, 682]))
    kernel, _ = moe.gate("g", 4, experts, count, LOGITS, SHARE, normalise)
    found = run(kernel, {"logits": logits})
    chosen = np.argsort(-logits, axis=-1, kind="stable")[..., :count]
    np.testing.assert_array_equal(found["expert"], chosen)
    power = np.exp((logits - logits.max(-1, keepdims=True)) * LOGITS.step)
    taken = np.take_along_axis(power, chosen, -1)
    share = taken / (taken if normalise else power).sum(-1, keepdims=True)
    np.testing.assert_allclose(SHARE.dequantise(found["share"]), share, atol=2e-3)


def test_queues_hold_every_pair_once_in_order() -> None:
    rng = np.random.default_rng(0)
    chosen = np.stack([rng.permuted(np.tile(np.arange(5), (7, 1)), axis=1)[:, :3] for _ in range(4)])
    chosen[0, :, :] = [4, 0, 2]
    found = run(moe.queues("q", 7, 5, 3)[0], {"expert": chosen})
    for sample in range(4):
        for e in range(5):
            tokens, ranks = np.nonzero(chosen[sample] == e)
            n = found["length"][sample, e]
            assert n == len(tokens)
            np.testing.assert_array_equal(found["token"][sample, e, :n], tokens)
            np.testing.assert_array_equal(found["rank"][sample, e, :n], ranks)


def products(rng: np.random.Generator, experts: int, inner: int, columns: int) -> moe.Products:
    formats = [Fixed(8, int(i)) for i in rng.integers(0, 3, experts * columns)]
    w = rng.integers(-128, 128, (experts, inner, columns))
    return moe.Products(w, formats, rng.integers(-2000, 2000, (experts, columns)))


def exact(p: moe.Products, e: int, x: np.ndarray, form: Fixed) -> np.ndarray:
    """In float64, without an error at these widths."""
    size, _, columns = p.weights.shape
    steps = np.array([f.step for f in p.formats]).reshape(size, columns)[e]
    return x @ (p.weights[e] * steps) + p.bias[e] * steps * form.step


def pieces(rng: np.random.Generator, tokens: int, count: int, size: int, **options: object) -> tuple:
    up, down = products(rng, size, 6, 8), products(rng, size, 8, 6)
    kernel, cost = moe.experts("ex", tokens, count, up, down, FORMATS, GELU, **options)
    order = rng.permuted(np.tile(np.arange(size), (3, tokens, 1)), axis=2)
    chosen = order[..., :count]
    chosen[0] = np.arange(count)  # All tokens to the same experts, and none to the others.
    queued = run(moe.queues("q", tokens, size, count)[0], {"expert": chosen})
    x = codes(rng, (tokens, 6), FORMATS.x, batch=3)
    return up, down, kernel, cost, chosen, {"x": x, **queued}


@pytest.mark.parametrize(("count", "reuse", "port"), [(1, (1, 1), 1), (2, (48, 24), 2), (3, (4, 12), 1)])
def test_experts_compute_each_pair(count: int, reuse: tuple[int, int], port: int) -> None:
    rng = np.random.default_rng(count)
    up, down, kernel, cost, chosen, inputs = pieces(rng, 5, count, 4, reuse=reuse, port=port)
    out = run(kernel, inputs)["out"]
    table = activation("gelu", GELU, (8,), FORMATS.hidden, FORMATS.active, index_bits=moe.SEGMENTS).kernel
    for sample in range(3):
        for token in range(5):
            for rank in range(count):
                e = int(chosen[sample, token, rank])
                x = FORMATS.x.dequantise(inputs["x"][sample, token])
                hidden = FORMATS.hidden.quantise(exact(up, e, x, FORMATS.x))
                active = FORMATS.active.dequantise(run(table, {"x": hidden[None]})["y"][0])
                want = FORMATS.out.quantise(exact(down, e, active, FORMATS.active))
                np.testing.assert_array_equal(out[sample, token * count + rank], want)
        # Every pair once, whatever the queues; weights of experts that nobody chose are not brought.
        ran = trace(kernel, {name: array[sample] for name, array in inputs.items()})
        spared = 4 - len(np.unique(chosen[sample]))
        assert ran.cycles == cost.cycles - spared * 2 * 6 * 8 // port


def test_combine_is_rounded_once() -> None:
    rng = np.random.default_rng(0)
    out, y = FORMATS.out, Fixed(12, 5)
    kernel, _ = moe.combine("c", 4, 3, 5, out, SHARE, y)
    given_out, share = codes(rng, (12, 5), out, batch=4), codes(rng, (4, 3), SHARE, batch=4)
    each = out.dequantise(given_out).reshape(4, 4, 3, 5) * SHARE.dequantise(share)[..., None]
    found = run(kernel, {"out": given_out, "share": share})["y"]
    np.testing.assert_array_equal(found, y.quantise(each.sum(2)))


def test_printed_kernels(tmp_path) -> None:
    rng = np.random.default_rng(5)
    *_, kernel, _, chosen, inputs = pieces(rng, 5, 2, 4, reuse=(4, 24))
    printed = (
        (kernel, inputs),
        (moe.queues("q", 5, 4, 2)[0], {"expert": chosen}),
        (moe.gate("g", 3, 6, 3, LOGITS, SHARE, True)[0], {"logits": codes(rng, (3, 6), LOGITS, batch=9)}),
        (moe.gate("h", 3, 6, 2, LOGITS, SHARE, False)[0], {"logits": codes(rng, (3, 6), LOGITS, batch=9)}),
    )
    program = csim.Program([made for made, _ in printed], tmp_path)
    for made, given_codes in printed:
        want, found = run(made, given_codes), program.run(made, given_codes)
        for name, array in want.items():
            if name in ("token", "rank"):  # What lies behind a queue's end is never read.
                used = np.arange(array.shape[-1]) < want["length"][..., None]
                array, found[name] = array * used, found[name] * used
            np.testing.assert_array_equal(found[name], array)
