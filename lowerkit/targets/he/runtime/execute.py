"""Runs a circuit on anything that can add, multiply and rotate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

Progress = Callable[[int, int], None]
#: Kinds of operations by their number in a stored circuit.
KINDS = (
    "input",
    "add",
    "sub",
    "mul",
    "add_plain",
    "mul_plain",
    "rotate",
    "relinearise",
    "rescale",
    "mod_switch",
    "bootstrap",
)
#: Numbers of the columns of a stored circuit's operations.
KIND, FIRST, SECOND, STEP, PLAIN, LEVEL = range(6)


class Engine(Protocol):
    """Operations on ciphertexts; scales of results are given, so that they are exactly the planned ones."""

    def encode(self, numbers: np.ndarray | float, level: int, scale: float) -> Any: ...
    def add(self, x: Any, y: Any) -> Any: ...
    def add_into(self, x: Any, y: Any) -> Any:
        """x + y, for which x may be overwritten: sums are most of what is left beside rotations."""
        ...

    def sub(self, x: Any, y: Any) -> Any: ...
    def mul(self, x: Any, y: Any, scale: float) -> Any: ...
    def add_plain(self, x: Any, plain: Any) -> Any: ...
    def mul_plain(self, x: Any, plain: Any, scale: float) -> Any: ...
    def decomposed(self, x: Any) -> Any:
        """What rotations of x have in common, if the library can use it (hoisting)."""
        ...

    def rotate(self, x: Any, step: int, decomposed: Any = None) -> Any: ...
    def relinearise(self, x: Any) -> Any: ...
    def rescale(self, x: Any, scale: float) -> Any: ...
    def mod_switch(self, x: Any) -> Any: ...
    def bootstrap(self, x: Any, scale: float) -> Any: ...


class Circuit:
    """A levelled program as stored.

    Args:
        ops: int64 [operations, 6]: kind, operands (-1 for none), rotation, plaintext (-1 for none, -2 for the
            number 1), level of the result.
        scales: float64 [operations, 2]: of the result, and of the plaintext.
        plains: float64 [plaintexts, slots].
        ahead: whether plaintexts are encoded once; else whenever they are used, which takes less memory.
    """

    def __init__(
        self,
        ops: np.ndarray,
        scales: np.ndarray,
        plains: np.ndarray,
        outputs: Sequence[int],
        engine: Engine,
        *,
        ahead: bool = True,
    ) -> None:
        self.rows = [tuple(int(v) for v in row) for row in ops]
        self.scales = [(float(a), float(b)) for a, b in scales]
        self.outputs, self.engine = list(outputs), engine
        self._vectors = plains
        self._encoded = [self._encode(i) for i in range(len(self.rows))] if ahead else []
        self._last = self._last_uses()
        rotated = Counter(row[FIRST] for row in self.rows if KINDS[row[KIND]] == "rotate")
        self._often = {value for value, times in rotated.items() if times > 1}
        #: Of values in `_often`, while they are alive.
        self._decomposed: dict[int, Any] = {}
        #: Of `_last`, those that a sum may overwrite: inputs are the caller's, and x + x reads what it writes.
        self._spent = {
            i: [v for v in dead if self.rows[v][KIND] != 0 and self.rows[i][FIRST] != self.rows[i][SECOND]]
            for i, dead in self._last.items()
        }

    def _plain(self, i: int) -> Any:
        """The plaintext of an operation."""
        return self._encoded[i] if self._encoded else self._encode(i)

    def _encode(self, i: int) -> Any:
        row = self.rows[i]
        if row[PLAIN] == -1:
            return None
        numbers: np.ndarray | float = 1.0 if row[PLAIN] == -2 else self._vectors[row[PLAIN]]
        return self.engine.encode(numbers, row[LEVEL], self.scales[i][1])

    def _last_uses(self) -> Mapping[int, list[int]]:
        """Operation -> values that no later one reads."""
        last: dict[int, int] = {}
        for i, row in enumerate(self.rows):
            for operand in (row[FIRST], row[SECOND]):
                if operand >= 0:
                    last[operand] = i
        found: dict[int, list[int]] = {}
        for value, i in last.items():
            if value not in self.outputs:
                found.setdefault(i, []).append(value)
        return found

    def run(
        self,
        inputs: Sequence[Any],
        progress: Progress | None = None,
        observe: Callable[[int, Any], None] | None = None,
    ) -> list[Any]:
        """The outputs' ciphertexts.

        Args:
            progress: called with operations done and all.
            observe: called with every operation and its result.
        """
        given = iter(inputs)
        values: dict[int, Any] = {}
        self._decomposed.clear()
        for i in range(len(self.rows)):
            values[i] = next(given) if self.rows[i][KIND] == 0 else self._apply(i, values)
            if observe is not None:
                observe(i, values[i])
            for dead in self._last.get(i, ()):
                del values[dead]
                self._decomposed.pop(dead, None)
            if progress is not None:
                progress(i + 1, len(self.rows))
        return [values[i] for i in self.outputs]

    def _apply(self, i: int, values: Mapping[int, Any]) -> Any:
        row, engine, scale = self.rows[i], self.engine, self.scales[i][0]
        kind, x = KINDS[row[KIND]], values[row[FIRST]]
        if kind == "add" and row[FIRST] in self._spent.get(i, ()):
            return engine.add_into(x, values[row[SECOND]])
        if kind in ("add", "sub"):
            return getattr(engine, kind)(x, values[row[SECOND]])
        if kind == "mul":
            return engine.mul(x, values[row[SECOND]], scale)
        if kind == "add_plain":
            return engine.add_plain(x, self._plain(i))
        if kind == "mul_plain":
            return engine.mul_plain(x, self._plain(i), scale)
        if kind == "rotate":
            return engine.rotate(x, row[STEP], self._shared(row[FIRST], x))
        if kind in ("rescale", "bootstrap"):
            return getattr(engine, kind)(x, scale)
        return getattr(engine, kind)(x)

    def _shared(self, value: int, x: Any) -> Any:
        """What all rotations of a value share, where there are several."""
        if value in self._often and value not in self._decomposed:
            self._decomposed[value] = self.engine.decomposed(x)
        return self._decomposed.get(value)
