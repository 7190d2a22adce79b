"""CKKS by SEAL: `seal-python` (MIT), which takes and gives numpy arrays and bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from .files import RunError
from .scheme import Parameters


class Scheme:
    """`scheme.Scheme`: a SEAL context with its encoder."""

    def __init__(self, parameters: Parameters) -> None:
        try:
            import seal
        except ImportError:
            raise RunError("SEAL is missing: pip install seal-python") from None
        self.seal: Any = seal
        self.parameters = parameters
        described = seal.EncryptionParameters(seal.scheme_type.ckks)
        described.set_poly_modulus_degree(parameters.degree)
        primes = (*parameters.primes, *parameters.specials)
        described.set_coeff_modulus([seal.Modulus(p) for p in primes])
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

    def dumped(self, ciphertext: Any) -> bytes:
        """See `scheme.Scheme`."""
        found: bytes = ciphertext.to_string()
        return found

    def loaded(self, data: bytes | memoryview, source: str) -> Any:
        """See `scheme.Scheme`."""
        return self.read(self.context.from_cipher_str, data, source)

    def read(self, load: Any, data: bytes | memoryview, source: str) -> Any:
        """What `load`, one of the context's loaders, makes of `data`. Raises RunError for what is none."""
        try:
            return load(bytes(data))
        except (RuntimeError, ValueError) as error:
            raise RunError(f"{source} is not valid for these parameters: {error}") from None

    def place(self, ciphertext: Any) -> tuple[int, float, int]:
        """See `scheme.Scheme`."""
        found = ciphertext.parms_id()
        level = self.levels.index(found) if found in self.levels else -1
        return level, ciphertext.scale(), ciphertext.size()
