"""Rows of logits and their softmax in float64: what methods fit themselves to."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def softmax_rows(x: np.ndarray) -> np.ndarray:
    """Softmax over the last axis in float64. Rows of -inf alone, with NaN or with +inf give NaN."""
    x = np.asarray(x, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        e = np.exp(x - x.max(axis=-1, keepdims=True))
        result: np.ndarray = e / e.sum(axis=-1, keepdims=True)
    return result


def softmax_values(examples: Iterable[np.ndarray]) -> np.ndarray:
    """All softmax values of arrays of logits, rows along the last axis; rows that give NaN are left out."""
    values = [softmax_rows(example).ravel() for example in examples if example.ndim]
    flat = np.concatenate([np.zeros(0), *values])
    kept: np.ndarray = flat[~np.isnan(flat)]
    return kept
