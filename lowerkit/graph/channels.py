"""Scaling and shifting the channels of a value, when the products that read it can take that back."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from lowerkit.graph.domain import describe_node
from lowerkit.graph.edit import take_place
from lowerkit.graph.fusions.algebra import constant
from lowerkit.graph.shapes import static_shape
from lowerkit.graph.weights import initializer


@dataclass
class Readers:
    """What reads the channels, the last axis, of a value.

    Attributes:
        products: MatMul and Gemm by a constant matrix.
        carriers: operators before them that move or average whole channels, and so commute with scale and shift.
        refusal: the first use that is neither, as the end of "needs its output ...", or None.
    """

    products: list[ir.Node] = field(default_factory=list)
    carriers: list[ir.Node] = field(default_factory=list)
    refusal: str | None = None


def channel_readers(value: ir.Value) -> Readers:
    """The readers of `value`, which a node computes."""
    readers, producer, waiting = Readers(), value.producer(), [value]
    graph = producer.graph if producer is not None else None
    while waiting and readers.refusal is None:
        value = waiting.pop(0)
        if value.is_graph_output():
            readers.refusal = f"inside the graph, and '{value.name}' is an output of it"
        for node, index in value.uses():
            if node.graph is graph and index == 0 and _is_product(node):
                readers.products.append(node)
            elif node.graph is graph and index == 0 and _is_carrier(node):
                readers.carriers.append(node)
                waiting.append(node.outputs[0])
            else:
                readers.refusal = readers.refusal or (
                    f"to be the first operand of products with a constant matrix, not to go to {describe_node(node)}"
                )
    return readers


def carried_from(value: ir.Value) -> ir.Node | None:
    """The node that computed the channels of `value`, which carriers may have moved since; None for inputs."""
    producer = value.producer()
    while producer is not None and producer.inputs and _is_carrier(producer):
        source = producer.inputs[0]
        producer = source.producer() if source is not None else None
    return producer


def undo_in_products(readers: Readers, factor: np.ndarray, offset: np.ndarray) -> None:
    """Make the products give for (Y + offset) / factor, which is read from now on, what they gave for Y.

    Y W + b is (Y + offset) / factor (factor W) + (b - offset W). b is the C of a Gemm, or the constant of an
    Add that alone reads a MatMul; without either an Add follows. Weights are written anew, so that others who
    use them keep theirs. Values that change lose their names: those of the carriers, and a product whose
    b stands in an Add.
    """
    for node in readers.carriers:
        _rename(node.outputs[0], "scaled")
    for node in readers.products:
        name, old = node.outputs[0].name, [v for v in node.inputs[1:] if v is not None]
        scaled, shift = _undone(node, factor, offset)
        node.replace_input_with(1, _initializer(node, f"{name}/weight", scaled))
        if offset.any():
            _add(node, shift.astype(scaled.dtype), name or "")
        drop_unused(old)


def drop_unused(values: list[ir.Value]) -> None:
    """Remove those of `values` that are initializers which nothing reads any more."""
    for value in values:
        graph = value.graph
        if value.is_initializer() and graph is not None and not value.uses() and not value.is_graph_output():
            graph.initializers.pop(value.name or "")


def _undone(node: ir.Node, factor: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The new weight, and what to add to the product."""
    weight = constant(node.inputs[1])
    assert weight is not None
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0
    matrix = weight.astype(np.float64)
    matrix = matrix.T if transposed else matrix
    scaled = factor[:, None] * matrix
    alpha = node.attributes.get_float("alpha", 1.0) if node.op_type == "Gemm" else 1.0
    return (scaled.T if transposed else scaled).astype(weight.dtype), -alpha * (offset @ matrix)


def _add(node: ir.Node, shift: np.ndarray, name: str) -> None:
    """Add `shift` to what the product gives in the end."""
    if node.op_type == "Gemm":
        addend = node.inputs[2] if len(node.inputs) > 2 else None
        known = constant(addend)
        if addend is None or known is not None:
            beta = node.attributes.get_float("beta", 1.0)
            total = shift if known is None else _sum(beta * known.astype(np.float64), shift)
            node.resize_inputs(3)
            node.replace_input_with(2, _initializer(node, f"{name}/bias", total))
            node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
            return
    following = _addition(node)
    if following is not None:
        index = next(i for i, value in enumerate(following.inputs) if constant(value) is not None)
        old = following.inputs[index]
        known = constant(old)
        assert old is not None
        assert known is not None
        bias = _initializer(following, f"{following.outputs[0].name}/bias", _sum(known, shift))
        following.replace_input_with(index, bias)
        _rename(node.outputs[0], "product")
        drop_unused([old])
        return
    product = ir.node(node.op_type, list(node.inputs), dict(node.attributes), name=node.name)
    output, before = product.outputs[0], node.outputs[0]
    output.name, output.shape, output.type = f"{name}/product", before.shape, before.type
    bias = _initializer(node, f"{name}/bias", shift)
    take_place(node, [product, ir.node("Add", [output, bias], name=f"{name}/bias")])


def _addition(node: ir.Node) -> ir.Node | None:
    """The Add of a constant that alone reads what `node` gives."""
    output = node.outputs[0]
    users = [user for user, _ in output.uses()]
    if len(users) != 1 or output.is_graph_output() or users[0].graph is not node.graph:
        return None
    (user,) = users
    is_addition = user.domain == "" and user.op_type == "Add"
    return user if is_addition and any(constant(value) is not None for value in user.inputs) else None


def _is_product(node: ir.Node) -> bool:
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm"):
        return False
    weight = constant(node.inputs[1])
    return weight is not None and weight.ndim == 2 and node.attributes.get_int("transA", 0) == 0


def _is_carrier(node: ir.Node) -> bool:
    """Whether every channel of the result comes from that channel of the operand alone, and all by one mean."""
    before, after = static_shape(node.inputs[0]), static_shape(node.outputs[0])
    if node.domain != "" or before is None or after is None:
        return False
    last = len(before) - 1
    match node.op_type:
        case "Flatten" | "Reshape" | "Squeeze" | "Unsqueeze":
            # The order of elements stays, so that an element's place modulo the last size does.
            return before[-1:] == after[-1:]
        case "Gather":
            return node.attributes.get_int("axis", 0) % len(before) != last
        case "ReduceMean":
            axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
            return axes is not None and axes.size > 0 and last not in {int(a) % len(before) for a in axes}
        case "Transpose":
            order = node.attributes.get_ints("perm", ())
            return len(order) > 0 and order[-1] == last
    return False


def _sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    result: np.ndarray = (a.astype(np.float64) + b).astype(b.dtype)
    return result


def _initializer(node: ir.Node, name: str, array: np.ndarray) -> ir.Value:
    assert isinstance(node.graph, ir.Graph)
    return initializer(node.graph, name, array)


def _rename(value: ir.Value, what: str) -> None:
    """Another quantity has another name, or validation would compare the two."""
    value.name = f"{value.name}/{what}"
