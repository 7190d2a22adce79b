"""What the command line shows: rich tables for people, plain JSON for machines."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import RenderableType
from rich.table import Table

from lowerkit.targets.base import get_target

if TYPE_CHECKING:
    from lowerkit.artifact import Artifact
    from lowerkit.graph.inspect import Inspection, NonLinearity
    from lowerkit.validation.results import Validation


def to_json(value: Any) -> Any:
    """`value` in JSON's types: dataclasses as objects, non-finite floats as strings."""
    from lowerkit.artifact import Artifact
    from lowerkit.validation.results import Validation

    if isinstance(value, Artifact):
        return {"directory": str(value.directory), **value.manifest}
    if isinstance(value, Validation):
        return value.to_dict()
    if isinstance(value, np.ndarray):
        return {"shape": list(value.shape), "dtype": value.dtype.name}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json(item) for item in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (np.floating, np.integer)):
        return to_json(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Path):
        return str(value)
    return value


@dataclass(frozen=True)
class PassRow:
    """A pass of the canonicaliser, in the order in which they run."""

    name: str
    does: str


@dataclass(frozen=True)
class MethodRow:
    """A method at its default options."""

    family: str
    name: str
    contract: str
    replaces: tuple[str, ...]
    options: Mapping[str, Any]
    error: float | None
    error_kind: str | None
    domain: str | None
    evidence: str | None
    source: str
    cost: Mapping[str, str]


@dataclass(frozen=True)
class PassList:
    """What `lowerkit passes` shows."""

    passes: tuple[PassRow, ...]
    methods: tuple[MethodRow, ...]


def pass_list() -> PassList:
    """The canonicaliser's passes and every method."""
    from lowerkit.graph.canonicalise import PASSES
    from lowerkit.passes.registry import methods
    from lowerkit.plan import options_of

    rows = []
    for cls in methods().values():
        method, bound = cls(), cls().bound()
        rows.append(
            MethodRow(
                family=cls.family,
                name=cls.name,
                contract=cls.contract.value,
                replaces=tuple(sorted(cls.functions)),
                options=options_of(method),
                error=bound.value if bound else None,
                error_kind=bound.kind if bound else None,
                domain=bound.domain if bound else None,
                evidence=bound.evidence.value if bound else None,
                source=cls.source,
                cost=dict(cls.cost),
            )
        )
    return PassList(tuple(PassRow(p.name, first_sentence(p)) for p in PASSES), tuple(rows))


def first_sentence(thing: Any) -> str:
    """The first line of a docstring."""
    return (thing.__doc__ or "").strip().splitlines()[0]


def _bound(method: MethodRow) -> str:
    if method.error is None:
        return "none: another function"
    error = f"{method.error:.1e} {method.error_kind}" if method.error else "rounding"
    return f"{error}, {method.evidence}"


def passes(listing: PassList) -> list[RenderableType]:
    """Tables of passes and methods."""
    order = Table("pass", "what it does", title="Canonicalisation, in order", title_justify="left")
    for row in listing.passes:
        order.add_row(row.name, row.does)
    table = Table(
        "family", "method", "contract", "error bound", "domain", title="Methods", title_justify="left"
    )
    for method in listing.methods:
        table.add_row(method.family, method.name, method.contract, _bound(method), method.domain or "–")
    return [order, table, "`keep` leaves a node to the target. docs/methods.md has the derivations."]


@dataclass(frozen=True)
class TargetRow:
    """An installed target."""

    name: str
    summary: str
    defaults: Mapping[str, str]
    options: Mapping[str, Any]


def target_list() -> list[TargetRow]:
    """Every installed target."""
    from lowerkit.targets.base import get_target, target_names

    found = [get_target(name) for name in target_names()]
    return [TargetRow(t.name, t.summary, dict(t.defaults), dict(t.options)) for t in found]


def targets(rows: list[TargetRow]) -> list[RenderableType]:
    """Table of targets."""
    table = Table("target", "what it makes", "default methods", "options")
    for row in rows:
        table.add_row(row.name, row.summary, _pairs(row.defaults), _pairs(row.options))
    return [table]


def inspection(found: Inspection) -> list[RenderableType]:
    """Tables of a model's inputs and outputs, operators, non-linearities and blocking nodes."""
    ports = Table("", "name", "dtype", "shape")
    for kind, tensors in (("input", found.inputs), ("output", found.outputs)):
        for tensor in tensors:
            ports.add_row(kind, tensor.name, tensor.dtype, "x".join(map(str, tensor.shape)))
    size = f"{found.parameters:,} parameters, {found.parameter_bytes / 2**20:.1f} MiB"
    lines: list[RenderableType] = [f"opset {found.opset}, {size}, {found.total_macs:,} MACs", ports]
    ops = Table("operator", "as written", "canonical", "MACs")
    for op in sorted({*found.original_ops, *found.canonical_ops}):
        counts = (found.original_ops.get(op, 0), found.canonical_ops.get(op, 0))
        ops.add_row(op, *map(str, counts), f"{found.macs.get(op, 0):,}")
    lines.append(ops)
    if found.nonlinearities:
        lines.append(_nonlinearities(found.nonlinearities))
    for blocker in found.blockers:
        lines.append(f"blocks target {found.target}: node '{blocker.node}' ({blocker.op}): {blocker.reason}")
    if found.target is not None and not found.blockers:
        lines.append(f"nothing blocks target {found.target}")
    return lines


def _nonlinearities(rows: Iterable[NonLinearity]) -> Table:
    """One line for those that are alike; JSON has them node by node."""
    table = Table("non-linearity", "nodes", "the first", "spelled as", "must be lowered", "default method")
    groups: dict[tuple[str, ...], list[NonLinearity]] = {}
    for row in rows:
        key = (row.op, row.spelled, "yes" if row.must_lower else "no", row.default or "")
        groups.setdefault(key, []).append(row)
    for (op, spelled, must, default), alike in groups.items():
        shape = "x".join(map(str, alike[0].shape)) if alike[0].shape is not None else "?"
        table.add_row(op, str(len(alike)), f"{alike[0].node} [{shape}]", spelled, must, default)
    return table


def artifact(made: Artifact) -> list[RenderableType]:
    """What `compile` made: the choices by method, and where the report is."""
    from lowerkit.report.summary import amount

    counts: dict[tuple[str, str], int] = {}
    for choice in made.plan.choices:
        counts[choice.op, choice.method] = counts.get((choice.op, choice.method), 0) + 1
    table = Table("operator", "method", "nodes")
    for (op, method), count in sorted(counts.items()):
        table.add_row(op, method, str(count))
    lines: list[RenderableType] = [f"wrote {made.directory} for target {made.target}"]
    for cost in get_target(made.target).costs(made.directory):
        if not cost.total:
            continue
        whole = ", ".join(
            f"{amount(n)} {name}" for name, n in zip(cost.columns[1:], cost.rows[-1][1:], strict=True)
        )
        lines.append(f"cost: {whole} ({cost.note})")
    return [*lines, *([table] if counts else []), f"report: {made.directory / 'report.html'}"]


def run_results(results: Mapping[str, np.ndarray]) -> list[RenderableType]:
    """Table of outputs."""
    table = Table("output", "dtype", "shape")
    for name, array in results.items():
        table.add_row(name, array.dtype.name, "x".join(map(str, array.shape)))
    return [table]


def validation(found: Validation) -> list[RenderableType]:
    """The findings in words."""
    return [found.summary()]


def _pairs(mapping: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in mapping.items())
