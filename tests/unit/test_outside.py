"""The comparison behind `make outside` sees what it is there to see."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.compared import Outcome, differences, expected, read_cases, read_counts

JUNIT = """<testsuites><testsuite>
<testcase classname="a" name="ok"/>
<testcase classname="a" name="bad"><failure message="m"/></testcase>
<testcase classname="a" name="worse"><failure message="m"/></testcase>
<testcase classname="a" name="worse"><error message="m"/></testcase>
<testcase classname="a" name="not"><skipped/></testcase>
</testsuite></testsuites>"""

PLAIN = Outcome(
    exit_code=1, cases=Counter({("a", "ok", "passed"): 2}), counts="2 passed", seconds=1.0, tail=""
)


def test_every_case_has_its_outcome(tmp_path: Path) -> None:
    """A test that fails and then errors in teardown is two cases with one name."""
    (tmp_path / "j.xml").write_text(JUNIT)

    assert read_cases(tmp_path / "j.xml") == Counter(
        [
            ("a", "ok", "passed"),
            ("a", "bad", "failure"),
            ("a", "worse", "failure"),
            ("a", "worse", "error"),
            ("a", "not", "skipped"),
        ]
    )
    assert read_cases(tmp_path / "missing.xml") == Counter()


@pytest.mark.parametrize(
    ("stdout", "counts"),
    [
        ("..\n2 passed in 0.10s\nsession 01 kept\n", "2 passed"),
        (
            "=== 695 passed, 1 skipped, 19866 subtests passed in 15.34s (0:00:15) ===",
            "695 passed, 1 skipped, 19866 subtests passed",
        ),
        ("no tests ran in 0.01s", "no tests ran"),
        ("INTERNALERROR> gone", ""),
    ],
)
def test_the_last_line_is_read_without_its_seconds(stdout: str, counts: str) -> None:
    """Only there are passed subtests counted."""
    assert read_counts(stdout) == counts


def test_equal_runs_differ_in_nothing() -> None:
    """Seconds and output may differ."""
    assert differences(PLAIN, replace(PLAIN, seconds=9.0, tail="other")) == []


@pytest.mark.parametrize(
    "remote",
    [
        replace(PLAIN, exit_code=0),
        replace(PLAIN, counts="1 passed"),
        replace(PLAIN, cases=Counter({("a", "ok", "passed"): 1})),
        replace(PLAIN, cases=Counter({("a", "ok", "failure"): 2})),
        replace(PLAIN, cases=Counter({("a", "ok", "passed"): 2, ("a", "more", "passed"): 1})),
    ],
    ids=["exit", "counts", "one less", "outcome", "one more"],
)
def test_one_difference_is_enough(remote: Outcome) -> None:
    """A false agreement would be worse than no comparison."""
    assert differences(PLAIN, remote)


def test_a_known_exception_must_be_there() -> None:
    """One that no longer differs would hide the next difference of the same test."""
    plain = replace(PLAIN, cases=Counter({("a", "x", "passed"): 1, ("a", "y", "skipped"): 1}))
    plain = replace(plain, counts="1 passed, 1 skipped, 3 subtests passed")
    known = {("a", "x"): ("passed", "skipped")}
    other = replace(
        plain,
        cases=Counter({("a", "x", "skipped"): 1, ("a", "y", "skipped"): 1}),
        counts="0 passed, 2 skipped, 3 subtests passed",
    )

    assert differences(expected(plain, known), other) == []
    assert differences(expected(plain, known), plain) != []
    with pytest.raises(ValueError, match="a::x has not passed"):
        expected(other, known)
