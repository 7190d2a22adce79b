"""Runs one case through load, canonicalise, expand and the cpu target, and compares what comes out."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lowerkit.errors import LowerkitError
from lowerkit.graph.load import load_model
from lowerkit.pipeline import Stages, canonical_graph, check_target
from lowerkit.targets.base import get_target

from .cases import Case

#: (status, reason). Status is pass; refused, with lowerkit's own reason; wrong; or crash, which is any
#: other exception, a dead process or a time-out.
Outcome = tuple[str, str]


def check(case: Case) -> Outcome:
    """Compile and run `case`. Methods are left out: every operator is the target's own."""
    case = case.with_constants()
    target = get_target("cpu")
    names = [value.name for value in case.model.graph.input]
    options = {"threads": 1}
    with tempfile.TemporaryDirectory(prefix="lowerkit-conformance-") as name:
        directory = Path(name)
        path = directory / "case.onnx"
        path.write_bytes(case.model.SerializeToString())
        shapes = {
            name: array.shape
            for name, array in zip(names, case.data[0][0], strict=False)
            if isinstance(array, np.ndarray)
        }
        try:
            original = load_model(path, shapes)
            outputs = [value.name or "" for value in original.graph.outputs]
            model = canonical_graph(original, target, Stages())
            check_target(model, target, lowered=True)
            target.emit(model, options, directory)
            runner = target.open(directory, options)
            for inputs, expected in case.data:
                feed = {n: np.asarray(x) for n, x in zip(names, inputs, strict=True)}
                found = runner(feed)
                if difference := compare([found[name] for name in outputs], expected, case.rtol, case.atol):
                    return "wrong", difference
        except LowerkitError as error:
            return "refused", str(error).replace(name, "")
        except Exception as error:  # whatever else comes up is a fault, and the other cases go on
            lines = str(error).strip().splitlines()
            return "crash", f"{type(error).__name__}: {lines[-1] if lines else ''}"
    return "pass", ""


def compare(found: Sequence[np.ndarray], expected: Sequence[object], rtol: float, atol: float) -> str | None:
    """How outputs differ, or None. Integers and booleans must be equal, NaN equals NaN."""
    if len(found) != len(expected):
        return f"{len(found)} outputs, not {len(expected)}"
    for index, (array, other) in enumerate(zip(found, expected, strict=True)):
        reference = np.asarray(other)
        what = f"output {index}"
        if array.shape != reference.shape:
            return f"{what} has shape {list(array.shape)}, not {list(reference.shape)}"
        if array.dtype != reference.dtype:
            return f"{what} is {array.dtype}, not {reference.dtype}"
        if reference.dtype.kind not in "fc":
            count = int(np.sum(array != reference))
            if count:
                return f"{what} differs in {count} of {reference.size} places"
            continue
        # The reference rounds every intermediate to the type, so that in float16 its results may lie two steps
        # from the rounded exact ones.
        spacing = float(np.finfo(reference.dtype).eps) if reference.dtype.kind == "f" else 0.0
        close = np.isclose(array, reference, rtol=max(rtol, 2 * spacing), atol=atol, equal_nan=True)
        if not np.all(close):
            with np.errstate(invalid="ignore", over="ignore"):
                error = np.abs(array.astype(np.float64) - reference.astype(np.float64))[~close]
            largest = float(np.max(error))
            return f"{what} differs by up to {largest:.2g} in {error.size} of {reference.size} places"
    return None
