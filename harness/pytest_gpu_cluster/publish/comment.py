"""One comment on a pull request, edited in place."""

from __future__ import annotations

from collections.abc import Callable, Generator

from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.publish.exchange import (
    Exchange,
    JsonObject,
    PublishError,
    Request,
    Response,
    ResponseLost,
)
from pytest_gpu_cluster.report.model import Report


@dataclass(frozen=True, kw_only=True)
class Comment:
    """A comment at the host."""

    id: str
    text: str


FindComment = Generator[Request, Response, Comment | None]


@dataclass(frozen=True, kw_only=True)
class CommentApi:
    """The host's requests for one comment. `find` may be called again."""

    find: Callable[[], FindComment]
    create: Request
    edit: Callable[[str], Request]  # by the comment's id


def should_post(mode: str, report: Report, *, exists: bool) -> bool:
    """Return True if the comment is to show this report; `mode` is the setting `comment`.

    An existing comment is always updated: it must not go on showing an older run.
    """
    match mode:
        case "off":
            return False
        case "failures":
            return exists or report.verdict != "passed"
        case "changes":
            different = report.delta is not None and not report.delta.empty
            return exists or different or (report.delta is None and report.verdict != "passed")
        case _:
            return True


def marked(entries: list[JsonObject], mark: str) -> list[Comment]:
    """Return the comments whose first line is `mark`. GitHub and GitLab have the same fields."""
    comments = [
        Comment(id=str(entry["id"]), text=str(entry.get("body") or "")) for entry in entries
    ]
    return [comment for comment in comments if comment.text.startswith(f"{mark}\n")]


def exchange(mode: str, report: Report, text: str, api: CommentApi) -> Exchange:
    """Edit the comment, or create it where there is none.

    After a creation whose response was lost the comment is looked for, and created again at most
    once.
    """
    existing = yield from api.find()
    if not should_post(mode, report, exists=existing is not None):
        return
    if existing is not None:
        if existing.text == text:
            return
        try:
            yield api.edit(existing.id)
            return
        except PublishError as problem:
            # Another account's, or deleted meanwhile: a new comment takes its place.
            if problem.status not in (403, 404):
                raise
    try:
        yield api.create
    except ResponseLost:
        if (yield from api.find()) is None:
            yield api.create
