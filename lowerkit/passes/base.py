"""What a method is: a frozen dataclass whose fields are its options and whose docstring is its maths.

A method replaces one canonical node, and what follows it where it says so, by one operator of the `lowerkit`
domain. Its file holds everything about it: source, contract, domain, error bound, function body, numpy model and
cost.
Adding a method is adding a file to a folder of `lowerkit.passes`; `lowerkit.passes.registry` finds it.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from lowerkit.graph.domain import DOMAIN, Function, add_function
from lowerkit.graph.edit import take_place
from lowerkit.graph.weights import initializer
from lowerkit.numerics.statistics import TensorStats

#: What a rewritten node says of itself, in its metadata.
METHOD, REPLACES = "lowerkit.method", "lowerkit.replaces"
#: The method's options and the replaced node's attributes, as JSON.
OPTIONS, ATTRIBUTES = "lowerkit.options", "lowerkit.attributes"


class Contract(str, enum.Enum):
    """What a method promises about the function it puts in place of the original."""

    EXACT = "exact"  # the same function up to rounding
    APPROXIMATE = "approximate"  # a checked bound on the error over a stated domain
    REPLACE = "replace"  # another function; accuracy needs training


class Evidence(str, enum.Enum):
    """How the error bound is known."""

    PROVED = "proved"  # derived in the method's docstring, and tested
    EXHAUSTIVE = "exhaustive"  # evaluated at every float32 of the domain
    SAMPLED = "sampled"  # measured on a dense grid; never used for `exact`


@dataclass(frozen=True)
class Bound:
    """A bound on the method error in real arithmetic: |method(x) - original(x)| <= value.

    `kind` is "absolute", "relative" to |original(x)|, or, for sums of products, relative to "operands": to the
    largest sum that operands of such magnitudes can have, K max|x| max|w|. `domain` states the inputs for which it
    holds.
    """

    value: float
    kind: str
    domain: str
    evidence: Evidence


@dataclass(frozen=True)
class Method(ABC):
    """One way of computing one canonical operator. Subclasses add their options as fields."""

    #: The name users type, e.g. `online`.
    name: ClassVar[str]
    #: The command-line family it is chosen by: `softmax`, `gelu`, `norm`.
    family: ClassVar[str]
    contract: ClassVar[Contract]
    #: Paper or book and section.
    source: ClassVar[str]
    #: Target name -> what one element (or row) costs there, in one line.
    cost: ClassVar[Mapping[str, str]]
    #: Canonical operator -> the operator of the `lowerkit` domain that takes its place, with its body.
    functions: ClassVar[Mapping[str, Function]]
    #: Whether plans name the family's nodes only where the user or the target asks for another method than `keep`.
    on_request: ClassVar[bool] = False

    @classmethod
    def concerns(cls, node: ir.Node) -> bool:
        """Whether a node of one of the family's operators is one that its methods speak of."""
        return True

    @classmethod
    def fit(cls, stats: TensorStats | None, options: Mapping[str, Any]) -> Method:
        """The method with `options`, the others chosen from the calibrated statistics of its input."""
        return cls(**options)

    @classmethod
    def fit_node(cls, node: ir.Node, stats: TensorStats | None, options: Mapping[str, Any]) -> Method:
        """`fit` for one node; methods that need its attributes or operator say so here instead."""
        return cls.fit(stats, options)

    @abstractmethod
    def bound(self) -> Bound | None:
        """The error bound for these options; None for another function (contract `replace`)."""

    def refuses(self, node: ir.Node) -> str | None:
        """Why this method cannot replace `node`, or None."""
        return None

    def spares(self, node: ir.Node) -> str | None:
        """Why `node` is kept, without an error, where the user asks for the method for the whole family; or None.

        Only families that are planned on request have such nodes.
        """
        return None

    def outside(self, stats: TensorStats) -> str | None:
        """Why calibrated inputs leave the domain in which the bound holds, or None."""
        return None

    def outside_node(self, node: ir.Node, stats: TensorStats) -> str | None:
        """`outside` for one node; methods that need its attributes or operator say so here instead."""
        return self.outside(stats)

    def replaced(self, node: ir.Node) -> ir.Node:
        """The node whose outputs the operator's become; a method may take in what follows `node`."""
        return node

    def inputs(self, model: ir.Model, node: ir.Node) -> list[ir.Value | None]:
        """What of the node's inputs the operator takes, before tables and coefficients."""
        return list(node.inputs)

    def constants(self, node: ir.Node) -> dict[str, np.ndarray]:
        """Tables and coefficients: further inputs of the operator, by formal parameter name."""
        return {}

    def attributes(self, node: ir.Node) -> dict[str, int | float]:
        """Attributes of the operator, from the node replaced and the method's options."""
        return {}

    def function(self, node: ir.Node) -> Function:
        """The operator that takes the node's place; methods whose options decide it say so here."""
        return self.functions[node.op_type]

    def restored(self, y: np.ndarray) -> np.ndarray:
        """The original's output from the operator's; they differ where later nodes are changed to undo it."""
        return y

    @abstractmethod
    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """The method in float64 numpy, step by step as hardware would do it; the tests' oracle.

        `x` has any shape; softmax and normalisation methods work on the last axis, which is not empty.
        """

    def rewrite(self, model: ir.Model, node: ir.Node) -> ir.Node:
        """Put the operator in the node's place; output values keep their names. Returns the new node."""
        function = self.function(node)
        add_function(model, function)
        inputs = self.inputs(model, node) + [
            initializer(model.graph, f"{DOMAIN}.{self.name}.{key}", array)
            for key, array in self.constants(node).items()
        ]
        new = ir.node(
            function.name,
            inputs,
            self.attributes(node),
            domain=DOMAIN,
            name=node.name,
            num_outputs=1,
            metadata_props={
                METHOD: self.name,
                REPLACES: node.op_type,
                OPTIONS: json.dumps(dataclasses.asdict(self)),
                ATTRIBUTES: json.dumps({a.name: a.value for a in node.attributes.values()}),
            },
        )
        take_place(node, [new])
        return new
