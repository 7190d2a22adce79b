"""Formats that no number can overflow: ranges of what layers store, proven by intervals from their inputs' formats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import onnx_ir as ir

from lowerkit.errors import UnsupportedError
from lowerkit.graph.domain import describe_node
from lowerkit.targets.fpga.formats import Fixed, Format
from lowerkit.targets.fpga.lang.access import statements
from lowerkit.targets.fpga.lang.expr import Array, Range
from lowerkit.targets.fpga.lang.program import Kernel, Store
from lowerkit.targets.fpga.lowering import Context, Converter
from lowerkit.targets.fpga.stages import stages_of

#: Bits that a trial's output has above the calibrated ones.
ROOM = 14


def prove(
    context: Context, node: ir.Node, converter: Converter, given: frozenset[str] = frozenset()
) -> dict[str, Fixed]:
    """Formats for what a node's layers write, of the calibrated widths, that hold all that they can compute.

    Those of values in `given` are proven to suffice, and stay.

    The layers are built with outputs wide enough that nothing saturates, and the ranges of the expressions that they
    store are read off. Raises UnsupportedError where even the wide outputs may saturate.
    """
    trial = replace(
        context,
        formats=_Wide(context.formats),
        ports=dict(context.ports),
        views=dict(context.views),
        layers=list(context.layers),
        done=set(context.done),
        jobs=dict(context.jobs),
    )
    converter(trial, node)
    written = {name for layer in trial.layers for name in layer.writes}
    for name in stages_of(node):
        if name not in written:
            raise UnsupportedError(
                f"nothing proves a range for '{name}', which one of its kernels keeps to itself",
                node=describe_node(node),
                hint="choose overflow = 'saturate'",
            )
    found = {}
    for layer in trial.layers[len(context.layers) :]:
        for array, name in zip(layer.kernel.outputs, layer.writes, strict=True):
            wide = trial.ports[name].format
            if wide != trial.formats.get(name) or not isinstance(wide, Fixed):
                continue  # codes that are moved keep their format, and a quantised graph saturates as it says
            stored = stored_range(layer.kernel, array)
            if stored.low <= wide.range.low < 0 or stored.high >= wide.range.high:
                raise UnsupportedError(
                    f"nothing proves a range for '{name}': it may pass {wide.low:g} to {wide.high:g}",
                    node=describe_node(node),
                    hint="choose overflow = 'saturate'",
                )
            own = context.formats[name]
            if name in given:
                if stored.low < own.range.low or stored.high > own.range.high:
                    raise UnsupportedError(
                        f"'{name}' may take {stored.low * own.step:g} to {stored.high * own.step:g}, which "
                        f"{own} does not hold",
                        node=describe_node(node),
                        hint="choose overflow = 'saturate', or a wider format",
                    )
                continue
            width = own.width
            found[name] = Fixed.holding(
                min(stored.low * wide.step, 0.0), max(stored.high * wide.step, 2.0**-40), width
            )
    return found


def stored_range(kernel: Kernel, array: Array) -> Range:
    """The least range that intervals prove for what a kernel stores in an array."""
    ranges = [
        found.value.range
        for found in statements(kernel.body)
        if isinstance(found, Store) and found.array is array
    ]
    found = ranges[0]
    for each in ranges[1:]:
        found = found.union(each)
    return found


class _Wide(Mapping[str, Format]):
    """Formats with `ROOM` more bits before the point; those of a quantised graph are what they are."""

    def __init__(self, formats: Mapping[str, Format]) -> None:
        self.formats = formats

    def __getitem__(self, name: str) -> Format:
        own = self.formats[name]
        if not isinstance(own, Fixed):
            return own
        return replace(own, width=own.width + ROOM, integer=own.integer + ROOM)

    def __iter__(self) -> Iterator[str]:
        return iter(self.formats)

    def __len__(self) -> int:
        return len(self.formats)
