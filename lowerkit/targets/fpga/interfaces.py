"""How a design's codes come in and go out: the ports of the top function and how they are read and written.

memory   arrays of codes, which become memory ports: the design alone, inside of a larger one
axi      m_axi ports, codes in whole bytes in the host's memory, and s_axilite for addresses and start
stream   axis ports with TLAST on a value's last code, codes in whole bytes, for a DMA engine or another stream
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lowerkit.errors import PlanError
from lowerkit.targets.fpga.design import Port
from lowerkit.targets.fpga.lang import cpp


@dataclass(frozen=True)
class Interface:
    """One of the three; every attribute writes C++.

    Attributes:
        declare: a port as a parameter, or with `static` before it as the test bench's variable.
        read, write: the port's code `i`, and a statement that writes `code` there.
        put, get: the test bench's: a statement that brings `code`, an int64, to the port's place `i`; an int64 of it.
        pragma: of the top function, for the n-th port.
        control: of the top function.
        include: what `lowerkit.h` needs.
    """

    name: str
    declare: Callable[[Port, str, bool], str]
    read: Callable[[Port, str], str]
    write: Callable[[Port, str], str]
    put: Callable[[Port, str], str]
    get: Callable[[Port, str], str]
    pragma: Callable[[Port, str, int], str]
    control: str
    include: str = ""


def interface(name: str) -> Interface:
    """By name. Raises PlanError."""
    if name not in INTERFACES:
        raise PlanError(
            f"option interface = '{name}' is no interface", hint=f"choose one of {', '.join(INTERFACES)}"
        )
    return INTERFACES[name]


def bus_bits(port: Port) -> int:
    """Of a code on a bus: whole bytes, a power of two of them."""
    return next(w for w in (8, 16, 32, 64) if port.format.width <= w)


def _type(port: Port) -> str:
    return cpp.type_of(port.format.range)


def _plain(port: Port) -> str:
    return f"std::{'' if port.format.signed else 'u'}int{bus_bits(port)}_t"


def _array(kind: str, port: Port, name: str, constant: bool) -> str:
    return f"{'const ' if constant else ''}{kind} {name}[{port.size}]"


def _sign(port: Port) -> str:
    """A beat's data are bits; codes have signs."""
    return f"ap_{'' if port.format.signed else 'u'}int<{bus_bits(port)}>"


def _beat(port: Port) -> str:
    return f"ap_axiu<{bus_bits(port)}, 0, 0, 0>"


def _send(port: Port, name: str) -> str:
    """A beat with all bytes valid."""
    return (
        f"{_beat(port)} beat; beat.data = {_sign(port)}(code); beat.keep = -1; beat.strb = -1; "
        f"beat.last = i == {port.size - 1}; {name}.write(beat);"
    )


_MEMORY = Interface(
    "memory",
    declare=lambda p, n, constant: _array(_type(p), p, n, constant),
    read=lambda p, n: f"{n}[i]",
    write=lambda p, n: f"{n}[i] = code;",
    put=lambda p, n: f"{n}[i] = static_cast<long long>(code);",
    get=lambda p, n: f"{n}[i].to_int64()",
    pragma=lambda p, n, i: f"#pragma HLS INTERFACE ap_memory port={n}",
    control="#pragma HLS INTERFACE ap_ctrl_hs port=return",
)
_AXI = Interface(
    "axi",
    declare=lambda p, n, constant: _array(_plain(p), p, n, constant),
    read=lambda p, n: f"{n}[i]",
    write=lambda p, n: f"{n}[i] = static_cast<{_plain(p)}>(code.to_int64());",
    put=lambda p, n: f"{n}[i] = static_cast<{_plain(p)}>(code);",
    get=lambda p, n: f"{n}[i]",
    pragma=lambda p, n, i: (
        f"#pragma HLS INTERFACE m_axi port={n} offset=slave bundle=gmem{i} depth={p.size}\n"
        f"#pragma HLS INTERFACE s_axilite port={n}"
    ),
    control="#pragma HLS INTERFACE s_axilite port=return",
)
_STREAM = Interface(
    "stream",
    declare=lambda p, n, constant: f"hls::stream<{_beat(p)}> {n}",
    read=lambda p, n: f"{_sign(p)}({n}.read().data)",
    write=_send,
    put=_send,
    get=lambda p, n: f"{_sign(p)}({n}.read().data).to_int64()",
    pragma=lambda p, n, i: f"#pragma HLS INTERFACE axis port={n}",
    control="#pragma HLS INTERFACE ap_ctrl_hs port=return",
    include="""\
#include <hls_stream.h>
// The vendor's header where there is one; its beats as far as this design uses them elsewhere.
#if defined(__has_include)
#if __has_include(<ap_axi_sdata.h>)
#include <ap_axi_sdata.h>
#define LK_HAS_AXI
#endif
#endif
#ifndef LK_HAS_AXI
template <int D, int U, int TI, int TD> struct ap_axiu {
    ap_uint<D> data;
    ap_uint<D / 8> keep, strb;
    ap_uint<1> last;
};
#endif
""",
)
INTERFACES = {found.name: found for found in (_MEMORY, _AXI, _STREAM)}


def parameter(chosen: Interface, port: Port, name: str, *, output: bool) -> str:
    """A port as the top function's parameter."""
    text = chosen.declare(port, name, not output)
    return text.replace(f" {name}", f" &{name}") if chosen.name == "stream" else text


def mover(chosen: Interface, function: str, port: Port, *, output: bool) -> str:
    """The function between a port and a channel, a code each cycle."""
    kind, outside = _type(port), parameter(chosen, port, "port", output=output)
    if output:
        head = f"static void {function}(const {kind} codes[{port.size}], {outside})"
        lines = [f"        const {kind} code = codes[i];", f"        {chosen.write(port, 'port')}"]
    else:
        head = f"static void {function}({outside}, {kind} codes[{port.size}])"
        lines = [f"        codes[i] = {chosen.read(port, 'port')};"]
    shape = " x ".join(map(str, port.shape)) or "1"
    way = "From a channel to the port" if output else "From the port to a channel"
    return "\n".join(
        [
            f"// {way}: '{port.value}', {shape}, {port.format}",
            f"{head} {{",
            f"    for (int i = 0; i < {port.size}; ++i) {{",
            "#pragma HLS PIPELINE II=1",
            *lines,
            "    }",
            "}",
            "",
        ]
    )
