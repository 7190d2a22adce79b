"""The ViTs on digits as they were trained, by polynomials alone: which methods give which accuracy at how many levels.

    python -m benchmarks.he_choices

Accuracy is that of the lowered graph in float32 on all 450 test images, without encryption; levels are those that any
packing takes. The operand that gets furthest is told in units of its polynomial's interval, of which 1 is the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from lowerkit import pipeline
from lowerkit.errors import LowerkitError
from lowerkit.graph.load import load_model
from lowerkit.pipeline import Lowering
from lowerkit.reference import Reference
from lowerkit.targets.base import Runner
from lowerkit.targets.he.packing.network import least_depth
from lowerkit.targets.he.program import Polynomial, Program
from lowerkit.targets.he.reading import read
from lowerkit.targets.he.target import HeTarget

EXAMPLES = Path(__file__).parents[1] / "examples"
#: Model -> whether it has a softmax, which needs exponentials.
MODELS = {"vit_digits": True, "vit_digits_power": False}
SHAPE = {"image": (1, 1, 8, 8)}
#: 1024 training images: of 64, the narrow intervals are left by some test images.
CALIBRATION = EXAMPLES / "data" / "digits_training.npz"

Methods = Mapping[str, str]


def methods(*, rsqrt: str, reciprocal: str, gelu: str, margin: float, softmax: str = "") -> dict[str, str]:
    """Family -> method: polynomials with these options, on intervals `margin` times as wide as calibrated."""
    options = {"rsqrt": rsqrt, "reciprocal": reciprocal, "gelu": gelu, "exp": "degree=15"}
    found = {family: f"interval-poly:{given},margin={margin}" for family, given in options.items()}
    return {**found, "softmax": softmax} if softmax else found


FITTED = "degree=7,fitting=least-squares"
#: What `choices` compares.
CHOICES: Mapping[str, Methods] = {
    "the target's defaults": {},
    "by error 2 %": methods(rsqrt="max_error=0.02", reciprocal="max_error=0.02", gelu=FITTED, margin=1.25),
    "the same, GELU minimax": methods(
        rsqrt="max_error=0.02", reciprocal="max_error=0.02", gelu="degree=7", margin=1.25
    ),
    "the same, GELU of degree 11": methods(
        rsqrt="max_error=0.02", reciprocal="max_error=0.02", gelu="degree=11", margin=1.25
    ),
    "the same, margin 1.5": methods(
        rsqrt="max_error=0.02", reciprocal="max_error=0.02", gelu=FITTED, margin=1.5
    ),
    "rsqrt 7, reciprocal by 10 %": methods(
        rsqrt="degree=7", reciprocal="max_error=0.1", gelu=FITTED, margin=1.25
    ),
    "rsqrt by 5 %, reciprocal by 20 %": methods(
        rsqrt="max_error=0.05", reciprocal="max_error=0.2", gelu=FITTED, margin=1.25
    ),
    "softmax by cumulants, rsqrt 7": methods(
        rsqrt="degree=7", reciprocal="degree=15", gelu=FITTED, margin=1.25, softmax="cgf:spread=16"
    ),
}
#: The choice that `benchmarks.he_vit` runs encrypted.
CHOSEN = CHOICES["rsqrt 7, reciprocal by 10 %"]


def lowered(model: str, choice: Methods) -> Lowering:
    """The example's lowered graph with a choice of methods."""
    target = HeTarget()
    original = load_model(EXAMPLES / "models" / f"{model}.onnx", SHAPE)
    canonical = pipeline.canonical_graph(original, target, pipeline.Stages(), methods=choice)
    samples, _ = pipeline.gather_samples(canonical, CALIBRATION)
    return pipeline.lower(canonical, target, samples, methods=choice)


def tests() -> tuple[np.ndarray, np.ndarray]:
    """Images [450, 1, 8, 8] and labels [450] that no training and no calibration has seen."""
    with np.load(EXAMPLES / "data" / "digits_test.npz") as data:
        images = data["image"]
    with np.load(EXAMPLES / "data" / "digits_test_labels.npz") as data:
        return images, data["labels"]


def classes(run: Runner, images: np.ndarray) -> np.ndarray:
    """The class of each image, int64 [images]."""
    return np.array([next(iter(run({"image": image[None]}).values())).argmax() for image in images])


def reach(program: Program, samples: Iterable[Mapping[str, np.ndarray]]) -> float:
    """How far a polynomial's operand gets on these samples: 1 is the end of its interval."""
    polynomials = [step for step in program.steps if isinstance(step, Polynomial)]
    furthest = 0.0
    for sample in samples:
        values = program.run(sample)
        furthest = max(furthest, *(float(np.abs(values[step.value]).max()) for step in polynomials))
    return furthest


def choices() -> None:
    """A table of choices: levels, accuracy and agreement over the test images, in exact arithmetic."""
    images, labels = tests()
    print("| model | methods | levels | right | as the original | furthest operand |")
    print("|---|---|---|---|---|---|")
    for model, exponentials in MODELS.items():
        original = classes(Reference(load_model(EXAMPLES / "models" / f"{model}.onnx", SHAPE)), images)
        print(f"| `{model}` | the original | | {(original == labels).mean():.2%} | | |")
        for name, choice in CHOICES.items():
            if not exponentials and "softmax" in choice:
                continue
            try:
                lowering = lowered(model, choice)
                program = read(lowering.model)
            except LowerkitError as error:
                print(f"| `{model}` | {name} | refused: {error} | | | |", flush=True)
                continue
            found = classes(Reference(lowering.model), images)
            furthest = reach(program, ({"image": image[None]} for image in images))
            print(
                f"| `{model}` | {name} | {least_depth(program)} | {(found == labels).mean():.2%} "
                f"| {(found == original).mean():.2%} | {furthest:.3g} |",
                flush=True,
            )


if __name__ == "__main__":
    choices()
