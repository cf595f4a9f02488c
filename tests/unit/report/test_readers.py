"""The JUnit file as the readers of CI hosts take it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import junitparser
import pytest

from pytest_gpu_cluster.report import junit
from tests.hosts.readers import (
    BITBUCKET_FIELD,
    READERS,
    Case,
    bitbucket,
    gitlab,
    jenkins,
    mikepenz,
    schema_errors,
)
from tests.unit.report.outputs import cases_of, key_of, problem_of, problem_type, tag_of, visible
from tests.unit.report.real_run import LINK, RealRun


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_no_reader_loses_a_case_or_a_message(
    reader: Callable[[Path], list[Case]], real: RealRun, ours: Path
) -> None:
    """Each shows what it calls the message, some the text too.

    A cause in neither is a cause that nobody sees.
    """
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
    reader: Callable[[Path], list[Case]], interrupted: Path
) -> None:
    """Most readers show an error as they show a failure.

    None may show it as a skip, which looks green, or not at all.
    """
    root = ET.parse(interrupted).getroot()
    infrastructure = [
        case for case in root.iter("testcase") if "InfrastructureError" in problem_type(case)
    ]
    shown = {(case.classname, case.name): case for case in reader(interrupted)}

    assert len(infrastructure) > 10
    assert {tag_of(case) for case in infrastructure} == {"error"}
    assert all(problem_type(case).endswith("InfrastructureError") for case in infrastructure)
    assert root.findall("testsuite/error") == []
    assert root.findall("testsuite/failure") == []
    assert {shown[key_of(case)].outcome for case in infrastructure} <= {"failed", "error"}
    assert "<init>" not in {case.name for case in shown.values()}


def test_a_host_that_keeps_2000_characters_keeps_the_link_and_the_cause(
    real: RealRun, ours: Path, interrupted: Path
) -> None:
    """Bitbucket cuts each field; what it cuts away should be the end of a long output."""
    for path in (ours, interrupted):
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
    """GitLab keeps the first of two cases of one name, mikepenz calls them retries.

    pytest's own file has such pairs.
    """
    cases = cases_of(ours.read_bytes())

    assert len(gitlab(ours)) == len(cases)
    assert {case.retries for case in mikepenz(ours)} == {0}
    assert len(jenkins(ours)) == len(cases)


def test_the_file_is_what_its_schemas_say(real: RealRun, ours: Path, tmp_path: Path) -> None:
    """By default with places and properties.

    `junit-strict` for readers that refuse what xunit2 does not have.
    """
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
    """Many tools merge and rewrite JUnit with it.

    What it did not understand would be gone afterwards.
    """
    read = junitparser.JUnitXml.fromfile(str(ours))
    suite = next(iter(read))
    counts = (suite.tests, suite.failures, suite.errors, suite.skipped)
    suite.update_statistics()  # type: ignore[no-untyped-call]  # the library has no types here
    read.write(str(tmp_path / "again.xml"))

    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == counts
    assert attributes(tmp_path / "again.xml") == attributes(ours)


def attributes(path: Path) -> list[tuple[str, dict[str, str], str]]:
    """Return each element of a file, but for the time of a suite, which is a sum."""
    elements = ET.parse(path).getroot().iter()
    return [
        (
            element.tag,
            {k: v for k, v in element.attrib.items() if (element.tag, k) != ("testsuite", "time")},
            (element.text or "").strip(),
        )
        for element in elements
    ]
