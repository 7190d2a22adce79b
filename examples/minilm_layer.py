"""The first encoder layer of MiniLM-L3 as a model of its own, with real data: what hardware takes at a time.

    python -m examples.minilm_layer build/minilm-layer     # writes layer.onnx, calibration.npz and test.npz

The layer reads token embeddings, [1, 32, 384], and the mask that is added to its logits, [1, 1, 1, 32], of the Lee
documents: the calibration data are the beginnings of 16 texts, the test data those of the other 34, cut to
lengths from 8 to 32 tokens.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx

from examples.cut import cut, values
from examples.fetch import fetch
from examples.minilm import documents, tokenise
from lowerkit.validation.samples import write_arrays

TOKENS = 32
CALIBRATION = 16
_PREFIX = "/model/model.0/auto_model/"
HIDDEN = f"{_PREFIX}embeddings/LayerNorm/LayerNormalization_output_0"
MASK = f"{_PREFIX}Mul_1_output_0"
OUTPUT = f"{_PREFIX}encoder/layer.0/output/LayerNorm/LayerNormalization_output_0"


def layer() -> onnx.ModelProto:
    """Inputs `hidden` and `mask`, output `output`."""
    shapes = {HIDDEN: [1, TOKENS, 384], MASK: [1, 1, 1, TOKENS], OUTPUT: [1, TOKENS, 384]}
    return cut(onnx.load(fetch("minilm")), {HIDDEN: "hidden", MASK: "mask"}, {OUTPUT: "output"}, shapes)


def data() -> dict[str, np.ndarray]:
    """`hidden`, [50, 32, 384], and `mask`, [50, 1, 1, 32], as the whole model computes them."""
    tokens = {name: array[:, :TOKENS] for name, array in tokenise(documents()).items()}
    lengths = np.random.default_rng(0).integers(8, TOKENS + 1, len(tokens["input_ids"]))
    tokens["attention_mask"] = tokens["attention_mask"] * (np.arange(TOKENS) < lengths[:, None])
    hidden, mask = values(onnx.load(fetch("minilm")), [HIDDEN, MASK], tokens)
    return {"hidden": hidden, "mask": mask}


def write(folder: Path) -> None:
    """`layer.onnx`, `calibration.npz` and `test.npz`."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(layer(), folder / "layer.onnx")
    arrays = data()
    write_arrays(folder / "calibration.npz", {k: v[:CALIBRATION] for k, v in arrays.items()})
    write_arrays(folder / "test.npz", {k: v[CALIBRATION:] for k, v in arrays.items()})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
