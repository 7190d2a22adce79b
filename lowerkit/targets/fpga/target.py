"""The fpga target: see the package's docstring."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from lowerkit.errors import PlanError
from lowerkit.targets.base import Runner, Target
from lowerkit.targets.fpga import csim, project, ranges
from lowerkit.targets.fpga.converters import CONVERTERS
from lowerkit.targets.fpga.design import Design, codes_of, numbers_of, simulate
from lowerkit.targets.fpga.lowering import Context, design_of
from lowerkit.targets.fpga.units import with_units

PROJECT, DESCRIPTION = "hls", "fpga.json"


class FpgaTarget(Target):
    """Writes an HLS project whose C-simulation equals the integer model. Options: see `docs/fpga.md`."""

    name = "fpga"
    summary = "HLS C++ in fixed point, simulated bit for bit with g++; no vendor tool is needed"
    defaults: ClassVar[Mapping[str, str]] = {"softmax": "fixed", "gelu": "table"}
    expands = frozenset({"Attention"})
    native = frozenset({"FixedSoftmax", "MixtureOfExperts", "TableGelu"})
    #: The lowered graph is in float32; what fixed point costs is for the report, not for a refusal.
    tolerance = 1.0
    options: ClassVar[Mapping[str, Any]] = {
        "width": 16,
        "weight_width": 16,
        "clock_ns": 5,
        "part": "xczu9eg-ffvb1156-2-e",
        "noise": 0.0,
        "formats": {},
        "multipliers": 64,
        "reuse": {},
        "parallel": {},
        "shared_linear": False,
    }

    def blocker(self, node: ir.Node) -> str | None:
        """Operators without a kernel."""
        return None if node.op_type in CONVERTERS else f"there is no kernel for {node.op_type}"

    def complete(
        self, model: ir.Model, samples: Iterable[Mapping[str, np.ndarray]], options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The options, with a format for every value that has none, from its range on the samples."""
        merged = _checked(options)
        seen = ranges.observed(model, samples)
        chosen = ranges.formats_for(model, seen, merged["width"], merged["noise"] or None)
        return {**merged, "formats": {**chosen, **merged["formats"]}}

    def emit(self, model: ir.Model, options: Mapping[str, Any], directory: Path) -> None:
        """Write the project to `hls/` and build its C-simulation."""
        merged = _checked(options)
        design = _design(model, merged)
        project.write_project(
            design, directory / PROJECT, part=merged["part"], clock_ns=float(merged["clock_ns"])
        )
        (directory / DESCRIPTION).write_text(
            json.dumps(_description(design), indent=2) + "\n", encoding="utf-8"
        )
        csim.build(directory / PROJECT)

    def open(self, directory: Path, options: Mapping[str, Any]) -> Runner:
        """A runner of the C-simulation."""
        return csim.CsimRunner(
            directory / PROJECT, json.loads((directory / DESCRIPTION).read_text(encoding="utf-8"))
        )

    def probe(self, model: ir.Model, options: Mapping[str, Any], taps: Sequence[str]) -> Runner:
        """A runner of the integer model, which the C-simulation equals, that returns the values in `taps` too."""
        design = _design(model, _checked(options))
        names = [p.value for p in design.outputs]
        names += [tap for tap in dict.fromkeys(taps) if tap in design.values and tap not in names]

        def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return numbers_of(design, simulate(design, codes_of(design, inputs), names))

        return run


def _design(model: ir.Model, options: Mapping[str, Any]) -> Design:
    context = Context(
        ranges.parsed(options["formats"]),
        options["weight_width"],
        options["reuse"],
        options["multipliers"],
        options["parallel"],
    )
    design = design_of(model, context, CONVERTERS)
    return with_units(design, context.jobs, options["multipliers"]) if options["shared_linear"] else design


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """All options. Raises PlanError for one that cannot be."""
    if unknown := sorted(set(options) - set(FpgaTarget.options)):
        hint = f"its options: {', '.join(FpgaTarget.options)}"
        raise PlanError(f"the fpga target has no option '{unknown[0]}'", hint=hint)
    merged = {**FpgaTarget.options, **options}
    for key in ("width", "weight_width"):
        value = merged[key]
        if isinstance(value, bool) or not isinstance(value, int) or not 4 <= value <= 32:
            raise PlanError(f"option {key} must be a number of bits from 4 to 32, not {value!r}")
    noise, most = merged["noise"], merged["multipliers"]
    if isinstance(noise, bool) or not isinstance(noise, (int, float)) or not 0 <= noise < 1:
        raise PlanError(f"option noise must be a number from 0 (no budget) to 1, not {noise!r}")
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise PlanError(f"option multipliers must be a positive number, not {most!r}")
    if not isinstance(merged["shared_linear"], bool):
        raise PlanError(f"option shared_linear must be true or false, not {merged['shared_linear']!r}")
    for node, rows in merged["parallel"].items():
        if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
            raise PlanError(f"option parallel of node '{node}' must be a positive number, not {rows!r}")
    return merged


def _description(design: Design) -> dict[str, Any]:
    """What a runner and a reader need to know of the project."""
    return {
        "inputs": [_port(p) for p in design.inputs],
        "outputs": [_port(p) for p in design.outputs],
        "layers": [
            {
                "name": layer.name,
                "node": layer.node,
                "op": layer.op,
                "reads": list(layer.reads),
                "writes": list(layer.writes),
                "multipliers": layer.schedule.multipliers,
                "cycles": layer.schedule.cycles,
                "constant_bits": project.constant_bits(layer),
            }
            for layer in design.layers
        ],
        "note": "multipliers and cycles are analytic: read off the emitted loops, not measured on hardware",
    }


def _port(port: Any) -> dict[str, Any]:
    return {"name": port.value, "shape": list(port.shape), "format": str(port.format)}
