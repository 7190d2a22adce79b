"""Accuracy of an example classifier before and after lowering, on the committed test data.

lowerkit compile examples/models/vit_digits.onnx --target cpu --shape image:1,1,8,8 -o build/vit
python -m examples.evaluate build/vit --data digits
python -m examples.evaluate examples/models/vit_digits.onnx --data digits
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort

from lowerkit import Artifact, LowerkitError
from lowerkit.artifact import ORIGINAL, TensorSpec
from lowerkit.validation.samples import read_labels, read_samples

DATA = Path(__file__).parent / "data"
DATASETS = ("digits", "fashion")

Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


def original(model: Path, batch: int = 1) -> tuple[list[TensorSpec], Run]:
    """The inputs of an .onnx classifier, with `batch` for a symbolic first axis, and onnxruntime on it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(model), options, ["CPUExecutionProvider"])
    (image,), (logits,) = session.get_inputs(), session.get_outputs()
    shape = (image.shape[0] if isinstance(image.shape[0], int) else batch, *image.shape[1:])
    spec = TensorSpec(image.name, "float32", shape)
    return [spec], lambda inputs: {logits.name: session.run([logits.name], dict(inputs))[0]}


def correct(inputs: list[TensorSpec], run: Run, dataset: str) -> tuple[int, int]:
    """How many test images `run`, of one output, gets right, and how many there are.

    Raises DataError when the images do not fit `inputs`.
    """
    samples = read_samples(DATA / f"{dataset}_test.npz", inputs)
    labels = read_labels(DATA / f"{dataset}_test_labels.npz")
    found = [next(iter(run(sample).values())).argmax(-1) for sample in samples]
    return int((np.concatenate(found) == labels).sum()), len(labels)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, help="an artifact directory, or an .onnx file")
    parser.add_argument("--data", choices=DATASETS, required=True)
    arguments = parser.parse_args()
    try:
        if arguments.model.suffix == ".onnx":
            runs = {"original": original(arguments.model)}
        else:
            artifact = Artifact.load(arguments.model)
            runs = {
                "original": original(artifact.directory / ORIGINAL),
                "artifact": (artifact.inputs, artifact.run),
            }
        for name, (inputs, run) in runs.items():
            right, count = correct(inputs, run, arguments.data)
            print(f"{name}: {right} of {count} ({right / count:.2%})")
    except LowerkitError as error:
        sys.exit(f"evaluate: {error}")


if __name__ == "__main__":
    main()
