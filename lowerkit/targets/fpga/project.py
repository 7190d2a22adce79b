"""Writes a design as an HLS project: C++ that a vendor's tool reads, and that g++ simulates.

DIR/
  DESIGN.h DESIGN.cpp     the top function: the layers in a dataflow region
  layers/NAME.h           a layer: its constants and its function, in a namespace of its name
  lowerkit.h              helpers
  testbench.cpp           reads codes, runs the top function, writes codes
  Makefile                builds the C-simulation
  vitis_hls.tcl           the project for the vendor's tool
  ap_types/               arbitrary-precision types for g++ (Apache-2.0, by way of hls4ml)
"""

from __future__ import annotations

import importlib.util
import math
import shutil
from pathlib import Path

from lowerkit.errors import ToolError
from lowerkit.targets.fpga.design import Design, Layer, Port
from lowerkit.targets.fpga.lang import cpp

#: Of the C-simulation; warnings are errors, but for the pragmas and labels of HLS tools, and for the types' own
#: constructor, which g++ sees reading what it is about to set.
FLAGS = (
    "-std=c++14 -O1 -Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-unused-label -Wno-uninitialized "
    "-Wno-maybe-uninitialized -isystem ap_types"
)


def write_project(design: Design, directory: Path, *, part: str, clock_ns: float) -> None:
    """Write all files of the project. Raises ToolError where the types' headers are not installed."""
    (directory / "layers").mkdir(parents=True)
    for layer in {layer.kernel.name: layer for layer in reversed(design.layers)}.values():
        (directory / "layers" / f"{layer.kernel.name}.h").write_text(_layer(layer), encoding="utf-8")
    (directory / "lowerkit.h").write_text(_HELPERS, encoding="utf-8")
    (directory / f"{design.name}.h").write_text(_header(design), encoding="utf-8")
    (directory / f"{design.name}.cpp").write_text(_top(design), encoding="utf-8")
    (directory / "testbench.cpp").write_text(_testbench(design), encoding="utf-8")
    (directory / "Makefile").write_text(_makefile(design), encoding="utf-8")
    (directory / "vitis_hls.tcl").write_text(_tcl(design, part, clock_ns), encoding="utf-8")
    shutil.copytree(ap_types(), directory / "ap_types")


def ap_types() -> Path:
    """The folder of ap_int.h that hls4ml ships. Raises ToolError where hls4ml is not installed."""
    found = importlib.util.find_spec("hls4ml")
    for place in found.submodule_search_locations or () if found is not None else ():
        folder = Path(place) / "templates" / "vivado" / "ap_types"
        if (folder / "ap_int.h").is_file():
            return folder
    raise ToolError(
        "hls4ml, whose ap_int.h simulates the design, is not installed", hint="pip install lowerkit[fpga]"
    )


_HELPERS = f"#pragma once\n#include <ap_int.h>\n\n{cpp.HELPERS}"


def _layer(layer: Layer) -> str:
    """A layer's file."""
    name = layer.kernel.name
    where = f"// Layer {name}: {layer.op}, node '{layer.node}'."
    if layer.job is not None:
        where = f"// {name}: one unit for many layers."
    parts = [where, "#pragma once", '#include "../lowerkit.h"', "", f"namespace {name} {{"]
    constants = cpp.constants(layer.kernel)
    return "\n".join([*parts, *([constants] if constants else []), "", cpp.function(layer.kernel), "}", ""])


def _port(port: Port, *, constant: bool) -> str:
    kind = cpp.type_of(port.format.range)
    return f"{'const ' if constant else ''}{kind} {variable(port.value)}[{port.size}]"


def variable(value: str) -> str:
    """A C identifier for a value's codes."""
    text = "".join(c if c.isascii() and c.isalnum() else "_" for c in value)
    return f"v_{text}"


def _signature(design: Design) -> str:
    ports = [_port(p, constant=True) for p in design.inputs] + [
        _port(p, constant=False) for p in design.outputs
    ]
    return f"void {design.name}({', '.join(ports)})"


def _header(design: Design) -> str:
    lines = ["#pragma once", '#include "lowerkit.h"', "", "// Codes k of numbers k / 2^fraction:"]
    for kind, ports in (("in", design.inputs), ("out", design.outputs)):
        for p in ports:
            shape = " x ".join(map(str, p.shape)) or "1"
            lines.append(f"// {kind:3} {variable(p.value)}: {shape}, {p.format}, '{p.value}'")
    return "\n".join([*lines, f"{_signature(design)};", ""])


def _top(design: Design) -> str:
    kernels = dict.fromkeys(layer.kernel.name for layer in design.layers)
    includes = [f'#include "{design.name}.h"', *(f'#include "layers/{name}.h"' for name in kernels)]
    units = dict.fromkeys(layer.kernel.name for layer in design.layers if layer.job is not None)
    ports = {p.value for p in (*design.inputs, *design.outputs)}
    # Processes of a dataflow region cannot share a function: with units, layers run one after the other.
    body = [f"#pragma HLS ALLOCATION function instances={name}::{name} limit=1" for name in units]
    body = body or ["#pragma HLS DATAFLOW"]
    for layer in design.layers:
        for value in layer.writes:
            if value not in ports:
                body.append(f"    {_port(design.values[value], constant=False)};")
        arguments = [variable(design.stored(v)) for v in layer.reads] + [variable(v) for v in layer.writes]
        if layer.job is not None:
            job = layer.kernel.inputs[-1]
            body.append(f"    const {cpp.type_of(job.range)} {layer.name}_job[1] = {{{layer.job}}};")
            arguments.insert(len(layer.reads), f"{layer.name}_job")
        body.append(f"    {layer.kernel.name}::{layer.kernel.name}({', '.join(arguments)});")
    return "\n".join([*includes, "", f"{_signature(design)} {{", *body, "}", ""])


def _testbench(design: Design) -> str:
    reads = "".join(
        f"        if (!get(in, {variable(p.value)}, {p.size})) return 3;\n" for p in design.inputs
    )
    writes = "".join(f"        put(out, {variable(p.value)}, {p.size});\n" for p in design.outputs)
    arrays = "".join(f"    static {_port(p, constant=False)};\n" for p in (*design.inputs, *design.outputs))
    arguments = ", ".join(variable(p.value) for p in (*design.inputs, *design.outputs))
    return f"""\
// Runs {design.name} on codes: testbench IN OUT COUNT, both files of 64-bit integers, sample after sample.
#include "{design.name}.h"
#include <cstdint>
#include <cstdio>
#include <cstdlib>

template <class T> static bool get(std::FILE* file, T* to, int count) {{
    for (int i = 0; i < count; ++i) {{
        std::int64_t code;
        if (std::fread(&code, sizeof code, 1, file) != 1) return false;
        to[i] = static_cast<long long>(code);
    }}
    return true;
}}

template <class T> static void put(std::FILE* file, const T* from, int count) {{
    for (int i = 0; i < count; ++i) {{
        const std::int64_t code = from[i].to_int64();
        std::fwrite(&code, sizeof code, 1, file);
    }}
}}

int main(int argc, char** argv) {{
    if (argc != 4) {{
        std::fprintf(stderr, "usage: testbench IN OUT COUNT\\n");
        return 2;
    }}
    std::FILE* in = std::fopen(argv[1], "rb");
    std::FILE* out = std::fopen(argv[2], "wb");
    if (!in || !out) return 2;
{arrays}    for (long n = std::atol(argv[3]); n > 0; --n) {{
{reads}        {design.name}({arguments});
{writes}    }}
    std::fclose(in);
    return std::fclose(out);
}}
"""


def _makefile(design: Design) -> str:
    return f"""\
# The C-simulation: make, then ./testbench IN OUT COUNT
CXX ?= g++
CXXFLAGS ?= {FLAGS}

testbench: testbench.cpp {design.name}.cpp {design.name}.h lowerkit.h $(wildcard layers/*.h)
\t$(CXX) $(CXXFLAGS) testbench.cpp {design.name}.cpp -o testbench

clean:
\trm -f testbench

.PHONY: clean
"""


def _tcl(design: Design, part: str, clock_ns: float) -> str:
    return f"""\
# vitis_hls -f vitis_hls.tcl
open_project -reset {design.name}_prj
set_top {design.name}
add_files {design.name}.cpp -cflags "-std=c++14"
add_files -tb testbench.cpp -cflags "-std=c++14"
open_solution -reset solution1
set_part {{{part}}}
create_clock -period {clock_ns:g}
csynth_design
exit
"""


def bits_of(ports: tuple[Port, ...]) -> int:
    """Memory for values, in bits."""
    return sum(p.size * p.format.width for p in ports)


def constant_bits(layer: Layer) -> int:
    """Memory for a layer's weights and tables, in bits."""
    return sum(math.prod(a.shape) * a.range.bits for a in layer.kernel.constants)
