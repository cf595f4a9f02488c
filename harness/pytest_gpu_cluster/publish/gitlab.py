"""GitLab CI: the annotations report and JUnit without any token; with a project token a commit status and a note too.

Limits: docs.gitlab.com, artifacts:reports:annotations, REST groups commits and notes. A job's own token can do neither.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pytest_gpu_cluster.contract.model import CI, Settings
from pytest_gpu_cluster.publish import Surface, comment
from pytest_gpu_cluster.publish.http import (
    Door,
    Exchange,
    PublishError,
    Request,
    Response,
    unusable,
)
from pytest_gpu_cluster.report import render
from pytest_gpu_cluster.report.model import Report

TEXT_CHARS = 255
NOTE_CHARS = 900_000
STATES = {"running": "running", "passed": "success", "cancelled": "canceled"}


class GitLab:
    name = "GitLab"

    def __init__(self, ci: CI, settings: Settings, environ: Mapping[str, str]) -> None:
        self._ci, self._settings = ci, settings
        self._suite = (
            settings.suite
            if settings.suite.startswith("gpu-cluster")
            else f"gpu-cluster: {settings.suite}"
        )
        self.doors: dict[str, Door] = {}
        token = environ.get("GITLAB_TOKEN", "").strip()
        self.troubles = unusable("GITLAB_TOKEN", token)
        if token and not ci.fork and not self.troubles:
            self.doors["token"] = Door(base=ci.api, headers={"PRIVATE-TOKEN": token})
        why = "a fork has no access" if ci.fork else "no GITLAB_TOKEN"
        self.notes = (
            []
            if self.doors
            else [f"{why}: a link on the job's page and JUnit, no commit status and no note"]
        )
        self._project = f"/projects/{quote(ci.repository, safe='')}"
        self._mark = f"<!-- {self._suite} -->"

    def started(self, report: Report) -> list[Surface]:
        return self._status(report)

    def progressed(self, report: Report) -> list[Surface]:
        return []

    def finished(self, report: Report) -> list[Surface]:
        surfaces = self._status(report)
        if self.doors and self._ci.pull_request and self._settings.comment != "off":
            surfaces.append(("merge request note", self._note(report)))
        return surfaces

    def remedy(self, surface: str, problem: PublishError) -> str:
        if problem.status in (401, 403, 404):
            return "set GITLAB_TOKEN to a project access token with the scope api and the role Developer; a job's own token cannot do this"
        return (
            problem.remedy
            or "the verdict stands; send the report again with: gpu-cluster report --publish"
        )

    def files(self, report: Report, directory: Path | None) -> list[tuple[Path, str, bool]]:
        """The annotations report: links on the job's page."""
        if directory is None:
            return []
        links = [
            {
                "external_link": {
                    "label": f"{report.session}: {render.headline(report)}"[:TEXT_CHARS],
                    "url": report.link,
                }
            }
        ]
        said = {"GPU session": links} if report.link else {}
        return [
            (
                directory / f"{self._settings.suite}-annotations.json",
                json.dumps(said, indent=2) + "\n",
                False,
            )
        ]

    def opening(self) -> list[str]:
        return []

    def closing(self, report: Report) -> list[str]:
        return []

    def _status(self, report: Report) -> list[Surface]:
        def exchange() -> Exchange:
            body: dict[str, Any] = {
                "state": STATES.get(report.verdict, "failed"),
                "name": self._suite,
                "description": render.headline(report)[:TEXT_CHARS],
            }
            if report.link and len(report.link) <= TEXT_CHARS:
                body["target_url"] = report.link
            if self._ci.branch:
                body["ref"] = self._ci.branch
            if self._ci.pipeline.isdigit():  # without it the status makes a pipeline of its own
                body["pipeline_id"] = int(self._ci.pipeline)
            try:
                yield Request(
                    method="POST", path=f"{self._project}/statuses/{self._ci.commit}", body=body
                )
            except PublishError as problem:
                if not (problem.status == 400 and "Cannot transition status" in problem.body):
                    raise  # an older GitLab refuses to be told the same twice

        return [("commit status", exchange())] if self.doors else []

    def _note(self, report: Report) -> Exchange:
        text = f"{self._mark}\n{render.markdown(report, limit=NOTE_CHARS)}"
        notes = f"{self._project}/merge_requests/{quote(self._ci.pull_request)}/notes"

        def find() -> Generator[Request, Response, comment.Found]:
            found = yield from comment.pages(
                lambda page: Request(method="GET", path=f"{notes}?per_page=100&page={page}"),
                lambda said: said,
                lambda response, _: bool(response.headers.get("x-next-page")),
            )
            ours = [
                note for note in found if str(note.get("body") or "").startswith(f"{self._mark}\n")
            ]
            return (str(ours[0]["id"]), str(ours[0]["body"])) if ours else None

        return comment.exchange(
            self._settings.comment,
            report,
            text,
            find=find,
            create=Request(method="POST", path=notes, body={"body": text}, repeatable=False),
            edit=lambda which: Request(method="PUT", path=f"{notes}/{which}", body={"body": text}),
        )
