"""Convolution of images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lowerkit.targets.fpga.formats import Format
from lowerkit.targets.fpga.kernels.contract import Axis, Index, constant_sums, contract
from lowerkit.targets.fpga.kernels.linear import Scaling
from lowerkit.targets.fpga.kernels.schedule import Built, built, split
from lowerkit.targets.fpga.kernels.weights import Weights
from lowerkit.targets.fpga.kernels.window import Window, read
from lowerkit.targets.fpga.lang.expr import Expr, Operand, Var
from lowerkit.targets.fpga.lang.program import Builder


def conv2d(
    name: str,
    image: tuple[int, int],
    weights: np.ndarray,
    x: Format,
    weight: Format | Sequence[Format],
    y: Format,
    *,
    stride: tuple[int, int] = (1, 1),
    pads: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0)),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    bias: np.ndarray | None = None,
    offset: np.ndarray | None = None,
    rounding: str = "half-even",
    reuse: int = 1,
) -> Built:
    """Codes x [channels, height, width] to y [out channels, out height, out width]; the border is 0.

    Args:
        image: height and width.
        weights: codes [out channels, channels / groups, kernel height, kernel width].
        weight: their format, or one for each output channel.
        pads: ((top, bottom), (left, right)).
        groups: as many as channels is a depthwise convolution.
        bias: whole numbers [out channels] of x.fraction + weight.fraction bits.
        offset: as for `linear`.
        reuse: how often each multiplier is used for a pixel; there are weights.size / reuse of them.
    """
    outputs, shared, high, wide = weights.shape
    if outputs % groups:
        raise ValueError(f"{name}: {outputs} output channels in {groups} groups")
    window = Window((high, wide), stride, pads, dilation)
    out, each = window.out(image), outputs // groups
    k = Builder(
        name,
        f"Convolution of {high} x {wide}, {shared * groups} to {outputs} channels in {groups} groups, {x} to {y}",
    )
    source = k.input("x", (shared * groups, *image), x.range)
    target = k.output("y", (outputs, *out), y.range)
    scaling = Scaling(k, outputs, x, weight, weights, y, bias, offset, rounding)
    w = Weights(k, weights, signs=scaling.exact is not None)
    steps = split(reuse, (groups, each, shared, high, wide))

    def channel(column: Index) -> Operand:
        return _joined(column[0], each, column[1])

    def term(position: Index, element: Index, column: Index) -> Expr:
        lead = _joined(column[0], shared, element[0])
        rows, columns = (window.at(axis, position[axis], element[axis + 1]) for axis in (0, 1))
        return w.times(read(source, (lead,), rows, columns, x.zero), (channel(column), *element))

    def finish(position: Index, column: Index, total: Var) -> None:
        k.store(target, (channel(column), *position), scaling.finish(channel(column), total))

    contract(
        k,
        [Axis("row", out[0]), Axis("col", out[1])],
        [Axis(f"in_{a}", n, s) for a, n, s in zip("cij", weights.shape[1:], steps[2:], strict=True)],
        [Axis("group", groups, steps[0]), Axis("c", each, steps[1])],
        sums=constant_sums(weights.reshape(outputs, -1).T, x.range, bias),
        initial=lambda column: scaling.initial(channel(column)),
        term=term,
        finish=finish,
    )
    return built(k.finish(), out[0] * out[1])


def _joined(group: Operand, size: int, within: Operand) -> Operand:
    """The index of an element of a group."""
    if isinstance(group, int) and group == 0:
        return within
    start = group * size if size > 1 else group
    return start if isinstance(within, int) and within == 0 else start + within
