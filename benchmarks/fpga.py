"""What fixed point costs in accuracy on an FPGA, and whether the C-simulation is the integer model bit for bit.

    python -m benchmarks.fpga [--models vit,mlp,...] [--bits 16,8] [--clip error] [--json FILE] [--markdown FILE]

Every model is compiled with calibration data and validated on test data: the digits ViT and its power twin on the 450
test digits as they are and moved by a pixel to the left and to the right, the MLP and the CNN on 1,000 images of
Fashion-MNIST, one encoder layer of MiniLM-L3 on 34 texts. Exits with 1 where a code differs, or where more accuracy is
lost than `LIMITS` allows.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import lowerkit
from benchmarks.tables import Column, publish
from examples import minilm_layer
from lowerkit.validation.samples import write_arrays

TITLE = "Fixed point on an FPGA"
_EXAMPLES = Path(__file__).parent.parent / "examples"
#: Accuracy that may be lost with so many bits or more. Below 12, softmax is corrected for what rounding takes away.
LIMITS = {12: 0.01, 8: 0.02, 4: 1.0}
COLUMNS = (
    Column("model", "{model}"),
    Column("bits", "{bits}"),
    Column("clip", "{clip}"),
    Column("compile s", "{seconds:.0f}"),
    Column("samples", "{samples}"),
    Column("samples that differ", "{differing}"),
    Column("score in float", "{before:.2%}"),
    Column("on the artifact", "{after:.2%}"),
    Column("max error / scale", "{error:.1e}"),
    Column("cosine", "{cosine:.6f}"),
    Column("ok", "{ok}"),
)


@dataclass(frozen=True)
class Example:
    """A model with its shape, calibration and test data; labels where there are any.

    `softmax`: whether the model has one.
    """

    name: str
    file: Path
    shape: Mapping[str, tuple[int, ...]] | None
    calibration: Path
    data: Path
    labels: Path | None = None
    softmax: bool = True


def examples(scratch: Path) -> list[Example]:
    """All models, with their data written to a folder."""
    models, data = _EXAMPLES / "models", _EXAMPLES / "data"
    minilm_layer.write(scratch)
    digits = {
        "shape": {"image": (1, 1, 8, 8)},
        "calibration": data / "digits_calibration.npz",
        **_moved(scratch),
    }
    fashion = {
        "shape": {"image": (1, 784)},
        "calibration": data / "fashion_calibration.npz",
        "data": data / "fashion_test.npz",
        "labels": data / "fashion_test_labels.npz",
    }
    return [
        Example("vit", models / "vit_digits.onnx", softmax=True, **digits),
        Example("vit-power", models / "vit_digits_power.onnx", softmax=False, **digits),
        Example("mlp", models / "mlp_fashion.onnx", softmax=False, **fashion),
        Example("cnn", models / "cnn_fashion.onnx", softmax=False, **fashion),
        Example(
            "minilm-layer", scratch / "layer.onnx", None, scratch / "calibration.npz", scratch / "test.npz"
        ),
    ]


def _moved(scratch: Path) -> dict[str, Any]:
    """The test digits as they are, moved to the left and to the right."""
    images = np.load(_EXAMPLES / "data" / "digits_test.npz")["image"]
    labels = np.load(_EXAMPLES / "data" / "digits_test_labels.npz")["labels"]
    padded = np.pad(images, ((0, 0), (0, 0), (0, 0), (1, 1)))
    moved = [padded[..., start : start + 8] for start in (1, 2, 0)]
    write_arrays(scratch / "digits.npz", {"image": np.concatenate(moved)})
    write_arrays(scratch / "digits_labels.npz", {"labels": np.tile(labels, 3)})
    return {"data": scratch / "digits.npz", "labels": scratch / "digits_labels.npz"}


def measure(example: Example, bits: int, clip: str, scratch: Path) -> dict[str, Any]:
    """Compile with activations and weights of `bits` bits, and validate."""
    start = time.perf_counter()
    artifact = lowerkit.compile(
        example.file,
        scratch / "artifact",
        "fpga",
        shape=example.shape,
        calibration=example.calibration,
        methods={"softmax": "quantised"} if example.softmax and bits < 12 else None,
        options={"width": bits, "weight_width": bits, "clip": clip},
        force=True,
    )
    seconds = time.perf_counter() - start
    validation = lowerkit.validate(artifact, example.data, example.labels, layers=False)
    (output,) = validation.outputs
    total = output.error.total
    assert total is not None
    rate = output.agreement
    rated = rate is not None and rate.accuracy_original is not None
    before = rate.accuracy_original if rate is not None and rated else float("nan")
    after = rate.accuracy_artifact if rate is not None and rated else float("nan")
    assert before is not None
    assert after is not None
    limit = next(lost for least, lost in LIMITS.items() if bits >= least)
    fine = not rated or after >= before - limit
    return {
        "model": example.name,
        "bits": bits,
        "clip": clip,
        "seconds": seconds,
        "samples": validation.samples,
        "differing": validation.inexact,
        "before": before,
        "after": after,
        "error": total.relative,
        "cosine": total.cosine,
        "ok": bool(fine and validation.inexact == 0),
    }


def main() -> int:
    """Measure, print, save and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="vit,vit-power,mlp,cnn,minilm-layer")
    parser.add_argument("--bits", default="16,8")
    parser.add_argument("--clip", default="range", choices=("range", "error"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for example in examples(Path(scratch)):
            for bits in map(int, arguments.bits.split(",")):
                if example.name in arguments.models.split(","):
                    rows.append(measure(example, bits, arguments.clip, Path(scratch)))
                    print(rows[-1], file=sys.stderr)
    publish(TITLE, __doc__, COLUMNS, rows, arguments.json, arguments.markdown)
    return int(not all(row["ok"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
