"""The findings of a validation in words."""

from __future__ import annotations

import math

from lowerkit.validate.results import (
    Agreement,
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
    for output in validation.outputs:
        lines += _output(output)
    worst = validation.worst_layer
    if worst is not None and layer_error(worst).relative > 0:
        lines.append(f"worst layer: {_layer(worst)}")
    choice = validation.costliest_choice
    if choice is not None and choice.local is not None and choice.local.relative > 0:
        lines.append(f"choice that cost most: {_choice(choice)}")
    lines += [
        f"warning: {choice.node}: the data leaves the domain of '{choice.method}': {choice.outside}"
        for choice in validation.choices
        if choice.outside is not None
    ]
    return lines


def number(value: float | None) -> str:
    """An error or a similarity for people: three digits, `-` for what was not measured."""
    if value is None:
        return "-"
    if math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    return "0" if value == 0 else f"{value:.3g}"


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


def _output(output: OutputResult) -> list[str]:
    error = output.error
    parts = [
        f"{name} {number(one.relative)}"
        for name, one in (("method", error.method), ("arithmetic", error.arithmetic), ("total", error.total))
        if one is not None
    ]
    lines = [f"output {output.name}: error {', '.join(parts)}"]
    if output.agreement is not None:
        lines.append(f"output {output.name}: {_agreement(output.agreement)}")
    similar = output.similarity
    if similar is not None:
        text = f"cosine {similar.cosine_mean:.6f} on average, {similar.cosine_min:.6f} at worst"
        if similar.rank_correlation is not None:
            text += f"; rank correlation of pairwise similarities {similar.rank_correlation:.6f}"
        lines.append(f"output {output.name}: {text}")
    if output.nonfinite:
        lines.append(f"warning: output {output.name}: {_count(output.nonfinite, 'value')} not finite")
    return lines


def _agreement(agreement: Agreement) -> str:
    text = f"top-1 agreement {percent(agreement.artifact)} of {_count(agreement.rows, 'row')}"
    if agreement.accuracy_original is None:
        return text
    return f"accuracy {percent(agreement.accuracy_original)} → {percent(agreement.accuracy_artifact)}, {text}"


def _layer(layer: LayerResult) -> str:
    method, arithmetic = layer.error.method, layer.error.arithmetic
    text = f"{layer.value} ({layer.op}): method {number(method.relative)}"
    return text if arithmetic is None else f"{text}, arithmetic {number(arithmetic.relative)}"


def _choice(choice: ChoiceResult) -> str:
    local = choice.local.relative if choice.local is not None else None
    return f"{choice.node} ({choice.op} by '{choice.method}'): {number(local)} on its own"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
