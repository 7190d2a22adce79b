"""M3ViT at the shapes of Edge-MoE on the fpga target: weights, bandwidth, cycles and formats.

    python -m benchmarks.m3vit [--multipliers 64] [--json FILE] [--markdown FILE]

Weights are random and seeded (`examples.m3vit`). Cycles and words are analytic: read off the loops of the kernels that
are emitted, not measured on hardware. Words of memory are counted for weights alone. Errors are those of the integer
model, to which the C-simulation is equal, against onnxruntime in single precision, as root mean squares over that of
the output.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from rich.console import Console

import lowerkit
from benchmarks.tables import Column, markdown, rich_table
from examples import m3vit
from examples.m3vit import M3VIT, Shapes
from lowerkit import pipeline
from lowerkit.errors import LowerkitWarning, UnsupportedError
from lowerkit.passes.lower import apply_plan, default_plan
from lowerkit.pipeline import Stages
from lowerkit.reference import Reference
from lowerkit.targets.fpga.converters import CONVERTERS
from lowerkit.targets.fpga.design import Design, codes_of, numbers_of, simulate
from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.kernels.linear import matmul
from lowerkit.targets.fpga.kernels.traffic import words_read
from lowerkit.targets.fpga.lowering import Context, design_of
from lowerkit.targets.fpga.ranges import parsed
from lowerkit.targets.fpga.target import FpgaTarget
from lowerkit.targets.fpga.units import with_units

Rows = list[dict[str, Any]]
TARGET = FpgaTarget()
#: Samples that formats are calibrated on; errors are over others.
CALIBRATION, TESTED = 4, 2


@dataclass(frozen=True)
class Lowered:
    """A model, as the target wants it, with what formats are chosen from."""

    original: ir.Model
    model: ir.Model
    samples: Sequence[Mapping[str, np.ndarray]]

    @classmethod
    def of(cls, proto: onnx.ModelProto) -> Lowered:
        """Load, canonicalise, calibrate on normal numbers and apply the default plan."""
        with tempfile.TemporaryDirectory() as scratch:
            onnx.save(proto, Path(scratch) / "model.onnx")
            original = lowerkit.load(Path(scratch) / "model.onnx", {})
        model = pipeline.canonical_graph(original, TARGET, Stages())
        (value,) = model.graph.inputs
        assert value.shape is not None
        rng = np.random.default_rng(1)
        shape = tuple(value.shape.numpy())
        samples = [
            {value.name or "": rng.standard_normal(shape).astype(np.float32)}
            for _ in range(CALIBRATION + TESTED)
        ]
        observed = pipeline.calibrate_plannable(model, samples[:CALIBRATION], synthetic=False)
        apply_plan(model, default_plan(model, TARGET, observed))
        return cls(original, model, samples)

    def formats(self, width: int) -> dict[str, str]:
        """Of that width, from the ranges."""
        found: dict[str, str] = TARGET.complete(self.model, self.samples[:CALIBRATION], {"width": width})[
            "formats"
        ]
        return found

    def design(self, formats: Mapping[str, str], weight_width: int = 16, multipliers: int = 64) -> Design:
        """The design with those formats."""
        return design_of(
            self.model, Context(parsed(formats), weight_width, multipliers=multipliers), CONVERTERS
        )

    def shared(self, formats: Mapping[str, str], multipliers: int) -> Design:
        """The design with linear layers on units."""
        context = Context(parsed(formats), 16, multipliers=multipliers)
        return with_units(design_of(self.model, context, CONVERTERS), context.jobs, multipliers)

    def error(self, design: Design) -> float:
        """Against float, relative."""
        (port,) = design.outputs
        reference, wrong, whole = Reference(self.original), 0.0, 0.0
        for sample in self.samples[CALIBRATION:]:
            exact = reference(sample)[port.value].astype(np.float64)
            found = numbers_of(design, simulate(design, codes_of(design, sample)))[port.value]
            wrong += float(((found.reshape(exact.shape) - exact) ** 2).sum())
            whole += float((exact**2).sum())
        return float(np.sqrt(wrong / whole))


def weights(s: Shapes) -> Rows:
    """Weights, biases among them, in total and those that one token takes part with."""
    blocks, sparse = s.layers, sum(s.is_moe(layer) for layer in range(s.layers))
    patches = 3 * s.patch**2 * s.width + s.width
    expert = 2 * s.width * s.expert_hidden + s.expert_hidden + s.width
    rows = {
        "embedding": (patches + (s.tokens + 1) * s.width, patches + s.width),
        "normalisation": (4 * s.width * blocks,) * 2,
        "attention": (4 * (s.width**2 + s.width) * blocks,) * 2,
        "MLP": ((2 * s.width * s.hidden + s.hidden + s.width) * (blocks - sparse),) * 2,
        "gates": (s.width * s.experts * sparse,) * 2,
        "experts": (expert * s.experts * sparse, expert * s.chosen * sparse),
    }
    rows["all"] = tuple(sum(each) for each in zip(*rows.values(), strict=True))  # type: ignore[assignment]
    return [
        {
            "part": part,
            "total": total,
            "active": active,
            "bits16": 16 * total / 1e6,
            "bits8": 8 * total / 1e6,
        }
        for part, (total, active) in rows.items()
    ]


def bandwidth(design: Design, s: Shapes) -> Rows:
    """Expert weights that one token costs, with one block's experts, by the order of computation."""
    layer = next(each for each in design.layers if each.name.endswith("_experts"))
    brought = words_read(layer.kernel)
    once = sum(brought[a.name] for a in layer.kernel.constants if a.name.endswith("_w"))
    each = 2 * s.width * s.expert_hidden
    assert once == s.experts * each  # The kernel brings every expert's weights once.
    counts = {
        "token by token": s.tokens * s.chosen * each,
        "expert by expert": once,
        "expert by expert, least": s.chosen * each,
    }
    return [
        {
            "order": order,
            "words": words,
            "token": words / s.tokens,
            "bits16": 16 * words / s.tokens,
            "bits8": 8 * words / s.tokens,
        }
        for order, words in counts.items()
    ]


def cycles(design: Design, s: Shapes) -> Rows:
    """By kind of layer, of one dense block, one with experts, and the whole network."""
    kinds = (
        "normalisation",
        "attention products",
        "softmax",
        "linear",
        "gelu",
        "gate",
        "experts",
        "moved and added",
    )
    names = {"dense": "block0.", "moe": "block1."}
    rows = []
    for kind in kinds:
        own = [layer for layer in design.layers if _kind(layer.op, layer.name) == kind]
        row: dict[str, Any] = {"kind": kind, "all": sum(layer.schedule.cycles for layer in own)}
        for column, prefix in names.items():
            row[column] = sum(layer.schedule.cycles for layer in own if layer.node.startswith(prefix))
        rows.append(row)
    rows.append({"kind": "sum", **{c: sum(row[c] for row in rows) for c in ("dense", "moe", "all")}})
    longest = {
        column: max(layer.schedule.cycles for layer in design.layers if layer.node.startswith(prefix))
        for column, prefix in {**names, "all": ""}.items()
    }
    return [*rows, {"kind": "longest layer", **longest}]


def _kind(op: str, name: str) -> str:
    if op == "MixtureOfExperts":
        return "experts" if name.endswith(("_experts", "_sum", "_queues")) else "gate"
    if "ormalization" in op:
        return "normalisation"
    if "Softmax" in op:
        return "softmax"
    if "Gelu" in op:
        return "gelu"
    if op == "MatMul" and "_mixed" in name:
        return "attention products"
    return "linear" if op in ("MatMul", "Conv") else "moved and added"


def parallel(s: Shapes, multipliers: int) -> Rows:
    """Q K': more multipliers by more rows of Q at once, which share keys, and by more keys at once."""
    size, form = s.width // s.heads, Fixed(16, 4)
    sizes, rows = (s.tokens, size, s.tokens), []
    for factor in (1, 2, 4, 8):
        for at_once, columns in ((factor, 1), (1, factor)):
            reuse = next(r for r in range(size * s.tokens // (multipliers * columns), size * s.tokens + 1)
                         if (size * s.tokens) % r == 0)  # fmt: skip
            kernel, cost = matmul("qk", (s.heads,), sizes, form, form, form, reuse=reuse, at_once=at_once)
            read = words_read(kernel)
            rows.append(
                {
                    "rows": at_once, "multipliers": cost.multipliers, "cycles": cost.cycles,
                    "keys": read["b"] / cost.cycles, "queries": read["a"] / cost.cycles,
                }
            )  # fmt: skip
            if factor == 1:
                break
    return rows


def units(separate: Design, shared: Design) -> Rows:
    """Linear layers with multipliers of their own, and on units that they take turns on."""
    jobs = {layer.name for layer in shared.layers if layer.job is not None}
    rows: Rows = []
    for what, design in (("separate", separate), ("on units", shared)):
        own = [layer for layer in design.layers if layer.name in jobs]
        rows.append(
            {
                "what": what,
                "functions": len({layer.kernel.name for layer in own}),
                "multipliers": sum(layer.schedule.multipliers for layer in own),
                "cycles": sum(layer.schedule.cycles for layer in own),
                "longest": max(layer.schedule.cycles for layer in own),
            }
        )
    return rows


def errors() -> Rows:
    """The experts alone, and a block with experts, in several formats of activations."""
    rows: Rows = []
    for what, proto in (("experts", m3vit.experts()), ("block", m3vit.block(True))):
        lowered = Lowered.of(proto)
        for width, weight in ((8, 8), (8, 16), (16, 8), (16, 16)):
            design = lowered.design(lowered.formats(width), weight)
            rows.append(_error(what, f"{width} bits, by range", weight, lowered.error(design)))
        # Wide ones of one format for everything, the widest whose sums keep within 63 bits.
        for width in range(32, 16, -1):
            fixed = dict.fromkeys(lowered.formats(16), f"ap_fixed<{width},10>")
            try:
                design = lowered.design(fixed)
            except UnsupportedError as refused:
                if width == 32:
                    rows.append(
                        _error(what, "ap_fixed<32,10>", 16, float("nan"), f"refused: {refused.reason}")
                    )
                continue
            rows.append(_error(what, f"ap_fixed<{width},10>", 16, lowered.error(design)))
            break
    return rows


def _error(what: str, activations: str, weight: int, error: float, note: str = "") -> dict[str, Any]:
    return {"what": what, "activations": activations, "weights": weight, "error": error, "note": note}


def tables(multipliers: int) -> dict[str, tuple[Sequence[Column], Rows]]:
    """Every table by its title."""
    whole = Lowered.of(m3vit.m3vit())
    formats = whole.formats(16)
    design = whole.design(formats, multipliers=multipliers)
    return {
        "Weights": (
            (
                Column("part", "{part}"), Column("weights", "{total:,}"), Column("active per token", "{active:,}"),
                Column("Mbit at 16 bits", "{bits16:.1f}"), Column("Mbit at 8 bits", "{bits8:.1f}"),
            ),
            weights(M3VIT),
        ),
        "Expert weights brought from memory, one block": (
            (
                Column("order", "{order}"), Column("words", "{words:,}"), Column("words per token", "{token:,.0f}"),
                Column("bits per token at 16 bits", "{bits16:,.0f}"), Column("at 8 bits", "{bits8:,.0f}"),
            ),
            bandwidth(design, M3VIT),
        ),
        f"Analytic cycles, at most {multipliers} multipliers for each product": (
            (
                Column("kind of layer", "{kind}"), Column("dense block", "{dense:,}"),
                Column("block with experts", "{moe:,}"), Column("network", "{all:,}"),
            ),
            cycles(design, M3VIT),
        ),
        "Linear layers": (
            (
                Column("linear layers", "{what}"), Column("functions", "{functions}"),
                Column("multipliers", "{multipliers:,}"), Column("cycles, one after the other", "{cycles:,}"),
                Column("longest layer", "{longest:,}"),
            ),
            units(design, whole.shared(formats, multipliers)),
        ),
        "Words of Q K' per cycle": (
            (
                Column("rows of Q at once", "{rows}"), Column("multipliers", "{multipliers}"),
                Column("cycles", "{cycles:,}"), Column("words of K per cycle", "{keys:.1f}"),
                Column("words of Q per cycle", "{queries:.2f}"),
            ),
            parallel(M3VIT, multipliers),
        ),
        "Error of formats": (
            (
                Column("of", "{what}"), Column("activations", "{activations}"), Column("bits of weights", "{weights}"),
                Column("relative error", "{error:.1e}"), Column("", "{note}"),
            ),
            errors(),
        ),
    }  # fmt: skip


def main() -> None:
    """Compute, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--multipliers", type=int, default=64)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", LowerkitWarning)
    found = tables(arguments.multipliers)
    console = Console(width=150)
    for title, (columns, rows) in found.items():
        console.print(title, rich_table(columns, rows))
    if arguments.json:
        saved = {title: rows for title, (_, rows) in found.items()}
        arguments.json.write_text(json.dumps(saved, indent=2) + "\n")
    if arguments.markdown:
        parts = [markdown(title, "", columns, rows) for title, (columns, rows) in found.items()]
        arguments.markdown.write_text("\n".join(parts))


if __name__ == "__main__":
    main()
