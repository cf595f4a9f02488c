"""What a session came to, as people and machines are told: the events of a real run against pytest's own JUnit file of that run,
what each reader makes of ours, sessions that were lost on the way, secrets, and what is different from the last time.

What holds for any text at all is in test_report_properties.py.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import junitparser
import pytest
import xmlschema

from pytest_gpu_cluster.contract.codec import Event, crash_records, map_strings
from pytest_gpu_cluster.contract.masking import masker
from pytest_gpu_cluster.report.model import NOT_TESTS, Delta, Problem, Report, Result
from pytest_gpu_cluster.report import delta, junit, render
from pytest_gpu_cluster.report.builder import Tally
from tests.hosts.readers import (
    BITBUCKET_FIELD,
    READERS,
    XSD,
    Case,
    bitbucket,
    gitlab,
    jenkins,
    mikepenz,
    schema_errors,
)
from tests.replay_rig import EPOCH, Scenario, run
from tests.replay_scenarios import MIXED_FILES

LINK = "https://ci.example.com/acme/aerial/pipelines/results/417/steps/%7B5f2f7a1c-0d0e-4f6e-9a53-2f1f0f6f7a11%7D"
PROBLEMS = ("failure", "error", "skipped")
Key = tuple[str, str]  # classname and name

# --- a real run -----------------------------------------------------------------------------------------------------

TOKEN = "q7-Zk_very.secret/91+a=="
SPLIT = "Vb3xE8wLr5Tn2Yc6Gd9Hk4Mp7Qs1Uz0J"
BODY = base64.b64encode(bytes((i * 167 + i * i * 29) % 256 for i in range(600))).decode()
PEM_LINES = [BODY[at : at + 64] for at in range(0, len(BODY), 64)]
PEM = "\n".join(
    [f"-----BEGIN {'PRIVATE'} KEY-----", *PEM_LINES, f"-----END {'PRIVATE'} KEY-----", ""]
)
ANOTHER = base64.b64encode(bytes((i * 91 + i * i * 13 + 5) % 256 for i in range(600))).decode()
ENVIRON = {"SERVICE_TOKEN": TOKEN, "SPLIT_TOKEN": SPLIT, "SIGNING_PRIVATE_KEY": PEM}

SUBTESTS = """
def test_subtests(subtests):
    for i in range(3):
        with subtests.test("m", i=i):
            assert i != 1
    with subtests.test("another"):
        raise ValueError("in another")

def test_good_subtests(subtests):
    with subtests.test():
        pass

def test_like_subtests(subtests):
    for i in range(2):
        with subtests.test("same"):
            assert 0
"""
ASIDE = """
import pytest

def test_skips_one(subtests):
    with subtests.test("here"):
        pass
    with subtests.test("not here"):
        pytest.skip("not in this subtest")

def test_expects_one(subtests):
    with subtests.test("here"):
        pass
    with subtests.test("known"):
        pytest.xfail("known in this subtest")

def test_fails_itself(subtests):
    with subtests.test("m"):
        assert 0
    pytest.fail("contains multitudes", pytrace=False)
"""
IDS = """
import pytest

class TestIds:
    @staticmethod
    def check(value):
        assert "/" not in value

    @pytest.mark.parametrize(
        "value",
        ["a::b", "c/d", '"q"', "it's", "zażółć ☃ 🙂", "<&>]]>", "a[b]c", "x.py::TestY::z", "", "a b", "a\\nb", "\\x1b[31m\\x00", "c\\\\d/"],
    )
    def test_id(self, value):
        self.check(value)
"""
MORE = """
import os, unittest, pytest

@pytest.fixture
def breaks_later():
    yield
    raise RuntimeError("later")

def test_skips_then_breaks(breaks_later): pytest.skip("skipped first")

def test_expected_in_words(): pytest.xfail("said inside")

def test_property(record_property):
    record_property("loss", 0.25)
    record_property("pfad", "/data/ü<&>")

class TestOuter:
    class TestInner:
        @pytest.mark.filterwarnings("ignore")
        @pytest.mark.parametrize("n", [1, 2])
        def test_deep(self, n): assert n == 1

class TestCase(unittest.TestCase):
    def test_it(self): self.assertEqual(1, 2)
    @unittest.expectedFailure
    def test_expected(self): self.fail("known")
    @unittest.skip("by unittest")
    def test_skipped(self): pass

def test_long():
    print("a line of output, which is not short\\n" * 2000)
    raise ValueError("the cause" + " and more" * 400)

async def test_async(): pass
"""
LEAKS = """
import logging, os, sys, pytest

TOKEN, KEY, SPLIT = (os.environ[name] for name in ("SERVICE_TOKEN", "SIGNING_PRIVATE_KEY", "SPLIT_TOKEN"))

@pytest.mark.parametrize("value", [TOKEN, KEY])
def test_in_an_id(value): assert 0

def test_in_a_property(record_property):
    record_property("token", TOKEN)
    record_property("key", KEY)

def test_in_output():
    print(TOKEN)
    print(KEY, file=sys.stderr)
    logging.warning("with %s", TOKEN)
    assert 0

def test_in_a_traceback():
    value = TOKEN
    assert value == "x", f"{value} is not x, nor is {KEY}"

def test_in_a_skip(): pytest.skip(f"because of {TOKEN}")

def test_in_a_reason(): pytest.xfail(f"because of {TOKEN}")

def test_in_a_subtest(subtests):
    with subtests.test(TOKEN, key=TOKEN):
        assert 0
"""
SPLITS = """
import os

def test_where_output_is_cut():
    print("x" * 4989 + os.environ["SPLIT_TOKEN"] + "y" * 20_000)
    assert 0
"""
ABRIDGED = """
import os, pytest

@pytest.fixture
def key(): return os.environ["SIGNING_PRIVATE_KEY"]

def test_key(key): assert not key
"""
FILES = {
    **MIXED_FILES,
    "pytest.ini": "[pytest]\ndisable_test_id_escaping_and_forfeit_all_rights_to_community_support = true\n",
    "test_subtests.py": SUBTESTS,
    "test_aside.py": ASIDE,
    "test_broken.py": "import nowhere\n",
    "pkg/test_whole.py": "import pytest\npytest.skip('nothing of this here', allow_module_level=True)\n",
    "test_more.py": MORE,
    "test_ids.py": IDS,
    "test_crash.py": "import os\ndef test_before(): pass\ndef test_dies():\n  print('last words')\n  os._exit(3)\ndef test_after(): pass\n",
    "test_flaky.py": "import pytest\nruns = []\n@pytest.mark.flaky(reruns=2)\ndef test_flaky():\n  runs.append(1)\n  assert len(runs) > 2\n"
    "@pytest.mark.flaky(reruns=1)\ndef test_hopeless(): assert 0\n",
    "lib/__init__.py": "",
    "lib/test_same.py": "\n\ndef check(): assert 0\n",
    "test_same.py": "from lib.test_same import check\n\n\n\n\ndef test_same():\n  print(__file__)\n  check()\n",
    "test_leaks.py": LEAKS,
    "test_splits.py": SPLITS,
    "test_abridged.py": ABRIDGED,
}


@dataclass(frozen=True)
class Real:
    """What a real run left: its tree, its events, and pytest's own file with places in it."""

    project: Path
    events: tuple[Event, ...]
    theirs: ET.Element

    def tally(self, *, environ: Mapping[str, str] | None = None, prefix: str = "") -> Tally:
        return Tally(request(origin=str(self.project)), mask=masker(environ or {}), prefix=prefix)

    def report(
        self, *, environ: Mapping[str, str] | None = None, prefix: str = "", **end: Any
    ) -> Report:
        tally = self.tally(environ=environ, prefix=prefix)
        for event in self.events:
            tally.hear(event)
        return tally.report(suite="gpu-cluster", **{"exit_code": 1, "link": LINK, **end})

    def line(self, file: str, number: int) -> str:
        return (self.project / file).read_text().splitlines()[number - 1].strip()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Real:
    """One run of all of it; whoever reads it changes nothing."""
    home = tmp_path_factory.mktemp("real")
    args = (
        "--junitxml=junit.xml",
        "-o",
        "junit_family=xunit1",
        "--continue-on-collection-errors",
        "-p",
        "no:cacheprovider",
    )
    outcome = run(
        Scenario(files=FILES, args=args, env={**ENVIRON, "RIG_EVENTS": str(home / "events")}),
        home,
        replayed=True,
    )
    assert outcome.exitcode == 1, outcome.raw
    events = tuple(Event(**json.loads(line)) for line in (home / "events").read_text().splitlines())
    return Real(outcome.project, events, ET.parse(outcome.project / "junit.xml").getroot())


@pytest.fixture(scope="module")
def ours(real: Real, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our JUnit file of the run."""
    path = tmp_path_factory.mktemp("ours") / "gpu-cluster.xml"
    path.write_bytes(junit.write(real.report()))
    return path


@pytest.fixture(scope="module")
def lost(real: Real, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our JUnit file of the run, had its client been lost in the middle."""
    tally = real.tally()
    for event in real.events[: len(real.events) // 2]:
        tally.hear(event)
    path = tmp_path_factory.mktemp("lost") / "gpu-cluster.xml"
    path.write_bytes(junit.write(tally.report(suite="gpu-cluster", link=LINK)))
    return path


def request(**said: Any) -> dict[str, Any]:
    return {
        "session": "20260101-120000-abcd",
        "origin": "/home/me/project",
        "asked_at": EPOCH,
        "provider": "local",
        "args": ["-v"],
        **said,
    }


def cases_of(written: bytes) -> list[ET.Element]:
    return list(ET.fromstring(written).iter("testcase"))


def key_of(case: ET.Element) -> Key:
    return str(case.get("classname") or case.get("name")), str(case.get("name"))


def tag_of(case: ET.Element) -> str:
    return next((child.tag for child in case if child.tag in PROBLEMS), "passed")


def problem_of(case: ET.Element) -> ET.Element:
    return next(child for child in case if child.tag in PROBLEMS)


def in_theirs(real: Real) -> dict[Key, list[ET.Element]]:
    """The problems that pytest's file has for each test, in order: not the line that counts subtests, nor a skip beside an error."""
    found: dict[Key, list[ET.Element]] = {}
    for case in real.theirs.iter("testcase"):
        said = [
            child
            for child in case
            if child.tag in PROBLEMS and not child.get("message", "").startswith("contains ")
        ]
        found.setdefault(key_of(case), []).extend(said)
    return {
        key: [child for child in said if child.tag != "skipped"] or said
        for key, said in found.items()
        if "aside" not in key[0]
    }


def in_ours(real: Real, written: bytes) -> dict[Key, list[ET.Element]]:
    """The same of ours: a further problem of a test is a case after its own, whose name begins with the test's."""
    known, found, base = in_theirs(real), dict[Key, list[ET.Element]](), ("", "")
    for case in cases_of(written):
        key = key_of(case)
        if "aside" not in key[0]:
            base = key if key in known else base
            assert key == base or (key[0] == base[0] and key[1].startswith(f"{base[1]} ")), (
                f"{key} is no test of pytest's file"
            )
            found.setdefault(base, []).extend(child for child in case if child.tag in PROBLEMS)
    return found


# --- against pytest's own file ---------------------------------------------------------------------------------------


def test_each_test_ends_as_in_the_file_of_pytest(real: Real) -> None:
    """Two files of one run that disagree: nobody would know which to believe."""
    theirs, ours = in_theirs(real), in_ours(real, junit.write(real.report()))

    assert list(ours) == list(theirs)
    assert {key: [child.tag for child in said] for key, said in ours.items()} == {
        key: [child.tag for child in said] for key, said in theirs.items()
    }


def test_outcomes_are_what_the_terminal_counts(real: Real) -> None:
    """`failed` is a test's own word for its call, `error` for what is around it; a host counts them apart."""
    outcomes = {
        each.nodeid.partition("::")[2]: each.outcome
        for each in real.report().results
        if each.nodeid.startswith("test_mixed.py")
    }

    assert outcomes == {
        "test_passes": "passed",
        "test_fails": "failed",
        "test_setup_error": "error",
        "test_teardown_error": "error",
        "test_both": "failed",
        "test_skipped": "skipped",
        "test_skips_itself": "skipped",
        "test_xfails": "xfailed",
        "test_xpasses": "xpassed",
        "test_strict": "failed",
        "test_warns": "passed",
        "test_param[1]": "passed",
        "test_param[a::b/c@d]": "passed",
        "test_param[2.5]": "passed",
        "TestClass::test_method": "passed",
        "TestClass::test_bad": "failed",
    }


def test_a_skip_says_why_and_of_which_kind_it_is(real: Real) -> None:
    """A reader that shows an expected failure as a skip tells them apart by the type alone."""
    theirs = {
        key_of(case): problem_of(case)
        for case in real.theirs.iter("testcase")
        if tag_of(case) == "skipped"
    }
    ours = {
        key_of(case): problem_of(case)
        for case in cases_of(junit.write(real.report()))
        if tag_of(case) == "skipped"
    }
    wanted = {
        key: (child.get("type"), child.get("message"))
        for key, child in theirs.items()
        if key in ours and child.get("type")
    }

    assert {key: (ours[key].get("type"), ours[key].get("message")) for key in wanted} == wanted
    assert {kind for kind, _ in wanted.values()} == {"pytest.skip", "pytest.xfail"}
    assert ours["pkg.test_whole", "pkg.test_whole"].get("message") == "nothing of this here"
    assert ours["test_more", "test_expected_in_words"].get("message") == "said inside"


def test_what_a_test_printed_is_told_where_it_went_wrong_and_nowhere_else(real: Real) -> None:
    """A reader shows either the failure's text or the output; what good tests print would bury both."""
    results = {each.nodeid: each for each in real.report().results}
    cases = {key_of(case): case for case in cases_of(junit.write(real.report()))}
    failed = cases["test_mixed", "test_fails"]

    assert "Captured stderr call" in results["test_mixed.py::test_fails"].output
    assert "to stderr" in (problem_of(failed).text or "")
    assert "to stderr" in failed.findtext("system-out", "")
    assert results["test_mixed.py::test_passes"].output == ""
    assert cases["test_mixed", "test_passes"].find("system-out") is None
    assert "characters left out" in results["test_more.py::test_long"].output


def test_paths_of_the_cluster_are_those_of_this_machine(real: Real) -> None:
    """A traceback that names a directory of a node is one that nobody can open."""
    far = real.events[0]["root"]

    assert far in str([event.data for event in real.events[1:]])
    assert all(far not in text for _, text in texts_of(real.report()))
    output = next(
        each.output for each in real.report().results if each.nodeid == "test_same.py::test_same"
    )
    assert f"\n{real.project / 'test_same.py'}\n" in output


def test_the_causes_are_those_of_pytests_file(real: Real) -> None:
    """A reader who searches for a message finds it in both; ours keeps the first line, after which subtest or phase it was."""
    theirs, ours = in_theirs(real), in_ours(real, junit.write(real.report()))

    for key, said in theirs.items():
        for wanted, got in zip(said, ours[key], strict=True):
            first = wanted.get("message", "").partition("\n")[0]
            first = (
                first.removeprefix('failed on setup with "')
                .removeprefix('failed on teardown with "')
                .removesuffix('"')
            )
            if first not in ("collection failure", "collection skipped") and key[0] not in (
                "test_leaks",
                "test_abridged",
            ):
                assert first.removesuffix("...").strip()[:450] in got.get("message", ""), key


def test_the_counts_are_pytests_but_for_what_stands_twice_in_its_file(real: Real) -> None:
    """pytest counts the line that counts subtests, and a skip whose teardown fails; each case of ours is one of four things."""
    written = junit.write(without(real, "test_aside.py").report())
    suite, tags = ET.fromstring(written)[0], [tag_of(case) for case in cases_of(written)]
    theirs = [
        child
        for case in real.theirs.iter("testcase")
        if "aside" not in key_of(case)[0]
        for child in case
    ]
    counting = [child for child in theirs if child.get("message", "").startswith("contains ")]
    counted = {tag: sum(child.tag == tag for child in theirs) for tag in PROBLEMS}

    assert int(suite.get("tests", "")) == len(tags)
    assert (suite.get("failures"), suite.get("errors"), suite.get("skipped")) == tuple(
        str(tags.count(tag)) for tag in PROBLEMS
    )
    assert tags.count("failure") == counted["failure"] - len(counting)
    assert tags.count("error") == counted["error"]
    assert tags.count("skipped") == counted["skipped"] - 1, "test_skips_then_breaks"
    assert len(counting) == 3


def test_a_place_is_the_line_where_the_test_begins(real: Real) -> None:
    """A host marks this line in the diff; pytest counts from 0, and begins a test at its first decorator."""
    theirs = {key_of(case): case for case in real.theirs.iter("testcase")}

    for case in cases_of(junit.write(real.report())):
        wanted = theirs.get(key_of(case))
        if wanted is None or wanted.get("line") is None:
            continue  # a second problem of a test, or a file that was not collected
        line = int(case.get("line", ""))
        name = key_of(case)[1].partition("[")[0]
        source = (real.line(case.get("file", ""), number) for number in range(line, line + 6))
        beginning = next(
            text
            for text in source
            if text.startswith(("def ", "async def ")) or not text.startswith(("@", '"', "[", ")"))
        )

        assert case.get("file") == wanted.get("file")
        assert line == int(wanted.get("line", "")) + 1
        assert beginning.removeprefix("async ").startswith(f"def {name}(")


def test_paths_begin_where_the_repository_does(real: Real) -> None:
    """In a monorepo a host looks for a file from the repository's root, not from the directory that pytest runs in."""
    plain, prefixed = (
        cases_of(junit.write(real.report())),
        cases_of(junit.write(real.report(prefix="services/ml"))),
    )

    assert [case.get("file") for case in prefixed] == [
        f"services/ml/{case.get('file')}" for case in plain
    ]
    assert [(key_of(case), case.get("line"), tag_of(case)) for case in prefixed] == [
        (key_of(case), case.get("line"), tag_of(case)) for case in plain
    ]


def test_a_path_outside_the_repository_is_none() -> None:
    """`../shared/test_x.py` is in no diff, and the schema has no such path; below a prefix it may be inside after all."""
    items = [item("../shared/test_x.py::test_x"), item("/opt/tests/test_y.py::test_y")]
    events = [
        Event("collected", {"items": items}),
        *(finished(index, each["nodeid"]) for index, each in enumerate(items)),
    ]

    assert [result.file for result in told(events, exit_code=0).results] == ["", ""]
    assert [result.file for result in told(events, prefix="services/ml", exit_code=0).results] == [
        "services/shared/test_x.py",
        "",
    ]


def test_a_directory_that_cannot_be_collected_has_a_file_that_readers_take(real: Real) -> None:
    """pytest calls the root directory `.`, which is neither a file nor a class; Buildkite refuses a file with an empty name in it."""
    for nodeid in (".", ""):
        report: dict[str, Any] = {
            "nodeid": nodeid,
            "outcome": "failed",
            "longrepr": "RuntimeError: a hook failed",
            "sections": [],
        }
        made = told([Event("collectreport", {"report": report})], exit_code=2)

        assert valid(junit.write(made)) == []
        assert [tag_of(case) for case in cases_of(junit.write(made))] == ["error"]


def test_the_line_of_a_problem_is_the_one_that_failed(real: Real) -> None:
    """An annotation at the `def` of a long test says less than one at its assertion."""
    lines = {
        result.nodeid: (result.file, result.problems[0].line)
        for result in real.report().results
        if result.problems
    }

    assert real.line(*lines["test_mixed.py::test_fails"]) == 'assert {"a": [1, 2]} == {"a": [1, 3]}'
    assert real.line(*lines["sub/test_other.py::test_two"]) == "def test_two(): assert 1 == 2"


def test_a_problem_in_another_file_has_no_line_in_the_tests_own(real: Real) -> None:
    """lib/test_same.py ends in the name of test_same.py; an annotation there would point at an innocent line."""
    result = next(
        result for result in real.report().results if result.nodeid == "test_same.py::test_same"
    )

    assert [problem.line for problem in result.problems] == [0]


def test_a_crash_a_rerun_and_properties_are_told(real: Real) -> None:
    """A dead process is told from a failed assertion, and a pass at the third try from one at the first."""
    results = {result.nodeid: result for result in real.report().results}
    cases = {key_of(case): case for case in cases_of(junit.write(real.report()))}

    assert [problem.failure_class for problem in results["test_crash.py::test_dies"].problems] == [
        "crash"
    ]
    assert problem_of(cases["test_crash", "test_dies"]).get("type") == "crash"
    assert (
        results["test_flaky.py::test_flaky"].outcome,
        results["test_flaky.py::test_flaky"].reruns,
    ) == ("passed", 2)
    assert (
        results["test_flaky.py::test_hopeless"].outcome,
        results["test_flaky.py::test_hopeless"].reruns,
    ) == ("failed", 1)
    assert results["test_more.py::test_property"].properties == (
        ("loss", "0.25"),
        ("pfad", "/data/ü<&>"),
    )
    assert [each.attrib for each in cases["test_more", "test_property"].iter("property")] == [
        {"name": "loss", "value": "0.25"},
        {"name": "pfad", "value": "/data/ü<&>"},
    ]


def test_subtests_that_are_skipped_or_expected_to_fail_do_not_decide_their_test(real: Real) -> None:
    """pytest counts both tests as passed; a test that is `xfailed` because one part of it is would hide the rest."""
    outcomes = {result.nodeid: result.outcome for result in real.report().results}

    assert outcomes["test_aside.py::test_skips_one"] == "passed"
    assert outcomes["test_aside.py::test_expects_one"] == "passed"


def test_a_failure_that_speaks_like_the_count_of_subtests_is_not_lost(real: Real) -> None:
    """`contains 2 failed subtests` repeats what is told already; a test's own words do not."""
    result = next(
        result
        for result in real.report().results
        if result.nodeid == "test_aside.py::test_fails_itself"
    )

    assert [problem.message for problem in result.problems] == [
        "[m]: assert 0",
        "Failed: contains multitudes",
    ]


def test_a_usage_error_is_told_by_the_line_that_says_most() -> None:
    """Its last line is where the root directory is, or which modules were looked at; the headline is all that a status shows."""
    unknown = "ERROR: usage: pytest [options]\npytest: error: unrecognized arguments: --no-such\n  inifile: None\n  rootdir: /work\n\n"
    missing = (
        "ERROR: not found: /work/test_a.py::test_b\n(no match in any of [<Module test_a.py>])\n\n"
    )
    end = Event("session_finished", {"exitstatus": 4})

    assert "--no-such" in render.headline(
        told([Event("usage_error", {"text": unknown}), end], exit_code=4)
    )
    assert "test_a.py::test_b" in render.headline(
        told([Event("usage_error", {"text": missing}), end], exit_code=4)
    )


def test_a_problem_after_the_tests_end_belongs_to_the_test() -> None:
    """A module's fixture that breaks at its end does so when another test may already run."""
    late = {
        "when": "teardown",
        "outcome": "failed",
        "longrepr": "E   ValueError: late",
        "sections": [],
        "duration": 0.5,
        "nodeid": "t.py::a",
    }
    events = [
        *session("t.py::a", "t.py::b")[:-1],
        Event("late", {"nodeid": "t.py::a", "records": [{"kind": "report", "report": late}]}),
    ]
    cases = cases_of(junit.write(told(events, exit_code=1)))

    assert [(key_of(case)[1], tag_of(case)) for case in cases] == [("a", "error"), ("b", "passed")]
    assert problem_of(cases[0]).get("message") == "failed on teardown: ValueError: late"


def test_a_selection_that_starts_again_is_told_once() -> None:
    """The process that imports the tests may die of one of them: what it had reported is reported again."""
    broken = {
        "nodeid": "t.py",
        "outcome": "failed",
        "longrepr": "E   ImportError: no",
        "sections": [],
    }
    dropped = Event("deselected", {"nodeids": ["u.py::a"]})
    report = told(
        [
            Event("collectreport", {"report": broken}),
            dropped,
            Event("selection_restarted", {"path": "t.py"}),
            dropped,
            collected("u.py::b"),
            finished(0, "u.py::b"),
        ],
        exit_code=0,
    )

    assert [each.nodeid for each in report.results] == ["u.py::b"]
    assert report.deselected == 1


def test_a_tests_first_result_is_its_result() -> None:
    """A test that was given to another machine may end twice; the journal's first word stands, as it did in the terminal."""
    events = [
        collected("t.py::a"),
        finished(0, "t.py::a", "failed"),
        finished(0, "t.py::a"),
        finished(7, "t.py::unknown"),
    ]

    assert [(each.nodeid, each.outcome) for each in told(events, exit_code=1).results] == [
        ("t.py::a", "failed")
    ]


def test_the_agent_has_the_last_word_on_the_end() -> None:
    """The keeper writes an end too, when it finds the agent gone."""
    keeper = Event(
        "session_finished", {"exitstatus": None, "failure_class": "infrastructure"}, writer="keeper"
    )
    agent = Event("session_finished", {"exitstatus": 0, "failure_class": None}, writer="agent")
    tests = session("t.py::a")[:-1]

    assert told([*tests, keeper, agent]).verdict == "passed"
    assert told([*tests, agent, keeper]).verdict == "passed"
    assert told([*tests, keeper]).verdict == "infrastructure"


@pytest.mark.parametrize(
    ("exit_code", "verdict"),
    [
        (0, "passed"),
        (1, "failed"),
        (2, "failed"),
        (3, "failed"),
        (4, "request"),
        (5, "failed"),
        (6, "failed"),
        (10, "infrastructure"),
        (11, "environment"),
        (12, "capacity"),
        (13, "limit"),
        (14, "teardown"),
        (99, "failed"),
    ],
)
def test_the_verdict_follows_the_exit_code(exit_code: int, verdict: str) -> None:
    """One number decides in the step, one word in the comment: they have to agree."""
    assert told(session("t.py::a", exitstatus=0), exit_code=exit_code).verdict == verdict
    assert (
        told(session("t.py::a", exitstatus=0), exit_code=exit_code, cancelled=True).verdict
        == "cancelled"
    )


def test_a_session_that_ctrl_c_ended_was_cancelled_and_one_that_stopped_itself_was_not() -> None:
    """`pytest.exit` is a decision of the tests; a KeyboardInterrupt is somebody's finger."""
    for said, verdict in (
        ({"exit": True}, "failed"),
        ({"shouldfail": "stopping after 1 failures"}, "failed"),
        ({}, "cancelled"),
    ):
        events = [collected("t.py::a"), Event("interrupted", {"text": "bye", **said})]

        assert told(events, exit_code=2).verdict == verdict


# --- the readers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_no_reader_loses_a_case_or_a_message(reader: Any, real: Real, ours: Path) -> None:
    """Each shows what it calls the message, some the text too: a cause in neither is a cause that nobody sees."""
    cases = cases_of(ours.read_bytes())
    shown: list[Case] = reader(ours)
    problems = [problem for result in real.report().results for problem in result.problems]

    assert [(case.classname, case.name) for case in shown] == [key_of(case) for case in cases]
    assert [case.outcome in ("failed", "error") for case in shown] == [
        tag_of(case) in ("failure", "error") for case in cases
    ]
    assert [case.outcome == "skipped" for case in shown] == [
        tag_of(case) == "skipped" for case in cases
    ]
    for problem in problems:
        assert any(visible(problem.message[:300]) in case.message + case.text for case in shown), (
            problem.message
        )


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_what_the_machines_did_is_red_in_each_reader_and_nowhere_a_failure(
    reader: Any, lost: Path
) -> None:
    """Most readers show an error as they show a failure; none may show it as a skip, which looks green, or not at all."""
    root = ET.parse(lost).getroot()
    infrastructure = [
        case for case in root.iter("testcase") if "InfrastructureError" in problem_type(case)
    ]
    shown = {(case.classname, case.name): case for case in reader(lost)}

    assert len(infrastructure) > 10
    assert {tag_of(case) for case in infrastructure} == {"error"}
    assert all(problem_type(case).endswith("InfrastructureError") for case in infrastructure)
    assert root.findall("testsuite/error") == []
    assert root.findall("testsuite/failure") == []
    assert {shown[key_of(case)].outcome for case in infrastructure} <= {"failed", "error"}
    assert "<init>" not in {case.name for case in shown.values()}


def test_a_host_that_keeps_2000_characters_keeps_the_link_and_the_cause(
    real: Real, ours: Path, lost: Path
) -> None:
    """Bitbucket cuts each field; what it cuts away should be the end of a long output."""
    for path in (ours, lost):
        bad = [case for case in bitbucket(path) if case.outcome == "failed"]

        assert len(bad) > 10
        for case in bad:
            assert LINK in case.text
            assert case.message[:300] in case.text
    texts = [
        problem_of(case).text or ""
        for case in cases_of(ours.read_bytes())
        if tag_of(case) == "failure"
    ]
    assert any(len(text) > BITBUCKET_FIELD for text in texts), "nothing was long enough to be cut"


def test_gitlab_drops_no_case_and_nothing_looks_like_a_retry(ours: Path) -> None:
    """GitLab keeps the first of two cases of one name, mikepenz calls them retries: pytest's own file has such pairs."""
    cases = cases_of(ours.read_bytes())

    assert len(gitlab(ours)) == len(cases)
    assert {case.retries for case in mikepenz(ours)} == {0}
    assert len(jenkins(ours)) == len(cases)


def test_the_file_is_what_its_schemas_say(real: Real, ours: Path, tmp_path: Path) -> None:
    """By default with places and properties; `junit-strict` for readers that refuse what xunit2 does not have."""
    strict = tmp_path / "strict.xml"
    strict.write_bytes(junit.write(real.report(), strict=True))

    assert schema_errors(ours) == []
    assert schema_errors(strict, "xunit2") == []
    assert schema_errors(strict) == []
    assert schema_errors(ours, "xunit2") != []
    assert {name for case in cases_of(strict.read_bytes()) for name in case.attrib} == {
        "classname",
        "name",
        "time",
    }
    assert [(key_of(case), tag_of(case)) for case in cases_of(strict.read_bytes())] == [
        (key_of(case), tag_of(case)) for case in cases_of(ours.read_bytes())
    ]


def test_junitparser_reads_and_writes_the_same_file(ours: Path, tmp_path: Path) -> None:
    """Many tools merge and rewrite JUnit with it; what it did not understand would be gone afterwards."""
    read = junitparser.JUnitXml.fromfile(str(ours))
    suite = next(iter(read))
    said = (suite.tests, suite.failures, suite.errors, suite.skipped)
    suite.update_statistics()  # type: ignore[no-untyped-call]  # the library has no types here
    read.write(str(tmp_path / "again.xml"))

    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == said
    assert attributes(tmp_path / "again.xml") == attributes(ours)


def attributes(path: Path) -> list[tuple[str, dict[str, str], str]]:
    """Each element of a file, but for the time of a suite, which is a sum."""
    found = ET.parse(path).getroot().iter()
    return [
        (
            each.tag,
            {k: v for k, v in each.attrib.items() if (each.tag, k) != ("testsuite", "time")},
            (each.text or "").strip(),
        )
        for each in found
    ]


def problem_type(case: ET.Element) -> str:
    return next((child.get("type", "") for child in case if child.tag in PROBLEMS), "")


def visible(text: str) -> str:
    """As XML can hold it."""
    return "".join(
        f"#x{ord(char):02X}" if ord(char) < 0x20 and char not in "\t\n\r" else char for char in text
    )


def valid(written: bytes, kind: str = "enriched") -> list[str]:
    return [
        f"{error.path}: {error.reason}"
        for error in SCHEMAS[kind].iter_errors(ET.fromstring(written))
    ]


SCHEMAS = {kind: xmlschema.XMLSchema(XSD / f"{kind}.xsd") for kind in ("enriched", "xunit2")}


# --- sessions that did not end as they should -------------------------------------------------------------------------


def test_a_session_cut_anywhere_keeps_what_had_finished_and_blames_the_machines_for_the_rest(
    real: Real,
) -> None:
    """A client dies at any time; what the store has by then is what its report can say, no more and no less."""
    whole = groups(junit.write(real.report()))
    tally, done, collected = real.tally(), set[Key](), False

    for event in real.events[:-1]:
        tally.hear(event)
        collected = collected or event.kind == "collected"
        done |= {address(event)} - {("", "")}
        report = tally.report(suite="gpu-cluster", link=LINK)
        written = junit.write(report)
        cases = cases_of(written)

        own = any(
            problem.failure_class not in NOT_TESTS
            for each in report.results
            for problem in each.problems
        )
        assert report.verdict == ("failed" if own else "infrastructure")
        assert {"failure", "error"} & {tag_of(case) for case in cases}
        assert valid(written) == []
        if not done:
            assert [problem_type(case) for case in cases if tag_of(case) != "error"] == []
            continue
        found = groups(written)
        assert {key: texts for key, texts in found.items() if key in done} == {
            key: whole[key] for key in done
        }
        rest = [case for case in cases if key_of(case) in whole and key_of(case) not in done]
        assert {problem_type(case) for case in rest} <= {"gpu_cluster.InfrastructureError"}
        assert collected is False or {key_of(case) for case in rest} == whole.keys() - done


def groups(written: bytes) -> dict[Key, list[str]]:
    """Each test's cases as they stand in a file: its own, then those of its further problems, which are told by their time."""
    found: dict[Key, list[str]] = {}
    base = ("", "")
    for case in cases_of(written):
        beside = (
            base[1]
            and key_of(case)[0] == base[0]
            and key_of(case)[1].startswith((f"{base[1]} (", f"{base[1]} ["))
        )
        base = base if beside else key_of(case)
        found.setdefault(base, []).append(ET.tostring(case, encoding="unicode").strip())
    return found


def address(event: Event) -> Key:
    """The test, or the file that was not collected, that an event says the end of; empty where it says none."""
    if event.kind == "collectreport" and event["report"]["outcome"] in ("failed", "skipped"):
        name = event["report"]["nodeid"].removesuffix(".py").replace("/", ".")
        return name, name
    if event.kind != "test_finished":
        return "", ""
    path, _, rest = str(event["nodeid"]).partition("::")
    head, bracket, params = rest.partition("[")
    above, _, name = f"{path.removesuffix('.py').replace('/', '.')}::{head}".rpartition("::")
    return visible(above.replace("::", ".")), visible(name + bracket + params)


def test_only_the_end_makes_a_lost_session_a_pass() -> None:
    """All tests passed, and then? pytest may have failed at its end: silence is not success."""
    events = session("t.py::a", "t.py::b", exitstatus=0)

    verdicts = [told(events[:end]).verdict for end in range(len(events) + 1)]

    assert verdicts == ["infrastructure"] * len(events) + ["passed"]


def test_an_end_with_0_is_no_pass_while_tests_have_no_result() -> None:
    """`pytest.exit()` without a reason ends the selecting process with 0, and nobody was there to see the tests that did not run."""
    stopped = Event("interrupted", {"exit": True, "text": "", "returncode": None, "longrepr": None})
    events = session("t.py::a", "t.py::b", exitstatus=0)
    without = [
        event for event in events if not (event.kind == "test_finished" and event["index"] == 1)
    ]

    assert told(without).verdict != "passed"
    assert told([*without[:-1], stopped, without[-1]]).verdict != "passed"


def test_a_session_that_was_stopped_because_its_client_was_lost_is_not_the_tests_failure() -> None:
    """Whoever finds the client silent asks the agent to stop: pytest then ends with 2, and what had not run was never the tests' fault."""
    events = session(
        "t.py::a",
        "t.py::b",
        exitstatus=2,
        shouldfail=False,
        shouldstop=False,
        message="the client was lost",
    )
    report = told(
        [event for event in events if not (event.kind == "test_finished" and event["index"] == 1)]
    )

    assert report.verdict == "infrastructure"
    assert [(key_of(case)[1], problem_type(case)) for case in cases_of(junit.write(report))] == [
        ("a", ""),
        ("b", "gpu_cluster.InfrastructureError"),
    ]


@pytest.mark.parametrize("exitstatus", [None, 1, 2])
@pytest.mark.parametrize("class_", ["limit", "infrastructure"])
def test_a_lost_session_ends_by_what_its_agent_said(class_: str, exitstatus: int | None) -> None:
    """The agent knew that the limit was reached; that nobody listened does not make it another reason, let alone the tests' failure."""
    events = session(
        "t.py::a",
        "t.py::b",
        exitstatus=exitstatus,
        failure_class=class_,
        message="45 minutes were reached",
    )
    report = told(
        [event for event in events if not (event.kind == "test_finished" and event["index"] == 1)]
    )

    assert report.verdict == class_
    assert [problem_type(case) for case in cases_of(junit.write(report))] == [
        "",
        junit.error_type(class_),
    ]


def test_a_stop_at_the_first_failure_leaves_the_others_out_also_when_the_client_was_lost() -> None:
    """`-x` was what the user wanted: nobody failed to run the rest."""
    events = [
        collected("t.py::a", "t.py::b"),
        finished(0, "t.py::a", "failed"),
        Event(
            "session_finished",
            {"exitstatus": 1, "shouldfail": "stopping after 1 failures", "failure_class": None},
        ),
    ]
    report = told(events)

    assert report.verdict == "failed"
    assert [key_of(case)[1] for case in cases_of(junit.write(report))] == ["a"]


def test_a_report_of_a_running_session_is_one_error(real: Real) -> None:
    """The file lies there from the first second on: should nothing follow, a step that reads it must not be green."""
    tally = real.tally()
    for event in real.events[: len(real.events) // 2]:
        tally.hear(event)
    written = junit.write(tally.report(suite="gpu-cluster", verdict="running", link=LINK))
    (case,) = cases_of(written)

    assert (key_of(case), tag_of(case), problem_type(case)) == (
        ("gpu-cluster", "session"),
        "error",
        "gpu_cluster.InfrastructureError",
    )
    assert "gpu-cluster report 20260101-120000-abcd" in (problem_of(case).text or "")
    assert valid(written) == []


TYPES = {
    "infrastructure": "gpu_cluster.InfrastructureError",
    "environment": "gpu_cluster.EnvironmentError",
    "capacity": "gpu_cluster.CapacityError",
    "limit": "gpu_cluster.LimitError",
    "teardown": "gpu_cluster.TeardownError",
    "request": "gpu_cluster.RequestError",
}
MESSAGES = [
    "",
    " ",
    "\n",
    "EC2 refused 1 x g6.xlarge",
    "first line\nsecond line",
    "\x00\x1b[31m",
    "\ud800",
    "x" * 5_000,
    "<b>&]]>",
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda text: ascii(text[:20]))
@pytest.mark.parametrize("verdict", TYPES)
@pytest.mark.parametrize("strict", [False, True], ids=["enriched", "strict"])
def test_a_session_without_a_result_is_one_error_that_says_why(
    verdict: str, message: str, strict: bool
) -> None:
    """The library that writes this file makes a pass of an error without a message."""
    written = junit.write(
        Report(
            session="s-1", suite="nightly", verdict=verdict, message=message, remedy="try again"
        ),
        strict=strict,
    )
    (case,) = cases_of(written)

    assert (key_of(case), tag_of(case), problem_type(case)) == (
        ("gpu-cluster", "session"),
        "error",
        TYPES[verdict],
    )
    assert problem_of(case).get("message")
    assert "remedy: try again" in (problem_of(case).text or "")
    assert valid(written, "xunit2" if strict else "enriched") == []


@pytest.mark.parametrize(
    "message",
    ["no tests were collected", "RuntimeError: a hook of the user broke", ""],
    ids=["none collected", "internal error", "nothing"],
)
@pytest.mark.parametrize("verdict", ["failed", "cancelled"])
def test_a_session_that_ended_by_itself_without_a_result_does_not_blame_the_machines(
    verdict: str, message: str
) -> None:
    """A filter on InfrastructureError re-runs the step; an empty selection would be re-run for ever."""
    (case,) = cases_of(
        junit.write(Report(session="s-1", suite="nightly", verdict=verdict, message=message))
    )

    assert tag_of(case) == "error"
    assert problem_type(case) not in {junit.error_type(class_) for class_ in NOT_TESTS}


VERDICTS = ("failed", "cancelled", "request", *NOT_TESTS)


@pytest.mark.parametrize(
    "outcomes",
    [(), ("passed",), ("passed", "skipped", "xfailed", "xpassed")],
    ids=["none", "one", "all kinds"],
)
@pytest.mark.parametrize("verdict", [*VERDICTS, "running", "passed"])
def test_only_a_pass_looks_like_one(verdict: str, outcomes: tuple[Any, ...]) -> None:
    """The hosts decide by this file alone whether a step is green: `pytest --max-warnings` fails without a failing test."""
    results = tuple(result(f"t.py::{outcome}", outcome) for outcome in outcomes)
    report = Report(
        session="s-1", suite="gpu-cluster", verdict=verdict, results=results, collected=len(results)
    )

    for strict in (False, True):
        tags = [tag_of(case) for case in cases_of(junit.write(report, strict=strict))]
        assert tags.count("failure") + tags.count("error") == (0 if verdict == "passed" else 1)


# --- events by hand ---------------------------------------------------------------------------------------------------


def told(
    events: Sequence[Event],
    *,
    environ: Mapping[str, str] | None = None,
    prefix: str = "",
    **end: Any,
) -> Report:
    tally = Tally(request(), mask=masker(environ or {}), prefix=prefix)
    for event in events:
        tally.hear(event)
    return tally.report(suite="gpu-cluster", **end)


def item(nodeid: str, line: int = 0) -> dict[str, Any]:
    path, _, name = nodeid.partition("::")
    return {"nodeid": nodeid, "name": name, "location": [path, line, name]}


def collected(*nodeids: str) -> Event:
    return Event(
        "collected", {"items": [item(nodeid, line) for line, nodeid in enumerate(nodeids)]}, t=EPOCH
    )


def finished(index: int, nodeid: str, outcome: str = "passed", **said: Any) -> Event:
    """A test that passed, or that was found dead in its call."""
    if outcome == "failed":
        records = crash_records(
            nodeid,
            (nodeid.partition("::")[0], index, nodeid),
            when="call",
            text=said.pop("text", "crash: SIGSEGV"),
        )
    else:
        report: dict[str, Any] = {
            "outcome": "passed",
            "longrepr": None,
            "sections": [],
            "duration": 0.1,
        }
        records = [
            {"kind": "report", "report": {**report, "when": when}}
            for when in ("setup", "call", "teardown")
        ]
    return Event(
        "test_finished",
        {"nodeid": nodeid, "index": index, "records": records, **said},
        t=EPOCH + index + 1,
    )


def session(*nodeids: str, **end: Any) -> list[Event]:
    """All tests pass, then the session ends with this."""
    return [
        collected(*nodeids),
        *(finished(*each) for each in enumerate(nodeids)),
        Event("session_finished", {"failure_class": None, **end}),
    ]


# --- secrets ----------------------------------------------------------------------------------------------------------


def texts_of(report: Report) -> Iterator[tuple[str, str]]:
    """Everything that leaves this machine, as its readers read it."""
    for strict in (False, True):
        root = ET.fromstring(junit.write(report, strict=strict))
        yield (
            "junit",
            "\n".join(
                text for each in root.iter() for text in (*each.attrib.values(), each.text or "")
            ),
        )
    yield "json", json.dumps(render.as_json(report), ensure_ascii=False)
    yield "json", render.json_text(report)
    yield "markdown", render.markdown(report, limit=10_000_000)
    yield "headline", render.headline(report)
    yield "baseline", str(dataclasses.asdict(report))


def without(real: Real, *files: str) -> Real:
    """The run without what these files' tests said."""
    kept = [
        event
        for event in real.events
        if not (event.kind == "test_finished" and event["nodeid"].partition("::")[0] in files)
    ]
    return dataclasses.replace(real, events=tuple(kept))


def pieces(secret: str, size: int = 16) -> set[str]:
    return {secret[at : at + size] for at in range(len(secret) - size + 1)}


def test_a_run_that_prints_its_secrets_everywhere_tells_none(real: Real) -> None:
    """A comment on a pull request is read by more people than the pipeline's variables."""
    told = without(real, "test_splits.py", "test_abridged.py")
    report = told.report(
        environ=ENVIRON, message=f"could not log in with {TOKEN}", remedy=f"not with {PEM}"
    )
    heard = str([event.data for event in real.events])

    for kind, text in texts_of(report):
        assert TOKEN not in text, kind
        assert not [line for line in PEM_LINES if len(line) >= 16 and line in text], kind
    assert TOKEN in heard, "nothing leaked that could be masked"
    assert PEM_LINES[3] in heard
    assert len({each.nodeid for each in report.results if "test_in_" in each.nodeid}) == 8


def test_masking_leaves_a_valid_file_with_every_case_in_it(real: Real) -> None:
    """Two ids that differ in a secret are equal after it: each of the two tests is still one case."""
    plain, masked = junit.write(real.report()), junit.write(real.report(environ=ENVIRON))

    assert valid(masked) == []
    assert len(cases_of(masked)) == len(cases_of(plain))
    assert len({key_of(case) for case in cases_of(masked)}) == len(cases_of(plain))


def test_a_secret_at_the_place_where_an_output_is_cut_is_masked(real: Real) -> None:
    """The middle of a long output is left out; half of a token beside the gap no longer looks like one."""
    for kind, text in texts_of(real.report(environ=ENVIRON)):
        assert SPLIT[:8] not in text, kind
        assert SPLIT[-8:] not in text, kind


def test_a_key_that_pytest_has_abridged_is_masked(real: Real) -> None:
    """pytest shows the beginning and the end of a long value: lines of the key that are no longer whole lines."""
    shown = next(
        result
        for result in real.report(environ=ENVIRON).results
        if result.nodeid == "test_abridged.py::test_key"
    )
    text = "".join(problem.message + problem.text for problem in shown.problems)

    assert not [piece for piece in pieces(BODY) if piece in text]


def test_a_secret_that_begins_with_another_is_masked_as_a_whole() -> None:
    """A user's password and the same with a suffix: the rest of the longer one would be left beside three stars."""
    assert (
        masker({"A_TOKEN": "abcdefgh", "B_TOKEN": "abcdefgh-1234"})("it is abcdefgh-1234")
        == "it is ***"
    )


@pytest.mark.parametrize(
    "shown",
    [repr, json.dumps, ascii, lambda value: value.encode("unicode_escape").decode()],
    ids=["repr", "json", "ascii", "id"],
)
@pytest.mark.parametrize(
    "value",
    ["pass'wörd\"9-z", "back\\slash\\9-z", "tab\tand more-9"],
    ids=["quotes", "backslashes", "a tab"],
)
def test_a_secret_is_masked_also_as_pytest_writes_it(value: str, shown: Any) -> None:
    """In an assertion it stands as its repr, in a parametrised id with escapes, in a dumped request as JSON."""
    written = shown(value).strip("'\"")

    assert written not in masker({"DB_PASSWORD": value})(f"before {shown(value)} after")


@pytest.mark.parametrize(
    "token",
    [
        "gh" + "p_" + "a1B2" * 9,
        "gh" + "s_" + "c3D4" * 9,
        "github_" + "pat_" + "11ABCDEFG0" * 6,
        "glp" + "at-" + "x7Yz_" * 5,
        "xo" + "xb-123456789012-" + "aBcD" * 6,
        "h" + "f_" + "Ab" * 17,
        "ATB" + "B" + "x7Yz9" * 6,
        "ATA" + "TT3xFfGF0" + "x7Yz9" * 6,
        "ATC" + "TT3xFfGN0" + "x7Yz9" * 6,
        "AKI" + "AQ3EGRT7XKJ2M5N4P",
        PEM,
        PEM[: len(PEM) // 2],
    ],
    ids=[
        "github",
        "github app",
        "github fine",
        "gitlab",
        "slack",
        "hugging face",
        "bitbucket",
        "atlassian",
        "workspace",
        "aws",
        "pem",
        "half a pem",
    ],
)
def test_the_known_forms_of_tokens_are_masked_without_being_in_the_environment(token: str) -> None:
    """A test reads its token from a file, or from a vault: this side has never seen it."""
    masked = masker({})(f"logged in with {token}")

    assert masked.startswith("logged in with ***")
    assert not [piece for piece in pieces(token) if piece in masked]


@pytest.mark.parametrize("kind", ["", "RSA ", "OPENSSH "])
@pytest.mark.parametrize("known", ["", "RSA ", "OPENSSH "])
def test_a_key_is_masked_also_beside_one_that_the_environment_has(known: str, kind: str) -> None:
    """Both have the same first and last line: what takes out the one known must not take the marks off the other."""
    environ = {"SIGNING_PRIVATE_KEY": PEM.replace("PRIVATE KEY", f"{known}PRIVATE KEY")}
    lines = [ANOTHER[at : at + 64] for at in range(0, len(ANOTHER), 64)]
    key = "\n".join(
        [f"-----BEGIN {kind}{'PRIVATE'} KEY-----", *lines, f"-----END {kind}{'PRIVATE'} KEY-----"]
    )
    masked = masker(environ)(f"before {key} after")

    assert not [piece for piece in pieces(ANOTHER) if piece in masked]
    assert masked.startswith("before ")
    assert masked.endswith(" after")


def test_a_key_that_the_agent_saw_line_by_line_is_masked_as_a_whole(real: Real) -> None:
    """A traceback travels in lines, and the agent takes out what it knows of each: a key that it does not know must keep its marks."""
    mask = masker({"SERVICE_TOKEN": TOKEN})
    events = tuple(
        dataclasses.replace(event, data=map_strings(dict(event.data), mask))
        for event in real.events
    )
    seen = without(dataclasses.replace(real, events=events), "test_splits.py")

    for kind, text in texts_of(seen.report()):
        assert not [line for line in PEM_LINES if line in text], kind


@pytest.mark.parametrize(
    "value",
    [
        "AKIAQ3EGRT7XKJ2M5N4P:pw9-Zk",
        "id=7;amqp://a:bcd9@c-9-Zk",
        "Bearer q7Zk2very3secret4and5long",
    ],
)
def test_a_secret_that_holds_a_known_form_is_masked_as_a_whole(value: str) -> None:
    """Two halves of a secret are known by different marks; the one must not hide the other."""
    assert masker({"REGISTRY_PASSWORD": value})(f"before {value} after") == "before *** after"


@pytest.mark.parametrize(
    "name",
    [
        "GITHUB_TOKEN",
        "githubToken",
        "TOKEN_2",
        "DB_PASSWORD2",
        "SECRET1",
        "API_KEYS",
        "APIKEY",
        "SECRETKEY",
        "PGPASSWORD",
        "MYSQL_PWD",
        "AWS_SECRET_ACCESS_KEY",
        "AZURE_STORAGE_KEY",
        "AZURE_STORAGE_SAS_TOKEN",
        "SENTRY_DSN",
        "HTTP_AUTH",
        "CI_JOB_TOKEN",
        "NPM_AUTHTOKEN",
    ],
)
def test_a_variable_is_known_for_a_secret_by_its_name(name: str) -> None:
    """People number them, and write them together."""
    assert masker({name: "q7!Zk-very-se"})("it is q7!Zk-very-se") == "it is ***"


@pytest.mark.parametrize(
    ("url", "secret"),
    [
        ("https://bot:s3cr3t-pw@git.example.com/x.git", "s3cr3t-pw"),
        ("postgres://app:s3cr3t-pw@db.example.com:5432/app", "s3cr3t-pw"),
        ("https://s3cr3t0123456789@o1.ingest.sentry.example/42", "s3cr3t0123456789"),
        ("https://acct.blob.core.windows.net/c?sv=2024-11-04&sig=s3cr3t%2Fpw%3D", "s3cr3t%2Fpw%3D"),
    ],
    ids=["password", "dsn", "user alone", "signature"],
)
def test_an_url_with_credentials_is_masked(url: str, secret: str) -> None:
    """In a variable with a telling name, an URL is left alone only as far as it opens nothing."""
    masked = masker({"SERVICE_DSN": url})(f"connected to {url} at last")

    assert secret not in masked


@pytest.mark.parametrize(
    "value",
    ["/Zk3xE8wLr5Tn2Yc6Gd9Hk4Mp7Qs1Uz0Jb3xE8wL", "/" + BODY[:87]],
    ids=["40 characters", "88 characters"],
)
def test_a_key_that_begins_with_a_slash_is_no_path(value: str) -> None:
    """One in 64 keys of AWS and of Azure storage does: base64 has the slash."""
    assert value not in masker({"AWS_SECRET_ACCESS_KEY": value})(f"with {value}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BITBUCKET_REPO_IS_PRIVATE", "true"),
        ("MAX_TOKENS", "4096"),
        ("RETRY_TOKEN", "aaaaaaaaaaaa"),
        ("DB_PASSWORD", "hunter2"),
        ("SSH_AUTH_SOCK", "/tmp/ssh-agent.sock"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/home/me/keys/service.json"),
        ("TOKEN_URL", "https://auth.example.com/oauth/token"),
        ("STATE_KEY", "s3://bucket/state"),
        ("HOME", "/home/somebody"),
        ("TOKENIZER", "bert-base-uncased"),
        ("GIT_AUTHOR_NAME", "Ada Lovelace"),
    ],
)
def test_what_is_no_secret_stays_readable(name: str, value: str) -> None:
    """Every `true` of a report as `***`, or each test of a tokenizer: people switch such a thing off."""
    text = f"in test_x[{value}] the value is {value}"

    assert masker({name: value})(text) == text


# --- what is different ------------------------------------------------------------------------------------------------


def result(nodeid: str, outcome: Any = "passed", **said: Any) -> Result:
    """A test with this outcome; one that is bad has a problem, by default its own."""
    path, _, name = nodeid.partition("::")
    class_ = said.pop("failure_class", "test")
    problem = Problem(
        when="call" if outcome == "failed" else "setup",
        failure_class=class_,
        message="no",
        text="no",
    )
    problems = (problem,) if outcome in delta.BAD else ()
    return Result(
        nodeid=nodeid,
        file=path,
        line=1,
        classname=path.removesuffix(".py").replace("/", "."),
        name=name,
        outcome=outcome,
        problems=problems,
        **said,
    )


def report_of(*results: Result, **said: Any) -> Report:
    bad = any(each.problems for each in results)
    facts = {
        "session": "s-now",
        "verdict": "failed" if bad else "passed",
        "collected": len(results),
        "branch": "main",
        "commit": "b" * 40,
    }
    return Report(**{"suite": "gpu-cluster", "results": results, **facts, **said})


def baseline(*results: Result, **said: Any) -> bytes:
    kept = delta.results_of(
        report_of(*results, **{"session": "s-before", "commit": "a" * 40, **said})
    )
    assert kept is not None
    return kept


def compared(now: Report, before: bytes) -> Delta:
    found = delta.compare(now, before)
    assert found is not None
    return found


def test_a_difference_is_told_by_where_it_leads() -> None:
    """The reviewer of a change wants what it changed, not what was red before."""
    before = baseline(
        result("t.py::stays"),
        result("t.py::breaks"),
        result("t.py::mends", "failed"),
        result("t.py::red", "failed"),
        result("t.py::goes"),
        result("t.py::skips"),
    )
    now = report_of(
        result("t.py::stays"),
        result("t.py::breaks", "failed"),
        result("t.py::mends"),
        result("t.py::red", "error"),
        result("t.py::skips", "skipped"),
        result("t.py::new"),
        result("t.py::new_and_red", "failed"),
    )

    found = compared(now, before)

    assert (found.branch, found.session, found.commit) == ("main", "s-before", "a" * 40)
    assert found.newly_failing == ("t.py::breaks", "t.py::new_and_red")
    assert found.fixed == ("t.py::mends",)
    assert found.removed == ("t.py::goes",)
    assert (found.slower, found.flaky, found.empty) == ((), (), False)


def test_an_expected_failure_is_as_good_as_a_pass() -> None:
    """A test that is marked after it broke is mended as far as the branch's state goes; a skip says nothing."""
    before = baseline(
        result("t.py::a", "failed"),
        result("t.py::b", "failed"),
        result("t.py::c", "failed"),
        result("t.py::d", "skipped"),
    )
    now = report_of(
        result("t.py::a", "xfailed"),
        result("t.py::b", "xpassed"),
        result("t.py::c", "skipped"),
        result("t.py::d", "failed"),
    )

    found = compared(now, before)

    assert found.fixed == ("t.py::a", "t.py::b")
    assert found.newly_failing == ("t.py::d",)


def test_only_a_whole_run_of_the_same_selection_can_miss_a_test() -> None:
    """`-k fast` runs ten of a thousand tests: the others are not gone."""
    before = baseline(result("t.py::a"), result("t.py::b"), selection=("tests",))
    now = report_of(result("t.py::a"), selection=("tests",))

    assert compared(now, before).removed == ("t.py::b",)
    assert compared(dataclasses.replace(now, selection=("tests", "-k", "a")), before).removed == ()
    assert compared(dataclasses.replace(now, collected=2), before).removed == ()


def test_a_module_that_was_skipped_does_not_make_a_run_whole() -> None:
    """With `-x` one of two tests has a result; a skipped module beside it is a result too, of no test."""
    before = baseline(result("t.py::a"), result("t.py::b"), result("t.py::c"))
    skipped = dataclasses.replace(result("whole.py", "skipped"), classname="", name="whole", line=0)
    now = report_of(skipped, result("t.py::a", "failed"), collected=2)

    assert compared(now, before).removed == ()
    assert delta.results_of(now) is None


def test_tests_of_a_file_that_does_not_import_are_not_removed() -> None:
    """The file is broken, which is told as an error; its tests are where they were."""
    before = baseline(result("t.py::a"), result("broken.py::b"), result("broken.py::c"))
    problem = Problem(
        when="collect", failure_class="test", message="ImportError", text="ImportError"
    )
    broken = Result(
        nodeid="broken.py",
        file="broken.py",
        line=0,
        classname="",
        name="broken",
        outcome="error",
        problems=(problem,),
    )
    found = compared(report_of(broken, result("t.py::a"), collected=1), before)

    assert found.removed == ()
    assert found.newly_failing == ("broken.py",)


@pytest.mark.parametrize("directory", ["pkg", "."])
def test_tests_of_a_directory_that_cannot_be_collected_are_not_removed(directory: str) -> None:
    """A conftest that does not import takes all files below it out of sight."""
    before = baseline(result("pkg/t.py::a"), result("pkg/sub/u.py::b"))
    problem = Problem(
        when="collect", failure_class="test", message="ImportError", text="ImportError"
    )
    broken = Result(
        nodeid=directory,
        file="",
        line=0,
        classname="",
        name="pkg",
        outcome="error",
        problems=(problem,),
    )

    assert compared(report_of(broken, collected=0), before).removed == ()


@pytest.mark.parametrize(
    ("before_s", "now_s", "slower"),
    [
        (10.0, 14.9, False),
        (10.0, 15.1, True),
        (1.0, 1.9, False),
        (2.0, 3.0, False),
        (0.0, 1.1, True),
        (0.0, 1.0, False),
        (60.0, 50.0, False),
    ],
)
def test_slower_is_half_as_long_again_and_more_than_a_second(
    before_s: float, now_s: float, slower: bool
) -> None:
    """Neither 10 ms that became 20 ms nor a minute that took 61 s is worth a reviewer's eye."""
    found = compared(
        report_of(result("t.py::a", duration_s=now_s)),
        baseline(result("t.py::a", duration_s=before_s)),
    )

    assert found.slower == ((("t.py::a", before_s, now_s),) if slower else ())


def test_the_slowest_comes_first() -> None:
    """A list that is cut at twenty should keep the twenty that cost most."""
    names, seconds = ("t.py::a", "t.py::b", "t.py::c"), (5.0, 50.0, 20.0)
    now = report_of(
        *(result(name, duration_s=each) for name, each in zip(names, seconds, strict=True))
    )

    assert [name for name, *_ in compared(now, baseline(*map(result, names))).slower] == [
        "t.py::b",
        "t.py::c",
        "t.py::a",
    ]


def test_flaky_is_what_was_rerun_or_ended_otherwise_on_the_same_code() -> None:
    """On another commit another outcome is what the commit did."""
    before = [
        result("t.py::a"),
        result("t.py::b", "failed"),
        result("t.py::c"),
        result("t.py::d"),
        result("t.py::e"),
    ]
    now = report_of(
        result("t.py::a", "failed"),
        result("t.py::b"),
        result("t.py::c", reruns=1),
        result("t.py::d", "skipped"),
        result("t.py::e", "failed", reruns=2),
    )

    assert compared(now, baseline(*before)).flaky == ("t.py::c",)
    assert compared(now, baseline(*before, commit="b" * 40)).flaky == (
        "t.py::a",
        "t.py::b",
        "t.py::c",
        "t.py::e",
    )
    assert compared(dataclasses.replace(now, commit=""), baseline(*before, commit="")).flaky == (
        "t.py::c",
    )


def test_what_machines_did_is_neither_new_nor_kept() -> None:
    """A lost node is no regression of the branch, and a baseline with it would make everything fixed the next time."""
    lost = result("t.py::b", "error", failure_class="infrastructure")
    now = report_of(result("t.py::a", "failed"), lost)

    found = compared(now, baseline(result("t.py::a"), result("t.py::b"), result("t.py::c")))

    assert found.newly_failing == ("t.py::a",)
    assert found.removed == ()
    assert delta.results_of(now) is None
    assert delta.results_of(report_of(result("t.py::a"), verdict="infrastructure")) is None


@pytest.mark.parametrize(
    "verdict",
    ["running", "cancelled", "request", "infrastructure", "environment", "capacity", "limit"],
)
def test_a_session_that_says_nothing_of_its_tests_as_a_whole_is_no_baseline(verdict: str) -> None:
    """The next report would compare itself with a fragment."""
    assert delta.results_of(report_of(result("t.py::a"), verdict=verdict)) is None


def test_what_a_baseline_needs() -> None:
    """Results of all that was collected; also when only the cluster's end went wrong."""
    both = (result("t.py::a"), result("t.py::b", "failed"))

    assert delta.results_of(report_of(*both)) is not None
    assert delta.results_of(report_of(*both, verdict="teardown")) is not None
    assert delta.results_of(report_of(*both, collected=3)) is None
    assert delta.results_of(report_of(*both, collected=None)) is None
    assert delta.results_of(report_of()) is None


@pytest.mark.parametrize(
    "stored",
    [
        None,
        b"",
        b"{",
        b"null",
        b"[]",
        b"7",
        b'"text"',
        b"\xff\xfe",
        b"{}",
        b'{"v": 1, "tests": []}',
        b'{"v": 1, "session": "s", "commit": "", "branch": "main", "tests": {"t.py::a": "passed"}}',
        b'{"v": 1, "session": "s", "commit": "", "branch": "main", "tests": {"t.py::a": ["passed"]}}',
        b'{"v": 1, "session": "s", "commit": "", "branch": "main", "tests": {"t.py::a": ["passed", "soon"]}}',
        b'{"v": 1, "session": "s", "commit": "", "branch": "main", "tests": {"t.py::a": ["passed", null]}}',
        b'{"v": 2, "session": "s", "commit": "", "branch": "main", "tests": {"t.py::a": ["passed", 1.0]}}',
    ],
)
def test_a_baseline_that_is_broken_or_of_another_version_is_none(stored: bytes | None) -> None:
    """Another version of this tool may share the store; its users should not see our traceback."""
    assert delta.compare(report_of(result("t.py::a")), stored) is None


def test_a_session_is_not_compared_with_itself() -> None:
    """Reported a second time from the store, the branch's last session may be this very one."""
    report = report_of(result("t.py::a", "failed"))

    assert delta.compare(report, delta.results_of(report)) is None


@pytest.mark.parametrize(
    ("branch", "name"),
    [
        ("main", "main"),
        ("feature/x", "feature%2Fx"),
        ("release-1.2", "release-1.2"),
        ("..", ".."),
        ("100%", "100%25"),
        ("feature%2Fx", "feature%252Fx"),
        ("größe", "gr%C3%B6%C3%9Fe"),
        ("a b", "a%20b"),
        ("a?b#c", "a%3Fb%23c"),
    ],
)
def test_a_branch_has_one_key_in_one_folder(branch: str, name: str) -> None:
    """A branch's name may have slashes; a store lists by folder."""
    assert delta.key(branch, "gpu-cluster") == f"history/branches/{name}.json"
    assert delta.key(branch, "nightly") == f"history/branches/{name}~nightly.json"


def test_a_branch_with_bytes_that_are_no_utf8_has_a_key() -> None:
    """git allows it, and the environment gives it with lone surrogates; a report must not end with a traceback because of it."""
    assert delta.key("caf\udce9", "gpu-cluster").isascii()


def test_a_delta_survives_the_summary() -> None:
    """Another process reads it there, when the branch's last session has become this one."""
    found = compared(
        report_of(result("t.py::a", "failed", duration_s=9.0)),
        baseline(result("t.py::a"), result("t.py::b")),
    )
    said = json.loads(render.json_text(report_of(result("t.py::a"), delta=found)))["delta"]

    assert said["newly_failing"] == ["t.py::a"]
    assert said["removed"] == ["t.py::b"]
    assert said["slower"] == [["t.py::a", 0.0, 9.0]]


def test_bad_results_begin_with_the_tests_own() -> None:
    """Twenty failures are shown, and a lost node can make hundreds of errors."""
    results: Iterable[Result] = (
        result("t.py::a", "error", failure_class="infrastructure"),
        result("t.py::b"),
        result("t.py::c", "failed"),
    )

    assert [each.nodeid for each in report_of(*results).bad] == ["t.py::c", "t.py::a"]


def test_properties_of_another_shape_are_left_out() -> None:
    """pytest takes anything as a user property; what a report cannot show must not end the run."""
    events = session("t.py::a", exitstatus=0)
    report = events[1]["records"][-1]["report"]
    report["user_properties"] = [["a", "b", "c"], {"a": 1}, 7, None, ["name", "value"]]

    assert [result.properties for result in told(events).results] == [(("name", "value"),)]
