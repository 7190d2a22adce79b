"""The server's side of OpenFHE: operations on ciphertexts."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .files import RunError
from .openfhe_scheme import Scheme, short


class Engine:
    """`execute.Engine` by OpenFHE. Plaintexts are OpenFHE's, or floats that stand for all slots."""

    def __init__(self, scheme: Scheme, parts: Sequence[bytes | memoryview], source: str) -> None:
        self.scheme, self.context = scheme, scheme.context
        openfhe = scheme.openfhe
        try:
            openfhe.DeserializeEvalMultKeyString(bytes(parts[0]), openfhe.BINARY)
            if len(parts[1]):
                with tempfile.TemporaryDirectory() as folder:  # as in `openfhe_keys`
                    path = Path(folder, "rotation.keys")
                    path.write_bytes(parts[1])
                    if not self.context.DeserializeEvalAutomorphismKey(str(path), openfhe.BINARY):
                        raise RuntimeError("no rotation keys")
        except (RuntimeError, ValueError, MemoryError) as error:
            raise RunError(f"{source} is not valid for these parameters: {short(error)}") from None
        if scheme.parameters.refresh:
            scheme.prepare_bootstrapping()
        self.add, self.sub = self.context.EvalAdd, self.context.EvalSub

    def encode(self, numbers: np.ndarray | float, level: int, scale: float) -> Any:
        return self.scheme.encode(numbers, level, scale)

    def add_into(self, x: Any, y: Any) -> Any:
        self.context.EvalAddInPlace(x, y)
        return x

    def mul(self, x: Any, y: Any, scale: float) -> Any:
        return self.scheme.at(self.context.EvalMultNoRelin(x, y), scale)

    def add_plain(self, x: Any, plain: Any) -> Any:
        return self.scheme.at(self.context.EvalAdd(x, plain), x.GetScalingFactor())

    def mul_plain(self, x: Any, plain: Any, scale: float) -> Any:
        return self.scheme.at(self.context.EvalMult(x, plain), scale)

    def decomposed(self, x: Any) -> Any:
        return self.context.EvalFastRotationPrecompute(x)

    def rotate(self, x: Any, step: int, decomposed: Any = None) -> Any:
        if decomposed is None:
            return self.context.EvalRotate(x, step)
        return self.context.EvalFastRotation(x, step, 2 * self.scheme.parameters.degree, decomposed)

    def relinearise(self, x: Any) -> Any:
        return self.context.Relinearize(x)

    def rescale(self, x: Any, scale: float) -> Any:
        return self.scheme.at(self.context.Rescale(x), scale)

    def mod_switch(self, x: Any) -> Any:
        return self.scheme.at(self.context.LevelReduce(x, None, 1), x.GetScalingFactor())

    def bootstrap(self, x: Any, scale: float) -> Any:
        lowest = x.Clone()
        lowest.SetSlots(self.scheme.parameters.refresh)
        found = self.scheme.context.EvalBootstrap(lowest)
        found = self.context.Rescale(found)  # its last transform leaves that to the caller
        found.SetSlots(self.scheme.slots)
        return self.scheme.at(found, scale)
