"""What a target is. Targets register under the entry-point group `lowerkit.targets`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import onnx_ir as ir

from lowerkit.errors import PlanError, UnsupportedError

#: Called as (what, done, total) while work goes on.
Progress = Callable[[str, int, int], None]


class Runner(Protocol):
    """Something that executes an artifact: input name -> array in, output name -> array out."""

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class CostTable:
    """What an artifact takes of its hardware, by layer: for people and reports.

    Attributes:
        note: how the numbers are known.
        columns: headings.
        rows: names and numbers, one for each column; the last row is of the whole where `total`.
    """

    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float, ...], ...]
    total: bool = True


class Target(ABC):
    """Turns a lowered graph into something that executes.

    A target is stateless. `options` are the target's own choices (e.g. threads), saved in the plan.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    #: Family -> method chosen by default (`keep` for the target's own operator).
    defaults: ClassVar[Mapping[str, str]]
    #: Canonical operators to expand into simpler canonical ones, e.g. Attention: before planning, but for nodes
    #: that the user wants a method for.
    expands: ClassVar[frozenset[str]] = frozenset()
    #: Canonical operators that the target cannot compute itself: a method must replace them.
    must_lower: ClassVar[frozenset[str]] = frozenset()
    #: Operators of the `lowerkit` domain that the target emits itself; the others are inlined.
    native: ClassVar[frozenset[str]] = frozenset()
    #: Whether operators are inlined while lowering, so that what is in their bodies is planned in turn; else the
    #: target inlines what it does not emit itself.
    plans_bodies: ClassVar[bool] = False
    #: Arithmetic error, relative to an output's scale, above which emitted code is wrong, not imprecise. Where the
    #: lowered graph itself is moved by more when its constants are rounded, that counts: see `validation.rounding`.
    tolerance: ClassVar[float] = 1e-3
    #: Samples on which a new artifact is compared with onnxruntime before it is moved to its place.
    self_checked: ClassVar[int] = 8
    #: Whether a probe's numbers are those of the emitted code bit for bit, so that validation compares them; it
    #: then takes many samples, stacked along a new leading axis, too.
    exact_probe: ClassVar[bool] = False
    #: Target option -> default value.
    options: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def merged(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """All options, those that are not given at their defaults. Raises PlanError for one that is unknown."""
        if unknown := sorted(set(options) - set(cls.options)):
            hint = f"its options: {', '.join(cls.options)}"
            raise PlanError(f"the {cls.name} target has no option '{unknown[0]}'", hint=hint)
        return {**cls.options, **options}

    @abstractmethod
    def blocker(self, node: ir.Node) -> str | None:
        """Why the target cannot run `node` of a canonical or lowered graph, or None."""

    def asked_precision(self, options: Mapping[str, Any]) -> float:
        """Arithmetic error of an output, absolute, that the options allow even beyond `tolerance`."""
        return 0.0

    def complete(
        self,
        model: ir.Model,
        samples: Sequence[Mapping[str, np.ndarray]],
        options: Mapping[str, Any],
        *,
        synthetic: bool = False,
    ) -> dict[str, Any]:
        """The options, with what they leave open chosen for the lowered `model` from calibration samples.

        Samples that are `synthetic` were made up: they refute nothing that the options say.
        """
        return dict(options)

    @abstractmethod
    def emit(
        self,
        model: ir.Model,
        options: Mapping[str, Any],
        directory: Path,
        progress: Progress | None = None,
    ) -> Mapping[str, Any]:
        """Write the target's files for the lowered `model` into `directory`, deterministically.

        Returns the options with which the same files are written without what had to be measured to choose them.
        Raises UnsupportedError (names the node) or ToolError; never leaves a wrong artifact in silence.
        """

    @abstractmethod
    def open(self, directory: Path, options: Mapping[str, Any]) -> Runner:
        """A runner for the files that `emit` wrote, without the target's compiler."""

    def costs(self, directory: Path) -> tuple[CostTable, ...]:
        """What the files that `emit` wrote take of the hardware; nothing where the target does not count that."""
        return ()

    @abstractmethod
    def probe(self, model: ir.Model, options: Mapping[str, Any], taps: Sequence[str]) -> Runner:
        """A runner of the same code that also returns the intermediate values named in `taps`."""


def target_names() -> list[str]:
    """Names of the installed targets."""
    return sorted(entry.name for entry in entry_points(group="lowerkit.targets"))


def get_target(name: str) -> Target:
    """The target called `name`; its heavy dependencies are imported only when it is used.

    Raises UnsupportedError that lists the installed targets.
    """
    for entry in entry_points(group="lowerkit.targets"):
        if entry.name == name:
            target: Target = entry.load()()
            return target
    raise UnsupportedError(f"no target '{name}'", hint=f"installed: {', '.join(target_names())}")
