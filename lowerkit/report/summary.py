"""The findings of a validation in words."""

from __future__ import annotations

import math

from lowerkit.validation.results import (
    Agreement,
    Arrows,
    ChoiceResult,
    LayerResult,
    OutputResult,
    Validation,
    layer_error,
)


def summary_lines(validation: Validation) -> list[str]:
    """One finding a line: data, each output, the worst layer, the choice that cost most, warnings."""
    made_up = "synthetic " if validation.synthetic else ""
    lines = [f"{_count(validation.samples, made_up + 'sample')}; errors are relative to the largest |value|"]
    lines += [_output(output) for output in validation.outputs]
    if validation.inexact == 0:
        lines.append("the artifact equals its exact model bit for bit in every sample")
    worst = validation.worst_layer
    if worst is not None and layer_error(worst).relative > 0:
        lines.append(f"worst layer: {_layer(worst)}")
    choice = validation.costliest_choice
    if choice is not None and choice.local is not None and choice.local.relative > 0:
        lines.append(f"choice that cost most: {_choice(choice)}")
    return lines + _warnings(validation)


def number(value: float | None) -> str:
    """An error or a similarity for people: three digits, `-` for what was not measured."""
    if value is None:
        return "-"
    if math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    return "0" if value == 0 else f"{value:.3g}"


def amount(value: str | int | float) -> str:
    """A count or a measurement of a cost table for people."""
    return value if isinstance(value, str) else f"{value:,}"


def percent(rate: float | None) -> str:
    """A rate for people; 100 % is shown for exactly all alone."""
    if rate is None:
        return "-"
    if math.isnan(rate):
        return "undefined"
    shown = f"{100 * rate:.2f}"
    if shown == "100.00" and rate < 1:
        shown = "99.99"
    return f"{shown.rstrip('0').rstrip('.') if '.' in shown else shown} %"


def _output(output: OutputResult) -> str:
    findings = []
    if output.agreement is not None:
        findings.append(_agreement(output.agreement))
    similar = output.similarity
    if similar is not None and (output.agreement is None or output.agreement.accuracy_original is None):
        findings.append(f"cosine {similar.cosine_mean:.6f} on average, {similar.cosine_min:.6f} at worst")
        if similar.rank_correlation is not None:
            findings.append(f"rank correlation of similarities {similar.rank_correlation:.6f}")
    findings.append(f"error {_arrows(output.error)}")
    return f"output {output.name}: {'; '.join(findings)}"


def _arrows(error: Arrows) -> str:
    if error.total is None or error.arithmetic is None:
        return f"{number(error.method.relative)} by method"
    parts = f"method {number(error.method.relative)}, arithmetic {number(error.arithmetic.relative)}"
    return f"{number(error.total.relative)} ({parts})"


def _agreement(agreement: Agreement) -> str:
    text = f"top-1 agreement {percent(agreement.artifact)} of {_count(agreement.rows, 'row')}"
    if agreement.accuracy_original is None:
        return text
    return f"accuracy {percent(agreement.accuracy_original)} → {percent(agreement.accuracy_artifact)}; {text}"


def _warnings(validation: Validation) -> list[str]:
    lines = [] if not validation.inexact else [_inexact(validation)]
    lines += [
        f"warning: output {output.name}: {_count(output.nonfinite, 'value')} not finite"
        for output in validation.outputs
        if output.nonfinite
    ]
    outside = [choice for choice in validation.choices if choice.outside is not None]
    for method in dict.fromkeys(choice.method for choice in outside):
        nodes = [choice for choice in outside if choice.method == method]
        more = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
        reason = f"the data leaves the domain of '{method}': {nodes[0].outside}"
        lines.append(f"warning: {nodes[0].node}{more}: {reason}")
    return lines


def _inexact(validation: Validation) -> str:
    return (
        f"warning: the artifact differs from its exact model in {_count(validation.inexact or 0, 'sample')}"
    )


def _layer(layer: LayerResult) -> str:
    return f"{layer.value} ({layer.op}): {_arrows(layer.error)}"


def _choice(choice: ChoiceResult) -> str:
    local = choice.local.relative if choice.local is not None else None
    return f"{choice.node} ({choice.op} by '{choice.method}'): {number(local)} on its own"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
