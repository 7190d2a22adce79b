"""What client and server ask of a CKKS library, whichever it is.

A library takes three modules: `<library>_scheme`, which both sides get, `<library>_keys`, which the client alone gets,
and `<library>_engine`, which the server alone gets. Their classes `Scheme`, `Keys` and `Engine` have the methods below
and those of `execute.Engine`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from .files import RunError

BACKENDS = ("seal", "openfhe")


@dataclass(frozen=True)
class Parameters:
    """Public parameters.

    Attributes:
        backend: of BACKENDS.
        degree: of the ring; ciphertexts have half as many slots.
        primes: of the levels, the first to stay last.
        specials: primes of key switching.
        digits: into how many key switching decomposes a ciphertext of all levels.
        refresh: slots that bootstrapping keeps; 0 where there is none.
        budget: levels of bootstrapping's two linear transforms.
        correction: bits by which bootstrapping holds messages below the first prime.
        sparse: whether bootstrapping raises the modulus under an ephemeral sparse secret.
        insecure: below 128 bits, for testing alone.
    """

    backend: str
    degree: int
    primes: tuple[int, ...]
    specials: tuple[int, ...]
    digits: int
    refresh: int = 0
    budget: tuple[int, ...] = ()
    correction: int = 0
    sparse: bool = False
    insecure: bool = False

    @classmethod
    def read(cls, description: Mapping[str, Any]) -> Parameters:
        """From the artifact's JSON."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in description.items()}
        return cls(**values)


class Scheme(Protocol):
    """A library's context for some parameters; both sides have one.

    The constructor raises RunError where the library is missing or refuses the parameters.
    """

    parameters: Parameters

    def __init__(self, parameters: Parameters) -> None: ...
    def dumped(self, ciphertext: Any) -> bytes:
        """A ciphertext as bytes."""
        ...

    def loaded(self, data: bytes | memoryview, source: str) -> Any:
        """The ciphertext in bytes. Raises RunError for what is none."""
        ...

    def place(self, ciphertext: Any) -> tuple[int, float, int]:
        """Level, scale and number of polynomials of a ciphertext."""
        ...


class Keys(Protocol):
    """A secret key and what is done with it."""

    def __init__(self, scheme: Any) -> None: ...
    def generate(self, rotations: Sequence[int]) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
        """A new secret key, which is kept, as parts of its file, and its evaluation keys in the same way."""
        ...

    def take(self, parts: Sequence[bytes | memoryview], source: str) -> None:
        """Use the secret key of a file. Raises RunError."""
        ...

    def encrypt(self, numbers: np.ndarray, level: int, scale: float) -> Any:
        """A ciphertext of a vector of slots, under the secret key."""
        ...

    def decrypt(self, ciphertext: Any) -> np.ndarray:
        """The slots of a ciphertext."""
        ...


def opened(parameters: Parameters) -> Scheme:
    """The scheme of the parameters' library. Raises RunError."""
    found: Scheme = _module(parameters, "scheme").Scheme(parameters)
    return found


def keys_of(scheme: Scheme) -> Keys:
    """The client's side of a scheme."""
    found: Keys = _module(scheme.parameters, "keys").Keys(scheme)
    return found


def engine_of(scheme: Scheme, parts: Sequence[bytes | memoryview], source: str) -> Any:
    """The server's side of a scheme, with the evaluation keys of a file. Raises RunError."""
    return _module(scheme.parameters, "engine").Engine(scheme, parts, source)


def _module(parameters: Parameters, side: str) -> Any:
    if parameters.backend not in BACKENDS:
        raise RunError(f"there is no library '{parameters.backend}', only {', '.join(BACKENDS)}")
    return import_module(f".{parameters.backend}_{side}", __package__)


def checked_place(scheme: Scheme, ciphertext: Any, level: int, scale: float, source: str) -> Any:
    """The ciphertext. Raises RunError for one on another level, of another scale, or not of two polynomials."""
    if scheme.place(ciphertext) != (level, scale, 2):
        raise RunError(f"{source} is not on level {level} at scale {scale:.6g}, as the circuit wants it")
    return ciphertext
