"""Single operations and bootstrapping of OpenFHE, in an interpreter that has it (see docs/he.md).

    OMP_NUM_THREADS=1 openfhe-env/bin/python benchmarks/he_openfhe.py operations
    OMP_NUM_THREADS=1 openfhe-env/bin/python benchmarks/he_openfhe.py functional
    OMP_NUM_THREADS=1 openfhe-env/bin/python benchmarks/he_openfhe.py bootstrap [--slots 16] [--bits 54] [--uniform]

`bootstrap` prints the noise as the simulator has it, too: divided by sqrt(slots) 2^correction. It raises the modulus
under a sparse secret, as circuits do unless the option secret is uniform. OpenFHE makes the other secret sparse then,
too, and lowerkit does not; time and noise are nearly the same.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import openfhe


def context_of(degree: int, bits: int, first: int, depth: int, digits: int, *, uniform: bool = True) -> Any:
    """A context with manual scaling and hybrid key switching."""
    chosen = openfhe.CCParamsCKKSRNS()
    chosen.SetRingDim(degree)
    chosen.SetScalingModSize(bits)
    chosen.SetFirstModSize(first)
    chosen.SetMultiplicativeDepth(depth)
    chosen.SetScalingTechnique(openfhe.FIXEDMANUAL)
    chosen.SetKeySwitchTechnique(openfhe.HYBRID)
    chosen.SetNumLargeDigits(digits)
    chosen.SetSecretKeyDist(openfhe.UNIFORM_TERNARY if uniform else openfhe.SPARSE_ENCAPSULATED)
    chosen.SetSecurityLevel(
        openfhe.HEStd_NotSet
    )  # the circuit's moduli, which are secure, are not needed here
    context = openfhe.GenCryptoContext(chosen)
    for feature in (openfhe.PKE, openfhe.KEYSWITCH, openfhe.LEVELEDSHE, openfhe.ADVANCEDSHE, openfhe.FHE):
        context.Enable(feature)
    return context


def best(run: Callable[[], Any], times: int = 10) -> float:
    """The shortest of several times, in milliseconds of this process."""
    found = []
    for _ in range(times):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return 1e3 * min(found)


def operations(degree: int, depth: int, digits: int) -> None:
    """Milliseconds of operations in a ring, with depth + 1 primes and so many digits."""
    context = context_of(degree, 40, 50, depth, digits)
    secret = context.KeyGen().secretKey
    context.EvalMultKeyGen(secret)
    context.EvalRotateKeyGen(secret, [1])
    plain = context.MakeCKKSPackedPlaintext(np.linspace(-1, 1, degree // 2), 1, 0, None, degree // 2)
    x = context.Encrypt(secret, plain)
    square, decomposed = context.EvalMultNoRelin(x, x), context.EvalFastRotationPrecompute(x)
    runs: dict[str, Callable[[], Any]] = {
        "rotate": lambda: context.EvalRotate(x, 1),
        "decompose": lambda: context.EvalFastRotationPrecompute(x),
        "rotate, decomposed": lambda: context.EvalFastRotation(x, 1, 2 * degree, decomposed),
        "relinearise": lambda: context.Relinearize(square),
        "mul": lambda: context.EvalMultNoRelin(x, x),
        "mul_plain": lambda: context.EvalMult(x, plain),
        "mul by a number": lambda: context.EvalMult(x, 0.3),
        "add": lambda: context.EvalAdd(x, x),
        "rescale": lambda: context.Rescale(x),
    }
    times = ", ".join(f"{name} {best(run):.2f}" for name, run in runs.items())
    print(f"ring {degree}, {depth + 1} primes, {digits} digits: {times}", flush=True)


def bootstrap(degree: int, slots: int, bits: int, *, uniform: bool) -> None:
    """Time, noise and levels of bootstrapping `slots` numbers."""
    budget = 1 if slots <= 64 else 2 if slots <= 1024 else 3
    depth = (14 if uniform else 10) + 2 * budget + 4
    context = context_of(degree, bits, bits + (3 if uniform else 1), depth, 4, uniform=uniform)
    start = time.process_time()
    context.EvalBootstrapSetup([budget, budget], [0, 0], slots)
    secret = context.KeyGen().secretKey
    context.EvalMultKeyGen(secret)
    context.EvalBootstrapKeyGen(secret, slots)
    keys = len(context.GetExistingEvalAutomorphismKeyIndices(secret.GetKeyTag()))
    print(f"ring {degree}, {slots} slots: {keys} keys, {time.process_time() - start:.1f} s", flush=True)
    numbers = np.random.default_rng(0).uniform(-1, 1, slots)
    wide = np.tile(numbers, degree // 2 // slots)
    x = context.Encrypt(secret, context.MakeCKKSPackedPlaintext(wide, 1, depth - 1, None, degree // 2))
    x.SetSlots(slots)
    start = time.process_time()
    found = context.Rescale(context.EvalBootstrap(x))
    spent = time.process_time() - start
    error = np.array(context.Decrypt(secret, found).GetRealPackedValueArray())[:slots] - numbers
    part = np.std(error) / (np.sqrt(slots) * 2.0 ** context.GetCKKSBootCorrectionFactor())
    print(
        f"  {spent:.1f} s of the process, level {depth - found.GetLevel()} of {depth}, "
        f"noise {np.std(error):.3g}, of the simulator's unit {part:.3g}, correction "
        f"{context.GetCKKSBootCorrectionFactor()}"
    )


def functional(terms: int) -> None:
    """Levels and error of functional bootstrapping of GELU on [-4, 4], beside a bootstrap and a polynomial after it."""
    grid = np.cos(np.linspace(0, np.pi, 2001)) / 2
    waves = np.pi * grid[:, None] * np.arange(terms + 1)
    parts = 2 * np.concatenate([np.cos(waves), -np.sin(waves[:, 1:])], axis=1)
    found = np.linalg.lstsq(parts, _gelu(grid), rcond=1e-12)[0]
    series = [complex(a, b) for a, b in zip(found[: terms + 1], [0.0, *found[terms + 1 :]], strict=True)]
    fit = np.polynomial.chebyshev.Chebyshev.fit(grid, _gelu(grid), 2 * terms + 1)
    print(
        f"{terms} terms: within {np.abs(parts @ found - _gelu(grid)).max():.1g}, a polynomial of degree "
        f"{2 * terms + 1} within {np.abs(fit(grid) - _gelu(grid)).max():.1g}"
    )
    degree, slots, depth = 2048, 16, 20
    context = context_of(degree, 54, 55, depth, 4, uniform=False)
    context.EvalFEFuncBootstrapSetup([1, 1], [0, 0], slots)
    secret = context.KeyGen().secretKey
    context.EvalMultKeyGen(secret)
    context.EvalBootstrapKeyGen(secret, slots)
    numbers = np.random.default_rng(0).uniform(-0.5, 0.5, slots)
    wide = np.tile(numbers, degree // 2 // slots)
    x = context.Encrypt(secret, context.MakeCKKSPackedPlaintext(wide, 1, depth - 2, None, degree // 2))
    x.SetSlots(slots)
    y = context.EvalFEFuncBootstrap(x, series)
    error = np.array(context.Decrypt(secret, y).GetRealPackedValueArray())[:slots] - _gelu(numbers)
    print(f"  level {depth - y.GetLevel()} of {depth}, error {np.abs(error).max():.2g}")


def _gelu(x: np.ndarray) -> np.ndarray:
    """GELU of 8 x, divided by 8."""
    return np.array([v / 2 * (1 + math.erf(8 * v / math.sqrt(2))) for v in x])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["operations", "bootstrap", "functional"])
    parser.add_argument("--logn", type=int, default=16)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--bits", type=int, default=54)
    parser.add_argument("--uniform", action="store_true")
    given = parser.parse_args()
    if given.what == "operations":
        operations(8192, 4, 2)
        operations(32768, 14, 3)
    elif given.what == "functional":
        functional(7)
    else:
        bootstrap(1 << given.logn, given.slots, given.bits, uniform=given.uniform)


if __name__ == "__main__":
    main()
