"""GitHub Actions: job summary and workflow commands without any token.

With a token also a commit status and a comment, and a check run where the settings ask for one.
Limits: docs.github.com, REST groups statuses, checks and issue comments.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Generator, Iterator, Mapping
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
    JsonObject,
    JsonValue,
    Page,
    PublishError,
    Request,
    Response,
    ResponseLost,
    fetch_pages,
    json_child,
    json_object,
    json_objects,
)
from pytest_gpu_cluster.publish.http import token_problem
from pytest_gpu_cluster.publish.workflow_commands import commands
from pytest_gpu_cluster.report import render
from pytest_gpu_cluster.report.model import NOT_TESTS, Report

DESCRIPTION_CHARS = 140
COMMENT_CHARS = 65_000
SUMMARY_BYTES = 1_000_000  # of 1 MiB for all that a step writes
SUMMARY_MIN_BYTES = 500  # a shorter summary has no room for a fact
CHECK_CHARS, BATCH, MAX_ANNOTATIONS = 65_000, 50, 1_000
TITLE_CHARS, MESSAGE_CHARS, RAW_CHARS = 255, 10_000, 15_000  # of a check run and its annotations
STATES = {"running": "pending", "passed": "success", "failed": "failure"}
# Everything else is a failure: a required check lets "neutral" pass.
CONCLUSIONS = {"passed": "success", "cancelled": "cancelled"}
STATUS, CHECK_RUN, COMMENT = "commit status", "check run", "pull request comment"
PERMISSIONS = {
    STATUS: "statuses: write",
    CHECK_RUN: "checks: write",
    COMMENT: "pull-requests: write",
}


class GitHub(Publisher):
    """Publishes to a step's files and output, and with a token to the commit and pull request."""

    name = "GitHub"
    api_variable, api_default = "GITHUB_API_URL", "https://api.github.com"
    repository_variable = "GITHUB_REPOSITORY"
    grammar: ClassVar[Mapping[str, str]] = {
        **Publisher.grammar,
        "repository": rf"{NAME}/{NAME}",
        "build": rf"{NAME}/{NAME}/{NUMBER}",
    }

    def __init__(self, ci: CI, settings: Settings, environ: Mapping[str, str]) -> None:
        super().__init__(ci, settings, environ)
        suite = settings.reports.suite
        self._context = suite if suite.startswith("gpu-cluster") else f"gpu-cluster: {suite}"
        self._summary = environ.get("GITHUB_STEP_SUMMARY", "")
        self._output = environ.get("GITHUB_OUTPUT", "")
        token = environ.get("GITHUB_TOKEN", "").strip()
        if problem := token_problem("GITHUB_TOKEN", token):
            self.troubles.append(problem)
        elif token and not ci.fork:  # a fork's token can only read
            headers = {
                "Authorization": f"Bearer {token}",
                "Accept": "application/vnd.github+json",
                "X-GitHub-Api-Version": "2022-11-28",
            }
            self.endpoints["token"] = Endpoint(base=ci.api, headers=headers)
        if not self.endpoints:
            reason = "a fork's token can only read" if ci.fork else "no GITHUB_TOKEN"
            self.notes.append(
                f"{reason}: job summary and annotations, no commit status and no comment"
            )
        self._repository = f"/repos/{quote(ci.repository)}"
        self._mark = f"<!-- {self._context} -->"
        self._resume_word = ""  # ends the time without commands; only this process has it

    @classmethod
    def detect(cls, environ: Mapping[str, str], read: ReadText) -> CI | None:
        """Return the step of a workflow that `environ` and the file of its event describe.

        Without a readable event the step counts as one of a push.
        """

        def get(name: str) -> str:
            return environ.get(f"GITHUB_{name}", "")

        if get("ACTIONS") != "true":
            return None
        event: JsonValue = {}
        with contextlib.suppress(OSError, ValueError):
            event = json.loads(read(get("EVENT_PATH"))) if get("EVENT_PATH") else {}
        pull_request = json_child(event, "pull_request")
        head = json_child(pull_request, "head")
        run = f"{get('REPOSITORY')}/actions/runs/{get('RUN_ID')}"
        attempt = f"/attempts/{get('RUN_ATTEMPT')}" if get("RUN_ATTEMPT") else ""
        return CI(
            host="github",
            api=cls.api(environ),
            repository=get("REPOSITORY"),
            # GITHUB_SHA is the merge with the target, which no reviewer looks at.
            commit=str(head.get("sha") or get("SHA")),
            branch=get("HEAD_REF") or get("REF_NAME"),
            target=str(json_child(pull_request, "base").get("ref", "")),
            pull_request=str(pull_request.get("number", "")),
            build=f"{get('REPOSITORY')}/{get('RUN_ID')}",
            step_url=f"{_server(environ)}/{run}{attempt}",
            directory=get("WORKSPACE"),
            fork=_reads_only(environ, pull_request),
        )

    @classmethod
    def page(cls, ci: CI, environ: Mapping[str, str]) -> str:
        return f"{_server(environ)}/{ci.repository}/actions/runs/"

    def started(self, report: Report) -> list[Target]:
        return [*self._status(report), *self._check_run(report)]

    def progressed(self, report: Report) -> list[Target]:
        return self._check_run(report)

    def finished(self, report: Report) -> list[Target]:
        targets = [*self._status(report), *self._check_run(report)]
        if self.endpoints and self.has_pull_request and self.settings.reports.comment != "off":
            targets.append(Target(COMMENT, self._comment(report)))
        return targets

    def remedy(self, target: str, problem: PublishError) -> str:
        match problem.status:
            case 401:
                return "GITHUB_TOKEN is wrong or has expired: pass ${{ github.token }} to the step"
            case 403 | 404 if not _is_rate_limit(problem):
                permission = PERMISSIONS.get(target, PERMISSIONS[STATUS])
                return f"add `{permission}` to the job's `permissions`"
        return super().remedy(target, problem)

    def files(self, report: Report, directory: Path | None) -> list[HostFile]:
        """Return the job summary, and the outputs of the step."""
        files: list[HostFile] = []
        if self._summary:
            path = Path(self._summary)
            room = SUMMARY_BYTES - (path.stat().st_size if path.exists() else 0)
            if room >= SUMMARY_MIN_BYTES:
                files.append(HostFile(path, _summary(report, room) + "\n", True))
        if self._output:
            outputs = {
                "session": report.session,
                "verdict": report.verdict,
                "link": report.context.link,
                "exit-code": "" if report.exit_code is None else str(report.exit_code),
            }
            lines = [f"{name}={render.one_line(value)}\n" for name, value in outputs.items()]
            files.append(HostFile(Path(self._output), "".join(lines), True))
        return files

    def opening(self) -> list[str]:
        """Return the line after which the runner takes nothing as a command, whatever tests print.

        The first line of `closing` ends that time.
        """
        self._resume_word = secrets.token_hex(16)
        return [f"::stop-commands::{self._resume_word}"]

    def closing(self, report: Report) -> list[str]:
        resume = [f"::{self._resume_word}::"] if self._resume_word else []
        annotate = not (
            self.endpoints and self.has_commit and self.settings.reports.check_run
        )  # a check run annotates too
        return [*resume, *commands(report, self._context, annotate=annotate)]

    # -- with a token ------------------------------------------------------------------------------

    def _status(self, report: Report) -> list[Target]:
        def exchange() -> Exchange:
            body = {
                "state": STATES.get(report.verdict, "error"),
                "context": self._context,
                "description": render.shorten(render.headline(report), DESCRIPTION_CHARS),
            }
            body |= {"target_url": report.context.link} if report.context.link else {}
            path = f"{self._repository}/statuses/{self.ci.commit}"
            yield Request(method="POST", path=path, body=body)

        return [Target(STATUS, exchange())] if self.endpoints and self.has_commit else []

    def _check_run(self, report: Report) -> list[Target]:
        if not self.endpoints or not self.has_commit or not self.settings.reports.check_run:
            return []
        return [Target(CHECK_RUN, self._update_check_run(report))]

    def _update_check_run(self, report: Report) -> Exchange:
        """Create or update the check run of a session; annotations are added in batches.

        A completed one stays as it is: annotations would be added to those that are present.
        """
        existing = yield from self._find_check_run(report.session)
        if existing.get("status") == "completed":
            return
        path, output = f"{self._repository}/check-runs", _check_output(report)
        annotations = [] if report.verdict == "running" else list(_annotations(report))
        body = self._check_body(report, output | {"annotations": annotations[:BATCH]})
        if existing:
            number, repeatable = existing["id"], not annotations
            yield Request(method="PATCH", path=f"{path}/{number}", body=body, repeatable=repeatable)
        else:
            number = yield from self._create_check_run(report.session, body)
        for start in range(BATCH, len(annotations), BATCH):
            batch = {"output": output | {"annotations": annotations[start : start + BATCH]}}
            yield Request(method="PATCH", path=f"{path}/{number}", body=batch, repeatable=False)

    def _find_check_run(self, session: str) -> Generator[Request, Response, JsonObject]:
        """Return the session's check run, or {}. Another process may have created it."""
        name = quote(self._context, safe="")
        commit = f"{self._repository}/commits/{self.ci.commit}"
        path = f"{commit}/check-runs?check_name={name}&filter=latest"

        def read(_: Response, body: JsonValue) -> Page:
            return Page(entries=json_objects(json_object(body)["check_runs"]), last=True)

        runs = yield from fetch_pages(lambda _: Request(method="GET", path=path), read)
        return next((run for run in runs if run.get("external_id") == session), {})

    def _create_check_run(
        self, session: str, body: JsonObject
    ) -> Generator[Request, Response, JsonValue]:
        """Return the id of a new check run; after a lost response of one that exists."""
        create = Request(
            method="POST",
            path=f"{self._repository}/check-runs",
            body={"head_sha": self.ci.commit, **body},
            repeatable=False,
        )
        try:
            return json_object((yield create).json())["id"]
        except ResponseLost:
            number = (yield from self._find_check_run(session)).get("id")
            return number or json_object((yield create).json())["id"]

    def _check_body(self, report: Report, output: JsonObject) -> JsonObject:
        running = report.verdict == "running"
        body: dict[str, JsonValue] = {
            "name": self._context,
            "external_id": report.session,
            "status": "in_progress" if running else "completed",
            "output": output,
        }
        body |= {} if running else {"conclusion": CONCLUSIONS.get(report.verdict, "failure")}
        return body | ({"details_url": report.context.link} if report.context.link else {})

    def _comment(self, report: Report) -> Exchange:
        text = f"{self._mark}\n{render.markdown(report, limit=COMMENT_CHARS - len(self._mark))}"
        path = f"{self._repository}/issues/{quote(self.ci.pull_request)}/comments"
        edited = f"{self._repository}/issues/comments"

        def read(_: Response, body: JsonValue) -> Page:
            entries = json_objects(body)
            return Page(entries=entries, last=len(entries) != 100)

        def find() -> comment.FindComment:
            entries = yield from fetch_pages(
                lambda page: Request(method="GET", path=f"{path}?per_page=100&page={page}"), read
            )
            ours = comment.marked(entries, self._mark)
            return ours[-1] if ours else None  # an older one may be another account's

        api = comment.CommentApi(
            find=find,
            create=Request(method="POST", path=path, body={"body": text}, repeatable=False),
            edit=lambda id_: Request(method="PATCH", path=f"{edited}/{id_}", body={"body": text}),
        )
        return comment.exchange(self.settings.reports.comment, report, text, api)


def _server(environ: Mapping[str, str]) -> str:
    """Return the URL that the host's pages are below, without a slash at the end."""
    return (environ.get("GITHUB_SERVER_URL") or "https://github.com").rstrip("/")


def _reads_only(environ: Mapping[str, str], pull_request: JsonObject) -> bool:
    """Return True if the step's token cannot write: for a fork's pull request, or dependabot."""
    event = environ.get("GITHUB_EVENT_NAME", "")
    if environ.get("GITHUB_ACTOR") == "dependabot[bot]" and event in ("pull_request", "push"):
        return True
    source = json_child(json_child(pull_request, "head"), "repo").get("full_name", "")
    of_fork = source != environ.get("GITHUB_REPOSITORY", "")
    return event == "pull_request" and bool(pull_request) and of_fork


def _is_rate_limit(problem: PublishError) -> bool:
    """Return True for GitHub's secondary limit: it too is a 403, told apart by its words alone."""
    return "rate limit" in problem.body


def _summary(report: Report, room: int) -> str:
    """Return the job summary, of at most `room` bytes in UTF-8."""
    text = render.markdown(report, limit=room)
    while len(text.encode()) > room:  # the renderer's limit counts characters
        text = render.markdown(report, limit=len(text) * 3 // 4)
    return text


def _check_output(report: Report) -> dict[str, JsonValue]:
    return {
        "title": render.shorten(render.headline(report), TITLE_CHARS),
        "summary": render.markdown(report, limit=CHECK_CHARS),
    }


def _annotations(report: Report) -> Iterator[JsonObject]:
    """Yield an annotation for each test with a problem whose file is known."""
    for result in [result for result in report.bad if result.file][:MAX_ANNOTATIONS]:
        problem = result.problems[0]
        line = problem.line or result.line or 1
        yield {
            "path": result.file,
            "start_line": line,
            "end_line": line,
            "annotation_level": "warning" if problem.failure_class in NOT_TESTS else "failure",
            "title": render.shorten(render.one_line(result.nodeid), TITLE_CHARS),
            "message": render.shorten(render.plain(problem.message) or "failed", MESSAGE_CHARS),
            "raw_details": render.shorten(render.plain(problem.text), RAW_CHARS),
        }
