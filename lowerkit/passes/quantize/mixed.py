"""Mixed precision: every linear layer as narrow as the outputs bear, found by measuring."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from lowerkit.calibrate import Calibration
from lowerkit.errors import PlanError
from lowerkit.passes import registry
from lowerkit.passes.lower import apply_plan
from lowerkit.passes.quantize.base import FAMILY, LinearMethod
from lowerkit.passes.registry import KEEP
from lowerkit.plan import Choice, Plan, options_of
from lowerkit.reference import Reference

#: What `--linear` takes beside the methods; it ends as a choice of methods.
NAME = "mixed"
Outputs = list[dict[str, np.ndarray]]


@dataclass(frozen=True)
class Mixed:
    """Linear layers by method `narrow`, but for the most sensitive ones: those by `wide`, or kept.

    The error of a choice is |y' - y| / |y| (Euclidean, over all samples) of the worst output y, where the linear
    layers alone are changed. If all of them by `narrow` stay within `budget`, that is the result. Otherwise the error
    of each layer alone is measured, and layers are widened in the order of these errors, the largest first: all to
    `wide`, and should that not be enough, all to `keep`. The fewest steps within the budget are found by bisection,
    which supposes that a step does not make the error larger; the result is within the budget in any case, as it was
    measured itself. 1 + n + log2(2 n) runs over the samples for n layers.

    After Dong et al., HAWQ (ICCV 2019), in that layers are ordered by sensitivity; it is measured here instead of
    estimated by the Hessian.

    Attributes:
        budget: 0.05 is a ratio of signal to noise of 26 dB, or a cosine of 0.9987.
        samples: how many calibration samples are run.
    """

    narrow: str = "int8"
    wide: str = "bf16"
    budget: float = 0.05
    samples: int = 4

    def __post_init__(self) -> None:
        for name in (self.narrow, self.wide):
            if name != KEEP:
                registry.method_class(FAMILY, name)
        if not isinstance(self.budget, (int, float)) or not 0 < self.budget < 1:
            raise ValueError(f"budget must be a number between 0 and 1, not {self.budget!r}")
        if not isinstance(self.samples, int) or isinstance(self.samples, bool) or self.samples < 1:
            raise ValueError(f"samples must be a positive integer, not {self.samples!r}")

    @classmethod
    def asked(cls, methods: Mapping[str, str] | None) -> Mixed | None:
        """What `methods` asks for, where that is mixed precision. Raises PlanError."""
        name, options = registry.parse_choice((methods or {}).get(FAMILY, KEEP))
        if name != NAME:
            return None
        hint = f"its options: {', '.join(field.name for field in dataclasses.fields(cls))}"
        try:
            return cls(**options)
        except (TypeError, ValueError) as error:
            raise PlanError(f"{FAMILY} choice '{NAME}': {error}", hint=hint) from None

    def refine(
        self,
        model: ir.Model,
        plan: Plan,
        observed: Calibration,
        samples: Sequence[Mapping[str, np.ndarray]],
    ) -> Plan:
        """`plan`, in which every linear layer of `model` is `narrow`, with the sensitive ones widened.

        The reason of each is in its choice.
        """
        narrow = [choice for choice in plan.choices if choice.method == self.narrow]
        narrow = [choice for choice in narrow if registry.family_of(choice.op) == FAMILY]
        if not narrow or not samples:
            return plan
        measure = _measurement(model, plan, narrow, samples[: self.samples])
        if measure(narrow) <= self.budget:
            return plan
        kept = [_kept(choice) for choice in narrow]
        alone = [measure([*kept[:i], choice, *kept[i + 1 :]]) for i, choice in enumerate(narrow)]
        nodes = {node.name: node for node in model.graph.all_nodes()}
        steps = []
        for method in (self.wide, KEEP):
            for i in sorted(range(len(narrow)), key=lambda i: -alone[i]):
                reason = f"{self.narrow} here alone moves an output by {alone[i]:.2%}"
                steps.append((i, _wider(nodes[narrow[i].node], narrow[i], method, observed, reason)))

        def after(count: int) -> list[Choice]:
            choices = list(narrow)
            for i, choice in steps[:count]:
                choices[i] = choice
            return choices

        enough = _least(len(steps), lambda count: measure(after(count)) <= self.budget)
        chosen = {choice.node: choice for choice in after(enough)}
        return replace(plan, choices=tuple(chosen.get(choice.node, choice) for choice in plan.choices))


def _least(most: int, good: Callable[[int], bool]) -> int:
    """The least count from 1 to `most` that is good, if what is beyond a good one is; `most` is good."""
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if good(middle) else (middle, high)
    return high


def _kept(choice: Choice) -> Choice:
    return replace(choice, method=KEEP, options={})


def _wider(node: ir.Node, choice: Choice, method: str, observed: Calibration, reason: str) -> Choice:
    """The layer by `method`, or kept where that has nothing for it."""
    kept = replace(_kept(choice), reason=reason)
    if method == KEEP:
        return kept
    made = registry.fit(FAMILY, method, node, observed.get(node.inputs[0]), {})
    if made.spares(node) is not None or made.refuses(node) is not None:
        return kept
    return replace(choice, method=method, options=options_of(made), reason=reason)


def _measurement(
    model: ir.Model, plan: Plan, layers: list[Choice], samples: Sequence[Mapping[str, np.ndarray]]
) -> Callable[[list[Choice]], float]:
    """Gives the error of other choices for `layers`, against all of them kept; the rest of `plan` is in force."""
    names = {choice.node for choice in layers}
    others = [choice for choice in plan.choices if choice.node not in names]

    def outputs(choices: list[Choice]) -> Outputs:
        changed = model.clone()
        order = {choice.node: choice for choice in [*others, *choices]}
        apply_plan(changed, replace(plan, choices=tuple(order[choice.node] for choice in plan.choices)))
        return list(Reference(changed).over(samples))

    exact = outputs([_kept(choice) for choice in layers])
    return lambda choices: _error(exact, outputs(choices))


def _error(exact: Outputs, found: Outputs) -> float:
    """|y' - y| / |y| of the worst output; of one that holds no floats, the fraction of elements that differ."""
    worst = 0.0
    for name, first in exact[0].items():
        before, after = (np.stack([np.asarray(run[name]) for run in runs]) for runs in (exact, found))
        if not np.issubdtype(first.dtype, np.floating):
            worst = max(worst, float(np.mean(before != after)))
            continue
        known = np.isfinite(before)
        y, error = (np.where(known, a, 0).astype(np.float64) for a in (before, after - before))
        if not np.isfinite(error).all():
            return float("inf")
        size = float(np.linalg.norm(error))
        worst = max(worst, size / max(float(np.linalg.norm(y)), 1e-30) if size else 0.0)
    return worst


def depends_on_samples(methods: Mapping[str, str] | None) -> bool:
    """Whether what `methods` says of linear layers is settled by calibration samples. Raises PlanError."""
    name, _ = registry.parse_choice((methods or {}).get(FAMILY, KEEP))
    if name in (KEEP, NAME):
        return name == NAME
    chosen = registry.method_class(FAMILY, name)
    return issubclass(chosen, LinearMethod) and chosen.calibrated


def resolved(methods: Mapping[str, str] | None, mixed: Mixed | None) -> dict[str, str]:
    """`methods`, with the narrow method where they ask for mixed precision."""
    return {**(methods or {}), **({FAMILY: mixed.narrow} if mixed is not None else {})}
