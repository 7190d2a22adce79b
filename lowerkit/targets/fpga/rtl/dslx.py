"""Prints nodes as DSLX functions, which XLS turns into pipelined Verilog.

Numbers have the types of their ranges. Sums and products are computed modulo two to the result's bits, which is exact
as the result's range holds it; comparisons in a type that holds both operands.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from lowerkit.errors import ToolError
from lowerkit.targets.fpga.lang.expr import Range
from lowerkit.targets.fpga.rtl import tools
from lowerkit.targets.fpga.rtl.graph import Node

_INFIX = {"add": "+", "sub": "-", "mul": "*", "lt": "<", "le": "<=", "eq": "==", "shl": "<<", "shr": ">>"}
_MIRRORED = {"lt": ">", "le": ">="}
#: Longest expression that is not given a name.
LINE = 60


@dataclass(frozen=True)
class Module:
    """Verilog of a function.

    Attributes:
        latency: cycles from inputs to outputs; 0 for logic without registers.
    """

    name: str
    verilog: str
    latency: int


def type_of(range: Range) -> str:
    """The narrowest type."""
    return f"{'s' if range.signed else 'u'}N[{range.bits}]"


def function(
    name: str, comment: str, inputs: Mapping[Node, str], nodes: Sequence[Node], outputs: Sequence[Node]
) -> str:
    """A function of inputs, by their names, to a tuple of outputs; `nodes` are what it computes, operands first."""
    uses: dict[Node, int] = dict.fromkeys(outputs, 2)
    for node in nodes:
        for a in node.args:
            uses[a] = uses.get(a, 0) + 1
    texts: dict[Node, str] = dict(inputs)
    lines = []
    for n, node in enumerate(nodes):
        if node in inputs:
            continue
        made = _text(node, lambda a: texts[a])
        if uses[node] > 1 or node.name or len(made) > LINE:
            label = f"{node.name.lower()}_v{n}" if node.name else f"v{n}"
            lines.append(f"    let {label} = {made};")
            made = label
        texts[node] = made
    parameters = ", ".join(f"{label}: {type_of(node.range)}" for node, label in inputs.items())
    results = [_to(node, texts[node], Range(0, (1 << node.range.bits) - 1)) for node in outputs]
    kinds = ", ".join(f"uN[{node.range.bits}]" for node in outputs)
    head = f"// {comment}\npub fn {name}({parameters}) -> ({kinds},) {{"
    return "\n".join([head, *lines, f"    ({', '.join(results)},)", "}", ""])


@functools.lru_cache(maxsize=512)
def verilog(name: str, text: str, period_ps: int | None) -> Module:
    """A DSLX function as a module: with registers, in as many stages as XLS needs for a period, or without.

    The period is one of XLS's delay model, of an ASIC process: it says how finely logic is cut, not how fast it is.
    What cannot be cut so finely, such as a product, gets the least period that it can have, in steps of a twentieth.
    The output port `out` has the tuple's first element highest. Raises ToolError.
    """
    xls = tools.module("xls")
    try:
        top = xls.mangle_dslx_name(name, name)
        ir = xls.optimize_ir(xls.convert_dslx_to_ir(text, f"{name}.x", name), top)
        found = _generated(xls, ir, top, name, period_ps)
        while found is None:
            assert period_ps is not None
            period_ps += -(-period_ps // 20)
            found = _generated(xls, ir, top, name, period_ps)
    except (RuntimeError, ValueError) as error:
        raise ToolError(f"XLS fails on {name}: {str(error).splitlines()[0][:200]}") from error
    return Module(name, found, len(re.findall(r"// ===== Pipe stage", found)))


def _generated(xls: ModuleType, ir: str, top: str, name: str, period_ps: int | None) -> str | None:
    """Verilog, or None where the period is too short. Packages are parsed anew: code generation changes them."""
    # XLS makes tables of constants from selects, shorter than their indices reach: beyond the end is the last word.
    options: dict[str, Any] = {"generator": "combinational", "array_index_bounds_checking": True}
    if period_ps is not None:
        options |= {
            "generator": "pipeline",
            "flop_inputs": False,
            "flop_outputs": True,
            "with_delay_model": True,
        }
        options |= {"delay_model": "sky130", "clock_period_ps": period_ps, "minimize_clock_on_failure": False}
    try:
        result = xls.Package.parse_ir(ir).schedule_and_codegen(
            top=top, module_name=name, use_system_verilog=False, **options
        )
    except RuntimeError as error:
        if period_ps is not None and "cannot achieve the specified clock period" in str(error):
            return None
        raise
    return str(result.get_verilog_text())


def _text(node: Node, of: Callable[[Node], str]) -> str:
    args = node.args
    if node.op == "const":
        return _to(node, "", node.range)
    if node.op == "cast":
        return _to(args[0], of(args[0]), node.range)
    if node.op == "select":
        yes, no = (_to(a, of(a), node.range) for a in args[1:])
        return f"(if {of(args[0])} != {_literal(0, args[0].range)} {{ {yes} }} else {{ {no} }})"
    if node.op == "slice":
        low, width = node.detail
        bits = max(args[0].range.bits, low + width)
        wide = _to(args[0], of(args[0]), Range(-(1 << (bits - 1)), (1 << (bits - 1)) - 1))
        return f"((({wide} as uN[{bits}]) >> u32:{low}) as {type_of(node.range)})"
    both = args[0].range.union(args[1].range)
    if node.op in ("min", "max", "lt", "le", "eq"):
        a, b = (_to(x, of(x), both) for x in args)
        if node.op in ("min", "max"):
            chosen = f"(if {a} {'<' if node.op == 'min' else '>'} {b} {{ {a} }} else {{ {b} }})"
            return _convert(chosen, both, node.range)
        if node.op in _MIRRORED and args[0].value is not None:
            # DSLX reads "number < (" as the start of a call with parameters.
            return f"(({b} {_MIRRORED[node.op]} {a}) as u1)"
        return f"(({a} {_INFIX[node.op]} {b}) as u1)"
    if node.op in ("shl", "shr"):
        held = args[0].range.union(node.range)
        if (known := args[1].value) is not None and known > held.bits:
            # XLS refuses to shift by more bits than there are.
            held = held.union(Range(-(1 << (known - 1)), (1 << (known - 1)) - 1))
        count = _to(args[1], of(args[1]), args[1].range)
        return _convert(f"({_to(args[0], of(args[0]), held)} {_INFIX[node.op]} {count})", held, node.range)
    a, b = (_to(x, of(x), node.range) for x in args)
    return f"({a} {_INFIX[node.op]} {b})"


def _to(node: Node, text: str, target: Range) -> str:
    """A node in another range's type; numbers as literals."""
    return _literal(node.value, target) if node.value is not None else _convert(text, node.range, target)


def _literal(number: int, target: Range) -> str:
    """A number, modulo two to the type's bits."""
    low = number & ((1 << target.bits) - 1)
    if target.signed and low >> (target.bits - 1):
        low -= 1 << target.bits
    return f"{type_of(target)}:{low}"


def _convert(text: str, source: Range, target: Range) -> str:
    """Extended as the source's sign says, or cut."""
    if type_of(source) == type_of(target):
        return text
    if source.signed == target.signed or source.bits == target.bits:
        return f"({text} as {type_of(target)})"
    return f"(({text} as {'s' if source.signed else 'u'}N[{target.bits}]) as {type_of(target)})"
