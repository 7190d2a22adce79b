"""The report: the same bytes for the same findings, self-contained, every number in it, in plain words."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lowerkit.numerics.metrics import Error
from lowerkit.plan import Choice, Plan
from lowerkit.report.plots import layer_plot, scatter_plot
from lowerkit.report.summary import number, percent, summary_lines
from lowerkit.report.write import write_report
from lowerkit.validation.results import (
    Agreement,
    Arrows,
    ChoiceResult,
    LayerResult,
    OutputResult,
    Similarity,
    Validation,
)

HOSTILE = "a<b>&\"$x$_{'1'}"
VOID = {"meta", "br", "link", "img", "input", "hr"}


def error(relative: float) -> Error:
    return Error(
        count=20,
        mismatches=int(math.isinf(relative)),
        max_abs=2 * relative,
        mean_abs=relative / 10,
        relative=relative,
        mean_relative=relative / 5,
        max_ratio=3 * relative,
        sqnr_db=math.inf if relative == 0 else -math.inf if math.isinf(relative) else 40.0,
        cosine=math.nan if math.isinf(relative) else 1 - relative / 100,
    )


def arrows(method: float, arithmetic: float | None = 1e-6) -> Arrows:
    if arithmetic is None:
        return Arrows(error(method))
    return Arrows(error(method), error(arithmetic), error(method + arithmetic))


@pytest.fixture
def validation() -> Validation:
    points = ((0.0, 0.1), (1.0, 1.0), (2.0, math.nan))
    agreement = Agreement(400, 1.0, 0.995, 0.978, 0.978, 0.9755)
    return Validation(
        samples=400,
        layer_samples=32,
        synthetic=False,
        outputs=(
            OutputResult("logits", "float32", (1, 10), arrows(0.25), 0, agreement, None, points),
            OutputResult(
                HOSTILE, "float32", (1, 4), arrows(0.0, 0.0), 3, None, Similarity(0.9, 0.95, 0.875, 9), points
            ),
            OutputResult("count", "int64", (), arrows(math.inf, 0.0), 0, None, None, ()),
        ),
        layers=(
            LayerResult("first", "n1", "MatMul", None, arrows(0.0)),
            LayerResult(HOSTILE, HOSTILE, "lowerkit::TableGelu", "table", arrows(0.125)),
            LayerResult("broken", "n3", "Conv", None, arrows(0.01, math.inf)),
        ),
        layers_left_out=7,
        choices=(
            ChoiceResult("n0", "Softmax", "keep", {}),
            ChoiceResult(
                HOSTILE,
                "Gelu",
                "table",
                {"entries": 256},
                contract="approximate",
                bound=0.001,
                bound_kind="absolute",
                bound_domain="|x| <= 8",
                evidence="exhaustive",
                local=error(0.0625),
                outside="reaches 9.5",
                low=-3.0,
                high=9.5,
            ),
        ),
    )


PLAN = Plan("cpu", (Choice("n0", "Softmax", "keep"), Choice(HOSTILE, "Gelu", "table", {"entries": 256})))
INFO = {"target": "cpu", "source": "model.onnx", "versions": {"numpy": "2.0"}, "sha256": "not shown"}


def written(validation: Validation, directory: Path) -> tuple[str, str]:
    directory.mkdir(exist_ok=True)
    write_report(validation, PLAN, INFO, directory)
    return tuple((directory / name).read_text(encoding="utf-8") for name in ("report.json", "report.html"))


def test_same_findings_same_bytes(validation: Validation, tmp_path: Path) -> None:
    assert written(validation, tmp_path / "a") == written(validation, tmp_path / "b")


def test_json_is_strict_and_complete(validation: Validation, tmp_path: Path) -> None:
    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is not JSON")

    text, _ = written(validation, tmp_path)
    document = json.loads(text, parse_constant=refuse)
    assert document["schema"] == 1
    assert set(document) == {
        "schema",
        *(field.name for field in dataclasses.fields(Validation)),
        "summary",
        "plan",
        "environment",
    }
    assert document["outputs"][0]["error"]["total"]["relative"] == 0.25 + 1e-6
    assert document["outputs"][0]["agreement"]["accuracy_artifact"] == 0.9755
    assert document["outputs"][1]["error"]["method"]["sqnr_db"] == "Infinity"
    assert float(document["outputs"][2]["error"]["method"]["cosine"]) != 1.0
    assert document["outputs"][2]["error"]["method"]["cosine"] == "NaN"
    assert document["layers"][1]["value"] == HOSTILE
    assert document["choices"][1]["options"] == {"entries": 256}
    assert Plan.from_toml(document["plan"]) == PLAN
    assert document["environment"] == {"source": "model.onnx", "target": "cpu", "versions": {"numpy": "2.0"}}


class Checker(HTMLParser):
    """Collects tags and their attributes, and checks that they nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_self_contained_and_accessible(validation: Validation, tmp_path: Path) -> None:
    _, page = written(validation, tmp_path)
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    names = [tag for tag, _ in checker.tags]
    assert not {"script", "img", "link", "iframe"} & set(names)
    references = [
        value
        for _, attributes in checker.tags
        for key, value in attributes.items()
        if key.endswith(("href", "src")) and not (value or "").startswith("#")
    ]
    assert references == []
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert names.count("caption") == names.count("table") == 6
    assert all("scope" in attributes for tag, attributes in checker.tags if tag == "th")
    assert names.count("desc") == names.count("svg") == 3
    identifiers = [attributes["id"] for _, attributes in checker.tags if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]*)', page))
    assert used <= set(identifiers)


def test_html_escapes_names(validation: Validation, tmp_path: Path) -> None:
    _, page = written(validation, tmp_path)
    assert "<b>" not in page
    assert "a&lt;b&gt;&amp;" in page


def test_html_tells_every_number_that_matters(validation: Validation, tmp_path: Path) -> None:
    _, page = written(validation, tmp_path)
    for expected in (
        "97.8 %",
        "97.55 %",
        "99.5 %",
        "0.875000",
        "7 more layers",
        "0.0625",
        "0.125",
        "reaches 9.5",
        "0.125",
    ):
        assert expected in page
    assert "entries = 256" in page
    assert "1 kept" in page


def test_summary(validation: Validation) -> None:
    lines = summary_lines(validation)
    assert lines[0] == "400 samples; errors are relative to the largest |value|"
    assert lines[1] == (
        "output logits: accuracy 97.8 % → 97.55 %; top-1 agreement 99.5 % of 400 rows; "
        "error 0.25 (method 0.25, arithmetic 1e-06)"
    )
    assert lines[2].startswith(f"output {HOSTILE}: cosine 0.950000 on average, 0.900000 at worst; rank")
    assert lines[4] == "worst layer: broken (Conv): infinite (method 0.01, arithmetic infinite)"
    assert lines[5] == f"choice that cost most: {HOSTILE} (Gelu by 'table'): 0.0625 on its own"
    assert lines[6] == f"warning: output {HOSTILE}: 3 values not finite"
    assert lines[7] == f"warning: {HOSTILE}: the data leaves the domain of 'table': reaches 9.5"
    assert validation.summary() == "\n".join(lines)


def test_synthetic_data_is_called_so(validation: Validation, tmp_path: Path) -> None:
    made_up = dataclasses.replace(validation, synthetic=True)
    assert "400 synthetic samples" in summary_lines(made_up)[0]
    assert "made up" in written(made_up, tmp_path)[1]


def test_without_probe_layers_choices_or_labels(validation: Validation, tmp_path: Path) -> None:
    bare = dataclasses.replace(
        validation,
        outputs=(OutputResult("y", "float32", (1,), arrows(0.5, None), 0, None, None),),
        layers=(LayerResult("v", "n", "MatMul", None, arrows(0.5, None)),),
        choices=(),
    )
    _, page = written(bare, tmp_path)
    assert "no node that a method could replace" in page
    assert "worst layer: v (MatMul): 0.5 by method" in page
    empty = dataclasses.replace(bare, layers=(), layers_left_out=0)
    assert "Layers were not measured" in written(empty, tmp_path)[1]
    assert empty.worst_layer is None


def test_plots_are_xml_without_fixed_ink(validation: Validation) -> None:
    for plot in (layer_plot(validation.layers), scatter_plot(validation.outputs[1])):
        tree = ElementTree.fromstring(plot)
        assert tree.tag.endswith("svg")
        assert tree[0].text
        assert "#010203" not in plot
        assert "#000000" not in plot
        assert "$" not in "".join(tree.itertext()).replace(HOSTILE, "")


def test_layer_plot_shows_every_layer_and_the_worst(validation: Validation) -> None:
    text = " ".join(ElementTree.fromstring(layer_plot(validation.layers)).itertext())
    for layer in validation.layers:
        assert layer.value in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0.0, "0"), (0.00012345, "0.000123"), (math.inf, "infinite"), (math.nan, "undefined")],
)
def test_number(value: float | None, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("rate", "shown"),
    [
        (1.0, "100 %"),
        (0.999999, "99.99 %"),
        (0.975, "97.5 %"),
        (0.0, "0 %"),
        (None, "-"),
        (math.nan, "undefined"),
    ],
)
def test_percent(rate: float | None, shown: str) -> None:
    assert percent(rate) == shown
