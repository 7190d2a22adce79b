"""calibrate: run the canonical graph on samples and collect statistics of what methods will see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from lowerkit.numerics.statistics import TensorStats


@dataclass
class Calibration:
    """Statistics by value name; `synthetic` when no user samples were given."""

    stats: dict[str, TensorStats] = field(default_factory=dict)
    synthetic: bool = False

    def get(self, value: ir.Value | None) -> TensorStats | None:
        """The statistics of `value`, or None when it was not observed."""
        return self.stats.get(value.name or "") if value is not None else None


def calibrate(
    model: ir.Model,
    samples: Iterable[Mapping[str, np.ndarray]],
    values: Iterable[str],
) -> Calibration:
    """Run `model` in onnxruntime on each sample and collect the statistics of `values` in one pass."""
    from lowerkit.reference import Reference

    wanted = list(dict.fromkeys(values))
    reference = Reference(model, taps=wanted)
    calibration = Calibration({name: TensorStats() for name in wanted})
    for results in reference.over(samples):
        for name in wanted:
            calibration.stats[name].update(results[name])
    return calibration
