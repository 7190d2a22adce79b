"""Client and server: really encrypted, apart from each other, and what they refuse."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from he_models import MLP, completed, emitted, mlp_weights, uniform
from helpers import parse

from lowerkit.errors import DataError, UnsupportedError
from lowerkit.reference import Reference
from lowerkit.targets.he import parameters, report, simulator
from lowerkit.targets.he.runtime import files
from lowerkit.targets.he.runtime.client import Client
from lowerkit.targets.he.runtime.files import RunError
from lowerkit.targets.he.runtime.server import Server
from lowerkit.targets.he.sizes import sizes
from lowerkit.targets.he.target import HeTarget

pytest.importorskip("seal", reason="SEAL is missing: pip install seal-python")

MODEL = parse(MLP, **mlp_weights())
SAMPLES = uniform(MODEL, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An emitted artifact."""
    return emitted(MODEL, tmp_path_factory.mktemp("he") / "out")


@pytest.fixture(scope="module")
def sides(folder: Path) -> tuple[Client, Server, bytes, bytes]:
    """A client, a server with its keys, and the keys' files."""
    client = Client(folder / "client")
    secret, public = client.generate()
    return client, Server(folder / "server", public), secret, public


def _run(side: str, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command as a user gives it, without lowerkit in reach."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-m", side, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_encrypted_numbers_are_the_models(sides: tuple[Client, Server, bytes, bytes]) -> None:
    client, server, *_ = sides
    for sample in SAMPLES:
        found = client.decrypt(server.evaluate(client.encrypt(sample)))["y"]
        expected = Reference(MODEL)(sample)["y"]
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_both_sides_run_alone_through_files(folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", **SAMPLES[0])
    keys = tmp_path / "keys"
    for side, arguments in (
        ("client", ("keygen", keys)),
        ("client", ("encrypt", keys, tmp_path / "in.npz", tmp_path / "query")),
        ("server", ("evaluate", keys / "evaluation.keys", tmp_path / "query", tmp_path / "answer")),
        ("client", ("decrypt", keys, tmp_path / "answer", tmp_path / "out.npz")),
    ):
        done = _run(side, folder, *arguments)
        assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out.npz") as found:
        np.testing.assert_allclose(found["y"], Reference(MODEL)(SAMPLES[0])["y"], atol=1e-4)
    assert (keys / "secret.key").stat().st_mode & 0o077 == 0


def test_a_server_answers_over_a_socket(folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", **SAMPLES[1])
    assert _run("client", folder, "keygen", tmp_path / "keys").returncode == 0
    place = tmp_path / "socket"
    command = [
        sys.executable,
        "-m",
        "server",
        "serve",
        tmp_path / "keys" / "evaluation.keys",
        "--socket",
        place,
        "--times",
        tmp_path / "times.json",
    ]
    with subprocess.Popen([*map(str, command)], cwd=folder, stderr=subprocess.PIPE) as server:
        try:
            while not place.exists() and server.poll() is None:
                time.sleep(0.05)
            asked = ("ask", tmp_path / "keys", tmp_path / "in.npz", tmp_path / "out.npz", "--socket", place)
            done = _run("client", folder, *asked)
            assert done.returncode == 0, done.stderr
            assert _run("client", folder, "keygen", tmp_path / "other").returncode == 0
            done = _run("client", folder, "ask", tmp_path / "other", *asked[2:])
            assert done.returncode == 2
            assert "the server refuses" in done.stderr
            assert "belongs to key" in done.stderr
        finally:
            server.terminate()
    with np.load(tmp_path / "out.npz") as found:
        np.testing.assert_allclose(found["y"], Reference(MODEL)(SAMPLES[1])["y"], atol=1e-4)
    lowered = HeTarget().planned(MODEL, completed(MODEL, SAMPLES)).levelled
    assert len(json.loads((tmp_path / "times.json").read_text())) == len(lowered.ops)


#: Prints the files that the server opens, then what of its memory or modules could make or use a secret key.
WATCHED = """
import sys
opened = []
sys.addaudithook(lambda event, a: opened.append(str(a[0])) if event == "open" else None)
from server.server import main
status = main(sys.argv[1:])
print([path for path in opened if path.endswith("secret.key") or "/client/" in path])
import gc, seal
private = (seal.SecretKey, seal.KeyGenerator, seal.Decryptor)
print([type(o).__name__ for o in gc.get_objects() if isinstance(o, private)])
sys.exit(status)
"""


def test_the_secret_key_stays_with_the_client(folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", **SAMPLES[0])
    keys = tmp_path / "keys"
    assert _run("client", folder, "keygen", keys).returncode == 0
    assert _run("client", folder, "encrypt", keys, tmp_path / "in.npz", tmp_path / "query").returncode == 0
    # The server alone, with the public keys alone, on another machine as it were.
    alone = tmp_path / "alone"
    shutil.copytree(folder / "server", alone / "server", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(keys / "evaluation.keys", alone)
    arguments = ("evaluate", "evaluation.keys", str(tmp_path / "query"), str(tmp_path / "answer"))
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *arguments], cwd=alone, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]
    secret = files.unpack((keys / "secret.key").read_bytes(), files.SECRET, Client(folder / "client").circuit)
    everything = [
        *folder.joinpath("server").rglob("*"),
        *alone.rglob("*"),
        tmp_path / "query",
        tmp_path / "answer",
    ]
    for path in everything:
        if path.is_file():
            data = path.read_bytes()
            for start in range(200, len(secret.parts[0]) - 64, len(secret.parts[0]) // 7):
                assert secret.parts[0][start : start + 64] not in data, path
            if path.suffix == ".py":
                assert b"SecretKey" not in data
                assert b"Decryptor" not in data


def test_inputs_outside_the_range_are_not_encrypted(sides: tuple[Client, Server, bytes, bytes]) -> None:
    client = sides[0]
    for bad, message in (
        ({"x": np.full((1, 12), 7.0)}, "circuit is made for .* nothing was encrypted"),
        ({"x": np.full((1, 12), np.nan)}, "nothing was encrypted"),
        ({"x": np.zeros((2, 12))}, "shape"),
        ({"z": np.zeros((1, 12))}, "no input 'x'"),
    ):
        with pytest.raises(RunError, match=message):
            client.encrypt(bad)


def test_foreign_and_damaged_files_are_refused(
    folder: Path, sides: tuple[Client, Server, bytes, bytes], tmp_path: Path
) -> None:
    client, server, secret, public = sides
    query = client.encrypt(SAMPLES[0])
    other = Client(folder / "client")
    other_secret, _ = other.generate()
    foreign = Client(emitted(parse(MLP, **mlp_weights(4)), tmp_path / "foreign") / "client")
    foreign.generate()
    flipped = bytearray(query)
    flipped[-9] ^= 1
    old = query.replace(b'"format": 1', b'"format": 9')
    for data, message in (
        (other.encrypt(SAMPLES[0]), "belongs to key"),
        (foreign.encrypt(SAMPLES[0]), "is for circuit"),
        (query[:-100], "cut off"),
        (query[:30], "cut off"),
        (b"", "cut off"),
        (bytes(flipped), "damaged"),
        (old, "format 9"),
        (public, "holds a evaluation keys|wanted"),
        (files.Parcel(files.QUERY, server.circuit, server.key, (b"nonsense",)).pack(), "not valid|wanted"),
    ):
        with pytest.raises(RunError, match=message):
            server.evaluate(data)
    with pytest.raises(RunError, match="belongs to key"):
        other.decrypt(server.evaluate(query))
    for bad in (secret[:200], public, other_secret[: len(other_secret) // 2]):
        with pytest.raises(RunError, match=r"cut off|wanted"):
            client.take(bad)
    with pytest.raises(RunError, match="cut off"):
        Server(folder / "server", public[: len(public) // 2])


def test_commands_refuse_in_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no arrays")
    assert _run("client", folder, "keygen", tmp_path / "keys").returncode == 0
    for side, arguments in (
        ("client", ("keygen", tmp_path / "keys")),
        ("client", ("encrypt", tmp_path / "keys", tmp_path / "text.npz", tmp_path / "q")),
        ("client", ("encrypt", tmp_path / "none", tmp_path / "text.npz", tmp_path / "q")),
        ("client", ("decrypt", tmp_path / "keys", tmp_path / "text.npz", tmp_path / "o")),
        ("server", ("evaluate", tmp_path / "keys" / "secret.key", tmp_path / "text.npz", tmp_path / "a")),
        (
            "server",
            ("evaluate", tmp_path / "keys" / "evaluation.keys", tmp_path / "text.npz", tmp_path / "a"),
        ),
    ):
        done = _run(side, folder, *arguments)
        assert done.returncode == 2, arguments
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith(f"{side}: error: ")


def test_equal_inputs_give_equal_files(folder: Path, tmp_path: Path) -> None:
    again = emitted(MODEL, tmp_path / "again")
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".npz", ".py"):
            assert path.read_bytes() == (again / path.relative_to(folder)).read_bytes(), path


def test_the_simulator_has_the_noise_of_seal(
    folder: Path, sides: tuple[Client, Server, bytes, bytes]
) -> None:
    client, server, *_ = sides
    planned = HeTarget().planned(MODEL, completed(MODEL, SAMPLES))
    vectors = parameters.vectors_of(planned.network, SAMPLES[0])
    exact = simulator.simulate(planned.levelled, vectors, noisy=False)
    simulated = simulator.simulate(planned.levelled, vectors)
    decrypted: list[np.ndarray] = []
    parcel = files.unpack(client.encrypt(SAMPLES[0]), files.QUERY, server.circuit)
    server.program.run(
        [server.scheme.loaded(part, "the query") for part in parcel.parts],
        observe=lambda _, c: decrypted.append(client.keys.decrypt(c)),
    )
    for i, op in enumerate(planned.levelled.ops):
        if op.kind not in ("input", "rescale", "rotate") or op.scale > 2**60:
            continue  # the noise of a product that is not rescaled lies in the few slots that do not hold 0
        measured, modelled = np.std(decrypted[i] - exact[i]), np.std(simulated[i] - exact[i])
        assert modelled / 1.3 < measured < modelled * 1.3, (i, op)


def test_sizes_are_those_of_the_files(sides: tuple[Client, Server, bytes, bytes]) -> None:
    client, server, _, public = sides
    counted = sizes(HeTarget().planned(MODEL, completed(MODEL, SAMPLES)).levelled)
    query = client.encrypt(SAMPLES[0])
    for size, data in (
        (counted.keys, public),
        (counted.query, query),
        (counted.answer, server.evaluate(query)),
    ):
        assert size <= len(data) < 1.01 * size + 4096


def test_too_little_memory_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"the server would hold .* max_memory is 0.001"):
        completed(MODEL, SAMPLES, max_memory=0.001)


def test_insecure_artifacts_are_marked(tmp_path: Path) -> None:
    folder = emitted(MODEL, tmp_path / "out", ring=4096, scale=40, insecure_for_testing=True)
    assert json.loads((folder / "client" / "client.json").read_text())["parameters"]["insecure"] is True
    done = _run("client", folder, "keygen", tmp_path / "keys")
    assert done.returncode == 0
    assert "insecure" in done.stderr


def test_the_runner_encrypts_and_refuses_as_a_user_would_see_it(folder: Path) -> None:
    run = HeTarget().open(folder, {})
    np.testing.assert_allclose(run(SAMPLES[2])["y"], Reference(MODEL)(SAMPLES[2])["y"], atol=1e-4)
    with pytest.raises(DataError, match="nothing was encrypted"):
        run({"x": np.full((1, 12), 9.0, np.float32)})


@pytest.mark.parametrize("changed", ["circuit.npz", "server.json"])
def test_a_changed_circuit_is_refused_before_evaluation(
    changed: str, folder: Path, sides: tuple[Client, Server, bytes, bytes], tmp_path: Path
) -> None:
    copied = tmp_path / "server"
    shutil.copytree(folder / "server", copied)
    if changed == "circuit.npz":
        with np.load(copied / changed) as stored:
            arrays = dict(stored)
        arrays["plains"][0, 0] += 0.25
        np.savez_compressed(copied / changed, **arrays)
    else:
        description = json.loads((copied / changed).read_text())
        description["rotations"] = []
        (copied / changed).write_text(json.dumps(description))
    with pytest.raises(RunError, match=r"server\.json or circuit\.npz was changed"):
        Server(copied, sides[3])


def test_a_circuit_changed_with_its_digests_is_not_the_keys(
    folder: Path, sides: tuple[Client, Server, bytes, bytes], tmp_path: Path
) -> None:
    copied = tmp_path / "server"
    shutil.copytree(folder / "server", copied)
    description = json.loads((copied / "server.json").read_text())
    description.pop("circuit")
    digests = description.pop("digests")
    description["rotations"] = []
    digests["server"] = files.digest_of(description, (copied / "circuit.npz").read_bytes())
    whole = {"circuit": files.circuit_of(**digests), "digests": digests, **description}
    (copied / "server.json").write_text(json.dumps(whole))
    with pytest.raises(RunError, match="is for circuit"):
        Server(copied, sides[3])


def test_a_changed_layout_is_refused_by_the_client(folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "client"
    shutil.copytree(folder / "client", copied)
    with np.load(copied / "layouts.npz") as stored:
        np.savez_compressed(copied / "layouts.npz", **{k: v[..., ::-1] for k, v in stored.items()})
    with pytest.raises(RunError, match=r"client\.json or layouts\.npz was changed"):
        Client(copied)


def test_fewer_rotation_keys_give_the_same_numbers(tmp_path: Path) -> None:
    options = completed(MODEL, SAMPLES)
    every = HeTarget().planned(MODEL, options).levelled
    few = {**options, "max_rotation_keys": 3, "encode_ahead": False}
    lowered = HeTarget().planned(MODEL, few).levelled
    assert len(every.steps()) > len(lowered.steps()) == 3
    assert sizes(lowered).keys < sizes(every).keys
    folder = tmp_path / "out"
    folder.mkdir()
    HeTarget().emit(MODEL, few, folder)
    np.testing.assert_allclose(
        HeTarget().open(folder, few)(SAMPLES[0])["y"], Reference(MODEL)(SAMPLES[0])["y"], atol=1e-4
    )


def test_memory_that_is_short_takes_plaintexts_and_then_rotation_keys() -> None:
    options = completed(MODEL, SAMPLES)
    lowered = HeTarget().planned(MODEL, options).levelled
    whole, late = sizes(lowered), sizes(lowered, ahead=False)
    assert late.plains < whole.plains
    assert completed(MODEL, SAMPLES, max_memory=late.server / 2**30)["max_rotation_keys"] == 0
    enough = late.server - late.keys / 3
    fewer = completed(MODEL, SAMPLES, max_memory=enough / 2**30)
    assert not fewer["encode_ahead"]
    assert 0 < fewer["max_rotation_keys"] < len(lowered.steps())
    assert sizes(HeTarget().planned(MODEL, fewer).levelled, ahead=False).server <= enough


def test_the_time_of_a_run_is_measured_by_operation(sides: tuple[Client, Server, bytes, bytes]) -> None:
    client, server, *_ = sides
    server.evaluate(client.encrypt(SAMPLES[0]))
    lowered = HeTarget().planned(MODEL, completed(MODEL, SAMPLES)).levelled
    assert len(server.seconds) == len(lowered.ops)
    table = report.table(lowered, server.seconds)
    assert table.columns[-1] == "measured"
    assert table.rows[-1][-1] == 1000
    assert abs(sum(int(row[-1]) for row in table.rows[:-1]) - 1000) <= len(table.rows)
