"""The server's side of SEAL: operations on ciphertexts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .seal_scheme import Scheme


class Engine:
    """`execute.Engine` by SEAL."""

    def __init__(self, scheme: Scheme, parts: Sequence[bytes | memoryview], source: str) -> None:
        self.scheme = scheme
        self._relinearisation = scheme.read(scheme.context.from_relin_str, parts[0], source)
        self._rotation = scheme.read(scheme.context.from_galois_str, parts[1], source)
        self._evaluator: Any = scheme.seal.Evaluator(scheme.context)
        self.encode = scheme.encode
        self.add, self.sub = self._evaluator.add, self._evaluator.sub
        self.add_plain, self.mod_switch = self._evaluator.add_plain, self._evaluator.mod_switch_to_next

    def add_into(self, x: Any, y: Any) -> Any:
        self._evaluator.add_inplace(x, y)
        return x

    def mul(self, x: Any, y: Any, scale: float) -> Any:
        return _at(self._evaluator.square(x) if x is y else self._evaluator.multiply(x, y), scale)

    def mul_plain(self, x: Any, plain: Any, scale: float) -> Any:
        return _at(self._evaluator.multiply_plain(x, plain), scale)

    def decomposed(self, x: Any) -> None:
        """Nothing: SEAL has no hoisted rotations."""

    def rotate(self, x: Any, step: int, decomposed: Any = None) -> Any:
        return self._evaluator.rotate_vector(x, step, self._rotation)

    def relinearise(self, x: Any) -> Any:
        return self._evaluator.relinearize(x, self._relinearisation)

    def rescale(self, x: Any, scale: float) -> Any:
        return _at(self._evaluator.rescale_to_next(x), scale)


def _at(ciphertext: Any, scale: float) -> Any:
    """The ciphertext with the planned scale, from which its own differs by rounding alone."""
    assert abs(ciphertext.scale() / scale - 1) < 1e-9
    ciphertext.scale(scale)
    return ciphertext
