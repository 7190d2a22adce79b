"""Writes `client/` and `server/`: descriptions, arrays, and the programs that run on them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from lowerkit.artifact import specs
from lowerkit.targets.he import runtime
from lowerkit.targets.he.parameters import Planned, Range
from lowerkit.targets.he.runtime import client, server
from lowerkit.targets.he.stored import stored

#: Modules of `runtime` that each side gets. Key generation and decryption are in `client` alone.
MODULES: Mapping[str, tuple[str, ...]] = {
    "client": ("client", "files", "scheme"),
    "server": ("server", "files", "scheme", "execute"),
}
_MAIN = '''"""`python -m {side}`: see {side}.py."""

import sys

from .{side} import main

sys.exit(main())
'''


def write(
    model: ir.Model, planned: Planned, ranges: Mapping[str, Range], directory: Path, *, insecure: bool
) -> None:
    """Write both sides into `directory`; equal arguments give equal bytes."""
    for side, modules in MODULES.items():
        folder = directory / side
        folder.mkdir()
        (folder / "__init__.py").write_text(f'"""The {side} of an encrypted model."""\n', encoding="utf-8")
        (folder / "__main__.py").write_text(_MAIN.format(side=side), encoding="utf-8")
        for module in modules:
            shutil.copyfile(Path(runtime.__file__).with_name(f"{module}.py"), folder / f"{module}.py")
    _describe(model, planned, ranges, directory, insecure)


def _describe(
    model: ir.Model, planned: Planned, ranges: Mapping[str, Range], directory: Path, insecure: bool
) -> None:
    lowered, network = planned.levelled, planned.network
    chain = lowered.chain
    parameters = {
        "backend": "seal",
        "degree": chain.degree,
        "primes": [*chain.primes, chain.special],
        "insecure": insecure,
    }
    np.savez_compressed(directory / "server" / server.CIRCUIT, **stored(lowered))
    inputs = [op for op in lowered.ops if op.kind == "input"]
    rows: dict[str, list[np.ndarray]] = {}
    vectors = []
    for (name, index), op in zip(network.gathers, inputs, strict=True):
        rows.setdefault(name, []).append(index)
        place = {"layout": f"input {name}", "row": len(rows[name]) - 1}
        vectors.append({"input": name, **place, "level": op.level, "scale": op.scale})
    layouts: dict[str, Any] = {f"input {name}": np.array(each) for name, each in rows.items()}
    layouts |= {f"output {name}": network.layouts[name].places for name in network.outputs}
    np.savez_compressed(directory / "client" / client.LAYOUTS, **layouts)
    files = ("server/" + server.CIRCUIT, "client/" + client.LAYOUTS)
    description = {
        "format": 1,
        "parameters": parameters,
        "rotations": lowered.steps(),
        "vectors": vectors,
        "inputs": [
            {"name": s.name, "shape": list(s.shape), "low": ranges[s.name][0], "high": ranges[s.name][1]}
            for s in specs(list(model.graph.inputs))
        ],
        "outputs": [
            {
                "name": s.name,
                "shape": list(s.shape),
                "dtype": s.dtype,
                "layout": f"output {s.name}",
                "level": lowered.ops[value].level,
                "scale": lowered.ops[value].scale,
            }
            for s, value in zip(specs(list(model.graph.outputs)), lowered.outputs, strict=True)
        ],
    }
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name in files:
        digest.update((directory / name).read_bytes())
    circuit = digest.hexdigest()
    _write_json(directory / "client" / client.DESCRIPTION, {"circuit": circuit, **description})
    public = {key: description[key] for key in ("format", "parameters", "rotations")}
    expected = [{"level": v["level"], "scale": v["scale"]} for v in vectors]
    _write_json(directory / "server" / server.DESCRIPTION, {"circuit": circuit, **public, "inputs": expected})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
