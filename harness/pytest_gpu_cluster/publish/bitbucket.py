"""Bitbucket Cloud: a Code Insights report without any credential.

With a token also a commit status and a comment. Limits and shapes:
developer.atlassian.com/cloud/bitbucket/rest, the groups reports, commit statuses and pull requests.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Generator, Mapping
from typing import ClassVar
from urllib.parse import quote

from pytest_gpu_cluster.contract.request import CI
from pytest_gpu_cluster.contract.settings import Settings
from pytest_gpu_cluster.publish import (
    NAME,
    NUMBER,
    Publisher,
    ReadText,
    Target,
    code_insights,
    comment,
    read_text,
)
from pytest_gpu_cluster.publish.exchange import (
    Endpoint,
    Exchange,
    JsonObject,
    JsonValue,
    NoEndpoint,
    Page,
    PublishError,
    Request,
    Response,
    fetch_pages,
    json_child,
    json_object,
    json_objects,
)
from pytest_gpu_cluster.publish.http import token_problem
from pytest_gpu_cluster.report import render
from pytest_gpu_cluster.report.model import Report

# From a step, and from a container in it.
PROXIES = ("http://localhost:29418", "http://host.docker.internal:29418")
PROXIED_API = "http://api.bitbucket.org/2.0"  # plain http: the proxy adds the credential
QUARANTINE = "BITBUCKET_TEST_METADATA_FILE_PATH"
KEY_CHARS, NAME_CHARS = 40, 255
BATCH = 100
COMMENT_CHARS = 31_000
STATES = {"running": "INPROGRESS", "passed": "SUCCESSFUL", "cancelled": "STOPPED"}
NO_APP_PASSWORDS = (
    "app passwords were removed from Bitbucket on 2026-07-28; create a repository access token "
    "with the scopes repository and pullrequest:write, and set it as BITBUCKET_TOKEN in the "
    "repository's secured variables"
)
REPORT, STATUS, COMMENT = "Code Insights report", "commit status", "pull request comment"
SCOPES = {
    STATUS: "repository (and repository:write if that is not enough)",
    COMMENT: "pullrequest:write",
}


class Bitbucket(Publisher):
    """Publishes reports through the proxy of Pipelines, and the rest with a token."""

    name = "Bitbucket"
    api_variable, api_default = "BITBUCKET_API_URL", "https://api.bitbucket.org/2.0"
    repository_variable = "BITBUCKET_REPO_FULL_NAME"
    grammar: ClassVar[Mapping[str, str]] = {
        **Publisher.grammar,
        "repository": rf"{NAME}/{NAME}",
        "commit": r"[0-9a-f]{40}",
        "build": rf"{NAME}/{NAME}/{NUMBER}",
    }

    def __init__(self, ci: CI, settings: Settings, environ: Mapping[str, str]) -> None:
        super().__init__(ci, settings, environ)
        suite = settings.reports.suite
        self._key = suite if suite.startswith("gpu-cluster") else f"gpu-cluster-{suite}"
        proxy = environ.get("BITBUCKET_PIPELINES_PROXY")
        self.endpoints["proxy"] = Endpoint(base=PROXIED_API, proxies=(proxy,) if proxy else PROXIES)
        header, problem = authorization(environ)
        if problem:
            self.troubles.append(problem)
        if (path := environ.get(QUARANTINE)) and read_quarantine(path) is None:
            self.troubles.append(
                f"the list of quarantined tests in {path} cannot be read: every test was run"
            )
        if header:
            self.endpoints["token"] = Endpoint(base=ci.api, headers={"Authorization": header})
        elif not self.troubles:
            self.notes.append(
                "BITBUCKET_TOKEN is not set: a Code Insights report, no build status and no comment"
            )
        workspace, _, slug = ci.repository.partition("/")
        self._repository = f"/repositories/{quote(workspace, safe='')}/{quote(slug, safe='')}"
        self._commit = f"{self._repository}/commit/{quote(ci.commit, safe='')}"
        self._mark = f"[](#{self._key})"  # an empty link is invisible; HTML is shown as text

    @classmethod
    def detect(cls, environ: Mapping[str, str], read: ReadText) -> CI | None:
        """Return the step of Pipelines that `environ` describes."""

        def get(name: str) -> str:
            return environ.get(f"BITBUCKET_{name}", "")

        if not get("BUILD_NUMBER"):
            return None
        repository = get("REPO_FULL_NAME") or f"{get('WORKSPACE')}/{get('REPO_SLUG')}"
        pipeline = f"https://bitbucket.org/{repository}/pipelines/results/{get('BUILD_NUMBER')}"
        step = f"/steps/{quote(get('STEP_UUID'), safe='')}" if get("STEP_UUID") else ""
        return CI(
            host="bitbucket",
            api=cls.api(environ),
            repository=repository,
            commit=get("COMMIT"),
            branch=get("BRANCH"),
            target=get("PR_DESTINATION_BRANCH"),
            pull_request=get("PR_ID"),
            build=f"{repository}/{get('BUILD_NUMBER')}",
            step_url=f"{pipeline}{step}",
            directory=get("CLONE_DIR"),
        )

    @classmethod
    def page(cls, ci: CI, environ: Mapping[str, str]) -> str:
        return f"https://bitbucket.org/{ci.repository}/pipelines/results/"

    @classmethod
    def quarantined(cls, environ: Mapping[str, str], read: ReadText) -> list[tuple[str, str, str]]:
        """Return the quarantined tests of the file that Pipelines writes; [] if it is unusable."""
        path = environ.get(QUARANTINE)
        return (read_quarantine(path, read) or []) if path else []

    def started(self, report: Report) -> list[Target]:
        return [*self.progressed(report), *self._status(report)]

    def progressed(self, report: Report) -> list[Target]:
        return [Target(REPORT, self._report(report))] if self.has_commit else []

    def finished(self, report: Report) -> list[Target]:
        targets = self.started(report)
        if (
            "token" in self.endpoints
            and self.has_pull_request
            and self.settings.reports.comment != "off"
        ):
            targets.append(Target(COMMENT, self._comment(report)))
        return targets

    def remedy(self, target: str, problem: PublishError) -> str:
        if isinstance(problem, NoEndpoint):
            return (
                "run this in a Pipelines step, or set BITBUCKET_TOKEN to a repository access token"
            )
        if "token" not in self.endpoints and problem.status:
            return (
                "the Pipelines proxy refused it; set BITBUCKET_TOKEN to a repository access token, "
                "with which it is sent directly"
            )
        repository = self.ci.repository
        match problem.status:
            case 401:
                return (
                    "BITBUCKET_TOKEN is wrong or has expired: create a new repository access token "
                    "(an API token needs BITBUCKET_EMAIL)"
                )
            case 403:
                return f"give the token the scope {SCOPES.get(target, 'repository')}"
            case 404 if target == COMMENT:
                resource = f"is there a pull request {self.ci.pull_request} in {repository}"
            case 404:
                resource = f"does {repository} have the commit {self.ci.commit[:12]}"
            case _:
                return super().remedy(target, problem)
        return f"{resource}, and may the token see it?"

    # -- Code Insights -----------------------------------------------------------------------------

    def _report(self, report: Report) -> Exchange:
        """Send the report through the proxy, or with the token where the proxy does not let it."""
        path, endpoint = f"{self._commit}/reports/{quote(self._key, safe='')}", "proxy"
        body = code_insights.report_body(report, self._key)
        try:
            yield Request(method="PUT", path=path, body=body, endpoint=endpoint)
        except PublishError:
            if "token" not in self.endpoints:
                raise
            endpoint = "token"
            yield Request(method="PUT", path=path, body=body, endpoint=endpoint)
        if report.verdict == "running":
            return
        current = code_insights.annotation_bodies(report, self._key)
        earlier = yield from self._earlier_annotations(path, endpoint)
        bodies = merge_annotations(current, earlier)
        for start in range(0, len(bodies), BATCH):
            batch = bodies[start : start + BATCH]
            yield Request(method="POST", path=f"{path}/annotations", body=batch, endpoint=endpoint)

    def _earlier_annotations(
        self, path: str, endpoint: str
    ) -> Generator[Request, Response, dict[str, JsonObject]]:
        """Return the annotations that earlier sessions left at this commit, by id.

        Replacing a report keeps them, and the proxy deletes nothing.
        """
        url = f"{path}/annotations?pagelen=100&page="
        try:
            entries = yield from fetch_pages(
                lambda page: Request(method="GET", path=f"{url}{page}", endpoint=endpoint),
                read_page,
            )
        except PublishError:
            return {}  # nothing promises that they can be read
        ids = [str(entry.get("external_id", "")) for entry in entries]
        by_id = zip(ids, entries, strict=True)
        return {id_: entry for id_, entry in by_id if id_.startswith(f"{self._key}-")}

    # -- with a token ------------------------------------------------------------------------------

    def _status(self, report: Report) -> list[Target]:
        if "token" not in self.endpoints or not self.has_commit or not report.context.link:
            return []

        def exchange() -> Exchange:
            body = {
                "key": shorten(self._key, KEY_CHARS),
                "state": STATES.get(report.verdict, "FAILED"),
                "name": code_insights.title(report, self._key)[:NAME_CHARS],
                "description": render.headline(report)[:NAME_CHARS],
                # Bitbucket would replace a name in braces by a value.
                "url": report.context.link.replace("{", "%7B").replace("}", "%7D"),
            }
            if self.ci.pull_request and self.ci.branch:
                body["refname"] = self.ci.branch  # ties the status to the pull request
            yield Request(method="POST", path=f"{self._commit}/statuses/build", body=body)

        return [Target(STATUS, exchange())]

    def _comment(self, report: Report) -> Exchange:
        text = f"{render.markdown(report, limit=COMMENT_CHARS - len(self._mark))}\n{self._mark}"
        pull_request = f"{self._repository}/pullrequests/{quote(self.ci.pull_request, safe='')}"
        path, body = f"{pull_request}/comments", {"content": {"raw": text}}

        def find() -> comment.FindComment:
            entries = yield from fetch_pages(
                lambda page: Request(method="GET", path=f"{path}?pagelen=100&page={page}"),
                read_page,
            )
            ours = [
                comment.Comment(id=str(entry["id"]), text=raw)
                for entry in entries
                if not entry.get("deleted")
                and (raw := str(json_child(entry, "content").get("raw", "")))
                and raw.rstrip().endswith(f"\n{self._mark}")
            ]
            return ours[-1] if ours else None  # an older one may be another account's

        api = comment.CommentApi(
            find=find,
            create=Request(method="POST", path=path, body=body, repeatable=False),
            edit=lambda id_: Request(method="PUT", path=f"{path}/{id_}", body=body),
        )
        return comment.exchange(self.settings.reports.comment, report, text, api)


def merge_annotations(
    current: Mapping[str, JsonObject], earlier: Mapping[str, JsonObject]
) -> list[JsonObject]:
    """Return the annotations to send: those of earlier sessions are updated, never left as lies.

    An earlier annotation takes its place in a report until the end, so new ones get the rest.
    """
    repeated = [body for key, body in current.items() if key in earlier]
    new = [body for key, body in current.items() if key not in earlier]
    stale = [
        code_insights.no_longer_failing(body)
        for key, body in earlier.items()
        if key not in current and body.get("result") != "PASSED"
    ]
    return [*repeated, *new[: max(0, code_insights.MAX_ANNOTATIONS - len(earlier))], *stale]


def read_page(_: Response, body: JsonValue) -> Page:
    """Return a page of a list. Raises TypeError for another body."""
    page = json_object(body)
    return Page(entries=json_objects(page.get("values", [])), last=not page.get("next"))


def shorten(key: str, limit: int) -> str:
    """Return `key`, or its beginning and a digest: two long keys that begin alike stay two."""
    if len(key) <= limit:
        return key
    return f"{key[: limit - 9]}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def authorization(environ: Mapping[str, str]) -> tuple[str, str]:
    """Return the Authorization header, and the fault of a credential that cannot be used.

    Either may be "". No value of a credential enters the second.
    """
    token = environ.get("BITBUCKET_TOKEN", "").strip()
    email = environ.get("BITBUCKET_EMAIL", "").strip()
    if environ.get("BITBUCKET_APP_PASSWORD") and not token:
        return "", f"BITBUCKET_APP_PASSWORD is set: {NO_APP_PASSWORDS}"
    if token.startswith("ATBB"):
        return "", f"BITBUCKET_TOKEN is an app password: {NO_APP_PASSWORDS}"
    if email and "@" not in email:
        return "", (f"BITBUCKET_EMAIL is a user name, as app passwords had: {NO_APP_PASSWORDS}")
    if token.startswith("ATATT") and not email:
        return "", (
            "BITBUCKET_TOKEN is an API token of a user: "
            "set BITBUCKET_EMAIL to that account's e-mail address beside it"
        )
    problem = token_problem("BITBUCKET_TOKEN", token)
    if problem or not token:
        return "", problem
    if email:
        return f"Basic {base64.b64encode(f'{email}:{token}'.encode()).decode()}", ""
    return f"Bearer {token}", ""


def read_quarantine(path: str, read: ReadText = read_text) -> list[tuple[str, str, str]] | None:
    """Return [package, class, name] of each quarantined test; None if the file is unusable."""
    try:
        tests = json_objects(json_object(json.loads(read(path)))["quarantinedTests"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return [
        (str(test.get("package") or ""), str(test.get("class") or ""), str(test["name"]))
        for test in tests
        if test.get("name")
    ]
