"""What a circuit takes, by layer."""

from __future__ import annotations

from collections.abc import Sequence

from lowerkit.targets.base import CostTable
from lowerkit.targets.he import cost
from lowerkit.targets.he.levelled import Chain, Levelled, LevelledOp
from lowerkit.targets.he.sizes import sizes


def table(program: Levelled, measured: Sequence[float] | None = None) -> CostTable:
    """Levels, operations, and shares of the time, estimated and measured, by layer and of the whole.

    Args:
        measured: seconds of each operation in an encrypted run, if there was one.
    """
    layers: dict[str, list[int]] = {}
    for i, op in enumerate(program.ops):
        if op.kind != "input":
            layers.setdefault(op.layer, []).append(i)
    shares = [
        _per_mille([_seconds(op, program.chain) for op in program.ops]),
        *([_per_mille(measured)] if measured else []),
    ]
    rows = [_row(name, places, program, shares) for name, places in layers.items()]
    rows.append(_row("all", range(len(program.ops)), program, shares))
    size = sizes(program)
    spent = f", measured {sum(measured):.3g} s" if measured else ""
    return CostTable(
        f"operations counted; time estimated from measured operations, in all about {estimated(program):.3g} s on one "
        f"core{spent}; ring of degree {program.chain.degree}; evaluation keys {_megabytes(size.keys)} "
        f"({len(program.steps())} rotations), query {_megabytes(size.query)}, answer {_megabytes(size.answer)}, "
        f"memory of the server {_megabytes(size.server)}",
        (
            "layer",
            "levels",
            "rotations",
            "ct-ct products",
            "ct-pt products",
            "rescales",
            *(["bootstraps"] if program.chain.refresh else []),
            "time, per mille",
            *(["measured"] if measured else []),
        ),
        tuple(rows),
    )


def estimated(program: Levelled) -> float:
    """Seconds that the program takes, by `cost.py`."""
    return sum(_seconds(op, program.chain) for op in program.ops)


def _per_mille(seconds: Sequence[float]) -> list[float]:
    return [1000 * s / sum(seconds) for s in seconds]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.3g} MB"


def _seconds(op: LevelledOp, chain: Chain) -> float:
    if op.kind == "bootstrap" and chain.refresh:
        return cost.bootstrap_seconds(chain.degree, chain.refresh.slots, len(chain.primes))
    before = op.level + (op.kind in ("rescale", "mod_switch"))
    return cost.seconds(op.kind, before + 1, chain.degree)


def _row(
    name: str, places: Sequence[int], program: Levelled, shares: Sequence[Sequence[float]]
) -> tuple[str | int, ...]:
    ops = [program.ops[i] for i in places]
    kinds = ["rotate", "mul", "mul_plain", "rescale", *(["bootstrap"] if program.chain.refresh else [])]
    counts = [sum(op.kind == kind for op in ops) for kind in kinds]
    above = max(max((program.ops[a].level for a in op.args), default=op.level) for op in ops)
    parts = [round(sum(share[i] for i in places)) for share in shares]
    return (name, above - min(op.level for op in ops), *counts, *parts)
