"""Polynomials of what a product gives, evaluated in parallel.

Horner's scheme is one chain of sums, each of which waits for the one before; behind a product there is little else to
do meanwhile. Estrin's scheme adds neighbours in pairs, then pairs of those times x², and so on: as many steps as the
logarithm of the degree, and rounding errors that are no larger, since each term goes through fewer roundings.
(Muller, Elementary Functions, 3rd edition, 2016, section 5.3.)
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.ir import Expr
from tvm_ffi import StructuralMutator, structural_equal, structural_mutate

#: Products from which a chain is worth it.
_LONG = 5


def in_parallel(value: Expr) -> Expr:
    """`value` with every long chain (.. (c0 x + c1) x ..) x + cn in Estrin's scheme."""

    def rewrite(node: tirx.Add, mutator: StructuralMutator) -> Expr:
        x, coefficients = _chain(node)
        if x is None or len(coefficients) <= _LONG:
            return mutator.default_mutate(node)
        return _estrin(coefficients[::-1], x)

    return structural_mutate(value, [(tirx.Add, rewrite)])


def _chain(node: Expr) -> tuple[Expr | None, list[Expr]]:
    """x and the coefficients, highest power first; no x where `node` is no chain of numbers."""
    x: Expr | None = None
    coefficients: list[Expr] = []
    while isinstance(node, tirx.Add) and isinstance(node.a, tirx.Mul) and isinstance(node.b, tirx.FloatImm):
        if x is not None and not structural_equal(node.a.b, x):
            break
        x = node.a.b
        coefficients.append(node.b)
        node = node.a.a
    return x, [*coefficients, node][::-1]


def _estrin(coefficients: Sequence[Expr], x: Expr) -> Expr:
    """The polynomial with `coefficients`, lowest power first."""
    if len(coefficients) == 1:
        return coefficients[0]
    pairs = [coefficients[i + 1] * x + coefficients[i] for i in range(0, len(coefficients) - 1, 2)]
    if len(coefficients) % 2:
        pairs.append(coefficients[-1])
    return _estrin(pairs, x * x)
