"""A network as one RTL design: test images in simulation, every bit of the outputs against the oracle.

    python -m benchmarks.rtl_network [--model vit|power|mlp] [--images 20] [--width 16] [--multipliers 64] [--seed 1]
                                     [--project FOLDER] [--json FILE]

The models are those of `examples/models`: the digits ViT, the same with power softmax, and the Fashion MLP. Verilator
simulates the whole network, with random input gaps and output stalls (half of the cycles) first, and then without,
where cycles are counted: latency from the first code offered to the first one out, and the interval from one image to
the next. The exit status is 1 where a bit differs. Seconds are those of this machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import lowerkit
from lowerkit.artifact import LOWERED
from lowerkit.targets.fpga.design import Design, codes_of, simulate
from lowerkit.targets.fpga.rtl.design import Rtl
from lowerkit.targets.fpga.rtl.network import print_network
from lowerkit.targets.fpga.rtl.project import write_rtl_project
from lowerkit.targets.fpga.rtl.simulate import RtlRunner, build
from lowerkit.targets.fpga.target import FpgaTarget

_EXAMPLES = Path(__file__).parent.parent / "examples"
#: By name: the model's file, the data's, the input and its shape.
MODELS = {
    "vit": ("vit_digits", "digits", "image", (1, 1, 8, 8)),
    "power": ("vit_digits_power", "digits", "image", (1, 1, 8, 8)),
    "mlp": ("mlp_fashion", "fashion", "image", (1, 784)),
}


def lowered(model: str, **options: int) -> Design:
    """A model's design, as the fpga target lowers it with its options."""
    file, data, name, shape = MODELS[model]
    with tempfile.TemporaryDirectory() as scratch:
        artifact = lowerkit.compile(
            _EXAMPLES / "models" / f"{file}.onnx",
            Path(scratch) / "artifact",
            "fpga",
            shape={name: shape},
            calibration=_EXAMPLES / "data" / f"{data}_calibration.npz",
            options=options,
        )
        return FpgaTarget().design(artifact.model(LOWERED), artifact.plan.options)


def measured(
    model: str, images: int, seed: int, folder: Path, tell: Callable[[str], None], **options: int
) -> list[dict[str, Any]]:
    """Cycles with stalls and without, of a project that is written to a folder. Exits where a bit differs."""
    tell("lowering")
    design = lowered(model, **options)
    rtl = print_network(design, progress=tell)
    rows = simulated(model, design, rtl, images, seed, folder, tell)
    return [{"model": model, **options, **row} for row in rows]


def image_codes(model: str, design: Design, images: int | None) -> dict[str, np.ndarray]:
    """Codes of the first test images, or of all."""
    _, data, name, _ = MODELS[model]
    return codes_of(design, {name: np.load(_EXAMPLES / "data" / f"{data}_test.npz")[name][:images]})


def simulated(
    model: str,
    design: Design,
    rtl: Rtl,
    images: int,
    seed: int,
    folder: Path,
    tell: Callable[[str], None],
) -> list[dict[str, Any]]:
    """As `measured`, of a design that is printed already."""
    codes = image_codes(model, design, images)
    wanted = simulate(design, codes)
    tell("writing the project")
    write_rtl_project(design, rtl, folder, golden={n: k[:4] for n, k in codes.items()})
    tell("building the simulation")
    start = time.perf_counter()
    build(folder)
    rows: list[dict[str, Any]] = []
    runner = RtlRunner(folder, design.described())
    built = time.perf_counter() - start
    for stalls in (True, False):
        tell(f"simulation with{'' if stalls else 'out'} stalls")
        start = time.perf_counter()
        found, cycles = runner.timed(codes, seed=seed, stalls=stalls)
        seconds = time.perf_counter() - start
        for value, numbers in wanted.items():
            if not np.array_equal(found[value], numbers):
                raise SystemExit(f"{value} differs from the oracle")
        about = {"images": images, "stalls": stalls, **asdict(cycles)}
        rows.append({**about, "build_seconds": round(built, 1), "seconds": round(seconds, 1)})
    return rows


def main() -> None:
    """Simulate, compare, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="vit")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--width", type=int, default=16, help="bits of values and weights")
    parser.add_argument("--multipliers", type=int, default=64, help="most multipliers of a layer")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--project", type=Path, help="where the Verilog and its test benches stay")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    options = {"width": given.width, "weight_width": given.width, "multipliers": given.multipliers}
    console = Console()
    with tempfile.TemporaryDirectory(prefix="lowerkit-") as scratch, console.status("") as status:
        folder = given.project or Path(scratch) / "rtl"
        rows = measured(given.model, given.images, given.seed, folder, status.update, **options)
    for row in rows:
        console.print(row)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
