"""M3ViT's blocks through the fpga target: the C-simulation equals the integer model bit for bit."""

from __future__ import annotations

import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from csim import ap_types
from onnx import helper, numpy_helper

import lowerkit
from examples.m3vit import M3VIT, Shapes, block, experts, m3vit
from lowerkit import pipeline
from lowerkit.errors import PlanError, UnsupportedError
from lowerkit.passes.lower import apply_plan, default_plan
from lowerkit.pipeline import Stages
from lowerkit.reference import Reference
from lowerkit.targets.fpga.cost import cost
from lowerkit.targets.fpga.dataflow import network
from lowerkit.targets.fpga.design import codes_of, numbers_of, simulate
from lowerkit.targets.fpga.formats import Affine, Fixed, Format
from lowerkit.targets.fpga.kernels.layout import concat
from lowerkit.targets.fpga.lang.interpret import run
from lowerkit.targets.fpga.target import FpgaTarget

SMALL = Shapes(
    layers=2, width=12, heads=3, image=(8, 16), patch=4, hidden=20, experts=4, chosen=2, expert_hidden=8
)
TARGET = FpgaTarget()


def lowered(proto: onnx.ModelProto, folder: Path) -> tuple[ir.Model, ir.Model]:
    """The model as it is loaded, and as the target wants it."""
    onnx.save(proto, folder / "model.onnx")
    original = lowerkit.load(folder / "model.onnx", {})
    model = pipeline.canonical_graph(original, TARGET, Stages())
    samples = inputs_of(model, 2, seed=1)
    calibration = pipeline.calibrate_plannable(model, samples, synthetic=False)
    apply_plan(model, default_plan(model, TARGET, calibration))
    return original, model


def inputs_of(model: ir.Model, count: int, seed: int) -> list[dict[str, np.ndarray]]:
    (value,) = model.graph.inputs
    assert value.shape is not None
    rng = np.random.default_rng(seed)
    return [
        {value.name or "": rng.standard_normal(tuple(value.shape.numpy())).astype(np.float32)}
        for _ in range(count)
    ]


def check(proto: onnx.ModelProto, folder: Path, *, samples: int) -> None:
    """The C-simulation against the integer model, and that against onnxruntime."""
    ap_types()
    original, model = lowered(proto, folder)
    chosen = TARGET.complete(model, inputs_of(model, 4, seed=1), {})
    made, given = TARGET.design(model, chosen), inputs_of(model, samples, seed=1)
    joined = {name: np.concatenate([each[name] for each in given]) for name in given[0]}
    given_codes = codes_of(made, joined)
    want = simulate(made, given_codes)
    TARGET.emit(model.clone(), chosen, folder / "artifact")
    found = TARGET.open(folder / "artifact", chosen).codes(given_codes)  # type: ignore[attr-defined]
    (port,) = made.outputs
    np.testing.assert_array_equal(found[port.value].reshape(want[port.value].shape), want[port.value])
    exact = np.concatenate([Reference(original)(each)[port.value] for each in given])
    error = numbers_of(made, want)[port.value].reshape(exact.shape) - exact
    assert np.sqrt((error**2).mean() / (exact**2).mean()) < 2e-3


@pytest.mark.slow
@pytest.mark.parametrize("moe", [False, True])
def test_a_full_block(tmp_path: Path, moe: bool) -> None:
    (tmp_path / "artifact").mkdir()
    check(block(moe, M3VIT), tmp_path, samples=2)


def test_a_small_network_as_integers(tmp_path: Path) -> None:
    """Two rows of nine at once in one of its products: the last group is not full, and no code is another."""
    original, model = lowered(m3vit(SMALL), tmp_path)
    operators = [node.op_type for node in model.graph]
    assert operators.count("MixtureOfExperts") == 1
    options = TARGET.complete(model, inputs_of(model, 4, seed=1), {})
    made = TARGET.design(model, options)
    scores = "block0.attention.mixed/scores"
    together = TARGET.design(model, {**options, "parallel": {scores: 2}, "reuse": {scores: 1}})
    found = [layer for layer in made.layers if layer.op == "MixtureOfExperts"]
    assert [layer.name.rsplit("_", 1)[1] for layer in found] == [
        "gate",
        "choice",
        "queues",
        "experts",
        "sum",
    ]
    (sample,) = inputs_of(model, 1, seed=1)
    given = codes_of(made, sample)
    codes = simulate(made, given)
    (port,) = made.outputs
    np.testing.assert_array_equal(simulate(together, given)[port.value], codes[port.value])
    fewer = [b.schedule.cycles < a.schedule.cycles for a, b in zip(made.layers, together.layers, strict=True)]
    assert fewer.count(True) == 1
    numbers = numbers_of(made, codes)
    exact = Reference(original)(sample)[port.value]
    assert np.abs(numbers[port.value].reshape(exact.shape) - exact).max() < 5e-3 * np.abs(exact).max()


def with_linear_layers(proto: onnx.ModelProto, widths: list[int]) -> onnx.ModelProto:
    """The model with linear layers behind it."""
    rng, graph = np.random.default_rng(0), proto.graph
    for n, (inner, columns) in enumerate(
        pairwise([graph.output[0].type.tensor_type.shape.dim[2].dim_value, *widths])
    ):
        w = rng.standard_normal((inner, columns)).astype(np.float32) * inner**-0.5
        b = rng.standard_normal(columns).astype(np.float32)
        graph.initializer.extend([numpy_helper.from_array(w, f"w{n}"), numpy_helper.from_array(b, f"b{n}")])
        source = graph.node[-1].output[0]
        graph.node.append(helper.make_node("MatMul", [source, f"w{n}"], [f"p{n}"], f"product{n}"))
        graph.node.append(helper.make_node("Add", [f"p{n}", f"b{n}"], [f"y{n}"], f"linear{n}"))
    graph.output[0].name = graph.node[-1].output[0]
    graph.output[0].type.tensor_type.shape.dim[2].dim_value = widths[-1]
    return proto


def test_experts_and_a_unit_of_linear_layers(tmp_path: Path) -> None:
    """The same codes as with layers of their own, from one function that all linear layers call."""
    (tmp_path / "artifact").mkdir()
    ap_types()
    _, model = lowered(with_linear_layers(experts(SMALL), [9, 5, 7]), tmp_path)
    chosen = {"multipliers": 8, "shared_linear": True}
    options = TARGET.complete(model, inputs_of(model, 4, seed=1), chosen)
    joined = {"x": np.concatenate([each["x"] for each in inputs_of(model, 5, seed=1)])}
    separate = TARGET.design(model, {**options, "shared_linear": False})
    given = codes_of(separate, joined)
    want = simulate(separate, given)["y2"]
    units = TARGET.design(model, options)
    np.testing.assert_array_equal(simulate(units, given)["y2"], want)
    jobs = [layer for layer in units.layers if layer.job is not None]
    assert len(jobs) == 3
    assert {layer.kernel.name for layer in jobs} == {"linear_unit0"}

    net, rows = network(units), {layer.name: layer for layer in cost(network(units)).layers}
    assert {channel.kind for channel in net.channels} == {"buffer"}
    assert {p.kind for p in net.processes} == {"load", "layer", "store"}
    spent, counted = cost(net), [rows[layer.name] for layer in jobs]
    # Nothing overlaps; weights and multipliers are there once.
    assert spent.interval == spent.latency == sum(layer.cycles for layer in spent.layers)
    assert [bool(layer.multipliers) for layer in counted] == [True] + [False] * 2
    stored = counted[0].parameter_bits
    assert stored == sum(a.data.size * a.range.bits for a in jobs[0].kernel.constants if a.data is not None)
    assert not any(layer.parameter_bits or layer.table_bits for layer in counted[1:])
    assert len({layer.cycles for layer in counted}) > 1

    TARGET.emit(model.clone(), options, tmp_path / "artifact")
    project = tmp_path / "artifact" / "hls"
    top = (project / "experts.cpp").read_text()
    assert top.count("linear_unit0::linear_unit0(") == 3
    assert "ALLOCATION function instances=linear_unit0::linear_unit0 limit=1" in top
    assert "DATAFLOW" not in top
    assert "STREAM" not in top
    assert len(list(project.glob("layers/*.cpp"))) == len(units.layers) - 2
    subprocess.run(["make", "-s", "check"], cwd=project, check=True, capture_output=True)
    found = TARGET.open(tmp_path / "artifact", options).codes(given)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(found["y2"].reshape(want.shape), want)


def test_formats_that_the_experts_have_no_kernel_for(tmp_path: Path) -> None:
    _, model = lowered(experts(SMALL), tmp_path)
    options = TARGET.complete(model, inputs_of(model, 1, seed=1), {})
    name = next(name for name in options["formats"] if name.endswith("/hidden"))
    left = {key: text for key, text in options["formats"].items() if key != name}
    with pytest.raises(UnsupportedError, match=r"MixtureOfExperts\).*/hidden.*no format.*Calibrate"):
        TARGET.design(model, {"formats": left})
    for value in (name, "x"):
        affine = {**options["formats"], value: "int8<0.5,0>"}
        with pytest.raises(UnsupportedError, match=rf"no kernel of this kind for '{value}'"):
            TARGET.design(model, {"formats": affine})


def test_no_range_is_proven_for_what_experts_keep(tmp_path: Path) -> None:
    _, model = lowered(experts(SMALL), tmp_path)
    with pytest.raises(UnsupportedError, match=r"nothing proves a range for '.*/hidden'"):
        TARGET.complete(model, inputs_of(model, 1, seed=1), {"overflow": "never"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parallel": {"n": 0}}, "parallel of node 'n' must be a positive number"),
        ({"shared_linear": "yes"}, "shared_linear must be true or false"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, options: dict[str, object], message: str) -> None:
    _, model = lowered(block(False, SMALL), tmp_path)
    with pytest.raises(PlanError, match=message):
        TARGET.complete(model, [], options)


def test_models_are_the_same_every_time() -> None:
    first, second = (m3vit(SMALL).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    assert first != m3vit(SMALL, seed=1).SerializeToString(deterministic=True)


def test_shapes_are_those_of_the_accelerator() -> None:
    assert M3VIT.tokens == 129
    assert sum(M3VIT.is_moe(layer) for layer in range(M3VIT.layers)) == 6
    # Two experts compute as much as the MLP that they stand for.
    assert M3VIT.chosen * M3VIT.expert_hidden == M3VIT.hidden


@pytest.mark.parametrize(("x", "y"), [(Fixed(8, 3), Fixed(10, 3)), (Affine(8, 0.25, 3), Affine(8, 0.5, -1))])
def test_a_constant_is_joined_to_an_activation(x: Format, y: Format) -> None:
    rng = np.random.default_rng(0)
    constant = rng.integers(y.range.low, y.range.high, (1, 1, 4), endpoint=True)
    kernel, _ = concat("f", [constant, (1, 3, 4)], 1, [y, x], y)
    given = rng.integers(x.range.low, x.range.high, (3, 1, 3, 4), endpoint=True)
    found = run(kernel, {"x1": given})["y"]
    np.testing.assert_array_equal(found[:, :, :1], np.broadcast_to(constant, (3, 1, 1, 4)))
    np.testing.assert_array_equal(found[:, :, 1:], y.quantise(x.dequantise(given)))
