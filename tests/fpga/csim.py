"""Kernels compiled with g++ against the ap_int headers that hls4ml brings, and run."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lowerkit.targets.fpga.lang import cpp
from lowerkit.targets.fpga.lang.program import Kernel
from lowerkit.targets.fpga.project import FLAGS, ap_types


def run(kernel: Kernel, inputs: Mapping[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    """The printed kernel's outputs, int64 [batch, ...]; warnings are errors."""
    return Program([kernel], folder).run(kernel, inputs)


class Program:
    """Kernels of different names, compiled as one program."""

    def __init__(self, kernels: Sequence[Kernel], folder: Path) -> None:
        source = folder / f"{kernels[0].name}.cpp"
        source.write_text(_program(kernels))
        self.binary = source.with_suffix("")
        flags = ["-O1", *FLAGS.replace(" ap_types", f" {ap_types()}").split()]
        subprocess.run(["g++", *flags, str(source), "-o", str(self.binary)], check=True)

    def run(self, kernel: Kernel, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One kernel's outputs, int64 [batch, ...]."""
        batch = len(next(iter(inputs.values())))
        each = [np.asarray(inputs[a.name], np.int64).reshape(batch, -1) for a in kernel.inputs]
        given = np.concatenate(each, 1).tobytes()
        done = subprocess.run([str(self.binary), kernel.name], input=given, capture_output=True, check=True)
        numbers = np.frombuffer(done.stdout, np.int64).reshape(batch, -1)
        ends = np.cumsum([np.prod(a.shape, dtype=int) for a in kernel.outputs])
        parts = np.split(numbers, ends[:-1], 1)
        return {a.name: p.reshape(batch, *a.shape) for a, p in zip(kernel.outputs, parts, strict=True)}


def _program(kernels: Sequence[Kernel]) -> str:
    """A main function that reads samples from stdin and writes the outputs of the kernel that its argument names."""
    calls = "\n".join(
        f'    if (!std::strcmp(argv[1], "{k.name}")) return {k.name}_driver::run();' for k in kernels
    )
    return f"""#include <cstdio>
#include <cstring>
#include <ap_int.h>
{cpp.HELPERS}
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
{"".join(map(_driver, kernels))}
int main(int argc, char** argv) {{
    if (argc != 2) return 2;
{calls}
    return 2;
}}
"""


def _driver(kernel: Kernel) -> str:
    declared = "\n".join(f"static {cpp.declaration(a)};" for a in (*kernel.inputs, *kernel.outputs))
    read = "\n".join(f"        read({a.name});" for a in kernel.inputs)
    write = "\n".join(f"        write({a.name});" for a in kernel.outputs)
    arguments = ", ".join(a.name for a in (*kernel.inputs, *kernel.outputs))
    return f"""
{cpp.constants(kernel)}
{cpp.function(kernel)}
namespace {kernel.name}_driver {{
{declared}
static int run() {{
    while (true) {{
        int next = std::getc(stdin);
        if (next == EOF) return 0;
        std::ungetc(next, stdin);
{read}
        {kernel.name}({arguments});
{write}
    }}
}}
}}
"""
