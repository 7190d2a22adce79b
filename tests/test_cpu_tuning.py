"""Searched schedules: right, remembered, and refused where they do not fit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import relax

from lowerkit.errors import PlanError
from lowerkit.targets.cpu import tuning
from lowerkit.targets.cpu.schedule import SCHEDULED, ScheduleForCpu
from lowerkit.targets.cpu.target import CpuTarget
from lowerkit.targets.cpu.tuning import Tuning

CPU = "x86-64-v3"
ROWS, INNER, COLUMNS = 33, 97, 49


def product(columns: int = COLUMNS) -> tvm.IRModule:
    """relu(x w), unscheduled, called once."""
    builder = relax.BlockBuilder()
    x, w = (
        relax.Var(name, relax.TensorType(shape, "float32"))
        for name, shape in (("x", (ROWS, INNER)), ("w", (INNER, columns)))
    )
    with builder.function("main", [x, w]):
        with builder.dataflow():
            y = builder.emit_output(relax.op.nn.relu(builder.emit(relax.op.matmul(x, w))))
        builder.emit_func_output(y)
    passes = [
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
    ]
    return tvm.transform.Sequential(passes)(builder.get())


def functions(module: tvm.IRModule) -> dict[str, tvm.tirx.PrimFunc]:
    return {v.name_hint: f for v, f in module.functions_items() if isinstance(f, tvm.tirx.PrimFunc)}


@pytest.fixture(scope="module")
def tuned() -> tuple[Tuning, tvm.IRModule]:
    """The shortest search, for something better than a rules' schedule that is taken to be slow."""
    found = Tuning(CPU, seconds=0.01, threads=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning._Clock, "seconds", _slow_at_first(tuning._Clock.seconds))
        return found, found.apply(product())


def _slow_at_first(seconds):  # type: ignore[no-untyped-def]
    """A clock by which the rules' schedule, which is timed first, takes a second."""
    calls = []

    def timed(self, function, best=float("inf")):  # type: ignore[no-untyped-def]
        calls.append(function)
        return 1.0 if len(calls) == 1 else seconds(self, function, best)

    return timed


def test_the_search_finds_a_schedule_that_computes_the_same(tuned: tuple[Tuning, tvm.IRModule]) -> None:
    found, module = tuned
    ((name, function),) = functions(module).items()
    assert SCHEDULED in function.attrs
    ((_, record),) = found.records.items()
    assert record["name"] == name
    target = tvm.target.Target({"kind": "llvm", "mcpu": CPU})
    run = tvm.compile(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}), target).jit()
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=shape).astype(np.float32) for shape in ((ROWS, INNER), (INNER, COLUMNS)))
    y = tvm.runtime.tensor(np.full((ROWS, COLUMNS), np.nan, np.float32))
    run["main"](tvm.runtime.tensor(x), tvm.runtime.tensor(w), y)
    exact = np.maximum(x.astype(np.float64) @ w.astype(np.float64), 0)
    np.testing.assert_allclose(y.numpy(), exact, atol=1e-4)


def test_records_give_the_same_schedules_again(tuned: tuple[Tuning, tvm.IRModule]) -> None:
    found, module = tuned
    text = found.to_json()
    again = Tuning(CPU, text=text)
    assert again.to_json() == text
    applied = again.apply(product())
    ((_, one),), ((_, other),) = functions(module).items(), functions(applied).items()
    assert tvm_ffi.structural_equal(one, other)
    kept = functions(ScheduleForCpu(CPU)(applied))
    assert tvm_ffi.structural_equal(next(iter(kept.values())), other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(cpu="x86-64-v4"), "for cpu x86-64-v4"),
        (lambda content: content.update(tvm="0.1"), "for tvm 0.1"),
        (lambda content: content.pop("functions"), "damaged"),
    ],
)
def test_records_that_do_not_fit_are_refused(tuned, change, message) -> None:  # type: ignore[no-untyped-def]
    content = json.loads(tuned[0].to_json())
    change(content)
    with pytest.raises(PlanError, match=message):
        Tuning(CPU, text=json.dumps(content))


def test_records_of_another_model_are_refused(tuned: tuple[Tuning, tvm.IRModule]) -> None:
    with pytest.raises(PlanError, match="of another model"):
        Tuning(CPU, text=tuned[0].to_json()).apply(product(columns=50))


def test_a_damaged_trace_is_refused(tuned: tuple[Tuning, tvm.IRModule]) -> None:
    content = json.loads(tuned[0].to_json())
    for record in content["functions"].values():
        record["trace"] = [[["GetSBlock", [], ["no such block", "main"], ["b0"]]], []]
    with pytest.raises(PlanError, match="damaged"):
        Tuning(CPU, text=json.dumps(content)).apply(product())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tune": -1}, "tune must be a number of seconds"),
        ({"tune": "long"}, "tune must be a number of seconds"),
        ({"tune": float("inf")}, "tune must be a number of seconds"),
        ({"tuning": 3}, "tuning must be a file"),
        ({"tuning": "no/such/file.json"}, "cannot read"),
        ({"tuning": tuning.digest("")}, "does not hold"),
    ],
)
def test_options_that_say_nothing_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        tuning.from_options(CpuTarget.merged(options), CPU, 1)


def test_nothing_is_tuned_by_default() -> None:
    assert tuning.from_options(CpuTarget.merged({}), CPU, 1) is None
