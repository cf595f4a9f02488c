"""GitLab CI: the annotations report and JUnit without any token.

With a project token also a commit status and a note; a job's own token can write neither.
Limits: docs.gitlab.com, artifacts:reports:annotations, REST groups commits and notes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

from pytest_gpu_cluster.contract.request import CI
from pytest_gpu_cluster.contract.settings import Settings
from pytest_gpu_cluster.publish import (
    NAME,
    NUMBER,
    HostFile,
    Publisher,
    ReadText,
    Target,
    comment,
)
from pytest_gpu_cluster.publish.exchange import (
    Endpoint,
    Exchange,
    JsonValue,
    Page,
    PublishError,
    Request,
    Response,
    fetch_pages,
    json_objects,
)
from pytest_gpu_cluster.publish.http import token_problem
from pytest_gpu_cluster.report import render
from pytest_gpu_cluster.report.model import Report

TEXT_CHARS = 255
NOTE_CHARS = 900_000
STATES = {"running": "running", "passed": "success", "cancelled": "canceled"}
STATUS, NOTE = "commit status", "merge request note"


class GitLab(Publisher):
    """Publishes to a file of the job, and with a token to the commit and merge request."""

    name = "GitLab"
    api_variable, api_default = "CI_API_V4_URL", "https://gitlab.com/api/v4"
    repository_variable = "CI_PROJECT_ID"
    grammar: ClassVar[Mapping[str, str]] = {
        **Publisher.grammar,
        "repository": rf"{NUMBER}|{NAME}(/{NAME})+",
        "build": rf"{NUMBER}/{NUMBER}",
    }

    def __init__(self, ci: CI, settings: Settings, environ: Mapping[str, str]) -> None:
        super().__init__(ci, settings, environ)
        suite = settings.reports.suite
        self._context = suite if suite.startswith("gpu-cluster") else f"gpu-cluster: {suite}"
        token = environ.get("GITLAB_TOKEN", "").strip()
        if problem := token_problem("GITLAB_TOKEN", token):
            self.troubles.append(problem)
        elif token and not ci.fork:
            self.endpoints["token"] = Endpoint(base=ci.api, headers={"PRIVATE-TOKEN": token})
        if not self.endpoints:
            reason = "a fork has no access" if ci.fork else "no GITLAB_TOKEN"
            self.notes.append(
                f"{reason}: a link on the job's page and JUnit, no commit status and no note"
            )
        self._project = f"/projects/{quote(ci.repository, safe='')}"
        self._mark = f"<!-- {self._context} -->"

    @classmethod
    def detect(cls, environ: Mapping[str, str], read: ReadText) -> CI | None:
        """Return the job that `environ` describes."""

        def get(name: str) -> str:
            return environ.get(f"CI_{name}", "")

        if not environ.get("GITLAB_CI"):
            return None
        # A pipeline in the fork has the fork's id as the source.
        projects = {get("MERGE_REQUEST_SOURCE_PROJECT_ID"), get("MERGE_REQUEST_PROJECT_ID")}
        return CI(
            host="gitlab",
            api=cls.api(environ),
            repository=get("PROJECT_ID"),
            # A pipeline for merged results runs on a commit that is in no branch.
            commit=get("MERGE_REQUEST_SOURCE_BRANCH_SHA") or get("COMMIT_SHA"),
            branch=get("MERGE_REQUEST_SOURCE_BRANCH_NAME") or get("COMMIT_REF_NAME"),
            target=get("MERGE_REQUEST_TARGET_BRANCH_NAME"),
            pull_request=get("MERGE_REQUEST_IID"),
            build=f"{get('PROJECT_ID')}/{get('PIPELINE_ID')}",
            step_url=get("JOB_URL"),
            directory=get("PROJECT_DIR"),
            pipeline=get("PIPELINE_ID"),
            fork=bool(projects - {"", get("PROJECT_ID")}),
        )

    @classmethod
    def page(cls, ci: CI, environ: Mapping[str, str]) -> str:
        project = environ.get("CI_PROJECT_URL", "").rstrip("/")
        return f"{project}/-/jobs/" if project else ""

    def started(self, report: Report) -> list[Target]:
        return self._status(report)

    def finished(self, report: Report) -> list[Target]:
        targets = self._status(report)
        if self.endpoints and self.has_pull_request and self.settings.reports.comment != "off":
            targets.append(Target(NOTE, self._note(report)))
        return targets

    def remedy(self, target: str, problem: PublishError) -> str:
        if problem.status in (401, 403, 404):
            return (
                "set GITLAB_TOKEN to a project access token with the scope api and the role "
                "Developer; a job's own token cannot do this"
            )
        return super().remedy(target, problem)

    def files(self, report: Report, directory: Path | None) -> list[HostFile]:
        """Return the annotations report: links on the job's page."""
        if directory is None:
            return []
        label = f"{report.session}: {render.headline(report)}"[:TEXT_CHARS]
        links = [{"external_link": {"label": label, "url": report.context.link}}]
        text = json.dumps({"GPU session": links} if report.context.link else {}, indent=2)
        path = directory / f"{self.settings.reports.suite}-annotations.json"
        return [HostFile(path, f"{text}\n", False)]

    def _status(self, report: Report) -> list[Target]:
        def exchange() -> Exchange:
            body: dict[str, JsonValue] = {
                "state": STATES.get(report.verdict, "failed"),
                "name": self._context,
                "description": render.headline(report)[:TEXT_CHARS],
            }
            if report.context.link and len(report.context.link) <= TEXT_CHARS:
                body["target_url"] = report.context.link
            if self.ci.branch:
                body["ref"] = self.ci.branch
            if self.ci.pipeline.isdigit():  # without it the status makes a pipeline of its own
                body["pipeline_id"] = int(self.ci.pipeline)
            path = f"{self._project}/statuses/{self.ci.commit}"
            try:
                yield Request(method="POST", path=path, body=body)
            except PublishError as problem:
                if not _is_same_state(problem):
                    raise

        return [Target(STATUS, exchange())] if self.endpoints and self.has_commit else []

    def _note(self, report: Report) -> Exchange:
        text = f"{self._mark}\n{render.markdown(report, limit=NOTE_CHARS)}"
        path = f"{self._project}/merge_requests/{quote(self.ci.pull_request)}/notes"

        def read(response: Response, body: JsonValue) -> Page:
            last = not response.headers.get("x-next-page")
            return Page(entries=json_objects(body), last=last)

        def find() -> comment.FindComment:
            entries = yield from fetch_pages(
                lambda page: Request(method="GET", path=f"{path}?per_page=100&page={page}"), read
            )
            ours = comment.marked(entries, self._mark)
            return ours[0] if ours else None  # the newest comes first

        api = comment.CommentApi(
            find=find,
            create=Request(method="POST", path=path, body={"body": text}, repeatable=False),
            edit=lambda id_: Request(method="PUT", path=f"{path}/{id_}", body={"body": text}),
        )
        return comment.exchange(self.settings.reports.comment, report, text, api)


def _is_same_state(problem: PublishError) -> bool:
    """Return True if an older GitLab refuses a state because the status has it already.

    The API has no code for it: its words alone tell it apart.
    """
    return problem.status == 400 and "Cannot transition status" in problem.body
