"""CKKS by OpenFHE: the package `openfhe` (BSD-2), whose wheel is for one version of Python.

OpenFHE chooses the primes itself; the planner knows how, and what it makes is compared with the planned ones. Scaling
is manual: every operation's exact scale is planned, and the ciphertext is told.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .files import RunError
from .scheme import Parameters

INSTALL = (
    "python3.10 -m venv openfhe-env && openfhe-env/bin/pip install numpy openfhe==1.6.1.0.22.4 "
    "(the wheel is for CPython 3.10 on Linux)"
)


class Scheme:
    """`scheme.Scheme`: an OpenFHE context."""

    def __init__(self, parameters: Parameters) -> None:
        try:
            import openfhe
        except ImportError:
            raise RunError(f"OpenFHE is missing in this Python: {INSTALL}") from None
        self.openfhe: Any = openfhe
        self.parameters = parameters
        self.context = self.made(
            openfhe.SPARSE_ENCAPSULATED if parameters.sparse else openfhe.UNIFORM_TERNARY
        )
        if self.context.GetElementParams().GetModulus() != math.prod(parameters.primes):
            raise RunError(
                f"OpenFHE {openfhe.__version__} chooses other primes than the circuit is made for: {INSTALL}"
            )
        self.slots, self.top = parameters.degree // 2, len(parameters.primes) - 1
        #: At which OpenFHE encodes the number 1.
        self.unit: float = self.context.GetScalingFactorReal(0)

    def made(self, secret: Any) -> Any:
        """A context of the parameters for a distribution of secrets. Raises RunError."""
        openfhe, parameters, primes = self.openfhe, self.parameters, self.parameters.primes
        chosen = openfhe.CCParamsCKKSRNS()
        chosen.SetRingDim(parameters.degree)
        chosen.SetMultiplicativeDepth(len(primes) - 1)
        chosen.SetScalingModSize(primes[-1].bit_length() - 1)
        chosen.SetFirstModSize(primes[0].bit_length())
        chosen.SetScalingTechnique(openfhe.FIXEDMANUAL)
        chosen.SetKeySwitchTechnique(openfhe.HYBRID)
        chosen.SetNumLargeDigits(parameters.digits)
        chosen.SetSecretKeyDist(secret)
        # OpenFHE's own table is less strict than the planner's, and a second opinion.
        chosen.SetSecurityLevel(openfhe.HEStd_NotSet if parameters.insecure else openfhe.HEStd_128_classic)
        try:
            context = openfhe.GenCryptoContext(chosen)
        except RuntimeError as error:
            raise RunError(f"OpenFHE refuses the parameters: {short(error)}") from None
        features = [openfhe.PKE, openfhe.KEYSWITCH, openfhe.LEVELEDSHE]
        for feature in features + [openfhe.ADVANCEDSHE, openfhe.FHE] * bool(parameters.refresh):
            context.Enable(feature)
        return context

    def prepare_bootstrapping(self) -> None:
        """Compute what bootstrapping, and the generation of its keys, need."""
        given = self.parameters
        self.context.EvalBootstrapSetup(list(given.budget), [0, 0], given.refresh, given.correction)

    def encode(self, numbers: np.ndarray | float, level: int, scale: float) -> Any:
        """A plaintext at a level: of a vector of slots; or, of one number for all of them, that number times unit."""
        if np.ptp(numbers) == 0:
            return float(np.ravel(numbers)[0]) * (scale / self.unit)
        return self.plaintext(np.asarray(numbers), level, scale)

    def plaintext(self, numbers: np.ndarray, level: int, scale: float) -> Any:
        """A plaintext of a vector of slots at a level."""
        scaled = np.asarray(numbers, np.float64) * (scale / self.unit)
        if np.abs(scaled).max() * self.unit < 1:  # rounds to 0, and OpenFHE refuses to
            scaled = np.zeros(self.slots)
        return self.context.MakeCKKSPackedPlaintext(scaled, 1, self.top - level, None, self.slots)

    def at(self, ciphertext: Any, scale: float) -> Any:
        """The ciphertext with the planned scale; OpenFHE's own is not exact, and nothing here reads it."""
        ciphertext.SetScalingFactor(scale)
        ciphertext.SetNoiseScaleDeg(1)
        return ciphertext

    def dumped(self, ciphertext: Any) -> bytes:
        """See `scheme.Scheme`."""
        found: bytes = self.openfhe.Serialize(ciphertext, self.openfhe.BINARY)
        return found

    def loaded(self, data: bytes | memoryview, source: str) -> Any:
        """See `scheme.Scheme`."""
        try:
            found = self.openfhe.DeserializeCiphertextString(bytes(data), self.openfhe.BINARY)
            fits = found.GetCryptoContext() == self.context and found.GetSlots() == self.slots
        except (RuntimeError, ValueError, MemoryError) as error:
            raise RunError(f"{source} is not valid for these parameters: {short(error)}") from None
        if not fits:
            raise RunError(f"{source} is not valid for these parameters")
        return found

    def place(self, ciphertext: Any) -> tuple[int, float, int]:
        """See `scheme.Scheme`."""
        parts = ciphertext.NumberCiphertextElements()
        return self.top - ciphertext.GetLevel(), ciphertext.GetScalingFactor(), parts


def short(error: BaseException) -> str:
    """The first line of OpenFHE's message, without the place in its source."""
    text = str(error).strip().split("\n")[0]
    return text.split("(): ")[-1].split(" [called")[0]
