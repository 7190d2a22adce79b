"""The two Python packages that have SEAL, side by side: single operations, encoding, and ciphertexts as bytes.

    python -m benchmarks.he_seal          # both: seal-python, which lowerkit takes, and tenseal's sealapi

Milliseconds of this process, the shortest of 30 runs, at N = 8192 with five primes. `sealapi` takes and gives lists and
files where `seal-python` has numpy arrays and bytes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

DEGREE, BITS, SCALE = 8192, [40] * 5, 2.0**30
NUMBERS = np.random.default_rng(0).uniform(-1, 1, DEGREE // 2)
Runs = Mapping[str, Callable[[], Any]]


def material(seal: Any, scheme: Any, level: Any, element: int) -> tuple[Any, Any, Any, Any, Any]:
    """Evaluator, encoder, encryptor, and keys of relinearisation and of one rotation, of either package.

    Args:
        scheme, level: CKKS and 128 bits, in the package's names.
        element: what the package calls the rotation by one step.
    """
    parameters = seal.EncryptionParameters(scheme)
    parameters.set_poly_modulus_degree(DEGREE)
    parameters.set_coeff_modulus(seal.CoeffModulus.Create(DEGREE, BITS))
    context = seal.SEALContext(parameters, True, level)
    generator = seal.KeyGenerator(context)
    relinearisation, rotation, public = seal.RelinKeys(), seal.GaloisKeys(), seal.PublicKey()
    generator.create_relin_keys(relinearisation)
    generator.create_galois_keys([element], rotation)
    generator.create_public_key(public)
    encryptor = seal.Encryptor(context, public)
    return seal.Evaluator(context), seal.CKKSEncoder(context), encryptor, relinearisation, rotation


def seal_python() -> Runs:
    """The package `seal` of seal-python (MIT)."""
    import seal

    evaluator, encoder, encryptor, relinearisation, rotation = material(
        seal, seal.scheme_type.ckks, seal.sec_level_type.tc128, 1
    )
    plain = encoder.encode(NUMBERS, SCALE)
    x = encryptor.encrypt(plain)
    square = evaluator.square(x)
    return {
        "encode": lambda: encoder.encode(NUMBERS, SCALE),
        "rotate": lambda: evaluator.rotate_vector(x, 1, rotation),
        "relinearise": lambda: evaluator.relinearize(square, relinearisation),
        "mul": lambda: evaluator.multiply(x, x),
        "mul_plain": lambda: evaluator.multiply_plain(x, plain),
        "add": lambda: evaluator.add(x, x),
        "bytes": lambda: x.to_string(),
    }


def sealapi() -> Runs:
    """`tenseal.sealapi` (Apache-2.0)."""
    import tenseal.sealapi as seal

    evaluator, encoder, encryptor, relinearisation, rotation = material(
        seal,
        seal.SCHEME_TYPE.CKKS,
        seal.SEC_LEVEL_TYPE.TC128,
        3,  # 3^1: the automorphism of one step
    )
    plain, x, square, out = seal.Plaintext(), seal.Ciphertext(), seal.Ciphertext(), seal.Ciphertext()
    encoder.encode(NUMBERS.tolist(), SCALE, plain)
    encryptor.encrypt(plain, x)
    evaluator.square(x, square)

    def stored() -> bytes:
        with tempfile.NamedTemporaryFile() as file:
            x.save(file.name)
            return Path(file.name).read_bytes()

    return {
        "encode": lambda: encoder.encode(NUMBERS.tolist(), SCALE, seal.Plaintext()),
        "rotate": lambda: evaluator.rotate_vector(x, 1, rotation, out),
        "relinearise": lambda: evaluator.relinearize(square, relinearisation, out),
        "mul": lambda: evaluator.multiply(x, x, out),
        "mul_plain": lambda: evaluator.multiply_plain(x, plain, out),
        "add": lambda: evaluator.add(x, x, out),
        "bytes": stored,
    }


def best(run: Callable[[], Any]) -> float:
    """The shortest of 30 times, in milliseconds of this process."""
    found = []
    for _ in range(30):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return 1e3 * min(found)


def main() -> None:
    """Print a line for each package."""
    for name, make in (("seal-python", seal_python), ("tenseal.sealapi", sealapi)):
        try:
            runs = make()
        except ImportError as error:
            print(f"{name}: left out, for it is not installed: {error}")
            continue
        print(f"{name}: " + ", ".join(f"{key} {best(run):.3f}" for key, run in runs.items()))


if __name__ == "__main__":
    main()
