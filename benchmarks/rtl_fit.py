"""Whole networks on an ECP5-85F: simulated bit for bit, placed and routed, with the accuracy that their integers have.

    python -m benchmarks.rtl_fit [--cases mlp:8:784,vit:8:2048] [--tried vit:8:1024] [--images 20] [--seeds 1,2,3]
                                 [--json FILE] [--markdown FILE]

A case is a model of `benchmarks.rtl_network`, the bits of values and weights, and the target's option `cycles`: each
product has as few multipliers as that many cycles for an image allow. Those that are tried are synthesised and not
placed. What is placed is kept seed by seed, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.rtl_network import MODELS, image_codes, lowered, simulated
from benchmarks.tables import Column, markdown, rich_table
from lowerkit.targets.fpga.cost import cost
from lowerkit.targets.fpga.dataflow import network
from lowerkit.targets.fpga.design import Design, simulate
from lowerkit.targets.fpga.devices import DEVICES
from lowerkit.targets.fpga.rtl import area
from lowerkit.targets.fpga.rtl.design import Rtl
from lowerkit.targets.fpga.rtl.implement import capacity, count_ecp5, implement
from lowerkit.targets.fpga.rtl.network import print_network

CHIP = DEVICES["ecp5-85k"]
CELLS = capacity(CHIP.name)
DATA = Path(__file__).parent.parent / "examples" / "data"
DESIGN = (
    Column("model", "{model}"),
    Column("bits", "{bits}"),
    Column("`cycles`", "{cycles}"),
    Column("products", "{products}"),
)
USED = (
    Column("LUT", "{luts} ({luts_percent:.0f} %)"),
    Column("FF", "{registers} ({registers_percent:.0f} %)"),
    Column("DSP", "{multipliers} ({multipliers_percent:.0f} %)"),
    Column("block RAM", "{memories} ({memories_percent:.0f} %)"),
)
PLACED = (
    *DESIGN,
    *USED,
    Column("Fmax MHz by seed", "{clocks}"),
    Column("latency, cycles", "{latency}"),
    Column("cycles per image", "{interval:.0f}"),
    Column("images/s", "{rate:.0f}"),
    Column("accuracy", "{accuracy:.2%} of {tested}"),
)
LAYERS = (
    Column("layer", "{layer}"),
    Column("cycles", "{cycles}"),
    Column("products", "{products}"),
    Column("LUT", "{luts}"),
    Column("FF", "{registers}"),
    Column("DSP", "{multipliers}"),
    Column("block RAM", "{memories}"),
)


Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A model, bits of its values and weights, and the most cycles of a product."""

    model: str
    bits: int
    cycles: int

    @classmethod
    def parse(cls, text: str) -> Case:
        """MODEL:BITS:CYCLES."""
        model, bits, cycles = text.split(":")
        if model not in MODELS:
            raise argparse.ArgumentTypeError(f"no model '{model}': {', '.join(MODELS)}")
        return cls(model, int(bits), int(cycles))


def printed(case: Case, tell: Callable[[str], None]) -> tuple[Design, Rtl]:
    """The design, and its Verilog in no more multiplier blocks than the chip has."""
    tell(f"{case.model}: lowering")
    design = lowered(case.model, width=case.bits, weight_width=case.bits, cycles=case.cycles)
    return design, print_network(design, blocks=CHIP.multipliers, progress=tell)


def accuracy(case: Case, design: Design) -> tuple[float, int]:
    """Of the oracle's integers on the whole test set, and its size."""
    labels = np.load(DATA / f"{MODELS[case.model][1]}_test_labels.npz")["labels"]
    (logits,) = simulate(design, image_codes(case.model, design, None)).values()
    chosen = logits.reshape(len(labels), -1).argmax(axis=1)
    return float((chosen == labels).mean()), len(labels)


def about(case: Case, design: Design, cells: dict[str, int]) -> Row:
    """What every row has."""
    shares = {f"{name}_percent": 100 * cells[name] / CELLS[name] for name in CELLS}
    products = sum(layer.multipliers for layer in cost(network(design)).layers)
    return {**asdict(case), "products": products, **cells, **shares}


def placed(
    case: Case,
    images: int,
    seeds: Sequence[int],
    tell: Callable[[str], None],
    say: Callable[[Row], None],
) -> tuple[Row, list[Row]]:
    """A case's row, and those of its layers; `say` is given what simulation found, long before all is placed."""
    design, rtl = printed(case, tell)
    with tempfile.TemporaryDirectory(prefix="lowerkit-") as scratch:
        _, cycles = simulated(case.model, design, rtl, images, 1, Path(scratch) / "rtl", tell)
    tell(f"{case.model}: the oracle on all test images")
    right, tested = accuracy(case, design)
    say({**asdict(case), **cycles, "accuracy": right})
    made = implement(rtl, CHIP.name, seeds=seeds, progress=tell)
    row = {
        **about(case, design, {name: getattr(made, name) for name in CELLS}),
        "fmax": made.fmax,
        "by_seed": made.by_seed,
        "clocks": ", ".join(f"{mhz:.1f}" for mhz in made.by_seed.values()),
        "path": made.path,
        "tools": made.tools,
        "latency": cycles["latency"],
        "interval": cycles["interval"],
        "images": images,
        "rate": made.fmax * 1e6 / cycles["interval"],
        "accuracy": right,
        "tested": tested,
    }
    return row, layers(design, made.parts)


def tried(case: Case, tell: Callable[[str], None]) -> Row:
    """A case's cells by synthesis alone."""
    design, rtl = printed(case, tell)
    tell(f"{case.model}: synthesis")
    return about(case, design, area.total(count_ecp5(rtl)))


def layers(design: Design, parts: area.Areas) -> list[Row]:
    """Cells of each layer, and of all that is between them."""
    found, rest = [], dict(parts)
    for layer in cost(network(design)).layers:
        if cells := rest.pop(layer.name, None):
            name = f"{layer.name} ({layer.op})" if layer.op else layer.name
            found.append({"layer": name, "cycles": layer.cycles, "products": layer.multipliers, **cells})
    between = {
        "layer": "queues between layers, ends of carries",
        "cycles": "",
        "products": 0,
        **area.total(rest),
    }
    return [*found, between]


def document(rows: list[Row], by_layer: dict[str, list[Row]], others: list[Row]) -> str:
    """The page."""
    versions = ", ".join(f"{name} {version}" for name, version in rows[0]["tools"].items())
    text = f"""
Whole networks on one {CHIP.chip}, speed grade 6: the MLP on Fashion-MNIST and the vision transformer on the digits.
`python -m benchmarks.rtl_fit --markdown docs/fpga/rtl_networks.md` writes this page; tools: {versions}.

- **Cells** are those that nextpnr places, with their share of the chip; Fmax is of paths from register to register, for
  each seed of the placement. Products that the chip's {CHIP.multipliers} multiplier blocks do not suffice for are made
  of logic, the smallest first.
- **Cycles** are measured by verilator on {rows[0]["images"]} test images, without stalls: from the first code offered
  to the first logit, and from one image to the next. The same images came with random gaps and stalls before; all bits
  of all logits are the oracle's.
- **images/s** are at the least Fmax of the seeds.
- **accuracy** is that of the integers on the whole test set, by the oracle, whose bits the simulation has.
- `cycles` is the target's option: each product has as few multipliers as that many cycles for an image allow.
"""
    parts = [markdown("Networks as RTL", text, PLACED, rows)]
    for row in rows:
        name = f"{row['model']}, {row['bits']} bits"
        parts.append(f"Slowest path of the {name}: from `{row['path'][0]}` to `{row['path'][1]}`.\n")
    if others:
        told = "Synthesised alone, by yosys: cells before placement, which adds ends of carry chains."
        parts.append(markdown("Tried", told, (*DESIGN, *USED), others).replace("# ", "## ", 1))
    for name, found in by_layer.items():
        told = "Analytic cycles of the layer's loops; cells as placed. A cell of several layers' logic counts once."
        parts.append(markdown(f"By layer: {name}", told, LAYERS, found).replace("# ", "## ", 1))
    return "\n".join(parts)


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default="mlp:8:784,vit:8:2048")
    parser.add_argument("--tried", default="")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    console, rows, by_layer = Console(), [], {}
    with console.status("") as status:
        for case in map(Case.parse, given.cases.split(",")):
            row, found = placed(case, given.images, seeds, status.update, console.print)
            rows.append(row)
            by_layer[f"{case.model}, {case.bits} bits"] = found
            console.print(rich_table(PLACED, [row]), rich_table(LAYERS, found))
        others = [tried(Case.parse(text), status.update) for text in given.tried.split(",") if text]
    if others:
        console.print(rich_table((*DESIGN, *USED), others))
    if given.json:
        kept = {"cases": rows, "layers": by_layer, "tried": others}
        given.json.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    if given.markdown:
        given.markdown.write_text(document(rows, by_layer, others), encoding="utf-8")


if __name__ == "__main__":
    main()
