"""The first block of the power-softmax ViT on digits as a model of its own, with real data, for encrypted inference.

    python -m examples.vit_block build/vit-block     # writes block.onnx, calibration.npz and test.npz
    lowerkit compile build/vit-block/block.onnx --target he --calibration build/vit-block/calibration.npz \\
        --method norm=batch-norm --method gelu=interval-poly:degree=7 --method reciprocal=interval-poly:degree=15 \\
        -o build/vit-block/out

The block reads 16 tokens of 32 numbers, [1, 16, 32], as the network has them of an image, and has 2 heads and 64 hidden
units. The calibration data are those of the calibration images, the test data those of the first 64 test images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx

from examples.cut import cut, values
from lowerkit.validation.samples import write_arrays

HERE = Path(__file__).parent
MODEL = HERE / "models" / "vit_digits_power.onnx"
TOKENS, SIZE, TESTED = 16, 32, 64
#: Methods with which it takes 14 levels: layer norms fold, as those of a network trained with batch norms would.
METHODS = {
    "norm": "batch-norm",
    "gelu": "interval-poly:degree=7",
    "reciprocal": "interval-poly:degree=15",
}
#: Values of the network between its blocks.
INPUT, OUTPUT = "add_13", "add_149"


def block() -> onnx.ModelProto:
    """Input `tokens`, output `mixed`."""
    shape = [1, TOKENS, SIZE]
    return cut(onnx.load(MODEL), {INPUT: "tokens"}, {OUTPUT: "mixed"}, {INPUT: shape, OUTPUT: shape})


def tokens(images: np.ndarray) -> np.ndarray:
    """What the block reads of images, float32 [n, 16, 32]."""
    (found,) = values(onnx.load(MODEL), [INPUT], {"image": images})
    return found


def write(folder: Path) -> None:
    """`block.onnx`, `calibration.npz` and `test.npz`."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(block(), folder / "block.onnx")
    for name, source in (("calibration", "digits_calibration"), ("test", "digits_test")):
        with np.load(HERE / "data" / f"{source}.npz") as data:
            write_arrays(folder / f"{name}.npz", {"tokens": tokens(data["image"][:TESTED])})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
