"""End to end: one meter per graph output, fed sample by sample."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from lowerkit.artifact import TensorSpec
from lowerkit.errors import DataError
from lowerkit.numerics.metrics import ErrorStats, pairwise_cosines, row_cosines, spearman, top1
from lowerkit.validation.results import Agreement, Arrows, OutputResult, Similarity

#: Elements kept for the scatter plot of one output, over all samples.
POINTS = 512
#: Most vectors, and most elements of all vectors, kept for the rank correlation of one output.
MAX_VECTORS = 256
MAX_VECTOR_ELEMENTS = 1 << 24


@dataclass
class OutputMeter:
    """Compares original, lowered and artifact values of one output; memory does not grow with samples.

    Args:
        output: the output's name, dtype and shape.
        samples: how many samples will come.
        labels: the labels of this output's rows over all samples, or None.
    """

    output: TensorSpec
    samples: int
    labels: np.ndarray | None = None
    _method: ErrorStats = field(default_factory=ErrorStats, init=False)
    _arithmetic: ErrorStats = field(default_factory=ErrorStats, init=False)
    _total: ErrorStats = field(default_factory=ErrorStats, init=False)
    _nonfinite: int = field(default=0, init=False)
    _rows: int = field(default=0, init=False)
    _agree: np.ndarray = field(default_factory=lambda: np.zeros(2, np.int64), init=False)
    _right: np.ndarray = field(default_factory=lambda: np.zeros(3, np.int64), init=False)
    _cosine_min: float = field(default=math.inf, init=False)
    _cosine_sum: float = field(default=0.0, init=False)
    _cosine_rows: int = field(default=0, init=False)
    _vectors: tuple[list[np.ndarray], list[np.ndarray]] = field(default=([], []), init=False)
    _points: list[tuple[float, float]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._vectors = ([], [])

    def update(self, original: np.ndarray, lowered: np.ndarray, artifact: np.ndarray) -> None:
        """Add one sample's values, all of the output's shape."""
        self._method.update(original, lowered)
        self._arithmetic.update(lowered, artifact)
        self._total.update(original, artifact)
        self._nonfinite += int((~np.isfinite(artifact)).sum())
        if _has_predictions(self.output):
            self._update_agreement(original, lowered, artifact)
        if _has_rows(self.output):
            self._update_similarity(original, artifact)
        self._update_points(original, artifact)

    def _update_agreement(self, *values: np.ndarray) -> None:
        original, lowered, artifact = (_predictions(value) for value in values)
        self._agree += [(lowered == original).sum(), (artifact == original).sum()]
        if self.labels is not None:
            labels = self.labels[self._rows : self._rows + original.size]
            self._right += [(p == labels).sum() for p in (original, lowered, artifact)]
        self._rows += original.size

    def _update_similarity(self, original: np.ndarray, artifact: np.ndarray) -> None:
        cosines = row_cosines(original, artifact)
        self._cosine_min = float(np.minimum(self._cosine_min, cosines.min()))  # NaN stays
        self._cosine_sum += float(cosines.sum())
        self._cosine_rows += cosines.size
        batch = original.shape[0] if original.ndim > 1 else 1
        limit = min(MAX_VECTORS, MAX_VECTOR_ELEMENTS // max(original.size // batch, 1))
        for kept, value in zip(self._vectors, (original, artifact), strict=True):
            kept.extend(np.array(value.reshape(batch, -1)[: limit - len(kept)], np.float32))

    def _update_points(self, original: np.ndarray, artifact: np.ndarray) -> None:
        share = min(original.size, -(-POINTS // self.samples), POINTS - len(self._points))
        where = np.linspace(0, original.size - 1, max(share, 0)).astype(np.int64)
        pairs = zip(original.ravel()[where].tolist(), artifact.ravel()[where].tolist(), strict=True)
        self._points.extend((float(a), float(b)) for a, b in pairs)

    def result(self) -> OutputResult:
        """What has been measured so far."""
        return OutputResult(
            name=self.output.name,
            dtype=self.output.dtype,
            shape=self.output.shape,
            error=Arrows(self._method.result(), self._arithmetic.result(), self._total.result()),
            nonfinite=self._nonfinite,
            agreement=self._agreement(),
            similarity=self._similarity(),
            points=tuple(self._points),
        )

    def _agreement(self) -> Agreement | None:
        if not self._rows:
            return None
        right = (self._right / self._rows).tolist() if self.labels is not None else (None, None, None)
        lowered, artifact = (self._agree / self._rows).tolist()
        return Agreement(self._rows, lowered, artifact, *right)

    def _similarity(self) -> Similarity | None:
        if not self._cosine_rows:
            return None
        vectors = len(self._vectors[0])
        correlation = None
        if vectors >= 3:
            correlation = spearman(*(pairwise_cosines(np.stack(kept)) for kept in self._vectors))
        return Similarity(self._cosine_min, self._cosine_sum / self._cosine_rows, correlation, vectors)


def _has_rows(output: TensorSpec) -> bool:
    """Whether the output's last axis holds classes or vectors: floats [n], [b, n] or [b, steps, n].

    Arrays of more axes are maps (images, [b, classes, height, width]), whose last axis means neither.
    """
    shape = output.shape
    return "float" in output.dtype and 1 <= len(shape) <= 3 and shape[-1] >= 2 and 0 not in shape


def _has_predictions(output: TensorSpec) -> bool:
    return _has_rows(output) or "int" in output.dtype


def _predictions(value: np.ndarray) -> np.ndarray:
    """Class per row, flattened."""
    return (value if value.dtype.kind in "iu" else top1(value)).ravel()


def meters(outputs: list[TensorSpec], samples: int, labels: np.ndarray | None) -> list[OutputMeter]:
    """A meter per output. Labels go to the first float output with one row per label and enough classes,
    and to every integer output with one element per label.

    Raises DataError when no output fits the labels.
    """
    fit = [labels is not None and _fits(output, samples, labels) for output in outputs]
    scores = [i for i, output in enumerate(outputs) if fit[i] and "float" in output.dtype]
    for later in scores[1:]:
        fit[later] = False
    if labels is not None and not any(fit):
        shapes = ", ".join(f"'{output.name}' {list(output.shape)}" for output in outputs)
        raise DataError(
            f"{labels.size} labels up to {labels.max()} fit no output over {samples} samples: {shapes}",
            hint="give one label per row of the output; the last axis is the classes",
        )
    return [
        OutputMeter(output, samples, labels if fits else None)
        for output, fits in zip(outputs, fit, strict=True)
    ]


def _fits(output: TensorSpec, samples: int, labels: np.ndarray) -> bool:
    if not _has_predictions(output):
        return False
    if "int" in output.dtype:
        return samples * math.prod(output.shape) == labels.size
    return samples * math.prod(output.shape[:-1]) == labels.size and int(labels.max()) < output.shape[-1]
