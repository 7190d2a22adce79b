"""Changing a graph in place."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir


def take_place(node: ir.Node, made: Sequence[ir.Node], result: ir.Value | None = None) -> None:
    """Put the nodes `made` where `node` stands; `result` becomes its first output: name, shape, dtype and uses.

    Without `result` it is the first output of the last of `made`.
    """
    old, new = node.outputs[0], made[-1].outputs[0] if result is None else result
    new.name, new.shape, new.type = old.name, old.shape, old.type
    assert node.graph is not None
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], made, [old], [new])


def take_places(nodes: Sequence[ir.Node], made: ir.Node) -> None:
    """Put `made` where the last of `nodes` stands; its outputs become that node's, and all of `nodes` go."""
    last = nodes[-1]
    assert last.graph is not None
    ir.convenience.replace_nodes_and_values(last.graph, last, nodes, [made], last.outputs, made.outputs)


def uses_further_outputs(node: ir.Node) -> bool:
    """Whether anything reads an output of the node besides its first."""
    return any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
