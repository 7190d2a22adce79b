"""Values within composite operators: they need formats, and so ranges, though the graph does not show them."""

from __future__ import annotations

import onnx_ir as ir

#: Of a MixtureOfExperts: the gate's logits, the experts' hidden layer before and after GELU, and their outputs.
STAGES = ("logits", "hidden", "active", "out")


def stage(node: ir.Node, what: str) -> str:
    """The name of a value within a node."""
    return f"{node.outputs[0].name}/{what}"


def stages_of(node: ir.Node) -> list[str]:
    """The names of a node's stages; none for an operator that is not composite."""
    return [stage(node, what) for what in STAGES] if node.op_type == "MixtureOfExperts" else []


def with_stages(model: ir.Model) -> ir.Model:
    """The model with every composite operator's stages computed beside it; itself where it has none.

    The stages of MixtureOfExperts are those of every expert for every token, chosen or not, so that ranges hold
    whatever the gate does.
    """
    if all(node.op_type != "MixtureOfExperts" for node in model.graph):
        return model
    probed = model.clone()
    for node in list(probed.graph):
        if node.op_type == "MixtureOfExperts":
            probed.graph.insert_before(node, _stages(probed, node))
    return probed


def _stages(model: ir.Model, node: ir.Node) -> list[ir.Node]:
    x, gate, gate_bias, w1, b1, w2, b2 = node.inputs
    assert x is not None
    assert x.dtype is not None
    dtype = x.dtype
    made: list[ir.Node] = []

    def add(what: str, op_type: str, *inputs: ir.Value | None, **attributes: object) -> ir.Value:
        new = ir.node(op_type, inputs, attributes, name=stage(node, what))
        new.outputs[0].name = stage(node, what)
        if what in STAGES:
            new.outputs[0].dtype = dtype
        made.append(new)
        return new.outputs[0]

    axis = ir.Value(name=stage(node, "axis"), const_value=ir.tensor([1], name=stage(node, "axis")))
    model.graph.register_initializer(axis)
    add("logits", "Add", add("gate", "MatMul", x, gate), gate_bias)
    spread = add("spread", "Unsqueeze", x, axis)
    hidden = add("hidden", "Add", add("up", "MatMul", spread, w1), b1)
    approximate = node.attributes.get_string("approximate", "none")
    active = add("active", "Gelu", hidden, approximate=approximate)
    add("out", "Add", add("down", "MatMul", active, w2), b2)
    return made
