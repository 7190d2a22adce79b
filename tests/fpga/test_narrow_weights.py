"""Weights of few bits: what they are, that they need no multipliers, and that all targets' integers agree."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
import quantised_models as models
from hypothesis import given, settings
from hypothesis import strategies as st

import lowerkit
from lowerkit import pipeline
from lowerkit.errors import PlanError
from lowerkit.pipeline import Stages
from lowerkit.targets.fpga.clipping import Histogram, clipped, error
from lowerkit.targets.fpga.design import codes_of, numbers_of, simulate
from lowerkit.targets.fpga.formats import Affine, Fixed, Format
from lowerkit.targets.fpga.kernels.linear import linear
from lowerkit.targets.fpga.lang.interpret import run
from lowerkit.targets.fpga.narrow_weights import SCALE_BITS, coding
from lowerkit.targets.fpga.target import FpgaTarget


def numbers(codes: np.ndarray, formats: list[Format]) -> np.ndarray:
    return np.stack([f.dequantise(c) for f, c in zip(formats, codes.T, strict=True)], 1)


def test_codings() -> None:
    w = np.array([[0.9, -0.1], [-0.5, 0.3], [0.1, 0.0], [-0.5, -0.4]])
    codes, formats = coding("binary")(w)
    np.testing.assert_array_equal(codes, [[1, -1], [-1, 1], [1, 1], [-1, -1]])
    np.testing.assert_allclose([f.step for f in formats], np.abs(w).mean(0), rtol=2.0 ** (1 - SCALE_BITS))
    codes, formats = coding("ternary")(w)
    # Thresholds: 0.7 x 0.5 = 0.35 and 0.7 x 0.2 = 0.14.
    np.testing.assert_array_equal(codes, [[1, 0], [-1, 1], [0, 0], [-1, -1]])
    np.testing.assert_allclose([f.step for f in formats], [1.9 / 3, 0.35], rtol=2.0 ** (1 - SCALE_BITS))
    codes, formats = coding("int8")(w)
    assert np.abs(numbers(codes, formats) - w).max() <= max(f.step for f in formats) / 2
    assert np.abs(codes).max(0).tolist() == [127, 127]
    codes, formats = coding("ap_fixed<4,1>")(w)
    np.testing.assert_array_equal(codes, np.round(np.clip(w, -1, 0.875) * 8))


@pytest.mark.parametrize("kind", ["int8", "int4", "ternary", "binary"])
def test_scales_have_few_bits_and_zeros_are_coded(kind: str) -> None:
    rng = np.random.default_rng(0)
    weights = np.concatenate([rng.standard_normal((20, 6)), np.zeros((20, 1))], 1)
    codes, formats = coding(kind)(weights)
    for form in formats:
        assert form.scale.numerator.bit_length() <= SCALE_BITS
    assert np.abs(numbers(codes, formats)[:, -1]).max() < 1e-9


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_products_are_exact_and_signs_need_no_multipliers(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    inner, columns = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 5))
    kind = data.draw(st.sampled_from(["binary", "ternary", "int4"]))
    x, y = data.draw(
        st.sampled_from([(Fixed(8, 3), Fixed(9, 4)), (Affine(8, 0.0625, 17, False), Affine(6, 0.3125, -4))])
    )
    codes, formats = coding(kind)(rng.standard_normal((inner, columns)))
    bias = rng.standard_normal(columns)
    kernel, cost = linear("f", (), codes, x, formats, y, offset=bias)
    given_x = rng.integers(x.range.low, x.range.high, (20, inner), endpoint=True)
    found = run(kernel, {"x": given_x})["y"]
    for n in range(20):
        for c in range(columns):
            terms = sum(int(given_x[n, i] - x.zero) * int(codes[i, c]) for i in range(inner))
            number = (terms * x.scale * formats[c].scale + Fraction(float(bias[c]))) / y.scale
            assert found[n, c] == min(max(round(number) + y.zero, y.range.low), y.range.high)
    if kind == "binary":
        assert cost.multipliers <= columns
        weights = next(a for a in kernel.constants if a.name == "f_w")
        assert weights.range.bits == 1
    elif kind == "ternary" and (np.abs(codes) <= 1).all():
        assert cost.multipliers <= columns


def _mlp(tmp_path: Path) -> tuple[Path, list[np.ndarray]]:
    rng = np.random.default_rng(4)
    path = tmp_path / "mlp.onnx"
    onnx.save(models.mlp(rng), path)
    return path, [models.f32(rng, 1, 12) for _ in range(40)]


def _designed(path: Path, samples: list[np.ndarray], options: dict[str, object]):  # type: ignore[no-untyped-def]
    target = FpgaTarget()
    model = pipeline.canonical_graph(lowerkit.load(str(path)), target, Stages())
    completed = target.complete(model, [{"x": x} for x in samples], options)
    return model, completed, FpgaTarget().design(model, completed)


def test_a_plan_chooses_the_weights_of_a_node(tmp_path: Path) -> None:
    path, samples = _mlp(tmp_path)
    kinds = {"fc1": "ternary", "fc2": "int8"}
    model, options, design = _designed(path, samples, {"weights": kinds})
    _, _, wide = _designed(path, samples, {})
    costs = [{layer.node: layer.schedule.multipliers for layer in d.layers} for d in (design, wide)]
    # 192 products, and at most a multiplier for each column.
    assert costs[0]["fc1"] <= 16 < costs[1]["fc1"]
    x = {"x": np.concatenate(samples)}
    weights = {
        t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in onnx.load(path).graph.initializer
    }
    first = numbers(*coding("ternary")(weights["w1"].T))
    second = numbers(*coding("int8")(weights["w2"]))
    wanted = np.maximum(x["x"] @ first + weights["b1"], 0) @ second + weights["b2"]
    found = numbers_of(design, simulate(design, codes_of(design, x)))["y"].reshape(wanted.shape)
    assert np.abs(found - wanted).max() < 0.01 * np.abs(wanted).max()
    (tmp_path / "out").mkdir()
    FpgaTarget().emit(model.clone(), options, tmp_path / "out")
    codes = codes_of(design, x)
    csim = FpgaTarget().open(tmp_path / "out", options).codes(codes)["y"]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(csim.reshape(40, -1), simulate(design, codes)["y"].reshape(40, -1))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"fc1": "float"}, "write int8"),
        ({"fc1": "int64"}, "2 to 16"),
        ({"gone": "int8"}, "not there"),
        ({"relu": "int8"}, "no weights"),
    ],
)
def test_what_a_plan_cannot_ask_for_is_refused(tmp_path: Path, weights: dict[str, str], message: str) -> None:
    path, samples = _mlp(tmp_path)
    with pytest.raises(PlanError, match=message):
        _designed(path, samples, {"weights": weights})


def test_histograms_count_everything_wherever_they_started() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal(5000) * 3
    seen = Histogram()
    for part in np.split(x, 10):
        seen.add(part)
    assert seen.counts.sum() == 5000
    np.testing.assert_array_equal(
        seen.counts, np.histogram(x, len(seen.counts), (-seen.reach, seen.reach))[0]
    )


def test_clipping_never_errs_more_and_gives_up_rare_ends() -> None:
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.standard_normal(20000), [60.0]])
    seen = Histogram()
    seen.add(x)
    whole = Fixed.holding(float(x.min()), float(x.max()), 6)
    chosen = clipped(whole, seen)
    assert chosen.integer < whole.integer
    exact = [np.square(f.dequantise(f.quantise(x)) - x).sum() for f in (chosen, whole)]
    assert exact[0] < exact[1]
    assert error(chosen, seen) == pytest.approx(exact[0], rel=0.15)
    even = Histogram()
    even.add(rng.uniform(-1, 1, 5000))
    assert clipped(Fixed(8, 1), even) == Fixed(8, 1)
