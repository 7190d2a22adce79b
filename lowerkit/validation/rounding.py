"""How far rounding alone moves a graph's outputs: what two correct ways of computing it may differ by.

A graph that rounds to steps, as quantised layers do, is not continuous: a sum that lies next to a tie falls to the
other side when it is added up in another order, and then differs by a whole step of that layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from lowerkit.numerics.metrics import Error, ErrorStats
from lowerkit.reference import Reference

#: Draws of what the constants are changed by.
_DRAWS = 2
#: So many times the effect of rounding is still rounding: another order of sums meets other ties.
_MARGIN = 3.0


def rounding_effect(model: ir.Model, samples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Error]:
    """Output -> how it changes when float32 constants change in their last place.

    Every element of float32 vectors and matrices is multiplied by 1 - 2^-23, 1 or 1 + 2^-23, at random with a fixed
    seed. Single numbers stay: some are compared with, and masks have the largest float32.
    """
    exact = Reference(model)
    runs = [exact(sample) for sample in samples]
    errors = {name: ErrorStats() for name in runs[0]} if runs else {}
    for seed in range(_DRAWS):
        changed = Reference(_changed(model, seed))
        for run, sample in zip(runs, samples, strict=True):
            for name, value in changed(sample).items():
                errors[name].update(run[name], value)
    return {name: found.result() for name, found in errors.items()}


def is_rounding(found: Error, effect: Error) -> bool:
    """Whether an error is no larger than rounding's own effect on an output: at its largest, and in the mean."""
    return (
        found.relative <= _MARGIN * effect.relative and found.mean_relative <= _MARGIN * effect.mean_relative
    )


def _changed(model: ir.Model, seed: int) -> ir.Model:
    rng, changed = np.random.default_rng(seed), model.clone()
    for value in changed.graph.initializers.values():
        if value.const_value is not None and value.dtype == ir.DataType.FLOAT and value.const_value.size > 1:
            array = value.const_value.numpy()
            factor = 1 + rng.integers(-1, 2, array.shape) * np.float32(2.0**-23)
            value.const_value = ir.tensor((array * factor).astype(np.float32), name=value.name)
    return changed
