"""Encrypted inference: time, precision, accuracy and sizes, and TenSEAL's high-level interface beside it.

    python -m benchmarks.he mlp [--samples 200] [--rotation-keys N] [--peers]
    python -m benchmarks.he lenet [--samples 100] [--rotation-keys N]
    python -m benchmarks.he operations [--backend openfhe]
    python -m benchmarks.he bootstrap

Everything runs in this process and on one core. Times are of warm evaluations: keys, circuit and plaintexts are in
memory, the query's ciphertexts too; `process` is the time of this process alone, which other work on the machine
lengthens less. `operations` measures single operations, from which `targets/he/cost.py` has its factors.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import lowerkit.api
from lowerkit.reference import Reference
from lowerkit.targets.he.runtime import files
from lowerkit.targets.he.runtime.client import Client
from lowerkit.targets.he.runtime.server import Server
from lowerkit.targets.he.worker import interpreter

EXAMPLES = Path(__file__).parents[1] / "examples"
MODELS = {"mlp": "mlp_fashion_square", "lenet": "lenet_fashion_square"}
WARM = 20


def timed(run: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds by the clock and of this process, and what `run` returns."""
    wall, process = time.perf_counter(), time.process_time()
    result = run()
    return time.perf_counter() - wall, time.process_time() - process, result


def network(name: str, samples: int, rotation_keys: int) -> None:
    """Compile an example, run it encrypted, and print a line for each number."""
    with np.load(EXAMPLES / "data" / "fashion_test.npz") as data:
        images = data["image"][:samples]
    with np.load(EXAMPLES / "data" / "fashion_test_labels.npz") as data:
        labels = data["labels"][:samples]
    with tempfile.TemporaryDirectory() as scratch:
        artifact = lowerkit.api.compile(
            EXAMPLES / "models" / f"{MODELS[name]}.onnx",
            Path(scratch) / "out",
            "he",
            calibration=EXAMPLES / "data" / "fashion_calibration.npz",
            shape={"image": (1, 784)},
            options={"max_rotation_keys": rotation_keys},
        )
        client = Client(artifact.directory / "client")
        generated, _, (_, public) = timed(client.generate)
        loaded, _, server = timed(lambda: Server(artifact.directory / "server", public))
        reference = Reference(artifact.model("original.onnx"))
        errors, right, float_right, encrypting, answering = [], 0, 0, [], []
        for image, label in zip(images, labels, strict=True):
            sample = {"image": image[None]}
            wall, _, query = timed(lambda sample=sample: client.encrypt(sample))
            encrypting.append(wall)
            wall, _, answer = timed(lambda query=query: server.evaluate(query))
            answering.append(wall)
            found, expected = client.decrypt(answer)["logits"], reference(sample)["logits"]
            errors.append(float(np.abs(found - expected).max()))
            right += int(found.argmax() == label)
            float_right += int(expected.argmax() == label)
        parcel = files.unpack(query, files.QUERY, server.circuit)
        inputs = [server.scheme.loaded(part, "the query") for part in parcel.parts]
        runs = [timed(lambda: server.program.run(inputs))[:2] for _ in range(5 + WARM)][5:]
    print(f"{MODELS[name]}: ring {server.scheme.parameters.degree}, {samples} samples")
    print(
        f"  evaluate, warm: best {min(w for w, _ in runs):.4f} s, of the process {min(p for _, p in runs):.4f} s"
    )
    print(f"  answer a query, with reading it: median {np.median(answering):.4f} s")
    print(f"  encrypt: median {np.median(encrypting):.4f} s")
    print(f"  keys: {generated:.1f} s, {len(public) / 1e6:.1f} MB; server ready in {loaded:.1f} s")
    print(f"  query {len(query) / 1e6:.2f} MB, answer {len(answer) / 1e6:.2f} MB")
    print(f"  largest error {max(errors):.2g}; right {right}, float model {float_right}, of {samples}")


def tenseal() -> None:
    """The MLP as TenSEAL's documentation would write it: one vector, `mm`, `square`, `mm`."""
    try:
        import onnx
        import tenseal as ts
    except ImportError:
        print("tenseal: left out, for it is not installed (pip install tenseal)")
        return
    model = onnx.load(EXAMPLES / "models" / f"{MODELS['mlp']}.onnx")
    weights = {t.name: onnx.numpy_helper.to_array(t).astype(float) for t in model.graph.initializer}
    context = ts.context(ts.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[50, 34, 34, 34, 50])
    context.global_scale = 2.0**34
    context.generate_galois_keys()
    with np.load(EXAMPLES / "data" / "fashion_test.npz") as data:
        image = data["image"][0]
    query = ts.ckks_vector(context, image.tolist())

    def run() -> Any:
        hidden = query.mm(weights["hidden.weight"].T.tolist()) + weights["hidden.bias"].tolist()
        return hidden.square().mm(weights["head.weight"].T.tolist()) + weights["head.bias"].tolist()

    wall, process, answer = timed(run)
    hidden = weights["hidden.weight"] @ image + weights["hidden.bias"]
    expected = weights["head.weight"] @ hidden**2 + weights["head.bias"]
    error = np.abs(np.array(answer.decrypt()) - expected).max()
    print(f"tenseal {ts.__version__}, high level, ring 8192")
    print(f"  evaluate: {wall:.4f} s, of the process {process:.4f} s; error {error:.2g}")


def operations() -> None:
    """Milliseconds of single operations, by ring and number of primes."""
    import seal

    for degree, primes in ((8192, 5), (16384, 9)):
        described = seal.EncryptionParameters(seal.scheme_type.ckks)
        described.set_poly_modulus_degree(degree)
        described.set_coeff_modulus(seal.CoeffModulus.Create(degree, [40] * primes))
        context = seal.SEALContext(described, True, seal.sec_level_type.tc128)
        generator, evaluator = seal.KeyGenerator(context), seal.Evaluator(context)
        relinearisation, rotation = seal.RelinKeys(), seal.GaloisKeys()
        generator.create_relin_keys(relinearisation)
        generator.create_galois_keys([1], rotation)
        plain = seal.CKKSEncoder(context).encode(np.linspace(-1, 1, degree // 2), 2.0**18)
        x = seal.Encryptor(context, generator.secret_key()).encrypt_symmetric(plain)
        for level in reversed(range(1, primes)):
            best = _best(evaluator, x, plain, relinearisation, rotation)
            print(
                f"ring {degree}, {level} primes: " + ", ".join(f"{n} {1e3 * t:.3f}" for n, t in best.items())
            )
            if level > 1:
                wall = min(timed(lambda: evaluator.rescale_to_next(x))[0] for _ in range(30))  # noqa: B023
                print(f"ring {degree}, {level} primes: rescale {1e3 * wall:.3f}")
                x, plain = evaluator.mod_switch_to_next(x), evaluator.mod_switch_to_next(plain)


def _best(evaluator: Any, x: Any, plain: Any, relinearisation: Any, rotation: Any) -> dict[str, float]:
    """Shortest of 30 times, in seconds, by operation."""
    square = evaluator.square(x)
    runs: dict[str, Callable[[], Any]] = {
        "rotate": lambda: evaluator.rotate_vector(x, 1, rotation),
        "relinearise": lambda: evaluator.relinearize(square, relinearisation),
        "mul": lambda: evaluator.multiply(x, x),
        "mul_plain": lambda: evaluator.multiply_plain(x, plain),
        "add": lambda: evaluator.add(x, x),
    }
    return {name: min(timed(run)[0] for _ in range(30)) for name, run in runs.items()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=[*MODELS, "operations", "bootstrap"])
    parser.add_argument("--backend", choices=["seal", "openfhe"], default="seal")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--rotation-keys", type=int, default=0, help="most rotations that have a key")
    parser.add_argument("--peers", action="store_true", help="run TenSEAL's high-level interface too")
    given = parser.parse_args()
    if given.what == "bootstrap" or given.backend == "openfhe":
        # OpenFHE's wheel is for another interpreter.
        command = [interpreter(""), Path(__file__).with_name("he_openfhe.py"), given.what]
        subprocess.run([str(part) for part in command], check=True)
        return
    if given.what == "operations":
        operations()
        return
    network(given.what, given.samples, given.rotation_keys)
    if given.peers:
        tenseal()


if __name__ == "__main__":
    main()
