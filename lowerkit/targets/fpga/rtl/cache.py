"""What tools answered, kept by the hash of all that they were asked."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any


def folder() -> Path:
    """Where answers are kept: `$XDG_CACHE_HOME/lowerkit/rtl`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lowerkit" / "rtl"


def kept(asked: Any, answer: Callable[[], dict[str, Any]], place: Path | None = None) -> dict[str, Any]:
    """The answer to a question in JSON's types, from `place` (`folder()` if None) where it was asked before.

    A file that is damaged is written anew; where none can be written, nothing is kept.
    """
    key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    file = (place or folder()) / f"{key}.json"
    with suppress(OSError, ValueError):
        found = json.loads(file.read_bytes())
        if isinstance(found, dict) and found.get("asked") == key:
            stored: dict[str, Any] = found["answer"]
            return stored
    made = answer()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps({"asked": key, "answer": made}, indent=1), encoding="utf-8")
        partial.replace(file)
    return made
