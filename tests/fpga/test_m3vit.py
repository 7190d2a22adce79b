"""M3ViT's blocks through the fpga target: the C-simulation equals the integer model bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from codes import codes
from csim import ap_types

import lowerkit
from examples.m3vit import M3VIT, Shapes, block, m3vit
from lowerkit import pipeline
from lowerkit.errors import PlanError, UnsupportedError
from lowerkit.passes.lower import apply_plan, default_plan
from lowerkit.pipeline import Stages
from lowerkit.reference import Reference
from lowerkit.targets.fpga.converters import CONVERTERS
from lowerkit.targets.fpga.design import Design, codes_of, numbers_of, simulate
from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.kernels.layout import concat
from lowerkit.targets.fpga.lang.interpret import run
from lowerkit.targets.fpga.lowering import Context, design_of
from lowerkit.targets.fpga.ranges import parsed
from lowerkit.targets.fpga.target import FpgaTarget
from lowerkit.targets.fpga.units import with_units

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


def design(model: ir.Model, options: dict[str, object]) -> Design:
    formats = parsed(options["formats"])  # type: ignore[arg-type]
    context = Context(formats, 16, parallel=options.get("parallel", {}))  # type: ignore[arg-type]
    return design_of(model, context, CONVERTERS)


def check(
    proto: onnx.ModelProto, folder: Path, *, samples: int, options: dict[str, object] | None = None
) -> None:
    """The C-simulation against the integer model, and that against onnxruntime."""
    ap_types()
    original, model = lowered(proto, folder)
    chosen = TARGET.complete(model, inputs_of(model, 4, seed=1), options or {})
    made, given = design(model, chosen), inputs_of(model, samples, seed=1)
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


def test_a_small_block(tmp_path: Path) -> None:
    (tmp_path / "artifact").mkdir()
    # Two rows at once, of nine: the last group is not full.
    parallel = {"block.attention.mixed/scores": 2, "block.attention.mixed": 2}
    check(block(True, SMALL), tmp_path, samples=5, options={"parallel": parallel})


@pytest.mark.slow
@pytest.mark.parametrize("moe", [False, True])
def test_a_full_block(tmp_path: Path, moe: bool) -> None:
    (tmp_path / "artifact").mkdir()
    check(block(moe, M3VIT), tmp_path, samples=2)


def test_a_small_network_as_integers(tmp_path: Path) -> None:
    original, model = lowered(m3vit(SMALL), tmp_path)
    operators = [node.op_type for node in model.graph]
    assert operators.count("MixtureOfExperts") == 1
    options = TARGET.complete(model, inputs_of(model, 4, seed=1), {})
    made = design(model, options)
    experts = [layer for layer in made.layers if layer.op == "MixtureOfExperts"]
    assert [layer.name.rsplit("_", 1)[1] for layer in experts] == [
        "gate",
        "choice",
        "queues",
        "experts",
        "sum",
    ]
    (sample,) = inputs_of(model, 1, seed=1)
    found = numbers_of(made, simulate(made, codes_of(made, sample)))
    (port,) = made.outputs
    exact = Reference(original)(sample)[port.value]
    assert np.abs(found[port.value].reshape(exact.shape) - exact).max() < 5e-3 * np.abs(exact).max()


def test_a_small_network_with_one_linear_unit(tmp_path: Path) -> None:
    """The same codes, from one function that all linear layers call."""
    (tmp_path / "artifact").mkdir()
    ap_types()
    _, model = lowered(block(False, SMALL), tmp_path)
    options = TARGET.complete(model, inputs_of(model, 4, seed=1), {})
    shared = {**options, "shared_linear": True}
    (sample,) = inputs_of(model, 1, seed=1)
    separate = design(model, options)
    given = codes_of(separate, sample)
    want = simulate(separate, given)["block.output"]
    context = Context(parsed(options["formats"]), 16)
    units = with_units(design_of(model, context, CONVERTERS), context.jobs, 8)
    jobs = [layer for layer in units.layers if layer.job is not None]
    assert len(jobs) == 6
    assert len({layer.kernel.name for layer in jobs}) == 1
    np.testing.assert_array_equal(simulate(units, given)["block.output"], want)
    TARGET.emit(model.clone(), shared, tmp_path / "artifact")
    top = (tmp_path / "artifact/hls/dense_block.cpp").read_text()
    assert top.count("linear_unit0::linear_unit0(") == 6
    assert "ALLOCATION function instances=linear_unit0::linear_unit0 limit=1" in top
    assert "DATAFLOW" not in top
    found = TARGET.open(tmp_path / "artifact", shared).codes(given)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(found["block.output"].reshape(want.shape), want)


def test_stages_without_formats_are_refused(tmp_path: Path) -> None:
    _, model = lowered(block(True, SMALL), tmp_path)
    options = TARGET.complete(model, inputs_of(model, 1, seed=1), {})
    left = {name: text for name, text in options["formats"].items() if not name.endswith("/hidden")}
    with pytest.raises(
        UnsupportedError, match=r"MixtureOfExperts\).*block.moe.sum/hidden.*no format.*Calibrate"
    ):
        design(model, {"formats": left})


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


def test_a_constant_is_joined_to_an_activation() -> None:
    rng = np.random.default_rng(0)
    x, y = Fixed(8, 3), Fixed(10, 3)
    fixed = codes(rng, (1, 1, 4), y)
    kernel, _ = concat("f", [fixed, (1, 3, 4)], 1, [y, x], y)
    given = codes(rng, (1, 3, 4), x, batch=3)
    found = run(kernel, {"x1": given})["y"]
    np.testing.assert_array_equal(found[:, :, :1], np.broadcast_to(fixed, (3, 1, 1, 4)))
    np.testing.assert_array_equal(found[:, :, 1:], given << 2)
