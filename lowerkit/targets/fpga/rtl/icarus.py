"""A test bench in Verilog, for Icarus: slower than verilator's, but it knows bits that nothing has set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lowerkit.errors import ToolError
from lowerkit.targets.fpga.rtl import tools
from lowerkit.targets.fpga.rtl.bench import patience
from lowerkit.targets.fpga.rtl.design import Rtl, Stream
from lowerkit.targets.fpga.rtl.verilog import bus


def run(
    rtl: Rtl, inputs: Mapping[str, np.ndarray], place: Path, *, seed: int, stalls: float
) -> tuple[dict[str, np.ndarray], dict[str, list[int]]]:
    """Each output's codes, int64 [samples, codes], and the cycles of its beats; of inputs, when the first is offered.

    Raises ToolError where Icarus is missing, the design halts, or an output is undefined.
    """
    samples = len(next(iter(inputs.values())))
    (place / "design.v").write_text(rtl.verilog)
    (place / "testbench.v").write_text(bench(rtl, samples, seed, stalls))
    for stream in rtl.inputs:
        (place / f"{stream.name}.hex").write_text(words(stream, inputs[stream.name]))
    command = [tools.program("iverilog"), "-g2005", "-o", "testbench.vvp", "testbench.v", "design.v"]
    tools.run(command, place, f"iverilog on {rtl.name}")
    text = tools.run([tools.program("vvp"), "-N", "testbench.vvp"], place, f"the simulation of {rtl.name}")
    rows: dict[str, list[tuple[int, str]]] = {s.name: [] for s in (*rtl.inputs, *rtl.outputs)}
    for line in text.splitlines():
        name, _, rest = line.partition(" ")
        if name not in rows:
            continue
        cycle, word = rest.split()
        rows[name].append((int(cycle), word))
        if not set(word) <= set("0123456789abcdef"):
            reason = f"{rtl.name}: port {name} is undefined in cycle {cycle}, {word}"
            raise ToolError(reason, hint="this is a fault of lowerkit")
    found = {}
    for s in rtl.outputs:
        codes = _codes(s, [word for _, word in rows[s.name]])
        if len(rows[s.name]) != s.beats * samples:
            raise ToolError(
                f"{rtl.name} halts after {codes.size} of {s.beats * s.lanes * samples} codes of {s.name}",
                hint="simulate it with verilator to see which layer waits",
            )
        found[s.name] = codes.reshape(samples, -1)
    return found, {name: [cycle for cycle, _ in beats] for name, beats in rows.items()}


def words(stream: Stream, codes: np.ndarray) -> str:
    """A stream's beats as hexadecimal words, one a line."""
    mask, lines = (1 << stream.range.bits) - 1, []
    for row in np.asarray(codes, np.int64).reshape(-1, stream.lanes).tolist():
        word = 0
        for lane, code in enumerate(row):
            word |= (code & mask) << (lane * stream.range.bits)
        lines.append(f"{word:x}")
    return "\n".join([*lines, ""])


def bench(rtl: Rtl, samples: int, seed: int, stalls: float, golden: str = "") -> str:
    """A test bench that reads its inputs' words from NAME.hex.

    It writes a line for each beat that passes: the port, the cycle, and the word. With `golden`, a folder with a
    slash, words are there, those of outputs too; what differs is written, and the exit status is 1 then.
    """
    chance = f"{{$random(seed)}} % 1000 >= {round(1000 * stalls)}" if stalls else "1'b1"
    lines = [
        "module testbench;",
        "  reg clk = 0, rst = 1;",
        "  integer cycle = 0, quiet = 0, wrong = 0;",
        f"  integer seed = {seed};",
    ]
    ports, each = [".clk(clk)", ".rst(rst)"], list[str]()
    for s in (*rtl.inputs, *rtl.outputs):
        ports += [f".{s.name}_{part}({s.name}_{part})" for part in ("data", "valid", "ready")]
        lines.append(f"  integer {s.name}_next = 0;")
        if s in rtl.inputs or golden:
            lines += [
                f"  reg {bus(s.bits)}{s.name}_words [0:{s.beats * samples}];",
                f'  initial $readmemh("{golden}{s.name}.hex", {s.name}_words, 0, {s.beats * samples - 1});',
            ]
    for s in rtl.inputs:
        declared, steps = _fed(s, s.beats * samples, chance, golden)
        lines, each = lines + declared, each + steps
    for s in rtl.outputs:
        declared, steps = _drained(s, s.beats * samples, chance, golden)
        lines, each = lines + declared, each + steps
    done = " && ".join(f"{s.name}_next == {s.beats * samples}" for s in rtl.outputs)
    limit = patience(sum(source.iterations for source in rtl.sources))
    finish = ["$finish(0);"]
    if golden:
        finish = [
            f'if (!({done})) $display("halted in cycle %0d", cycle);',
            f'$display("{samples} samples, %0d words differ", wrong);',
            f"$finish_and_return(wrong != 0 || !({done}));",
        ]
    lines += [
        f"  {rtl.name} dut ({', '.join(ports)});",
        "  always #5 clk = ~clk;",
        "  initial #42 rst = 0;",
        "  always @(posedge clk) if (!rst) begin",
        "    cycle <= cycle + 1;",
        "    quiet = quiet + 1;",
        *each,
        f"    if (({done}) || quiet > {limit}) begin",
        *(f"      {line}" for line in finish),
        "    end",
        "  end",
        "endmodule",
    ]
    return "\n".join([*lines, ""])


def _fed(s: Stream, count: int, chance: str, golden: str) -> tuple[list[str], list[str]]:
    """What feeds an input: declarations, and what happens at an edge. Data that is not valid is undefined."""
    lines = [
        f"  reg {s.name}_valid = 0, {s.name}_offered = 0;",
        f"  wire {s.name}_ready;",
        f"  wire {bus(s.bits)}{s.name}_data = {s.name}_valid ? {s.name}_words[{s.name}_next] : {{{s.bits}{{1'bx}}}};",
    ]
    told = f'    if ({s.name}_valid && !{s.name}_offered) $display("{s.name} %0d 0", cycle);'
    return lines, [
        *([] if golden else [told]),
        *_known(s.name, "ready", golden),
        f"    {s.name}_offered <= {s.name}_valid | {s.name}_offered;",
        f"    if ({s.name}_valid & {s.name}_ready) begin",
        f"      {s.name}_next <= {s.name}_next + 1;",
        f"      {s.name}_valid <= {s.name}_next + 1 < {count} && {chance};",
        "      quiet = 0;",
        f"    end else if (!{s.name}_valid) {s.name}_valid <= {s.name}_next < {count} && {chance};",
    ]


def _drained(s: Stream, count: int, chance: str, golden: str) -> tuple[list[str], list[str]]:
    """What drains an output."""
    lines = [
        f"  reg {s.name}_ready = 0;",
        f"  wire {s.name}_valid;",
        f"  wire {bus(s.bits)}{s.name}_data;",
    ]
    word = f"{s.name}_words[{s.name}_next]"
    told = [f'      $display("{s.name} %0d %h", cycle, {s.name}_data);']
    if golden:
        told = [
            f"      if ({s.name}_data !== {word}) begin",
            "        wrong = wrong + 1;",
            f'        $display("{s.name}[%0d]: %h, expected %h", {s.name}_next, {s.name}_data, {word});',
            "      end",
        ]
    return lines, [
        f"    {s.name}_ready <= {chance};",
        *_known(s.name, "valid", golden),
        f"    if ({s.name}_valid & {s.name}_ready & {s.name}_next < {count}) begin",
        *told,
        f"      {s.name}_next <= {s.name}_next + 1;",
        "      quiet = 0;",
        "    end",
    ]


def _known(name: str, signal: str, golden: str) -> list[str]:
    """An end where a port's signal is undefined, which is written as an undefined word."""
    return [
        f"    if ({name}_{signal} === 1'bx) begin",
        f'      $display("{name} %0d x", cycle);',
        f"      {'$finish_and_return(1)' if golden else '$finish(0)'};",
        "    end",
    ]


def _codes(stream: Stream, words: list[str]) -> np.ndarray:
    bits, codes = stream.range.bits, []
    for word in words:
        value = int(word, 16)
        for lane in range(stream.lanes):
            code = (value >> (lane * bits)) & ((1 << bits) - 1)
            codes.append(code - (1 << bits) if stream.range.signed and code >> (bits - 1) else code)
    return np.array(codes, np.int64)
