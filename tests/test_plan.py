"""Plans survive the trip through TOML, and what does not fit is refused with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowerkit.errors import PlanError
from lowerkit.plan import Choice, Plan

names = st.text(min_size=1).filter(lambda s: s.isprintable())
options = st.dictionaries(
    st.from_regex(r"[a-z_]{1,12}", fullmatch=True),
    st.one_of(
        st.integers(-(2**62), 2**62), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), names
    ),
    max_size=4,
)


@given(st.dictionaries(names, options, max_size=5), options)
def test_round_trip_is_exact(nodes: dict[str, dict[str, object]], target_options: dict[str, object]) -> None:
    choices = tuple(Choice(name, "Softmax", "online", opts) for name, opts in nodes.items())
    plan = Plan("cpu", choices, target_options)
    assert Plan.from_toml(plan.to_toml()) == plan
    assert Plan.from_toml(plan.to_toml()).to_toml() == plan.to_toml()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("schema = [", "not valid TOML"),
        ("schema = 7\ntarget = 'cpu'", "schema 7"),
        ("target = 'cpu'", "schema None"),
        ("schema = 1", "no target"),
        ("schema = 1\ntarget = 'cpu'\ncolour = 'red'", "unknown key 'colour'"),
        ("schema = 1\ntarget = 'cpu'\nnode = 3", "list of tables"),
        ("schema = 1\ntarget = 'cpu'\n[[node]]\nname = 'a'", "[[node]] 1 has no op"),
        ("schema = 1\ntarget = 'cpu'\n[[node]]\nname = 'a'\nop = 'Gelu'\nmethod = 3", "has no method"),
        (
            "schema = 1\ntarget = 'cpu'\n" + "[[node]]\nname = 'a'\nop = 'Gelu'\nmethod = 'keep'\n" * 2,
            "names node 'a' twice",
        ),
    ],
)
def test_refusals_say_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(PlanError) as caught:
        Plan.from_toml(text, "p.toml")
    assert words in str(caught.value)
    assert "p.toml" in str(caught.value)


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot read plan"):
        Plan.read(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(PlanError, match="cannot read plan"):
        Plan.read(tmp_path / "bytes.toml")
