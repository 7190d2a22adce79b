"""A levelled program as the arrays that a server reads."""

from __future__ import annotations

from typing import Any

import numpy as np

from lowerkit.targets.he.levelled import Levelled
from lowerkit.targets.he.runtime.execute import KINDS


def stored(program: Levelled) -> dict[str, Any]:
    """`ops`, `scales`, `plains` and `outputs`: see `runtime.execute.Circuit`."""
    rows, scales = [], []
    for op in program.ops:
        first, second = (*op.args, -1, -1)[:2]
        one = op.kind == "mul_plain" and op.plain < 0
        plain = -2 if one else op.plain
        rows.append((KINDS.index(op.kind), first, second, op.step, plain, op.level))
        scales.append((op.scale, op.plain_scale))
    slots = program.chain.slots
    return {
        "ops": np.array(rows, np.int64),
        "scales": np.array(scales, np.float64),
        "plains": np.array(program.plains, np.float64).reshape(-1, slots),
        "outputs": np.array(program.outputs, np.int64),
    }
