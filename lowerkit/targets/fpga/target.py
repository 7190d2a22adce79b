"""The fpga target: see the package's docstring."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from lowerkit.errors import PlanError
from lowerkit.targets.base import CostTable, Progress, Runner, Target
from lowerkit.targets.fpga import csim, devices, interfaces, project, ranges, runner
from lowerkit.targets.fpga.converters import CONVERTERS
from lowerkit.targets.fpga.cost import Cost, cost, cost_table
from lowerkit.targets.fpga.dataflow import network
from lowerkit.targets.fpga.design import Design, codes_of, numbers_of, simulate
from lowerkit.targets.fpga.formats import Format
from lowerkit.targets.fpga.graph_formats import stated
from lowerkit.targets.fpga.lowering import Chooser, Context, design_of
from lowerkit.targets.fpga.narrow_weights import coding
from lowerkit.targets.fpga.proven import prove
from lowerkit.targets.fpga.rtl import options as rtl_options
from lowerkit.targets.fpga.rtl.tables import MEASURED, tables
from lowerkit.targets.fpga.runner import DESCRIPTION, PROJECT
from lowerkit.targets.fpga.units import with_units

#: What becomes of numbers beyond a format: `calibrated` formats hold what calibration saw, and saturate beyond;
#: with `saturate`, formats that are given may hold less; `never` proves that no number passes its format.
OVERFLOW = ("calibrated", "saturate", "never")


class FpgaTarget(Target):
    """Writes HLS or RTL whose simulation equals the integer model. Options: see `docs/fpga.md`."""

    name = "fpga"
    summary = "HLS C++ or RTL in fixed point, simulated bit for bit; no vendor tool is needed"
    defaults: ClassVar[Mapping[str, str]] = {"softmax": "fixed", "gelu": "table"}
    expands = frozenset({"Attention"})
    native = frozenset({"FixedSoftmax", "MixtureOfExperts", "TableGelu"})
    #: The lowered graph is in float32; what fixed point costs is for the report, not for a refusal.
    tolerance = 1.0
    exact_probe = True
    options: ClassVar[Mapping[str, Any]] = {
        "width": 16,
        "weight_width": 16,
        "clock_ns": 5,
        "part": "",
        "device": "",
        "interface": "memory",
        "noise": 0.0,
        "overflow": "calibrated",
        "clip": "range",
        "formats": {},
        "multipliers": 64,
        "cycles": 0,
        "reuse": {},
        "parallel": {},
        "shared_linear": False,
        "weights": {},
        **rtl_options.OPTIONS,
    }

    def blocker(self, node: ir.Node) -> str | None:
        """Operators without a kernel."""
        return None if node.op_type in CONVERTERS else f"there is no kernel for {node.op_type}"

    def complete(
        self,
        model: ir.Model,
        samples: Sequence[Mapping[str, np.ndarray]],
        options: Mapping[str, Any],
        *,
        synthetic: bool = False,
    ) -> dict[str, Any]:
        """The options, with a format for every value that has none, from its range on the samples.

        Raises PlanError for a given format that does not hold its value's calibrated range, unless it may saturate.
        """
        merged = _checked(options)
        seen, given = ranges.observed(model, samples), merged["formats"]
        if not synthetic and merged["overflow"] != "saturate":
            ranges.check_given(ranges.parsed(given), seen)
        chosen = ranges.formats_for(model, seen, merged["width"], merged["noise"] or None, merged["clip"])
        own = {name: str(form) for name, form in stated(model).items()}
        completed = {**merged, "formats": {**chosen, **given, **own}}
        if merged["overflow"] == "never":
            proven = self.design(model, completed, partial(prove, given=frozenset({**given, **own})))
            completed["formats"] |= {n: str(p.format) for n, p in proven.values.items() if n in chosen}
        return completed

    def design(self, model: ir.Model, options: Mapping[str, Any], choose: Chooser | None = None) -> Design:
        """The design of a lowered graph, whose values all have formats among the options.

        While formats are still chosen, layers do not share units.
        """
        merged = _checked(options)
        context = _context(model, merged)
        found = design_of(model, context, CONVERTERS, choose)
        shared = merged["shared_linear"] and choose is None
        return with_units(found, context.jobs, merged["multipliers"]) if shared else found

    def emit(
        self,
        model: ir.Model,
        options: Mapping[str, Any],
        directory: Path,
        progress: Progress | None = None,
    ) -> Mapping[str, Any]:
        """Write the project of the flow, `hls/` or `rtl/`, and build its simulation."""
        merged = _checked(options)
        if merged["flow"] == "rtl":
            return _emit_rtl(model, merged, directory, progress or (lambda *_: None))
        design = self.design(model, merged)
        chosen = devices.device(merged["device"]) if merged["device"] else None
        net = network(design)
        spent = cost(net, chosen)
        if chosen is not None:
            spent.check()
        project.write_project(
            design,
            directory / PROJECT,
            part=merged["part"] or (chosen or devices.DEFAULT).part,
            clock_ns=1000 / merged["clock"] if merged["clock"] else float(merged["clock_ns"]),
            interface=merged["interface"],
            net=net,
        )
        _describe(directory, design, spent)
        csim.build(directory / PROJECT)
        return merged

    def open(self, directory: Path, options: Mapping[str, Any]) -> Runner:
        """A runner of the flow's simulation."""
        described = _described(directory)
        return csim.CsimRunner(directory / described["project"], described)

    def costs(self, directory: Path) -> tuple[CostTable, ...]:
        """Analytic: counted from the emitted loops; and what the RTL flow measured."""
        table = cost_table(_described(directory)["cost"])
        measured = directory / MEASURED
        if not measured.is_file():
            return (table,)
        return (*tables(json.loads(measured.read_text(encoding="utf-8"))), table)

    def probe(self, model: ir.Model, options: Mapping[str, Any], taps: Sequence[str]) -> Runner:
        """A runner of the integer model, which the C-simulation equals, that returns the values in `taps` too."""
        design = self.design(model, options)
        names = [p.value for p in design.outputs]
        names += [tap for tap in dict.fromkeys(taps) if tap in design.values and tap not in names]

        def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return numbers_of(design, simulate(design, codes_of(design, inputs), names))

        return run


def _context(model: ir.Model, options: Mapping[str, Any]) -> Context:
    return Context(
        _formats(model, options),
        options["weight_width"],
        reuse=options["reuse"],
        weights=_weights(model, options),
        multipliers=options["multipliers"],
        cycles=options["cycles"],
        parallel=options["parallel"],
    )


def _emit_rtl(
    model: ir.Model, options: Mapping[str, Any], directory: Path, progress: Progress
) -> Mapping[str, Any]:
    from lowerkit.targets.fpga.rtl import flow

    def build(changed: Mapping[str, Any]) -> tuple[Design, Mapping[str, int]]:
        context = _context(model, changed)
        return design_of(model, context, CONVERTERS), context.factors

    design, settled = flow.emit(build, options, directory, progress)
    chosen = devices.device(options["device"])
    _describe(directory, design, cost(network(design), chosen), flow.PROJECT)
    return settled


def _describe(directory: Path, design: Design, spent: Cost, folder: str = PROJECT) -> None:
    """Write what a runner needs, and the runner."""
    text = json.dumps({**_description(design, spent), "project": folder}, indent=2) + "\n"
    (directory / DESCRIPTION).write_text(text, encoding="utf-8")
    shutil.copyfile(runner.__file__, directory / "run.py")


def _described(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / DESCRIPTION).read_text(encoding="utf-8"))
    return {"project": PROJECT, **found}


def _formats(model: ir.Model, options: Mapping[str, Any]) -> dict[str, Format]:
    """Those of the plan, and those that a quantised graph states itself."""
    given, own = ranges.parsed(options["formats"]), stated(model)
    for name, form in own.items():
        if given.get(name, form) != form:
            hint = "take it out of the plan, or quantise the model otherwise"
            raise PlanError(f"option formats: the graph itself quantises value '{name}' to {form}", hint=hint)
    return {**given, **own}


def _weights(model: ir.Model, options: Mapping[str, Any]) -> Mapping[str, str]:
    """By node, how its weights are coded. Raises PlanError for a node that has none."""
    products = [node.name or "" for node in model.graph if node.op_type in ("Conv", "Gemm", "MatMul")]
    for name in sorted(options["weights"]):
        if name not in products:
            hint = f"nodes that may: {', '.join(products)}" if products else None
            raise PlanError(f"option weights: node '{name}' is not there or has no weights", hint=hint)
    found: Mapping[str, str] = options["weights"]
    return found


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """All options. Raises PlanError for one that cannot be."""
    merged = rtl_options.checked(FpgaTarget.merged(options))
    for key in ("width", "weight_width"):
        value = merged[key]
        if isinstance(value, bool) or not isinstance(value, int) or not 4 <= value <= 32:
            raise PlanError(f"option {key} must be a number of bits from 4 to 32, not {value!r}")
    interfaces.interface(merged["interface"])
    if merged["device"]:
        devices.device(str(merged["device"]))
    noise, most = merged["noise"], merged["multipliers"]
    if isinstance(noise, bool) or not isinstance(noise, (int, float)) or not 0 <= noise < 1:
        raise PlanError(f"option noise must be a number from 0 (no budget) to 1, not {noise!r}")
    if merged["overflow"] not in OVERFLOW:
        raise PlanError(f"option overflow must be one of {', '.join(OVERFLOW)}, not {merged['overflow']!r}")
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise PlanError(f"option multipliers must be a positive number, not {most!r}")
    cycles = merged["cycles"]
    if isinstance(cycles, bool) or not isinstance(cycles, int) or cycles < 0:
        raise PlanError(f"option cycles must be a number of clock cycles, or 0 for no limit, not {cycles!r}")
    if not isinstance(merged["shared_linear"], bool):
        raise PlanError(f"option shared_linear must be true or false, not {merged['shared_linear']!r}")
    for node, rows in merged["parallel"].items():
        if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
            raise PlanError(f"option parallel of node '{node}' must be a positive number, not {rows!r}")
    if merged["clip"] not in ("range", "error"):
        raise PlanError(f"option clip must be 'range' or 'error', not {merged['clip']!r}")
    for node, kind in merged["weights"].items():
        try:
            coding(str(kind))
        except ValueError as error:
            raise PlanError(f"option weights, node '{node}': {error}") from None
    return merged


def _description(design: Design, spent: Cost) -> dict[str, Any]:
    """What a runner and a reader need to know of the project."""
    return {
        **design.described(),
        "layers": [
            {
                "name": layer.name,
                "node": layer.node,
                "op": layer.op,
                "reads": list(layer.reads),
                "writes": list(layer.writes),
            }
            for layer in design.layers
        ],
        "cost": spent.as_json(),
    }
