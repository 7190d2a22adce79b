"""Schedules found by search in the place of the rules', where they are faster.

The search is TVM's MetaSchedule (Shao et al., Tensor Program Optimization with Probabilistic Programs, NeurIPS 2022)
without a model of costs: candidates are random at first, then mutations of the best, and all are run. What it finds is
written as `tuning.json` into the artifact, a list of scheduling steps for each function, which a later compile takes
again: searching twice gives two results, and the same records give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import relax, s_tir, tirx
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.schedule import Trace

from lowerkit.errors import PlanError
from lowerkit.targets.cpu import features
from lowerkit.targets.cpu.schedule import SCHEDULED, ScheduleForCpu, narrow

RECORDS = "tuning.json"
_SCHEMA = 1
#: Candidates between two decisions what to tune.
_BATCH = 8
#: A schedule has to be so much faster than the rules' to be kept: timing is not exact.
_GAIN = 0.97
#: One run of a candidate that takes so many times the best is enough of it.
_HOPELESS = 4.0


class Tuning:
    """Records of tuned functions, by the hash of what they compute; searched for when a module comes along.

    Args:
        cpu: the level that is compiled for.
        seconds: to search, 0 to use the records alone.
        threads: that parallel loops run on while candidates are timed, 0 for all.
        text: `tuning.json` of an earlier compile; empty for none.

    Raises PlanError when `text` is not that, or is for another level or version of TVM.
    """

    def __init__(self, cpu: str, seconds: float = 0, threads: int = 0, text: str = "") -> None:
        self.cpu, self.seconds, self.threads = cpu, seconds, threads
        self._head = {"schema": _SCHEMA, "cpu": cpu, "tvm": tvm.__version__}
        self.records: dict[str, dict[str, Any]] = _read(text, self._head) if text else {}

    def to_json(self) -> str:
        """The records as `tuning.json`; what was read from such a file gives it again."""
        return json.dumps({**self._head, "functions": self.records}, indent=1, sort_keys=True) + "\n"

    def apply(self, module: tvm.IRModule) -> tvm.IRModule:
        """The module with its functions scheduled that have records, after a search where one is asked for.

        Functions that are scheduled already stay as they are. Raises PlanError where no record is of this module.
        """
        functions = {
            variable: narrow(function)
            for variable, function in module.functions_items()
            if isinstance(function, tirx.PrimFunc) and SCHEDULED not in function.attrs
        }
        if self.seconds:
            self._search(module, functions)
        found = {variable: key(function) for variable, function in functions.items()}
        if self.records and not set(self.records) & set(found.values()):
            raise PlanError("the tuning records are of another model", hint="tune this one: --tune SECONDS")
        changed = tvm.IRModule(dict(module.functions_items()))
        for variable, name in found.items():
            if name in self.records:
                changed[variable] = _scheduled(functions[variable], self.records[name]["trace"])
        return changed

    def _search(self, module: tvm.IRModule, functions: Mapping[tvm.ir.GlobalVar, tirx.PrimFunc]) -> None:
        """Tune what costs most, a batch of candidates at a time, until the time is over."""
        deadline = time.monotonic() + self.seconds
        calls = _calls(module)
        ruled: tvm.IRModule = ScheduleForCpu(self.cpu)(tvm.IRModule(dict(functions)))  # type: ignore[operator]
        clock = _Clock(self.cpu, self.threads)
        tasks = []
        for variable, function in functions.items():
            seconds = clock.seconds(ruled[variable])
            if seconds is not None and calls[variable.name_hint]:
                name = variable.name_hint
                tasks.append(_Task(name, function, calls[name], seconds, clock.target))
        while tasks:
            task = max(tasks, key=lambda task: task.worth)
            if task.worth == 0:
                break
            task.step(clock, deadline)
            if time.monotonic() >= deadline:
                break
        for task in tasks:
            if task.trace is not None and task.best < _GAIN * task.ruled:
                self.records[key(task.function)] = {
                    "name": task.name,
                    "microseconds": round(1e6 * task.best, 2),
                    "untuned_microseconds": round(1e6 * task.ruled, 2),
                    "trace": task.trace,
                }


def key(function: tirx.PrimFunc) -> str:
    """What a function computes and how, whatever its variables are called: 16 hexadecimal digits."""
    return f"{tvm_ffi.structural_hash(function) % 2**64:016x}"


def digest(text: str) -> str:
    """What a plan says of records that it was compiled with."""
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def from_options(options: Mapping[str, Any], cpu: str, threads: int) -> Tuning | None:
    """What the options `tune` (seconds) and `tuning` (a file, or what `digest` made of it) ask for; None for nothing.

    Raises PlanError.
    """
    seconds, source = options["tune"], options["tuning"]
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < math.inf:
        raise PlanError(f"option tune must be a number of seconds, not {seconds!r}")
    if not isinstance(source, str):
        raise PlanError(f"option tuning must be a file, not {source!r}")
    if source.startswith("sha256:"):
        hint = f"pass --option tuning=OUT/{RECORDS} of the artifact that the plan is from, or tuning='' to do without"
        raise PlanError("the plan was compiled with tuning records, which it does not hold", hint=hint)
    if not source:
        return Tuning(cpu, seconds, threads) if seconds else None
    try:
        text = Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"cannot read the tuning records {source}: {error}") from None
    return Tuning(cpu, seconds, threads, text)


def _read(text: str, head: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    try:
        content = json.loads(text)
        functions = content.pop("functions")
        usable = all(isinstance(record["trace"], list) for record in functions.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        usable = False
    if not usable:
        raise PlanError("the tuning records are damaged", hint=f"pass {RECORDS} of an artifact")
    for name, wanted in head.items():
        if content.get(name) != wanted:
            reason = f"the tuning records are for {name} {content.get(name)}, not {wanted}"
            raise PlanError(reason, hint="tune again: --tune SECONDS")
    return dict(functions)


def _scheduled(function: tirx.PrimFunc, trace: list[Any]) -> tirx.PrimFunc:
    schedule = s_tir.Schedule(tvm.IRModule({"main": function}))
    try:
        Trace.apply_json_to_schedule(trace, schedule)
    except Exception as error:  # TVM raises what it likes
        raise PlanError("the tuning records are damaged", hint="tune again: --tune SECONDS") from error
    return schedule.mod["main"].with_attr(SCHEDULED, True)


def _plain(value: Any) -> Any:
    """A trace as JSON has it: TVM leaves constants of its own among its numbers."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, (tirx.IntImm, tirx.FloatImm)) else value


def _calls(module: tvm.IRModule) -> Counter[str]:
    """How often the program calls each function."""
    found: Counter[str] = Counter()

    def visit(expression: object) -> None:
        if isinstance(expression, relax.Call) and expression.op == tvm.ir.Op.get("relax.call_tir"):
            found[expression.args[0].name_hint] += 1

    for function in module.functions.values():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function, visit)
    return found


class _Clock:
    """Times functions on arguments of zeros and random numbers, in this process."""

    def __init__(self, cpu: str, threads: int) -> None:
        # The search asks for the number of processors; the code does not depend on it.
        self.target = tvm.target.Target({**features.tvm_target(cpu), "num-cores": threads or 1})

    def seconds(self, function: tirx.PrimFunc, best: float = math.inf) -> float | None:
        """The fastest of several runs, of only one where that is hopeless; None where TVM cannot compile it."""
        module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
        try:
            compiled = tvm.compile(module, self.target).jit()
        except Exception:  # a candidate that cannot be compiled is no candidate
            return None
        rng = np.random.default_rng(0)
        arguments = []
        for info in ms.arg_info.ArgInfo.from_prim_func(function):
            _, dtype, shape = info.as_json()
            array = np.zeros(shape, dtype)
            if array.dtype.kind == "f":
                array[...] = rng.uniform(0.5, 1.5, shape)
            arguments.append(tvm.runtime.tensor(array))
        once = compiled.time_evaluator("main", tvm.cpu(), number=1, repeat=2)
        first = float(min(once(*arguments).results))
        if first > _HOPELESS * best:
            return first
        often = compiled.time_evaluator("main", tvm.cpu(), number=1, repeat=5, min_repeat_ms=5)
        return float(min(often(*arguments).results))


def _silent(*_: object) -> None:
    """A log that nobody reads."""


class _Context(ms.TuneContext):  # type: ignore[misc]
    """TVM's context without its constructor, which imports every tensor intrinsic there is: a minute of parsing."""

    def __init__(self, function: tirx.PrimFunc, target: tvm.target.Target) -> None:
        generate = ms.space_generator.PostOrderApply(sch_rules="llvm", postprocs="llvm", mutator_probs="llvm")
        # Sizes that let a batch come after a second.
        strategy = ms.search_strategy.EvolutionarySearch(
            population_size=2 * _BATCH,
            init_measured_ratio=0.5,
            init_min_unmeasured=_BATCH,
            max_fail_count=5,
            genetic_num_iters=1,
            genetic_mutate_prob=0.85,
            genetic_max_fail_count=5,
            eps_greedy=0.2,
        )
        module = tvm.IRModule({"main": function})
        make, initialise = ms._ffi_api.TuneContext, ms._ffi_api.TuneContextInitialize
        self.__init_handle_by_constructor__(make, module, target, generate, strategy, "main", 1, 1, _silent)
        initialise(self)


@dataclass
class _Task:
    """A function that is being tuned: seconds a call by the rules and by the best candidate."""

    name: str
    function: tirx.PrimFunc
    calls: int
    ruled: float
    target: tvm.target.Target
    trace: list[Any] | None = None
    best: float = field(init=False)
    #: Batches since something was found.
    vain: float = 0

    def __post_init__(self) -> None:
        self.best = self.ruled
        self._context: _Context | None = None

    @property
    def worth(self) -> float:
        """Seconds that it takes of a run, less the longer nothing was gained on it."""
        return self.calls * self.best * 0.5**self.vain

    def step(self, clock: _Clock, deadline: float) -> None:
        """Time one batch of candidates, at least one of them."""
        candidates = self._candidates()
        if not candidates:
            self.vain = math.inf  # nothing is left: its worth is 0
            return
        before = self.best
        results: list[Any] = []
        for candidate in candidates:
            late = bool(results) and time.monotonic() >= deadline
            seconds = None if late else clock.seconds(candidate.sch.mod["main"], self.best)
            if seconds is None:
                results.append(ms.runner.RunnerResult(None, "late" if late else "not compiled"))
                continue
            results.append(ms.runner.RunnerResult([seconds], None))
            self._remember(candidate, seconds)
            if seconds < self.best:
                self.best, self.trace = seconds, _plain(candidate.sch.trace.as_json())
        assert self._context is not None
        self._context.notify_runner_results(candidates, results)
        self.vain = 0 if self.best < _GAIN * before else self.vain + 1

    def _candidates(self) -> list[Any]:
        if self._context is None:
            self._context = _Context(self.function, self.target)
            self._database = ms.database.MemoryDatabase()
            self._workload = self._database.commit_workload(self._context.mod)
            self._context.pre_tuning(
                max_trials=1 << 20,
                num_trials_per_iter=_BATCH,
                design_spaces=self._context.generate_design_space(),
                database=self._database,
                cost_model=ms.cost_model.RandomModel(seed=1),
            )
        return list(self._context.generate_measure_candidates() or [])

    def _remember(self, candidate: Any, seconds: float) -> None:
        record = ms.database.TuningRecord(
            candidate.sch.trace, self._workload, [seconds], self.target, candidate.args_info
        )
        self._database.commit_tuning_record(record)
