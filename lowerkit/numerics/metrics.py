"""How far a result is from its reference: errors, signal-to-noise, similarity, agreement.

All arithmetic is in float64. Everywhere here:

- equal elements have error 0; two NaNs in the same place, and two infinities of one sign, are equal;
- any other pair with a NaN or an infinity has error infinity: it is never skipped;
- empty arrays are equal to each other: errors 0, cosine and rates of an empty set NaN or as stated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

#: Elements compared at a time: temporaries that stay in the processor's cache.
_CHUNK = 1 << 14


@dataclass(frozen=True)
class Error:
    """The distance of a result from its reference, over all elements. Every field but `count` is a float.

    Attributes:
        count: number of elements compared.
        mismatches: number of elements that are not finite in just one of the two, or differently so.
        max_abs: largest absolute error, in the unit of the values.
        mean_abs: mean absolute error, in the unit of the values.
        relative: `max_abs` over the largest finite |reference| ("relative to scale"). 0 where both are 0,
            infinity for an error on an all-zero reference.
        mean_relative: `mean_abs` over the mean |reference|, with the same convention.
        max_ratio: largest |error| / |reference| of one element, with the same convention.
        sqnr_db: 10 log10 of the reference's energy over the error's, in dB; infinity without error.
        cosine: of the two flattened arrays; 1 when both are zero or empty, 0 when one is zero,
            NaN with mismatches.
    """

    count: int
    mismatches: int
    max_abs: float
    mean_abs: float
    relative: float
    mean_relative: float
    max_ratio: float
    sqnr_db: float
    cosine: float


@dataclass
class ErrorStats:
    """Accumulates `Error` over batches of any shape.

    Counts and maxima are those of one comparison of everything; sums are float64 sums of batch sums.
    Squares leave float64 beyond about 1e±150; `sqnr_db` and `cosine` are NaN there.
    """

    count: int = 0
    mismatches: int = 0
    max_abs: float = 0.0
    max_ratio: float = 0.0
    max_reference: float = 0.0
    max_result: float = 0.0
    sum_abs: float = 0.0
    sum_reference: float = 0.0
    energy_error: float = 0.0
    energy_reference: float = 0.0
    energy_result: float = 0.0
    cross: float = 0.0

    def update(self, reference: np.ndarray, result: np.ndarray) -> None:
        """Add a batch: two arrays of one shape, real or bool. Raises ValueError on unequal shapes."""
        if np.shape(reference) != np.shape(result):
            raise ValueError(f"shapes differ: {np.shape(reference)} and {np.shape(result)}")
        x, y = np.ravel(reference), np.ravel(result)
        for start in range(0, x.size, _CHUNK):
            chunk = slice(start, start + _CHUNK)
            self._update_chunk(np.asarray(x[chunk], np.float64), np.asarray(y[chunk], np.float64))

    def _update_chunk(self, a: np.ndarray, b: np.ndarray) -> None:
        with np.errstate(invalid="ignore", over="ignore"):
            error, size = np.abs(b - a), np.abs(a)
        exceptional = not math.isfinite(float(error.max()))
        if exceptional:
            error = abs_error(a, b)
        self.count += a.size
        self.max_abs = max(self.max_abs, float(error.max()))
        self.max_ratio = max(self.max_ratio, _largest_ratio(error, size))
        self.sum_abs += float(error.sum())
        if exceptional and not (finite := np.isfinite(a) & np.isfinite(b)).all():
            self.mismatches += int((np.isinf(error) & ~finite).sum())
            self.max_reference = max(self.max_reference, float(size[np.isfinite(a)].max(initial=0.0)))
            self.max_result = max(self.max_result, float(np.abs(b[np.isfinite(b)]).max(initial=0.0)))
            a, b, error, size = a[finite], b[finite], error[finite], size[finite]
        self.max_reference = max(self.max_reference, float(size.max(initial=0.0)))
        self.max_result = max(self.max_result, float(np.abs(b).max(initial=0.0)))
        # Products are summed here rather than by BLAS, whose threads cost more than they bring.
        with np.errstate(over="ignore"):
            self.sum_reference += float(size.sum())
            self.energy_error += float((error * error).sum())
            self.energy_reference += float((a * a).sum())
            self.energy_result += float((b * b).sum())
            self.cross += float((a * b).sum())

    def merge(self, other: ErrorStats) -> None:
        """Add everything that `other` has seen."""
        for item in fields(self):
            mine, its = getattr(self, item.name), getattr(other, item.name)
            setattr(self, item.name, max(mine, its) if item.name.startswith("max_") else mine + its)

    def result(self) -> Error:
        """The errors over all batches so far; of nothing, those of two equal arrays."""
        mean = self.sum_abs / self.count if self.count else 0.0
        mean_reference = self.sum_reference / self.count if self.count else 0.0
        return Error(
            count=self.count,
            mismatches=self.mismatches,
            max_abs=self.max_abs,
            mean_abs=mean,
            relative=_quotient(self.max_abs, self.max_reference),
            mean_relative=_quotient(mean, mean_reference),
            max_ratio=self.max_ratio,
            sqnr_db=self._sqnr(),
            cosine=self._cosine(),
        )

    def _sqnr(self) -> float:
        if self.max_abs == 0:
            return math.inf
        if self.mismatches or self.max_reference == 0:
            return -math.inf
        signal, noise = self.energy_reference, self.energy_error
        if not (0 < signal < math.inf and 0 < noise < math.inf):
            return math.nan
        return 10 * (math.log10(signal) - math.log10(noise))

    def _cosine(self) -> float:
        if self.mismatches:
            return math.nan
        if self.max_abs == 0:
            return 1.0
        if self.max_reference == 0 or self.max_result == 0:
            return 0.0
        a, b = self.energy_reference, self.energy_result
        if not (0 < a < math.inf and 0 < b < math.inf):
            return math.nan
        return float(np.clip(self.cross / math.sqrt(a) / math.sqrt(b), -1, 1))


def errors(reference: np.ndarray, result: np.ndarray) -> Error:
    """All errors of one array against another of the same shape."""
    accumulated = ErrorStats()
    accumulated.update(reference, result)
    return accumulated.result()


def abs_error(reference: np.ndarray, result: np.ndarray) -> np.ndarray:
    """|result - reference| per element in float64, with the module's convention for NaN and infinity."""
    a, b = np.asarray(reference, np.float64), np.asarray(result, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(b - a)
    error = np.where(np.isnan(error), np.inf, error)
    return np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, error)


def row_cosines(reference: np.ndarray, result: np.ndarray) -> np.ndarray:
    """Cosine similarity of each row (last axis): shape [..., n] to [rows], float64.

    1 where both rows are zero, 0 where one is, NaN where a row holds NaN or infinity.
    """
    a = np.asarray(reference, np.float64).reshape(-1, np.shape(reference)[-1])
    b = np.asarray(result, np.float64).reshape(a.shape)
    unit_a, unit_b = _unit_rows(a), _unit_rows(b)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    return np.where(both_zero, 1.0, np.clip((unit_a * unit_b).sum(axis=1), -1, 1))


def pairwise_cosines(vectors: np.ndarray) -> np.ndarray:
    """Cosine similarities of all pairs i < j of rows: shape [n, d] to [n (n - 1) / 2], float64.

    A zero row is orthogonal to everything; a row with NaN or infinity gives NaN.
    """
    unit = _unit_rows(np.asarray(vectors, np.float64))
    cosines: np.ndarray = unit @ unit.T
    return cosines[np.triu_indices(len(unit), 1)]


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    # Scaling by the largest element first keeps squares from over- and underflowing.
    with np.errstate(invalid="ignore"):
        scaled = rows / _nonzero(np.abs(rows).max(axis=1, initial=0.0))
        unit: np.ndarray = scaled / _nonzero(np.sqrt((scaled**2).sum(axis=1)))
    return unit


def _nonzero(x: np.ndarray) -> np.ndarray:
    return np.where(x == 0, 1.0, x)[:, None]


def top1(scores: np.ndarray) -> np.ndarray:
    """Index of the largest element along the last axis, the first of equals; -1 in a row with NaN.

    Shape [..., classes] to [...], int64.
    """
    return np.where(np.isnan(scores).any(axis=-1), -1, np.argmax(scores, axis=-1))


def top1_agreement(reference: np.ndarray, result: np.ndarray) -> float:
    """Fraction of rows (last axis: classes) in which both have the same top-1; NaN without rows.

    A row with NaN agrees with a row with NaN alone.
    """
    return _mean(top1(reference) == top1(result))


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Fraction of rows of `scores` [..., classes] whose top-1 is the label; `labels` are [...] integers.

    A row with NaN is wrong; NaN without rows.
    """
    return _mean(top1(scores) == labels)


def pearson(reference: np.ndarray, result: np.ndarray) -> float:
    """Pearson's correlation of two flattened arrays.

    NaN (undefined) for fewer than two elements, a constant array, or any NaN or infinity.
    """
    a, b = np.asarray(reference, np.float64).ravel(), np.asarray(result, np.float64).ravel()
    return _correlation(a, b) if _varies(a) and _varies(b) else math.nan


def spearman(reference: np.ndarray, result: np.ndarray) -> float:
    """Spearman's rank correlation of two flattened arrays, equal values sharing their mean rank.

    NaN in the same cases as `pearson`.
    """
    a, b = np.asarray(reference, np.float64).ravel(), np.asarray(result, np.float64).ravel()
    return _correlation(_ranks(a), _ranks(b)) if _varies(a) and _varies(b) else math.nan


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """The cosine of the deviations from the means, which are scaled first: their squares stay in float64."""
    x, y = (v / np.abs(v).max() for v in (a - a.mean(), b - b.mean()))
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1, 1))


def _ranks(x: np.ndarray) -> np.ndarray:
    """Ranks from 1 on, equal values sharing their mean."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _varies(x: np.ndarray) -> bool:
    return bool(x.size > 1 and np.isfinite(x).all() and (x != x[0]).any())


def _mean(hits: np.ndarray) -> float:
    return float(np.mean(hits)) if np.size(hits) else math.nan


def _largest_ratio(error: np.ndarray, size: np.ndarray) -> float:
    """Largest error / size of an element, 0 / 0 being 0; an infinite error has an infinite ratio."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = float(np.divide(error, size, out=np.zeros_like(error), where=error > 0).max())
    return math.inf if math.isnan(ratio) else ratio


def _quotient(error: float, scale: float) -> float:
    if error == 0:
        return 0.0
    return error / scale if scale else math.inf
