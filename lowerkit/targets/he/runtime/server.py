"""The side of whoever owns the model: evaluates the circuit on ciphertexts, with public keys alone.

    python -m server evaluate EVALUATION.KEYS QUERY ANSWER [--quiet] [--times FILE]
    python -m server serve EVALUATION.KEYS (--port N | --socket PATH) [--times FILE]

Run it in the folder above `server`. `serve` answers POST requests, whose body is a query, on this machine. `--times`
writes the seconds of every operation of the last evaluation, a list in JSON.
"""

from __future__ import annotations

import argparse
import http.server
import itertools
import json
import socket
import socketserver
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from .execute import Circuit, Progress
from .files import ANSWER, EVALUATION, QUERY, Parcel, RunError, described, mapped, read, unpack, write
from .scheme import Parameters, checked_place, engine_of, opened

DESCRIPTION, CIRCUIT = "server.json", "circuit.npz"


class Server:
    """Evaluates one circuit for one key; `directory` is an artifact's `server`."""

    def __init__(
        self, directory: Path, keys: bytes | memoryview, source: str = "the evaluation keys"
    ) -> None:
        self.description, self.circuit = described(directory / DESCRIPTION, directory / CIRCUIT)
        parcel = unpack(keys, EVALUATION, self.circuit, source=source)
        self.key = parcel.key
        #: Of every operation of the last evaluation, and where to write them.
        self.seconds: list[float] = []
        self.times: Path | None = None
        self.scheme = opened(Parameters.read(self.description["parameters"]))
        engine = engine_of(self.scheme, parcel.parts, source)
        with np.load(directory / CIRCUIT, allow_pickle=False) as stored:
            self.program = Circuit(
                stored["ops"],
                stored["scales"],
                stored["plains"],
                stored["outputs"].tolist(),
                engine,
                ahead=self.description["encode_ahead"],
            )

    def evaluate(self, query: bytes, source: str = "the query", progress: Progress | None = None) -> bytes:
        """An answer's bytes for a query's. Raises RunError for a query of another circuit or key."""
        parcel = unpack(query, QUERY, self.circuit, self.key, source)
        inputs = self.description["inputs"]
        if len(parcel.parts) != len(inputs):
            raise RunError(f"{source} holds {len(parcel.parts)} ciphertexts, and {len(inputs)} are wanted")
        ciphertexts = []
        for port, part in zip(inputs, parcel.parts, strict=True):
            ciphertext = self.scheme.loaded(part, source)
            ciphertexts.append(checked_place(self.scheme, ciphertext, port["level"], port["scale"], source))
        ends = [time.perf_counter()]
        found = self.program.run(ciphertexts, progress, lambda *_: ends.append(time.perf_counter()))
        self.seconds = [after - before for before, after in itertools.pairwise(ends)]
        if self.times is not None:
            write(self.times, json.dumps(self.seconds).encode())
        return Parcel(ANSWER, self.circuit, self.key, tuple(map(self.scheme.dumped, found))).pack()


def bar(stream: Any, width: int = 40) -> Progress:
    """A progress bar on a terminal."""
    shown = -1

    def show(done: int, total: int) -> None:
        nonlocal shown
        full = width * done // total
        if full != shown:
            shown = full
            stream.write(
                f"\r[{'#' * full}{'.' * (width - full)}] {done}/{total}" + ("\n" if done == total else "")
            )
            stream.flush()

    return show


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers a query, or 400 with one line that says why not."""

    server: _Listener

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if length > self.server.most:
            return self._send(400, f"a query has at most {self.server.most} bytes".encode())
        try:
            self._send(200, self.server.answers.evaluate(self.rfile.read(length)))
        except RunError as error:
            self._send(400, str(error).encode())

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a line for each request is for whoever stands in front."""

    def address_string(self) -> str:
        return "client"


class _Listener(socketserver.TCPServer):
    """One request at a time: an evaluation takes a core and much memory."""

    allow_reuse_address = True

    def __init__(self, answers: Server, address: tuple[str, int] | str) -> None:
        self.answers = answers
        # Ciphertexts of all primes, their headers, and the file's.
        primes = len(answers.scheme.parameters.primes)
        each = 2 * primes * answers.scheme.parameters.degree * 8 + (1 << 16)
        self.most = len(answers.description["inputs"]) * each + (1 << 20)
        if isinstance(address, str):
            self.address_family = socket.AF_UNIX
        super().__init__(address, _Handler)  # type: ignore[arg-type]


def serve(server: Server, address: tuple[str, int] | str) -> None:
    """Answer queries at (host, port) or at a Unix socket's path until interrupted. Raises RunError."""
    try:
        listener = _Listener(server, address)
    except OSError as error:
        raise RunError(f"cannot listen at {address}: {error.strerror or error}") from None
    with listener:
        print(f"server: listening at {listener.server_address}", file=sys.stderr, flush=True)
        try:
            listener.serve_forever()
        except KeyboardInterrupt:
            return


def main(arguments: list[str] | None = None) -> int:
    """The command line. Exit code 2 on a refusal."""
    parser = argparse.ArgumentParser(
        prog="server", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("evaluate")
    for operand in ("keys", "query", "answer"):
        command.add_argument(operand, type=Path)
    command.add_argument("--quiet", action="store_true")
    command = commands.add_parser("serve")
    command.add_argument("keys", type=Path)
    place = command.add_mutually_exclusive_group(required=True)
    place.add_argument("--port", type=int)
    place.add_argument("--socket", type=Path)
    for command in commands.choices.values():
        command.add_argument("--times", type=Path)
    given = parser.parse_args(arguments)
    try:
        server = Server(Path(__file__).resolve().parent, mapped(given.keys), str(given.keys))
        server.times = given.times
        if given.command == "serve":
            serve(server, str(given.socket) if given.socket else ("127.0.0.1", given.port))
            return 0
        shown = not given.quiet and sys.stderr.isatty()
        start = time.perf_counter()
        answer = server.evaluate(read(given.query), str(given.query), bar(sys.stderr) if shown else None)
        if not given.quiet:
            print(f"server: evaluated in {time.perf_counter() - start:.3f} s", file=sys.stderr)
        write(given.answer, answer)
    except RunError as error:
        print(f"server: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
