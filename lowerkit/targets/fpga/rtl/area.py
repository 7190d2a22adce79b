"""Cells of a netlist, by kind and by the part of the design that they belong to.

Netlists are flat, and their cells' names begin with the instances that they were in: `u_layer.u_stage.name`. A cell
that yosys made of several parts' logic has the name of one of them, so that sums are exact and borders are not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

#: What is counted, by nextpnr's names of cells. A look-up table's cell is one of logic, of a carry chain or of memory.
PLACED = {
    "TRELLIS_COMB": "luts",
    "TRELLIS_FF": "registers",
    "MULT18X18D": "multipliers",
    "DP16KD": "memories",
}
#: The same by yosys' names, as often as a cell takes one: a carry cell is of two look-up tables, a memory of 16 words
#: of four.
SYNTHESISED = {
    "LUT4": ("luts", 1),
    "CCU2C": ("luts", 2),
    "TRELLIS_DPR16X4": ("luts", 4),
    "TRELLIS_FF": ("registers", 1),
    "MULT18X18D": ("multipliers", 1),
    "DP16KD": ("memories", 1),
}
#: Parts that are no instances: logic of the top module itself, and what nextpnr adds (ends of carry chains).
OWN, ADDED = "", "$nextpnr"

#: Cells by part and kind.
Areas = dict[str, dict[str, int]]


def placed(netlist: Mapping[str, Any]) -> Areas:
    """Of what nextpnr writes."""
    return _areas(netlist, {kind: (name, 1) for kind, name in PLACED.items()})


def synthesised(netlist: Mapping[str, Any]) -> Areas:
    """Of what yosys writes: less than what is placed, which has ends of carry chains and of memories as well."""
    return _areas(netlist, SYNTHESISED)


def total(areas: Areas) -> dict[str, int]:
    """Of all parts."""
    return {name: sum(area[name] for area in areas.values()) for name in PLACED.values()}


def instances(cell: str) -> tuple[str, str]:
    """The part that a cell belongs to, and the module within it, by its name; `` where there is none."""
    if cell.startswith(ADDED):
        return ADDED, OWN
    path = [name.removeprefix("u_") for name in cell.split(".")[:-1]]
    part, within, *_ = [*path, OWN, OWN]
    return part, within


def _areas(netlist: Mapping[str, Any], kinds: Mapping[str, tuple[str, int]]) -> Areas:
    module = next(m for m in netlist["modules"].values() if "top" in m.get("attributes", {}))
    found: dict[str, Counter[str]] = {}
    for cell, about in module["cells"].items():
        if about["type"] in kinds:
            name, count = kinds[about["type"]]
            found.setdefault(instances(cell)[0], Counter())[name] += count
    return {part: {name: found[part][name] for name in PLACED.values()} for part in sorted(found)}
