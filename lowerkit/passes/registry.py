"""Finds methods: every module in the method folders here, and the entry points `lowerkit.methods`."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import pkgutil
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

import onnx_ir as ir

from lowerkit import passes
from lowerkit.errors import PlanError
from lowerkit.graph.domain import CANONICAL, DOMAIN
from lowerkit.numerics.statistics import TensorStats
from lowerkit.passes.base import METHOD, OPTIONS, REPLACES, Method

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDERS = ("softmax", "activation", "norm", "attention", "pool", "quantize")
#: The choice that leaves a node as the canonical operator, for the target's own implementation.
KEEP = "keep"


@functools.cache
def methods() -> dict[tuple[str, str], type[Method]]:
    """Every known method by (family, name), in a stable order. Raises PlanError when two share a name."""
    for folder in FOLDERS:
        package = importlib.import_module(f"{passes.__name__}.{folder}")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    for entry in entry_points(group="lowerkit.methods"):
        entry.load()
    found: dict[tuple[str, str], type[Method]] = {}
    for cls in _subclasses(Method):  # type: ignore[type-abstract]
        if "name" in cls.__dict__ and hasattr(cls, "functions"):
            if (cls.family, cls.name) in found:
                raise PlanError(f"two {cls.family} methods are called '{cls.name}'", hint="rename one")
            found[cls.family, cls.name] = cls
    return dict(sorted(found.items()))


def _subclasses(cls: type[Method]) -> list[type[Method]]:
    return [s for child in cls.__subclasses__() for s in (child, *_subclasses(child))]


def families() -> dict[str, frozenset[str]]:
    """Family -> the canonical operators that its methods replace."""
    out: dict[str, frozenset[str]] = {}
    for (family, _), cls in methods().items():
        out[family] = out.get(family, frozenset()) | frozenset(cls.functions)
    return out


def family_of(op_type: str) -> str | None:
    """The family that replaces canonical operator `op_type`, or None."""
    return next((family for family, ops in families().items() if op_type in ops), None)


def family_of_node(node: ir.Node) -> str | None:
    """The family that replaces `node`, or None."""
    canonical = node.domain == "" or (node.domain == DOMAIN and node.op_type in CANONICAL)
    family = family_of(node.op_type) if canonical else None
    return family if family is not None and _some_method(family).concerns(node) else None


def on_request(family: str) -> bool:
    """Whether plans name the family's nodes only where someone asks for another method than `keep`."""
    return _some_method(family).on_request


def _some_method(family: str) -> type[Method]:
    return next(cls for (known, _), cls in methods().items() if known == family)


def names_of(family: str | None) -> list[str]:
    """The methods of a family."""
    return [name for of, name in methods() if of == family]


def method_class(family: str, name: str) -> type[Method]:
    """The method class. Raises PlanError that lists the known names."""
    try:
        return methods()[family, name]
    except KeyError:
        known = ", ".join([KEEP, *names_of(family)])
        hint = f"known: {known} (see `lowerkit passes`)"
        raise PlanError(f"no {family} method '{name}'", hint=hint) from None


def make(family: str, name: str, options: Mapping[str, Any]) -> Method:
    """The method with `options`. Raises PlanError on an unknown or ill-typed option."""
    return _made(family, name, options, lambda cls: cls(**options))


def method_of(node: ir.Node) -> Method | None:
    """The method, with its options, that put a node of the lowered graph in its place; None for other nodes."""
    name, family = node.metadata_props.get(METHOD), family_of(node.metadata_props.get(REPLACES, ""))
    if name is None or family is None:
        return None
    return make(family, name, json.loads(node.metadata_props.get(OPTIONS, "{}")))


def fit(
    family: str, name: str, node: ir.Node, stats: TensorStats | None, options: Mapping[str, Any]
) -> Method:
    """The method for `node`, what `options` leaves open fitted to its input's statistics. Raises PlanError."""
    return _made(family, name, options, lambda cls: cls.fit_node(node, stats, options))


def _made(
    family: str, name: str, options: Mapping[str, Any], build: Callable[[type[Method]], Method]
) -> Method:
    cls = method_class(family, name)
    fields = [field.name for field in dataclasses.fields(cls)]
    hint = f"its options: {', '.join(fields) or 'none'}"
    if unknown := sorted(set(options) - set(fields)):
        raise PlanError(f"{family} method '{name}' has no option '{unknown[0]}'", hint=hint)
    try:
        return build(cls)
    except (TypeError, ValueError) as error:
        raise PlanError(f"{family} method '{name}': {error}", hint=hint) from None


def parse_choice(text: str) -> tuple[str, dict[str, Any]]:
    """A method's name and options from `name` or `name:option=value,option=value`, values as in TOML.

    Raises PlanError.
    """
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in rest.split(",") if rest else ():
        key, equals, value = part.partition("=")
        try:
            options.update(tomllib.loads(f"{key.strip()} = {value}") if equals else {})
        except tomllib.TOMLDecodeError:
            try:  # a word needs no quotes here
                options.update(tomllib.loads(f'{key.strip()} = "{value}"'))
            except tomllib.TOMLDecodeError:
                equals = ""
        if not equals:
            raise PlanError(f"'{text}' is not of the form NAME:OPTION=VALUE,...")
    return name, options
