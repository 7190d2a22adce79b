"""report.json for machines and report.html, one self-contained file, for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lowerkit.plan import Plan
from lowerkit.report.plots import layer_plot, scatter_plot
from lowerkit.report.summary import amount, number, percent, summary_lines
from lowerkit.targets.base import CostTable
from lowerkit.validation.results import Validation

#: Float outputs that get a scatter plot, in graph order.
MAX_SCATTERS = 6
#: Keys of `info` that are shown as the environment, in this order.
_SHOWN = ("source", "target", "options", "inputs", "outputs", "versions")


def write_report(
    validation: Validation,
    plan: Plan,
    info: Mapping[str, Any],
    directory: Path,
    costs: Sequence[CostTable] = (),
) -> None:
    """Write `report.json` and `report.html` into `directory`. Equal arguments give equal bytes.

    Args:
        costs: what the artifact takes of its hardware.
        info: what the model and the tools were, like an artifact's manifest: of `source`, `target`,
            `options`, `inputs`, `outputs` and `versions`, those that are there are reported.

    report.json holds `Validation.to_dict()` under its keys, `summary` (lines of text), `plan` (TOML) and
    `environment`. It is strict JSON; NaN and infinities are the strings "NaN", "Infinity", "-Infinity".
    """
    environment = {key: info[key] for key in _SHOWN if key in info}
    document = {
        **validation.to_dict(),
        "summary": summary_lines(validation),
        "plan": plan.to_toml(),
        "environment": environment,
        **({"costs": [asdict(table) for table in costs]} if costs else {}),
    }
    text = json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False)
    (directory / "report.json").write_text(text + "\n", encoding="utf-8")
    (directory / "report.html").write_text(render(validation, plan, environment, costs), encoding="utf-8")


def render(
    validation: Validation, plan: Plan, environment: Mapping[str, Any], costs: Sequence[CostTable] = ()
) -> str:
    """The HTML report: no scripts, no references to anything outside the file."""
    jinja = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters.update(amount=amount, number=number, percent=percent, compact=_compact)
    plotted = [output for output in validation.outputs if output.points and "float" in output.dtype]
    return jinja.get_template("template.html").render(
        v=validation,
        plan=plan,
        summary=summary_lines(validation),
        environment=environment,
        costs=costs,
        layer_plot=layer_plot(validation.layers) if validation.layers else None,
        scatters=[(output, scatter_plot(output)) for output in plotted[:MAX_SCATTERS]],
        kept=[choice for choice in validation.choices if choice.contract is None],
        replaced=[choice for choice in validation.choices if choice.contract is not None],
        worst=validation.worst_layer,
        costliest=validation.costliest_choice,
    )


def _compact(value: Any) -> str:
    """An option value or a piece of the environment as one line; of a long list its beginning."""
    if isinstance(value, (list, tuple)) and len(value) > 8:
        return f"{', '.join(_compact(part) for part in value[:3])}, ... ({len(value)} in all)"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
