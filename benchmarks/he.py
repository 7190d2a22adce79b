"""Encrypted inference: time, precision, accuracy and sizes, and beside it TenSEAL's high-level interface and HElayers.

    python -m benchmarks.he mlp [--samples 200] [--rotation-keys N] [--peers] [--helayers-python PYTHON]
    python -m benchmarks.he lenet [--samples 100] [--rotation-keys N] [--peers] [--helayers-python PYTHON]
    python -m benchmarks.he block [--samples 3]      # of the power-softmax ViT: see examples/vit_block.py
    python -m benchmarks.he operations [--backend openfhe]
    python -m benchmarks.he bootstrap

Everything runs in this process and on one core. Times are of warm evaluations: keys, circuit and plaintexts are in
memory, the query's ciphertexts too; `process` is the time of this process alone, which other work on the machine
lengthens less. `operations` measures single operations, from which `targets/he/cost.py` has its factors.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import lowerkit
import lowerkit.api
from examples import vit_block
from lowerkit.graph.load import load_model
from lowerkit.reference import Reference
from lowerkit.targets.base import get_target
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
        pairs = evaluated(MODELS[name], artifact, [{"image": image[None]} for image in images])
    right = sum(int(found.argmax() == label) for (found, _), label in zip(pairs, labels, strict=True))
    exact = sum(int(lowered.argmax() == label) for (_, lowered), label in zip(pairs, labels, strict=True))
    print(f"  right {right}, float model {exact}, of {samples}")


def block(samples: int) -> None:
    """The same for a transformer block with its layer norms folded; its numbers need retraining, its time does not."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        vit_block.write(folder)
        artifact = lowerkit.api.compile(
            folder / "block.onnx",
            folder / "out",
            "he",
            calibration=folder / "calibration.npz",
            methods=vit_block.METHODS,
        )
        with np.load(folder / "test.npz") as data:
            evaluated("block", artifact, [{"tokens": tokens[None]} for tokens in data["tokens"][:samples]])


def evaluated(
    name: str, artifact: lowerkit.Artifact, samples: Sequence[Mapping[str, np.ndarray]]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Run samples encrypted, print what that takes; the outputs with those of the lowered graph in float."""
    client = Client(artifact.directory / "client")
    generated, _, (_, public) = timed(client.generate)
    loaded, _, server = timed(lambda: Server(artifact.directory / "server", public))
    reference = Reference(artifact.model())
    pairs, encrypting, answering = [], [], []
    for sample in samples:
        wall, _, query = timed(partial(client.encrypt, sample))
        encrypting.append(wall)
        wall, _, answer = timed(partial(server.evaluate, query))
        answering.append(wall)
        (found,) = client.decrypt(answer).values()
        (expected,) = reference(sample).values()
        pairs.append((found, expected))
    parcel = files.unpack(query, files.QUERY, server.circuit)
    inputs = [server.scheme.loaded(part, "the query") for part in parcel.parts]
    # A second of warming up, and as many runs as take some ten seconds.
    runs = [timed(lambda: server.program.run(inputs))[:2]]
    runs += [
        timed(lambda: server.program.run(inputs))[:2] for _ in range(int(min(WARM, 1 + 10 / runs[0][0])))
    ]
    (costs,) = get_target("he").costs(artifact.directory)
    print(f"{name}: ring {server.scheme.parameters.degree}, {len(samples)} samples")
    print(
        "  " + ", ".join(f"{n} {v}" for n, v in zip(costs.columns[1:-1], costs.rows[-1][1:-1], strict=True))
    )
    print(
        f"  evaluate, warm: best {min(w for w, _ in runs):.4f} s, of the process {min(p for _, p in runs):.4f} s"
    )
    print(f"  answer a query, with reading it: median {np.median(answering):.4f} s")
    print(f"  encrypt: median {np.median(encrypting):.4f} s")
    print(f"  keys: {generated:.1f} s, {len(public) / 1e6:.1f} MB; server ready in {loaded:.1f} s")
    print(f"  query {len(query) / 1e6:.2f} MB, answer {len(answer) / 1e6:.2f} MB")
    print(f"  largest error {max(float(np.abs(found - expected).max()) for found, expected in pairs):.2g}")
    return pairs


def tenseal() -> None:
    """The MLP as TenSEAL's documentation would write it: one vector, `mm`, `square`, `mm`.

    Its second `mm` reads beyond the end of the vector that the first one made, so that the first logit is right and the
    others are not, at whatever precision; the time is that of the same operations.
    """
    try:
        import tenseal as ts
    except ImportError:
        print("tenseal: left out, for it is not installed (pip install tenseal)")
        return
    model = onnx.load(EXAMPLES / "models" / f"{MODELS['mlp']}.onnx")
    weights = {t.name: onnx.numpy_helper.to_array(t).astype(float) for t in model.graph.initializer}
    context = ts.context(ts.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[46, 40, 40, 40, 50])
    context.global_scale = 2.0**40
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
    errors = np.abs(np.array(answer.decrypt()) - expected)
    print(f"tenseal {ts.__version__}, high level, ring 8192")
    print(f"  evaluate: {wall:.4f} s, of the process {process:.4f} s")
    print(f"  error of the first logit {errors[0]:.2g}, of the others {errors[1:].max():.2g}")


def helayers(name: str, python: str, samples: int = 10) -> None:
    """The same network by HElayers' path for ONNX files, in an interpreter that has it; free for non-commercial use."""
    if not python:
        print(
            "helayers: left out, for no interpreter has it (--helayers-python; its wheel is for CPython 3.10)"
        )
        return
    model = onnx.load(EXAMPLES / "models" / f"{MODELS[name]}.onnx")
    with np.load(EXAMPLES / "data" / "fashion_test.npz") as data:
        images = data["image"][:samples]
    with tempfile.TemporaryDirectory() as scratch:
        graph, given, found = (Path(scratch, file) for file in ("model.onnx", "in.npy", "out.npy"))
        shape = _without_reshapes(model)
        onnx.save(model, graph)
        np.save(given, images.reshape(-1, *shape))
        worker = Path(__file__).with_name("he_helayers.py")
        command = [python, str(worker), str(graph), str(given), str(found)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            print(f"helayers: left out, for it says: {done.stderr.strip().splitlines()[-1]}")
            return
        print(done.stdout, end="")
        reference = Reference(load_model(graph))
        expected = [next(iter(reference({"image": x[None]}).values()))[0] for x in np.load(given)]
        print(f"  largest error {np.abs(np.load(found) - np.array(expected)).max():.2g}")


def _without_reshapes(model: onnx.ModelProto) -> tuple[int, ...]:
    """Put the graph's input behind a leading Reshape, and Flatten for others: HElayers' parser takes no [-1, ...].

    Returns the shape of a sample.
    """
    graph = model.graph
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    shape = [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim][1:]
    for node in [n for n in graph.node if n.op_type == "Reshape"]:
        if node.input[0] == graph.input[0].name:
            shape = constants[node.input[1]][1:].tolist()
            for reader in graph.node:
                for i, name in enumerate(reader.input):
                    reader.input[i] = graph.input[0].name if name == node.output[0] else name
            graph.node.remove(node)
        else:
            node.CopyFrom(onnx.helper.make_node("Flatten", [node.input[0]], list(node.output)))
    graph.input[0].CopyFrom(
        onnx.helper.make_tensor_value_info(graph.input[0].name, onnx.TensorProto.FLOAT, [1, *shape])
    )
    return tuple(shape)


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
    parser.add_argument("what", choices=[*MODELS, "block", "operations", "bootstrap"])
    parser.add_argument("--backend", choices=["seal", "openfhe"], default="seal")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--rotation-keys", type=int, default=0, help="most rotations that have a key")
    parser.add_argument(
        "--peers", action="store_true", help="run TenSEAL's high-level interface and HElayers too"
    )
    parser.add_argument("--helayers-python", default="", help="an interpreter that has pyhelayers")
    given = parser.parse_args()
    if given.what == "bootstrap" or given.backend == "openfhe":
        # OpenFHE's wheel is for another interpreter.
        command = [interpreter(""), Path(__file__).with_name("he_openfhe.py"), given.what]
        subprocess.run([str(part) for part in command], check=True)
        return
    if given.what == "operations":
        operations()
        return
    if given.what == "block":
        block(min(given.samples, 3))
        return
    network(given.what, given.samples, given.rotation_keys)
    if given.peers:
        helayers(given.what, given.helayers_python)
    if given.peers and given.what == "mlp":
        tenseal()


if __name__ == "__main__":
    main()
