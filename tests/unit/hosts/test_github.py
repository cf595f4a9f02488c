"""The fake GitHub: statuses, check runs, comments, and the runner."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.hosts import Command, FakeGitHub, job_summary, secondary_limit, status, workflow_commands
from tests.hosts.github import MERGE_COMMIT
from tests.unit.hosts.rig import COMMIT, HUB, LINK, a_check, ask, marked


@pytest.mark.parametrize(
    ("headers", "code", "message"),
    [
        ({"Authorization": ""}, 401, "Requires authentication"),
        ({"Authorization": "Bearer wrong"}, 401, "Bad credentials"),
    ],
)
def test_github_lets_nobody_in_without_good_credentials(
    github: FakeGitHub, headers: dict[str, str], code: int, message: str
) -> None:
    """And says so in its own words."""
    answer = ask(github, "POST", f"{HUB}/statuses/{COMMIT}", {"state": "success"}, **headers)

    assert (answer.status, answer.body["message"]) == (code, message)
    assert len(github.refused) == 1


def test_github_wants_to_know_who_asks(github: FakeGitHub) -> None:
    """Without a User-Agent the real one answers with a page, before anything else."""
    answer = ask(github, "GET", f"{HUB}/issues/7/comments", User_Agent="")

    assert answer.status == 403
    assert "User-Agent" in answer.body
    assert github.refused


def test_a_forks_token_may_only_read(github: FakeGitHub) -> None:
    """That a fork cannot write is no fault of the client's, so it is not counted as one.

    The client has to cope with it.
    """
    reads = ask(
        github, "GET", f"{HUB}/issues/7/comments", Authorization=f"token {github.fork_token}"
    )
    writes = ask(
        github,
        "POST",
        f"{HUB}/statuses/{COMMIT}",
        {"state": "success"},
        Authorization=f"Bearer {github.fork_token}",
    )
    github.read_only = True
    with_ours = ask(github, "POST", f"{HUB}/statuses/{COMMIT}", {"state": "success"})

    assert (reads.status, writes.status, with_ours.status) == (200, 403, 403)
    assert writes.body["message"] == "Resource not accessible by integration"
    assert github.refused == []
    assert github.statuses == []


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", f"/statuses/{COMMIT}", {"state": "passed"}),
        ("POST", f"/statuses/{COMMIT}", {"description": "no state"}),
        ("POST", f"/statuses/{COMMIT}", {"state": "error", "description": "d" * 141}),
        ("POST", f"/statuses/{COMMIT}", {"state": "error", "target_url": "gpu.example.com"}),
        ("POST", f"/statuses/{COMMIT}", {"state": "error", "url": LINK}),
        ("POST", f"/statuses/{'b' * 40}", {"state": "error"}),
        ("POST", "/check-runs", {"name": "gpu"}),
        ("POST", "/check-runs", a_check(head_sha="b" * 40)),
        ("POST", "/check-runs", a_check(status="completed")),
        ("POST", "/check-runs", a_check(completed_at="2026-11-02T09:00:00Z")),
        ("POST", "/check-runs", a_check(conclusion="stale")),
        ("POST", "/check-runs", a_check(status="done")),
        ("POST", "/check-runs", a_check(output={"summary": "no title"})),
        ("POST", "/check-runs", a_check(output={"title": "t", "summary": "s" * 65536})),
        (
            "POST",
            "/check-runs",
            a_check(output={"title": "t", "summary": "s", "text": "s" * 65536}),
        ),
        (
            "POST",
            "/check-runs",
            a_check(
                actions=[{"label": "a", "description": "b", "identifier": str(i)} for i in range(4)]
            ),
        ),
        ("POST", "/check-runs", marked(end_line=2)),
        ("POST", "/check-runs", marked(end_line=4, start_column=1)),
        ("POST", "/check-runs", marked(start_line=0, end_line=0)),
        ("POST", "/check-runs", marked(annotation_level="error")),
        ("POST", "/check-runs", marked(title="t" * 256)),
        ("POST", "/check-runs", marked(message="ü" * 40_000)),
        ("POST", "/check-runs", marked(raw_details="r" * 65_537)),
        ("POST", "/check-runs", marked(path="/a.py")),
        ("POST", "/issues/7/comments", {"body": "x" * 65537}),
        ("POST", "/issues/7/comments", {"body": "\n"}),
        ("POST", "/issues/7/comments", {"content": {"raw": "as on another host"}}),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else None,
)
def test_github_refuses(github: FakeGitHub, method: str, path: str, body: dict[str, Any]) -> None:
    """Everything it is known to answer with 422."""
    answer = ask(github, method, HUB + path, body)

    assert answer.status == 422
    assert answer.body["message"]
    assert len(github.refused) == 1
    assert (github.statuses, github.check_runs, github.comments) == ([], [], [])


def test_a_status_belongs_on_the_head_of_the_pull_request(github: FakeGitHub) -> None:
    """GitHub takes one for the merge commit, which GITHUB_SHA names, and nobody ever sees it."""
    ask(
        github,
        "POST",
        f"{HUB}/statuses/{COMMIT}",
        {"state": "pending", "context": "gpu", "target_url": LINK},
    )
    fine = list(github.refused)

    answer = ask(
        github, "POST", f"{HUB}/statuses/{MERGE_COMMIT}", {"state": "success", "context": "gpu"}
    )

    assert answer.status == 201
    assert fine == []
    assert "nobody who looks at the pull request sees it" in github.refused[0]
    assert [
        entry["state"] for entry in ask(github, "GET", f"{HUB}/commits/{COMMIT}/statuses").body
    ] == ["pending"]


def test_annotations_of_a_check_run_are_added_by_fifties(github: FakeGitHub) -> None:
    """They append: who sends them all again has them twice."""
    output = marked()["output"]
    fifty = {**output, "annotations": output["annotations"] * 50}
    created = ask(
        github, "POST", f"{HUB}/check-runs", a_check(status="in_progress", output=fifty)
    ).body
    more = ask(
        github,
        "PATCH",
        f"{HUB}/check-runs/{created['id']}",
        {"output": output, "conclusion": "failure"},
    )

    too_many = ask(
        github,
        "PATCH",
        f"{HUB}/check-runs/{created['id']}",
        {"output": {**output, "annotations": output["annotations"] * 51}},
    )

    assert (more.status, too_many.status) == (200, 422)
    assert github.check_runs[0]["status"] == "completed"
    assert len(github.check_runs[0]["output"]["annotations"]) == 51
    assert ask(github, "GET", f"{HUB}/commits/{COMMIT}/check-runs").body["total_count"] == 1
    assert ask(github, "PATCH", f"{HUB}/check-runs/999", {"conclusion": "success"}).status == 404


def test_githubs_pages_are_linked_in_a_header(github: FakeGitHub) -> None:
    """Not in the body, as Bitbucket has them."""
    for number in range(31):
        github.add_comment(f"remark {number}")

    first = ask(github, "GET", f"{HUB}/issues/7/comments")
    second = ask(github, "GET", f"{HUB}/issues/7/comments?per_page=30&page=2")

    assert (
        f'<{github.url}{HUB}/issues/7/comments?per_page=30&page=2>; rel="next"'
        in first.headers["link"]
    )
    assert (len(first.body), len(second.body)) == (30, 1)
    assert 'rel="next"' not in second.headers["link"]
    assert ask(github, "GET", f"{HUB}/issues/7/comments?per_page=101").status == 400


def test_a_comment_on_github_is_changed_in_place(github: FakeGitHub) -> None:
    """Ours, and no one else's; and only on the pull request at hand."""
    theirs = github.add_comment("quoting the marker")
    ours = ask(github, "POST", f"{HUB}/issues/7/comments", {"body": "ours"}).body["id"]

    answers = [
        ask(github, "PATCH", f"{HUB}/issues/comments/{ours}", {"body": "new"}),
        ask(github, "PATCH", f"{HUB}/issues/comments/{theirs}", {"body": "mine now"}),
        ask(github, "POST", f"{HUB}/issues/8/comments", {"body": "elsewhere"}),
        ask(github, "GET", f"{HUB}-other/issues/7/comments"),
        ask(github, "DELETE", f"{HUB}/issues/comments/{ours}"),
    ]

    assert [answer.status for answer in answers] == [200, 403, 404, 404, 204]
    assert answers[0].body["body"] == "new"
    assert [comment["body"] for comment in github.comments] == ["quoting the marker"]


def test_github_has_a_second_kind_of_limit(github: FakeGitHub) -> None:
    """A 403 that is to be waited for, unlike the one of a token that may not write."""
    github.fault(("POST", "comments"), secondary_limit(1), status(429))

    limited, throttled = (
        ask(github, "POST", f"{HUB}/issues/7/comments", {"body": "x"}) for _ in range(2)
    )

    assert (limited.status, limited.headers["retry-after"]) == (403, "1")
    assert "secondary rate limit" in limited.body["message"]
    assert throttled.status == 429
    assert github.comments == []


def test_githubs_event_names_the_commit_to_post_to(github: FakeGitHub, tmp_path: Path) -> None:
    """The environment alone names the merge commit, and says nothing of a fork."""
    environ = github.environ(tmp_path, pull_request=True, fork=True)
    event = json.loads(Path(environ["GITHUB_EVENT_PATH"]).read_text())

    assert environ["GITHUB_SHA"] == MERGE_COMMIT
    assert event["pull_request"]["head"]["sha"] == COMMIT
    assert event["pull_request"]["head"]["repo"]["full_name"] == "contributor/aerial"
    assert environ["GITHUB_TOKEN"] == github.fork_token
    assert github.environ(tmp_path, pull_request=False)["GITHUB_SHA"] == COMMIT
    assert "GITHUB_TOKEN" not in github.environ(tmp_path, token=False)


def test_commands_are_read_as_the_runner_reads_them() -> None:
    """An escape that is forgotten cuts a message short or puts it into another field."""
    read = workflow_commands(
        "hello ::error::no\n  ::error file=a.py,line=3,title=50%25%2C a%3A b::one%0Atwo: x, y\n"
        "::unknown::x\n::error no end\n"
    )

    assert read == [
        Command(
            "error", {"file": "a.py", "line": "3", "title": "50%, a: b"}, "one\ntwo: x, y", line=2
        )
    ]


@pytest.mark.parametrize("line", ["::error title=a: b::c::d", "::error title=a::b::message"])
def test_a_colon_that_is_not_escaped_moves_the_message(line: str) -> None:
    """The message begins at the first double colon, wherever that is."""
    (read,) = workflow_commands(line)

    assert read.message in ("c::d", "b::message")


def test_an_escaped_percent_sign_is_not_unescaped_twice() -> None:
    """%250A is what somebody wrote as %0A, not a new line."""
    (read,) = workflow_commands("::notice::%250A")

    assert read.message == "%0A"


@pytest.mark.parametrize(
    "line", ["::error::planted", "log ##[error]planted", "##[warning file=a.py;line=1]planted"]
)
def test_what_a_test_prints_can_be_a_command_unless_commands_are_stopped(line: str) -> None:
    """The output of a test is nobody's to trust.

    Both ways to write a command have to be stopped.
    """
    token = "0b5e3f"

    bare = workflow_commands(line)
    wrapped = workflow_commands(f"::stop-commands::{token}\n{line}\n::{token}::\n::notice::after\n")
    ended_early = workflow_commands(f"::stop-commands::{token}\n::{token}::\n{line}\n")

    assert [entry.message for entry in bare] == ["planted"]
    assert [entry.message for entry in wrapped] == ["after"]
    assert [entry.message for entry in ended_early] == ["planted"]


def test_commands_are_not_stopped_by_a_token_that_is_a_command() -> None:
    """The first ::error:: within would start them again.

    The runner takes no such token, nor an empty one.
    """
    assert (
        len(workflow_commands("::stop-commands::error\n::error::x\n::stop-commands::\n::error::y"))
        == 2
    )


def test_ten_annotations_of_a_kind_are_shown() -> None:
    """The eleventh error is lost without a word, so the summary has to have all."""
    read = workflow_commands(
        "\n".join(f"::{kind}::{number}" for number in range(12) for kind in ("error", "notice"))
    )

    assert [case.shown for case in read if case.name == "error"] == [True] * 10 + [False] * 2
    assert sum(case.shown for case in read) == 20


def test_a_summary_of_more_than_a_mebibyte_is_lost(tmp_path: Path) -> None:
    """GitHub uploads none of it, not the first mebibyte."""
    path = tmp_path / "summary.md"
    path.write_text("ü" * (512 * 1024))
    fits = job_summary(path)
    path.write_text("ü" * (512 * 1024) + ".")

    with pytest.raises(ValueError, match="1048577 bytes"):
        job_summary(path)
    assert len(fits) == 512 * 1024
