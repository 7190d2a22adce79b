"""Whole networks at every width of vectors, on whatever processor runs the tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from lowerkit import load
from lowerkit.artifact import specs
from lowerkit.graph.canonicalise import canonicalise
from lowerkit.graph.expand import expand
from lowerkit.graph.load import upgrade
from lowerkit.reference import Reference
from lowerkit.targets.cpu import features
from lowerkit.targets.cpu.target import CpuTarget
from lowerkit.validation.samples import read_samples

EXAMPLES = Path(__file__).parents[1] / "examples"
#: A level that the processor has -> the widths to compile for it: LLVM makes several registers of a wide vector.
WIDTHS = [("x86-64-v2", 4), ("x86-64-v3", 16)]


@pytest.mark.skipif("x86-64-v2" not in features.levels(), reason="the levels are those of x86-64")
@pytest.mark.parametrize(("cpu", "lanes"), WIDTHS)
def test_a_transformer_in_vectors_of_every_width(
    cpu: str, lanes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = features.levels()
    if set(known[cpu].flags) - features.machine_flags():
        pytest.skip(f"this processor is below {cpu}")
    monkeypatch.setitem(known, cpu, dataclasses.replace(known[cpu], lanes=lanes))
    model = load(EXAMPLES / "models" / "vit_digits.onnx", {"image": (1, 1, 8, 8)})
    sample = read_samples(EXAMPLES / "data" / "digits_test.npz", specs(list(model.graph.inputs)))[0]
    upgrade(model)
    model = canonicalise(model)
    expand(model, CpuTarget.expands)
    expected = Reference(model)(sample)
    target = CpuTarget()
    target.emit(model.clone(), {"cpu": cpu}, tmp_path)
    for name, value in target.open(tmp_path, {"threads": 2})(sample).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5)
