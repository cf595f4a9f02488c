"""JUnit files as each reader takes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.hosts import READERS, Case, bitbucket_finds, gitlab_junit, schema_errors
from tests.hosts.readers import UnreadableError, enricomi, jenkins, mikepenz
from tests.unit.hosts.rig import case


def junit(tmp_path: Path, cases: str, head: str = "", **counts: int) -> Path:
    numbers = {"tests": 1, "failures": 0, "errors": 0, "skipped": 0, **counts}
    attributes = " ".join(f'{name}="{count}"' for name, count in numbers.items())
    path = tmp_path / "junit.xml"
    path.write_text(
        f'<testsuites name="pytest tests"><testsuite name="gpu" {attributes} time="1.5">'
        f"{head}{cases}</testsuite></testsuites>"
    )
    return path


FAILURE = '<failure message="assert 0">tests/test_a.py:12: AssertionError</failure>'
ERROR = '<error type="gpu.InfrastructureError" message="node lost">the node went away</error>'
PLACE = 'file="tests/test_a.py" line="12"'
PROPERTIES = '<properties><property name="gpu" value="A10G"/></properties>'


@pytest.mark.parametrize(
    ("cases", "head", "counts"),
    [
        (case(), "", {}),
        (case(more=PLACE), PROPERTIES, {}),
        (
            case(
                FAILURE + "<system-out>Session: x</system-out><system-err>e</system-err>",
                more=PLACE,
            ),
            "",
            {"failures": 1},
        ),
        (case(ERROR), "", {"errors": 1}),
        (case('<skipped type="pytest.skip" message="no GPU">a.py:1</skipped>'), "", {"skipped": 1}),
        (case(PROPERTIES + FAILURE), "", {"failures": 1}),
        ("", "", {"tests": 0}),
    ],
)
def test_a_good_file_fits_the_enriched_schema(
    tmp_path: Path, cases: str, head: str, counts: dict[str, int]
) -> None:
    """A refusal means nothing if nothing is ever taken."""
    assert schema_errors(junit(tmp_path, cases, head, **counts)) == []


@pytest.mark.parametrize(
    ("cases", "head", "counts"),
    [
        (case(more='file="/work/tests/test_a.py" line="12"'), "", {}),
        (case(more='file="../test_a.py"'), "", {}),
        (case(more='line="0"'), "", {}),
        (case(more='lineno="3"'), "", {}),
        (case(FAILURE + ERROR), "", {"errors": 1}),
        (case("<system-out>first</system-out>" + FAILURE), "", {"failures": 1}),
        (case("<system-err/><system-out/>"), "", {}),
        (case('<failure message="">text</failure>'), "", {"failures": 1}),
        (case("<failure>text</failure>"), "", {"failures": 1}),
        (case("<error>text</error>"), "", {"errors": 1}),
        (case(name=""), "", {}),
        ('<testcase name="test_it" time="1"/>', "", {}),
        ('<testcase classname="a" name="test_it" time="-1"/>', "", {}),
        ('<testcase classname="a" name="test_it" time="nan"/>', "", {}),
        (case() + PROPERTIES, "", {}),
        (ERROR, "", {"tests": 0}),
        (case(FAILURE), "", {}),
        (case(), "", {"tests": 2}),
        (case(), "<properties/>", {}),
    ],
)
def test_a_bad_file_does_not_fit_the_enriched_schema(
    tmp_path: Path, cases: str, head: str, counts: dict[str, int]
) -> None:
    """Each of them is something that one reader or another misreads without a word."""
    assert schema_errors(junit(tmp_path, cases, head, **counts)) != []


@pytest.mark.parametrize(
    ("inner", "more", "good"),
    [
        ("", "", True),
        (FAILURE, "", True),
        ("", 'file="a.py"', False),
        ("", 'line="3"', False),
        (PROPERTIES, "", False),
    ],
)
def test_the_strict_schema_has_nothing_that_pytest_does_not_write(
    tmp_path: Path, inner: str, more: str, good: bool
) -> None:
    """For readers that refuse what they do not know."""
    path = junit(tmp_path, case(inner, more=more), failures=int(inner == FAILURE))

    assert (schema_errors(path, "xunit2") == []) == good


def test_every_reader_reads_a_plain_file(tmp_path: Path) -> None:
    """The same tests, with the same names, whoever reads.

    Only a few tell an error from a failure.
    """
    skipped = case('<skipped message="no GPU"/>', "test_s")
    path = junit(
        tmp_path,
        case() + case(FAILURE, "test_f") + case(ERROR, "test_e") + skipped,
        tests=4,
        failures=1,
        errors=1,
        skipped=1,
    )

    read = {
        name: [(case.name, case.outcome) for case in reader(path)]
        for name, reader in READERS.items()
    }

    apart = {"gitlab", "enricomi"}
    for name, cases in read.items():
        error = "error" if name in apart else "failed"
        assert cases == [
            ("test_it", "passed"),
            ("test_f", "failed"),
            ("test_e", error),
            ("test_s", "skipped"),
        ], name


def test_bitbucket_reads_a_hundred_failures_and_the_start_of_each(tmp_path: Path) -> None:
    """The cause and the link to the session have to be in the first two thousand characters."""
    failing = "".join(
        case(f'<failure message="no">{"x" * 3000}</failure>', f"test_{n}") for n in range(101)
    )

    read = READERS["bitbucket"](junit(tmp_path, failing + case()))

    assert [case.outcome for case in read] == ["failed"] * 100 + ["passed"]
    assert len(read[0].text) == 2000


def test_bitbucket_finds_files_in_folders_of_some_names_and_not_too_deep(tmp_path: Path) -> None:
    """A file elsewhere is simply not in the Tests tab."""
    paths = ["test-results/a.xml", "a/b/test-reports/a.xml", "TestResults/a/b/c.xml"]
    for name in [
        *paths,
        "a/b/c/test-results/a.xml",
        "results/a.xml",
        "a.xml",
        "test-results/a.json",
    ]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    assert {
        str(path.relative_to(tmp_path)).replace(os.sep, "/") for path in bitbucket_finds(tmp_path)
    } == set(paths)


def test_gitlab_counts_the_first_of_one_name(tmp_path: Path) -> None:
    """pytest writes a failure and an error in teardown as two cases: the second is lost there."""
    path = junit(tmp_path, case(FAILURE, more=PLACE) + case(ERROR, more=PLACE))

    assert gitlab_junit(path) == [
        Case(
            "tests.test_a",
            "test_it",
            "failed",
            "tests/test_a.py",
            message="assert 0",
            text="tests/test_a.py:12: AssertionError",
        )
    ]


def test_jenkins_reads_suites_in_suites_and_an_error_of_a_whole_one(tmp_path: Path) -> None:
    """It alone reads the error of a suite, which is why nothing important may be there."""
    inner = (
        f'<testsuite name="inner"><testcase name="test_i">{FAILURE}{ERROR}</testcase></testsuite>'
    )

    read = jenkins(junit(tmp_path, ERROR + case() + inner))

    assert [(case.classname, case.name, case.outcome, case.message) for case in read] == [
        ("gpu", "<init>", "failed", "node lost"),
        ("tests.test_a", "test_it", "passed", ""),
        ("inner", "test_i", "failed", "node lost"),
    ]


@pytest.mark.parametrize("attributes", ['name="a"', 'classname="b"', 'classname="" name="a"'])
def test_buildkite_wants_classname_and_name(tmp_path: Path, attributes: str) -> None:
    """It takes the file or leaves it."""
    with pytest.raises(UnreadableError, match="without classname or name"):
        READERS["buildkite"](junit(tmp_path, f"<testcase {attributes}/>"))


def test_enricomi_reads_file_and_line_of_the_testcase(tmp_path: Path) -> None:
    """And the graver of two results."""
    (read,) = enricomi(junit(tmp_path, case(FAILURE + ERROR, more=PLACE)))

    assert (read.file, read.line, read.outcome, read.message) == (
        "tests/test_a.py",
        12,
        "error",
        "node lost",
    )


@pytest.mark.parametrize(
    ("more", "inner", "file", "line"),
    [
        (PLACE, FAILURE, "tests/test_a.py", 12),
        ('file="b.py" line="0"', FAILURE, "b.py", 12),
        ("", FAILURE, "tests/test_a.py", 12),
        ("", '<failure file="c.py" line="4"/>', "c.py", 4),
        ("", "<failure>nothing</failure>", "", None),
    ],
)
def test_mikepenz_takes_file_and_line_from_wherever_they_are(
    tmp_path: Path, more: str, inner: str, file: str, line: int | None
) -> None:
    """A line of 0, as pytest counts the first one, is none to it."""
    (read,) = mikepenz(junit(tmp_path, case(inner, more=more)))

    assert (read.file, read.line) == (file, line)


def test_mikepenz_takes_results_of_one_name_for_retries(tmp_path: Path) -> None:
    """One that passed in the end has passed; the same name in another file is another test."""
    read = mikepenz(
        junit(tmp_path, case(FAILURE, more=PLACE) + case(more=PLACE) + case(more='file="b.py"'))
    )

    assert [(case.outcome, case.retries) for case in read] == [("passed", 1), ("passed", 0)]


@pytest.mark.parametrize("name", ["circleci", "azure", "dorny"])
def test_these_readers_know_no_line(tmp_path: Path, name: str) -> None:
    """So the place of a failure has to be in its text."""
    (read,) = READERS[name](junit(tmp_path, case(FAILURE, more=PLACE)))

    assert read.line is None
    assert read.message == "assert 0"


def test_another_xml_file_is_no_junit_file(tmp_path: Path) -> None:
    """A coverage report in the same folder, for instance."""
    (tmp_path / "coverage.xml").write_text("<coverage/>")

    with pytest.raises(UnreadableError, match="no JUnit file"):
        READERS["gitlab"](tmp_path / "coverage.xml")
