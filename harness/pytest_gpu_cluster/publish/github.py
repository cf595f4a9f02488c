"""GitHub Actions: job summary and workflow commands without any token; with one a commit status and a comment, and a check run
where that is asked for.

Limits: docs.github.com, workflow commands, REST groups statuses, checks and issue comments.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pytest_gpu_cluster.contract.model import CI, Settings
from pytest_gpu_cluster.publish import Surface, comment
from pytest_gpu_cluster.publish.http import (
    Door,
    Exchange,
    Lost,
    PublishError,
    Request,
    Response,
    unusable,
)
from pytest_gpu_cluster.report import render
from pytest_gpu_cluster.report.model import NOT_TESTS, Report

DESCRIPTION_CHARS = 140
COMMENT_CHARS = 65_000
SUMMARY_BYTES = 1_000_000  # of 1 MiB for all that a step writes
SUMMARY_LEAST = 500  # bytes, or it says nothing
CHECK_CHARS, BATCH, ANNOTATIONS = 65_000, 50, 1_000
COMMANDS = 9  # 10 errors of a step are shown; one is kept for what is not a test's
STATES = {"running": "pending", "passed": "success", "failed": "failure"}
CONCLUSIONS = {
    "passed": "success",
    "cancelled": "cancelled",
}  # all else is a failure: a required check lets "neutral" pass


class GitHub:
    name = "GitHub"

    def __init__(self, ci: CI, settings: Settings, environ: Mapping[str, str]) -> None:
        self._ci, self._settings, self._environ = ci, settings, environ
        self._context = (
            settings.suite
            if settings.suite.startswith("gpu-cluster")
            else f"gpu-cluster: {settings.suite}"
        )
        self.doors: dict[str, Door] = {}
        token = environ.get("GITHUB_TOKEN", "").strip()
        self.troubles = unusable("GITHUB_TOKEN", token)
        if (
            token and not ci.fork and not self.troubles
        ):  # a fork's token can only read: summary and commands are all there is
            headers = {
                "Authorization": f"Bearer {token}",
                "Accept": "application/vnd.github+json",
                "X-GitHub-Api-Version": "2022-11-28",
            }
            self.doors["token"] = Door(base=ci.api, headers=headers)
        why = "a fork's token can only read" if ci.fork else "no GITHUB_TOKEN"
        self.notes = (
            []
            if self.doors
            else [f"{why}: job summary and annotations, no commit status and no comment"]
        )
        self._repository = f"/repos/{quote(ci.repository)}"
        self._mark = f"<!-- {self._context} -->"
        self._silence = ""  # the word that ends it; only this process knows it

    def started(self, report: Report) -> list[Surface]:
        return [*self._status(report), *self._check(report)]

    def progressed(self, report: Report) -> list[Surface]:
        return self._check(report)

    def finished(self, report: Report) -> list[Surface]:
        surfaces = [*self._status(report), *self._check(report)]
        if self.doors and self._ci.pull_request and self._settings.comment != "off":
            surfaces.append(("pull request comment", self._comment(report)))
        return surfaces

    def remedy(self, surface: str, problem: PublishError) -> str:
        needed = {
            "commit status": "statuses: write",
            "check run": "checks: write",
            "pull request comment": "pull-requests: write",
        }
        match problem.status:
            case 401:
                return "GITHUB_TOKEN is wrong or has expired: pass ${{ github.token }} to the step"
            case 403 | 404 if "rate limit" not in problem.body:
                return f"add `{needed.get(surface, 'statuses: write')}` to the job's `permissions`"
        return (
            problem.remedy
            or "the verdict stands; send the report again with: gpu-cluster report --publish"
        )

    def files(self, report: Report, directory: Path | None) -> list[tuple[Path, str, bool]]:
        """The job summary, and the outputs of the step."""
        found: list[tuple[Path, str, bool]] = []
        if summary := self._environ.get("GITHUB_STEP_SUMMARY"):
            path = Path(summary)
            room = SUMMARY_BYTES - (path.stat().st_size if path.exists() else 0)
            if room >= SUMMARY_LEAST:
                text = render.markdown(report, limit=room)
                while len(text.encode()) > room:  # the limit counts bytes
                    text = render.markdown(report, limit=len(text) * 3 // 4)
                found.append((path, text + "\n", True))
        if output := self._environ.get("GITHUB_OUTPUT"):
            said = {
                "session": report.session,
                "verdict": report.verdict,
                "link": report.link,
                "exit-code": report.exit_code,
            }
            lines = [
                f"{name}={render.one_line(str(value if value is not None else ''))}\n"
                for name, value in said.items()
            ]
            found.append((Path(output), "".join(lines), True))
        return found

    def opening(self) -> list[str]:
        """From here to the closing lines the runner takes nothing as a command: tests may print what they like."""
        self._silence = secrets.token_hex(16)
        return [f"::stop-commands::{self._silence}"]

    def closing(self, report: Report) -> list[str]:
        return [*([f"::{self._silence}::"] if self._silence else []), *self._commands(report)]

    def _commands(self, report: Report) -> Iterator[str]:
        yield command(
            "notice",
            f"{render.headline(report)} {report.link}".strip(),
            title=f"{self._context}: session {report.session}",
        )
        if report.verdict in NOT_TESTS:
            yield command(
                "error",
                f"{report.message}\nremedy: {report.remedy}"
                if report.remedy
                else report.message or report.verdict,
                title=f"Not your tests: {report.verdict}",
            )
        annotated = (
            bool(self.doors) and self._settings.check_run
        )  # by the check run, and twice would be once too often
        for result in [
            r for r in report.bad if r.problems[0].failure_class not in NOT_TESTS and not annotated
        ][:COMMANDS]:
            problem = result.problems[0]
            place = (
                {"file": result.file, "line": str(problem.line or result.line or 1)}
                if result.file
                else {}
            )
            yield command(
                "error",
                f"{problem.message}\n{render.session_line(report)}",
                title=result.nodeid,
                **place,
            )

    # -- with a token --------------------------------------------------------------------------------------------------

    def _status(self, report: Report) -> list[Surface]:
        def exchange() -> Exchange:
            body = {
                "state": STATES.get(report.verdict, "error"),
                "context": self._context,
                "description": render.shorten(render.headline(report), DESCRIPTION_CHARS),
            }
            body |= {"target_url": report.link} if report.link else {}
            yield Request(
                method="POST", path=f"{self._repository}/statuses/{self._ci.commit}", body=body
            )

        return [("commit status", exchange())] if self.doors else []

    def _check(self, report: Report) -> list[Surface]:
        """One check run a commit and suite, found again by its name: this may be another process than the one that made it."""

        def exchange() -> Exchange:
            name = quote(self._context, safe="")
            path = f"{self._repository}/commits/{self._ci.commit}/check-runs?check_name={name}&filter=latest"
            find = Request(method="GET", path=path)

            def ours() -> Generator[Request, Response, dict[str, Any]]:
                found = yield from comment.pages(
                    lambda _: find, lambda said: said["check_runs"], lambda *_: False
                )
                return next((run for run in found if run.get("external_id") == report.session), {})

            run = yield from ours()
            if run.get("status") == "completed":
                return  # told already: annotations would be added to those that are there
            body = self._check_body(report)
            annotations = list(_annotations(report)) if report.verdict != "running" else []
            body["output"]["annotations"] = annotations[:BATCH]
            if run:
                yield Request(
                    method="PATCH",
                    path=f"{self._repository}/check-runs/{run['id']}",
                    body=body,
                    repeatable=not annotations,
                )
                number = run["id"]
            else:
                create = Request(
                    method="POST",
                    path=f"{self._repository}/check-runs",
                    body={"head_sha": self._ci.commit, **body},
                    repeatable=False,
                )
                try:
                    number = (yield create).json()["id"]
                except Lost:
                    number = (yield from ours()).get("id") or (yield create).json()["id"]
            for start in range(
                BATCH, len(annotations), BATCH
            ):  # they are added to those that are there
                output = {**body["output"], "annotations": annotations[start : start + BATCH]}
                yield Request(
                    method="PATCH",
                    path=f"{self._repository}/check-runs/{number}",
                    body={"output": output},
                    repeatable=False,
                )

        return [("check run", exchange())] if self.doors and self._settings.check_run else []

    def _check_body(self, report: Report) -> dict[str, Any]:
        running = report.verdict == "running"
        body: dict[str, Any] = {
            "name": self._context,
            "external_id": report.session,
            "status": "in_progress" if running else "completed",
            "output": {
                "title": render.shorten(render.headline(report), 255),
                "summary": render.markdown(report, limit=CHECK_CHARS),
            },
        }
        body |= {} if running else {"conclusion": CONCLUSIONS.get(report.verdict, "failure")}
        return body | ({"details_url": report.link} if report.link else {})

    def _comment(self, report: Report) -> Exchange:
        text = f"{self._mark}\n{render.markdown(report, limit=COMMENT_CHARS - len(self._mark))}"
        issue = f"{self._repository}/issues/{quote(self._ci.pull_request)}/comments"

        def find() -> Generator[Request, Response, comment.Found]:
            found = yield from comment.pages(
                lambda page: Request(method="GET", path=f"{issue}?per_page=100&page={page}"),
                lambda said: said,
                lambda _, said: len(said) == 100,
            )
            ours = [c for c in found if str(c.get("body") or "").startswith(f"{self._mark}\n")]
            return (
                (str(ours[-1]["id"]), str(ours[-1]["body"])) if ours else None
            )  # the newest: an older one may be another token's

        return comment.exchange(
            self._settings.comment,
            report,
            text,
            find=find,
            create=Request(method="POST", path=issue, body={"body": text}, repeatable=False),
            edit=lambda which: Request(
                method="PATCH",
                path=f"{self._repository}/issues/comments/{which}",
                body={"body": text},
            ),
        )


def command(kind: str, message: str, **properties: str) -> str:
    """One workflow command, escaped as the runner unescapes it.

    >>> command("error", "50% of\\nit", file="a,b.py", title="x::y")
    '::error file=a%2Cb.py,title=x%3A%3Ay::50%25 of%0Ait'
    """
    said = ",".join(
        f"{name}={_escaped(value).replace(':', '%3A').replace(',', '%2C')}"
        for name, value in properties.items()
    )
    return f"::{kind}{f' {said}' if said else ''}::{_escaped(message)}"


def _escaped(text: str) -> str:
    kept = render.plain(text.replace("\r\n", "\n"))
    return kept.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _annotations(report: Report) -> Iterator[dict[str, Any]]:
    for result in [result for result in report.bad if result.file][:ANNOTATIONS]:
        problem = result.problems[0]
        line = problem.line or result.line or 1
        yield {
            "path": result.file,
            "start_line": line,
            "end_line": line,
            "annotation_level": "warning" if problem.failure_class in NOT_TESTS else "failure",
            "title": render.shorten(render.one_line(result.nodeid), 255),
            "message": render.shorten(render.plain(problem.message) or "failed", 10_000),
            "raw_details": render.shorten(render.plain(problem.text), 15_000),
        }
