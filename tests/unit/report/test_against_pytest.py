"""The report of a real run against the JUnit file that pytest itself wrote of the run."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from pytest_gpu_cluster.contract.events import Hello
from pytest_gpu_cluster.report import junit
from tests.unit.report.outputs import PROBLEMS, Key, cases_of, key_of, problem_of, tag_of, texts_of
from tests.unit.report.real_run import RealRun


def in_theirs(real: RealRun) -> dict[Key, list[ET.Element]]:
    """Return the problems that pytest's file has for each test, in order.

    Without the line that counts subtests, and without a skip beside an error.
    """
    problems: dict[Key, list[ET.Element]] = {}
    for case in real.theirs.iter("testcase"):
        problems.setdefault(key_of(case), []).extend(
            child
            for child in case
            if child.tag in PROBLEMS and not child.get("message", "").startswith("contains ")
        )
    return {
        key: [child for child in children if child.tag != "skipped"] or children
        for key, children in problems.items()
        if "aside" not in key[0]
    }


def in_ours(real: RealRun) -> dict[Key, list[ET.Element]]:
    """Return the problems that our file has for each test, in order.

    A further problem of a test is a case after its own, whose name begins with the test's.
    """
    theirs, problems, base = in_theirs(real), dict[Key, list[ET.Element]](), ("", "")
    for case in cases_of(junit.write(real.report())):
        key = key_of(case)
        if "aside" not in key[0]:
            base = key if key in theirs else base
            assert key == base or (key[0] == base[0] and key[1].startswith(f"{base[1]} ")), (
                f"{key} is no test of pytest's file"
            )
            problems.setdefault(base, []).extend(child for child in case if child.tag in PROBLEMS)
    return problems


def test_each_test_ends_as_in_the_file_of_pytest(real: RealRun) -> None:
    """Two files of one run that disagree: nobody would know which to believe."""
    theirs, ours = in_theirs(real), in_ours(real)

    assert list(ours) == list(theirs)
    assert {key: [child.tag for child in children] for key, children in ours.items()} == {
        key: [child.tag for child in children] for key, children in theirs.items()
    }


def test_outcomes_are_what_the_terminal_counts(real: RealRun) -> None:
    """`failed` is a test's own word for its call, `error` for what is around it.

    A host counts them apart.
    """
    outcomes = {
        result.nodeid.partition("::")[2]: result.outcome
        for result in real.report().results
        if result.nodeid.startswith("test_mixed.py")
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


def test_a_skip_says_why_and_of_which_kind_it_is(real: RealRun) -> None:
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
    expected = {
        key: (child.get("type"), child.get("message"))
        for key, child in theirs.items()
        if key in ours and child.get("type")
    }

    assert {key: (ours[key].get("type"), ours[key].get("message")) for key in expected} == expected
    assert {kind for kind, _ in expected.values()} == {"pytest.skip", "pytest.xfail"}
    assert ours["pkg.test_whole", "pkg.test_whole"].get("message") == "nothing of this here"
    assert ours["test_more", "test_expected_in_words"].get("message") == "said inside"


def test_what_a_test_printed_is_told_where_it_went_wrong_and_nowhere_else(real: RealRun) -> None:
    """A reader shows either the failure's text or the output.

    What good tests print would bury both.
    """
    results = {result.nodeid: result for result in real.report().results}
    cases = {key_of(case): case for case in cases_of(junit.write(real.report()))}
    failed = cases["test_mixed", "test_fails"]

    assert "Captured stderr call" in results["test_mixed.py::test_fails"].output
    assert "to stderr" in (problem_of(failed).text or "")
    assert "to stderr" in failed.findtext("system-out", "")
    assert results["test_mixed.py::test_passes"].output == ""
    assert cases["test_mixed", "test_passes"].find("system-out") is None
    assert "characters left out" in results["test_more.py::test_long"].output


def test_paths_of_the_cluster_are_those_of_this_machine(real: RealRun) -> None:
    """A traceback that names a directory of a node is one that nobody can open."""
    hello, *others = real.events
    assert isinstance(hello, Hello)
    root = hello.root

    assert root in str(others)
    assert all(root not in text for _, text in texts_of(real.report()))
    results = {result.nodeid: result for result in real.report().results}
    output = results["test_same.py::test_same"].output
    assert f"\n{real.project / 'test_same.py'}\n" in output


def test_the_causes_are_those_of_pytests_file(real: RealRun) -> None:
    """A reader who searches for a message finds it in both.

    Ours keeps the first line, after which subtest or phase it was.
    """
    theirs, ours = in_theirs(real), in_ours(real)

    for key, problems in theirs.items():
        if key[0] in ("test_leaks", "test_abridged"):
            continue
        for expected, problem in zip(problems, ours[key], strict=True):
            first_line = expected.get("message", "").partition("\n")[0]
            cause = (
                first_line.removeprefix('failed on setup with "')
                .removeprefix('failed on teardown with "')
                .removesuffix('"')
                .removesuffix("...")
                .strip()
            )
            if cause not in ("collection failure", "collection skipped"):
                assert cause[:450] in problem.get("message", ""), key


def test_the_counts_are_pytests_but_for_what_stands_twice_in_its_file(real: RealRun) -> None:
    """pytest counts the line that counts subtests, and a skip whose teardown fails.

    Each case of ours is one of four things.
    """
    written = junit.write(real.without("test_aside.py").report())
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


def test_a_place_is_the_line_where_the_test_begins(real: RealRun) -> None:
    """A host marks this line in the diff.

    pytest counts from 0, and begins a test at its first decorator.
    """
    theirs = {key_of(case): case for case in real.theirs.iter("testcase")}

    for case in cases_of(junit.write(real.report())):
        expected = theirs.get(key_of(case))
        if expected is None or expected.get("line") is None:
            continue  # a second problem of a test, or a file that was not collected
        line = int(case.get("line", ""))
        name = key_of(case)[1].partition("[")[0]
        source = (real.line(case.get("file", ""), number) for number in range(line, line + 12))
        beginning = real.line(case.get("file", ""), line)
        function = next(text for text in source if text.startswith(("def ", "async def ")))

        assert case.get("file") == expected.get("file")
        assert line == int(expected.get("line", "")) + 1
        assert beginning.startswith(("@", "def ", "async def "))
        assert function.removeprefix("async ").startswith(f"def {name}(")


def test_paths_begin_where_the_repository_does(real: RealRun) -> None:
    """In a monorepo a host looks for a file from the repository's root.

    pytest runs in a directory below it.
    """
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


def test_the_line_of_a_problem_is_the_one_that_failed(real: RealRun) -> None:
    """An annotation at the `def` of a long test says less than one at its assertion."""
    lines = {
        result.nodeid: (result.file, result.problems[0].line)
        for result in real.report().results
        if result.problems
    }

    assert real.line(*lines["test_mixed.py::test_fails"]) == 'assert {"a": [1, 2]} == {"a": [1, 3]}'
    assert real.line(*lines["sub/test_other.py::test_two"]) == "def test_two(): assert 1 == 2"


def test_a_problem_in_another_file_has_no_line_in_the_tests_own(real: RealRun) -> None:
    """lib/test_same.py ends in the name of test_same.py.

    An annotation there would point at an innocent line.
    """
    result = next(
        result for result in real.report().results if result.nodeid == "test_same.py::test_same"
    )

    assert [problem.line for problem in result.problems] == [0]


def test_a_crash_a_rerun_and_properties_are_told(real: RealRun) -> None:
    """A dead process is no failed assertion, nor is a pass at the third try one at the first."""
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
    assert [element.attrib for element in cases["test_more", "test_property"].iter("property")] == [
        {"name": "loss", "value": "0.25"},
        {"name": "pfad", "value": "/data/ü<&>"},
    ]


def test_subtests_that_are_skipped_or_expected_to_fail_do_not_decide_their_test(
    real: RealRun,
) -> None:
    """pytest counts both tests as passed.

    A test that is `xfailed` because one part of it is would hide the rest.
    """
    outcomes = {result.nodeid: result.outcome for result in real.report().results}

    assert outcomes["test_aside.py::test_skips_one"] == "passed"
    assert outcomes["test_aside.py::test_expects_one"] == "passed"


def test_a_failure_that_speaks_like_the_count_of_subtests_is_not_lost(real: RealRun) -> None:
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
