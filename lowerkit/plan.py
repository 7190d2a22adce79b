"""A plan is data: what is done to each node, as TOML that people read, edit and feed back."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from lowerkit.errors import PlanError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCHEMA = 1


@dataclass(frozen=True)
class Choice:
    """The method for one node of the canonical graph: `keep`, or a name of the node's family.

    `reason` is for people: why it is not the method that was asked for.
    """

    node: str
    op: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True)
class Plan:
    """The choices for every plannable node of one model, in graph order, and the target's options."""

    target: str
    choices: tuple[Choice, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_toml(self) -> str:
        """The plan as TOML; equal plans give equal text."""
        document: dict[str, Any] = {"schema": SCHEMA, "target": self.target}
        if self.options:
            document["options"] = dict(sorted(self.options.items()))
        document["node"] = [_choice_to_dict(choice) for choice in self.choices]
        return tomli_w.dumps(document)

    @classmethod
    def from_toml(cls, text: str, origin: str = "plan") -> Plan:
        """Parse a plan. Raises PlanError with the place of what is wrong."""
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise PlanError(f"{origin} is not valid TOML: {error}") from None
        if document.get("schema") != SCHEMA:
            raise PlanError(
                f"{origin} has schema {document.get('schema')!r}, this lowerkit reads {SCHEMA}",
                hint="write a new one with `lowerkit plan MODEL --target T`",
            )
        _only_keys(document, {"schema", "target", "options", "node"}, origin)
        if not isinstance(document.get("target"), str):
            raise PlanError(f"{origin} has no target")
        options, nodes = document.get("options", {}), document.get("node", [])
        if not isinstance(options, dict) or not isinstance(nodes, list):
            raise PlanError(f"{origin}: [options] must be a table and [[node]] a list of tables")
        choices = tuple(_choice_from_dict(node, f"{origin}, [[node]] {i}") for i, node in enumerate(nodes, 1))
        names = [choice.node for choice in choices]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise PlanError(f"{origin} names node '{twice[0]}' twice")
        return cls(document["target"], choices, options)

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read a plan file. Raises PlanError."""
        try:
            return cls.from_toml(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"cannot read plan {path}: {error}") from None


def _choice_to_dict(choice: Choice) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": choice.node, "op": choice.op, "method": choice.method}
    if choice.options:
        entry["options"] = dict(sorted(choice.options.items()))
    if choice.reason:
        entry["reason"] = choice.reason
    return entry


def _choice_from_dict(entry: Any, origin: str) -> Choice:
    if not isinstance(entry, dict):
        raise PlanError(f"{origin} is not a table")
    _only_keys(entry, {"name", "op", "method", "options", "reason"}, origin)
    for key in ("name", "op", "method"):
        if not isinstance(entry.get(key), str):
            raise PlanError(f"{origin} has no {key}")
    if not isinstance(entry.get("options", {}), dict):
        raise PlanError(f"{origin}: options must be a table")
    if not isinstance(entry.get("reason", ""), str):
        raise PlanError(f"{origin}: reason must be text")
    return Choice(
        entry["name"], entry["op"], entry["method"], entry.get("options", {}), entry.get("reason", "")
    )


def _only_keys(table: Mapping[str, Any], known: set[str], origin: str) -> None:
    if unknown := sorted(set(table) - known):
        raise PlanError(f"{origin} has unknown key '{unknown[0]}'", hint=f"known: {', '.join(sorted(known))}")


def options_of(method: Any) -> dict[str, Any]:
    """The options of a method (its dataclass fields) as a plan holds them: sequences are lists, as in TOML."""
    options = dataclasses.asdict(method)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
