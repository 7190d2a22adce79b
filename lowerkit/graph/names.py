"""Unique node names: plans, reports and messages speak of nodes by name."""

from __future__ import annotations

import onnx_ir as ir


def name_nodes(model: ir.Model) -> None:
    """Give every node a unique, non-empty name, in place.

    Given names stay (of several equal ones, the first's); an unnamed node becomes `Op_<index>`, its index
    in graph order, subgraphs included. The names depend on nothing but the graph.
    """
    nodes = list(model.graph.all_nodes())
    taken = {node.name for node in nodes if node.name}
    seen: set[str] = set()
    for index, node in enumerate(nodes):
        name = node.name
        if not name or name in seen:
            stem = f"{name}_{index}" if name else f"{node.op_type}_{index}"
            name, suffix = stem, 0
            while name in taken:
                suffix += 1
                name = f"{stem}_{suffix}"
            node.name = name
            taken.add(name)
        seen.add(name)
