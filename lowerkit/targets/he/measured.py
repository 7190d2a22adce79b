"""How long the operations of circuits took, in the encrypted runs of this process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

#: Circuit -> seconds of each operation, in the fastest run.
_FASTEST: dict[str, Sequence[float]] = {}


def circuit_of(directory: Path) -> str:
    """The hash of an artifact's circuit."""
    found: str = json.loads((directory / "server" / "server.json").read_text())["circuit"]
    return found


def remember(circuit: str, seconds: Sequence[float]) -> None:
    """A run of the circuit took so many seconds for each operation."""
    _FASTEST[circuit] = min(_FASTEST.get(circuit, seconds), seconds, key=sum)


def known(directory: Path) -> Sequence[float] | None:
    """Seconds of each operation of an artifact's circuit in the fastest run; None before the first one."""
    return _FASTEST.get(circuit_of(directory))
