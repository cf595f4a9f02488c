"""The list of behaviours and their tests agree, and the comparison sees each difference."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.behaviours.listed import NIGHTLY, NUMBERS
from tests.behaviours.normal import normal, normal_xml
from tests.behaviours.outcome import Outcome, agree
from tests.replay_scenarios import SCENARIOS

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "behaviours.md"
NUMBERED = r"test_b(\d\d)_\w{8,}"
ROOT = Path("/home/somebody/project")
TEXT = """\
============ test session starts ============
gpu-cluster: session 20260101-000000-abcd  file:///tmp/store
rootdir: /home/somebody/project
collected 3 items

test_a.py::test_one PASSED      [ 33%]
test_a.py::test_two PASSED      [ 66%]
test_a.py::test_three FAILED    [100%]
E   assert 1.5 == 2.5 in test_a.py:3
========= 1 failed, 2 passed in 0.12s ==========
"""
XML = (
    '<testsuite tests="2" time="0.1" timestamp="2026-01-01T00:00:00">'
    '<properties><property name="gpu-cluster.session" value="x" /></properties>'
    '<testcase classname="test_a" name="one" time="0.01" />'
    '<testcase classname="test_a" name="two" time="0.02" /></testsuite>'
)


def functions() -> list[ast.FunctionDef]:
    """The tests of the behaviours, as they are written."""
    return [
        node
        for path in sorted(HERE.glob("test_behaviours_*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


def listed() -> dict[int, str]:
    """Return the promises of docs/behaviours.md by number, in the order of the page."""
    rows = re.findall(r"^- \*\*b(\d\d)\*\* (.+)$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(dict(rows)) == len(rows), "a number is listed twice"
    return {int(number): promise for number, promise in rows}


def test_every_number_has_a_test() -> None:
    """A behaviour without a test is a behaviour that nobody knows."""
    numbers = {
        int(match[1]) for function in functions() if (match := re.match(NUMBERED, function.name))
    }

    assert numbers == set(NUMBERS)


def test_the_page_lists_every_number_once_and_in_order() -> None:
    """A test's number is of use only to a reader who finds its promise."""
    assert list(listed()) == list(NUMBERS)


def test_each_promise_is_one_sentence_or_two() -> None:
    """A longer one is a second behaviour, which needs a number of its own."""
    for number, promise in listed().items():
        assert promise.endswith("."), f"b{number:02}"
        assert promise.count(". ") <= 1, f"b{number:02}"


def test_the_page_names_no_test_that_is_not_there() -> None:
    """A command that is copied from the page must select something."""
    cited = set(re.findall(r"-k b(\d\d)|`test_b(\d\d)_", PAGE.read_text("utf-8")))

    assert cited
    assert {int(first or second) for first, second in cited} <= set(NUMBERS)


def test_every_number_is_tested_by_day() -> None:
    """A change that breaks a behaviour is to be red before it is merged, not the next morning."""
    by_day = {name[:3] for name in SCENARIOS.keys() - NIGHTLY}

    assert SCENARIOS.keys() >= NIGHTLY
    assert {name[:3] for name in NIGHTLY} <= by_day


def test_no_test_stands_outside_the_numbers() -> None:
    """A test that is named otherwise is not found by who looks for its behaviour."""
    assert [
        function.name for function in functions() if not re.match(NUMBERED, function.name)
    ] == []


def test_none_is_skipped_or_expected_to_fail() -> None:
    """By mark, call, or a fixture's way out: a behaviour holds, or its test is red."""
    used = {
        f"{path.name}:{node.lineno}"
        for path in sorted(HERE.glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in ("skip", "skipif", "xfail", "importorskip")
    }

    assert used == set()


def test_of_those_selected_none_was_taken_out_by_a_mark(request: pytest.FixtureRequest) -> None:
    """A hook or an ini file can add a mark that the source does not show."""
    marked = [
        item.nodeid
        for item in request.session.items
        if item.path.parent == HERE
        and any(item.get_closest_marker(name) for name in ("skip", "skipif", "xfail"))
    ]

    assert marked == []


def test_every_test_says_why() -> None:
    """Its docstring is the reason that anybody cares."""
    assert [function.name for function in functions() if not ast.get_docstring(function)] == []


# -- the comparison --------------------------------------------------------------------------------


def test_runs_that_differ_in_session_lines_seconds_and_root_are_equal() -> None:
    """These three, and no others, are taken out."""
    other = TEXT.replace("20260101-000000-abcd", "20270202-111111-ef01").replace(
        "0.12s ==", "61.02s (0:01:01) "
    )
    other = other.replace(str(ROOT), "/elsewhere")

    assert normal(other, Path("/elsewhere")) == normal(TEXT, ROOT)
    assert "gpu-cluster" not in normal(TEXT, ROOT)
    assert normal_xml(
        XML.replace("0.01", "7.5").replace('value="x"', 'value="y"'), ROOT
    ) == normal_xml(XML, ROOT)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("test_two PASSED", "test_twe PASSED"),
        ("PASSED      [ 66%]", "PASSED     [ 66%]"),
        ("collected 3 items", "collected 2 items"),
        ("1 failed, 2 passed in", "1 failed, 3 passed in"),
        ("[ 33%]", "[ 34%]"),
        ("1.5 == 2.5 in", "1.5 == 3.5 in"),
        ("test_a.py:3", "test_a.py:4"),
        (
            "one PASSED      [ 33%]\ntest_a.py::test_two",
            "two PASSED      [ 33%]\ntest_a.py::test_one",
        ),
        ("rootdir: /home/somebody/project\n", ""),
        ("========= 1 failed", "--------- 1 failed"),
    ],
    ids=[
        "letter",
        "space",
        "count",
        "count-at-the-end",
        "percent",
        "number-in-a-message",
        "line",
        "order",
        "missing-line",
        "rule",
    ],
)
def test_a_changed_letter_count_or_order_is_seen(old: str, new: str) -> None:
    """A normaliser that takes out more than it should makes every test of this directory green."""
    changed = TEXT.replace(old, new)
    assert changed != TEXT

    with pytest.raises(AssertionError):
        agree(outcome(out=normal(TEXT, ROOT)), outcome(out=normal(changed, ROOT)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('name="one"', 'name="onf"'),
        ('tests="2"', 'tests="3"'),
        ('classname="test_a" name="two"', 'name="two" classname="test_a"'),
        ('name="gpu-cluster.session"', 'name="arch"'),
    ],
    ids=["letter", "count", "order", "property"],
)
def test_a_change_of_junit_is_seen(old: str, new: str) -> None:
    """The same for the report that CI systems read."""
    with pytest.raises(AssertionError):
        agree(
            outcome(junit=normal_xml(XML, ROOT)),
            outcome(junit=normal_xml(XML.replace(old, new), ROOT)),
        )


@pytest.mark.parametrize(
    "other",
    [{"code": 1}, {"err": "x"}, {"cache": {"lastfailed": {"a": True}}}],
    ids=["code", "stderr", "cache"],
)
def test_exit_code_stderr_and_cache_are_compared(other: dict[str, object]) -> None:
    """Besides stdout and JUnit."""
    with pytest.raises(AssertionError):
        agree(outcome(), outcome(**other))


def outcome(**parts: object) -> Outcome:
    """An outcome that has these parts."""
    empty: dict[str, object] = {
        "code": 0,
        "out": "",
        "err": "",
        "junit": "",
        "cache": {},
        "raw": "",
        "session": "",
    }
    return Outcome(**(empty | parts))  # type: ignore[arg-type] # a table of its fields
