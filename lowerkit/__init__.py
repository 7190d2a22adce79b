"""lowerkit: lowers trained ONNX models to hardware that cannot afford the functions they were trained with.

The public door is small: `load`, `compile`, `validate`, `inspect`, `Artifact`, `Plan` and `LowerkitError`.
Names resolve on first use, so that importing the package costs nothing of any target's dependencies.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lowerkit.errors import LowerkitError

if TYPE_CHECKING:
    from lowerkit.api import compile, inspect, load, validate
    from lowerkit.artifact import Artifact
    from lowerkit.plan import Plan

__version__ = "0.1.0"
__all__ = ["Artifact", "LowerkitError", "Plan", "__version__", "compile", "inspect", "load", "validate"]

_HOME = {
    "Artifact": "lowerkit.artifact",
    "Plan": "lowerkit.plan",
    "compile": "lowerkit.api",
    "inspect": "lowerkit.api",
    "load": "lowerkit.api",
    "validate": "lowerkit.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lowerkit' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)
