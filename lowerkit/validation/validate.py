"""Original against lowered against artifact: end to end, by layer, by choice.

    original --method error--> lowered --arithmetic error--> artifact

Original and lowered run operator by operator in onnxruntime, in float; the artifact runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from lowerkit.artifact import specs
from lowerkit.errors import DataError
from lowerkit.plan import Plan
from lowerkit.reference import Reference
from lowerkit.targets.base import Progress, Runner
from lowerkit.validation.choices import Trial, choice_results, trials
from lowerkit.validation.layers import LayerMeter, Probe, layer_meters
from lowerkit.validation.measure import (
    ARTIFACT,
    LOWERED,
    ORIGINAL,
    PROBE,
    Source,
    Values,
    graph_source,
    measure,
)
from lowerkit.validation.outputs import OutputMeter, meters
from lowerkit.validation.results import Validation

__all__ = ["LAYER_SAMPLES", "Validation", "validate"]

#: Samples that the comparison by layer and by choice uses at most, from the first on.
LAYER_SAMPLES = 32


def validate(
    original: ir.Model,
    lowered: ir.Model,
    run: Runner,
    samples: Sequence[Mapping[str, np.ndarray]],
    *,
    planned: Plan,
    graphs: Sequence[ir.Model] = (),
    labels: np.ndarray | None = None,
    probe: Probe | None = None,
    oracle: Runner | None = None,
    layers: bool = True,
    synthetic: bool = False,
    progress: Progress | None = None,
) -> Validation:
    """Measure what lowering cost.

    Args:
        original: the float model, shapes static.
        lowered: the graph after the plan, method operators with their bodies.
        run: the artifact.
        samples: input name -> array, one mapping per run.
        planned: the plan that led to lowered.
        graphs: those that the plan speaks of, in turn, the canonical one first; `original` when there are none.
            Needed for the local error of nodes that canonicalisation named, or that are in methods' bodies.
        labels: [rows of all samples] integer classes, for accuracy.
        probe: runners of the artifact's code with intermediate values; without it, layers have method
            errors alone.
        oracle: what the artifact's numbers have to be, bit for bit, for samples stacked along a new axis; samples
            that differ are counted.
        layers: measure layers and choices at all.
        synthetic: the samples were made up; only noted in the result.

    Raises:
        DataError: no samples, labels that fit no output, or outputs of the artifact of another shape.
    """
    if not len(samples):
        raise DataError("there are no samples to validate on")
    exact = _Exact(run, oracle) if oracle is not None else None
    graphs = graphs or (original,)
    sources: dict[str, Source] = {
        ORIGINAL: _reference(original),
        LOWERED: _reference(lowered),
        ARTIFACT: lambda _, samples: map(exact or run, samples),
        **{graph_source(index): _reference(graph) for index, graph in enumerate(graphs)},
    }
    if probe is not None:
        sources[PROBE] = lambda names, samples: map(probe(names), samples)
    outputs = [_EndToEnd(m) for m in meters(specs(list(original.graph.outputs)), len(samples), labels)]
    found: list[LayerMeter] = []
    left_out, tried, few = 0, dict[str, Trial](), 0
    if layers:
        found, left_out = layer_meters(original, graphs[0], lowered, planned, probe=probe is not None)
        tried, few = trials(graphs, planned), LAYER_SAMPLES
    advance = _counter(progress, "samples", len(samples))
    # Outputs are in the first group, with what fits into memory beside them: the others need no run of the artifact.
    measure([*outputs, *found, *tried.values()], sources, samples[:few], advance)
    measure(outputs, sources, samples[few:], advance)
    if exact is not None:
        exact.compare()
    return Validation(
        len(samples),
        len(samples[:few]),
        synthetic,
        tuple(output.meter.result() for output in outputs),
        tuple(layer.result() for layer in found),
        left_out,
        choice_results(planned, tried),
        exact.differing if exact is not None else None,
    )


def _reference(model: ir.Model) -> Source:
    return lambda names, samples: Reference(model, names).over(samples)


@dataclass(frozen=True)
class _EndToEnd:
    """Gives a meter its output of the original, of the lowered graph and of the artifact."""

    meter: OutputMeter
    reads: ClassVar[Mapping[str, Sequence[str]]] = {ORIGINAL: (), LOWERED: (), ARTIFACT: ()}
    size: ClassVar[int] = 0

    def update(self, values: Mapping[str, Values]) -> None:
        """Add one sample. Raises DataError where the artifact's output is of another shape."""
        name, got = self.meter.output.name, values[ARTIFACT]
        expected = values[ORIGINAL][name]
        if name not in got or got[name].shape != expected.shape:
            found = f"shape {list(got[name].shape)}" if name in got else "nothing"
            raise DataError(
                f"the artifact returns {found} for output '{name}', "
                f"the original has shape {list(expected.shape)}"
            )
        self.meter.update(expected, values[LOWERED][name], got[name])


class _Exact:
    """Runs the artifact, and counts the samples in which any bit of an output is not the oracle's."""

    #: Samples that the oracle gets at once.
    BATCH = 64

    def __init__(self, run: Runner, oracle: Runner) -> None:
        self.run, self.oracle, self.differing = run, oracle, 0
        self.waiting: list[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]] = []

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self.run(inputs)
        self.waiting.append((inputs, found))
        if len(self.waiting) == self.BATCH:
            self.compare()
        return found

    def compare(self) -> None:
        """Compare what waits."""
        given, found = zip(*self.waiting, strict=True) if self.waiting else ((), ())
        self.waiting = []
        if not given:
            return
        expected = self.oracle({name: np.stack([each[name] for each in given]) for name in given[0]})
        rows = {name: array.reshape(len(given), -1) for name, array in expected.items()}
        self.differing += sum(
            any(array.tobytes() != rows[name][i].tobytes() for name, array in each.items())
            for i, each in enumerate(found)
        )


def _counter(progress: Progress | None, what: str, total: int) -> Callable[[], None]:
    """A function that reports one sample more of `what` each time it is called."""
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(what, min(done, total), total)

    return advance
