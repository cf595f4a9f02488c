"""One comment on a pull request, edited in place."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from pytest_gpu_cluster.publish.http import Lost, PublishError, Request, Response, shown
from pytest_gpu_cluster.report.model import Report

PAGES = 20  # of 100 comments are looked through

Found = tuple[str, str] | None  # a comment's id and its text


def wanted(mode: str, report: Report, *, exists: bool) -> bool:
    """Whether the comment is to say this. One that is there already must not go on telling of an older run."""
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


def exchange(
    mode: str,
    report: Report,
    text: str,
    *,
    find: Callable[[], Generator[Request, Response, Found]],
    create: Request,
    edit: Callable[[str], Request],
) -> Generator[Request, Response, None]:
    """Find it, then edit or create it. A creation whose answer was lost is looked for before it is sent again, once."""
    found = yield from find()
    if not wanted(mode, report, exists=found is not None):
        return
    if found is not None:
        if found[1] == text:
            return
        try:
            yield edit(found[0])
            return
        except PublishError as problem:
            if problem.status not in (
                403,
                404,
            ):  # somebody else's, or deleted meanwhile: a new one, then
                raise
    try:
        yield create
    except Lost:
        if (yield from find()) is None:
            yield create


def pages(
    request: Callable[[int], Request],
    entries: Callable[[Any], list[Any]],
    more: Callable[[Response, Any], bool],
) -> Generator[Request, Response, list[Any]]:
    """The entries of a paged list, page by page from 1."""
    found: list[Any] = []
    for number in range(1, PAGES + 1):
        response = yield request(number)
        said = response.json()
        try:
            found += [dict(entry) for entry in entries(said)]
        except (AttributeError, KeyError, TypeError, ValueError) as problem:
            raise PublishError(
                f"it answered {response.status} with something that is no list: {shown(response.text)}"
            ) from problem
        if not more(response, said):
            break
    return found
