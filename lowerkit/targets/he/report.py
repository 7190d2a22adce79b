"""What a circuit takes, by layer."""

from __future__ import annotations

from collections.abc import Iterable

from lowerkit.targets.base import CostTable
from lowerkit.targets.he import cost
from lowerkit.targets.he.levelled import Levelled, LevelledOp
from lowerkit.targets.he.sizes import sizes


def table(program: Levelled) -> CostTable:
    """Levels, operations and the estimated share of the time, by layer and of the whole."""
    layers: dict[str, list[LevelledOp]] = {}
    for op in program.ops:
        if op.kind != "input":
            layers.setdefault(op.layer, []).append(op)
    whole = sum(_seconds(op, program.chain.degree) for op in program.ops)
    rows = [_row(name, ops, program, whole) for name, ops in layers.items()]
    rows.append(_row("all", program.ops, program, whole))
    size = sizes(program)
    return CostTable(
        f"operations counted; time estimated from measured operations, in all about {whole:.3g} s on one core; "
        f"ring of degree {program.chain.degree}; evaluation keys {_megabytes(size.keys)} "
        f"({len(program.steps())} rotations), query {_megabytes(size.query)}, answer {_megabytes(size.answer)}, "
        f"memory of the server {_megabytes(size.server)}",
        ("layer", "levels", "rotations", "ct-ct products", "ct-pt products", "rescales", "time, per mille"),
        tuple(rows),
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.3g} MB"


def _seconds(op: LevelledOp, degree: int) -> float:
    before = op.level + (op.kind in ("rescale", "mod_switch"))
    return cost.seconds(op.kind, before + 1, degree)


def _row(name: str, ops: Iterable[LevelledOp], program: Levelled, whole: float) -> tuple[str | int, ...]:
    ops = list(ops)
    count = {kind: sum(op.kind == kind for op in ops) for kind in ("rotate", "mul", "mul_plain", "rescale")}
    above = max(max((program.ops[a].level for a in op.args), default=op.level) for op in ops)
    share = round(1000 * sum(_seconds(op, program.chain.degree) for op in ops) / whole)
    return (name, above - min(op.level for op in ops), *count.values(), share)
