"""GitHub: commit statuses, check runs, comments of a pull request.

Also its runner, which reads a step's output and summary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.hosts import schemas
from tests.hosts.exchange import Answer, Fault, RefusedError, Request
from tests.hosts.schemas import Schema, Violation, violations, words
from tests.hosts.server import Host, Route, basic

RUN_ID = "9123456789"
MERGE_COMMIT = "e" * 40
STATUSES_A_CONTEXT = 1000
DOCUMENTATION = "https://docs.github.com/rest"
BOT = "github-actions[bot]"


def secondary_limit(retry_after: float = 60) -> Fault:
    """GitHub's other 403: too much was written in too short a time."""
    message = (
        "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."
    )
    body = {"message": message, "documentation_url": DOCUMENTATION}
    return Fault(code=403, body=body, headers={"retry-after": f"{retry_after:g}"}, served=False)


class FakeGitHub(Host):
    """One repository with one pull request, whose head is `commit`.

    The workflow runs on `merge_commit`.

    A fork's workflow gets `fork_token`, which may read and nothing else; `read_only` makes `token`
    such a one, too. A write with it is answered with 403 and not held against anybody: a client
    learns it only by trying.
    """

    def __init__(
        self,
        *,
        repository: str = "acme/aerial",
        commit: str = "a" * 40,
        token: str = "ghs_actions_token",
        pull_request: int = 7,
        branch: str = "feature/tiles",
        target: str = "main",
        read_only: bool = False,
    ) -> None:
        super().__init__()
        self.repository, self.commit, self.merge_commit = repository, commit, MERGE_COMMIT
        self.token, self.fork_token, self.read_only = token, f"{token}_of_a_fork", read_only
        self.pull_request, self.branch, self.target = pull_request, branch, target
        self.statuses: list[dict[str, Any]] = []  # every one posted, oldest first
        self.check_runs: list[
            dict[str, Any]
        ] = []  # each with all annotations it was sent, in output
        self.comments: list[dict[str, Any]] = []
        self.summary_path: Path | None = None  # of the last environment that was given out

    # For tests.

    def add_comment(self, body: str, author: str = "ann-reviewer") -> int:
        """Somebody else's comment on the pull request; its id."""
        with self._lock:
            return int(self._new_comment(body, author)["id"])

    def environ(
        self, tmp_path: Path, *, pull_request: bool = True, fork: bool = False, token: bool = True
    ) -> dict[str, str]:
        """The environment of a step, with the address of this host.

        The files of its event, summary and output are in `tmp_path`.
        """
        self.summary_path = tmp_path / "step_summary.md"
        output, event = tmp_path / "output.txt", tmp_path / "event.json"
        self.summary_path.touch()
        output.touch()
        event.write_text(json.dumps(self._event(pull_request, fork)))
        variables = {
            "CI": "true",
            "GITHUB_ACTIONS": "true",
            "GITHUB_API_URL": self.url,
            "GITHUB_SERVER_URL": "https://github.com",
            "GITHUB_REPOSITORY": self.repository,
            "GITHUB_EVENT_NAME": "pull_request" if pull_request else "push",
            "GITHUB_EVENT_PATH": str(event),
            "GITHUB_SHA": self.merge_commit if pull_request else self.commit,
            "GITHUB_REF": f"refs/pull/{self.pull_request}/merge"
            if pull_request
            else f"refs/heads/{self.branch}",
            "GITHUB_REF_NAME": f"{self.pull_request}/merge" if pull_request else self.branch,
            "GITHUB_RUN_ID": RUN_ID,
            "GITHUB_RUN_NUMBER": "118",
            "GITHUB_RUN_ATTEMPT": "1",
            "GITHUB_WORKFLOW": "tests",
            "GITHUB_JOB": "gpu",
            "GITHUB_WORKSPACE": str(tmp_path),
            "GITHUB_STEP_SUMMARY": str(self.summary_path),
            "GITHUB_OUTPUT": str(output),
            "RUNNER_OS": "Linux",
        }
        if pull_request:
            variables |= {"GITHUB_HEAD_REF": self.branch, "GITHUB_BASE_REF": self.target}
        if token:
            variables["GITHUB_TOKEN"] = self.fork_token if fork else self.token
        return variables

    def _event(self, pull_request: bool, fork: bool) -> dict[str, Any]:
        if not pull_request:
            return {
                "ref": f"refs/heads/{self.branch}",
                "after": self.commit,
                "repository": {"full_name": self.repository},
            }
        home = f"contributor/{self.repository.partition('/')[2]}" if fork else self.repository
        return {
            "action": "synchronize",
            "number": self.pull_request,
            "pull_request": {
                "number": self.pull_request,
                "head": {
                    "sha": self.commit,
                    "ref": self.branch,
                    "repo": {"full_name": home, "fork": fork},
                },
                "base": {
                    "sha": "d" * 40,
                    "ref": self.target,
                    "repo": {"full_name": self.repository, "fork": False},
                },
            },
            "repository": {"full_name": self.repository},
        }

    # Who may come in.

    def admit(self, request: Request) -> None:
        if not request.headers.get("user-agent"):
            page = (
                "Request forbidden by administrative rules. "
                "Please make sure your request has a User-Agent header."
            )
            self.refuse(Answer(403, page), "no User-Agent")
        header = request.headers.get("authorization", "")
        if not header:
            self.refuse(self.error(401, "Requires authentication"), "no credentials")
        token = (basic(header) or ("", header.partition(" ")[2]))[1]
        if token not in (self.token, self.fork_token):
            self.refuse(self.error(401, "Bad credentials"), "credentials that are not valid")
        if request.method != "GET" and (self.read_only or token == self.fork_token):
            raise RefusedError(self.error(403, "Resource not accessible by integration"), "")

    # What is served.

    def routes(self) -> Iterable[Route]:
        repository = "/repos/{owner}/{name}"
        table: list[tuple[str, str, Callable[..., Answer]]] = [
            ("POST", "/statuses/{sha}", self._post_status),
            ("GET", "/commits/{sha}/statuses", self._list_statuses),
            ("POST", "/check-runs", self._post_check_run),
            ("PATCH", "/check-runs/{number}", self._patch_check_run),
            ("GET", "/check-runs/{number}", self._get_check_run),
            ("GET", "/commits/{sha}/check-runs", self._list_check_runs),
            ("GET", "/issues/{number}/comments", self._list_comments),
            ("POST", "/issues/{number}/comments", self._post_comment),
            ("GET", "/issues/comments/{number}", self._get_comment),
            ("PATCH", "/issues/comments/{number}", self._patch_comment),
            ("DELETE", "/issues/comments/{number}", self._delete_comment),
        ]
        return [
            Route(method, repository + path, self._in_repository(serve))
            for method, path, serve in table
        ]

    def error(self, code: int, message: str) -> Answer:
        if code == 429:
            message = "API rate limit exceeded for installation."
        return Answer(
            code, {"message": message, "documentation_url": DOCUMENTATION, "status": str(code)}
        )

    def _in_repository(self, serve: Callable[..., Answer]) -> Callable[..., Answer]:
        def checked(request: Request, owner: str, name: str, **rest: str) -> Answer:
            if f"{owner}/{name}".lower() != self.repository.lower():
                self.refuse(self.error(404, "Not Found"), f"no repository {owner}/{name}")
            return serve(request, **rest)

        return checked

    def _valid(self, request: Request, resource: str, schema: Schema) -> Any:
        # The content type does not matter here: whatever it says, the body is read as JSON.
        body = self.loaded(
            Request(
                request.method,
                request.path,
                {},
                {"content-type": "application/json"},
                request.content,
                request.via,
            )
        )
        if broken := violations(schema, body):
            self.refuse(self._unprocessable(resource, broken), words(broken))
        return body

    def _unprocessable(self, resource: str, broken: list[Violation]) -> Answer:
        errors = [
            {"resource": resource, "field": violation.field, **_code(violation)}
            for violation in broken
        ]
        return Answer(
            422,
            {
                "message": "Validation Failed",
                "errors": errors,
                "documentation_url": DOCUMENTATION,
                "status": "422",
            },
        )

    def _wrong(self, resource: str, name: str, reason: str) -> Answer:
        return self._unprocessable(resource, [Violation(name, reason, None, None)])

    def _commit(self, request: Request, sha: str) -> None:
        if sha not in (self.commit, self.merge_commit):
            self.refuse(self.error(422, f"No commit found for SHA: {sha}"), f"no commit {sha}")
        if sha == self.merge_commit and request.method != "GET":
            self.complain(
                request,
                "posted to the merge commit, where nobody who looks at the pull request sees it",
            )

    def _listed(self, request: Request, items: list[Any], wrap: str = "") -> Answer:
        page = self.number(request, "page", 1, 10**9)
        length = self.number(request, "per_page", 30, 100)
        links = []
        if page * length < len(items):
            links.append((page + 1, "next"))
            links.append((-(-len(items) // length), "last"))
        if page > 1:
            links.append((page - 1, "prev"))
            links.append((1, "first"))
        base = f"{self.url}{request.path}"
        header = ", ".join(
            f'<{base}?{urlencode({"per_page": length, "page": number})}>; rel="{name}"'
            for number, name in links
        )
        values = items[(page - 1) * length : page * length]
        return Answer(
            200,
            {"total_count": len(items), wrap: values} if wrap else values,
            {"Link": header} if header else {},
        )

    # Statuses.

    def _post_status(self, request: Request, sha: str) -> Answer:
        body = self._valid(request, "Status", schemas.GITHUB_STATUS)
        self._commit(request, sha)
        context = body.get("context", "default")
        same = [
            entry
            for entry in self.statuses
            if entry["sha"] == sha and entry["context"].lower() == context.lower()
        ]
        if len(same) >= STATUSES_A_CONTEXT:
            reason = "This SHA and context has reached the maximum number of statuses."
            self.refuse(
                self._wrong("Status", "base", reason),
                f"more than {STATUSES_A_CONTEXT} statuses of {context}",
            )
        status = {
            "target_url": None,
            "description": None,
            **body,
            "context": context,
            "sha": sha,
            "id": self.serial(),
            "created_at": self.now(),
        }
        self.statuses.append(status)
        return Answer(201, status)

    def _list_statuses(self, request: Request, sha: str) -> Answer:
        self._commit(request, sha)
        return self._listed(
            request, [entry for entry in reversed(self.statuses) if entry["sha"] == sha]
        )

    # Check runs.

    def _post_check_run(self, request: Request) -> Answer:
        body = self._valid(request, "CheckRun", schemas.GITHUB_NEW_CHECK_RUN)
        self._commit(request, body["head_sha"])
        self._sound_check_run(body)
        run = {
            "status": "queued",
            "conclusion": None,
            **_concluded(body),
            "id": self.serial(),
            "started_at": self.now(),
        }
        self.check_runs.append(run)
        return Answer(201, run)

    def _patch_check_run(self, request: Request, number: str) -> Answer:
        run = self._held(self.check_runs, number, "check run")
        body = self._valid(request, "CheckRun", schemas.GITHUB_CHECK_RUN)
        self._sound_check_run(body)
        earlier = run.get("output", {}).get("annotations", [])
        run.update(_concluded(body))
        if "output" in body:
            run["output"] = {
                **body["output"],
                "annotations": [*earlier, *body["output"].get("annotations", [])],
            }
        return Answer(200, run)

    def _sound_check_run(self, body: dict[str, Any]) -> None:
        if (
            body.get("status") == "completed" or "completed_at" in body
        ) and "conclusion" not in body:
            self.refuse(
                self._wrong("CheckRun", "conclusion", "missing"), "completed, without a conclusion"
            )
        for index, annotation in enumerate(body.get("output", {}).get("annotations", [])):
            if annotation["end_line"] < annotation["start_line"]:
                self.refuse(
                    self._wrong("CheckRun", "end_line", "invalid"),
                    f"annotation {index} ends before it starts",
                )
            if annotation["end_line"] != annotation["start_line"] and {
                "start_column",
                "end_column",
            } & set(annotation):
                self.refuse(
                    self._wrong("CheckRun", "start_column", "invalid"),
                    f"annotation {index} has columns on more than one line",
                )
            for name in ("message", "raw_details"):
                if len(annotation.get(name, "").encode()) > 64 * 1024:
                    self.refuse(
                        self._wrong("CheckRun", name, "too_large"),
                        f"annotation {index} has a {name} of more than 64 KiB",
                    )

    def _get_check_run(self, request: Request, number: str) -> Answer:
        return Answer(200, self._held(self.check_runs, number, "check run"))

    def _list_check_runs(self, request: Request, sha: str) -> Answer:
        self._commit(request, sha)
        return self._listed(
            request, [run for run in self.check_runs if run["head_sha"] == sha], "check_runs"
        )

    # Comments.

    def _list_comments(self, request: Request, number: str) -> Answer:
        self._pull_request(number)
        return self._listed(request, self.comments)

    def _post_comment(self, request: Request, number: str) -> Answer:
        self._pull_request(number)
        return Answer(201, self._new_comment(self._comment_body(request), BOT))

    def _get_comment(self, request: Request, number: str) -> Answer:
        return Answer(200, self._held(self.comments, number, "comment"))

    def _patch_comment(self, request: Request, number: str) -> Answer:
        stored = self._own_comment(number)
        stored.update(body=self._comment_body(request), updated_at=self.now())
        return Answer(200, stored)

    def _delete_comment(self, request: Request, number: str) -> Answer:
        self.comments.remove(self._own_comment(number))
        return Answer(204)

    def _comment_body(self, request: Request) -> str:
        return str(self._valid(request, "IssueComment", schemas.GITHUB_COMMENT)["body"])

    def _new_comment(self, body: str, author: str) -> dict[str, Any]:
        now = self.now()
        user = {"login": author, "type": "Bot" if author == BOT else "User"}
        self.comments.append(
            {"id": self.serial(), "body": body, "user": user, "created_at": now, "updated_at": now}
        )
        return self.comments[-1]

    def _own_comment(self, number: str) -> dict[str, Any]:
        stored = self._held(self.comments, number, "comment")
        if stored["user"]["login"] != BOT:
            # A token that may write may even do this; nobody wants it to.
            self.refuse(
                self.error(403, "Resource not accessible by integration"),
                f"comment {number} is somebody else's",
            )
        return stored

    def _pull_request(self, number: str) -> None:
        if number != str(self.pull_request):
            self.refuse(self.error(404, "Not Found"), f"no pull request {number}")

    def _held(self, items: list[dict[str, Any]], number: str, kind: str) -> dict[str, Any]:
        for item in items:
            if str(item["id"]) == number:
                return item
        raise RefusedError(self.error(404, "Not Found"), f"no {kind} {number}")


def _concluded(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "status": "completed"} if "conclusion" in body else body


def _code(broken: Violation) -> dict[str, str]:
    name = broken.field.rpartition(".")[2]
    match broken.rule:
        case "maxLength":
            return {
                "code": "custom",
                "message": f"{name} is too long (maximum is {broken.limit} characters)",
            }
        case "maxItems":
            return {
                "code": "custom",
                "message": f"No more than {broken.limit} {name} are allowed in one request",
            }
        case "required" | "missing":
            return {"code": "missing_field"}
        case _:
            return {"code": "invalid"}
