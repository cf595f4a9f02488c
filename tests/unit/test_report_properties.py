"""Reports of any text at all: a test may be called anything, say anything and print anything."""

from __future__ import annotations

import dataclasses
import json
import re
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from functools import partial
from html.parser import HTMLParser
from typing import Any, Literal, get_args

import xmlschema
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pytest_gpu_cluster.contract.masking import masker
from pytest_gpu_cluster.report.model import NOT_TESTS, Delta, Problem, Report, Result
from pytest_gpu_cluster.report import delta, junit, render
from tests.hosts.markdown import rendered
from tests.hosts.readers import XSD

SCHEMAS = {
    strict: xmlschema.XMLSchema(XSD / f"{kind}.xsd")
    for strict, kind in ((False, "enriched"), (True, "xunit2"))
}
SLOW = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

# --- reports ----------------------------------------------------------------------------------------------------------

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
FILES = st.sampled_from(
    ["", "test_a.py", "services/ml/tests/test_é x.py", ".hidden/test_b.py", "a/b|c`d/test_@e.py"]
)
CLASSES = ("test", "crash", "timeout", *NOT_TESTS)


def reports(text: st.SearchStrategy[str]) -> st.SearchStrategy[Report]:
    """Reports that the tally could have made, but for their texts: what is bad has problems, and only what has none can pass."""
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
        file=FILES,
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
    made = st.builds(
        Report,
        session=st.just("20260101-120000-abcd"),
        suite=st.just("gpu-cluster"),
        verdict=st.sampled_from(
            ["running", "passed", "failed", "cancelled", "request", *NOT_TESTS]
        ),
        message=st.just("") | text,
        remedy=text,
        duration_s=st.floats(0, 1e6),
        started=st.floats(0, 4e9),
        results=st.lists(good | bad, max_size=5).map(tuple),
        collected=st.none() | st.integers(0, 9),
        gpus=tuples(text),
        simulated=st.booleans(),
        cluster=text,
        branch=text,
        commit=text,
        selection=tuples(text),
        delta=st.none() | deltas,
        troubles=tuples(text),
    )
    return made.map(consistent)


def tuples(text: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(text, max_size=3).map(tuple)


def consistent(report: Report) -> Report:
    bad = any(result.problems for result in report.results)
    return dataclasses.replace(
        report, verdict="failed" if bad and report.verdict == "passed" else report.verdict
    )


def one(**said: Any) -> Report:
    """A report of one failed test, with these texts."""
    problem = Problem(
        when="call",
        failure_class="test",
        message=said.pop("message", "no"),
        text=said.pop("text", "no"),
    )
    result = Result(
        **{
            "nodeid": "t.py::t",
            "file": "t.py",
            "line": 1,
            "classname": "t",
            "name": "t",
            "outcome": "failed",
            "problems": (problem,),
            **said,
        }
    )
    return Report(
        session="20260101-120000-abcd", suite="gpu-cluster", verdict="failed", results=(result,)
    )


# --- JUnit ------------------------------------------------------------------------------------------------------------


@given(reports(TEXT), st.booleans())
@example(one(nodeid="", classname="", name="", message=""), False)
@example(one(properties=(("", ""),)), False)
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
        own = problem.failure_class not in NOT_TESTS
        assert child.tag == ("failure" if own and problem.when == "call" else "error")
        assert (child.get("type") == problem.failure_class) == own


NAMES = st.sampled_from(["t", "t #2", "t #2 #2", "t (teardown)", "t #3", "t [m]"])


@given(st.lists(st.tuples(NAMES, st.sampled_from(["", "teardown", "twice"])), max_size=8))
@SLOW
def test_no_two_cases_have_one_name(named: list[tuple[str, str]]) -> None:
    """`--keep-duplicates` runs a test twice, and a test may be called as the second of two is; GitLab drops one of them."""
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
    written = junit.write(Report(session="s", suite="t", verdict=verdict, results=tuple(results)))
    names = [case.get("name") for case in ET.fromstring(written).iter("testcase")]

    assert len(names) == sum(2 if kind == "twice" else 1 for _, kind in named)
    assert len(set(names)) == len(names)


# --- Markdown, the headline, JSON ---------------------------------------------------------------------------------------


def open_fence(text: str) -> str:
    """The mark of a code block that nothing closes, as CommonMark takes it."""
    mark = ""
    for line in re.split(r"\r\n|\n|\r", text):
        found = re.fullmatch(r" {0,3}(`{3,}|~{3,})(.*)", line)
        if found and not mark:
            mark = found[1] if found[1][0] == "~" or "`" not in found[2] else ""
        elif (
            found and found[1][0] == mark[0] and len(found[1]) >= len(mark) and not found[2].strip()
        ):
            mark = ""
    return mark


@given(reports(TEXT), st.integers(200, 70_000))
@example(dataclasses.replace(one(), message="a long message\n" * 100), 300)
@example(dataclasses.replace(one(), troubles=("the host refused: " + "x" * 500,)), 400)
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
    """What of a page stands outside of code, and which elements there are."""

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
@example(one(nodeid="", message="`@α`"), 70_000)
@example(one(text="a\n```\n@α\n~~~\n````\n@β"), 70_000)
@example(
    dataclasses.replace(one(), delta=Delta(branch="", session="", newly_failing=("", "α`@β"))),
    70_000,
)
@SLOW
def test_nothing_that_a_test_says_becomes_a_link_a_mention_or_html(
    report: Report, limit: int
) -> None:
    """A pull request from a fork could else write what it likes in our name; only our own words stand outside of code."""
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
    """It goes into a status of a commit, a log line, a command of a CI host: none of them has room for a second line."""
    headline = render.headline(report)

    assert headline.strip()
    assert len(headline.splitlines()) == 1
    assert not [char for char in headline if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")]


@given(reports(TEXT))
@SLOW
def test_the_summary_is_json_and_survives_it(report: Report) -> None:
    """Other programs read it, and another process makes a report of it again."""
    said, text = render.as_json(report), render.json_text(report)
    read = json.loads(text)

    assert text.isascii()
    assert read == json.loads(json.dumps(said))
    assert [each["nodeid"] for each in read["failures"]] == [
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
    """As JSON reads it: two surrogates that stand together are one character there."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


@given(reports(TEXT))
@example(one(nodeid="test_caf\udce9.py::test_a"))
@SLOW
def test_every_result_has_a_link_where_there_is_a_page(report: Report) -> None:
    """A file's name need not be UTF-8, and its bytes come as lone surrogates; a report must not end with a traceback because of it."""
    report = dataclasses.replace(report, link="https://gpu.example.com/s/1", own_page=True)

    assert all(
        re.fullmatch(r"https://gpu\.example\.com/s/1#[\w.~%-]*", report.link_to(result), re.ASCII)
        for result in report.results
    )


# --- secrets ------------------------------------------------------------------------------------------------------------

SECRET_NAMES = st.sampled_from(
    [
        "GITHUB_TOKEN",
        "DB_PASSWORD",
        "api_key",
        "AWS_SECRET_ACCESS_KEY",
        "AZURE_STORAGE_KEY",
        "X_PASSPHRASE",
        "SENTRY_DSN",
        "MY_PAT",
        "HTTP_AUTH",
    ]
)
PATHS = ("/", "http://", "https://", "file:", "s3://")
SECRETS = st.text(
    st.characters(codec=None, exclude_characters="*"), min_size=8, max_size=40
).filter(
    lambda value: (
        len(value.strip()) >= 8
        and len(set(value.strip())) >= 4
        and not value.strip().startswith(PATHS)
    )
)
ENVIRONS = st.dictionaries(
    SECRET_NAMES,
    SECRETS | st.lists(SECRETS, min_size=2, max_size=3).map("\n".join),
    min_size=1,
    max_size=4,
)


@given(ENVIRONS, st.data())
@SLOW
def test_a_masked_text_has_no_secret_in_it(environ: Mapping[str, str], data: st.DataObject) -> None:
    """However the text is put together: one secret after another, within a word, in two variables, with several lines."""
    parts = data.draw(
        st.lists(
            st.sampled_from(sorted(environ.values())) | st.text(max_size=5), min_size=1, max_size=8
        )
    )
    masked = masker(environ)("".join(parts))

    assert not [value for value in environ.values() if value in masked]


KEYS = st.text(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", min_size=40, max_size=40
).filter(
    lambda key: (
        len(set(key)) >= 16
        and re.search("[0-9]", key)
        and re.search("[A-Z]", key)
        and re.search("[a-z]", key)
    )
)


@given(KEYS)
@example("/" + "Zk3xE8wLr5Tn2Yc6Gd9Hk4Mp7Qs1Uz0Jb3xE8wL")
@SLOW
def test_a_key_in_base64_is_masked_whatever_it_begins_with(key: str) -> None:
    """A secret key of AWS, a storage key of Azure: random, and any of 64 characters may be the first."""
    assert key not in masker({"AWS_SECRET_ACCESS_KEY": key})(f"signed with {key}.")


@given(ENVIRONS, TEXT)
@SLOW
def test_masking_changes_nothing_else(environ: Mapping[str, str], text: str) -> None:
    """Masked twice is masked once, and a text without a secret stays as it is."""
    mask = masker(environ)

    assert mask(mask(text)) == mask(text)
    assert mask(text) == text or "***" in mask(text)


@given(reports(TEXT), SECRETS, st.booleans())
@SLOW
def test_a_masked_report_makes_a_valid_file(report: Report, secret: str, strict: bool) -> None:
    """A secret may look like a tag, or half of one."""
    mask = masker({"A_TOKEN": secret})
    results = [
        dataclasses.replace(
            result, name=mask(f"test_{secret}_{result.name}"), output=mask(secret * 2)
        )
        for result in report.results
    ]
    root = ET.fromstring(
        junit.write(dataclasses.replace(report, results=tuple(results)), strict=strict)
    )

    assert len(
        {(case.get("classname"), case.get("name")) for case in root.iter("testcase")}
    ) == len(list(root.iter("testcase")))


# --- what is different ----------------------------------------------------------------------------------------------------

Outcome = Literal["passed", "failed", "error", "skipped", "xfailed", "xpassed"]
OUTCOMES: st.SearchStrategy[Outcome] = st.sampled_from(get_args(Outcome))
NODES = st.sampled_from([f"t.py::test_{letter}" for letter in "abcdef"])


@st.composite
def sessions(draw: st.DrawFn) -> Report:
    """Sessions of up to six tests, some of them spoilt by machines, each test at most once."""
    results = []
    for nodeid in draw(st.lists(NODES, min_size=1, unique=True)):
        outcome = draw(OUTCOMES)
        problem = Problem(
            when="call",
            failure_class=draw(st.sampled_from(["test", "test", "infrastructure"])),
            message="no",
            text="no",
        )
        results.append(
            Result(
                nodeid=nodeid,
                file="t.py",
                line=1,
                classname="t",
                name=nodeid[6:],
                outcome=outcome,
                problems=(problem,) if outcome in delta.BAD else (),
                duration_s=draw(st.floats(0, 100)),
                reruns=draw(st.integers(0, 1)),
            )
        )
    return Report(
        session=draw(st.sampled_from(["s-1", "s-2"])),
        suite="t",
        verdict="failed" if any(each.problems for each in results) else "passed",
        collected=len(results) + draw(st.integers(0, 1)),
        results=tuple(results),
        branch="main",
        commit=draw(st.sampled_from(["", "a", "b"])),
        selection=draw(st.sampled_from([(), ("-x",)])),
    )


@given(sessions(), sessions())
@SLOW
def test_a_difference_does_not_contradict_itself(now: Report, earlier: Report) -> None:
    """A test cannot be broken and mended, nor gone and slower; what machines did is in neither list."""
    kept = delta.results_of(earlier)
    found = delta.compare(now, kept)
    if found is None:
        assert kept is None or now.session == earlier.session
        return
    results = {result.nodeid: result for result in now.results}
    known = {result.nodeid: result for result in earlier.results}
    spoilt = {
        result.nodeid
        for result in now.results
        if any(problem.failure_class in NOT_TESTS for problem in result.problems)
    }
    slower = {nodeid for nodeid, *_ in found.slower}

    assert not set(found.newly_failing) & set(found.fixed)
    assert not set(found.removed) & results.keys()
    assert not spoilt & {*found.newly_failing, *found.fixed, *found.flaky, *slower}
    assert all(results[nodeid].outcome in delta.BAD for nodeid in found.newly_failing)
    assert all(
        results[nodeid].outcome in delta.GOOD and known[nodeid].outcome in delta.BAD
        for nodeid in found.fixed
    )
    assert not [
        nodeid
        for nodeid in found.newly_failing
        if nodeid in known and known[nodeid].outcome in delta.BAD
    ]
    assert set(found.removed) <= known.keys()
    assert not found.removed or now.selection == earlier.selection
    assert slower <= results.keys() & known.keys()
    assert found.empty == (
        not (found.newly_failing or found.fixed or found.removed or found.slower or found.flaky)
    )


@given(sessions())
@SLOW
def test_the_same_results_once_more_are_no_difference(report: Report) -> None:
    """A comment with "changes" that there are not: nobody reads the next one. Only a rerun is told again."""
    report = dataclasses.replace(
        report, results=tuple(dataclasses.replace(result, reruns=0) for result in report.results)
    )
    found = delta.compare(dataclasses.replace(report, session="s-later"), delta.results_of(report))

    assert found is None or found.empty


@given(st.binary(max_size=60) | TEXT.map(lambda text: text.encode("utf-8", "replace")))
@example(b'{"v": 1, "session": "s", "commit": "", "branch": "b", "tests": {"a": ["passed", "x"]}}')
@SLOW
def test_any_bytes_where_a_baseline_should_be_are_as_none(stored: bytes) -> None:
    """A store is shared, and a file in it may be cut."""
    assert delta.compare(Report(session="s", suite="t", verdict="passed"), stored) is None


BRANCHES = st.text(st.characters(codec="utf-8", exclude_characters="~"), min_size=1, max_size=20)


@given(
    BRANCHES,
    BRANCHES,
    st.sampled_from(["gpu-cluster", "nightly"]),
    st.sampled_from(["gpu-cluster", "nightly"]),
)
@example("feature/x", "feature%2Fx", "gpu-cluster", "gpu-cluster")
@example("a", "A", "gpu-cluster", "gpu-cluster")
@SLOW
def test_two_branches_have_two_keys(one: str, other: str, suite: str, another: str) -> None:
    """Else one branch would be told the differences from the other."""
    keys = {delta.key(one, suite), delta.key(other, another)}

    assert len(keys) == len({(one, suite), (other, another)})
    assert all(re.fullmatch(r"history/branches/[^/]+\.json", key) for key in keys)
    assert all(key.isascii() for key in keys)
