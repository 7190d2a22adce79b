"""ONNX's node tests through the integer model: close to what ONNX expects, or refused with a reason; never wrong."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from lowerkit.errors import LowerkitError
from lowerkit.graph.load import load_model
from lowerkit.pipeline import Stages, canonical_graph, check_target
from lowerkit.targets.fpga.converters import CONVERTERS
from lowerkit.targets.fpga.design import codes_of, numbers_of, simulate
from lowerkit.targets.fpga.target import FpgaTarget
from tests.conformance.cases import Case, all_cases

#: Wide formats of the case's own ranges, so that what is wrong is not rounding.
OPTIONS = {"width": 28, "weight_width": 28, "overflow": "saturate"}
CLOSE = 2e-3


def outcome(case: Case, path: Path) -> str:
    """`pass`, `refused`, or what is wrong."""
    case, target = case.with_constants(), FpgaTarget()
    names = [value.name for value in case.model.graph.input]
    path.write_bytes(case.model.SerializeToString())
    (inputs, expected), *_ = case.data
    feed = {n: np.asarray(x) for n, x in zip(names, inputs, strict=True)}
    try:
        original = load_model(path, {n: x.shape for n, x in feed.items()})
        model = canonical_graph(original, target, Stages())
        check_target(model, target, lowered=True)
        design = target.design(model, target.complete(model, [feed], OPTIONS))
        found = numbers_of(design, simulate(design, codes_of(design, feed)))
    except LowerkitError:
        return "refused"
    for value, each in zip(original.graph.outputs, expected, strict=True):
        reference, got = np.asarray(each, np.float64), found[value.name or ""]
        if got.shape != reference.shape:
            return f"shape {got.shape}, not {reference.shape}"
        finite = np.isfinite(reference)
        error = np.abs(got - reference)[finite]
        if error.size and error.max() > CLOSE * np.abs(reference[finite]).max():
            return f"errs by {error.max():.3g} at a scale of {np.abs(reference[finite]).max():.3g}"
    return "pass"


def test_no_node_test_is_wrong(tmp_path: Path) -> None:
    cases = {
        name: case
        for name, case in all_cases().items()
        if all(node.op_type in CONVERTERS for node in case.model.graph.node)
    }
    found = {name: outcome(case, tmp_path / "case.onnx") for name, case in cases.items()}
    assert {name: what for name, what in found.items() if what not in ("pass", "refused")} == {}
    assert Counter(found.values())["pass"] >= 120
