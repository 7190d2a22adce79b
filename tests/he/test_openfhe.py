"""OpenFHE: its primes, its noise, bootstrapping; really encrypted where an interpreter has it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from he_models import MLP, completed, deep_mlp, emitted, mlp_weights, uniform
from helpers import parse

from lowerkit.errors import PlanError, ToolError, UnsupportedError
from lowerkit.reference import Reference
from lowerkit.targets.he import bootstrapping, chains, levelled, measured, parameters, security, simulator
from lowerkit.targets.he.packed import Packed
from lowerkit.targets.he.sizes import sizes
from lowerkit.targets.he.target import HeTarget
from lowerkit.targets.he.worker import VARIABLE, importable, interpreter


def _python() -> str | None:
    """An interpreter with OpenFHE, if there is one."""
    if importable():
        return sys.executable
    try:
        return str(interpreter(""))
    except ToolError:
        return None


PYTHON = _python()
needs_openfhe = pytest.mark.skipif(
    PYTHON is None, reason=f"no interpreter with OpenFHE: set {VARIABLE} to one"
)
#: Bootstrapping as fast as it can be: in a small ring, far below 128 bits.
SMALL = {
    "backend": "openfhe",
    "ring": 2048,
    "refresh": 16,
    "levels": 20,
    "digits": 4,
    "precision": 0.01,
    "insecure_for_testing": True,
}


def _iterated(times: int) -> ir.Model:
    """x (1.4 - 0.5 x^2), `times` times over, of which each takes 3 levels; for x in [0.5, 1] all values are below 1."""
    lines = [
        f"s{i} = Mul (x{i}, x{i}) t{i} = Mul (s{i}, a) u{i} = Add (t{i}, b) x{i + 1} = Mul (u{i}, x{i})"
        for i in range(times)
    ]
    text = f"(float[1,4] x0) => (float[1,4] x{times}) {{ {' '.join(lines)} }}"
    return parse(text, a=np.array([-0.5], np.float32), b=np.array([1.4], np.float32))


def _halves(model: ir.Model) -> list[dict[str, np.ndarray]]:
    return [{"x0": 0.75 + sample["x0"] / 4} for sample in uniform(model, 4)]


def test_digits_and_special_primes_are_within_the_table() -> None:
    model = parse(MLP, **mlp_weights())
    options = completed(model, uniform(model, 2), backend="openfhe")
    chain = HeTarget().planned(model, options).levelled.chain
    assert security.is_secure(chain.degree, (*chain.primes, *chain.specials))
    # One scale more is not secure, or longer than any scale.
    wider = {**options, "scale": options["scale"] + 8}
    with pytest.raises(UnsupportedError, match="not secure"):
        HeTarget().planned(model, wider)


def test_a_ring_of_65536_holds_what_smaller_ones_do_not() -> None:
    model = _iterated(10)
    samples = _halves(model)[:1]
    with pytest.raises(UnsupportedError, match="no ring can hold it"):
        completed(model, samples)
    options = completed(model, samples, backend="openfhe")
    chain = HeTarget().planned(model, options).levelled.chain
    assert (chain.degree, len(chain.primes), options["bootstraps"]) == (65536, 31, {})
    assert security.is_secure(65536, (*chain.primes, *chain.specials))


def test_bootstraps_are_placed_where_the_depth_does_not_fit() -> None:
    model = _iterated(24)
    options = completed(model, _halves(model)[:1], backend="openfhe", ring=65536, precision=0.01)
    planned = HeTarget().planned(model, options)
    program, chain = planned.levelled, planned.levelled.chain
    levelled.check(program)
    assert security.is_secure(chain.degree, (*chain.primes, *chain.specials))
    # Three levels each: the first segment has all of the chain, and the others what bootstrapping leaves.
    first, between, last = ((levels) // 3 for levels in (len(chain.primes) - 3, chain.top - 2, chain.top - 1))
    fewest = 1 + -(-(24 - first - last) // between)
    assert [op.kind for op in program.ops].count("bootstrap") == fewest
    assert sizes(program).keys > 2 * sizes(replace(program, chain=replace(chain, refresh=None))).keys


def test_a_program_that_is_too_deep_between_cuts_is_refused() -> None:
    model = _iterated(12)
    with pytest.raises(UnsupportedError, match="leaves too few levels"):
        completed(model, _halves(model), **{**SMALL, "levels": 14})


def test_foreign_places_are_refused() -> None:
    model = _iterated(7)
    options = completed(model, _halves(model), **SMALL)
    with pytest.raises(PlanError, match="nothing can be bootstrapped"):
        HeTarget().planned(model, {**options, "bootstraps": {"-1": [20], "999": [4, 1]}})
    with pytest.raises(PlanError, match="option bootstraps: operation"):
        HeTarget().planned(model, {**options, "bootstraps": {**options["bootstraps"], "-1": [9]}})


def test_slots_that_are_read() -> None:
    packed = Packed(16)
    x = packed.input()
    copied = packed.total([packed.rotate(packed.mul_plain(x, np.eye(16)[0]), -i) for i in range(0, 16, 4)])
    packed.outputs = [packed.mul_plain(copied, (np.arange(16) < 8).astype(float))]
    read = bootstrapping.read_slots(packed, [(packed.outputs[0], np.array([0, 4]))])
    np.testing.assert_array_equal(np.flatnonzero(read[copied]), [0, 4])
    np.testing.assert_array_equal(np.flatnonzero(read[x]), [0])


def test_the_simulator_bootstraps_and_doubles() -> None:
    model = _iterated(7)
    planned = HeTarget().planned(model, completed(model, _halves(model), **SMALL))
    assert any(op.kind == "bootstrap" for op in planned.levelled.ops)
    for sample in _halves(model):
        vectors = parameters.vectors_of(planned.network, sample)
        (value,) = planned.levelled.outputs
        places = planned.network.layouts["x7"].places
        exact = simulator.simulate(planned.levelled, vectors, noisy=False)[value][places]
        np.testing.assert_allclose(exact, Reference(model)(sample)["x7"].ravel(), rtol=1e-5)


def test_without_an_interpreter_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(ToolError, match=r"pip install numpy openfhe.*openfhe_python"):
        interpreter("")
    with pytest.raises(ToolError, match="cannot run"):
        interpreter(str(tmp_path / "none"))


PRIMES = """
import json, sys, openfhe
degree, bits, first, count, digits = map(int, sys.argv[1:])
chosen = openfhe.CCParamsCKKSRNS()
chosen.SetRingDim(degree)
chosen.SetScalingModSize(bits)
chosen.SetFirstModSize(first)
chosen.SetMultiplicativeDepth(count - 1)
chosen.SetScalingTechnique(openfhe.FIXEDMANUAL)
chosen.SetSecurityLevel(openfhe.HEStd_NotSet)
chosen.SetKeySwitchTechnique(openfhe.HYBRID)
chosen.SetNumLargeDigits(digits)
context = openfhe.GenCryptoContext(chosen)
for feature in (openfhe.PKE, openfhe.KEYSWITCH, openfhe.LEVELEDSHE):
    context.Enable(feature)
secret = context.KeyGen().secretKey
context.EvalMultKeyGen(secret)
key = json.loads(openfhe.SerializeEvalMultKeyString(openfhe.JSON, secret.GetKeyTag()))
found = []
def walk(x):
    if isinstance(x, dict):
        if isinstance(x.get("cm"), dict) and isinstance(x["cm"]["v"], int) and x["cm"]["v"] not in found:
            found.append(x["cm"]["v"])
        x = list(x.values())
    for y in x if isinstance(x, list) else ():
        walk(y)
walk(key)
print(json.dumps(found))
"""


@needs_openfhe
@pytest.mark.parametrize("given", [(512, 36, 50, 5, 3), (512, 57, 60, 10, 5), (512, 55, 60, 5, 1)])
def test_openfhe_chooses_the_primes_that_the_planner_expects(given: tuple[int, ...]) -> None:
    command = [str(PYTHON), "-c", PRIMES, *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    primes, specials, _ = chains.openfhe_primes(*given)
    assert set(json.loads(done.stdout)) == {*primes, *specials}


@needs_openfhe
def test_a_levelled_network_encrypted(tmp_path: Path) -> None:
    model = parse(MLP, **mlp_weights())
    folder = emitted(model, tmp_path / "out", backend="openfhe")
    run = HeTarget().open(folder, {"backend": "openfhe", "openfhe_python": str(PYTHON)})
    sample = uniform(model, 1)[0]
    np.testing.assert_allclose(run(sample)["y"], Reference(model)(sample)["y"], atol=1e-4)
    assert sum(measured.known(folder) or ()) > 0
    for path in (folder / "server").glob("*.py"):
        text = path.read_text()
        assert not any(word in text for word in ("secretKey", "PrivateKey", "KeyGen", "Decrypt(")), path


#: Prints, for each operation, the slots that the client would see.
OBSERVED = """
import sys, numpy as np
from client.client import Client
from server.server import Server
from server.files import QUERY, unpack
from pathlib import Path
client = Client(Path("client"))
_, public = client.generate()
server = Server(Path("server"), public)
with np.load(sys.argv[1]) as given:
    query = client.encrypt(dict(given))
seen = []
parts = unpack(query, QUERY, server.circuit).parts
server.program.run([server.scheme.loaded(p, "") for p in parts], observe=lambda _, c: seen.append(
    client.keys.decrypt(c) if c.GetScalingFactor() < 2**60 else np.zeros(server.scheme.slots)))
np.save(sys.argv[2], np.array(seen))
"""


def _observed(folder: Path, sample: dict[str, np.ndarray], work: Path) -> np.ndarray:
    """What every operation's ciphertext holds, float64 [operations, slots]."""
    np.savez(work / "in.npz", **sample)
    environment: dict[str, Any] = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    command = [str(PYTHON), "-c", OBSERVED, str(work / "in.npz"), str(work / "seen.npy")]
    subprocess.run(command, cwd=folder, env=environment, check=True)
    found: np.ndarray = np.load(work / "seen.npy")
    return found


@needs_openfhe
def test_rotations_have_the_noise_of_the_simulator(tmp_path: Path) -> None:
    model = parse(MLP, **mlp_weights())
    sample = uniform(model, 1)[0]
    planned = HeTarget().planned(model, completed(model, uniform(model, 4), backend="openfhe"))
    vectors = parameters.vectors_of(planned.network, sample)
    exact = simulator.simulate(planned.levelled, vectors, noisy=False)
    noisy = simulator.simulate(planned.levelled, vectors)
    folder = emitted(model, tmp_path / "out", backend="openfhe")
    seen = _observed(folder, sample, tmp_path)
    for i, op in enumerate(planned.levelled.ops):
        if op.kind in ("rescale", "rotate"):
            # The median, as the few slots near the root 1 depend on the key. What decryption adds to all slots
            # is as large as the mean, those few among it.
            measured, modelled = (np.median(np.abs(x[i] - exact[i])) for x in (seen, noisy))
            assert modelled / 1.5 < measured < modelled * 6, (i, op)


@needs_openfhe
@pytest.mark.parametrize("secret", ["sparse", "uniform"])
def test_bootstrapping_encrypted_has_the_noise_of_the_simulator(tmp_path: Path, secret: str) -> None:
    model = _iterated(7)
    sample = _halves(model)[0]
    options = completed(model, _halves(model), **SMALL, secret=secret)
    folder = tmp_path / "out"
    folder.mkdir()
    HeTarget().emit(model, options, folder)
    planned = HeTarget().planned(model, options)
    vectors = parameters.vectors_of(planned.network, sample)
    exact = simulator.simulate(planned.levelled, vectors, noisy=False)
    noisy = simulator.simulate(planned.levelled, vectors)
    seen = _observed(folder, sample, tmp_path)
    (place,) = [i for i, op in enumerate(planned.levelled.ops) if op.kind == "bootstrap"]
    measured, modelled = np.std(seen[place] - exact[place]), np.std(noisy[place] - exact[place])
    assert modelled / 10 < measured < modelled * 4
    (output,) = planned.levelled.outputs
    places = planned.network.layouts["x7"].places
    np.testing.assert_allclose(seen[output][places], Reference(model)(sample)["x7"].ravel(), atol=2e-3)


@needs_openfhe
@pytest.mark.slow
def test_a_deep_network_with_bootstrapping_at_128_bits(tmp_path: Path) -> None:
    model = deep_mlp(6)
    samples = uniform(model, 4)
    options = completed(model, samples, backend="openfhe", ring=65536, refresh=16, precision=0.05)
    assert len(options["bootstraps"]) > 1
    folder = tmp_path / "out"
    folder.mkdir()
    HeTarget().emit(model, options, folder)
    run = HeTarget().open(folder, {**options, "openfhe_python": str(PYTHON)})
    found = run(samples[0])["y"]
    np.testing.assert_allclose(found, Reference(model)(samples[0])["y"], atol=0.05)


#: Prints the number of the secret's coefficients that are not 0: the mean of the products of its values at a root and
#: at the inverse root, of which OpenFHE's order has one at i and the other at -1 - i.
WEIGHT = """
import json
from pathlib import Path
from client.client import Client
client = Client(Path("client"))
client.generate()
openfhe, given = client.keys.scheme.openfhe, client.keys.scheme.parameters
read = json.loads(openfhe.Serialize(client.keys.secret, openfhe.JSON))
values = read["value0"]["ptr_wrapper"]["data"]["s"]["v"][0]["v"]["ptr_wrapper"]["data"]["v"]
products = sum(x * y for x, y in zip(values, reversed(values)))
print(products * pow(given.degree, -1, given.primes[0]) % given.primes[0])
"""


@needs_openfhe
def test_the_secret_is_not_sparse_but_for_the_raising_of_the_modulus(tmp_path: Path) -> None:
    model = _iterated(7)
    folder = tmp_path / "out"
    folder.mkdir()
    HeTarget().emit(model, completed(model, _halves(model), **SMALL), folder)
    command = [str(PYTHON), "-c", WEIGHT]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    # Binomial, N = 2048 and p = 2/3: six standard deviations.
    assert abs(int(done.stdout) - 2048 * 2 / 3) < 6 * (2048 * 2 / 9) ** 0.5


def test_a_key_under_a_sparse_secret_has_its_own_bound() -> None:
    security.check_ephemeral(65536, (1 << 55) - 1)
    with pytest.raises(UnsupportedError, match="122 bits under a sparse secret"):
        security.check_ephemeral(65536, 1 << 55)
    with pytest.raises(UnsupportedError, match="published are 121 bits at 65536"):
        security.check_ephemeral(32768, 1 << 40)


#: Prints the moduli of the key under the sparse secret, of which OpenFHE has the index 4 below that of no rotation.
EPHEMERAL = """
import json, openfhe
from pathlib import Path
chosen = openfhe.CCParamsCKKSRNS()
chosen.SetRingDim(64)
chosen.SetScalingModSize(50)
chosen.SetFirstModSize(55)
chosen.SetMultiplicativeDepth(13)
chosen.SetScalingTechnique(openfhe.FIXEDMANUAL)
chosen.SetSecurityLevel(openfhe.HEStd_NotSet)
chosen.SetSecretKeyDist(openfhe.SPARSE_ENCAPSULATED)
context = openfhe.GenCryptoContext(chosen)
for feature in (openfhe.PKE, openfhe.KEYSWITCH, openfhe.LEVELEDSHE, openfhe.ADVANCEDSHE, openfhe.FHE):
    context.Enable(feature)
secret = context.KeyGen().secretKey
context.EvalBootstrapSetup([1, 1], [0, 0], 4)
context.EvalBootstrapKeyGen(secret, 4)
context.SerializeEvalAutomorphismKey("keys.json", openfhe.JSON, secret.GetKeyTag())
keys = json.loads(Path("keys.json").read_text())["value0"][0]["value"]["ptr_wrapper"]["data"]
found = set()
def walk(x):
    if isinstance(x, dict):
        if isinstance(x.get("cm"), dict) and isinstance(x["cm"]["v"], int):
            found.add(x["cm"]["v"])
        x = list(x.values())
    for y in x if isinstance(x, list) else ():
        walk(y)
walk(next(each for each in keys if each["key"] == 2 * 64 - 4))
print(json.dumps(sorted(found)))
"""


@needs_openfhe
def test_the_key_under_the_sparse_secret_has_the_modulus_that_is_judged(tmp_path: Path) -> None:
    command = [str(PYTHON), "-c", EPHEMERAL]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    *others, first = json.loads(done.stdout)
    assert first.bit_length() == 55
    assert security.bits(others) == security.EPHEMERAL_BITS


def test_values_that_were_bootstrapped_before_are_kept() -> None:
    # x is read at the end again, after as many levels as take bootstraps between.
    lines = " ".join(f"y{i + 1} = Mul (y{i}, y{i})" for i in range(1, 24))
    text = f"(float[1,4] x) => (float[1,4] z) {{ a = Mul (x, x) y1 = Mul (a, a) {lines} z = Add (y24, a) }}"
    model = parse(text)
    samples = [{"x": np.full((1, 4), 0.9, np.float32)}]
    options = completed(model, samples, **{**SMALL, "secret": "sparse"})
    chosen = [marks for after, (_, *marks) in options["bootstraps"].items() if after != "-1"]
    assert any(bootstrapping.KEPT in marks for marks in chosen)
    planned = HeTarget().planned(model, options)
    levelled.check(planned.levelled)
    count = sum(op.kind == "bootstrap" for op in planned.levelled.ops)
    assert count == sum(mark != bootstrapping.KEPT for marks in chosen for mark in marks)
    (value,) = planned.levelled.outputs
    places = planned.network.layouts["z"].places
    vectors = parameters.vectors_of(planned.network, samples[0])
    exact = simulator.simulate(planned.levelled, vectors, noisy=False)[value][places]
    np.testing.assert_allclose(exact, Reference(model)(samples[0])["z"].ravel(), rtol=1e-4)
