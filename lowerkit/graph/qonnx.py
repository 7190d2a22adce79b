"""The operators of QONNX, quantisation to any width, with their meaning as functions in standard operators.

Source: Pappalardo et al., QONNX: Representing Arbitrary-Precision Quantized Neural Networks (2022), section IV.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from lowerkit.errors import ModelError

DOMAIN = "qonnx.custom_op.general"
#: Other names that exporters give the domain.
ALIASES = frozenset({"onnx.brevitas", "finn.custom_op.general"})
OPERATORS = frozenset({"Quant", "BipolarQuant"})

_BODIES = {
    "Quant": """
<opset_import: ["" : 23], domain: "qonnx.custom_op.general">
Quant <signed: int = 1, narrow: int = 0, rounding_mode: string = "ROUND"> (x, scale, zeropt, bitwidth) => (y)
{
    s = Constant <value_int: int = @signed> ()
    sign = CastLike(s, x)
    n = Constant <value_int: int = @narrow> ()
    narrower = CastLike(n, x)
    one = Constant <value = float {1.0}> ()
    two = Constant <value = float {2.0}> ()
    bits = CastLike(bitwidth, x)
    counted = Sub(bits, sign)
    full = Pow(two, counted)
    unsigned = Sub(one, sign)
    lost = Mul(unsigned, narrower)
    largest = Sub(full, one)
    most = Sub(largest, lost)
    negative = Neg(full)
    first = Add(negative, narrower)
    least = Mul(sign, first)
    quotient = Div(x, scale)
    moved = Add(quotient, zeropt)
    below = Min(moved, most)
    held = Max(below, least)
    code = Round(held)
    back = Sub(code, zeropt)
    y = Mul(back, scale)
}
""",
    "BipolarQuant": """
<opset_import: ["" : 23], domain: "qonnx.custom_op.general">
BipolarQuant (x, scale) => (y)
{
    zero = Constant <value = float {0.0}> ()
    below = Less(x, zero)
    negative = Neg(scale)
    y = Where(below, negative, scale)
}
""",
}


def define(model: ir.Model) -> None:
    """Give `model` the functions of the operators that it uses, at its own opset; does nothing without any."""
    used = {node.op_type for node in model.graph.all_nodes() if node.domain == DOMAIN}
    for name in sorted(used & OPERATORS):
        function = ir.serde.deserialize_function(onnx.parser.parse_function(_BODIES[name]))
        function.opset_imports[""] = model.opset_imports[""]
        model.functions[function.identifier()] = function
    if used:
        model.opset_imports[DOMAIN] = 1


def forget(model: ir.Model) -> None:
    """Take the functions away again, for what would inline them."""
    for identifier in [i for i in model.functions if i[0] == DOMAIN]:
        del model.functions[identifier]


def check_node(node: onnx.NodeProto, where: str) -> None:
    """Raises ModelError for what has no meaning here."""
    if node.op_type not in OPERATORS:
        raise ModelError(
            f"no meaning is known for {node.op_type} of QONNX",
            node=where,
            hint="Quant and BipolarQuant have one",
        )
    mode = next((a.s.decode() for a in node.attribute if a.name == "rounding_mode"), "ROUND")
    if mode.upper() not in ("ROUND", "HALF_EVEN"):
        raise ModelError(
            f"rounding mode {mode} of QONNX is not understood", node=where, hint="ROUND, half to even, is"
        )
