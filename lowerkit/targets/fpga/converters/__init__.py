"""Operators as layers: what the graph says in the words of the kernels. A file for each kind of operator.

A converter reads a node of the lowered graph and adds a layer to the design, or makes the node's output a view of
what is there already. Every module here has a table `CONVERTERS`, from operator to converter.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping

from lowerkit.targets.fpga.lowering import Converter


def _all() -> dict[str, Converter]:
    found: dict[str, Converter] = {}
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        found.update(importlib.import_module(module.name).CONVERTERS)
    return dict(sorted(found.items()))


CONVERTERS: Mapping[str, Converter] = _all()
