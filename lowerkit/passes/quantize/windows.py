"""Convolution over two axes in float64 numpy: the oracle of methods that replace Conv."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def convolve(
    x: np.ndarray,
    weight: np.ndarray,
    pads: Sequence[int] = (0, 0, 0, 0),
    strides: Sequence[int] = (1, 1),
    dilations: Sequence[int] = (1, 1),
    group: int = 1,
) -> np.ndarray:
    """x [N, C, H, W] convolved with weight [O, C / group, kh, kw] as ONNX's Conv; pads are top, left, bottom, right."""
    top, left, bottom, right = pads
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    spans = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, (2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
    inputs, outputs = weight.shape[1], len(weight) // group
    parts = [
        np.einsum(
            "ncijrs,ocrs->noij",
            windows[:, g * inputs : (g + 1) * inputs],
            weight[g * outputs : (g + 1) * outputs],
            optimize=True,
        )
        for g in range(group)
    ]
    return np.concatenate(parts, axis=1)
