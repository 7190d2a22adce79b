"""The digits ViT as one RTL design: test images in simulation, every bit of the logits against the oracle.

    python -m benchmarks.rtl_network [--images 2] [--multipliers 64] [--seed 1] [--verilog FILE] [--json FILE]

With random input gaps and output stalls first, and then without, where cycles are counted: latency from the first code
offered to the first one out, and cycles from one image to the next. Icarus Verilog takes minutes for an image.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console

import lowerkit
from lowerkit.artifact import LOWERED
from lowerkit.targets.fpga.design import Design, codes_of, simulate
from lowerkit.targets.fpga.rtl.network import print_network, simulate_network
from lowerkit.targets.fpga.target import FpgaTarget

_EXAMPLES = Path(__file__).parent.parent / "examples"
MODEL = _EXAMPLES / "models" / "vit_digits.onnx"


def lowered(multipliers: int) -> Design:
    """The ViT's design, as the fpga target lowers it."""
    with tempfile.TemporaryDirectory() as scratch:
        artifact = lowerkit.compile(
            MODEL,
            Path(scratch) / "artifact",
            "fpga",
            shape={"image": (1, 1, 8, 8)},
            calibration=_EXAMPLES / "data" / "digits_calibration.npz",
            options={"multipliers": multipliers},
        )
        return FpgaTarget().design(artifact.model(LOWERED), artifact.plan.options)


def main() -> None:
    """Simulate, compare, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--multipliers", type=int, default=64, help="most multipliers of a layer")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--verilog", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    design = lowered(arguments.multipliers)
    images = np.load(_EXAMPLES / "data" / "digits_test.npz")["image"][: arguments.images]
    codes = codes_of(design, {"image": images})
    wanted = simulate(design, codes)
    console, rows = Console(), []
    with console.status("") as status:
        rtl = print_network(design, progress=status.update)
        if arguments.verilog:
            arguments.verilog.write_text(rtl.verilog)
        for stalls in (True, False):
            status.update(f"simulation with{'' if stalls else 'out'} stalls")
            found, cycles = simulate_network(design, rtl, codes, seed=arguments.seed, stalls=stalls)
            for name, numbers in wanted.items():
                if not np.array_equal(found[name], numbers):
                    raise SystemExit(f"{name} differs from the oracle")
            rows.append({"images": len(images), "stalls": stalls, **asdict(cycles)})
            console.print(rows[-1])
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
