"""Every fixture in `exports/`, a network as a real exporter writes it, is read as what it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import content, difference, feeds, operators

from lowerkit.graph.canonicalise import canonicalise
from lowerkit.graph.load import load_model, upgrade

EXPORTS = Path(__file__).parent / "exports"
#: Network -> the non-linearities in it, whichever exporter wrote it.
EXPECTED: dict[str, dict[str, int]] = {
    "attention": {"Attention": 1},
    "conv-batchnorm": {"HardSwish": 1},
    "encoder-gelu": {"Attention": 1, "Gelu": 1, "LayerNormalization": 2},
    "encoder-relu": {"Attention": 1, "LayerNormalization": 2, "Relu": 1},
    "gelu": {"Gelu": 1},
    "gelu-tanh": {"Gelu": 1},
    "hardsigmoid": {"HardSigmoid": 1},
    "hardswish": {"HardSwish": 1},
    "hf-bert-eager": {"Attention": 2, "Gelu": 2, "LayerNormalization": 5},
    "hf-bert-sdpa": {"Attention": 2, "Gelu": 2, "LayerNormalization": 5},
    "hf-gpt2-eager": {"Attention": 2, "Gelu": 2, "LayerNormalization": 5},
    "hf-gpt2-sdpa": {"Attention": 2, "Gelu": 2, "LayerNormalization": 5},
    "hf-llama-eager": {"Attention": 2, "RMSNormalization": 5, "Silu": 2},
    "hf-llama-sdpa": {"Attention": 2, "RMSNormalization": 5, "Silu": 2},
    "hf-vit-eager": {"Attention": 2, "Gelu": 2, "LayerNormalization": 5},
    "hf-vit-sdpa": {"Attention": 2, "Gelu": 2, "LayerNormalization": 5},
    "layernorm": {"LayerNormalization": 1},
    "layernorm-plain": {"LayerNormalization": 1},
    "logsoftmax": {"LogSoftmax": 1},
    "mish": {"Mish": 1},
    "multihead": {"Attention": 1},
    "multihead-weights": {"Softmax": 1},
    "rmsnorm": {"RMSNormalization": 1},
    "sdpa": {"Attention": 1},
    "sdpa-bool-mask": {"Attention": 1},
    "sdpa-causal": {"Attention": 1},
    "sdpa-float-mask": {"Attention": 1},
    "silu": {"Silu": 1},
    "softmax": {"Softmax": 1},
    "softplus": {"Softplus": 1},
}
NONLINEAR = {
    "Attention", "BatchNormalization", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "IsNaN",
    "LayerNormalization", "Log", "LogSoftmax", "Max", "Min", "Mish", "Pow", "RMSNormalization", "ReduceMax",
    "ReduceSum", "Reciprocal", "Relu", "Sigmoid", "Silu", "Softmax", "Softplus", "Sqrt", "Tanh",
}  # fmt: skip


def test_every_network_has_a_file() -> None:
    assert {path.name.split(".")[0] for path in EXPORTS.glob("*.onnx")} == set(EXPECTED)


@pytest.mark.parametrize("path", sorted(EXPORTS.glob("*.onnx")), ids=lambda path: path.stem)
def test_the_named_operators_and_nothing_else(path: Path) -> None:
    model = load_model(path, {})
    upgrade(model)
    result = canonicalise(model)
    found = {op: count for op, count in operators(result).items() if op in NONLINEAR}
    assert found == EXPECTED[path.name.split(".")[0]]
    assert difference(model, result) <= 1e-6
    assert content(canonicalise(result)) == content(result)
    assert content(load_model(path, {})) != b""


@pytest.mark.parametrize("exporter", ["torch-legacy", "torch-dynamo"])
def test_a_query_that_sees_no_key(exporter: str) -> None:
    """torch gives such a query zeros where it masks with -inf, and the mean where it masks with the lowest."""
    model = load_model(EXPORTS / f"sdpa-bool-mask.{exporter}.onnx", {})
    upgrade(model)
    result = canonicalise(model)
    inputs = feeds(model)
    (mask,) = (
        value.name for value in model.graph.inputs if value.dtype is not None and value.dtype.bitwidth == 8
    )
    visible = np.tri(6, 6, dtype=bool)
    visible[3] = exporter == "torch-dynamo"
    inputs[mask or ""] = visible
    assert difference(model, result, inputs) <= 1e-6


def test_the_files_are_as_exporters_write_them() -> None:
    """They say who wrote them, and no file has been through lowerkit."""
    for path in EXPORTS.glob("*.onnx"):
        producer = onnx.load(path).producer_name
        assert producer.startswith(("pytorch", "tf2onnx", "jax2onnx", "onnx"))
