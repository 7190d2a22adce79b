"""Compiles a printed kernel with g++ and runs it on integers, to compare with the interpreter."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from lowerkit.targets.fpga.lang import cpp
from lowerkit.targets.fpga.lang.expr import Array
from lowerkit.targets.fpga.lang.program import Kernel


def ap_types() -> Path:
    """The folder of ap_int.h: hls4ml's, or LOWERKIT_AP_TYPES. Skips the test where there is none, or no compiler."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    spec = importlib.util.find_spec("hls4ml")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "templates/vivado/ap_types"
    if "LOWERKIT_AP_TYPES" not in os.environ:
        pytest.skip("hls4ml is not installed and LOWERKIT_AP_TYPES is not set")
    return Path(os.environ["LOWERKIT_AP_TYPES"])


def compiled_run(kernel: Kernel, inputs: Mapping[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    """What `interpret.run` gives, by the compiled kernel; warnings of the kernel are errors."""
    batch = len(next(iter(inputs.values())))

    def each(array: Array, statement: str) -> list[str]:
        flat = f"{cpp.type_of(array.range)} *flat_{array.name} = ({cpp.type_of(array.range)} *){array.name};"
        size = int(np.prod(array.shape))
        return [f"        {flat}", f"        for (int j = 0; j < {size}; ++j) {{ {statement} }}"]

    main = [
        *(f"static {cpp.declaration(a)};" for a in (*kernel.inputs, *kernel.outputs)),
        "int main() {",
        f"    for (int sample = 0; sample < {batch}; ++sample) {{",
        "        long long number;",
    ]
    for a in kernel.inputs:
        main += each(a, f'if (scanf("%lld", &number) != 1) return 1; flat_{a.name}[j] = number;')
    main.append(f"        {kernel.name}({', '.join(a.name for a in (*kernel.inputs, *kernel.outputs))});")
    for a in kernel.outputs:
        main += each(a, f'printf("%lld\\n", (long long)flat_{a.name}[j].to_int64());')
    main += ["    }", "}"]
    parts = [
        "#include <ap_int.h>",
        "#include <cstdio>",
        cpp.HELPERS,
        cpp.constants(kernel),
        cpp.function(kernel),
    ]
    source = folder / f"{kernel.name}.cpp"
    source.write_text("\n".join([*parts, *main]) + "\n")
    # HLS pragmas and loop labels are for another compiler; ap_int's own constructor reads what it has not yet set.
    ignored = ["unknown-pragmas", "unused-label", "uninitialized", "maybe-uninitialized"]
    warnings = ["-Wall", "-Wextra", "-Werror", *(f"-Wno-{name}" for name in ignored)]
    program = folder / kernel.name
    command = ["g++", "-std=c++14", "-O1", *warnings, "-isystem", ap_types(), source, "-o", program]
    built = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr[:4000]
    numbers = [inputs[a.name].reshape(batch, -1) for a in kernel.inputs]
    text = " ".join(map(str, np.concatenate(numbers, axis=1).ravel().tolist()))
    ran = subprocess.run([str(program)], input=text, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0
    sizes = [int(np.prod(a.shape)) for a in kernel.outputs]
    found = np.array(ran.stdout.split(), np.int64).reshape(batch, sum(sizes))
    split = np.split(found, np.cumsum(sizes)[:-1], axis=1)
    return {a.name: part.reshape(batch, *a.shape) for a, part in zip(kernel.outputs, split, strict=True)}
