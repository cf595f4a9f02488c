"""Bitbucket Cloud: Code Insights without any credential; with a token a commit status and a comment too.

Limits and shapes: developer.atlassian.com/cloud/bitbucket/rest, the groups reports, commit statuses and pull requests.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pytest_gpu_cluster.contract.model import CI, Settings
from pytest_gpu_cluster.publish import Surface, comment
from pytest_gpu_cluster.publish.http import Door, Exchange, NoDoor, PublishError, Request, Response
from pytest_gpu_cluster.report import render
from pytest_gpu_cluster.report.model import NOT_TESTS, Report, Result

PROXIES = (
    "http://localhost:29418",
    "http://host.docker.internal:29418",
)  # from a step, and from a container in it
THROUGH_PROXY = "http://api.bitbucket.org/2.0"  # plain http: the proxy adds the credential
KEY_CHARS, NAME_CHARS = 40, 255
TITLE_CHARS, DETAILS_CHARS = 450, 2_000
SUMMARY_CHARS = 450
ANNOTATIONS, BATCH = 1_000, 100
COMMENT_CHARS = 31_000
STATES = {"running": "INPROGRESS", "passed": "SUCCESSFUL", "cancelled": "STOPPED"}
RESULTS = {"running": "PENDING", "passed": "PASSED"}
NO_APP_PASSWORDS = (
    "app passwords were removed from Bitbucket on 2026-07-28; create a repository access token with the scopes repository and "
    "pullrequest:write, and set it as BITBUCKET_TOKEN in the repository's secured variables"
)


class Bitbucket:
    name = "Bitbucket"

    def __init__(self, ci: CI, settings: Settings, environ: Mapping[str, str]) -> None:
        self._ci, self._settings = ci, settings
        self._id = (
            settings.suite
            if settings.suite.startswith("gpu-cluster")
            else f"gpu-cluster-{settings.suite}"
        )
        proxies = (
            (environ["BITBUCKET_PIPELINES_PROXY"],)
            if environ.get("BITBUCKET_PIPELINES_PROXY")
            else PROXIES
        )
        header, self.troubles = credential(environ)
        if (path := environ.get("BITBUCKET_TEST_METADATA_FILE_PATH")) and not quarantine_reads(
            path
        ):
            self.troubles.append(
                f"the list of quarantined tests in {path} cannot be read: every test was run"
            )
        self.doors = {"proxy": Door(base=THROUGH_PROXY, proxies=proxies)}
        self.notes = (
            []
            if header or self.troubles
            else ["no BITBUCKET_TOKEN: the report alone, no build status and no comment"]
        )
        if header:
            self.doors["token"] = Door(base=ci.api, headers={"Authorization": header})
        workspace, _, slug = ci.repository.partition("/")
        self._repository = f"/repositories/{quote(workspace, safe='')}/{quote(slug, safe='')}"
        self._commit = f"{self._repository}/commit/{quote(ci.commit, safe='')}"
        self._mark = (
            f"[](#{self._id})"  # an empty link: invisible, and no HTML, which is shown as text
        )

    def started(self, report: Report) -> list[Surface]:
        return [("Code Insights report", self._insights(report)), *self._status(report)]

    def progressed(self, report: Report) -> list[Surface]:
        return [("Code Insights report", self._insights(report))]

    def finished(self, report: Report) -> list[Surface]:
        surfaces = [("Code Insights report", self._insights(report)), *self._status(report)]
        if "token" in self.doors and self._ci.pull_request and self._settings.comment != "off":
            surfaces.append(("pull request comment", self._comment(report)))
        return surfaces

    def remedy(self, surface: str, problem: PublishError) -> str:
        scopes = {
            "commit status": "repository (and repository:write if that is not enough)",
            "pull request comment": "pullrequest:write",
        }
        if isinstance(problem, NoDoor):
            return (
                "run this in a Pipelines step, or set BITBUCKET_TOKEN to a repository access token"
            )
        if "token" not in self.doors and problem.status:
            return "the Pipelines proxy refused it; set BITBUCKET_TOKEN to a repository access token, with which it is sent directly"
        match problem.status:
            case 401:
                return "BITBUCKET_TOKEN is wrong or has expired: create a new repository access token (an API token needs BITBUCKET_EMAIL)"
            case 403:
                return f"give the token the scope {scopes.get(surface, 'repository')}"
            case 404 if surface == "pull request comment":
                return f"is there a pull request {self._ci.pull_request} in {self._ci.repository}, and may the token see it?"
            case 404:
                return f"does {self._ci.repository} have the commit {self._ci.commit[:12]}, and may the token see it?"
        return (
            problem.remedy
            or "the verdict stands; send the report again with: gpu-cluster report --publish"
        )

    def files(self, report: Report, directory: Path | None) -> list[tuple[Path, str, bool]]:
        return []

    def opening(self) -> list[str]:
        return []

    def closing(self, report: Report) -> list[str]:
        return []

    # -- Code Insights -------------------------------------------------------------------------------------------------

    def _insights(self, report: Report) -> Exchange:
        """Through the proxy, or with the token where there is none."""
        path, door = f"{self._commit}/reports/{quote(self._id, safe='')}", "proxy"
        body = self._insights_body(report)
        try:
            yield Request(method="PUT", path=path, body=body, door=door)
        except PublishError:  # there is no proxy, or it does not let this pass
            if "token" not in self.doors:
                raise
            door = "token"
            yield Request(method="PUT", path=path, body=body, door=door)
        if report.verdict == "running":
            return
        now = {annotation["external_id"]: annotation for annotation in self._annotations(report)}
        there = yield from self._there(path, door)
        known = [annotation for key, annotation in now.items() if key in there]
        new = [annotation for key, annotation in now.items() if key not in there]
        stale = [
            _no_longer(old)
            for key, old in there.items()
            if key not in now and old.get("result") != "PASSED"
        ]
        annotations = [*known, *new[: max(0, ANNOTATIONS - len(there))], *stale]
        for start in range(0, len(annotations), BATCH):
            yield Request(
                method="POST",
                path=f"{path}/annotations",
                body=annotations[start : start + BATCH],
                door=door,
            )

    def _there(
        self, path: str, door: str
    ) -> Generator[Request, Response, dict[str, dict[str, Any]]]:
        """Annotations that an earlier session left at this commit: replacing a report keeps them, and the proxy deletes nothing."""
        try:
            found = yield from comment.pages(
                lambda page: Request(
                    method="GET", path=f"{path}/annotations?pagelen=100&page={page}", door=door
                ),
                lambda said: said.get("values", []),
                lambda _, said: bool(said.get("next")),
            )
        except PublishError:
            return {}  # nobody promises that they can be read
        return {
            a["external_id"]: a
            for a in found
            if str(a.get("external_id", "")).startswith(f"{self._id}-")
        }

    def _insights_body(self, report: Report) -> dict[str, Any]:
        lines = [render.headline(report)]
        if report.remedy:
            lines.append(f"Remedy: {render.one_line(report.remedy)}")
        if report.delta is not None:
            new, fixed = len(report.delta.newly_failing), len(report.delta.fixed)
            lines.append(
                f"Against {report.delta.branch}: {new} newly failing, {fixed} fixed, {len(report.delta.removed)} removed."
            )
        if report.simulated:
            lines.append("The GPUs were SIMULATED.")
        if len(report.bad) > ANNOTATIONS:
            lines.append(
                f"{ANNOTATIONS} of {len(report.bad)} failures are annotated; the JUnit file has all of them."
            )
        body = {
            "title": f"GPU tests{'' if self._id == 'gpu-cluster' else f': {report.suite}'}"[
                :TITLE_CHARS
            ],
            "details": "\n".join(lines)[:DETAILS_CHARS],
            "external_id": self._id,
            "reporter": "pytest-gpu-cluster",
            "report_type": "TEST",
            "result": RESULTS.get(report.verdict, "FAILED"),
            "data": list(self._data(report))[:10],
        }
        return body | ({"link": report.link} if report.link else {})

    def _data(self, report: Report) -> Iterator[dict[str, Any]]:
        """At most ten; the session first."""
        if report.link:
            yield {
                "title": "Session",
                "type": "LINK",
                "value": {"text": report.session, "href": report.link},
            }
        counts = report.counts
        if counts:
            yield {
                "title": "Passed",
                "type": "NUMBER",
                "value": counts.get("passed", 0) + counts.get("xpassed", 0),
            }
            yield {"title": "Failed", "type": "NUMBER", "value": counts.get("failed", 0)}
            yield {"title": "Errors", "type": "NUMBER", "value": counts.get("error", 0)}
            yield {
                "title": "Skipped",
                "type": "NUMBER",
                "value": counts.get("skipped", 0) + counts.get("xfailed", 0),
            }
        if report.duration_s:
            yield {
                "title": "Duration",
                "type": "DURATION",
                "value": round(report.duration_s * 1000),
            }
        if report.gpus:
            names = ", ".join(f"{number} x {name}" for name, number in Counter(report.gpus).items())
            yield {"title": "GPUs", "type": "TEXT", "value": names}
        if report.price_usd is not None:
            yield {"title": "Cost", "type": "TEXT", "value": f"{report.price_usd:.2f} USD"}
        if report.delta is not None:
            yield {
                "title": "Newly failing",
                "type": "NUMBER",
                "value": len(report.delta.newly_failing),
            }
            yield {"title": "Fixed", "type": "NUMBER", "value": len(report.delta.fixed)}

    def _annotations(self, report: Report) -> Iterator[dict[str, Any]]:
        """One for each test with a problem, the tests' own first."""
        for result in report.bad[:ANNOTATIONS]:
            problem = result.problems[0]
            own = problem.failure_class not in NOT_TESTS
            said = render.one_line(problem.message) or result.outcome
            annotation: dict[str, Any] = {
                "external_id": f"{self._id}-{hashlib.sha256(result.nodeid.encode()).hexdigest()[:32]}",
                "annotation_type": "BUG",
                "summary": f"{'' if own else 'not your test: '}{render.one_line(result.name)}: {said}"[
                    :SUMMARY_CHARS
                ],
                "details": _details(result, report),
                "result": "FAILED" if own else "IGNORED",
                "severity": "HIGH" if own else "LOW",
            }
            if result.file:
                annotation["path"] = result.file
                if line := problem.line or result.line:
                    annotation["line"] = line
            if link := report.link_to(result):
                annotation["link"] = link
            yield annotation

    # -- with a token --------------------------------------------------------------------------------------------------

    def _status(self, report: Report) -> list[Surface]:
        if "token" not in self.doors or not report.link:
            return []

        def exchange() -> Exchange:
            body = {
                "key": short(self._id, KEY_CHARS),
                "state": STATES.get(report.verdict, "FAILED"),
                "name": f"GPU tests{'' if self._id == 'gpu-cluster' else f': {report.suite}'}"[
                    :NAME_CHARS
                ],
                "description": render.headline(report)[:NAME_CHARS],
                "url": report.link.replace("{", "%7B").replace(
                    "}", "%7D"
                ),  # Bitbucket would fill braces in
            }
            if self._ci.pull_request and self._ci.branch:
                body["refname"] = self._ci.branch  # ties it to the pull request
            yield Request(method="POST", path=f"{self._commit}/statuses/build", body=body)

        return [("commit status", exchange())]

    def _comment(self, report: Report) -> Exchange:
        text = f"{render.markdown(report, limit=COMMENT_CHARS - len(self._mark))}\n{self._mark}"
        comments = (
            f"{self._repository}/pullrequests/{quote(self._ci.pull_request, safe='')}/comments"
        )

        def find() -> Generator[Request, Response, comment.Found]:
            found = yield from comment.pages(
                lambda page: Request(method="GET", path=f"{comments}?pagelen=100&page={page}"),
                lambda said: said.get("values", []),
                lambda _, said: bool(said.get("next")),
            )
            ours = [
                c
                for c in found
                if not c.get("deleted") and _raw(c).rstrip().endswith(f"\n{self._mark}")
            ]
            return (
                (str(ours[-1]["id"]), _raw(ours[-1])) if ours else None
            )  # the newest: an older one may be another token's

        body = {"content": {"raw": text}}
        return comment.exchange(
            self._settings.comment,
            report,
            text,
            find=find,
            create=Request(method="POST", path=comments, body=body, repeatable=False),
            edit=lambda which: Request(method="PUT", path=f"{comments}/{which}", body=body),
        )


def _raw(comment: Mapping[str, Any]) -> str:
    return str((comment.get("content") or {}).get("raw", ""))


def _no_longer(old: Mapping[str, Any]) -> dict[str, Any]:
    kept = {
        key: old[key] for key in ("external_id", "annotation_type", "path", "line") if old.get(key)
    }
    return kept | {
        "summary": f"no longer: {old.get('summary', '')}"[:SUMMARY_CHARS],
        "result": "PASSED",
        "severity": "LOW",
    }


def _details(result: Result, report: Report) -> str:
    head = f"{render.session_line(report)}\n{result.nodeid[: DETAILS_CHARS // 2]}\n\n"
    text = render.plain(render.problems_text(result))
    left = DETAILS_CHARS - len(head)
    return (head + (text if len(text) <= left else f"…{text[len(text) - max(0, left - 1) :]}"))[
        :DETAILS_CHARS
    ]


def short(key: str, limit: int) -> str:
    """`key`, or its beginning and a digest: two long keys that begin alike stay two."""
    return (
        key
        if len(key) <= limit
        else f"{key[: limit - 9]}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    )


def credential(environ: Mapping[str, str]) -> tuple[str, list[str]]:
    """The Authorization header, and why there is none although something was set. No value enters a text."""
    token, email = (
        environ.get("BITBUCKET_TOKEN", "").strip(),
        environ.get("BITBUCKET_EMAIL", "").strip(),
    )
    if environ.get("BITBUCKET_APP_PASSWORD") and not token:
        return "", [f"BITBUCKET_APP_PASSWORD is set: {NO_APP_PASSWORDS}"]
    if token.startswith("ATBB") or (email and "@" not in email):
        what = (
            "BITBUCKET_TOKEN is an app password"
            if token.startswith("ATBB")
            else "BITBUCKET_EMAIL is a user name, as app passwords had"
        )
        return "", [f"{what}: {NO_APP_PASSWORDS}"]
    if token.startswith("ATATT") and not email:
        return "", [
            "BITBUCKET_TOKEN is an API token of a user: set BITBUCKET_EMAIL to that account's e-mail address beside it"
        ]
    if not token:
        return "", []
    if any(ord(character) < 33 or ord(character) > 126 for character in token):
        return "", ["BITBUCKET_TOKEN has a blank or a control character inside: set it again"]
    if email:
        return f"Basic {base64.b64encode(f'{email}:{token}'.encode()).decode()}", []
    return f"Bearer {token}", []


def quarantine_reads(path: str) -> bool:
    try:
        return isinstance(json.loads(Path(path).read_text("utf-8"))["quarantinedTests"], list)
    except (OSError, ValueError, KeyError, TypeError):
        return False
