"""A JUnit file as each of its readers takes it.

Readers differ in the fields that they read and in the cases that count as failed.

Every reader gives the cases it would show, in its order; a field that it does not read is empty.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import junitparser
import xmlschema

Outcome = Literal["passed", "failed", "error", "skipped"]
XSD = Path(__file__).parent / "xsd"


@dataclass(frozen=True)
class Case:
    """A test as a reader shows it.

    `retries` is how many more results it had, where a reader counts them.
    """

    classname: str
    name: str
    outcome: Outcome
    file: str = ""
    line: int | None = None
    message: str = ""
    text: str = ""
    retries: int = 0


class UnreadableError(ValueError):
    """A file that a reader would not take."""


def schema_errors(path: Path, kind: Literal["enriched", "xunit2"] = "enriched") -> list[str]:
    """The faults of a JUnit file by our own schema of this name.

    A suite whose counts are not those of its cases is a fault too.
    """
    schema = xmlschema.XMLSchema(XSD / f"{kind}.xsd")
    errors = [f"{error.path}: {error.reason}" for error in schema.iter_errors(path)]
    for suite in _suites(_root(path)):
        tags = [_result(case) for case in suite.findall("testcase")]
        counted = {
            "tests": len(tags),
            "failures": tags.count("failure"),
            "errors": tags.count("error"),
            "skipped": tags.count("skipped"),
        }
        wrong = {
            name: count
            for name, count in counted.items()
            if suite.get(name, str(count)) != str(count)
        }
        errors += [
            f"suite {suite.get('name')}: {name} is {suite.get(name)}, and there are {count}"
            for name, count in wrong.items()
        ]
    return errors


# The readers.

BITBUCKET_FAILURES = 100
BITBUCKET_FIELD = 2000
BITBUCKET_FOLDERS = (
    "surefire-reports",
    "failsafe-reports",
    "test-results",
    "test-reports",
    "TestResults",
)


def bitbucket_finds(clone_dir: Path) -> list[Path]:
    """The files that Pipelines finds by itself.

    XML in a folder of a known name, at most three folders deep.
    """
    files = sorted(clone_dir.rglob("*.xml"))
    folders = {file: file.relative_to(clone_dir).parts[:-1] for file in files}
    return [
        file
        for file in files
        if len(folders[file]) <= 3 and set(folders[file]) & set(BITBUCKET_FOLDERS)
    ]


def bitbucket(path: Path) -> list[Case]:
    """Errors are failures; after a hundred failures no more are read; every field is cut."""
    shown, failures = [], 0
    for case in _cases(path):
        element = _first(case, "failure", "error", "skipped")
        outcome = _outcome(element, error="failed")
        failures += outcome == "failed"
        if outcome != "failed" or failures <= BITBUCKET_FAILURES:
            fields = (
                case.get("classname", ""),
                case.get("name", ""),
                _message(element),
                _text(element),
            )
            classname, name, message, text = (field[:BITBUCKET_FIELD] for field in fields)
            shown.append(Case(classname, name, outcome, message=message, text=text))
    return shown


def gitlab(path: Path) -> list[Case]:
    """Of cases with one classname and name the first alone counts.

    Failures and errors are told apart; properties are not read.
    """
    shown: dict[tuple[str, str], Case] = {}
    for case in _cases(path):
        element = _first(case, "failure", "error", "skipped")
        read = Case(
            case.get("classname", ""),
            case.get("name", ""),
            _outcome(element),
            file=case.get("file", ""),
            message=_message(element),
            text=_text(element),
        )
        shown.setdefault((read.classname, read.name), read)
    return list(shown.values())


def jenkins(path: Path) -> list[Case]:
    """Suites within suites; an error wins over a failure and both are failed.

    An error of a whole suite is a case `<init>`.
    """
    return [case for suite in _suites(_root(path)) for case in _jenkins_suite(suite)]


def _jenkins_suite(suite: ElementTree.Element) -> Iterator[Case]:
    package = f"{suite.get('package')}." if suite.get("package") else ""
    name = package + suite.get("name", "")
    whole = suite.find("error")
    if whole is not None:
        yield Case(name, "<init>", "failed", message=_message(whole), text=_text(whole))
    for case in suite.findall("testcase"):
        element = _first(case, "error", "failure", "skipped")
        outcome = _outcome(element, error="failed")
        yield Case(
            case.get("classname") or name,
            case.get("name", ""),
            outcome,
            message=_message(element),
            text=_text(element),
        )


def buildkite(path: Path) -> list[Case]:
    """Classname and name have to be there: UnreadableError where one is not."""
    shown = []
    for case in _cases(path):
        if not (case.get("classname") and case.get("name")):
            raise UnreadableError(
                f"{path.name}: a testcase without classname or name: {case.attrib}"
            )
        element = _first(case, "failure", "error", "skipped")
        outcome = _outcome(element, error="failed")
        shown.append(
            Case(
                case.attrib["classname"],
                case.attrib["name"],
                outcome,
                case.get("file", ""),
                None,
                _message(element),
                _text(element),
            )
        )
    return shown


def circleci(path: Path) -> list[Case]:
    """There is success, failure and skipped: an error is a failure."""
    shown = []
    for case in _cases(path):
        element = _first(case, "failure", "error", "skipped")
        message = _message(element) or _text(element)
        outcome = _outcome(element, error="failed")
        shown.append(
            Case(
                case.get("classname", ""),
                case.get("name", ""),
                outcome,
                case.get("file", ""),
                message=message,
            )
        )
    return shown


def azure(path: Path) -> list[Case]:
    """The message and, as the stack, the text; neither file nor line."""
    shown = []
    for case in _cases(path):
        element = _first(case, "failure", "error", "skipped")
        outcome = _outcome(element, error="failed")
        shown.append(
            Case(
                case.get("classname", ""),
                case.get("name", ""),
                outcome,
                message=_message(element),
                text=_text(element),
            )
        )
    return shown


def enricomi(path: Path) -> list[Case]:
    """By junitparser, the library it uses.

    Failures and errors are counted apart, file and line come from the testcase.
    """
    return [_enricomi_case(_parsed(case)) for case in _cases(path)]


def _parsed(case: ElementTree.Element) -> junitparser.TestCase:
    read = junitparser.TestCase()
    read._elem = case
    return read


def _enricomi_case(case: junitparser.TestCase) -> Case:
    severe = {
        junitparser.Error: "error",
        junitparser.Failure: "failure",
        junitparser.Skipped: "skipped",
    }
    result = next(
        (result for kind in severe for result in case.result if type(result) is kind), None
    )
    outcomes: Mapping[str, Outcome] = {
        "error": "error",
        "failure": "failed",
        "skipped": "skipped",
        "": "passed",
    }
    file, line = case._elem.get("file") or "", case._elem.get("line") or ""
    return Case(
        classname=case.classname or "",
        name=case.name or "",
        outcome=outcomes["" if result is None else severe[type(result)]],
        file=file,
        line=int(line) if line.isdecimal() else None,
        message=(result.message if result is not None else "") or "",
        text=(result.text if result is not None else "") or "",
    )


def mikepenz(path: Path) -> list[Case]:
    """File and line from wherever they are; a line of 0 is none.

    Results of one name, classname and file are retries of a test.
    """
    shown: dict[tuple[str, str, str], Case] = {}
    for suite in _suites(_root(path)):
        for read in (_mikepenz_case(case, suite) for case in suite.findall("testcase")):
            key = (read.name, read.classname, read.file)
            earlier = shown.get(key)
            if earlier is None:
                shown[key] = read
            else:
                retained = earlier if earlier.outcome == "passed" else read
                shown[key] = replace(retained, retries=earlier.retries + 1)
    return list(shown.values())


def _mikepenz_case(case: ElementTree.Element, suite: ElementTree.Element) -> Case:
    element = _first(case, "failure", "error", "skipped")
    match = re.search(r"^(?P<file>[^\s:]+\.\w+):(?P<line>\d+)", _text(element), re.MULTILINE)
    file = (
        case.get("file")
        or _get(element, "file")
        or suite.get("file")
        or (match["file"] if match else "")
    )
    lines = (
        case.get("line"),
        _get(element, "line"),
        suite.get("line"),
        match["line"] if match else None,
    )
    line = next((int(line) for line in lines if line and line.isdecimal() and int(line)), None)
    outcome = _outcome(element, error="failed")
    return Case(
        case.get("classname", ""),
        case.get("name", ""),
        outcome,
        file,
        line,
        _message(element),
        _text(element),
    )


def dorny(path: Path) -> list[Case]:
    """A file of the kind `python-xunit`.

    It is read as a file of Java, so neither file nor line is found, and an annotation goes to the
    XML file.
    """
    shown = []
    for case in _cases(path):
        element = _first(case, "failure", "error", "skipped")
        outcome = _outcome(element, error="failed")
        shown.append(
            Case(
                case.get("classname", ""),
                case.get("name", ""),
                outcome,
                message=_message(element),
                text=_text(element),
            )
        )
    return shown


READERS: Mapping[str, Callable[[Path], list[Case]]] = {
    reader.__name__: reader
    for reader in (
        bitbucket,
        gitlab,
        jenkins,
        buildkite,
        circleci,
        azure,
        enricomi,
        mikepenz,
        dorny,
    )
}


# What they share.


def _root(path: Path) -> ElementTree.Element:
    root = ElementTree.parse(path).getroot()
    if root.tag not in ("testsuites", "testsuite"):
        raise UnreadableError(f"{path.name}: <{root.tag}> is no JUnit file")
    return root


def _suites(element: ElementTree.Element) -> Iterator[ElementTree.Element]:
    """Every suite, an outer one before those in it."""
    return element.iter("testsuite")


def _cases(path: Path) -> Iterator[ElementTree.Element]:
    return (case for suite in _suites(_root(path)) for case in suite.findall("testcase"))


def _first(case: ElementTree.Element, *tags: str) -> ElementTree.Element | None:
    """The child with the first of these tags that there is."""
    return next((element for tag in tags if (element := case.find(tag)) is not None), None)


def _result(case: ElementTree.Element) -> str:
    element = _first(case, "error", "failure", "skipped")
    return "" if element is None else element.tag


def _outcome(element: ElementTree.Element | None, error: Outcome = "error") -> Outcome:
    outcomes: Mapping[str, Outcome] = {
        "": "passed",
        "failure": "failed",
        "error": error,
        "skipped": "skipped",
    }
    return outcomes["" if element is None else element.tag]


def _get(element: ElementTree.Element | None, name: str) -> str:
    return "" if element is None else element.get(name, "")


def _message(element: ElementTree.Element | None) -> str:
    return _get(element, "message")


def _text(element: ElementTree.Element | None) -> str:
    return "" if element is None else element.text or ""
