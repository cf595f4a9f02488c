"""GitLab: commit statuses and notes of a merge request.

Also the files that it reads of a job's artifacts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from tests.hosts import schemas
from tests.hosts.exchange import Answer, RefusedError, Request
from tests.hosts.readers import gitlab as gitlab_junit
from tests.hosts.schemas import Schema, Violation, violations, words
from tests.hosts.server import Host, Route

__all__ = ["FakeGitLab", "JobLink", "annotations_report", "gitlab_junit"]

PIPELINE_ID = 5512
JOB_ID = 77123
SERVER = "https://gitlab.example.com"
EVENTS = {
    "pending": "enqueue",
    "running": "run",
    "success": "success",
    "failed": "drop",
    "canceled": "cancel",
    "skipped": "skip",
}


class FakeGitLab(Host):
    """One project with one merge request.

    `token` is a project access token, `job_token` what every job has, and may only read.

    `old` is a GitLab that refuses to be told the state it already knows.
    """

    def __init__(
        self,
        *,
        project: str = "42",
        path: str = "acme/aerial",
        commit: str = "a" * 40,
        token: str = "glpat-project-access-token",
        merge_request: int = 7,
        branch: str = "feature/tiles",
        target: str = "main",
        old: bool = False,
    ) -> None:
        super().__init__()
        self.project, self.path, self.commit, self.old = project, path, commit, old
        self.token, self.job_token = token, "glcbt-job-token"
        self.merge_request, self.branch, self.target = merge_request, branch, target
        self.statuses: list[dict[str, Any]] = []  # one for each name and run of it, oldest first
        self.notes: list[dict[str, Any]] = []  # oldest first
        self.external_pipelines = (
            0  # statuses that made a pipeline of their own, as they named none
        )

    # For tests.

    def add_note(self, body: str, author: str = "ann-reviewer", *, system: bool = False) -> int:
        """Somebody else's note on the merge request; its id."""
        with self._lock:
            return int(self._new_note(body, author, system)["id"])

    def environ(
        self, tmp_path: Path, *, merge_request: bool = True, token: bool = True
    ) -> dict[str, str]:
        """The environment of a job, with the address of this host.

        The project is checked out in `tmp_path`.
        """
        variables = {
            "CI": "true",
            "GITLAB_CI": "true",
            "CI_SERVER_URL": SERVER,
            "CI_API_V4_URL": f"{self.url}/api/v4",
            "CI_PROJECT_ID": self.project,
            "CI_PROJECT_PATH": self.path,
            "CI_PROJECT_URL": f"{SERVER}/{self.path}",
            "CI_PROJECT_DIR": str(tmp_path),
            "CI_COMMIT_SHA": self.commit,
            "CI_COMMIT_REF_NAME": self.branch,
            "CI_PIPELINE_ID": str(PIPELINE_ID),
            "CI_PIPELINE_URL": f"{SERVER}/{self.path}/-/pipelines/{PIPELINE_ID}",
            "CI_PIPELINE_SOURCE": "merge_request_event" if merge_request else "push",
            "CI_JOB_ID": str(JOB_ID),
            "CI_JOB_NAME": "gpu",
            "CI_JOB_URL": f"{SERVER}/{self.path}/-/jobs/{JOB_ID}",
            "CI_JOB_TOKEN": self.job_token,
        }
        if merge_request:
            variables |= {
                "CI_MERGE_REQUEST_IID": str(self.merge_request),
                "CI_MERGE_REQUEST_TARGET_BRANCH_NAME": self.target,
                "CI_MERGE_REQUEST_SOURCE_BRANCH_NAME": self.branch,
                "CI_MERGE_REQUEST_SOURCE_PROJECT_ID": self.project,
                "CI_MERGE_REQUEST_PROJECT_ID": self.project,
            }
        else:
            variables["CI_COMMIT_BRANCH"] = self.branch
        if token:
            variables["GITLAB_TOKEN"] = self.token
        return variables

    # Who may come in.

    def admit(self, request: Request) -> None:
        header = request.headers.get("authorization", "")
        bearer = header.partition(" ")[2] if header.lower().startswith("bearer ") else ""
        token = request.headers.get("private-token") or bearer
        if not token and request.headers.get("job-token") == self.job_token:
            if request.method != "GET":
                self.refuse(self.error(401, "401 Unauthorized"), "a job token, which may only read")
        elif token != self.token:
            self.refuse(
                self.error(401, "401 Unauthorized"),
                "credentials that are not valid" if token else "no credentials",
            )

    # What is served.

    def routes(self) -> Iterable[Route]:
        project = "/api/v4/projects/{project}"
        notes = project + "/merge_requests/{merge_request}/notes"
        table: list[tuple[str, str, Callable[..., Answer]]] = [
            ("POST", project + "/statuses/{sha}", self._post_status),
            ("GET", project + "/repository/commits/{sha}/statuses", self._list_statuses),
            ("GET", notes, self._list_notes),
            ("POST", notes, self._post_note),
            ("GET", notes + "/{note}", self._get_note),
            ("PUT", notes + "/{note}", self._put_note),
            ("DELETE", notes + "/{note}", self._delete_note),
        ]
        return [Route(method, path, self._in_project(serve)) for method, path, serve in table]

    def error(self, code: int, message: str) -> Answer:
        if code == 429:
            return Answer(429, "Retry later\n", {"Content-Type": "text/plain"})
        return Answer(code, {"message": message})

    def _in_project(self, serve: Callable[..., Answer]) -> Callable[..., Answer]:
        def checked(request: Request, project: str, **rest: str) -> Answer:
            if project not in (self.project, self.path):
                self.refuse(self.error(404, "404 Project Not Found"), f"no project {project}")
            if rest.pop("merge_request", str(self.merge_request)) != str(self.merge_request):
                self.refuse(self.error(404, "404 Not found"), "no such merge request")
            return serve(request, **rest)

        return checked

    def _valid(self, request: Request, schema: Schema) -> Any:
        """The body, JSON or a form; of a form every value is text, and numbers are read from it."""
        if "json" in request.headers.get("content-type", ""):
            body = self.loaded(request)
        else:
            fields = {
                **request.query,
                **dict(
                    parse_qsl(request.content.decode("utf-8", "replace"), keep_blank_values=True)
                ),
            }
            body = {name: _typed(schema, name, value) for name, value in fields.items()}
        if broken := violations(schema, body):
            self.refuse(_error(broken[0]), words(broken))
        return body

    def _check_commit(self, sha: str) -> None:
        if sha != self.commit:
            self.refuse(self.error(404, "404 Commit Not Found"), f"no commit {sha}")

    def _listed(self, request: Request, items: list[Any]) -> Answer:
        page = self.number(request, "page", 1, 10**9)
        length = self.number(request, "per_page", 20, 100)
        more = page * length < len(items)
        headers = {
            "x-page": str(page),
            "x-per-page": str(length),
            "x-next-page": str(page + 1) if more else "",
            "x-total": str(len(items)),
        }
        return Answer(200, items[(page - 1) * length : page * length], headers)

    # Statuses.

    def _post_status(self, request: Request, sha: str) -> Answer:
        body = self._valid(request, schemas.GITLAB_STATUS)
        self._check_commit(sha)
        name = body.pop("context", None) or body.get("name", "default")
        name = body.pop("name", name)
        ref = body.get("ref", self.branch)
        if body.get("pipeline_id", PIPELINE_ID) != PIPELINE_ID:
            self.refuse(
                self.error(404, "404 Pipeline Not Found"), f"no pipeline {body['pipeline_id']}"
            )
        stored = next(
            (
                entry
                for entry in self.statuses
                if (entry["name"], entry["ref"]) == (name, ref)
                and entry["status"] in ("pending", "running")
            ),
            None,
        )
        state = body.pop("state")
        if stored is not None and stored["status"] == state and self.old:
            event = EVENTS[state]
            reason = (
                f"Cannot transition status via :{event} from :{state} "
                f'(Reason(s): Status cannot transition via "{event}")'
            )
            raise RefusedError(self.error(400, reason), "")  # a client is to bear it
        if stored is None:
            stored = {
                "id": self.serial(),
                "name": name,
                "sha": sha,
                "ref": ref,
                "description": None,
                "target_url": None,
            }
            self.statuses.append(stored)
            self.external_pipelines += "pipeline_id" not in body
        stored.update(body, status=state)
        return Answer(201, stored)

    def _list_statuses(self, request: Request, sha: str) -> Answer:
        self._check_commit(sha)
        return self._listed(request, self.statuses)

    # Notes.

    def _list_notes(self, request: Request) -> Answer:
        newest_first = request.query.get("sort", "desc") == "desc"
        return self._listed(request, self.notes[::-1] if newest_first else self.notes)

    def _post_note(self, request: Request) -> Answer:
        return Answer(
            201, self._new_note(self._valid(request, schemas.GITLAB_NOTE)["body"], "project_42_bot")
        )

    def _get_note(self, request: Request, note: str) -> Answer:
        return Answer(200, self._held(note))

    def _put_note(self, request: Request, note: str) -> Answer:
        stored = self._own(note)
        stored.update(body=self._valid(request, schemas.GITLAB_NOTE)["body"], updated_at=self.now())
        return Answer(200, stored)

    def _delete_note(self, request: Request, note: str) -> Answer:
        self.notes.remove(self._own(note))
        return Answer(204)

    def _new_note(self, body: str, author: str, system: bool = False) -> dict[str, Any]:
        now = self.now()
        user = {"username": author, "name": author}
        self.notes.append(
            {
                "id": self.serial(),
                "body": body,
                "author": user,
                "system": system,
                "created_at": now,
                "updated_at": now,
            }
        )
        return self.notes[-1]

    def _held(self, note: str) -> dict[str, Any]:
        for stored in self.notes:
            if str(stored["id"]) == note:
                return stored
        raise RefusedError(self.error(404, "404 Note Not Found"), f"no note {note}")

    def _own(self, note: str) -> dict[str, Any]:
        stored = self._held(note)
        if stored["system"] or stored["author"]["username"] != "project_42_bot":
            self.refuse(self.error(403, "403 Forbidden"), f"note {note} is somebody else's")
        return stored


def _typed(schema: Schema, name: str, value: str) -> object:
    kind = schema["properties"].get(name, {}).get("type")
    try:
        return int(value) if kind == "integer" else float(value) if kind == "number" else value
    except ValueError:
        return value


def _error(broken: Violation) -> Answer:
    match broken.rule:
        case "required":
            return Answer(400, {"error": f"{broken.field} is missing"})
        case "maxLength":
            return Answer(
                400,
                {
                    "message": {
                        broken.field: [f"is too long (maximum is {broken.limit} characters)"]
                    }
                },
            )
        case "format":
            return Answer(
                400,
                {"message": {broken.field: ["is blocked: Only allowed schemes are http, https"]}},
            )
        case "minLength" | "pattern":
            return Answer(400, {"message": {broken.field: ["can't be blank"]}})
        case _:
            return Answer(400, {"error": f"{broken.field} does not have a valid value"})


@dataclass(frozen=True)
class JobLink:
    """A link on the page of a job."""

    section: str
    label: str
    url: str


def annotations_report(path: Path) -> list[JobLink]:
    """The links of an artifacts:reports:annotations file.

    ValueError where GitLab would take none of them.
    """
    report = json.loads(path.read_text())
    if broken := violations(schemas.GITLAB_ANNOTATIONS_REPORT, report):
        raise ValueError(f"{path.name}: {words(broken)}")
    links = (
        (section, item["external_link"]) for section, items in report.items() for item in items
    )
    return [JobLink(section, link["label"], link["url"]) for section, link in links]
