"""A design: kernels joined by values, and its run in integers, the oracle of everything that is emitted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowerkit.errors import DataError
from lowerkit.targets.fpga import runner
from lowerkit.targets.fpga.formats import Fixed, Format
from lowerkit.targets.fpga.kernels.schedule import Schedule
from lowerkit.targets.fpga.lang.interpret import run
from lowerkit.targets.fpga.lang.program import Kernel

#: Samples that the oracle computes at once, which bounds its memory.
BATCH = 64


@dataclass(frozen=True)
class Port:
    """A value of the graph as codes: `shape` without the batch, in row-major order wherever it is stored."""

    value: str
    shape: tuple[int, ...]
    format: Format

    @property
    def fixed(self) -> Fixed:
        """The format, for kernels of fixed point alone. Raises ValueError for any other."""
        if not isinstance(self.format, Fixed):
            raise ValueError(f"there is no kernel of this kind for '{self.value}', {self.format}")
        return self.format

    @property
    def size(self) -> int:
        """The number of codes."""
        return math.prod(self.shape)

    def described(self) -> dict[str, Any]:
        """What a runner has to know: a code k stands for step (k - zero), and `codes` are the least and greatest."""
        form = self.format
        return {
            "name": self.value,
            "shape": list(self.shape),
            "format": str(form),
            "step": float(form.scale),
            "zero": form.zero,
            "codes": [form.range.low, form.range.high],
        }


@dataclass(frozen=True)
class Layer:
    """One kernel of a design.

    Attributes:
        name: a C identifier, unique in the design.
        node, op: of the graph, for reports; several nodes may have become one layer.
        reads, writes: the values that the kernel's inputs and outputs are, in order.
        schedule: what it costs.
        job: where several layers share a kernel, the number that is its last input. Such a kernel's arrays are those
            of its largest layer, and others use the beginning.
    """

    name: str
    node: str
    op: str
    kernel: Kernel
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    schedule: Schedule
    job: int | None = None


@dataclass(frozen=True)
class Design:
    """Layers in an order in which they can run.

    Attributes:
        values: every value that a layer reads or writes. Values that are only views of others' codes (reshapes)
            are in `views`, which maps them to the value stored.
    """

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    values: Mapping[str, Port]
    views: Mapping[str, str]
    layers: tuple[Layer, ...]

    def kernels(self) -> list[Layer]:
        """A layer for each kernel, the first one where several share it."""
        return list({layer.kernel.name: layer for layer in reversed(self.layers)}.values())[::-1]

    def described(self) -> dict[str, Any]:
        """What a runner has to know of inputs and outputs."""
        ports = {"inputs": self.inputs, "outputs": self.outputs}
        return {kind: [p.described() for p in found] for kind, found in ports.items()}

    def random_codes(self, samples: int, seed: int = 0) -> dict[str, np.ndarray]:
        """Codes [samples, *shape] of the inputs, over the whole of their formats."""
        rng = np.random.default_rng(seed)
        ranges = {p: p.format.range for p in self.inputs}
        return {
            p.value: rng.integers(r.low, r.high, (samples, *p.shape), endpoint=True)
            for p, r in ranges.items()
        }

    def stored(self, value: str) -> str:
        """The value whose codes a value's are."""
        while value in self.views:
            value = self.views[value]
        return value


def codes_of(design: Design, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The design's inputs as codes, int64 [batch, ...], rounded half to even and saturated."""
    try:
        return {p.value: runner.encoded(p.described(), np.asarray(inputs[p.value])) for p in design.inputs}
    except runner.RunError as error:
        raise DataError(str(error)) from None


def simulate(
    design: Design, codes: Mapping[str, np.ndarray], wanted: Iterable[str] | None = None
) -> dict[str, np.ndarray]:
    """Run the design on codes [batch, ...]; the codes of `wanted` values, the outputs where it is not given.

    Raises OutOfRange for a kernel whose claims about its numbers do not hold.
    """
    names = list(wanted) if wanted is not None else [port.value for port in design.outputs]
    count = len(next(iter(codes.values())))
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for start in range(0, count, BATCH):
        values = {name: array[start : start + BATCH] for name, array in codes.items()}
        for layer in design.layers:
            found = run(layer.kernel, _given(layer, [values[design.stored(value)] for value in layer.reads]))
            for array, value in zip(layer.kernel.outputs, layer.writes, strict=True):
                port = design.values[value]
                # All of it, but for a kernel that layers of different sizes share.
                values[value] = found[array.name].reshape(len(found[array.name]), -1)[:, : port.size]
        for name in names:
            shape = design.values[name].shape
            parts[name].append(values[design.stored(name)].reshape(-1, *shape))
    return {name: np.concatenate(found) for name, found in parts.items()}


def _given(layer: Layer, arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
    """A kernel's inputs, [batch, ...]."""
    inputs, batch = layer.kernel.inputs, len(arrays[0])
    if layer.job is None:
        return {a.name: codes.reshape(-1, *a.shape) for a, codes in zip(inputs, arrays, strict=True)}
    found = {inputs[-1].name: np.full((batch, 1), layer.job, np.int64)}
    for array, codes in zip(inputs[:-1], arrays, strict=True):
        found[array.name] = np.zeros((batch, *array.shape), np.int64)
        found[array.name][:, : codes[0].size] = codes.reshape(batch, -1)
    return found


def numbers_of(design: Design, codes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What codes stand for, float32, in the graph's shapes."""
    return {name: runner.decoded(design.values[name].described(), k) for name, k in codes.items()}
