"""The client's side of SEAL: its secret key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .seal_scheme import Scheme


class Keys:
    """`scheme.Keys`."""

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme
        self.secret: Any = None

    def generate(self, rotations: Sequence[int]) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
        """See `scheme.Keys`."""
        seal = self.scheme.seal
        generator = seal.KeyGenerator(self.scheme.context)
        self.secret = generator.secret_key()
        relinearisation, rotation = seal.RelinKeys(), seal.GaloisKeys()
        generator.create_relin_keys(relinearisation)
        generator.create_galois_keys(list(rotations), rotation)
        return (self.secret.to_string(),), (relinearisation.to_string(), rotation.to_string())

    def take(self, parts: Sequence[bytes | memoryview], source: str) -> None:
        """See `scheme.Keys`."""
        self.secret = self.scheme.read(self.scheme.context.from_secret_str, parts[0], source)

    def encrypt(self, numbers: np.ndarray, level: int, scale: float) -> Any:
        """See `scheme.Keys`."""
        encryptor = self.scheme.seal.Encryptor(self.scheme.context, self.secret)
        return encryptor.encrypt_symmetric(self.scheme.encode(numbers, level, scale))

    def decrypt(self, ciphertext: Any) -> np.ndarray:
        """See `scheme.Keys`."""
        decryptor = self.scheme.seal.Decryptor(self.scheme.context, self.secret)
        return np.asarray(self.scheme.encoder.decode(decryptor.decrypt(ciphertext)))
