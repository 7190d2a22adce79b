"""Activations by table, in integers, with bounds for every input code.

Inputs and outputs are codes of fixed-point formats: numbers k / 2^fraction. Results are rounded half up and saturate.
Few input bits need a table of all of them. More are reduced by the function's form (`passes.activation.forms`) to a
table of its core on [0, 2^j), whose index is the high bits of |x| and whose interpolation the bits below.

Sources: ReLU less a table of |x|: Sarkar et al., Edge-MoE (ICCAD 2023), section IV; tables with linear interpolation
and range reduction: Muller, Elementary Functions (3rd ed. 2016), sections 6.2 and 10.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from lowerkit.passes.activation.base import Activation
from lowerkit.passes.activation.forms import Mantissas, Odd, PowersOfE
from lowerkit.targets.fpga.formats import Fixed, Format
from lowerkit.targets.fpga.kernels.lookup import FLOAT64, LARGEST_INDEX
from lowerkit.targets.fpga.kernels.reductions import REDUCTIONS, Reduced, Settings
from lowerkit.targets.fpga.lang.expr import Array, Expr, Slice, clamp
from lowerkit.targets.fpga.lang.program import Builder, Kernel


@dataclass(frozen=True)
class Approximated:
    """A kernel with input `x` and output `y`, and the bound of its error.

    With f saturated to the output format, |y - f(x)| <= absolute + relative |f(x)| for every input code.

    Attributes:
        worst: the largest that this can be over all input codes.
        monotone: whether y rises or falls where f does, everywhere (on either side of 0 for 1 / x).
        memory_bits: bits of the tables.
    """

    kernel: Kernel
    absolute: float
    relative: float
    worst: float
    monotone: bool
    memory_bits: int


def exact(of: Activation, x: np.ndarray, variant: int = 0) -> np.ndarray:
    """The function in float64, with what hardware gives where it has no value: +inf for 1 / 0 and x^(-1/2), x <= 0.

    Kernels saturate that to the largest number of their output.
    """
    x = np.asarray(x, np.float64)
    defined = np.ones(x.shape, bool)
    if isinstance(of.form, Mantissas):
        defined = x > 0 if of.form.root else x != 0
    with np.errstate(over="ignore", under="ignore"):
        result: np.ndarray = np.where(defined, of.wholes[variant](np.where(defined, x, 1.0)), np.inf)
    return result


def activation(
    name: str,
    of: Activation,
    shape: Sequence[int],
    source: Fixed,
    target: Fixed,
    *,
    variant: int = 0,
    index_bits: int = 8,
    interpolate: bool = True,
) -> Approximated:
    """The function by a table of its core with 2^index_bits segments, with linear interpolation or without.

    Args:
        shape: of input and output, without a batch axis.
        variant: 1 for the tanh form of Gelu.

    The bound is the sum of: the table's (`Lookup.error`), how far the function is, beyond the core's interval, from
    what holding its end gives, what range reduction rounds (exp), and half an output step.
    """
    if not 2 <= index_bits <= LARGEST_INDEX:
        raise ValueError(f"index_bits must be from 2 to {LARGEST_INDEX}, not {index_bits}")
    settings = Settings(of, variant, source, target, index_bits, interpolate)
    found: list[Reduced] = []

    def body(k: Builder, x: Expr) -> Expr:
        found.append(REDUCTIONS[type(of.form)](k, x, settings))
        return clamp(found[0].value, target.range.low, target.range.high)

    how = f"a table of 2^{index_bits} segments {'with' if interpolate else 'without'} interpolation"
    kernel = _elementwise(name, f"{of.op} of {source} to {target} by {how}.", shape, source, target, body)
    (result,) = found
    # What errs relatively is largest at an end, or beside 0.
    ends = np.array(
        [source.low, max(source.low, -source.step), 0.0, min(source.step, source.high), source.high]
    )
    saturated = np.clip(exact(of, ends, variant), target.low, target.high)
    largest = float(np.abs(saturated).max()) if result.relative else 0.0
    absolute = result.absolute + target.step / 2
    worst = absolute + result.relative * largest
    monotone = isinstance(of.form, (Odd, PowersOfE, Mantissas))
    return Approximated(kernel, absolute, result.relative, worst, monotone, result.table.memory_bits)


def full_table(
    name: str, of: Activation, shape: Sequence[int], source: Format, target: Format, *, variant: int = 0
) -> Approximated:
    """The function by a table of every input code: exact to half an output step.

    The index is the code's bits, so that negative numbers come second. Raises ValueError for too many input bits.
    """
    if source.width > LARGEST_INDEX:
        raise ValueError(f"a table of every code of {source} has more than {1 << LARGEST_INDEX} words")
    # As QuantizeLinear rounds.
    rounding = "half-up" if isinstance(target, Fixed) else "half-even"
    code = np.arange(1 << source.width)
    x = source.dequantise(np.where(code > source.range.high, code - (1 << source.width), code))
    words = Array.constant(f"{name}_words", target.quantise(exact(of, x, variant), rounding))

    def body(k: Builder, x: Expr) -> Expr:
        return k.constant(words)[Slice(x, 0, source.width)]

    comment = f"{of.op} of {source} to {target} by a table of every input code."
    kernel = _elementwise(name, comment, shape, source, target, body)
    error = target.step / 2 + FLOAT64 * max(abs(target.low), target.high)
    monotone = isinstance(of.form, (Odd, PowersOfE, Mantissas))
    return Approximated(kernel, error, 0.0, error, monotone, words.range.bits << source.width)


def sized(
    name: str,
    of: Activation,
    shape: Sequence[int],
    source: Fixed,
    target: Fixed,
    error: float,
    *,
    variant: int = 0,
    interpolate: bool = True,
) -> Approximated:
    """The function by the least table, of 2^2 to 2^12 segments, whose worst bound is at most `error`.

    Raises ValueError when none is; half an output step is the least that any has.
    """
    least = math.inf
    for index_bits in range(2, LARGEST_INDEX + 1):
        made = activation(
            name, of, shape, source, target, variant=variant, index_bits=index_bits, interpolate=interpolate
        )
        if made.worst <= error:
            return made
        least = min(least, made.worst)
    raise ValueError(
        f"an error of {error:g} is out of reach: the least bound of any table is {least:.2g}, "
        f"and half a step of {target} is {target.step / 2:.2g}"
    )


def _elementwise(
    name: str,
    comment: str,
    shape: Sequence[int],
    source: Format,
    target: Format,
    body: Callable[[Builder, Expr], Expr],
) -> Kernel:
    k = Builder(name, comment)
    x, y = k.input("x", shape, source.range), k.output("y", shape, target.range)
    with ExitStack() as loops:
        last = len(shape) - 1
        indices = tuple(
            loops.enter_context(k.loop(f"i{axis}", size, pipeline=axis == last))
            for axis, size in enumerate(shape)
        )
        k.store(y, indices, body(k, k.let("code", x[indices])))
    return k.finish()
