"""Bitbucket Cloud: commit statuses, Code Insights, comments of a pull request.

A step of Pipelines has a proxy too. The proxy adds the credentials itself. It serves reports and
annotations of its own repository, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import unquote, urlencode

from tests.hosts import schemas
from tests.hosts.bitbucket_errors import (
    annotations_error,
    form_error,
    insights_error,
    proxy_error,
    report_error,
)
from tests.hosts.exchange import Answer, RefusedError, Request
from tests.hosts.schemas import Schema, Violation, violations, words
from tests.hosts.server import Host, Route, basic

REPOSITORY_UUID = "{5d3f8c11-0a44-4b8e-9d52-7c1f2b6a9e01}"
PIPELINE_UUID = "{8e0c1b6f-52f7-4f5b-8a39-1d6f0f6f3c02}"
STEP_UUID = "{b7a4d2e9-93c1-47aa-b1e6-0f5e8d7c6b03}"
BUILD_NUMBER = "118"

REPORTS_A_COMMIT = 10
ANNOTATIONS_A_REPORT = 1000
COMMENT_CHARACTERS = 32768

Shape = Callable[[list[Violation]], Answer]


@dataclass(frozen=True)
class _Page:
    """A part of a list, as the query asks for it."""

    number: int
    length: int

    def of(self, items: list[Any]) -> list[Any]:
        start = (self.number - 1) * self.length
        return items[start : start + self.length]


class FakeBitbucket(Host):
    """One repository with one pull request.

    `token` is a repository access token (Bearer); `api_token` is the user `email`'s (Basic).

    `proxy_deletes` lets the proxy pass DELETE on to reports, which is said nowhere to be so or not.
    """

    endpoints: ClassVar[tuple[str, ...]] = ("direct", "proxy")

    def __init__(
        self,
        *,
        workspace: str = "acme",
        slug: str = "aerial",
        commit: str = "a" * 40,
        token: str = "repository-access-token",
        email: str = "ci@acme.example",
        api_token: str | None = None,
        pull_request: int = 7,
        branch: str = "feature/tiles",
        target: str = "main",
        proxy_deletes: bool = False,
    ) -> None:
        super().__init__()
        self.workspace, self.slug, self.commit, self.commits = workspace, slug, commit, {commit}
        self.token, self.email, self.api_token = token, email, api_token or token
        self.pull_request, self.branch, self.target = pull_request, branch, target
        self.proxy_deletes = proxy_deletes
        self.reports: dict[
            tuple[str, str], dict[str, Any]
        ] = {}  # by commit and report id, as last sent
        self.statuses: dict[tuple[str, str], dict[str, Any]] = {}  # by commit and key, as last sent
        self.comments: list[dict[str, Any]] = []  # oldest first, with those that were deleted
        self._annotations: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}

    # For tests.

    def annotations(self, commit: str, report: str) -> list[dict[str, Any]]:
        """Those of a report, as last sent, in the order in which they first came."""
        with self._lock:
            return list(self._annotations.get((commit, report), {}).values())

    def add_comment(self, raw: str, author: str = "Ann Reviewer") -> int:
        """Somebody else's comment on the pull request; its id."""
        with self._lock:
            return int(self._new_comment({"content": {"raw": raw}}, author)["id"])

    def add_report(self, report: str, title: str = "Another tool's report") -> None:
        """Somebody else's report on the commit."""
        with self._lock:
            self.reports[self.commit, report] = {"title": title, "details": "of another tool"}

    @property
    def proxy_url(self) -> str:
        """The address of the proxy."""
        return self.address("proxy")

    def environ(
        self,
        *,
        pull_request: bool = True,
        token: bool = True,
        email: bool = False,
        proxy: bool = True,
        clone_dir: str | None = None,
    ) -> dict[str, str]:
        """The environment of a step, and where our hosts are.

        `email` makes the credentials a user's API token.
        """
        variables = {
            "CI": "true",
            "BITBUCKET_BUILD_NUMBER": BUILD_NUMBER,
            "BITBUCKET_COMMIT": self.commit,
            "BITBUCKET_WORKSPACE": self.workspace,
            "BITBUCKET_REPO_SLUG": self.slug,
            "BITBUCKET_REPO_FULL_NAME": f"{self.workspace}/{self.slug}",
            "BITBUCKET_REPO_UUID": REPOSITORY_UUID,
            "BITBUCKET_PIPELINE_UUID": PIPELINE_UUID,
            "BITBUCKET_STEP_UUID": STEP_UUID,
            "BITBUCKET_STEP_RUN_NUMBER": "1",
            "BITBUCKET_STEP_TRIGGERER_UUID": "{0c9ad0c4-6f55-4a0b-9c3e-2f0b1e5d4a04}",
            "BITBUCKET_PROJECT_KEY": "GEO",
            "BITBUCKET_PROJECT_UUID": "{f1b0a7c3-2f8d-49d6-8b7e-6a5c4d3e2f05}",
            "BITBUCKET_GIT_HTTP_ORIGIN": f"http://bitbucket.org/{self.workspace}/{self.slug}",
            "BITBUCKET_BRANCH": self.branch,
            "BITBUCKET_API_URL": f"{self.url}/2.0",
        }
        if pull_request:
            variables["BITBUCKET_PR_ID"] = str(self.pull_request)
            variables["BITBUCKET_PR_DESTINATION_BRANCH"] = self.target
            variables["BITBUCKET_PR_DESTINATION_COMMIT"] = "d" * 12
        if proxy:
            variables["BITBUCKET_PIPELINES_PROXY"] = self.proxy_url
        if clone_dir is not None:
            variables["BITBUCKET_CLONE_DIR"] = clone_dir
        if token:
            variables["BITBUCKET_TOKEN"] = self.api_token if email else self.token
        if token and email:
            variables["BITBUCKET_EMAIL"] = self.email
        return variables

    # Who may come in.

    def admit(self, request: Request) -> None:
        if request.via == "proxy":
            self._admit_to_proxy(request)
        elif request.origin:
            self.refuse(
                self.error(400, "Bad Request"),
                f"{request.origin} is asked of the API as of a proxy",
            )
        else:
            self._admit_with_credentials(request)

    def _admit_to_proxy(self, request: Request) -> None:
        if "authorization" in request.headers:
            self.complain(request, "credentials sent to the proxy, which adds its own")
        if request.method == "CONNECT":
            self.refuse(
                proxy_error(405, "CONNECT is not supported"),
                "https asked of the proxy, which takes http alone",
            )
        if not request.origin:
            self.refuse(
                proxy_error(400, "No absolute address"),
                "the proxy wants the whole address on the request line",
            )
        if request.origin != "http://api.bitbucket.org":
            self.refuse(
                proxy_error(403, f"{request.origin} is not allowed"),
                f"{request.origin} asked of the proxy",
            )
        reports = (
            r"/2\.0/repositories/[^/]+/[^/]+/commit/[^/]+/reports(/[^/]+(/annotations(/[^/]+)?)?)?"
        )
        allowed = {"GET", "PUT", "POST", *(["DELETE"] if self.proxy_deletes else [])}
        if not re.fullmatch(reports, request.path) or request.method not in allowed:
            self.refuse(
                proxy_error(403, f"{request.method} is not allowed here"),
                "not among what the proxy passes on",
            )
        if not self._is_here(*map(unquote, request.path.split("/")[3:5])):
            self.refuse(
                proxy_error(403, "Not this repository"), "another repository asked of the proxy"
            )

    def _admit_with_credentials(self, request: Request) -> None:
        header = request.headers.get("authorization", "")
        user = basic(header)
        if not header:
            self.refuse(self.error(401, "Authentication required"), "no credentials")
        if user is not None and "@" not in user[0]:
            self.refuse(
                self.error(
                    401,
                    "App passwords are no longer supported; "
                    "use an API token with your Atlassian account e-mail",
                ),
                "Basic credentials whose user is no e-mail",
            )
        if user != (self.email, self.api_token) and header != f"Bearer {self.token}":
            self.refuse(
                self.error(401, "Token is invalid, expired, or not supported for this endpoint."),
                "credentials that are not valid",
            )

    def _is_here(self, workspace: str, slug: str) -> bool:
        return workspace in (self.workspace, "{}") and slug in (self.slug, REPOSITORY_UUID)

    # What is served.

    def routes(self) -> Iterable[Route]:
        repository = "/2.0/repositories/{workspace}/{slug}"
        commit = repository + "/commit/{commit}"
        pull_request = repository + "/pullrequests/{number}"
        return [
            Route("POST", commit + "/statuses/build", self._at_commit(self._post_status)),
            Route("PUT", commit + "/statuses/build/{key}", self._at_commit(self._put_status)),
            Route("GET", commit + "/statuses/build/{key}", self._at_commit(self._get_status)),
            Route("GET", commit + "/statuses", self._at_commit(self._list_statuses)),
            Route("GET", commit + "/reports", self._at_commit(self._list_reports)),
            Route("PUT", commit + "/reports/{report}", self._at_commit(self._put_report)),
            Route("GET", commit + "/reports/{report}", self._at_commit(self._get_report)),
            Route("DELETE", commit + "/reports/{report}", self._at_commit(self._delete_report)),
            Route(
                "POST",
                commit + "/reports/{report}/annotations",
                self._at_commit(self._post_annotations),
            ),
            Route(
                "GET",
                commit + "/reports/{report}/annotations",
                self._at_commit(self._list_annotations),
            ),
            Route(
                "PUT",
                commit + "/reports/{report}/annotations/{annotation}",
                self._at_commit(self._put_annotation),
            ),
            Route("POST", pull_request + "/comments", self._at_pull_request(self._post_comment)),
            Route("GET", pull_request + "/comments", self._at_pull_request(self._list_comments)),
            Route(
                "GET",
                pull_request + "/comments/{comment}",
                self._at_pull_request(self._get_comment),
            ),
            Route(
                "PUT",
                pull_request + "/comments/{comment}",
                self._at_pull_request(self._put_comment),
            ),
            Route(
                "DELETE",
                pull_request + "/comments/{comment}",
                self._at_pull_request(self._delete_comment),
            ),
        ]

    def error(self, code: int, message: str) -> Answer:
        if code == 429:
            message = "Rate limit for this resource has been exceeded"
        return Answer(code, {"type": "error", "error": {"message": message}})

    def _at_commit(self, serve: Callable[..., Answer]) -> Callable[..., Answer]:
        def checked(
            request: Request, workspace: str, slug: str, commit: str, **rest: str
        ) -> Answer:
            self._check_repository(workspace, slug)
            if commit not in self.commits:
                self.refuse(self.error(404, f"Commit not found: {commit}"), f"no commit {commit}")
            return serve(request, commit, **rest)

        return checked

    def _at_pull_request(self, serve: Callable[..., Answer]) -> Callable[..., Answer]:
        def checked(
            request: Request, workspace: str, slug: str, number: str, **rest: str
        ) -> Answer:
            self._check_repository(workspace, slug)
            if number != str(self.pull_request):
                self.refuse(
                    self.error(404, f"No pull request {number}"), f"no pull request {number}"
                )
            return serve(request, **rest)

        return checked

    def _check_repository(self, workspace: str, slug: str) -> None:
        if not self._is_here(workspace, slug):
            self.refuse(
                self.error(404, f"Repository {workspace}/{slug} not found"),
                f"no repository {workspace}/{slug}",
            )

    def _valid(self, request: Request, schema: Schema, shape: Shape) -> Any:
        body = self.loaded(request)
        self._check(schema, body, shape)
        return body

    def _check(self, schema: Schema, body: object, shape: Shape) -> None:
        if broken := violations(schema, body):
            self.refuse(shape(broken), words(broken))

    def _listed(self, request: Request, items: list[Any]) -> Answer:
        if unknown := sorted(set(request.query) - {"page", "pagelen"}):
            self.refuse(
                self.error(400, f"Unknown parameter {unknown[0]}"),
                f"{unknown[0]} is a parameter that this fake does not know",
            )
        page = _Page(
            self.number(request, "page", 1, 10**9), self.number(request, "pagelen", 10, 100)
        )
        answer = {
            "page": page.number,
            "pagelen": page.length,
            "size": len(items),
            "values": page.of(items),
        }
        if page.number * page.length < len(items):
            # Through the proxy, too, the real host names itself as it is: by https.
            base = self.url if request.via == "direct" else "https://api.bitbucket.org"
            answer["next"] = f"{base}{request.path}?" + urlencode(
                {"pagelen": page.length, "page": page.number + 1}
            )
        return Answer(200, answer)

    # Build statuses.

    def _post_status(self, request: Request, commit: str) -> Answer:
        body = self._valid(request, schemas.BITBUCKET_STATUS, form_error)
        self.statuses[commit, body["key"]] = body
        return Answer(201, self._shown_status(commit, body))

    def _put_status(self, request: Request, commit: str, key: str) -> Answer:
        status = self._held_status(commit, key)
        body = self.loaded(request)
        merged = {**status, **body} if isinstance(body, dict) else body
        self._check(schemas.BITBUCKET_STATUS, merged, form_error)
        if merged["key"] != key:
            self.refuse(
                form_error([Violation("key", "const", key, merged["key"])]),
                "the key of a status cannot be changed",
            )
        self.statuses[commit, key] = merged
        return Answer(200, self._shown_status(commit, merged))

    def _get_status(self, request: Request, commit: str, key: str) -> Answer:
        return Answer(200, self._shown_status(commit, self._held_status(commit, key)))

    def _list_statuses(self, request: Request, commit: str) -> Answer:
        return self._listed(
            request,
            [
                self._shown_status(sha, status)
                for (sha, _), status in self.statuses.items()
                if sha == commit
            ],
        )

    def _held_status(self, commit: str, key: str) -> dict[str, Any]:
        if (commit, key) not in self.statuses:
            raise RefusedError(self.error(404, f"No build status {key}"), "")
        return self.statuses[commit, key]

    def _shown_status(self, commit: str, status: dict[str, Any]) -> dict[str, Any]:
        return {"type": "build", "commit": {"hash": commit}, **status}

    # Code Insights.

    def _list_reports(self, request: Request, commit: str) -> Answer:
        return self._listed(
            request, [self._shown_report(sha, name) for sha, name in self.reports if sha == commit]
        )

    def _put_report(self, request: Request, commit: str, report: str) -> Answer:
        body = self._valid(request, schemas.BITBUCKET_REPORT, report_error)
        others = [name for sha, name in self.reports if sha == commit and name != report]
        if len(others) >= REPORTS_A_COMMIT:
            self.refuse(
                insights_error(f"A commit cannot have more than {REPORTS_A_COMMIT} reports."),
                f"report {report} is one more than the {REPORTS_A_COMMIT} that a commit may have",
            )
        self.reports[commit, report] = body  # its old annotations stay: nothing says that they go
        return Answer(200, self._shown_report(commit, report))

    def _get_report(self, request: Request, commit: str, report: str) -> Answer:
        self._check_report(commit, report)
        return Answer(200, self._shown_report(commit, report))

    def _delete_report(self, request: Request, commit: str, report: str) -> Answer:
        self.reports.pop((commit, report), None)
        self._annotations.pop((commit, report), None)
        return Answer(204)

    def _check_report(self, commit: str, report: str, words: str = "") -> None:
        if (commit, report) not in self.reports:
            raise RefusedError(insights_error(f"Report {report} was not found.", 404), words)

    def _shown_report(self, commit: str, report: str) -> dict[str, Any]:
        return {"type": "report", "external_id": report, **self.reports[commit, report]}

    def _post_annotations(self, request: Request, commit: str, report: str) -> Answer:
        self._check_report(commit, report, f"annotations for report {report}, which is not there")
        body = self._valid(request, schemas.BITBUCKET_ANNOTATIONS, annotations_error)
        ids = [entry["external_id"] for entry in body]
        if twice := sorted({id_ for id_ in ids if ids.count(id_) > 1}):
            self.refuse(
                insights_error(f"Duplicate external_id: {twice[0]}"),
                f"external_id {twice[0]} is twice in one request",
            )
        self._keep(commit, report, body)
        return Answer(200, [{"type": "report_annotation", **entry} for entry in body])

    def _put_annotation(
        self, request: Request, commit: str, report: str, annotation: str
    ) -> Answer:
        self._check_report(commit, report, f"an annotation for report {report}, which is not there")
        body = self.loaded(request)
        if isinstance(body, dict):
            body = {"external_id": annotation, **body}
        self._check(schemas.BITBUCKET_ANNOTATION, body, report_error)
        if body["external_id"] != annotation:
            self.refuse(
                insights_error("The external_id is another one."),
                f"external_id {body['external_id']} at the address of {annotation}",
            )
        self._keep(commit, report, [body])
        return Answer(200, {"type": "report_annotation", **body})

    def _list_annotations(self, request: Request, commit: str, report: str) -> Answer:
        self._check_report(commit, report)
        return self._listed(request, self.annotations(commit, report))

    def _keep(self, commit: str, report: str, sent: list[dict[str, Any]]) -> None:
        annotations = {
            **self._annotations.get((commit, report), {}),
            **{annotation["external_id"]: annotation for annotation in sent},
        }
        if len(annotations) > ANNOTATIONS_A_REPORT:
            self.refuse(
                insights_error(
                    f"A report cannot have more than {ANNOTATIONS_A_REPORT} annotations."
                ),
                f"{len(annotations)} annotations in a report, at most {ANNOTATIONS_A_REPORT}",
            )
        self._annotations[commit, report] = annotations

    # Comments of the pull request.

    def _post_comment(self, request: Request) -> Answer:
        return Answer(201, self._new_comment(self._comment_body(request), "CI"))

    def _list_comments(self, request: Request) -> Answer:
        return self._listed(request, self.comments)

    def _get_comment(self, request: Request, comment: str) -> Answer:
        return Answer(200, self._held_comment(comment))

    def _put_comment(self, request: Request, comment: str) -> Answer:
        stored = self._own_comment(comment)
        body = self._comment_body(request)
        stored.update(body, updated_on=self.now())
        return Answer(200, stored)

    def _delete_comment(self, request: Request, comment: str) -> Answer:
        self._own_comment(comment).update(deleted=True, content={"raw": ""})
        return Answer(204)

    def _comment_body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = self._valid(request, schemas.BITBUCKET_COMMENT, form_error)
        if len(body["content"]["raw"]) > COMMENT_CHARACTERS:
            self.refuse(
                Answer(400, "<h1>Bad Request (400)</h1>"),
                f"a comment of {len(body['content']['raw'])} characters, "
                f"at most {COMMENT_CHARACTERS}",
            )
        return body

    def _new_comment(self, body: dict[str, Any], author: str) -> dict[str, Any]:
        now = self.now()
        user = {"type": "user", "display_name": author}
        self.comments.append(
            {
                "type": "pullrequest_comment",
                "id": self.serial(),
                "created_on": now,
                "updated_on": now,
                "deleted": False,
                "user": user,
                **body,
            }
        )
        return self.comments[-1]

    def _held_comment(self, comment: str) -> dict[str, Any]:
        for stored in self.comments:
            if str(stored["id"]) == comment:
                return stored
        raise RefusedError(self.error(404, f"No comment {comment}"), "")

    def _own_comment(self, comment: str) -> dict[str, Any]:
        stored = self._held_comment(comment)
        if stored["user"]["display_name"] != "CI":
            self.refuse(
                self.error(403, "You can only change your own comments"),
                f"comment {comment} is somebody else's",
            )
        if stored["deleted"]:
            self.refuse(self.error(404, f"No comment {comment}"), f"comment {comment} is deleted")
        return stored
