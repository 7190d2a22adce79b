"""Mixture of experts, expert by expert: which experts a token has, queues of tokens, experts, and their weighted sum.

Every token has k of E experts. Taken token by token, the weights of k experts would have to be at hand for each token.
Taken expert by expert, each expert's weights are brought once, and serve all tokens in its queue: T k pairs of token
and expert are computed, however unevenly experts are chosen, and experts that nobody chose cost nothing.

Source: Sarkar et al., Edge-MoE (ICCAD 2023), section IV-E, task-level sparsity; the queues are its own, the place for
each pair is not: it lets a token's sum be proven not to overflow, and needs no sum to be read back and written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lowerkit.passes.activation.base import Activation
from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.kernels.contract import Axis, Index, constant_sums, contract
from lowerkit.targets.fpga.kernels.lanes import elements
from lowerkit.targets.fpga.kernels.linear import Scaling
from lowerkit.targets.fpga.kernels.narrow import narrow
from lowerkit.targets.fpga.kernels.reductions import REDUCTIONS, Settings
from lowerkit.targets.fpga.kernels.schedule import Built, built, split
from lowerkit.targets.fpga.kernels.softmax.division import reciprocal
from lowerkit.targets.fpga.kernels.softmax.exponentials import exact_method, exponentials, with_output
from lowerkit.targets.fpga.lang.expr import Array, Expr, Operand, Range, Select, Var, clamp, minimum
from lowerkit.targets.fpga.lang.program import Builder

#: Segments of the table of GELU, as an exponent of 2.
SEGMENTS = 8


def top_k(k: Builder, codes: Array, row: Operand, count: int) -> list[Var]:
    """The places of the `count` largest of a row's codes [rows, n], the largest first; of equals the first.

    That is the order of ONNX TopK. Each code moves those that it exceeds one place down.
    """
    n = codes.shape[1]
    # Below every code, so that the first ones find a place.
    none = codes.range.low - 1
    values = [k.register(f"value{j}", none, Range(none, codes.range.high)) for j in range(count)]
    places = [k.register(f"place{j}", 0, Range(0, n - 1)) for j in range(count)]
    with k.loop("rank", n, serial=True, pipeline=True) as i:
        code = k.let("code", codes[row, i])
        beats = [k.let(f"beats{j}", value < code) for j, value in enumerate(values)]
        # From the last to the first, as each takes what the one before it had.
        for j in reversed(range(1, count)):
            for registers, new in ((values, code), (places, i)):
                moved = Select(beats[j - 1], registers[j - 1], new)
                k.update(registers[j], Select(beats[j], moved, registers[j]))
        k.update(values[0], Select(beats[0], code, values[0]))
        k.update(places[0], Select(beats[0], i, places[0]))
    return places


def gate(
    name: str, tokens: int, experts: int, count: int, source: Fixed, share: Fixed, normalise: bool
) -> Built:
    """logits [T, E], codes of `source`, to expert [T, k], whole numbers, and share [T, k], codes of `share`.

    The shares are softmax over all experts, or, if `normalise`, over the k chosen ones; exponentials and division are
    those of the softmax kernel `fixed`.
    """
    method = exact_method(experts, source, share.fraction)
    one = with_output(method, share)
    over = "the chosen ones" if normalise else "all experts"
    k = Builder(name, f"The {count} best of {experts} experts for each token, with softmax over {over}.")
    logits = k.input("logits", (tokens, experts), source.range)
    chosen = k.output("expert", (tokens, count), Range(0, experts - 1))
    shares = k.output("share", (tokens, count), share.range)
    with k.loop("token", tokens) as token:
        e, total = exponentials(k, logits, token, source, method)
        places = top_k(k, logits, token, count)
        powers = [k.let(f"power{j}", e[place]) for j, place in enumerate(places)]
        if normalise:
            sums = powers[0]
            for j, power in enumerate(powers[1:], 1):
                sums = k.let(f"sum{j}", sums + power)
        else:
            sums = total
        # The largest exponential, 1, is among both.
        inverse = reciprocal(k, sums, method.table_bits, method.reciprocal_bits)
        for j, (place, power) in enumerate(zip(places, powers, strict=True)):
            k.store(chosen, (token, j), place)
            k.store(shares, (token, j), minimum(inverse.times(power, method.output_bits), one))
    return built(k.finish(), tokens)


def queues(name: str, tokens: int, experts: int, count: int) -> Built:
    """expert [T, k] to each expert's queue: token [E, T] and rank [E, T], of which the first length [E] count.

    A token's experts differ, so that a queue has at most T entries; `rank` says which of the token's k experts it is.
    """
    k = Builder(name, f"For each of {experts} experts, the tokens that chose it, in order.")
    chosen = k.input("expert", (tokens, count), Range(0, experts - 1))
    token_of = k.output("token", (experts, tokens), Range(0, tokens - 1))
    rank_of = k.output("rank", (experts, tokens), Range(0, count - 1))
    length = k.output("length", (experts,), Range(0, tokens))
    with k.loop("clear", experts, pipeline=True) as e:
        k.store(length, e, 0)
    with k.loop("t", tokens, serial=True) as t, k.loop("j", count, serial=True, pipeline=True) as j:
        e = k.let("e", chosen[t, j])
        slot = k.let("slot", length[e], Range(0, tokens - 1))
        k.store(token_of, (e, slot), t)
        k.store(rank_of, (e, slot), j)
        k.store(length, e, slot + 1)
    return built(k.finish(), tokens)


@dataclass(frozen=True)
class Products:
    """A linear layer of every expert.

    Attributes:
        weights: codes [E, inner, columns].
        formats: of the weights, for each expert and column: E times columns of them.
        bias: whole numbers [E, columns] at the precision of the products.
    """

    weights: np.ndarray
    formats: Sequence[Fixed]
    bias: np.ndarray

    def sums(self, x: Fixed) -> Range:
        """The range of any expert's sums."""
        found = [constant_sums(w, x.range, b) for w, b in zip(self.weights, self.bias, strict=True)]
        return Range(min(r.low for r in found), max(r.high for r in found))


@dataclass(frozen=True)
class Formats:
    """Of tokens, of the hidden layer before and after GELU, and of what experts give."""

    x: Fixed
    hidden: Fixed
    active: Fixed
    out: Fixed


def experts(
    name: str,
    tokens: int,
    count: int,
    up: Products,
    down: Products,
    formats: Formats,
    gelu: Activation,
    *,
    variant: int = 0,
    reuse: tuple[int, int] = (1, 1),
    port: int = 1,
) -> Built:
    """out [T k, d] = GELU(x W1 + b1) W2 + b2 for each pair of a token and one of its experts, expert by expert.

    Args:
        up, down: [E, d, h] and [E, h, d].
        gelu: the activation, `variant` 1 for its tanh form, by an interpolated table.
        reuse: how often each multiplier is used for a row, of either layer.
        port: weights that are brought each cycle, a divisor of h and d.

    Reads x [T, d] and the queues. Pairs that are in no queue, of which `queues` leaves none, are not written.
    """
    size, inner, hidden = up.weights.shape
    k = Builder(name, f"{size} experts of {inner} - {hidden} - {inner}, each with the tokens of its queue.")
    x = k.input("x", (tokens, inner), formats.x.range)
    token_of = k.input("token", (size, tokens), Range(0, tokens - 1))
    rank_of = k.input("rank", (size, tokens), Range(0, count - 1))
    length = k.input("length", (size,), Range(0, tokens))
    out = k.output("out", (tokens * count, inner), formats.out.range)
    first = _Layer(k, "up", up, formats.x, formats.hidden)
    second = _Layer(k, "down", down, formats.active, formats.out)
    settings = Settings(gelu, variant, formats.hidden, formats.active, SEGMENTS, True)
    with k.loop("expert", size, serial=True, label="each_expert") as e:
        queue = k.let("queue", length[e])
        with k.when(queue > 0):
            for layer in (first, second):
                layer.load(e, port)
            with k.loop("slot", tokens) as slot, k.when(slot < queue, most=tokens * count):
                active = k.local("active", (hidden,), formats.active.range)
                token = k.let("from", token_of[e, slot])
                pair = k.let("pair", token * count + rank_of[e, slot])

                def activate(column: Index, code: Expr) -> None:
                    found = REDUCTIONS[type(gelu.form)](k, k.let("before", code), settings).value
                    k.store(active, column, clamp(found, formats.active.range.low, formats.active.range.high))

                first.apply(e, lambda i: x[(token, *i)], activate, reuse[0])
                second.apply(
                    e, lambda i: active[i], lambda column, code: k.store(out, (pair, *column), code), reuse[1]
                )
    return built(k.finish(), tokens)


class _Layer:
    """One linear layer of the expert whose turn it is."""

    def __init__(self, k: Builder, name: str, products: Products, x: Fixed, y: Fixed) -> None:
        size, inner, columns = products.weights.shape
        self.k, self.name, self.sizes = k, name, (inner, columns)
        self.sums = products.sums(x)
        self.far = k.constant(Array.constant(f"{k.name}_{name}_w", products.weights))
        flat = products.weights.transpose(0, 2, 1).reshape(size * columns, inner)
        self.scaling = Scaling(
            k,
            size * columns,
            x,
            products.formats,
            flat,
            y,
            products.bias.ravel(),
            None,
            "half-even",
            f"{name}_",
        )

    def load(self, e: Var, port: int) -> None:
        """Bring the expert's weights, `port` each cycle."""
        self.near = self.k.local(f"{self.name}_near", self.sizes, self.far.range)
        with elements(self.k, self.sizes, port, f"{self.name}_load") as place:
            self.k.store(self.near, place, self.far[(e, *place)])

    def apply(
        self, e: Var, x: Callable[[Index], Expr], finish: Callable[[Index, Expr], None], reuse: int
    ) -> None:
        """Give `finish` every column's code for the row that `x` reads."""
        inner, columns = self.sizes
        over_columns, over_inner = split(reuse, (columns, inner))
        contract(
            self.k,
            [],
            [Axis(f"{self.name}_i", inner, over_inner)],
            [Axis(f"{self.name}_c", columns, over_columns)],
            sums=self.sums,
            initial=lambda column: self.scaling.initial(e * columns + column[0]),
            term=lambda _, i, column: x(i) * self.near[(*i, *column)],
            finish=lambda _, column, total: finish(
                column, self.scaling.finish(e * columns + column[0], total)
            ),
            prefix=f"{self.name}_",
        )


def combine(name: str, tokens: int, count: int, width: int, out: Fixed, share: Fixed, y: Fixed) -> Built:
    """y [T, d] = the sum over a token's experts of share [T, k] out [T k, d], rounded once."""
    k = Builder(name, f"Each token's {count} experts by their shares.")
    outs = k.input("out", (tokens * count, width), out.range)
    shares = k.input("share", (tokens, count), share.range)
    target = k.output("y", (tokens, width), y.range)
    with k.loop("token", tokens) as token, k.loop("c", width, pipeline=True) as c:
        total: Expr = shares[token, 0] * outs[token * count, c]
        for j in range(1, count):
            total = total + shares[token, j] * outs[token * count + j, c]
        k.store(target, (token, c), narrow(k.let("total", total), out.fraction + share.fraction, y))
    return built(k.finish(), tokens)
