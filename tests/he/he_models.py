"""What these tests share: planning of small graphs, and encrypted runs in one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from helpers import parse

from lowerkit import pipeline
from lowerkit.graph.load import load_model
from lowerkit.passes.registry import make
from lowerkit.targets.he.target import HeTarget

MLP = """(float[1,12] x) => (float[1,3] y) {
    h0 = MatMul (x, w1)
    h = Add (h0, b1)
    s = Mul (h, h)
    y0 = MatMul (s, w2)
    y = Add (y0, b2)
}"""


def mlp_weights(seed: int = 3) -> dict[str, np.ndarray]:
    """For MLP, with 8 hidden units."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return (0.4 * rng.standard_normal(shape)).astype(np.float32)

    return {"w1": draw(12, 8), "b1": draw(8), "w2": draw(8, 3), "b2": draw(3)}


def uniform(model: ir.Model, count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Samples in [-1, 1]."""
    rng = np.random.default_rng(seed)
    shapes = {v.name: tuple(v.shape.numpy()) for v in model.graph.inputs}
    return [
        {name: rng.uniform(-1, 1, shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(count)
    ]


def completed(model: ir.Model, samples: Sequence[Mapping[str, np.ndarray]], **options: Any) -> dict[str, Any]:
    """Options as the planner completes them."""
    return HeTarget().complete(model, samples, {"margin": 1.0, **options})


def lowered(
    path: Path, calibration: Path, methods: Mapping[str, str]
) -> tuple[ir.Model, list[Mapping[str, np.ndarray]]]:
    """The lowered graph of a model, as a compilation makes it, and the calibration samples."""
    target = HeTarget()
    canonical = pipeline.canonical_graph(load_model(path), target, pipeline.Stages(), None, methods)
    samples, synthetic = pipeline.gather_samples(canonical, calibration)
    return pipeline.lower(canonical, target, samples, synthetic=synthetic, methods=methods).model, samples


def emitted(model: ir.Model, directory: Path, **options: Any) -> Path:
    """An emitted client and server."""
    directory.mkdir(parents=True, exist_ok=True)
    target = HeTarget()
    target.emit(model, completed(model, uniform(model, 4), **options), directory)
    return directory


def deep_mlp(layers: int = 4, width: int = 16) -> ir.Model:
    """Layers of `width` units with GELU, as polynomials of degree 7 on [-3, 3]: 4 levels each, and one more."""
    rng = np.random.default_rng(1)
    lines, weights = [], dict[str, np.ndarray]()
    for i in range(layers):
        lines.append(f"h{i} = MatMul (g{i}, w{i}) g{i + 1} = Gelu (h{i})")
        weights[f"w{i}"] = (rng.standard_normal((width, width)) * (2 / width) ** 0.5).astype(np.float32)
    weights["v"] = (0.2 * rng.standard_normal((width, 3))).astype(np.float32)
    last = f"y = MatMul (g{layers}, v)"
    model = parse(f"(float[1,{width}] g0) => (float[1,3] y) {{ {' '.join(lines)} {last} }}", **weights)
    for node in [node for node in model.graph if node.op_type == "Gelu"]:
        make("gelu", "interval-poly", {"low": -3.0, "high": 3.0, "degree": 7}).rewrite(model, node)
    return model
