"""How far a graph's outputs move by float32's rounding alone, which in a graph that rounds is not little.

Where a graph rounds to integers, a number next to a tie goes one way or the other by its last bit, and the whole
step reaches the output. Two correct evaluations in float32 then differ by more than float32 explains, and only the
graph itself tells by how much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from lowerkit.numerics.metrics import ErrorStats
from lowerkit.reference import Reference

#: Relative change of a weight: some units in the last place, as evaluations of e^x or sums in another order err.
CHANGE = 2.0**-20


def rounding_noise(model: ir.Model, samples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Largest change of each output, relative to its scale, when each element of its float32 tensors is
    changed by `CHANGE`.

    An output that is not finite then has none. Signs of the changes are random, the same at every call. The model
    stays as it is.
    """
    changed = model.clone()
    rng = np.random.default_rng(0)
    for name in sorted(changed.graph.initializers):
        value = changed.graph.initializers[name]
        # Single numbers are often exact by intent: the 1 of a mask's (1 - m) times the least float32.
        if value.const_value is None or value.dtype != ir.DataType.FLOAT or value.const_value.size < 2:
            continue
        weight = value.const_value.numpy()
        signs = rng.choice(np.array([-1.0, 1.0], np.float32), weight.shape)
        with np.errstate(over="ignore"):
            near = weight * (1 + np.float32(CHANGE) * signs)
        # A mask's least float32 is not to become infinite.
        value.const_value = ir.tensor(np.where(np.isfinite(near), near, weight), name=name)
    before, after = Reference(model), Reference(changed)
    stats: dict[str, ErrorStats] = {}
    for found, moved in zip(before.over(samples), after.over(samples), strict=True):
        for name, result in found.items():
            stats.setdefault(name, ErrorStats()).update(result, moved[name])
    noise = {name: moves.result().relative for name, moves in stats.items()}
    return {name: value if np.isfinite(value) else 0.0 for name, value in noise.items()}
