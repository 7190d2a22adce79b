"""The top function of an HLS project, and the test bench that calls it."""

from __future__ import annotations

from lowerkit.targets.fpga.dataflow import Channel, Network, Process
from lowerkit.targets.fpga.design import Design, Port
from lowerkit.targets.fpga.interfaces import Interface, mover, parameter
from lowerkit.targets.fpga.lang import cpp


def header(design: Design, net: Network, chosen: Interface) -> str:
    """Declares the top function and says what its ports are."""
    lines = ["#pragma once", '#include "lowerkit.h"', "", "// Codes k of numbers k / 2^fraction:"]
    for kind, ports in (("in", design.inputs), ("out", design.outputs)):
        for p in ports:
            shape = " x ".join(map(str, p.shape)) or "1"
            lines.append(f"// {kind:3} {net.ports[p.value]}: {shape}, {p.format}, '{p.value}'")
    return "\n".join([*lines, f"{_signature(design, net, chosen)};", ""])


def top(design: Design, net: Network, chosen: Interface) -> str:
    """The layers, and what joins them: in a dataflow region, or one after the other where layers share a unit."""
    ports = {p.value: p for p in (*design.inputs, *design.outputs)}
    parts = [f'#include "{design.name}.h"']
    parts += [f'#include "layers/{layer.kernel.name}.h"' for layer in design.kernels()]
    parts.append("")
    for p in net.processes:
        if p.kind == "fork":
            parts.append(cpp.function(p.kernel, "static "))
        elif p.kind != "layer":
            output = p.kind == "store"
            parts.append(mover(chosen, p.name, ports[(p.writes if output else p.reads)[0]], output=output))
    body = [chosen.pragma(port, net.ports[value], i) for i, (value, port) in enumerate(ports.items())]
    body += [chosen.control, *([] if net.units else ["#pragma HLS DATAFLOW"])]
    body += [f"#pragma HLS ALLOCATION function instances={name}::{name} limit=1" for name in net.units]
    written = {c.name: c for c in net.channels}
    for p in net.processes:
        body += [line for name in p.writes if name in written for line in _channel(written[name])]
        body += [f"    {line}" for line in _call(p, net)]
    return "\n".join([*parts, f"{_signature(design, net, chosen)} {{", *body, "}", ""])


def _signature(design: Design, net: Network, chosen: Interface) -> str:
    ports = [parameter(chosen, p, net.ports[p.value], output=False) for p in design.inputs]
    ports += [parameter(chosen, p, net.ports[p.value], output=True) for p in design.outputs]
    return f"void {design.name}({', '.join(ports)})"


def _channel(channel: Channel) -> list[str]:
    found = [
        f"    // {channel.writer} to {channel.reader}: {channel.reason}",
        f"    LK_CHANNEL {cpp.type_of(channel.range)} {channel.name}[{channel.size}];",
    ]
    if channel.kind != "buffer":
        found.append(f"#pragma HLS STREAM variable={channel.name} type={channel.kind} depth={channel.depth}")
    return found + cpp.partition(channel.name, [channel.banks])


def _call(process: Process, net: Network) -> list[str]:
    names = [net.ports.get(n, n) if process.kind == "load" else n for n in process.reads]
    names += [net.ports.get(n, n) if process.kind == "store" else n for n in process.writes]
    name, before = process.kernel.name, []
    if process.layer is not None and process.layer.job is not None:
        kind = cpp.type_of(process.kernel.inputs[-1].range)
        before.append(f"const {kind} {process.name}_job[1] = {{{process.layer.job}}};")
        names.insert(len(process.reads), f"{process.name}_job")
    return [*before, f"{f'{name}::' if process.layer else ''}{name}({', '.join(names)});"]


def testbench(design: Design, net: Network, chosen: Interface) -> str:
    """Writes what comes out, or compares it with what should."""
    name = net.ports

    def moved(port: Port, call: str, statement: str) -> str:
        return (
            f"        for (int i = 0; i < {port.size}; ++i) {{\n"
            f"            std::int64_t code = 0;\n            {call}\n            {statement}\n        }}\n"
        )

    reads = "".join(
        moved(p, "if (!get(in, code)) return 3;", chosen.put(p, name[p.value])) for p in design.inputs
    )
    writes = "".join(
        moved(
            p,
            f"code = {chosen.get(p, name[p.value])};",
            f'if (!out(code, "{name[p.value]}", sample, i)) ++wrong;',
        )
        for p in design.outputs
    )
    arrays = "".join(
        f"    static {chosen.declare(p, name[p.value], False)};\n" for p in (*design.inputs, *design.outputs)
    )
    arguments = ", ".join(name[p.value] for p in (*design.inputs, *design.outputs))
    return f"""\
// Runs {design.name} on codes, files of little-endian 64-bit integers, sample after sample:
//   testbench IN OUT COUNT        writes the outputs' codes to OUT
//   testbench IN EXPECTED COUNT check    compares them with EXPECTED; the exit status is 1 where one differs
#include "{design.name}.h"
#include <cstdio>
#include <cstdlib>
#include <cstring>

static bool get(std::FILE* file, std::int64_t& code) {{
    return std::fread(&code, sizeof code, 1, file) == 1;
}}

// Where codes go: to a file, or against it.
struct Sink {{
    std::FILE* file;
    bool check;
    bool operator()(std::int64_t code, const char* port, long sample, int i) {{
        if (!check) return std::fwrite(&code, sizeof code, 1, file) == 1;
        std::int64_t wanted = 0;
        if (get(file, wanted) && code == wanted) return true;
        std::printf("sample %ld, %s[%d]: %lld, expected %lld\\n", sample, port, i, static_cast<long long>(code),
                    static_cast<long long>(wanted));
        return false;
    }}
}};

int main(int argc, char** argv) {{
    const bool check = argc == 5 && !std::strcmp(argv[4], "check");
    if (argc != 4 && !check) {{
        std::fprintf(stderr, "usage: testbench IN OUT COUNT, or testbench IN EXPECTED COUNT check\\n");
        return 2;
    }}
    std::FILE* in = std::fopen(argv[1], "rb");
    Sink out = {{std::fopen(argv[2], check ? "rb" : "wb"), check}};
    if (!in || !out.file) return 2;
    const long count = std::atol(argv[3]);
    long wrong = 0;
{arrays}    for (long sample = 0; sample < count; ++sample) {{
{reads}        {design.name}({arguments});
{writes}    }}
    std::fclose(in);
    if (std::fclose(out.file)) return 2;
    if (check) std::printf("%ld samples, %ld codes differ\\n", count, wrong);
    return wrong != 0;
}}
"""
