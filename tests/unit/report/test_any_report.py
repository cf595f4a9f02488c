"""What holds for the JUnit file, the Markdown and the JSON of any report at all."""

from __future__ import annotations

import dataclasses
import json
import re
import unicodedata
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import xmlschema
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_gpu_cluster.report import junit, render
from pytest_gpu_cluster.report.model import NOT_TESTS, Delta, Problem, Report, Result
from tests.hosts.markdown import rendered
from tests.hosts.readers import XSD
from tests.unit.report.strategies import CONTEXT, SLOW, TEXT, failed_test, reports

SCHEMAS = {
    strict: xmlschema.XMLSchema(XSD / f"{kind}.xsd")
    for strict, kind in ((False, "enriched"), (True, "xunit2"))
}


@given(reports(TEXT), st.booleans())
@example(failed_test(nodeid="", classname="", name="", message=""), False)
@example(failed_test(properties=(("", ""),)), False)
@SLOW
def test_a_junit_file_is_valid_whatever_a_test_says(report: Report, strict: bool) -> None:
    """A file that cannot be read is no file: the step is green then, or has no tests."""
    written = junit.write(report, strict=strict)

    root = ET.fromstring(written)
    assert written.decode().startswith("<?xml")
    assert [f"{error.path}: {error.reason}" for error in SCHEMAS[strict].iter_errors(root)] == []


@given(reports(TEXT), st.booleans())
@SLOW
def test_every_problem_is_one_case_of_its_own(report: Report, strict: bool) -> None:
    """Readers keep one problem of a case, and one case of a name."""
    cases = list(ET.fromstring(junit.write(report, strict=strict)).iter("testcase"))
    bad = [child for case in cases for child in case if child.tag in ("failure", "error")]
    problems = [problem for result in report.results for problem in result.problems]
    alone = report.verdict == "running" or (not report.results and report.verdict != "passed")
    expected = 1 if alone else len(problems) or int(report.verdict != "passed")

    assert len(bad) == expected
    assert all(
        len([child for child in case if child.tag in ("failure", "error", "skipped")]) <= 1
        for case in cases
    )
    assert (report.verdict == "passed") == (not bad)
    assert len({(case.get("classname"), case.get("name")) for case in cases}) == len(cases)
    for child, problem in zip(bad, problems, strict=True) if not alone and problems else ():
        from_tests = problem.failure_class not in NOT_TESTS
        assert child.tag == ("failure" if from_tests and problem.when == "call" else "error")
        assert (child.get("type") == problem.failure_class) == from_tests


NAMES = st.sampled_from(["t", "t #2", "t #2 #2", "t (teardown)", "t #3", "t [m]"])


@given(st.lists(st.tuples(NAMES, st.sampled_from(["", "teardown", "twice"])), max_size=8))
@SLOW
def test_no_two_cases_have_one_name(named: list[tuple[str, str]]) -> None:
    """`--keep-duplicates` runs a test twice, and a test may be called as the second of two is.

    GitLab drops one of them.
    """
    problem = Problem(when="teardown", failure_class="test", message="no", text="no")
    blank = Result(nodeid="t.py::t", file="t.py", line=1, classname="c", name="", outcome="passed")
    results = [
        dataclasses.replace(
            blank,
            name=name,
            outcome="error" if kind else "passed",
            problems=(problem,) * (2 if kind == "twice" else bool(kind)),
        )
        for name, kind in named
    ]
    verdict = "failed" if any(kind for _, kind in named) else "passed"
    written = junit.write(
        Report(session="s", context=CONTEXT, verdict=verdict, results=tuple(results))
    )
    names = [case.get("name") for case in ET.fromstring(written).iter("testcase")]

    assert len(names) == sum(2 if kind == "twice" else 1 for _, kind in named)
    assert len(set(names)) == len(names)


def open_fence(text: str) -> str:
    """Return the mark of a code block that nothing closes, as CommonMark takes it."""
    mark = ""
    for line in re.split(r"\r\n|\n|\r", text):
        match = re.fullmatch(r" {0,3}(`{3,}|~{3,})(.*)", line)
        if match is None:
            continue
        fence, info = match[1], match[2]
        if not mark:
            mark = fence if fence[0] == "~" or "`" not in info else ""
        elif fence[0] == mark[0] and len(fence) >= len(mark) and not info.strip():
            mark = ""
    return mark


@given(reports(TEXT), st.integers(200, 70_000))
@example(dataclasses.replace(failed_test(), message="a long message\n" * 100), 300)
@example(dataclasses.replace(failed_test(), troubles=("the host refused: " + "x" * 500,)), 400)
@SLOW
def test_markdown_fits_and_leaves_no_code_open(report: Report, limit: int) -> None:
    """A host refuses a comment that is too long; what follows an open block in it, others wrote."""
    text = render.markdown(report, limit=limit)

    assert len(text) <= limit
    assert open_fence(text) == ""
    text.encode()  # a lone surrogate cannot be sent


GREEK = st.text("αβγδ", min_size=1, max_size=3)
MARKS = (
    *(
        "`",
        "``",
        "```",
        "~~~",
        "\n",
        "\n\n",
        " ",
        "    ",
        "\x00",
        "\u2028",
        "\r",
        "|",
        "\\",
        "*",
        "**",
        "_",
        "#",
        "> ",
        "- ",
        "[",
        "](",
        ")",
    ),
    *(
        "<",
        ">",
        "!",
        "&",
        "@",
        ":",
        "https://",
        "<img src=x>",
        "<!--",
        "-->",
        "<details>",
        "---",
        "===",
    ),
)
MARKED = st.lists(st.sampled_from(MARKS) | GREEK, max_size=8).map("".join)


class Outside(HTMLParser):
    """Collects the text of a page outside of code, and the names of its elements."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.tags: set[str] = set()
        self._code = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._code += tag == "code"

    def handle_endtag(self, tag: str) -> None:
        self._code -= tag == "code"

    def handle_data(self, data: str) -> None:
        self.text += "" if self._code else data


@given(reports(MARKED), st.integers(200, 3_000) | st.just(70_000))
@example(failed_test(nodeid="", message="`@α`"), 70_000)
@example(failed_test(text="a\n```\n@α\n~~~\n````\n@β"), 70_000)
@example(
    dataclasses.replace(
        failed_test(), delta=Delta(branch="", session="", newly_failing=("", "α`@β"))
    ),
    70_000,
)
@SLOW
def test_nothing_that_a_test_says_becomes_a_link_a_mention_or_html(
    report: Report, limit: int
) -> None:
    """A pull request from a fork could else write what it likes in our name.

    Only our own words stand outside of code.
    """
    page = Outside()
    page.feed(rendered(render.markdown(report, limit=limit), tags=True))

    assert page.tags <= {
        "h3",
        "p",
        "strong",
        "code",
        "pre",
        "ul",
        "li",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
    }
    assert not set("αβγδ@`[]<>&\\~!=") & set(page.text)


@given(reports(TEXT))
@SLOW
def test_the_headline_is_one_line(report: Report) -> None:
    """It goes into a status of a commit, a log line, a command of a CI host.

    None of them has room for a second line.
    """
    headline = render.headline(report)

    assert headline.strip()
    assert len(headline.splitlines()) == 1
    assert not [char for char in headline if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")]


@given(reports(TEXT))
@SLOW
def test_the_summary_is_json_and_survives_it(report: Report) -> None:
    """Other programs read it, and another process makes a report of it again."""
    summary, text = render.as_json(report), render.json_text(report)
    read = json.loads(text)

    assert text.isascii()
    assert read == json.loads(json.dumps(summary))
    assert [failure["nodeid"] for failure in read["failures"]] == [
        paired(result.nodeid) for result in report.bad
    ]
    assert None not in read.values()
    assert "" not in read.values()
    assert (read["verdict"], read["counts"], read["your_tests"]) == (
        report.verdict,
        report.counts,
        report.verdict not in NOT_TESTS,
    )


def paired(text: str) -> str:
    """Return `text` as JSON reads it: two surrogates side by side are one character there."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


@given(reports(TEXT))
@example(failed_test(nodeid="test_caf\udce9.py::test_a"))
@SLOW
def test_every_result_has_a_link_where_there_is_a_page(report: Report) -> None:
    """A file's name need not be UTF-8, and its bytes come as lone surrogates.

    A report must not end with a traceback because of it.
    """
    context = dataclasses.replace(report.context, link="https://gpu.example.com/s/1", own_page=True)
    report = dataclasses.replace(report, context=context)

    assert all(
        re.fullmatch(r"https://gpu\.example\.com/s/1#[\w.~%-]*", report.link_to(result), re.ASCII)
        for result in report.results
    )
