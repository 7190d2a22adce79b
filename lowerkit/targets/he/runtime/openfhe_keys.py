"""The client's side of OpenFHE: its secret key."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .files import RunError
from .openfhe_scheme import INSTALL, Scheme, short


class Keys:
    """`scheme.Keys`."""

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme
        self.secret: Any = None

    def generate(self, rotations: Sequence[int]) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
        """See `scheme.Keys`."""
        openfhe, context = self.scheme.openfhe, self.scheme.context
        self.secret = self._uniform() if self.scheme.parameters.sparse else context.KeyGen().secretKey
        tag = self.secret.GetKeyTag()
        context.EvalMultKeyGen(self.secret)
        if rotations:
            context.EvalRotateKeyGen(self.secret, list(rotations))
        if slots := self.scheme.parameters.refresh:
            self.scheme.prepare_bootstrapping()
            context.EvalBootstrapKeyGen(self.secret, slots)
        relinearisation = openfhe.SerializeEvalMultKeyString(openfhe.BINARY, tag)
        openfhe.ClearEvalMultKeys()
        rotation = b""
        if rotations or slots:
            # By way of a file: as a string, keys of gigabytes would stand in memory four times.
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "rotation.keys")
                if not context.SerializeEvalAutomorphismKey(str(path), openfhe.BINARY, tag):
                    raise RunError(f"OpenFHE cannot write {path}")
                context.ClearEvalAutomorphismKeys()  # OpenFHE keeps keys in its own memory, for ever
                rotation = path.read_bytes()
        return (openfhe.Serialize(self.secret, openfhe.BINARY),), (relinearisation, rotation)

    def _uniform(self) -> Any:
        """A uniform ternary secret for a context with sparse-secret encapsulation.

        There OpenFHE would make one of weight 192, of which less is known to be secure; its bootstrapping takes any.
        So a context like it, but for the distribution, makes the secret, and its text is read as one of the other.
        """
        openfhe = self.scheme.openfhe
        secret = self.scheme.made(openfhe.UNIFORM_TERNARY).KeyGen().secretKey
        text = openfhe.Serialize(secret, openfhe.JSON)
        uniform, sparse = (f'"mo": {int(d)},' for d in (openfhe.UNIFORM_TERNARY, openfhe.SPARSE_ENCAPSULATED))
        moved = openfhe.DeserializePrivateKeyString(text.replace(uniform, sparse), openfhe.JSON)
        if text.count(uniform) != 1 or moved.GetCryptoContext() != self.scheme.context:
            raise RunError(f"OpenFHE {openfhe.__version__} writes secret keys in another way: {INSTALL}")
        return moved

    def take(self, parts: Sequence[bytes | memoryview], source: str) -> None:
        """See `scheme.Keys`."""
        openfhe = self.scheme.openfhe
        try:
            self.secret = openfhe.DeserializePrivateKeyString(bytes(parts[0]), openfhe.BINARY)
        except (RuntimeError, ValueError, MemoryError) as error:
            raise RunError(f"{source} is not valid for these parameters: {short(error)}") from None

    def encrypt(self, numbers: np.ndarray, level: int, scale: float) -> Any:
        """See `scheme.Keys`."""
        plain = self.scheme.plaintext(numbers, level, scale)
        return self.scheme.at(self.scheme.context.Encrypt(self.secret, plain), scale)

    def decrypt(self, ciphertext: Any) -> np.ndarray:
        """See `scheme.Keys`. OpenFHE adds as much noise as it finds, so that numbers tell nothing of the key."""
        scale = ciphertext.GetScalingFactor()
        try:
            plain = self.scheme.context.Decrypt(self.secret, ciphertext)
        except RuntimeError as error:
            raise RunError(f"an answer cannot be decrypted: {short(error)}") from None
        numbers: np.ndarray = np.asarray(plain.GetRealPackedValueArray(), np.float64)
        return numbers * float(self.scheme.unit / scale)
