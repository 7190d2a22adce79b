"""What a design costs, counted from its loops and arrays. All of it is analytic: no tool has placed or timed anything.

Cycles are iterations of pipelined loops, one each cycle (II = 1), and one for each straight piece of code between
loops; the cycles that fill a pipeline are counted by their occasions, `fills`, as their depth is a tool's choice.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from lowerkit.errors import UnsupportedError
from lowerkit.targets.base import CostTable
from lowerkit.targets.fpga.dataflow import Channel, Network, Process
from lowerkit.targets.fpga.devices import DEFAULT, Device
from lowerkit.targets.fpga.kernels.schedule import count
from lowerkit.targets.fpga.lang.access import expressions, parts, statements
from lowerkit.targets.fpga.lang.expr import Array, Expr, Load, Range, Var
from lowerkit.targets.fpga.lang.program import For, Kernel, Local

NOTE = "analytic: counted from the emitted loops and arrays, not measured on hardware or by a synthesis tool"


@dataclass(frozen=True)
class LayerCost:
    """Of one process of the network; bits are of memory.

    Attributes:
        parameters: constants at addresses that loops make: weights, biases, shifts; all constants of a unit that
            layers share. Its memory and multipliers are counted with the first of them.
        tables: constant arrays at addresses that data make.
        products: multipliers by their operands' widths in bits, signs included.
        blocks: multiplier blocks that those take on the device.
        ii: cycles from one output position to the next, cycles: for a sample.
    """

    name: str
    kind: str
    node: str
    op: str
    parameters: int
    parameter_bits: int
    tables: int
    table_bits: int
    local_bits: int
    multipliers: int
    products: Mapping[str, int]
    blocks: int
    ii: int
    cycles: int
    fills: int


@dataclass(frozen=True)
class Cost:
    """Of a design. A sample enters every `interval` cycles; `latency` is that of one alone, along the longest way,
    as if no two processes on it overlapped. Where layers share a unit, no two processes do, and both are the sum."""

    layers: tuple[LayerCost, ...]
    channels: tuple[Channel, ...]
    interval: int
    latency: int
    device: Device

    @property
    def channel_bits(self) -> int:
        """Memory between processes."""
        return sum(c.bits for c in self.channels)

    @property
    def memory_bits(self) -> int:
        """All that has to be on the chip."""
        own = sum(la.parameter_bits + la.table_bits + la.local_bits for la in self.layers)
        return own + self.channel_bits

    def check(self) -> None:
        """Raises UnsupportedError where the memory is more than the device has."""
        if self.memory_bits <= self.device.memory_bits:
            return
        sizes = [(la.parameter_bits + la.table_bits + la.local_bits, la.name, la.node) for la in self.layers]
        sizes += [(c.bits, f"the channel from {c.writer} to {c.reader}", "") for c in self.channels]
        largest = sorted(sizes, key=lambda each: (-each[0], each[1]))[:3]
        named = ", ".join(
            f"{name}{f' (node {node!r})' if node else ''} {_mega(bits)}" for bits, name, node in largest
        )
        raise UnsupportedError(
            f"the design needs {_mega(self.memory_bits)} of memory, and {self.device.name} "
            f"({self.device.chip}) has {_mega(self.device.memory_bits)} on the chip; the most is in {named}",
            hint="take fewer bits (--option width=8, --option weight_width=8), a larger --device, or a smaller model",
        )

    def as_json(self) -> dict[str, Any]:
        """For fpga.json."""
        return {
            "note": NOTE,
            "interval_cycles": self.interval,
            "latency_cycles": self.latency,
            "parameters": sum(la.parameters for la in self.layers),
            "multipliers": sum(la.multipliers for la in self.layers),
            "multiplier_blocks": sum(la.blocks for la in self.layers),
            "memory_bits": self.memory_bits,
            "device": asdict(self.device),
            "layers": [asdict(la) for la in self.layers],
            "channels": [
                {
                    "name": c.name,
                    "from": c.writer,
                    "to": c.reader,
                    "kind": c.kind,
                    "depth": c.depth,
                    "banks": c.size if c.banks.complete else c.banks.factor,
                    "free_of_bank_conflicts": c.banks.proven,
                    "bits": c.bits,
                    "reason": c.reason,
                }
                for c in self.channels
            ],
        }


def cost_table(found: Mapping[str, Any]) -> CostTable:
    """The numbers of `Cost.as_json` by layer, and of the whole."""
    columns = (
        "layer",
        "parameters",
        "bits of memory",
        "tables",
        "multipliers",
        "multiplier blocks",
        "cycles of initiation interval",
        "cycles of latency",
    )
    rows: list[tuple[str | int, ...]] = [
        (
            la["name"],
            la["parameters"],
            la["parameter_bits"] + la["table_bits"] + la["local_bits"],
            la["tables"],
            la["multipliers"],
            la["blocks"],
            la["ii"],
            la["cycles"],
        )
        for la in found["layers"]
    ]
    between = sum(channel["bits"] for channel in found["channels"])
    whole = (
        "all",
        found["parameters"],
        found["memory_bits"],
        sum(la["tables"] for la in found["layers"]),
        found["multipliers"],
        found["multiplier_blocks"],
        found["interval_cycles"],
        found["latency_cycles"],
    )
    return CostTable(found["note"], columns, (*rows, ("channels", 0, between, 0, 0, 0, 0, 0), whole))


def cost(net: Network, device: Device | None = None) -> Cost:
    """The design's cost; multiplier blocks are those of `device`, or of the default one."""
    chosen = device or DEFAULT
    layers: list[LayerCost] = []
    counted: set[str] = set()
    for p in net.processes:
        found = _layer(p, chosen)
        layers.append(_again(found) if p.kernel.name in counted else found)
        counted.add(p.kernel.name)
    cycles = {la.name: la.cycles for la in layers}
    if net.units:
        return Cost(tuple(layers), net.channels, sum(cycles.values()), sum(cycles.values()), chosen)
    finish: dict[str, int] = {}
    for p in net.processes:
        before = [finish[c.writer] for c in net.channels if c.reader == p.name]
        finish[p.name] = max(before, default=0) + cycles[p.name]
    return Cost(tuple(layers), net.channels, max(cycles.values()), max(finish.values()), chosen)


def blocks(widths: tuple[int, int], operands: tuple[int, int]) -> int:
    """Multiplier blocks for a product of signed numbers of two widths: one part of an operand each.

    All parts but the highest are unsigned, and so have a bit less: Kumm et al., Karatsuba with rectangular multipliers
    for FPGAs (ARITH 2018), section II, for the plain tiling.
    """

    def tiles(width: int, block: int) -> int:
        return max(1, math.ceil((width - 1) / (block - 1)))

    (a, b), (x, y) = widths, operands
    return min(tiles(a, x) * tiles(b, y), tiles(a, y) * tiles(b, x))


def _layer(process: Process, device: Device) -> LayerCost:
    kernel, layer = process.kernel, process.layer
    counted = count(kernel)
    # Addresses within a unit's weights are made of its job's sizes.
    shared = layer is not None and layer.job is not None
    data = [] if shared else [a for a in kernel.constants if _by_data(kernel, a)]
    weights = [a for a in kernel.constants if a not in data]
    local = [s.array for s in statements(kernel.body) if isinstance(s, Local)]
    widths = Counter[tuple[int, int]]()
    for (left, right), number in counted.products.items():
        widths[_signed(left), _signed(right)] += number
    return LayerCost(
        process.name,
        process.kind,
        layer.node if layer else "",
        layer.op if layer else "",
        sum(math.prod(a.shape) for a in weights),
        _bits(weights),
        len(data),
        _bits(data),
        _bits(local),
        widths.total(),
        {f"{a}x{b}": widths[a, b] for a, b in sorted(widths)},
        sum(number * blocks(each, device.operands) for each, number in widths.items()),
        layer.schedule.ii if layer else 1,
        layer.schedule.cycles if layer else counted.cycles,
        layer.schedule.fills if layer else counted.fills,
    )


def _again(found: LayerCost) -> LayerCost:
    """A layer whose unit is counted already."""
    return replace(
        found,
        parameters=0,
        parameter_bits=0,
        tables=0,
        table_bits=0,
        local_bits=0,
        multipliers=0,
        products={},
        blocks=0,
    )


def _signed(range: Range) -> int:
    return range.bits + (not range.signed)


def _bits(arrays: Iterable[Array]) -> int:
    return sum(math.prod(a.shape) * a.range.bits for a in arrays)


def _mega(bits: int) -> str:
    return f"{bits / 2**20:.3g} Mbit"


def _by_data(kernel: Kernel, array: Array) -> bool:
    """Whether an address of the array is made of more than loop counters."""
    counters = {s.counter for s in statements(kernel.body) if isinstance(s, For)}

    def made(e: Expr) -> bool:
        if isinstance(e, Var):
            return e not in counters
        return isinstance(e, Load) or any(made(part) for part in parts(e))

    def within(e: Expr) -> bool:
        if isinstance(e, Load) and e.array is array and any(made(i) for i in e.indices):
            return True
        return any(within(part) for part in parts(e))

    return any(within(e) for s in statements(kernel.body) for e in expressions(s))
