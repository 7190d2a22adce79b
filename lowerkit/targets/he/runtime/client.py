"""The side of whoever owns the data: keys, encryption and decryption.

    python -m client keygen KEYS             # writes KEYS/secret.key, which stays here, and KEYS/evaluation.keys
    python -m client encrypt KEYS IN.npz QUERY
    python -m client decrypt KEYS ANSWER OUT.npz
    python -m client ask KEYS IN.npz OUT.npz (--port N | --socket PATH)    # of `python -m server serve`

Run it in the folder above `client`. IN.npz has one array for each input, OUT.npz one for each output.
"""

from __future__ import annotations

import argparse
import http.client
import secrets
import socket
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .files import ANSWER, EVALUATION, QUERY, SECRET, Parcel, RunError, described, read, unpack, write
from .scheme import Parameters, checked_place, keys_of, opened

DESCRIPTION, LAYOUTS = "client.json", "layouts.npz"
SECRET_FILE, EVALUATION_FILE = "secret.key", "evaluation.keys"


class Client:
    """Keys and ciphertexts for one circuit; `directory` is an artifact's `client`."""

    def __init__(self, directory: Path) -> None:
        self.description, self.circuit = described(directory / DESCRIPTION, directory / LAYOUTS)
        self.scheme = opened(Parameters.read(self.description["parameters"]))
        self.keys = keys_of(self.scheme)
        with np.load(directory / LAYOUTS, allow_pickle=False) as stored:
            self.layouts = {name: stored[name] for name in stored.files}
        self.key = ""

    def generate(self) -> tuple[bytes, bytes]:
        """A new secret key, which this client takes, and its evaluation keys, as files' bytes."""
        secret, public = self.parcels()
        return secret.pack(), public.pack()

    def parcels(self) -> tuple[Parcel, Parcel]:
        """The same as what is in the files."""
        secret, public = self.keys.generate(self.description["rotations"])
        self.key = secrets.token_hex(16)
        return (
            Parcel(SECRET, self.circuit, self.key, secret),
            Parcel(EVALUATION, self.circuit, self.key, public),
        )

    def take(self, data: bytes, source: str = "the secret key") -> None:
        """Use the secret key of a file. Raises RunError."""
        parcel = unpack(data, SECRET, self.circuit, source=source)
        self.keys.take(parcel.parts, source)
        self.key = parcel.key

    def encrypt(self, inputs: Mapping[str, np.ndarray]) -> bytes:
        """A query's bytes.

        Raises RunError for an input that is missing, has another shape, or leaves the range for which the circuit
        was made: beyond it polynomials are wrong and numbers may overflow, and the server could not tell.
        """
        given = {port["name"]: _checked(port, inputs) for port in self.description["inputs"]}
        parts = []
        for vector in self.description["vectors"]:
            index = self.layouts[vector["layout"]][vector["row"]]
            numbers = np.append(given[vector["input"]].ravel(), 0.0)[index]
            ciphertext = self.keys.encrypt(numbers, vector["level"], vector["scale"])
            parts.append(self.scheme.dumped(ciphertext))
        return Parcel(QUERY, self.circuit, self.key, tuple(parts)).pack()

    def decrypt(self, data: bytes, source: str = "the answer") -> dict[str, np.ndarray]:
        """The outputs in an answer, in their shapes and types. Raises RunError."""
        parcel = unpack(data, ANSWER, self.circuit, self.key, source)
        outputs = self.description["outputs"]
        wanted = [place for port in outputs for place in port["ciphertexts"]]
        if len(parcel.parts) != len(wanted):
            raise RunError(f"{source} holds {len(parcel.parts)} ciphertexts, and {len(wanted)} are wanted")
        vectors = []
        for place, part in zip(wanted, parcel.parts, strict=True):
            ciphertext = self.scheme.loaded(part, source)
            checked_place(self.scheme, ciphertext, place["level"], place["scale"], source)
            vectors.append(self.keys.decrypt(ciphertext))
        found, first = {}, 0
        for port in outputs:
            vector, slot = self.layouts[port["layout"]]
            numbers = np.stack(vectors[first : first + len(port["ciphertexts"])])[vector, slot]
            found[port["name"]] = numbers.reshape(port["shape"]).astype(port["dtype"])
            first += len(port["ciphertexts"])
        return found


def _checked(port: Mapping[str, Any], inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    name = port["name"]
    if name not in inputs:
        raise RunError(f"there is no input '{name}'")
    numbers = np.asarray(inputs[name], np.float64)
    if list(numbers.shape) != port["shape"]:
        raise RunError(f"input '{name}' has shape {list(numbers.shape)}, and {port['shape']} is wanted")
    # Also true of NaN.
    if not np.all((numbers >= port["low"]) & (numbers <= port["high"])):
        raise RunError(
            f"input '{name}' reaches from {numbers.min():.6g} to {numbers.max():.6g}, and the circuit is made for "
            f"{port['low']:.6g} to {port['high']:.6g}: nothing was encrypted"
        )
    return numbers


def main(arguments: list[str] | None = None) -> int:
    """The command line. Exit code 2 on a refusal."""
    parser = argparse.ArgumentParser(
        prog="client", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, operands in (
        ("keygen", ("keys",)),
        ("encrypt", ("keys", "inputs", "query")),
        ("decrypt", ("keys", "answer", "outputs")),
        ("ask", ("keys", "inputs", "outputs")),
    ):
        command = commands.add_parser(name)
        for operand in operands:
            command.add_argument(operand, type=Path)
        if name == "ask":
            place = command.add_mutually_exclusive_group(required=True)
            place.add_argument("--port", type=int)
            place.add_argument("--socket", type=Path)
    given = parser.parse_args(arguments)
    try:
        client = Client(Path(__file__).resolve().parent)
        if client.scheme.parameters.insecure:
            print("client: warning: these parameters are insecure, for testing alone", file=sys.stderr)
        _COMMANDS[given.command](client, given)
    except RunError as error:
        print(f"client: error: {error}", file=sys.stderr)
        return 2
    return 0


def _keygen(client: Client, given: argparse.Namespace) -> None:
    try:
        given.keys.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make {given.keys}: {error.strerror or error}") from None
    if (given.keys / SECRET_FILE).exists():
        raise RunError(f"{given.keys / SECRET_FILE} exists already; choose another folder")
    secret, public = client.parcels()
    secret.save(given.keys / SECRET_FILE, private=True)
    public.save(given.keys / EVALUATION_FILE)


def _encrypt(client: Client, given: argparse.Namespace) -> None:
    _take(client, given.keys)
    write(given.query, client.encrypt(_read_arrays(given.inputs)))


def _decrypt(client: Client, given: argparse.Namespace) -> None:
    _take(client, given.keys)
    _write_arrays(given.outputs, client.decrypt(read(given.answer), str(given.answer)))


def _ask(client: Client, given: argparse.Namespace) -> None:
    _take(client, given.keys)
    query = client.encrypt(_read_arrays(given.inputs))
    answer = ask(query, str(given.socket) if given.socket else ("127.0.0.1", given.port))
    _write_arrays(given.outputs, client.decrypt(answer))


def ask(query: bytes, address: tuple[str, int] | str) -> bytes:
    """The answer of the server at (host, port), or at a Unix socket's path. Raises RunError."""
    connection = http.client.HTTPConnection(*(("server", 0) if isinstance(address, str) else address))
    try:
        if isinstance(address, str):
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(address)
        connection.request("POST", "/", query)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise RunError(f"no answer from the server at {address}: {error}") from None
    finally:
        connection.close()
    if response.status != 200:
        raise RunError(f"the server refuses: {body[:500].decode(errors='replace')}")
    return body


def _take(client: Client, keys: Path) -> None:
    client.take(read(keys / SECRET_FILE), str(keys / SECRET_FILE))


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise RunError(f"cannot read {path} as .npz: {error}") from None


def _write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    try:
        np.savez(path, **arrays)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from None


_COMMANDS = {"keygen": _keygen, "encrypt": _encrypt, "decrypt": _decrypt, "ask": _ask}

if __name__ == "__main__":
    sys.exit(main())
