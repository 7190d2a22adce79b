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
import onnxruntime as ort

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
    model = onnx.load(MODEL)
    shape = [1, TOKENS, SIZE]
    kept = [info for info in model.graph.value_info if info.name not in (INPUT, OUTPUT)]
    del model.graph.value_info[:]
    made = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in (INPUT, OUTPUT)
    ]
    model.graph.value_info.extend([*kept, *made])
    cut = onnx.utils.Extractor(model).extract_model([INPUT], [OUTPUT])
    names = {INPUT: "tokens", OUTPUT: "mixed"}
    for node in cut.graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(value, value) for value in values]
    for info in (*cut.graph.input, *cut.graph.output):
        info.name = names[info.name]
    del cut.graph.value_info[:]
    onnx.checker.check_model(cut)
    return cut


def tokens(images: np.ndarray) -> np.ndarray:
    """What the block reads of images, float32 [n, 16, 32]."""
    model = onnx.load(MODEL)
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(INPUT))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run([INPUT], {"image": images})[0]
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
