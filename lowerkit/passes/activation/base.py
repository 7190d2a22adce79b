"""What activation methods share: the functions they stand for, and methods that approximate a function's core."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import onnx_ir as ir

from lowerkit.numerics import functions as f
from lowerkit.numerics.functions import ScalarFunction
from lowerkit.passes.activation.bodies import Body, lines
from lowerkit.passes.activation.forms import Form, LinearTail, Mantissas, Odd, PowersOfE, ReluLessBump
from lowerkit.passes.base import Bound, Contract, Evidence, Method


@dataclass(frozen=True)
class Activation:
    """One function of one variable that methods stand in for.

    Attributes:
        family: its family on the command line; `op`: its canonical operator.
        form: how it is had from its core.
        cores, wholes: the core and the function itself; Gelu has two of each, the erf and the tanh form.
        limit: where a table of the core ends; polynomials do better on a shorter interval, up to `near`.
        slope, offset, parity: f(x) - slope x - offset is even (0), odd (1) or neither (None).
        low, high: the interval of a polynomial without a form, before calibration.
    """

    family: str
    op: str
    form: Form
    cores: tuple[ScalarFunction, ...]
    wholes: tuple[ScalarFunction, ...]
    limit: float = 1.0
    near: float = 1.0
    slope: float = 0.0
    offset: float = 0.0
    parity: int | None = None
    low: float = -8.0
    high: float = 8.0


_BUMP, _ODD, _ROOT = ReluLessBump(), Odd(), Mantissas(root=True)

ACTIVATIONS: tuple[Activation, ...] = (
    Activation(
        "gelu",
        "Gelu",
        _BUMP,
        (f.GELU_BUMP, f.TANH_GELU_BUMP),
        (f.GELU, f.TANH_GELU),
        limit=6.0,
        near=5.0,
        slope=0.5,
        parity=0,
    ),
    Activation("silu", "Silu", _BUMP, (f.SILU_BUMP,), (f.SILU,), limit=16.0, near=12.0, slope=0.5, parity=0),
    Activation("mish", "Mish", LinearTail(), (f.MISH,), (f.MISH,), limit=16.0, near=10.0),
    Activation(
        "sigmoid",
        "Sigmoid",
        Odd(0.5, 0.5),
        (f.HALF_SIGMOID,),
        (f.SIGMOID,),
        limit=16.0,
        near=10.0,
        offset=0.5,
        parity=1,
    ),
    Activation("tanh", "Tanh", _ODD, (f.TANH,), (f.TANH,), limit=8.0, near=5.0, parity=1),
    Activation(
        "softplus",
        "Softplus",
        _BUMP,
        (f.SOFTPLUS_BUMP,),
        (f.SOFTPLUS,),
        limit=16.0,
        near=10.0,
        slope=0.5,
        parity=0,
    ),
    Activation("erf", "Erf", _ODD, (f.ERF,), (f.ERF,), limit=4.0, near=3.5, parity=1, low=-4.0, high=4.0),
    Activation("exp", "Exp", PowersOfE(), (f.EXP,), (f.EXP,), low=-8.0, high=4.0),
    Activation("reciprocal", "Reciprocal", Mantissas(), (f.RECIPROCAL,), (f.RECIPROCAL,), low=0.25, high=8.0),
    Activation("rsqrt", "Rsqrt", _ROOT, (f.RSQRT,), (f.RSQRT,), low=0.25, high=8.0),
)
#: ReLU, which is its own form: what stands in for it is a polynomial, where hardware knows no comparison.
RELU = Activation("relu", "Relu", _BUMP, (), (f.RELU,), slope=0.5, parity=0)


class Fitted(Protocol):
    """An approximation of a core: float64 array to float64 array, with a certified bound."""

    @property
    def error(self) -> float: ...

    def __call__(self, x: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class ActivationMethod(Method):
    """A method for the function `of`."""

    of: ClassVar[Activation]

    @classmethod
    @abstractmethod
    def body_for(cls, activation: Activation) -> Body:
        """The function body for one of the functions."""

    @property
    def everywhere(self) -> str:
        """The domain of methods whose form covers every number."""
        if self.of.form.limited:
            return "all finite x"
        return "x whose result is a normal float32"

    def variant(self, node: ir.Node) -> int:
        """Which of the function's forms a node is: 1 for the tanh form of Gelu, else 0."""
        tanh = self.of.op == "Gelu" and node.attributes.get_string("approximate", "none") == "tanh"
        return int(tanh)

    def attributes(self, node: ir.Node) -> dict[str, int | float]:
        """None of the node's own: its form is in the table or the coefficients."""
        return {}


@dataclass(frozen=True)
class CoreMethod(ActivationMethod):
    """A method that puts an approximation of the function's core into its form (see the form).

    Beyond the core's interval the approximation holds its end, or the form has another interval for every x.
    Where `max_error` is not 0, it is the bound that is asked for: the size is the least that reaches it.
    """

    max_error: float = 0.0

    contract: ClassVar[Contract] = Contract.APPROXIMATE

    @abstractmethod
    def fitted(self, variant: int) -> Fitted:
        """The approximation of the core of one of the function's forms."""

    @property
    def reach(self) -> float:
        """The option `limit`, where the function has one."""
        return float(getattr(self, "limit", 1.0))

    def check(self, size: str, sizes: Sequence[int]) -> None:
        """Check the options, and choose the size where `max_error` asks for it.

        Args:
            size: the option that trades cost for error, and `sizes`: what it may be, ascending.

        Raises:
            ValueError: for an option that cannot be, or when no size reaches `max_error`.
        """
        limit = getattr(self, "limit", 1.0)
        if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 1 <= limit <= 64:
            raise ValueError(f"limit must be a number from 1 to 64, not {limit!r}")
        wanted = self.max_error
        if isinstance(wanted, bool) or not isinstance(wanted, (int, float)) or not 0 <= wanted < 1:
            raise ValueError(f"max_error must be a number from 0 to 1, not {wanted!r}")
        integer_option(self, size, sizes[0], sizes[-1])
        if wanted == 0:
            return
        least = np.inf
        for value in sizes:
            error = dataclasses.replace(self, max_error=0.0, **{size: value}).bound().value
            if error <= wanted:
                object.__setattr__(self, size, value)  # so that plans say what was chosen
                return
            least = min(least, error)
        raise ValueError(
            f"max_error {wanted:g} is out of reach: the least bound of any {size} is {least:.2g}"
        )

    def bound(self) -> Bound:
        """The larger of what the core is off by and what its end is, beyond the interval; for all variants."""
        worst = 0.0
        for variant, core in enumerate(self.of.cores):
            error = self.fitted(variant).error
            worst = max(worst, error + self.of.form.beyond(core, self.reach))
        kind = "relative" if self.of.form.relative else "absolute"
        return Bound(worst, kind, self.everywhere, Evidence.PROVED)

    def attributes(self, node: ir.Node) -> dict[str, int | float]:
        """`limit`, where the function has one."""
        return {"limit": self.reach} if self.of.form.limited else {}

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`; `tanh=True` for Gelu's tanh form."""
        fitted = self.fitted(int(bool(attributes.get("tanh"))))
        return self.of.form.evaluate(fitted, np.asarray(x, np.float64), self.reach)


_M = TypeVar("_M", bound=ActivationMethod)


def for_each(
    base: type[_M], activations: Iterable[Activation] = ACTIVATIONS, *, near: bool = False
) -> dict[str, type[_M]]:
    """`base` for each of the functions, by family: a class with the function's bodies and defaults.

    Where the function has a form with a limit, the option `limit` is added; `near` says which of both defaults.
    """
    made: dict[str, type[_M]] = {}
    for activation in activations:
        names: dict[str, Any] = {
            "__module__": base.__module__,
            "__doc__": base.__doc__,
            "__annotations__": {},
        }
        names |= {"of": activation, "family": activation.family, "name": base.name}
        if issubclass(base, CoreMethod) and activation.form.limited:
            names["limit"] = activation.near if near else activation.limit
            names["__annotations__"]["limit"] = float
        names["functions"] = {activation.op: base.body_for(activation)}
        cls = type(f"{base.__name__}{activation.op}", (base,), names)
        made[activation.family] = dataclass(frozen=True)(cls)
    return made


def body(kind: str, activation: Activation, parameters: tuple[str, ...], core: str) -> Body:
    """The operator `kind`Op: the function's form around a core's text."""
    attributes = f"limit: float = {activation.limit!r}" if activation.form.limited else ""
    text = lines(activation.form.before, core, activation.form.after)
    return Body(f"{kind}{activation.op}", ("X", *parameters), attributes, text)


def integer_option(method: ActivationMethod, name: str, least: int, most: int) -> None:
    """Raises ValueError unless the option is an integer from `least` to `most`."""
    value = getattr(method, name)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name} must be an integer from {least} to {most}, not {value!r}")


def on_unit(core: ScalarFunction, low: float, high: float, start: float) -> ScalarFunction:
    """The core on [low, high] as a function on [start, 1]; `start` is -1 or 0."""
    width = (high - low) / (1 - start)
    return ScalarFunction(
        core.name,
        lambda t: core.value(low + width * (t - start)),
        lambda a, b: width**2 * core.curvature(low + width * (a - start), low + width * (b - start)),
    )
