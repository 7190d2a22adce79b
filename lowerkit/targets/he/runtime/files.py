"""Files between client and server: versioned, bound to one circuit and one key, whole or refused.

    LKHE <length of the header> <header, JSON> <parts, one after the other>

The header names the kind of file, the circuit's hash, the key's number, the length of each part and the SHA-256 of
all parts together.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAGIC, FORMAT = b"LKHE", 1
SECRET, EVALUATION, QUERY, ANSWER = "secret key", "evaluation keys", "query", "answer"
_LONGEST_HEADER = 1 << 20


class RunError(Exception):
    """One line that says what is wrong with a file, an input or the machine."""


@dataclass(frozen=True)
class Parcel:
    """What a file holds.

    Attributes:
        kind: SECRET, EVALUATION, QUERY or ANSWER.
        circuit: SHA-256 of the circuit that it is for.
        key: number of the secret key that it belongs to.
        parts: serialised keys or ciphertexts.
    """

    kind: str
    circuit: str
    key: str
    parts: tuple[bytes | memoryview, ...]

    def pack(self) -> bytes:
        """The file's bytes."""
        return b"".join([self._head(), *self.parts])

    def save(self, path: Path, *, private: bool = False) -> None:
        """Write the file: as `write`, without one more copy of keys that may have gigabytes."""
        write(path, self._head(), *self.parts, private=private)

    def _head(self) -> bytes:
        digest = hashlib.sha256()
        for part in self.parts:
            digest.update(part)
        header = {
            "format": FORMAT,
            "kind": self.kind,
            "circuit": self.circuit,
            "key": self.key,
            "lengths": [len(part) for part in self.parts],
            "sha256": digest.hexdigest(),
        }
        text = json.dumps(header).encode()
        return MAGIC + struct.pack("<I", len(text)) + text


def unpack(
    data: bytes | memoryview, kind: str, circuit: str, key: str | None = None, source: str = "the message"
) -> Parcel:
    """The parcel in `data`, which must be of that kind, for that circuit and, if given, of that key.

    Raises RunError that says what does not fit.
    """
    data, start = memoryview(data), len(MAGIC) + 4
    if data[: len(MAGIC)] != MAGIC or len(data) < start:
        raise RunError(f"{source} is no key or ciphertext file of lowerkit, or is cut off")
    (length,) = struct.unpack("<I", data[len(MAGIC) : start])
    try:
        header: Any = json.loads(bytes(data[start : start + length])) if length <= _LONGEST_HEADER else None
        found, of, number = header["kind"], header["circuit"], header["key"]
        version, lengths, digest = header["format"], header["lengths"], header["sha256"]
    except (ValueError, TypeError, KeyError):
        raise RunError(f"{source} is damaged or cut off: it has no valid header") from None
    if version != FORMAT:
        raise RunError(f"{source} has format {version}, and this program reads format {FORMAT}")
    if found != kind:
        raise RunError(f"{source} holds a {found}, and a {kind} is wanted")
    if of != circuit:
        raise RunError(f"{source} is for circuit {of[:12]}, and this is circuit {circuit[:12]}")
    if key is not None and number != key:
        raise RunError(f"{source} belongs to key {number[:12]}, and the keys at hand are {key[:12]}")
    body = data[start + length :]
    if len(body) != sum(lengths):
        raise RunError(
            f"{source} has {len(body)} bytes of data, and {sum(lengths)} are wanted: it is cut off"
        )
    if hashlib.sha256(body).hexdigest() != digest:
        raise RunError(f"{source} is damaged: its SHA-256 is not the one that it states")
    return Parcel(kind, of, number, tuple(_split(body, lengths)))


def _split(body: memoryview, lengths: Sequence[int]) -> list[memoryview]:
    ends = [0]
    for length in lengths:
        ends.append(ends[-1] + length)
    return [body[a:b] for a, b in itertools.pairwise(ends)]


def digest_of(description: Mapping[str, Any], arrays: bytes) -> str:
    """SHA-256 of one side: of its description and its file of arrays."""
    text = json.dumps(description, sort_keys=True).encode()
    return hashlib.sha256(hashlib.sha256(text).digest() + arrays).hexdigest()


def circuit_of(client: str, server: str) -> str:
    """The circuit's SHA-256, of the digests of both sides."""
    return hashlib.sha256(f"{client} {server}".encode()).hexdigest()


def described(path: Path, arrays: Path) -> tuple[dict[str, Any], str]:
    """A side's description, `client.json` or `server.json`, and the circuit's SHA-256.

    Raises RunError where the description or the arrays beside it are not those for which the circuit was named: each
    side has its own files and the other's digest.
    """
    try:
        description: dict[str, Any] = json.loads(read(path))
        circuit, digests = description.pop("circuit"), dict(description.pop("digests"))
        digests[path.stem] = digest_of(description, read(arrays))
        whole = circuit == circuit_of(digests["client"], digests["server"])
    except (ValueError, TypeError, KeyError):
        raise RunError(f"{path} is damaged: it is no description of a circuit") from None
    if not whole:
        raise RunError(f"{path.name} or {arrays.name} was changed: they are not of circuit {circuit[:12]}")
    return description, circuit


def read(path: str | Path) -> bytes:
    """All of a file. Raises RunError."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from None


def mapped(path: str | Path) -> memoryview:
    """All of a file, of which memory holds what is being read. Raises RunError."""
    try:
        with Path(path).open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise RunError(f"cannot read {path}: {error}") from None


def write(path: str | Path, *data: bytes | memoryview, private: bool = False) -> None:
    """Write a file; a `private` one that its owner alone may read. Raises RunError."""
    try:
        mode = 0o600 if private else 0o644
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            for part in data:
                file.write(part)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from None
