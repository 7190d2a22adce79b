"""Simulates a kernel's Verilog with Icarus Verilog: codes in, codes out, and the cycles at which they pass."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowerkit.errors import ToolError
from lowerkit.targets.fpga.lang.program import Kernel
from lowerkit.targets.fpga.rtl import tools
from lowerkit.targets.fpga.rtl.design import Rtl, Stream, print_rtl
from lowerkit.targets.fpga.rtl.verilog import bus

#: Cycles without a beat at an output after which the design has come to a halt.
PATIENCE = 20_000


@dataclass(frozen=True)
class Cycles:
    """When beats passed; cycles are counted from the first beat that is offered.

    Attributes:
        latency: to the first beat out.
        interval: from one sample's last beat out to the next one's, on average; of one sample, all cycles.
        total: to the last beat out.
    """

    latency: int
    interval: float
    total: int


def simulate_rtl(
    kernel: Kernel,
    inputs: Mapping[str, np.ndarray],
    *,
    seed: int = 0,
    stalls: bool = True,
    rtl: Rtl | None = None,
) -> tuple[dict[str, np.ndarray], Cycles]:
    """The kernel's outputs, int64 [batch, ...], for codes of that form, as `interpret.run` has them, and the cycles.

    Args:
        stalls: inputs come with random gaps, and outputs are not taken in every cycle; half of either, from `seed`.
        rtl: the printed kernel, where there is one already.

    Raises:
        ToolError: where a tool is missing, the design halts, or an output is undefined.
    """
    found, cycles = simulate(rtl or print_rtl(kernel), inputs, seed=seed, stalls=stalls)
    return {a.name: found[a.name].reshape(-1, *a.shape) for a in kernel.outputs}, cycles


def simulate(
    design: Rtl, inputs: Mapping[str, np.ndarray], *, seed: int = 0, stalls: bool = True
) -> tuple[dict[str, np.ndarray], Cycles]:
    """Each output's codes, int64 [batch, codes], for the inputs' [batch, ...]; as `simulate_rtl`."""
    samples = len(next(iter(inputs.values())))
    with tempfile.TemporaryDirectory(prefix="lowerkit-") as scratch:
        place = Path(scratch)
        (place / "design.v").write_text(design.verilog)
        (place / "bench.v").write_text(bench(design, samples, seed, stalls))
        for stream in design.inputs:
            (place / f"{stream.name}.hex").write_text(beats(stream, inputs[stream.name]))
        command = [tools.program("iverilog"), "-g2005", "-o", "bench", "bench.v", "design.v"]
        tools.run(command, place, f"iverilog on {design.name}")
        text = tools.run([tools.program("vvp"), "-N", "bench"], place, f"the simulation of {design.name}")
    return _collected(design, samples, text)


def beats(stream: Stream, codes: np.ndarray) -> str:
    """A stream's beats as hexadecimal words, one a line."""
    mask, lines = (1 << stream.range.bits) - 1, []
    for row in np.asarray(codes, np.int64).reshape(-1, stream.lanes).tolist():
        word = 0
        for lane, code in enumerate(row):
            word |= (code & mask) << (lane * stream.range.bits)
        lines.append(f"{word:x}")
    return "\n".join([*lines, ""])


def bench(design: Rtl, samples: int, seed: int, stalls: bool) -> str:
    """A test bench that writes a line for each beat that passes: the port, the cycle, and the word."""
    chance = "$random(seed) % 2 == 0" if stalls else "1'b1"
    lines = [
        "module bench;",
        "  reg clk = 0, rst = 1;",
        "  integer cycle = 0, quiet = 0;",
        f"  integer seed = {seed};",
    ]
    ports = [".clk(clk)", ".rst(rst)"]
    for s in (*design.inputs, *design.outputs):
        ports += [f".{s.name}_{part}({s.name}_{part})" for part in ("data", "valid", "ready")]
    each, ends = [], []
    for s in design.inputs:
        count = s.beats * samples
        lines += [
            f"  reg {bus(s.bits)}{s.name}_words [0:{count}];",
            f'  initial $readmemh("{s.name}.hex", {s.name}_words, 0, {count - 1});',
            f"  integer {s.name}_next = 0;",
            f"  reg {s.name}_valid = 0, {s.name}_offered = 0;",
            f"  wire {s.name}_ready;",
            f"  wire {bus(s.bits)}{s.name}_data = {s.name}_valid ? {s.name}_words[{s.name}_next] : {s.bits}'bx;",
        ]
        each += [
            f'    if ({s.name}_valid && !{s.name}_offered) $display("{s.name} %0d 0", cycle);',
            f"    {s.name}_offered <= {s.name}_valid | {s.name}_offered;",
            f"    if ({s.name}_valid & {s.name}_ready) begin",
            f"      {s.name}_next <= {s.name}_next + 1;",
            f"      {s.name}_valid <= {s.name}_next + 1 < {count} && {chance};",
            f"    end else if (!{s.name}_valid) {s.name}_valid <= {s.name}_next < {count} && {chance};",
        ]
    for s in design.outputs:
        lines += [
            f"  integer {s.name}_next = 0;",
            f"  reg {s.name}_ready = 0;",
            f"  wire {s.name}_valid;",
            f"  wire {bus(s.bits)}{s.name}_data;",
        ]
        each += [
            f"    {s.name}_ready <= {chance};",
            f"    if ({s.name}_valid & {s.name}_ready) begin",
            f'      $display("{s.name} %0d %h", cycle, {s.name}_data);',
            f"      {s.name}_next <= {s.name}_next + 1;",
            "      quiet = 0;",
            "    end",
        ]
        ends.append(f"{s.name}_next == {s.beats * samples}")
    lines += [
        f"  {design.name} dut ({', '.join(ports)});",
        "  always #5 clk = ~clk;",
        "  initial #42 rst = 0;",
        "  always @(posedge clk) if (!rst) begin",
        "    cycle <= cycle + 1;",
        "    quiet = quiet + 1;",
        *each,
        f"    if (({' && '.join(ends)}) || quiet > {PATIENCE}) $finish(0);",
        "  end",
        "endmodule",
    ]
    return "\n".join([*lines, ""])


def _collected(design: Rtl, samples: int, text: str) -> tuple[dict[str, np.ndarray], Cycles]:
    rows: dict[str, list[tuple[int, str]]] = {s.name: [] for s in (*design.inputs, *design.outputs)}
    for line in text.splitlines():
        name, _, rest = line.partition(" ")
        if name in rows:
            cycle, word = rest.split()
            rows[name].append((int(cycle), word))
    found = {}
    for stream in design.outputs:
        # What comes first in a sample may be constants, and those of the next one may be there already.
        rows[stream.name] = rows[stream.name][: stream.beats * samples]
        if len(rows[stream.name]) < stream.beats * samples:
            raise ToolError(
                f"kernel {design.name} halts after {len(rows[stream.name])} of {stream.beats * samples} beats "
                f"of {stream.name}",
                hint="this is a fault of lowerkit",
            )
        found[stream.name] = _codes(design.name, stream, [w for _, w in rows[stream.name]]).reshape(
            samples, -1
        )
    start = min(rows[s.name][0][0] for s in design.inputs)
    first = min(rows[s.name][0][0] for s in design.outputs)
    ends = [max(rows[s.name][s.beats * (i + 1) - 1][0] for s in design.outputs) for i in range(samples)]
    interval = (ends[-1] - ends[0]) / (samples - 1) if samples > 1 else ends[0] - start + 1
    return found, Cycles(first - start, interval, ends[-1] - start + 1)


def _codes(name: str, stream: Stream, words: list[str]) -> np.ndarray:
    bits, codes = stream.range.bits, []
    for word in words:
        if not all(c in "0123456789abcdef" for c in word):
            raise ToolError(
                f"kernel {name}: output {stream.name} is undefined, {word}",
                hint="this is a fault of lowerkit",
            )
        value = int(word, 16)
        for lane in range(stream.lanes):
            code = (value >> (lane * bits)) & ((1 << bits) - 1)
            codes.append(code - (1 << bits) if stream.range.signed and code >> (bits - 1) else code)
    return np.array(codes, np.int64)
