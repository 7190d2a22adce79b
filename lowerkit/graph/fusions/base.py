"""What a fusion is: it reads one formula off a graph and names it.

A fusion replaces only the node it is rooted at. What it has read through stays where something else uses it,
and goes with the dead code where nothing does, so that a fusion is right whoever else looks at the
intermediate values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import onnx_ir as ir
from onnxscript import OnnxFunction

from lowerkit.graph.domain import DOMAIN, add_function
from lowerkit.graph.edit import take_place
from lowerkit.graph.fusions.algebra import Formula, shape_of


@dataclass(frozen=True)
class Found:
    """The operator that a formula turned out to be.

    Attributes:
        before: nodes to insert before the operator, e.g. the transpose of an input.
        function: the body of the operator, when it is one of the domain `lowerkit`.
    """

    op_type: str
    inputs: Sequence[ir.Value | None]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    before: Sequence[ir.Node] = ()
    function: OnnxFunction | None = None


@dataclass(frozen=True)
class Fusion(ABC):
    """Valid before and after: any graph with inferred shapes. Values keep names, shapes and dtypes."""

    name: ClassVar[str]
    #: Operators that a match can be rooted at, the last ones of the formula.
    roots: ClassVar[frozenset[str]]
    #: Whether the operator's output has the shape of its first input; a match where it has not is refused.
    keeps_shape: ClassVar[bool] = True

    @abstractmethod
    def match(self, root: ir.Node, formula: Formula) -> Found | None:
        """What `root` computes, read through `formula`; None when it is something else."""

    def __call__(self, model: ir.Model) -> int:
        """Name every match in `model`, in place; the number of matches."""
        count = 0
        for node in list(model.graph.all_nodes()):
            if node.domain != "" or node.op_type not in self.roots:
                continue
            formula = Formula({node: None})
            found = self.match(node, formula)
            if found is None:
                continue
            if self.keeps_shape and shape_of(found.inputs[0]) != shape_of(node.outputs[0]):
                continue
            _replace(model, node, found, formula)
            count += 1
        return count


def _replace(model: ir.Model, root: ir.Node, found: Found, formula: Formula) -> None:
    if found.function is not None:
        add_function(model, found.function)
    spelled = [n.metadata_props.get("lowerkit.spelled", n.op_type) for n in _in_order(formula)]
    node = ir.node(
        found.op_type,
        found.inputs,
        dict(found.attributes),
        domain=DOMAIN if found.function is not None else "",
        name=root.name,
        metadata_props={"lowerkit.spelled": ", ".join(spelled)},
    )
    take_place(root, [*found.before, node])


def _in_order(formula: Formula) -> list[ir.Node]:
    """The nodes of a formula from its inputs to its root; they were read the other way round."""
    return list(reversed(formula.nodes))
