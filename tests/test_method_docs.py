"""docs/methods.md says what the methods say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from lowerkit.passes.base import Contract
from lowerkit.passes.registry import methods

DOCS = Path(__file__).parents[1] / "docs"
_spec = importlib.util.spec_from_file_location("generate_methods", DOCS / "generate_methods.py")
assert _spec is not None
assert _spec.loader is not None
generator = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generator)


def test_page_is_what_the_methods_say() -> None:
    assert generator.main(["--check"]) == 0, "run python docs/generate_methods.py"


@pytest.mark.parametrize("old", ["", "# Methods\n"])
def test_check_notices_a_stale_page_and_leaves_it(
    tmp_path: Path, old: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "methods.md"
    page.write_text(old)
    assert generator.main(["--check", "--page", str(page)]) == 1
    assert "is stale" in capsys.readouterr().err
    assert page.read_text() == old
    assert generator.main(["--page", str(page)]) == 0
    assert generator.main(["--check", "--page", str(page)]) == 0


def test_check_notices_a_missing_page(tmp_path: Path) -> None:
    assert generator.main(["--check", "--page", str(tmp_path / "none.md")]) == 1


def test_every_method_has_a_row_and_a_section() -> None:
    text = (DOCS / "methods.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| \[`([\w-]+)`\]\(#([\w-]+)\)", text, re.MULTILINE)
    assert [(family, name) for family, name, _ in rows] == list(methods())
    anchors = re.findall(r'<a id="([\w-]+)"></a>', text)
    assert sorted(anchor for *_, anchor in rows) == sorted(anchors)
    for cls in methods().values():
        assert cls.source in text
        assert all(line in text for line in cls.cost.values())


def test_every_plot_is_there_and_no_other() -> None:
    text = (DOCS / "methods.md").read_text(encoding="utf-8")
    named = re.findall(r"\(plots/([\w-]+\.svg)\)", text)
    assert len(named) == len(generator.groups(list(methods().values())))
    assert sorted(named) == sorted(path.name for path in (DOCS / "plots").iterdir())


def test_printed_bounds_are_not_smaller_than_the_bounds() -> None:
    text = (DOCS / "methods.md").read_text(encoding="utf-8")
    sections = {part.partition('"')[0]: part for part in text.split('<a id="')[1:]}
    for cls in methods().values():
        section = sections[f"{cls.family}-{cls.name}"]
        bound = cls().bound()
        if bound is None:
            assert cls.contract is Contract.REPLACE
            assert "bound: none" in section
            continue
        value = bound.value
        if value == 0:
            assert "bound: rounding alone" in section
            continue
        found = re.search(r"bound: (\S+)", section)
        assert found is not None
        assert value <= float(found[1]) <= 1.11 * value
