"""Accuracy of the digits ViT in fixed point of few bits, with bias-corrected softmax, by width and clipping.

python benchmarks/fpga_widths.py [--widths 8 7 6] [--samples 16 32 64] [--csim]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

import lowerkit
from lowerkit import pipeline
from lowerkit.artifact import specs
from lowerkit.passes.lower import apply_plan, default_plan
from lowerkit.pipeline import Stages
from lowerkit.targets.fpga.csim import CsimRunner
from lowerkit.targets.fpga.design import codes_of, numbers_of, simulate
from lowerkit.targets.fpga.target import FpgaTarget, _design
from lowerkit.validation.samples import read_samples

EXAMPLES = Path(__file__).parent.parent / "examples"


def main() -> None:
    """Print accuracies, and how many codes of the C-simulation differ from the integer model's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 7, 6])
    parser.add_argument("--samples", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--csim", action="store_true", help="run the C-simulation on all test samples, too")
    options = parser.parse_args()
    model = lowerkit.load(str(EXAMPLES / "models/vit_digits.onnx"), {"image": (1, 1, 8, 8)})
    inputs = specs(list(model.graph.inputs))
    calibration = list(read_samples(EXAMPLES / "data/digits_calibration.npz", inputs))
    images = np.concatenate([s["image"] for s in read_samples(EXAMPLES / "data/digits_test.npz", inputs)])
    labels = np.load(EXAMPLES / "data/digits_test_labels.npz")["labels"]
    for width in options.widths:
        for clip in ("range", "error"):
            for count in options.samples:
                line = _row(model, width, clip, calibration[:count], images, labels, csim=options.csim)
                print(f"{width} bits, clip {clip}, {count} calibration samples: {line}", flush=True)


def _row(model, width, clip, samples, images, labels, *, csim: bool) -> str:  # type: ignore[no-untyped-def]
    target = FpgaTarget()
    graph = pipeline.canonical_graph(model, target, Stages())
    statistics = pipeline.calibrate_plannable(graph, samples, synthetic=False)
    apply_plan(graph, default_plan(graph, target, statistics, {"softmax": "quantised"}))
    chosen = {"width": width, "weight_width": width, "clip": clip}
    options = target.complete(graph, samples, chosen)
    design = _design(graph, options)
    codes = codes_of(design, {"image": images})
    found = simulate(design, codes)
    logits = numbers_of(design, found)["logits"].reshape(len(images), -1)
    line = f"accuracy {np.mean(logits.argmax(1) == labels):.4f}"
    if csim:
        with tempfile.TemporaryDirectory() as scratch:
            target.emit(graph.clone(), options, Path(scratch))
            runner = target.open(Path(scratch), options)
            assert isinstance(runner, CsimRunner)
            simulated = runner.codes(codes)["logits"].ravel()
        line += f", {int((simulated != found['logits'].ravel()).sum())} of {simulated.size} codes differ"
    return line


if __name__ == "__main__":
    main()
