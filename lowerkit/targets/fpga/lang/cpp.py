"""Prints kernels as HLS C++: one function each, of ap_int types, with the pragmas that the loops ask for."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence

from lowerkit.targets.fpga.lang.access import Banks, banks, limited
from lowerkit.targets.fpga.lang.expr import (
    Array,
    Binary,
    BitLength,
    Const,
    Counter,
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
#include <cstdint>
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
#: Bits from which a table is worth a block of memory instead of logic.
BLOCK = 4096
#: Of int.
_INT = Range(-(2**31), 2**31 - 1)
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


def function(kernel: Kernel, prefix: str = "") -> str:
    """The kernel as a function, `prefix` (static, say) before it; its constants are to stand above."""
    comment = textwrap.indent(textwrap.fill(kernel.comment, 100), "// ")
    pragmas = [pragma for array in kernel.constants for pragma in _memory(kernel, array)]
    body = "\n".join([*pragmas, *_lines(kernel, kernel.body, 1)])
    return f"{comment}\n{prefix}{signature(kernel)} {{\n{body}\n}}\n"


def partition(name: str, banks: Sequence[Banks]) -> list[str]:
    """Pragmas that split an array over memories, an axis each."""
    found = []
    for axis, bank in enumerate(banks):
        if bank.complete or bank.factor > 1:
            kind = "complete" if bank.complete else f"cyclic factor={bank.factor}"
            found.append(f"#pragma HLS ARRAY_PARTITION variable={name} {kind} dim={axis + 1}")
    return found


def _memory(kernel: Kernel, array: Array) -> list[str]:
    """Where constants and local arrays lie: split as the unrolled loops ask, a large whole table in block memory."""
    found = partition(array.name, banks(kernel, array, flat=array.data is None))
    if array.data is not None and not found and math.prod(array.shape) * array.range.bits >= BLOCK:
        found.append(f"#pragma HLS BIND_STORAGE variable={array.name} type=rom_1p impl=bram")
    return found


def _table(array: Array) -> str:
    width = next(w for w in (8, 16, 32, 64) if array.range.bits <= w)
    plain = f"std::{'' if array.range.signed else 'u'}int{width}_t"
    return f"static const LK_TABLE({type_of(array.range)}, {plain}) {array.name}{_axes(array)} = {_literal(array)};"


def _axes(array: Array) -> str:
    return "".join(f"[{size}]" for size in array.shape) or "[1]"


def _literal(array: Array) -> str:
    """All numbers in order, a few to a line: quick to print and to compile."""
    assert array.data is not None
    wide = "LL" if array.range.bits > 31 else ""
    numbers = [f"{int(number)}{wide}" for number in array.data.ravel()]
    rows = [", ".join(numbers[i : i + 16]) for i in range(0, len(numbers), 16)]
    return "{\n    " + ",\n    ".join(rows) + "}"


def _lines(kernel: Kernel, statements: Iterable[Statement], depth: int, unroll: bool = False) -> list[str]:
    """`unroll`: these stand in a pipelined loop."""
    pad = "    " * depth
    found: list[str] = []
    for statement in statements:
        if isinstance(statement, For):
            label = f"{statement.label}: " if statement.label else ""
            i = statement.counter.name
            end, inside = f"{i} < {statement.count}", statement.body
            if not unroll and (guard := limited(statement)) is not None:
                end, inside = _end(end, statement, guard), guard.body
            found.append(f"{pad}{label}for (int {i} = 0; {end}; ++{i}) {{")
            if inside is not statement.body:
                found.append(f"#pragma HLS LOOP_TRIPCOUNT max={statement.count}")
            if statement.pipeline and not unroll:
                found.append("#pragma HLS PIPELINE II=1")
            elif unroll:
                found.append("#pragma HLS UNROLL")
            found += [*_lines(kernel, inside, depth + 1, unroll or statement.pipeline), f"{pad}}}"]
        elif isinstance(statement, When):
            found.append(f"{pad}if {_test(statement.condition)} {{")
            found += [*_lines(kernel, statement.body, depth + 1, unroll), f"{pad}}}"]
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
            found += _memory(kernel, statement.array)
        elif isinstance(statement, Store):
            found.append(f"{pad}{_element(statement.array, statement.indices)} = {text(statement.value)};")
    return found


def _end(end: str, loop: For, guard: When) -> str:
    """The condition of a loop that ends where a guard says, or at `end`."""
    assert isinstance(guard.condition, Binary)
    test = text(guard.condition)
    return test if guard.condition.right.range.high <= loop.count else f"{end} && {test}"


def _test(condition: Expr) -> str:
    """In parentheses, which comparisons come in."""
    printed = text(condition)
    compared = isinstance(condition, Binary) and condition.op in ("lt", "le", "eq")
    return printed if compared else f"({printed} != 0)"


def _element(array: Array, indices: tuple[Expr, ...]) -> str:
    """An element: of constants by its indices, of a flat array by its place, the last axis fastest."""
    if array.data is not None:
        return array.name + ("".join(f"[{_index(index)}]" for index in indices) or "[0]")
    terms = []
    for axis, index in enumerate(indices):
        stride = math.prod(array.shape[axis + 1 :])
        if isinstance(index, Const):
            terms += [str(index.value * stride)] if index.value else []
        else:
            terms.append(_scaled(_index(index), stride))
    return f"{array.name}[{' + '.join(terms) or '0'}]"


def _index(e: Expr) -> str:
    """An int."""
    return _whole(e) or f"int({text(e)})"


def _whole(e: Expr) -> str | None:
    """What is added up of counters, which are ints already; None for other expressions, and where an int is short."""
    if isinstance(e, (Counter, Const)):
        return text(e) if e.range.bits < 32 else None
    if not isinstance(e, Binary) or e.op not in ("add", "sub", "mul") or e.range.union(_INT) != _INT:
        return None
    left, right = _whole(e.left), _whole(e.right)
    if left is None or right is None:
        return None
    if e.op == "mul":
        return f"{_group(left)} * {_group(right)}"
    return f"{left} {_INFIX[e.op]} {_group(right) if e.op == 'sub' else right}"


def _group(printed: str) -> str:
    return f"({printed})" if " " in printed else printed


def _scaled(printed: str, stride: int) -> str:
    return printed if stride == 1 else f"{_group(printed)} * {stride}"


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
        whole = _whole(e.left), _whole(e.right)
        if all(whole):
            return f"({whole[0]} {_INFIX[e.op]} {whole[1]})"
        kind = type_of(e.left.range.union(e.right.range))
        return f"({kind}({left}) {_INFIX[e.op]} {kind}({right}))"
    # Sums and products of ap_int types are as wide as they have to be.
    kind = type_of(e.range)
    return f"{kind}({_wide(e.left)} {_INFIX[e.op]} {_wide(e.right)})"


def _wide(e: Expr) -> str:
    """Loop counters and numbers as ap_int types, so that no int overflows."""
    printed = text(e)
    return f"{type_of(e.range)}({printed})" if isinstance(e, (Counter, Const)) else printed
