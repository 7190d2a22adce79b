"""Prints kernels as HLS C++: one function each, of ap_int types, with the pragmas that the loops ask for."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable

from lowerkit.targets.fpga.lang.expr import (
    Array,
    Binary,
    BitLength,
    Const,
    Expr,
    Load,
    Range,
    Select,
    Slice,
    Var,
)
from lowerkit.targets.fpga.lang.program import (
    For,
    Kernel,
    Let,
    Local,
    Register,
    Statement,
    Store,
    Update,
    When,
)

#: What the printed code needs besides ap_int.h.
HELPERS = """\
// Helpers that every kernel may use.
// Simulation keeps tables as plain integers: ap_int types would construct each number when the program starts,
// and compilers take minutes over that.
#ifdef __SYNTHESIS__
#define LK_TABLE(type, plain) type
#else
#define LK_TABLE(type, plain) plain
#endif
template <class T> inline T lk_min(T a, T b) { return b < a ? b : a; }
template <class T> inline T lk_max(T a, T b) { return a < b ? b : a; }
// The bits that a number takes: 0 for 0.
template <int W> inline int lk_bit_length(ap_uint<W> a) {
    int bits = 0;
    for (int i = 0; i < W; ++i) {
#pragma HLS UNROLL
        if (a[i]) bits = i + 1;
    }
    return bits;
}
"""
_INFIX = {"add": "+", "sub": "-", "mul": "*", "lt": "<", "le": "<=", "eq": "=="}


def type_of(range: Range) -> str:
    """The narrowest type."""
    return f"ap_{'' if range.signed else 'u'}int<{range.bits}>"


def declaration(array: Array, *, constant: bool = False) -> str:
    """An array with its type, as a parameter or a variable: flat, so that a reshape between layers is nothing."""
    size = math.prod(array.shape)
    return f"{'const ' if constant else ''}{type_of(array.range)} {array.name}[{size}]"


def signature(kernel: Kernel) -> str:
    """The function's head, without a semicolon."""
    parameters = [declaration(a, constant=True) for a in kernel.inputs]
    parameters += [declaration(a) for a in kernel.outputs]
    return f"void {kernel.name}({', '.join(parameters)})"


def constants(kernel: Kernel) -> str:
    """The kernel's tables and weights, as literals; `HELPERS` is to stand before them."""
    return "\n".join(_table(array) for array in kernel.constants)


def function(kernel: Kernel) -> str:
    """The kernel as a function; its constants are to stand before it."""
    comment = textwrap.indent(textwrap.fill(kernel.comment, 100), "// ")
    body = "\n".join(_lines(kernel.body, 1))
    return f"{comment}\n{signature(kernel)} {{\n{body}\n}}\n"


def _table(array: Array) -> str:
    plain = ("" if array.range.signed else "unsigned ") + ("int" if array.range.bits <= 32 else "long long")
    size = math.prod(array.shape)
    return f"static const LK_TABLE({type_of(array.range)}, {plain}) {array.name}[{size}] = {_literal(array)};"


def _literal(array: Array) -> str:
    assert array.data is not None
    wide = "LL" if array.range.bits > 31 else ""
    numbers = ", ".join(f"{int(number)}{wide}" for number in array.data.ravel())
    return "{\n" + textwrap.fill(numbers, 116, initial_indent="    ", subsequent_indent="    ") + "}"


def _lines(statements: Iterable[Statement], depth: int) -> list[str]:
    pad = "    " * depth
    found: list[str] = []
    for statement in statements:
        if isinstance(statement, For):
            label = f"{statement.label}: " if statement.label else ""
            i = statement.counter.name
            found.append(f"{pad}{label}for (int {i} = 0; {i} < {statement.count}; ++{i}) {{")
            if statement.pipeline:
                found.append("#pragma HLS PIPELINE II=1")
            found += [*_lines(statement.body, depth + 1), f"{pad}}}"]
        elif isinstance(statement, When):
            # Comparisons come in parentheses.
            condition = text(statement.condition)
            compared = isinstance(statement.condition, Binary) and statement.condition.op in (
                "lt",
                "le",
                "eq",
            )
            found.append(f"{pad}if {condition if compared else f'({condition} != 0)'} {{")
            found += [*_lines(statement.body, depth + 1), f"{pad}}}"]
        elif isinstance(statement, Let):
            found.append(
                f"{pad}const {type_of(statement.var.range)} {statement.var.name} = {text(statement.value)};"
            )
        elif isinstance(statement, Register):
            found.append(
                f"{pad}{type_of(statement.var.range)} {statement.var.name} = {text(statement.initial)};"
            )
        elif isinstance(statement, Update):
            found.append(f"{pad}{statement.var.name} = {text(statement.value)};")
        elif isinstance(statement, Local):
            found.append(f"{pad}{declaration(statement.array)};")
        elif isinstance(statement, Store):
            found.append(f"{pad}{_element(statement.array, statement.indices)} = {text(statement.value)};")
    return found


def _element(array: Array, indices: tuple[Expr, ...]) -> str:
    """An element of a flat array, the last axis fastest."""
    terms = []
    for axis, index in enumerate(indices):
        stride = math.prod(array.shape[axis + 1 :])
        if isinstance(index, Const):
            terms += [str(index.value * stride)] if index.value else []
        else:
            terms.append(_index(index) + (f" * {stride}" if stride != 1 else ""))
    return f"{array.name}[{' + '.join(terms) or '0'}]"


def _index(e: Expr) -> str:
    """Counters are ints already."""
    printed = text(e)
    return printed if isinstance(e, (Var, Const)) else f"int({printed})"


def text(e: Expr) -> str:
    """The expression. Operands of comparisons, minima and shifts are brought to a type that holds both."""
    if isinstance(e, Const):
        return f"{e.value}LL" if e.range.bits > 31 else str(e.value)
    if isinstance(e, Var):
        return e.name
    if isinstance(e, Load):
        element = _element(e.array, e.indices)
        return element if e.array.data is None else f"{type_of(e.range)}({element})"
    if isinstance(e, Select):
        kind = type_of(e.range)
        return f"({text(e.condition)} ? {kind}({text(e.yes)}) : {kind}({text(e.no)}))"
    if isinstance(e, Slice):
        # Conversion to a narrower type keeps the low bits.
        kind = type_of(e.operand.range)
        return f"ap_uint<{e.width}>({kind}({text(e.operand)}) >> {e.low})"
    if isinstance(e, BitLength):
        return f"lk_bit_length({type_of(Range(0, e.operand.range.high))}({text(e.operand)}))"
    assert isinstance(e, Binary)
    left, right = text(e.left), text(e.right)
    if e.op in ("min", "max"):
        kind = type_of(e.left.range.union(e.right.range))
        return f"lk_{e.op}<{kind}>({left}, {right})"
    if e.op in ("shl", "shr"):
        # A shift keeps its left operand's width: the widest of operand and result.
        kind = type_of(e.left.range.union(e.range))
        return f"({kind}({left}) {'<<' if e.op == 'shl' else '>>'} {_index(e.right)})"
    if e.op in ("lt", "le", "eq"):
        kind = type_of(e.left.range.union(e.right.range))
        return f"({kind}({left}) {_INFIX[e.op]} {kind}({right}))"
    # Sums and products of ap_int types are as wide as they have to be.
    kind = type_of(e.range)
    return f"{kind}({_wide(e.left)} {_INFIX[e.op]} {_wide(e.right)})"


def _wide(e: Expr) -> str:
    """Loop counters and numbers as ap_int types, so that no int overflows."""
    printed = text(e)
    return f"{type_of(e.range)}({printed})" if isinstance(e, (Var, Const)) else printed
