"""Reports of any text at all: a test may be called anything, say anything and print anything."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TypedDict, Unpack

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from pytest_gpu_cluster.report.model import (
    NOT_TESTS,
    Delta,
    Machines,
    Problem,
    Report,
    ReportContext,
    Result,
)

SLOW = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
NASTY = (
    *(
        "",
        " ",
        "\n",
        "\t",
        "\r\n",
        "\x00",
        "\x1b[31mred\x1b[0m",
        "\x85",
        "\u2028",
        "\ud800",
        "\udce9",
        "\ufffe",
        "\U0001ffff",
        "\u202e",
    ),
    *(
        "]]>",
        "<![CDATA[",
        "&amp;",
        "&#0;",
        "</failure>",
        "</testcase><testcase>",
        "<?xml?>",
        "<!-- -->",
        "<img src=x onerror=y>",
        "<b>",
    ),
    *(
        "`",
        "``",
        "```",
        "````",
        "~~~",
        "```\n# x\n```",
        "|",
        "\\",
        "*",
        "**",
        "_",
        "__",
        "#",
        ">",
        "- ",
        "1. ",
        "---",
        "    ",
    ),
    *(
        "@everyone",
        "@team/x",
        "![i](https://evil.example/i.png)",
        "[l](https://evil.example)",
        "https://evil.example/",
        "<https://evil.example>",
    ),
    *(
        "::error::x",
        "##[error]x",
        "/approve",
        "#1",
        "GH-1",
        "!1",
        ":smile:",
        "[[ATTACHMENT|/etc/passwd]]",
        "test (teardown)",
        "x #2",
    ),
)
ANY = st.text(
    st.characters(codec=None) | st.sampled_from("\x00\x1b\t\n\r\x85\ud800\udce9\ufffe`|<&]"),
    max_size=30,
)  # lone surrogates too
TEXT = st.one_of(
    ANY,
    st.sampled_from(NASTY),
    st.lists(st.sampled_from(NASTY) | ANY, max_size=6).map("".join),
    st.builds(lambda text, times: text * times, ANY, st.integers(1, 500)),
)
FILE_NAMES = st.sampled_from(
    ["", "test_a.py", "services/ml/tests/test_é x.py", ".hidden/test_b.py", "a/b|c`d/test_@e.py"]
)
CLASSES = ("test", "crash", "timeout", *NOT_TESTS)


CONTEXT = ReportContext(suite="gpu-cluster")


def reports(text: st.SearchStrategy[str]) -> st.SearchStrategy[Report]:
    """Draw reports that a builder could build, but for their texts.

    A bad result has problems, and only a session without problems can pass.
    """
    problems = st.builds(
        Problem,
        when=st.sampled_from(["collect", "setup", "call", "teardown"]),
        failure_class=st.sampled_from(CLASSES),
        message=text,
        text=text,
        line=st.integers(0, 9),
        subtest=st.just("") | text,
    )
    result = partial(
        st.builds,
        Result,
        nodeid=text,
        file=FILE_NAMES,
        line=st.integers(0, 10_000),
        classname=text,
        name=text,
        duration_s=st.floats(0, 1e6),
        reason=text,
        output=text,
        properties=st.lists(st.tuples(text, text), max_size=2).map(tuple),
        reruns=st.integers(0, 2),
    )
    good = result(outcome=st.sampled_from(["passed", "skipped", "xfailed", "xpassed"]))
    bad = result(
        outcome=st.sampled_from(["failed", "error"]),
        problems=st.lists(problems, min_size=1, max_size=3).map(tuple),
    )
    deltas = st.builds(
        Delta,
        branch=text,
        session=text,
        commit=st.just("a" * 40) | text,
        newly_failing=tuples(text),
        fixed=tuples(text),
        removed=tuples(text),
        slower=st.lists(st.tuples(text, st.floats(0, 9), st.floats(0, 9)), max_size=3).map(tuple),
        flaky=tuples(text),
    )
    any_report = st.builds(
        Report,
        session=st.just("20260101-120000-abcd"),
        context=st.builds(ReportContext, suite=st.just("gpu-cluster"), branch=text, commit=text),
        verdict=st.sampled_from(
            ["running", "passed", "failed", "cancelled", "request", *NOT_TESTS]
        ),
        message=st.just("") | text,
        remedy=text,
        duration_s=st.floats(0, 1e6),
        started=st.floats(0, 4e9),
        results=st.lists(good | bad, max_size=5).map(tuple),
        collected=st.none() | st.integers(0, 9),
        machines=st.builds(Machines, gpus=tuples(text), simulated=st.booleans(), cluster=text),
        selection=tuples(text),
        delta=st.none() | deltas,
        troubles=tuples(text),
    )
    return any_report.map(consistent)


def tuples(text: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(text, max_size=3).map(tuple)


def consistent(report: Report) -> Report:
    bad = any(result.problems for result in report.results)
    return dataclasses.replace(
        report, verdict="failed" if bad and report.verdict == "passed" else report.verdict
    )


class TestFields(TypedDict, total=False):
    """Fields of a failed test that a test of the report may choose."""

    nodeid: str
    classname: str
    name: str
    properties: tuple[tuple[str, str], ...]


def failed_test(*, message: str = "no", text: str = "no", **fields: Unpack[TestFields]) -> Report:
    """Return the report of one failed test, with these texts."""
    problem = Problem(when="call", failure_class="test", message=message, text=text)
    chosen: TestFields = {"nodeid": "t.py::t", "classname": "t", "name": "t", **fields}
    result = Result(file="t.py", line=1, outcome="failed", problems=(problem,), **chosen)
    return Report(
        session="20260101-120000-abcd", context=CONTEXT, verdict="failed", results=(result,)
    )
