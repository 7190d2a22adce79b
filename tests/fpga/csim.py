"""Kernels compiled with g++ against the ap_int headers that hls4ml brings, and run."""

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
from lowerkit.targets.fpga.lang.program import Kernel

#: g++ knows neither the pragmas of HLS nor its use of labels; a fresh ap_int of the headers reads its own bits.
FLAGS = [
    "-std=c++14",
    "-O1",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
    "-Wno-unused-label",
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
]


def ap_types() -> Path:
    """The folder of ap_int.h; skips the test without one."""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    spec = importlib.util.find_spec("hls4ml")
    if spec and spec.origin:
        found = Path(spec.origin).parent / "templates/vivado/ap_types"
        if (found / "ap_int.h").exists():
            return found
    given = os.environ.get("LOWERKIT_AP_TYPES")
    if given is None:
        pytest.skip("no ap_int.h: hls4ml is not installed and LOWERKIT_AP_TYPES is not set")
    return Path(given)


def run(kernel: Kernel, inputs: Mapping[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    """The printed kernel's outputs, int64 [batch, ...]."""
    headers = ap_types()
    batch = len(next(iter(inputs.values())))
    source = folder / f"{kernel.name}.cpp"
    source.write_text(_program(kernel))
    binary = source.with_suffix("")
    subprocess.run(["g++", *FLAGS, "-isystem", str(headers), str(source), "-o", str(binary)], check=True)
    each = [np.asarray(inputs[a.name], np.int64).reshape(batch, -1) for a in kernel.inputs]
    done = subprocess.run(
        [str(binary)], input=np.concatenate(each, 1).tobytes(), capture_output=True, check=True
    )
    numbers = np.frombuffer(done.stdout, np.int64).reshape(batch, -1)
    ends = np.cumsum([np.prod(a.shape, dtype=int) for a in kernel.outputs])
    parts = np.split(numbers, ends[:-1], 1)
    return {a.name: part.reshape(batch, *a.shape) for a, part in zip(kernel.outputs, parts, strict=True)}


def _program(kernel: Kernel) -> str:
    """A main function that reads samples from stdin and writes the outputs, as int64 in order."""
    declared = "\n".join(f"static {cpp.declaration(a)};" for a in (*kernel.inputs, *kernel.outputs))
    read = "\n".join(f"        read({a.name});" for a in kernel.inputs)
    write = "\n".join(f"        write({a.name});" for a in kernel.outputs)
    arguments = ", ".join(a.name for a in (*kernel.inputs, *kernel.outputs))
    return f"""#include <cstdio>
#include <ap_int.h>
{cpp.HELPERS}
{cpp.constants(kernel)}
{cpp.function(kernel)}
template <class T> void read(T& to) {{
    long long number = 0;
    if (std::fread(&number, sizeof number, 1, stdin) == 1) to = number;
}}
template <class T, size_t N> void read(T (&to)[N]) {{
    for (size_t i = 0; i < N; ++i) read(to[i]);
}}
template <class T> void write(const T& from) {{
    long long number = from.to_int64();
    std::fwrite(&number, sizeof number, 1, stdout);
}}
template <class T, size_t N> void write(const T (&from)[N]) {{
    for (size_t i = 0; i < N; ++i) write(from[i]);
}}
{declared}
int main() {{
    while (true) {{
        int next = std::getc(stdin);
        if (next == EOF) return 0;
        std::ungetc(next, stdin);
{read}
        {kernel.name}({arguments});
{write}
    }}
}}
"""
