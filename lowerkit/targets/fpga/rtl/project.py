"""Writes a design as a folder of Verilog that simulates with open tools, without lowerkit.

DIR/
  layers/NAME.v dslx/NAME.x   a layer, and the functions of it that XLS made modules of
  DESIGN_top.v lk_*.v         the layers with the channels between them, and modules that layers share
  waivers.vlt                 rules of verilator's lint that are off, and why
  lk_monitor.v ports.h testbench.cpp    the test bench of verilator
  testbench.v                 a test bench for Icarus, with the samples of golden/
  golden/                     samples' codes, and those that the integer model makes of them, by sample and by port
  Makefile                    make (the simulation), make check (on golden/), make icarus, make lint
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lowerkit.targets.fpga.design import Design
from lowerkit.targets.fpga.project import write_golden
from lowerkit.targets.fpga.rtl import bench, icarus
from lowerkit.targets.fpga.rtl.design import TEMPLATES, WAIVERS, Rtl, Stream
from lowerkit.targets.fpga.rtl.queues import check_queues

#: Of `make check` and `make icarus`.
SEED, STALLS = 1, 0.5


def write_rtl_project(
    design: Design, rtl: Rtl, directory: Path, *, golden: Mapping[str, np.ndarray] | None = None
) -> None:
    """Write all files of the project.

    Args:
        rtl: the design as `print_network` has it.
        golden: the inputs' codes [samples, ...] of the golden vectors, by value; random ones if None.

    Raises UnsupportedError where a queue is too shallow, as `check_queues` has it.
    """
    check_queues(rtl)
    directory.mkdir(parents=True)
    folder = directory / "golden"
    count = write_golden(design, folder, golden)
    for name, streams in (("inputs", rtl.inputs), ("outputs", rtl.outputs)):
        _words(folder, streams, np.fromfile(folder / f"{name}.i64", "<i8").reshape(count, -1))
    write_sources(rtl, directory, count)
    _write(directory / "testbench.v", icarus.bench(rtl, count, SEED, STALLS, "golden/"))


def write_sources(rtl: Rtl, directory: Path, count: int = 0) -> None:
    """Write what verilator needs, into a folder that is there; `count` is of golden samples."""
    *layers, top = rtl.sources
    files = {f"layers/{source.name}.v": source.modules for source in layers}
    files |= {f"{top.name}.v": top.modules, **{f"{name}.v": text for name, text in rtl.shared.items()}}
    texts = {f"dslx/{source.name}.x": source.dslx for source in rtl.sources if source.dslx}
    texts |= {
        "waivers.vlt": _waivers(),
        f"{bench.MONITOR}.v": bench.monitor(rtl),
        "ports.h": bench.header(rtl),
        "testbench.cpp": (TEMPLATES / "testbench_rtl.cpp").read_text(encoding="utf-8"),
        "Makefile": _makefile(rtl, list(files), count),
    }
    for name, text in {**files, **texts}.items():
        (directory / name).parent.mkdir(exist_ok=True)
        _write(directory / name, text)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _words(folder: Path, streams: Sequence[Stream], rows: np.ndarray) -> None:
    """The columns of each stream, as words."""
    ends = np.cumsum([s.beats * s.lanes for s in streams])
    for stream, codes in zip(streams, np.split(rows, ends[:-1], axis=1), strict=True):
        _write(folder / f"{stream.name}.hex", icarus.words(stream, codes))


def _waivers() -> str:
    lines = ["`verilator_config"]
    for rule, why in WAIVERS.items():
        lines += [f"// {why[0].upper()}{why[1:]}.", f"lint_off -rule {rule}"]
    return "\n".join([*lines, ""])


def _makefile(rtl: Rtl, files: Sequence[str], count: int) -> str:
    return f"""\
# make            the simulation: ./testbench IN OUT COUNT [--stalls P] [--seed N] [--cycles FILE]
# make check      runs it on golden/ with random gaps and stalls; fails where a code differs
# make icarus     the same by Icarus Verilog, where a bit that nothing has set differs as well
# make lint       all warnings of verilator but those of waivers.vlt
VERILATOR ?= verilator
OPTIMISE ?= -O1
BUILD = build
PROGRAM = testbench
GOLDEN = {count}
DESIGN = {" ".join(files)}

# Numbers that nothing sets are random.
$(PROGRAM): {bench.MONITOR}.v ports.h testbench.cpp waivers.vlt $(DESIGN)
\t$(VERILATOR) --cc --exe -O3 --x-assign unique --x-initial unique -Mdir $(BUILD) --prefix Vmodel \\
\t    --top-module {bench.MONITOR} -CFLAGS -I.. waivers.vlt {bench.MONITOR}.v $(DESIGN) testbench.cpp
\t$(MAKE) -C $(BUILD) -f Vmodel.mk OPT_FAST="$(OPTIMISE)" OPT_GLOBAL=-O0
\t@cp $(BUILD)/Vmodel $@

check: $(PROGRAM)
\t./$(PROGRAM) golden/inputs.i64 golden/outputs.i64 $(GOLDEN) check --seed {SEED} --stalls {STALLS}

icarus: testbench.v $(DESIGN)
\tiverilog -g2005 -o testbench.vvp testbench.v $(DESIGN)
\tvvp -N testbench.vvp

lint:
\t$(VERILATOR) --lint-only -Wall --top-module {rtl.name} waivers.vlt $(DESIGN)

tidy:
\trm -rf $(BUILD) testbench.vvp

clean: tidy
\trm -f $(PROGRAM)

.PHONY: check icarus lint tidy clean
"""
