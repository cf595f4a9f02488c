"""What a test or a record says stays text: no link, mention, action or command is made of it."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pytest_gpu_cluster import cli
from pytest_gpu_cluster.contract.events import Requested
from pytest_gpu_cluster.contract.record import SessionRecord
from pytest_gpu_cluster.contract.records import crash_records
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.publish.code_insights import report_body
from pytest_gpu_cluster.report import render
from pytest_gpu_cluster.report.model import Delta, Machines, Report, ReportContext
from tests.hosts import FakeGitHub
from tests.hosts.github_runner import workflow_commands
from tests.hosts.markdown import rendered
from tests.security.hostile import KINDS, SESSION, Forger
from tests.unit.publish.rig import PAGE, failing
from tests.unit.report.events import collected, finished

# Each has an alpha, which is found again where it is no text of code.
SAID = (
    *("[α](https://evil.example)", "![α](https://evil.example/x.png)", "<img src=α>", "@α", "#1α"),
    *("`@α`", "``α``", "```\n@α", "\n```\n\n/close α\n", "```\n```\n/close α", "~~~\n/merge α"),
    *("| α | [x](y) |", "\\`@α", "α`", "α\n\n@α", "α\r\n/approve", "α\u2028```\u2028@α", "-->@α"),
    *("  ```\n@α", "<!-- α", "</code>α", "``` α\n```\n/close", "````\n@α\n```\n/label ~α"),
    *(
        "fixes #1 α",
        "&#64;α",
        "\\@α",
        "https://evil.example/α",
        "α\x1b]8;;https://evil.example\x07",
    ),
)


class Outside(HTMLParser):
    """Collects the text outside of code, the links, and the names of the elements."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.links, self.tags, self._code = "", set[str](), set[str](), 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._code += tag == "code"
        self.links |= {str(value) for name, value in attrs if name in ("href", "src")}

    def handle_endtag(self, tag: str) -> None:
        self._code -= tag == "code"

    def handle_data(self, data: str) -> None:
        self.text += "" if self._code else data


def quick_actions(text: str) -> list[str]:
    """Return the lines that GitLab takes for actions: it knows fences of three backticks alone."""
    outside = re.sub(r"^```.+?\n```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"^/\w+.*$", outside, re.MULTILINE)


def report_of(said: str) -> Report:
    """Return a report in which each text that comes from a store is `said`."""
    return Report(
        session=said,
        context=ReportContext(suite="gpu-cluster", link=PAGE, branch=said, commit=said),
        verdict="failed",
        message=said,
        remedy=said,
        results=(
            failing(said, message=said, text=said, nodeid=said, file=said),
            failing(said, message=said, text=f"a\n{said}\nb"),
        ),
        machines=Machines(gpus=(said, said), cluster=said, provider=said, environment=said),
        delta=Delta(
            branch=said,
            session=said,
            commit=said,
            newly_failing=(said,),
            fixed=(said, "x"),
            removed=(said,),
            slower=((said, 1.0, 3.0),),
            flaky=(said,),
        ),
        troubles=(said, said),
    )


@pytest.mark.parametrize("tags", [True, False], ids=["GitHub and GitLab", "Bitbucket"])
@pytest.mark.parametrize("said", SAID)
def test_nothing_of_a_record_becomes_markup_in_a_comment(said: str, tags: bool) -> None:
    """A comment is written by the project's account, whoever named the test."""
    for limit in (1_000, 70_000):
        page = Outside()
        page.feed(rendered(render.markdown(report_of(said), limit=limit), tags=tags))

        assert "α" not in page.text
        assert page.links <= {PAGE}
        assert not page.tags & {"img", "script", "details"}


@pytest.mark.parametrize("said", SAID)
def test_nothing_of_a_record_is_a_quick_action_of_gitlab(said: str) -> None:
    """A line such as /merge in a note acts with the rights of the token's owner.

    GitLab does not look for one in a block of code, whose fence it takes for three backticks.
    """
    for limit in (1_000, 70_000):
        assert quick_actions(render.markdown(report_of(said), limit=limit)) == []


@pytest.mark.parametrize("said", SAID)
def test_a_line_of_code_insights_is_one_line_whatever_a_record_says(said: str) -> None:
    """Lines that a record added would read as ours."""
    report = dataclasses.replace(report_of(said), verdict="passed", message="", remedy="")

    lines = str(report_body(report, "gpu-cluster")["details"]).splitlines()

    assert len(lines) == 2
    assert lines[1].startswith("Against ")


# -- commands of GitHub's runner -------------------------------------------------------------------

COMMANDS = (
    *("::set-output name=x::y", "::add-mask::a", "::error::forged", "##[add-mask]a"),
    "::stop-commands::pause-logging",
)
NAMES = [f"tests/test_a.py::test_a[{command}]" for command in COMMANDS]


@pytest.fixture
def in_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Forger:
    """A step at GitHub whose store has a session that is all commands."""
    crash = "\n".join(("crash", *COMMANDS, "end"))
    location = ("tests/test_a.py", 1, "test_a")
    failed = crash_records(NAMES[0], location, when="call", text=crash)
    test = dataclasses.replace(finished(0, NAMES[0], "failed"), records=failed)
    with FakeGitHub() as host:
        kind = KINDS["github"]
        forger = Forger(kind, host, tmp_path, collected(*NAMES), test)
    forger.forge({"branch": "\n::error::forged", "suite": "\n::error::forged"})
    for name, value in (forger.environ | {"GPU_CLUSTER_STORE": str(tmp_path / "store")}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return forger


@pytest.mark.parametrize(
    "arguments",
    [
        *(["report", SESSION], ["report", SESSION, "--json"], ["logs"], ["logs", "--json"]),
        *(["ls"], ["ls", "--json"], ["artifacts", "--json"], ["logs", "\n::error::none"]),
    ],
    ids=" ".join,
)
@pytest.mark.usefixtures("in_a_step")
def test_no_output_of_the_command_is_a_command_for_githubs_runner(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A test's name is printed by the step, and the step may set what later ones are given."""
    cli.main(arguments)

    out, err = capsys.readouterr()
    assert workflow_commands(f"{err}\n{out}") == []
    if "--json" in arguments:
        json.loads(out)
    else:
        assert "forged" in out or "set-output" in out or "none" in err


def test_a_published_report_has_our_commands_and_no_others(
    in_a_step: Forger, capsys: pytest.CaptureFixture[str]
) -> None:
    """The annotations of failed tests are commands themselves, with the test's words in them."""
    in_a_step.forge({})

    cli.main(["report", SESSION, "--publish"])

    out, err = capsys.readouterr()
    commands = workflow_commands(f"{err}\n{out}")
    assert {command.name for command in commands} == {"notice", "error"}
    assert [c.params["title"] for c in commands if c.name == "error"] == NAMES[:1]


def test_the_names_of_a_journal_do_not_replace_the_session(in_a_step: Forger) -> None:
    """An event that only a client makes for itself has a whole request in it."""
    forged = dataclasses.replace(in_a_step.true, session="x](https://evil.example)")
    store = Store.open(str(in_a_step.home / "store"), base=in_a_step.home)
    journal = SessionRecord(store, SESSION).writer("forger")
    journal.append(Requested(request=forged))
    journal.close()

    report, _ = in_a_step.read()

    assert report.session == SESSION
