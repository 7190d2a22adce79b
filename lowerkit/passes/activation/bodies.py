"""Function bodies of activation methods, as ONNX text put together from two parts.

A *form* takes the operator's input X to `s`, a number from 0 to `width`, and a core's value `v` to the output Y. A
*core* computes `v` from `s`. Every method is one core, every function one form.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import onnx
import onnx.parser

from lowerkit.graph.domain import DOMAIN, OPSET


@dataclass(frozen=True)
class Body:
    """A function of the domain `lowerkit`, given as ONNX text.

    Attributes:
        name: the operator.
        inputs: formal parameters, X first.
        attributes: name = default value, comma separated.
        text: the nodes, one a line.
    """

    name: str
    inputs: tuple[str, ...]
    attributes: str
    text: str

    def to_function_proto(self) -> onnx.FunctionProto:
        """As ONNX has it."""
        return _parsed(self)


@functools.cache
def _parsed(body: Body) -> onnx.FunctionProto:
    attributes = f"<{body.attributes}>" if body.attributes else ""
    return onnx.parser.parse_function(
        f'<opset_import: ["" : {OPSET}], domain: "{DOMAIN}">\n'
        f"{body.name} {attributes} ({', '.join(body.inputs)}) => (Y) {{\n{body.text}\n}}"
    )


def number(name: str, value: float) -> str:
    """A scalar float32 constant."""
    return f"{name} = Constant <value = float {{{value!r}}}> ()"


def integer(name: str, value: int) -> str:
    """A scalar int64 constant."""
    return f"{name} = Constant <value = int64 {{{value}}}> ()"


def from_attribute(name: str, attribute: str) -> str:
    """A scalar float32 constant that is an attribute of the node."""
    return f"{name} = Constant <value_float: float = @{attribute}> ()"


def lines(*parts: str) -> str:
    """Parts, each of one or more lines, as one text."""
    return "\n".join(part.strip() for part in parts)


def coefficients(prefix: str, array: str, count: int) -> str:
    """Scalars prefix0 to prefix{count - 1}, the elements of a vector."""
    return lines(
        *(
            lines(integer(f"{prefix}{k}_at", k), f"{prefix}{k} = Gather ({array}, {prefix}{k}_at)")
            for k in range(count)
        )
    )


def horner(prefix: str, x: str, count: int, result: str) -> str:
    """prefix0 x^(count - 1) + ... + prefix{count - 1}."""
    steps, value = [], f"{prefix}0"
    for k in range(1, count):
        following = result if k == count - 1 else f"{result}_{k}"
        steps.append(f"{result}_times{k} = Mul ({value}, {x})")
        steps.append(f"{following} = Add ({result}_times{k}, {prefix}{k})")
        value = following
    return lines(*steps)


#: The floor of a position in a table, between 0 and `last`, and the part that is left.
_POSITION = """
zero_i = Constant <value = int64 {0}> ()
one_i = Constant <value = int64 {1}> ()
count = Size (table)
segments = Sub (count, one_i)
segments_f = Cast <to = 1> (segments)
scale = Div (segments_f, width)
position = Mul (s, scale)
"""

LINEAR_TABLE = lines(
    _POSITION,
    """
whole = Floor (position)
whole_i = Cast <to = 7> (whole)
last = Sub (segments, one_i)
at_most = Min (whole_i, last)
index = Max (at_most, zero_i)
left = Gather (table, index)
after = Add (index, one_i)
right = Gather (table, after)
step = Sub (right, left)
index_f = Cast <to = 1> (index)
fraction = Sub (position, index_f)
rise = Mul (fraction, step)
v = Add (left, rise)
""",
)

NEAREST_TABLE = lines(
    _POSITION,
    """
nearest = Round (position)
nearest_i = Cast <to = 7> (nearest)
at_most = Min (nearest_i, segments)
index = Max (at_most, zero_i)
entry = Gather (table, index)
""",
    # A NaN has an index too.
    "nothing = Sub (position, position)",
    "v = Add (entry, nothing)",
)

PIECEWISE_LINEAR = """
end_i = Constant <value = int64[1] {-1}> ()
column = Unsqueeze (s, end_i)
reached = GreaterOrEqual (column, breakpoints)
reached_i = Cast <to = 7> (reached)
index = ReduceSum <keepdims = 0> (reached_i, end_i)
slope = Gather (slopes, index)
intercept = Gather (intercepts, index)
product = Mul (slope, s)
v = Add (product, intercept)
"""


def polynomial(terms: int) -> str:
    """p(t), t = 2 s / width - 1, with `terms` coefficients, highest power first."""
    return lines(
        number("two_t", 2.0),
        number("one_t", 1.0),
        "stretch = Div (two_t, width)",
        "stretched = Mul (s, stretch)",
        "t = Sub (stretched, one_t)",
        coefficients("c", "coefficients", terms),
        horner("c", "t", terms, "v"),
    )


def rational(top: int, bottom: int) -> str:
    """P(w) / (1 + |Q(w)|), w = s / width; coefficients highest power first, Q's last of power 1."""
    return lines(
        number("one_w", 1.0),
        "shrink = Div (one_w, width)",
        "w = Mul (s, shrink)",
        coefficients("p", "numerator", top),
        coefficients("q", "denominator", bottom),
        horner("p", "w", top, "above"),
        horner("q", "w", bottom, "inner"),
        "below_signed = Mul (inner, w)",
        "below_size = Abs (below_signed)",
        "below = Add (below_size, one_w)",
        "v = Div (above, below)",
    )
