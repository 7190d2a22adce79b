"""Online softmax and the choice of its largest weights, in one pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import OnnxFunction, script

from lowerkit.graph.domain import DOMAIN, LOWERKIT, add_function, op
from lowerkit.graph.edit import take_places
from lowerkit.graph.shapes import static_shape
from lowerkit.passes.base import Bound, Contract, Evidence
from lowerkit.passes.softmax.base import SoftmaxMethod


@script(LOWERKIT, default_opset=op)
def OnlineSoftmaxTopK(X, axis: int = -1, k: int = 1):  # type: ignore[no-untyped-def]
    """The k largest of exp(x - max) / sum exp(x - max), and where they are: those of x."""
    axes = op.Unsqueeze(op.Constant(value_int=axis), op.Constant(value_ints=[0]))
    count = op.Unsqueeze(op.Constant(value_int=k), op.Constant(value_ints=[0]))
    top = op.ReduceMax(X, axes)
    total = op.ReduceSum(op.Exp(X - top), axes)
    # Softmax makes such a row NaN throughout, and TopK has an order of its own for that.
    logits, Indices = op.TopK(op.Where(op.IsNaN(total), total, X), count, axis=axis)
    Values = op.Exp(logits - top) / total
    return Values, Indices


@dataclass(frozen=True)
class OnlineTopK(SoftmaxMethod):
    """Softmax and the TopK of its output at once: maximum, sum and the k largest logits in one pass over the row.

    Beside the maximum m and the sum d of online softmax, the k largest logits so far u_1 >= ... >= u_k are kept
    with their indices p_1, ..., p_k; an element x_j enters after the last u that is not smaller:

        m' = max(m, x_j)
        d' = d exp(m - m') + exp(x_j - m')
        u', p' = the first k of u with x_j inserted, and of p with j

    after which the values are exp(u_i - m) / d and the indices p. Softmax is increasing in the logit, so in real
    arithmetic the k largest weights are those of the k largest logits, and equal weights are those of equal
    logits, of which TopK takes the lower index first, as insertion does. The row is read once and its softmax is
    never written.

    In floating point different logits may round to one weight, in particular to 0. TopK of the weights then
    goes by the index, this by the logits: values are the same up to rounding, and indices differ within such
    ties alone. Rows with NaN or +inf, and of -inf alone, give NaN as Softmax does; which indices come with it is the
    TopK's own matter, in onnxruntime the same as before.

    The plan names the Softmax node. Its output must be used by one TopK along its axis and by nothing else; the
    operator takes the places of both.
    """

    name: ClassVar[str] = "online-topk"
    contract: ClassVar[Contract] = Contract.EXACT
    source: ClassVar[str] = (
        "Milakov and Gimelshein, Online normalizer calculation for softmax (2018), section 4, Alg. 4"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "1 exponential per element and k quotients; the choice of the k largest is a pass of its own",
        "gpu": "1 pass over memory instead of 5; k logits and indices per thread, merged at the end",
        "fpga": "a chain of k comparators beside the online normaliser, II 1 per element; no row buffer",
        "he": "not applicable: needs comparisons",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {"Softmax": OnlineSoftmaxTopK}

    def bound(self) -> Bound:
        """Zero: equal in real arithmetic."""
        return Bound(0.0, "absolute", "every finite row, and -inf elements", Evidence.PROVED)

    def refuses(self, node: ir.Node) -> str | None:
        """A Softmax whose output is not for one TopK alone, or for another kind of TopK."""
        output = node.outputs[0]
        uses = list(output.uses())
        if output.is_graph_output() or len(uses) != 1:
            return "needs the output to be used by one TopK and nothing else"
        user, index = uses[0].node, uses[0].idx
        if (user.domain, user.op_type, index) != ("", "TopK", 0) or user.graph is not node.graph:
            return f"needs the output to be used by a TopK, not by {user.op_type}"
        for name, wanted in (("largest", 1), ("sorted", 1)):
            if user.attributes.get_int(name, 1) != wanted:
                return f"needs a TopK with {name}=1"
        shape = static_shape(node.inputs[0])
        if shape is None:
            return "needs a static shape"
        axes = [n.attributes.get_int("axis", -1) % len(shape) for n in (node, user)]
        if axes[0] != axes[1]:
            return f"needs a TopK along its own axis, {axes[0]}, not {axes[1]}"
        count = _count(user)
        if count is None:
            return "needs a TopK with a constant k"
        return None if 1 <= count <= shape[axes[0]] else f"needs a k from 1 to {shape[axes[0]]}, not {count}"

    def attributes(self, node: ir.Node) -> dict[str, int | float]:
        """`axis`, and `k` of the TopK."""
        return {**super().attributes(node), "k": _count(self.replaced(node)) or 1}

    def replaced(self, node: ir.Node) -> ir.Node:
        """The TopK."""
        (use,) = node.outputs[0].uses()
        return use.node

    def rewrite(self, model: ir.Model, node: ir.Node) -> ir.Node:
        """Put the operator, with the name of the Softmax, in the place of both; the TopK's outputs keep their names."""
        function, last = self.functions[node.op_type], self.replaced(node)
        add_function(model, function)
        new = ir.node(
            function.name,
            self.inputs(model, node),
            self.attributes(node),
            domain=DOMAIN,
            name=node.name,
            num_outputs=2,
            metadata_props={"lowerkit.method": self.name, "lowerkit.replaces": "Softmax, TopK"},
        )
        take_places([node, last], new)
        return new

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`: the values, of all elements where no `k` is given."""
        k = attributes["k"] if "k" in attributes else np.shape(x)[-1]
        return self.select(x, k)[0]

    def select(self, x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The values and the indices, by the recurrence."""
        x = np.asarray(x, np.float64)
        rows = [_row(row, k) for row in x.reshape(-1, x.shape[-1])]
        shape = (*x.shape[:-1], k)
        values = np.array([values for values, _ in rows], np.float64).reshape(shape)
        return values, np.array([indices for _, indices in rows], np.int64).reshape(shape)


def _count(node: ir.Node) -> int | None:
    """The constant k of a TopK."""
    k = node.inputs[1] if len(node.inputs) > 1 else None
    tensor = ir.convenience.get_const_tensor(k) if k is not None else None
    return int(tensor.numpy().item()) if tensor is not None else None


def _row(row: np.ndarray, k: int) -> tuple[np.ndarray, list[int]]:
    maximum, total = -np.inf, 0.0
    kept: list[tuple[float, int]] = []
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        for j, x in enumerate(row):
            larger = np.maximum(maximum, x)
            rescaled = 0.0 if maximum == -np.inf else total * np.exp(maximum - larger)
            maximum, total = larger, rescaled + (0.0 if x == -np.inf else np.exp(x - larger))
            at = next((i for i, (logit, _) in enumerate(kept) if x > logit), len(kept))
            kept = [*kept[:at], (float(x), j), *kept[at:]][:k]
        logits = np.array([logit for logit, _ in kept])
        return np.exp(logits - maximum) / total, [index for _, index in kept]
