"""The fake Bitbucket: comments, and the environment of a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.hosts import FakeBitbucket
from tests.hosts.bitbucket import STEP_UUID
from tests.unit.hosts.rig import COMMENTS, ask


@pytest.mark.parametrize(
    ("body", "page_of_html"),
    [
        ({"content": {"raw": "x" * 32769}}, True),
        ({"content": {"raw": " "}}, False),
        ({"content": {}}, False),
        ({"content": {"raw": "x", "html": "<b>x</b>"}}, False),
        ({"body": "x"}, False),
    ],
    ids=["too long", "blank", "empty", "html", "as on another host"],
)
def test_bitbucket_refuses_a_comment(
    bitbucket: FakeBitbucket, body: dict[str, Any], page_of_html: bool
) -> None:
    """One that is too long is answered with a page for people, which is not JSON."""
    answer = ask(bitbucket, "POST", COMMENTS, body)

    assert answer.status == 400
    assert (answer.body == "<h1>Bad Request (400)</h1>") == page_of_html
    assert bitbucket.comments == []
    assert len(bitbucket.refused) == 1


def test_comments_come_in_pages(bitbucket: FakeBitbucket) -> None:
    """A comment of ours that is not on the first page is found by following `next`.

    Without that it would be made a second time.
    """
    for number in range(25):
        bitbucket.add_comment(f"remark {number}")
    ask(bitbucket, "POST", COMMENTS, {"content": {"raw": "ours"}})

    pages = [ask(bitbucket, "GET", COMMENTS)]
    while "next" in pages[-1].body:
        pages.append(ask(bitbucket, "GET", pages[-1].body["next"].removeprefix(bitbucket.url)))

    assert [len(page_answer.body["values"]) for page_answer in pages] == [10, 10, 6]
    assert pages[-1].body["values"][-1]["content"]["raw"] == "ours"
    assert [
        ask(bitbucket, "GET", f"{COMMENTS}?{query}").status
        for query in ("pagelen=100", "pagelen=101", "page=0", "q=a")
    ] == [
        200,
        400,
        400,
        400,
    ]


def test_a_comment_is_changed_by_its_author_alone(bitbucket: FakeBitbucket) -> None:
    """Somebody who quotes our marker must not see that comment overwritten.

    A deleted one stays in the list.
    """
    theirs = bitbucket.add_comment("quoting the marker")
    ours = ask(bitbucket, "POST", COMMENTS, {"content": {"raw": "ours"}}).body["id"]

    answers = [
        ask(bitbucket, "PUT", f"{COMMENTS}/{theirs}", {"content": {"raw": "mine now"}}),
        ask(bitbucket, "DELETE", f"{COMMENTS}/{theirs}"),
        ask(bitbucket, "PUT", f"{COMMENTS}/{ours}", {"content": {"raw": "new"}}),
        ask(bitbucket, "GET", f"{COMMENTS}/{ours}"),
        ask(bitbucket, "DELETE", f"{COMMENTS}/{ours}"),
        ask(bitbucket, "PUT", f"{COMMENTS}/{ours}", {"content": {"raw": "again"}}),
        ask(bitbucket, "PUT", f"{COMMENTS}/999", {"content": {"raw": "none"}}),
    ]

    assert [answer.status for answer in answers] == [403, 403, 200, 200, 204, 404, 404]
    assert answers[3].body["content"]["raw"] == "new"
    listed = ask(bitbucket, "GET", COMMENTS).body["values"]
    assert [(comment["content"]["raw"], comment["deleted"]) for comment in listed] == [
        ("quoting the marker", False),
        ("", True),
    ]


def test_bitbuckets_environment_is_that_of_a_step(bitbucket: FakeBitbucket, tmp_path: Path) -> None:
    """A branch without a pull request and without a token is the most common step of all."""
    full = bitbucket.environ(pull_request=True, token=True, clone_dir=str(tmp_path))
    bare = bitbucket.environ(pull_request=False, token=False)

    assert full["BITBUCKET_STEP_UUID"] == STEP_UUID
    assert STEP_UUID[0] + STEP_UUID[-1] == "{}"
    assert (full["BITBUCKET_PR_ID"], full["BITBUCKET_TOKEN"], full["BITBUCKET_CLONE_DIR"]) == (
        "7",
        bitbucket.token,
        str(tmp_path),
    )
    assert set(full) - set(bare) == {
        "BITBUCKET_PR_ID",
        "BITBUCKET_PR_DESTINATION_BRANCH",
        "BITBUCKET_PR_DESTINATION_COMMIT",
        "BITBUCKET_TOKEN",
        "BITBUCKET_CLONE_DIR",
    }
    assert bitbucket.environ(email=True)["BITBUCKET_EMAIL"] == bitbucket.email
