"""CKKS by SEAL: what client and server share.

The library is `seal-python` (MIT), which takes and gives numpy arrays and bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .files import RunError


@dataclass(frozen=True)
class Parameters:
    """Public parameters.

    Attributes:
        degree: of the ring; ciphertexts have half as many slots.
        primes: of the levels, the first to stay last, then the one for key switching.
        insecure: below 128 bits, for testing alone.
    """

    degree: int
    primes: tuple[int, ...]
    insecure: bool = False

    @classmethod
    def read(cls, description: Mapping[str, Any]) -> Parameters:
        """From the artifact's JSON."""
        return cls(description["degree"], tuple(description["primes"]), description["insecure"])


class Scheme:
    """A SEAL context with its encoder.

    Raises RunError where SEAL is missing or refuses the parameters.
    """

    def __init__(self, parameters: Parameters) -> None:
        try:
            import seal
        except ImportError:
            raise RunError("SEAL is missing: pip install seal-python") from None
        self.seal: Any = seal
        self.parameters = parameters
        described = seal.EncryptionParameters(seal.scheme_type.ckks)
        described.set_poly_modulus_degree(parameters.degree)
        described.set_coeff_modulus([seal.Modulus(p) for p in parameters.primes])
        level = seal.sec_level_type.none if parameters.insecure else seal.sec_level_type.tc128
        self.context = seal.SEALContext(described, True, level)
        if not self.context.parameters_set():
            raise RunError(f"SEAL refuses the parameters: {self.context.parameters_error_message()}")
        self.encoder = seal.CKKSEncoder(self.context)
        #: Identifiers of the levels, the lowest first.
        self.levels: list[Any] = []
        data = self.context.first_context_data()
        while data is not None:
            self.levels.insert(0, data.parms_id())
            data = data.next_context_data()

    def encode(self, numbers: np.ndarray | float, level: int, scale: float) -> Any:
        """A plaintext at a level: of a vector of slots, or of one number for all of them."""
        plain = self.encoder.encode(numbers, scale)
        top = len(self.levels) - 1
        return (
            plain
            if level == top
            else self.seal.Evaluator(self.context).mod_switch_to(plain, self.levels[level])
        )

    def loaded(self, load: Any, data: bytes, source: str) -> Any:
        """What `load`, one of the context's loaders, makes of `data`. Raises RunError for what is none."""
        try:
            return load(data)
        except (RuntimeError, ValueError) as error:
            raise RunError(f"{source} is not valid for these parameters: {error}") from None


def dumped(thing: Any) -> bytes:
    """A key or ciphertext of SEAL as bytes."""
    found: bytes = thing.to_string()
    return found


def checked_level(scheme: Scheme, ciphertext: Any, level: int, scale: float, source: str) -> None:
    """Raises RunError for a ciphertext on another level, of another scale, or not of two parts."""
    if ciphertext.parms_id() != scheme.levels[level] or ciphertext.size() != 2 or ciphertext.scale() != scale:
        raise RunError(f"{source} is not on level {level} at scale {scale:.6g}, as the circuit wants it")
