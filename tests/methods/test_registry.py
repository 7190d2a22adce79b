"""What holds of every method, and how methods are found, made, planned and put in place."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers import parse
from hypothesis import given
from hypothesis import strategies as st
from single import lower, model_of, run, top_of

from lowerkit.calibrate import Calibration
from lowerkit.errors import PlanError
from lowerkit.graph.domain import DOMAIN, OPSET
from lowerkit.numerics.statistics import TensorStats
from lowerkit.passes import registry
from lowerkit.passes.base import Contract, Evidence, Method
from lowerkit.passes.lower import apply_plan, check_domains, default_plan
from lowerkit.plan import Choice, Plan, options_of
from lowerkit.targets.base import get_target

each_method = pytest.mark.parametrize(
    "cls", registry.methods().values(), ids=lambda cls: f"{cls.family}-{cls.name}"
)
X = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)
#: What operators take besides, or instead of, X.
INPUTS = {
    "Attention": X.reshape(1, 1, 3, 4),
    "Conv": X.reshape(1, 1, 3, 4),
    "MatMul": np.linspace(-3, 3, 64, dtype=np.float32).reshape(2, 32),
    "MaxPool": X.reshape(1, 3, 4),
    "Reciprocal": np.abs(X) + 0.25,
    "Rsqrt": np.abs(X) + 0.25,
}
ATTRIBUTES = {"Conv": {"pads": [1, 1, 1, 1]}, "MaxPool": {"kernel_shape": [3], "pads": [1, 1]}}
KEY_VALUE = [X[:2].reshape(1, 1, 2, 4), X[1:].reshape(1, 1, 2, 4)]
WEIGHTS = {
    "Attention": KEY_VALUE,
    "Conv": [np.linspace(-1, 2, 9, dtype=np.float32).reshape(1, 1, 3, 3)],
    "LayerNormalization": [np.ones(4, np.float32)],
    "MatMul": [np.linspace(-1, 2, 1024, dtype=np.float32).reshape(32, 32)],
    "RMSNormalization": [np.ones(4, np.float32)],
}


#: What a method takes in besides the node it is planned for, and a model that has it.
TAKES_IN = {"online-topk": ("Softmax, TopK", lambda: top_of(X))}
#: What changes the product that reads the node, too.
READ_BY_PRODUCT = {"repquant"}


def model_for(cls: type[Method], op: str) -> ir.Model:
    if cls.name in READ_BY_PRODUCT:
        text = f"(float[3,4] x) => (float[3,2] y) {{ [n] s = {op}(x, scale) y = Gemm(s, w) }}"
        return parse(text, scale=WEIGHTS[op][0], w=X.reshape(4, 3)[:, :2])
    if cls.name in TAKES_IN:
        return TAKES_IN[cls.name][1]()
    return model_alone(op)


def model_alone(op: str) -> ir.Model:
    return model_of(op, INPUTS.get(op, X), ATTRIBUTES.get(op), WEIGHTS.get(op, []))


def method_for(cls: type[Method], op: str) -> Method:
    """The method at its defaults; fitted to X where those are no method yet."""
    node = model_for(cls, op).graph.node("n")
    if cls().refuses(node) is None:
        return cls()
    stats = TensorStats()
    stats.update(X)
    return cls.fit_node(node, stats, {})


@each_method
def test_metadata_is_complete(cls: type[Method]) -> None:
    assert cls.__doc__
    assert len(cls.__doc__.splitlines()) > 3, "a method's docstring is its maths"
    assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z][a-z0-9]*)*", cls.name)
    assert re.search(r"\d{4}|section \d", cls.source)
    assert set(cls.cost) >= {"cpu", "gpu", "fpga", "he"}
    assert all(line and "\n" not in line for line in cls.cost.values())
    assert cls.functions
    bound = cls().bound()
    assert (bound is None) == (cls.contract is Contract.REPLACE)
    if bound is None:
        return
    assert bound.kind in ("absolute", "relative", "operands")
    assert bound.domain
    assert 0 <= bound.value < 0.5
    assert (bound.value == 0) == (cls.contract is Contract.EXACT)
    assert cls.contract is not Contract.EXACT or bound.evidence is Evidence.PROVED


@each_method
def test_bodies_are_valid_standard_onnx(cls: type[Method]) -> None:
    for op, function in cls.functions.items():
        proto = function.to_function_proto()
        assert (proto.domain, proto.name) == (DOMAIN, function.name)
        assert {(o.domain, o.version) for o in proto.opset_import if o.domain == ""} == {("", OPSET)}
        assert {node.domain for node in proto.node} == {""}
        model = model_for(cls, op)
        x = INPUTS.get(op, X)
        before = run(model, x)
        after = run(lower(method_for(cls, op), model), x)
        bound = cls().bound()
        if bound is not None:
            scale = max(1, np.abs(before).max()) if bound.kind != "operands" else largest_sum(op)
            assert np.abs(after - before).max() <= bound.value * scale + 1e-6


def largest_sum(op: str) -> float:
    """K max|x| max|w|."""
    (weight,) = WEIGHTS[op]
    terms = len(weight) if op == "MatMul" else weight[0].size
    return float(terms * np.abs(INPUTS[op]).max() * np.abs(weight).max())


@each_method
def test_rewriting_keeps_names_and_tells_what_it_did(cls: type[Method]) -> None:
    for op, function in cls.functions.items():
        model = lower(method_for(cls, op), model_for(cls, op))
        node = model.graph.node("n")
        assert (node.domain, node.op_type) == (DOMAIN, function.name)
        assert node.metadata_props["lowerkit.method"] == cls.name
        assert node.metadata_props["lowerkit.replaces"] == TAKES_IN.get(cls.name, (op,))[0]
        (y,) = model.graph.outputs[:1]
        assert y.name == "y"
        last = y.producer()
        assert last is not None
        if cls.name in READ_BY_PRODUCT:
            assert last.inputs[0] is node.outputs[0]
        else:
            assert last is node
        again = lower(method_for(cls, op), model_for(cls, op))
        assert ir.serde.serialize_model(model).SerializeToString(
            deterministic=True
        ) == ir.serde.serialize_model(again).SerializeToString(deterministic=True)


SOME_OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "degree": st.integers(2, 3),
        "segments": st.integers(2, 64),
        "limit": st.sampled_from([2, 2.7182817459106445, 5.0, 16]),
    },
)


@each_method
@given(options=SOME_OPTIONS)
def test_options_survive_a_plan_exactly(cls: type[Method], options: dict[str, Any]) -> None:
    known = {key: value for key, value in options.items() if key in options_of(cls())}
    method = registry.make(cls.family, cls.name, known)
    plan = Plan("cpu", (Choice("n", next(iter(cls.functions)), cls.name, options_of(method)),))
    (choice,) = Plan.from_toml(plan.to_toml()).choices
    again = registry.make(cls.family, choice.method, choice.options)
    assert again == method
    assert again.bound() == method.bound()


@pytest.mark.parametrize(
    ("family", "name", "options", "words"),
    [
        ("softmax", "poly-exp", {"degree": 0}, "degree must be an integer from 1 to 7, not 0"),
        ("softmax", "poly-exp", {"degree": 8}, "from 1 to 7, not 8"),
        ("softmax", "poly-exp", {"degree": 2.0}, "not 2.0"),
        ("softmax", "poly-exp", {"colour": "red"}, "has no option 'colour'. Its options: degree"),
        ("softmax", "online", {"degree": 3}, "has no option 'degree'. Its options: none"),
        ("gelu", "table", {"segments": 1}, "segments must be an integer from 2 to 65536, not 1"),
        ("gelu", "table", {"limit": float("nan")}, "limit must be a number from 1 to 64, not nan"),
        ("gelu", "table", {"limit": "6"}, "not '6'"),
        ("gelu", "poly", {"degree": 13}, "from 2 to 12, not 13"),
        ("gelu", "poly", {"limit": 65}, "from 1 to 64, not 65"),
        ("norm", "inverse-sqrt", {"degree": 4}, "from 1 to 3, not 4"),
    ],
)
def test_bad_options_are_refused(family: str, name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=re.escape(words)):
        registry.make(family, name, options)


@pytest.mark.parametrize("family", sorted(registry.families()))
def test_unknown_names_are_refused_with_the_known(family: str) -> None:
    with pytest.raises(PlanError, match=f"no {family} method 'nonesuch'") as caught:
        registry.make(family, "nonesuch", {})
    assert all(name in str(caught.value) for known, name in registry.methods() if known == family)
    assert "keep" in str(caught.value)


def test_choices_carry_options() -> None:
    assert registry.parse_choice("table") == ("table", {})
    text = "interval-poly:degree=7,fitting=least-squares,low=-2.5,high=2"
    options = {"degree": 7, "fitting": "least-squares", "low": -2.5, "high": 2}
    assert registry.parse_choice(text) == ("interval-poly", options)
    assert registry.parse_choice("table:interpolate=false") == ("table", {"interpolate": False})
    for bad in ("table:segments", "table:=4", "table:a b=4", "table:segments=64,"):
        with pytest.raises(PlanError, match="not of the form NAME:OPTION=VALUE"):
            registry.parse_choice(bad)


@pytest.mark.parametrize("op", ["Silu", "Rsqrt"])
def test_operators_of_the_domain_are_planned_too(op: str) -> None:
    family = op.lower()
    calibration = Calibration()
    (choice,) = default_plan(model_alone(op), get_target("cpu"), calibration).choices
    assert (choice.op, choice.method) == (op, "keep")
    asked = {family: "table:segments=64"}
    plan = default_plan(model_alone(op), get_target("cpu"), calibration, asked)
    assert plan.choices[0].options["segments"] == 64
    model = model_alone(op)
    apply_plan(model, plan)
    assert model.graph.node("n").op_type == f"Table{op}"


def test_unknown_families_are_refused_with_the_known() -> None:
    with pytest.raises(PlanError, match=r"no family of methods is called 'swish'.*Known: .*silu"):
        default_plan(two_nodes(), get_target("cpu"), Calibration(), {"swish": "table"})


def test_data_outside_of_the_domain_is_refused() -> None:
    model = model_alone("Tanh")
    choice = Choice("n", "Tanh", "interval-poly", {"low": -1.0, "high": 1.0})
    stats = TensorStats()
    stats.update(X)
    calibration = Calibration({"x": stats})
    words = r"node 'n' \(Tanh\).*leaves the domain of tanh method 'interval-poly': values reach from -3 to 3"
    with pytest.raises(PlanError, match=words):
        check_domains(model, Plan("cpu", (choice,)), calibration)
    calibration.synthetic = True
    check_domains(model, Plan("cpu", (choice,)), calibration)


def test_families_name_their_operators() -> None:
    assert registry.family_of("Softmax") == "softmax"
    assert registry.family_of("Gelu") == "gelu"
    assert registry.family_of("LayerNormalization") == registry.family_of("RMSNormalization") == "norm"
    assert registry.family_of("Conv") == "linear"
    assert registry.family_of("Add") is None


FILE = '''
"""A method in a file of its own."""
from dataclasses import dataclass
from lowerkit.passes.softmax.online import Online

@dataclass(frozen=True)
class Mine(Online):
    """Online softmax under another name."""
    passes: int = 1
    name = "{name}"
'''


def in_a_new_process(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` with `folder` as a further folder of softmax methods."""
    script = (
        "import lowerkit.passes.softmax as s\n"
        f"s.__path__.append({str(folder)!r})\n"
        "from lowerkit.passes import registry\n" + code
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


def test_adding_a_file_adds_a_method(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FILE.format(name="mine"))
    result = in_a_new_process(tmp_path, "print(registry.make('softmax', 'mine', {'passes': 3}))")
    assert result.stdout.strip() == "Mine(passes=3)", result.stderr


def test_two_methods_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FILE.format(name="two-pass"))
    result = in_a_new_process(tmp_path, "registry.methods()")
    assert "PlanError: two softmax methods are called 'two-pass'" in result.stderr


def two_nodes() -> ir.Model:
    """a = Softmax(x); b = Softmax(a)."""
    model = onnx.parser.parse_model(
        '<ir_version: 11, opset_import: ["" : 23]> g (float[3,4] x) => (float[3,4] b) '
        "{ [first] a = Softmax(x) [second] b = Softmax(a) }"
    )
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(model))


def test_nodes_of_one_model_may_differ() -> None:
    model = two_nodes()
    choices = [Choice(n, "Softmax", "poly-exp", {"degree": d}) for n, d in (("first", 2), ("second", 5))]
    apply_plan(model, Plan("cpu", tuple(choices)))
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    assert len(model.functions) == 1
    tables = [node.inputs[1].const_value.numpy() for node in model.graph]  # type: ignore[union-attr]
    assert np.count_nonzero(tables[0]) == 3
    assert np.count_nonzero(tables[1]) == 6


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (Choice("third", "Softmax", "online"), "node 'third' (Softmax), but it is not there"),
        (Choice("first", "Gelu", "table"), "node 'first' (Gelu), but it is a Softmax"),
        (Choice("first", "Softmax", "table"), "no softmax method 'table'"),
        (Choice("first", "Softmax", "poly-exp", {"degree": 99}), "degree must be"),
    ],
)
def test_plans_that_do_not_fit_are_refused(choice: Choice, words: str) -> None:
    with pytest.raises(PlanError, match=re.escape(words)):
        apply_plan(two_nodes(), Plan("cpu", (choice,)))


def test_other_dtypes_and_further_outputs_are_refused() -> None:
    half = two_nodes()
    for value in (half.graph.inputs[0], *(output for node in half.graph for output in node.outputs)):
        value.dtype = ir.DataType.FLOAT16
    with pytest.raises(PlanError, match=r"node 'first' \(Softmax\): .* works in float32, not float16"):
        apply_plan(half, Plan("cpu", (Choice("first", "Softmax", "online"),)))
    proto = onnx.parser.parse_model(
        '<ir_version: 11, opset_import: ["" : 23]> g (float[3,4] x, float[4] s) => '
        "(float[3,4] y, float[3,1] m) { [n] y, m = LayerNormalization(x, s) }"
    )
    plan = Plan("cpu", (Choice("n", "LayerNormalization", "inverse-sqrt"),))
    with pytest.raises(PlanError, match="computes the first output alone"):
        apply_plan(ir.serde.deserialize_model(proto), plan)


def test_asked_for_methods_that_refuse_are_errors_and_defaults_give_way() -> None:
    model = model_of("LayerNormalization", X, {"epsilon": 0.0}, [np.ones(4, np.float32)])
    target = get_target("cpu")
    with pytest.raises(PlanError, match=r"node 'n' .*needs an epsilon"):
        default_plan(model, target, Calibration(), {"norm": "inverse-sqrt"})
    (choice,) = default_plan(model, target, Calibration()).choices
    assert choice.method == "keep"
