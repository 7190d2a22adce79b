"""Writes a design as an HLS project: C++ that a vendor's tool reads, and that g++ simulates.

DIR/
  DESIGN.h DESIGN.cpp     the top function: the layers in a dataflow region, with channels between them
  layers/NAME.h .cpp      a layer: its constants and its function, in a namespace of its name
  units/                  files that include some layers each, for the C-simulation
  lowerkit.h              types and helpers
  testbench.cpp           reads codes, runs the top function, writes or compares codes
  golden/                 samples' codes, and those that the integer model makes of them
  Makefile                make (the C-simulation), make check (on golden/), make sanitize
  vitis_hls.tcl           the project for the vendor's tool, where the device is of that vendor
  ap_types/               arbitrary-precision types for g++ (Apache-2.0, by way of hls4ml)
"""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lowerkit.errors import ToolError
from lowerkit.targets.fpga import interfaces, top
from lowerkit.targets.fpga.dataflow import Network, network
from lowerkit.targets.fpga.design import Design, Layer, Port, simulate
from lowerkit.targets.fpga.interfaces import Interface
from lowerkit.targets.fpga.lang import cpp

#: g++ knows neither the pragmas of HLS tools nor their use of labels, and it sees the types' own constructor read the
#: bits that it is about to set; all other warnings are errors.
FLAGS = (
    "-std=c++14 -Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-unused-label -Wno-uninitialized "
    "-Wno-maybe-uninitialized -isystem ap_types"
)
#: Samples in `golden/` where none are given.
GOLDEN = 4
#: Files that the C-simulation's layers compile in, at most; bytes of sources that are worth one; and what each layer
#: counts besides the bytes of its source.
UNITS = 4
SHARE = 2**16
HEADER = 4096


def write_project(
    design: Design,
    directory: Path,
    *,
    part: str | None,
    clock_ns: float,
    interface: str = "memory",
    golden: Mapping[str, np.ndarray] | None = None,
    net: Network | None = None,
) -> None:
    """Write all files of the project.

    Args:
        part: of the vendor's tool; no vitis_hls.tcl is written without one.
        interface: `memory`, `axi` or `stream`.
        golden: the inputs' codes [samples, ...] of the golden vectors; random ones if None.
        net: the design's network, where it is known already.

    Raises:
        PlanError: for another interface.
        ToolError: where the types' headers are not installed.
    """
    net, chosen = net or network(design), interfaces.interface(interface)
    (directory / "layers").mkdir(parents=True)
    for layer in design.kernels():
        declared, defined = _layer(layer)
        _write(directory / "layers" / f"{layer.kernel.name}.h", declared)
        _write(directory / "layers" / f"{layer.kernel.name}.cpp", defined)
    _write(directory / "lowerkit.h", _helpers(chosen))
    _write(directory / f"{design.name}.h", top.header(design, net, chosen))
    _write(directory / f"{design.name}.cpp", top.top(design, net, chosen))
    _write(directory / "testbench.cpp", top.testbench(design, net, chosen))
    count = write_golden(design, directory / "golden", golden)
    _write(directory / "Makefile", _makefile(design, count, _units(directory, design)))
    if part is not None:
        _write(directory / "vitis_hls.tcl", _tcl(design, part, clock_ns, count))
    shutil.copytree(ap_types(), directory / "ap_types")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


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


def _helpers(chosen: Interface) -> str:
    return f"""\
#ifndef LOWERKIT_H
#define LOWERKIT_H
#include <ap_int.h>
{chosen.include}
// Memory between layers: simulation keeps it off the stack.
#ifdef __SYNTHESIS__
#define LK_CHANNEL
#else
#define LK_CHANNEL static
#endif

{cpp.HELPERS}#endif
"""


def _layer(layer: Layer) -> tuple[str, str]:
    """The header and the source of a layer, or of the unit that it shares."""
    kernel, name = layer.kernel, layer.kernel.name
    about = [f"// Layer {name}: {layer.op}, node '{layer.node}'."]
    values: list[str] = [f", '{value}'" for value in (*layer.reads, *layer.writes)]
    if layer.job is not None:
        about = [f"// {name}: {layer.op} of several nodes. Arrays are those of the largest one."]
        values = [""] * (len(values) + 1)
    kinds = ["in"] * len(kernel.inputs) + ["out"] * len(kernel.outputs)
    for kind, array, value in zip(kinds, (*kernel.inputs, *kernel.outputs), values, strict=True):
        shape = " x ".join(map(str, array.shape)) or "1"
        about.append(
            f"// {kind:3} {array.name}: {shape}, codes from {array.range.low} to {array.range.high}{value}"
        )
    declared = [*about, "#pragma once", '#include "../lowerkit.h"', "", f"namespace {name} {{"]
    declared += [f"{cpp.signature(kernel)};", "}", ""]
    defined = [f'#include "../lowerkit.h"\n#include "{name}.h"', "", f"namespace {name} {{"]
    constants = cpp.constants(kernel)
    defined += [*([constants, ""] if constants else []), cpp.function(kernel), "}", ""]
    return "\n".join(declared), "\n".join(defined)


def write_golden(design: Design, folder: Path, golden: Mapping[str, np.ndarray] | None) -> int:
    """Write inputs' and outputs' codes as the test bench reads them; the number of samples."""
    if golden is None:
        golden = design.random_codes(GOLDEN)
    codes = {p.value: np.asarray(golden[p.value]).reshape(-1, *p.shape) for p in design.inputs}
    found = simulate(design, codes)
    folder.mkdir()
    for name, ports, values in (("inputs", design.inputs, codes), ("outputs", design.outputs, found)):
        rows = [values[p.value].reshape(-1, p.size) for p in ports]
        (folder / f"{name}.i64").write_bytes(np.concatenate(rows, axis=1).astype("<i8").tobytes())
    return len(rows[0])


def variable(value: str) -> str:
    """A C identifier for a value's codes."""
    text = "".join(c if c.isascii() and c.isalnum() else "_" for c in value)
    return f"v_{text}"


def _units(directory: Path, design: Design) -> int:
    """Write files that include the sources, about equally much each; how many.

    To compile each layer for itself would repeat the types' headers, to compile all at once leaves processors idle.
    """
    names = [layer.kernel.name for layer in design.kernels()]
    sizes = {name: (directory / "layers" / f"{name}.cpp").stat().st_size for name in names}
    units: list[list[str]] = [[] for _ in range(min(UNITS, 1 + sum(sizes.values()) // SHARE))]
    loads = [0] * len(units)
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = loads.index(min(loads))
        units[least].append(name)
        loads[least] += sizes[name] + HEADER
    (directory / "units").mkdir()
    for i, names in enumerate(units):
        lines = [f'#include "../layers/{name}.cpp"' for name in sizes if name in names]
        lines += [f'#include "../{design.name}.cpp"'] if i == 0 else []
        _write(
            directory / "units" / f"unit{i}.cpp", "\n".join(["// Sources that compile together.", *lines, ""])
        )
    return len(units)


def _makefile(design: Design, count: int, units: int) -> str:
    names = ["testbench", *(f"units/unit{i}" for i in range(units))]
    objects = " ".join(f"$(BUILD)/{name}.o" for name in names)
    return f"""\
# make            the C-simulation: ./testbench IN OUT COUNT
# make check      runs it on golden/; fails where a code differs
# make sanitize   the same with the compiler's checks for undefined behaviour and bad addresses
# Files compile on their own: make -j4.
CXX ?= g++
OPTIMISE ?= -O1
CHECKS =
BUILD = build
PROGRAM = testbench
FLAGS = {FLAGS} $(OPTIMISE) $(CHECKS)
OBJECTS = {objects}

$(PROGRAM): $(OBJECTS)
\t$(CXX) $(FLAGS) $(OBJECTS) -o $@

$(BUILD)/%.o: %.cpp $(wildcard *.h *.cpp layers/*.h layers/*.cpp)
\t@mkdir -p $(@D)
\t$(CXX) $(FLAGS) -c $< -o $@

check: $(PROGRAM)
\t./$(PROGRAM) golden/inputs.i64 golden/outputs.i64 {count} check

# The types shift negative numbers to the left, which g++ defines and C++ does from C++20 on.
sanitize:
\t$(MAKE) check BUILD=sanitize-build PROGRAM=testbench-sanitize OPTIMISE=-O0 \\
\t    CHECKS="-fsanitize=address,undefined -fno-sanitize=shift-base -fno-sanitize-recover=all"

tidy:
\trm -rf build sanitize-build

clean: tidy
\trm -f testbench testbench-sanitize

.PHONY: check sanitize tidy clean
"""


def _tcl(design: Design, part: str, clock_ns: float, count: int) -> str:
    layers = [f"layers/{layer.kernel.name}.cpp" for layer in design.kernels()]
    sources = " ".join([f"{design.name}.cpp", *layers])
    golden = f"[pwd]/golden/inputs.i64 [pwd]/golden/outputs.i64 {count} check"
    return f"""\
# vitis_hls -f vitis_hls.tcl
open_project -reset {design.name}_prj
set_top {design.name}
add_files "{sources}" -cflags "-std=c++14"
add_files -tb testbench.cpp -cflags "-std=c++14"
open_solution -reset solution1
set_part {{{part}}}
create_clock -period {clock_ns:g}
csim_design -argv "{golden}"
csynth_design
# cosim_design -argv "{golden}"
exit
"""


def bits_of(ports: tuple[Port, ...]) -> int:
    """Memory for values, in bits."""
    return sum(p.size * p.format.width for p in ports)


def constant_bits(layer: Layer) -> int:
    """Memory for a layer's weights and tables, in bits."""
    return sum(math.prod(a.shape) * a.range.bits for a in layer.kernel.constants)
