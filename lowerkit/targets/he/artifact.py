"""Writes `client/` and `server/`: descriptions, arrays, and the programs that run on them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from lowerkit.artifact import specs
from lowerkit.targets.he import runtime
from lowerkit.targets.he.packing.ways import Held
from lowerkit.targets.he.parameters import Planned, Range
from lowerkit.targets.he.runtime import client, files, server
from lowerkit.targets.he.stored import stored

#: Modules of `runtime` that each side gets. Key generation and decryption are in `client` alone.
MODULES: Mapping[str, tuple[str, ...]] = {
    "client": ("client", "files", "scheme", "{}_scheme", "{}_keys"),
    "server": ("server", "files", "scheme", "{}_scheme", "{}_engine", "execute"),
}
_MAIN = '''"""`python -m {side}`: see {side}.py."""

import sys

from .{side} import main

sys.exit(main())
'''


def write(model: ir.Model, planned: Planned, options: Mapping[str, Any], directory: Path) -> None:
    """Write both sides into `directory`; equal arguments give equal bytes."""
    for side, modules in MODULES.items():
        folder = directory / side
        folder.mkdir()
        (folder / "__init__.py").write_text(f'"""The {side} of an encrypted model."""\n', encoding="utf-8")
        (folder / "__main__.py").write_text(_MAIN.format(side=side), encoding="utf-8")
        for module in (name.format(options["backend"]) for name in modules):
            shutil.copyfile(Path(runtime.__file__).with_name(f"{module}.py"), folder / f"{module}.py")
    _describe(model, planned, options, directory)


def _describe(model: ir.Model, planned: Planned, options: Mapping[str, Any], directory: Path) -> None:
    lowered, network = planned.levelled, planned.network
    ranges: Mapping[str, Range] = options["ranges"]
    chain = lowered.chain
    parameters = {
        "backend": options["backend"],
        "degree": chain.degree,
        "primes": list(chain.primes),
        "specials": list(chain.specials),
        "digits": chain.digits,
        "refresh": chain.refresh.slots if chain.refresh else 0,
        "budget": list(chain.refresh.budget) if chain.refresh else [],
        "correction": chain.refresh.correction if chain.refresh else 0,
        "sparse": chain.refresh is not None and chain.refresh.sparse,
        "insecure": options["insecure_for_testing"],
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
    values = iter(lowered.outputs)
    ciphertexts = {}
    for name in network.outputs:
        parts = network.tensors[name]
        layouts[f"output {name}"] = _places(parts)
        made = [lowered.ops[next(values)] for _ in parts]
        ciphertexts[name] = [{"level": op.level, "scale": op.scale} for op in made]
    np.savez_compressed(directory / "client" / client.LAYOUTS, **layouts)
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
                "ciphertexts": ciphertexts[s.name],
            }
            for s in specs(list(model.graph.outputs))
        ],
    }
    public = {key: description[key] for key in ("format", "parameters", "rotations")}
    public["inputs"] = [{"level": v["level"], "scale": v["scale"]} for v in vectors]
    # Each side can recompute its own digest, and with the other's the circuit's name.
    sides = (("client", description, client.LAYOUTS), ("server", public, server.CIRCUIT))
    digests = {
        side: files.digest_of(content, (directory / side / arrays).read_bytes())
        for side, content, arrays in sides
    }
    circuit = files.circuit_of(**digests)
    for side, content, _ in sides:
        _write_json(directory / side / f"{side}.json", {"circuit": circuit, "digests": digests, **content})


def _places(parts: Sequence[Held]) -> np.ndarray:
    """int64 [2, elements of the tensor]: number of the part that holds each element, and its slot there."""
    found = np.zeros((2, sum(len(part.elements) for part in parts)), np.int64)
    for number, part in enumerate(parts):
        found[0, part.elements], found[1, part.elements] = number, part.slots
    return found


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
