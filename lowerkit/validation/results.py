"""What validation found: frozen, plain numbers, one object that the report, the CLI and users read.

Three arrows account for every error: original --method--> lowered --arithmetic--> artifact, and their sum
original --total--> artifact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lowerkit.numerics.metrics import Error

#: Version of the layout of `Validation.to_dict` and report.json.
SCHEMA = 1


@dataclass(frozen=True)
class Arrows:
    """Method, arithmetic and total error of one value; the latter two None where no artifact was run."""

    method: Error
    arithmetic: Error | None = None
    total: Error | None = None


@dataclass(frozen=True)
class Agreement:
    """Task metrics of one output: what users of the model notice. Rates are fractions of all rows.

    A row is what lies along the last axis (classes of one image, of one step of a sequence); its
    prediction is the index of its largest element, or, in an integer output, the element itself.

    Attributes:
        rows: number of rows over all samples.
        lowered: fraction of rows in which lowered and original predict the same.
        artifact: the same for artifact and original.
        accuracy_original, accuracy_lowered, accuracy_artifact: fraction of rows whose prediction is the
            label; None without labels.
    """

    rows: int
    lowered: float
    artifact: float
    accuracy_original: float | None = None
    accuracy_lowered: float | None = None
    accuracy_artifact: float | None = None


@dataclass(frozen=True)
class Similarity:
    """An output as embeddings: rows of original against rows of artifact.

    Attributes:
        cosine_min, cosine_mean: cosine similarity per row (last axis); NaN once a row is not finite.
        rank_correlation: Spearman's correlation, original against artifact, of the cosine similarities
            between all pairs of vectors (one vector: everything of one batch entry); None below 3 vectors.
        vectors: how many vectors that was measured on.
    """

    cosine_min: float
    cosine_mean: float
    rank_correlation: float | None
    vectors: int


@dataclass(frozen=True)
class OutputResult:
    """One graph output over all samples.

    Attributes:
        shape: of one sample.
        nonfinite: elements of the artifact's output that are NaN or infinite.
        points: up to 512 elements, evenly spaced over the samples: (original, artifact).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    error: Arrows
    nonfinite: int
    agreement: Agreement | None
    similarity: Similarity | None
    points: tuple[tuple[float, float], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class LayerResult:
    """One intermediate value: errors as they have accumulated from the inputs up to here.

    Attributes:
        value: its name, the same in the original and the lowered graph.
        node: name of the node that computes it in the lowered graph, and `op`, that node's operator.
        method: the method that the plan put there, or None.
    """

    value: str
    node: str
    op: str
    method: str | None
    error: Arrows


@dataclass(frozen=True)
class ChoiceResult:
    """One choice of the plan, and what it costs alone.

    Attributes:
        contract: `exact`, `approximate` or `replace`; None for a node that is kept.
        bound, bound_kind, bound_domain, evidence: the method's bound on its error in real arithmetic.
        local: error of the method on the inputs that the float model itself gives the node, so without
            what earlier choices added, in float32; None for a kept node and for one inside a subgraph.
        outside: why the data left the domain of the bound, or None.
        low, high: range of the node's input over the data; None where it was not measured.
    """

    node: str
    op: str
    method: str
    options: Mapping[str, Any]
    contract: str | None = None
    bound: float | None = None
    bound_kind: str | None = None
    bound_domain: str | None = None
    evidence: str | None = None
    local: Error | None = None
    outside: str | None = None
    low: float | None = None
    high: float | None = None

    @property
    def measured(self) -> float | None:
        """The largest local error in the terms of the bound: absolute, or relative element by element."""
        if self.local is None:
            return None
        return self.local.max_ratio if self.bound_kind == "relative" else self.local.max_abs


@dataclass(frozen=True)
class Validation:
    """Everything that one validation measured.

    Attributes:
        samples: number of samples of the end-to-end comparison.
        layer_samples: number of samples, from the first on, of the comparison by layer and by choice.
        synthetic: whether the samples were made up rather than given.
        layers: in graph order; at most `lowerkit.validation.layers.MAX_LAYERS`.
        layers_left_out: layers that the two graphs share beyond those.
        choices: in the plan's order.
        inexact: samples in which the artifact's outputs are not those of its exact model bit for bit; None for
            targets without one.
    """

    samples: int
    layer_samples: int
    synthetic: bool
    outputs: tuple[OutputResult, ...]
    layers: tuple[LayerResult, ...]
    layers_left_out: int
    choices: tuple[ChoiceResult, ...]
    inexact: int | None = None

    def check(self, max_error: float | None = None, min_agreement: float | None = None) -> list[str]:
        """The bounds that are broken, one line each; empty when all hold.

        Args:
            max_error: largest total error of any output allowed, relative to the output's scale.
            min_agreement: smallest top-1 agreement of original and artifact allowed, as a fraction; of
                the outputs that have labels, and of all where there are no labels.
        """
        broken = []
        for output in self.outputs:
            total = output.error.total
            if max_error is not None and total is not None and not total.relative <= max_error:
                error = f"errs by {total.relative:.3g} of its scale"
                broken.append(f"output '{output.name}' {error}, more than {max_error:g}")
        rated = [(output.name, output.agreement) for output in self.outputs if output.agreement]
        rated = [one for one in rated if one[1].accuracy_original is not None] or rated
        if min_agreement is not None:
            if not rated:
                broken.append("top-1 agreement cannot be measured: no output has classes along its last axis")
            broken += [
                f"output '{name}' agrees in {rate.artifact:.4%} of rows, less than {min_agreement:.4%}"
                for name, rate in rated
                if not rate.artifact >= min_agreement
            ]
        return broken

    @property
    def worst_layer(self) -> LayerResult | None:
        """The layer with the largest relative error (total where known, else method), the first of equals."""
        return max(self.layers, key=lambda layer: layer_error(layer).relative, default=None)

    @property
    def costliest_choice(self) -> ChoiceResult | None:
        """The choice with the largest local error relative to scale, the first of equals."""
        measured = [choice for choice in self.choices if choice.local is not None]
        return max(measured, key=lambda choice: choice.local.relative if choice.local else 0.0, default=None)

    def to_dict(self) -> dict[str, Any]:
        """All numbers as plain types, safe for strict JSON.

        NaN and infinities become the strings "NaN", "Infinity" and "-Infinity", which Python's `float`
        reads back. The points of the scatter plot are left out.
        """
        return {"schema": SCHEMA, **_plain(asdict(self))}

    def summary(self) -> str:
        """The findings in a few lines of plain text."""
        from lowerkit.report.summary import summary_lines

        return "\n".join(summary_lines(self))


def layer_error(layer: LayerResult) -> Error:
    """The total error of a layer where the artifact was probed, else its method error."""
    return layer.error.total or layer.error.method


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if key != "points"}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
