"""The fake GitLab: statuses, notes, and the environment of a job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.hosts import FakeGitLab, JobLink, annotations_report
from tests.unit.hosts.rig import COMMIT, LAB, LINK, NOTES, ask


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Authorization": ""}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "", "PRIVATE_TOKEN": "wrong"}, 401),
        ({"Authorization": "", "JOB_TOKEN": "glcbt-job-token"}, 401),
    ],
)
@pytest.mark.parametrize(
    ("path", "body"), [(f"{LAB}/statuses/{COMMIT}", {"state": "success"}), (NOTES, {"body": "x"})]
)
def test_gitlab_lets_nobody_write_without_a_projects_token(
    gitlab: FakeGitLab, headers: dict[str, str], code: int, path: str, body: dict[str, str]
) -> None:
    """The token that each job has may read notes, and write nothing."""
    answer = ask(gitlab, "POST", path, body, **headers)

    assert answer.status == code
    assert answer.body == {"message": "401 Unauthorized"}
    assert len(gitlab.refused) == 1


def test_gitlab_takes_either_header(gitlab: FakeGitLab) -> None:
    """And lets a job's own token read."""
    answers = [
        ask(gitlab, "GET", NOTES),
        ask(gitlab, "GET", NOTES, Authorization="", PRIVATE_TOKEN=gitlab.token),
        ask(gitlab, "GET", NOTES, Authorization="", JOB_TOKEN=gitlab.job_token),
    ]

    assert [answer.status for answer in answers] == [200, 200, 200]
    assert gitlab.refused == []


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        (f"{LAB}/statuses/{COMMIT}", {"name": "gpu"}, 400),
        (f"{LAB}/statuses/{COMMIT}", {"state": "failure"}, 400),
        (f"{LAB}/statuses/{COMMIT}", {"state": "failed", "description": "d" * 256}, 400),
        (
            f"{LAB}/statuses/{COMMIT}",
            {"state": "failed", "target_url": "https://a.example/" + "u" * 255},
            400,
        ),
        (f"{LAB}/statuses/{COMMIT}", {"state": "failed", "target_url": "javascript:alert(1)"}, 400),
        (f"{LAB}/statuses/{COMMIT}", {"state": "failed", "pipeline_id": "12x"}, 400),
        (f"{LAB}/statuses/{COMMIT}", {"state": "failed", "pipeline_id": 1}, 404),
        (f"{LAB}/statuses/{COMMIT}", {"state": "failed", "colour": "red"}, 400),
        (f"{LAB}/statuses/{'b' * 40}", {"state": "failed"}, 404),
        (f"/api/v4/projects/43/statuses/{COMMIT}", {"state": "failed"}, 404),
        (NOTES, {"body": "x" * 1_000_001}, 400),
        (NOTES, {"body": ""}, 400),
        (NOTES, {}, 400),
        (NOTES.replace("/7/", "/8/"), {"body": "x"}, 404),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else None,
)
def test_gitlab_refuses(gitlab: FakeGitLab, path: str, body: dict[str, Any], code: int) -> None:
    """Everything it is known to answer so."""
    answer = ask(gitlab, "POST", path, body)

    assert answer.status == code
    assert len(gitlab.refused) == 1
    assert (gitlab.statuses, gitlab.notes) == ([], [])


def test_gitlab_takes_a_form_too(gitlab: FakeGitLab) -> None:
    """With the project by its path.

    JSON that does not say that it is JSON is a form without fields.
    """
    path = f"/api/v4/projects/{quote('acme/aerial', safe='')}/statuses/{COMMIT}"
    form = "application/x-www-form-urlencoded"

    posted = ask(
        gitlab,
        "POST",
        path,
        "state=running&name=gpu&pipeline_id=5512&coverage=81.5",
        Content_Type=form,
    )
    unsaid = ask(gitlab, "POST", path, '{"state": "running"}', Content_Type=form)

    assert (posted.status, unsaid.status) == (201, 400)
    assert (
        gitlab.statuses[0]["status"],
        gitlab.statuses[0]["pipeline_id"],
        gitlab.statuses[0]["coverage"],
    ) == ("running", 5512, 81.5)
    assert gitlab.external_pipelines == 0


@pytest.mark.parametrize("old", [False, True])
def test_an_old_gitlab_refuses_to_hear_the_same_state_again(old: bool) -> None:
    """A client has to bear it, so it is not held against it."""
    with FakeGitLab(old=old) as host:
        answers = [
            ask(host, "POST", f"{LAB}/statuses/{COMMIT}", {"state": state, "name": "gpu"})
            for state in ("running", "running", "success")
        ]

    assert [answer.status for answer in answers] == [201, 400 if old else 201, 201]
    assert not old or answers[1].body["message"].startswith(
        "Cannot transition status via :run from :running"
    )
    assert [entry["status"] for entry in host.statuses] == ["success"]
    assert host.external_pipelines == 1
    assert host.refused == []


def test_gitlabs_pages_are_counted_in_headers(gitlab: FakeGitLab) -> None:
    """The newest first, so a marker may be on the last page."""
    ours = ask(gitlab, "POST", NOTES, {"body": "ours"}).body["id"]
    for number in range(20):
        gitlab.add_note(f"remark {number}", system=number == 0)

    first = ask(gitlab, "GET", NOTES)
    second = ask(gitlab, "GET", f"{NOTES}?page={first.headers['x-next-page']}")

    assert [entry["id"] for entry in second.body] == [ours]
    assert (len(first.body), second.headers["x-next-page"]) == (20, "")
    assert ask(gitlab, "GET", f"{NOTES}?per_page=101").status == 400


def test_a_note_is_changed_by_its_author_alone(gitlab: FakeGitLab) -> None:
    """As everywhere."""
    theirs = gitlab.add_note("quoting the marker")
    ours = ask(gitlab, "POST", NOTES, {"body": "ours"}).body["id"]

    answers = [
        ask(gitlab, "PUT", f"{NOTES}/{note}", {"body": "new"}) for note in (ours, theirs, 999)
    ]

    assert [answer.status for answer in answers] == [200, 403, 404]
    assert [note["body"] for note in gitlab.notes] == ["quoting the marker", "new"]


def test_gitlabs_environment_is_that_of_a_job(gitlab: FakeGitLab, tmp_path: Path) -> None:
    """A link to the job never leads to where the API is."""
    environ = gitlab.environ(tmp_path)

    assert environ["CI_API_V4_URL"] == f"{gitlab.url}/api/v4"
    assert environ["CI_JOB_URL"].startswith("https://gitlab.example.com/acme/aerial/-/jobs/")
    assert "CI_MERGE_REQUEST_IID" not in gitlab.environ(tmp_path, merge_request=False)
    assert "GITLAB_TOKEN" not in gitlab.environ(tmp_path, token=False)


@pytest.mark.parametrize(
    "report",
    [
        {"gpu": {"external_link": {"label": "a", "url": LINK}}},
        {"gpu": [{"external_link": {"label": "a"}}]},
        {"gpu": [{"external_link": {"label": "a", "url": "gpu.example.com"}}]},
        {"gpu": [{"link": {"label": "a", "url": LINK}}]},
        [],
    ],
    ids=json.dumps,
)
def test_gitlab_refuses_an_annotations_report(tmp_path: Path, report: object) -> None:
    """It says nothing of it in the job, and the link is simply not there."""
    (tmp_path / "links.json").write_text(json.dumps(report))

    with pytest.raises(ValueError, match=r"links\.json"):
        annotations_report(tmp_path / "links.json")


def test_gitlab_reads_an_annotations_report(tmp_path: Path) -> None:
    """The one way to a link on the job's page that needs no token."""
    (tmp_path / "links.json").write_text(
        json.dumps({"gpu": [{"external_link": {"label": "Session", "url": LINK}}]})
    )

    assert annotations_report(tmp_path / "links.json") == [JobLink("gpu", "Session", LINK)]
