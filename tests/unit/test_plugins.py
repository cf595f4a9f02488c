"""The comparison behind `make plugins`, and the page that it makes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from tests.compared import Outcome
from tests.plugins.page import PAGE, load, page
from tests.plugins.rows import Row, read_rows
from tests.plugins.run import Run, judge

ROW = Row(name="p", plugin="p", test="", shows="REPORT")
RUN = Run(
    outcome=Outcome(
        exit_code=1, cases=Counter(), counts="1 failed", seconds=1.0, tail="what it said"
    ),
    output="REPORT\n",
    written=Counter(),
)
REFUSED = "ERROR: --picked asks git: run it without --gpu-cluster\n"


@pytest.mark.parametrize(
    ("plain", "remote", "verdict"),
    [
        ({}, {}, "same"),
        ({"written": Counter(["a"])}, {"written": Counter(["a"])}, "same, files home"),
        ({"written": Counter(["a"])}, {}, "same, files stay on the cluster"),
        ({}, {"written": Counter(["a"])}, "differs"),
        ({}, {"output": ""}, "differs"),
        ({"output": ""}, {}, "differs"),
        ({}, {"outcome": replace(RUN.outcome, exit_code=0)}, "differs"),
        ({}, {"outcome": replace(RUN.outcome, exit_code=4), "output": REFUSED}, "refused"),
        ({}, {"outcome": replace(RUN.outcome, exit_code=4), "output": "ERROR: x\n"}, "differs"),
    ],
)
def test_a_verdict_is_computed(
    plain: dict[str, object], remote: dict[str, object], verdict: str
) -> None:
    """A row becomes another by itself: nobody writes "same" by hand."""
    sides = [Run(**{**vars(RUN), **changes}) for changes in (plain, remote)]

    assert judge(ROW, *sides)[0] == verdict


def test_the_page_is_made_of_the_results_and_none_differs_without_a_word() -> None:
    """A reader sees how a plugin differs and what to do, or the comparison has failed."""
    rows, results = read_rows(), load()
    noted = {row.name for row in rows if row.note}

    assert PAGE.read_text() == page(results, rows)
    assert {result.row for result in results} == {row.name for row in rows}
    assert not {each.row for each in results if each.verdict == "differs"} - noted
