"""Pages that show a reviewer the content of a host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.hosts import FakeBitbucket, FakeGitHub, FakeGitLab
from tests.hosts.markdown import rendered
from tests.hosts.render import duration, page, value
from tests.unit.hosts.rig import (
    BUILD,
    COMMENTS,
    COMMIT,
    HUB,
    LAB,
    LINK,
    NOTES,
    REPORT,
    a_datum,
    a_status,
    an_annotation,
    ask,
    marked,
)


def test_bitbuckets_page_shows_what_was_published(bitbucket: FakeBitbucket) -> None:
    """Status, report, annotations by place, and comments without any tag of theirs."""
    ask(
        bitbucket, "POST", BUILD, a_status(state="FAILED", name="GPU tests", description="2 failed")
    )
    ask(bitbucket, "PUT", REPORT, a_datum("DURATION", 83_000) | {"title": "GPU <tests>"})
    ask(
        bitbucket,
        "POST",
        f"{REPORT}/annotations",
        [an_annotation(1, path="b.py", line=2), an_annotation(2, path="a.py", link=LINK)],
    )
    bitbucket.add_comment("**two** failed <details><!-- marker -->")
    deleted_id = ask(bitbucket, "POST", COMMENTS, {"content": {"raw": "old"}}).body["id"]
    ask(bitbucket, "DELETE", f"{COMMENTS}/{deleted_id}")

    shown = page(bitbucket)

    for part in (
        "2 failed",
        LINK,
        "1m 23s",
        "GPU &lt;tests&gt;",
        "<strong>two</strong>",
        "&lt;details&gt;&lt;!-- marker",
        "was deleted",
    ):
        assert part in shown
    assert shown.index("a.py") < shown.index("b.py:2")


def test_githubs_page_shows_checks_summary_and_annotations(
    github: FakeGitHub, tmp_path: Path
) -> None:
    """The last status of each context, and what the runner made of the step."""
    summary = Path(github.environ(tmp_path)["GITHUB_STEP_SUMMARY"])
    summary.write_text("| test | s |\n|---|--:|\n| `a` | 1 |\n")
    for state in ("pending", "error"):
        ask(
            github,
            "POST",
            f"{HUB}/statuses/{COMMIT}",
            {"state": state, "context": "gpu", "description": f"it is {state}"},
        )
    ask(github, "POST", f"{HUB}/check-runs", marked(message="<b>no</b>"))
    ask(
        github,
        "POST",
        f"{HUB}/issues/7/comments",
        {"body": "<!-- marker -->\n<details><summary>All</summary>\n\n- one\n\n</details>"},
    )

    shown = page(github, stdout="::error file=c.py,line=4,title=test_c::assert 0\n")

    for part in (
        "it is error",
        "c.py:4",
        "a.py:3",
        "&lt;b&gt;no&lt;/b&gt;",
        "<td><code>a</code></td>",
        "<details><summary>All",
        "<li>one</li>",
    ):
        assert part in shown
    assert "it is pending" not in shown
    assert "marker" not in shown


def test_gitlabs_page_shows_status_note_and_links(gitlab: FakeGitLab, tmp_path: Path) -> None:
    """The link of the annotations report is on the job's page alone."""
    ask(
        gitlab,
        "POST",
        f"{LAB}/statuses/{COMMIT}",
        {"state": "failed", "name": "gpu", "target_url": LINK, "description": "2 failed"},
    )
    ask(gitlab, "POST", NOTES, {"body": "## Two *failed*"})
    (tmp_path / "links.json").write_text(
        json.dumps({"gpu": [{"external_link": {"label": "Session", "url": f"{LINK}/log"}}]})
    )

    shown = page(gitlab, report=tmp_path / "links.json")

    for part in (
        "2 failed",
        f'href="{LINK}"',
        "<h2>Two <em>failed</em></h2>",
        f'href="{LINK}/log">Session</a>',
    ):
        assert part in shown


@pytest.mark.parametrize(
    ("kind", "content", "shown"),
    [
        ("BOOLEAN", True, "Yes"),
        ("DATE", 1_793_000_000_000, "26 Oct 2026, 07:33"),
        ("DURATION", 3_723_000, "1h 2m 3s"),
        ("LINK", {"text": "a<b", "href": LINK}, f'<a href="{LINK}">a&lt;b</a>'),
        ("NUMBER", 1234, "1,234"),
        ("PERCENTAGE", 99.5, "99.5%"),
        ("TEXT", "<b>", "&lt;b&gt;"),
        ("", 3, "3"),
    ],
)
def test_a_data_field_is_shown_by_its_type(kind: str, content: Any, shown: str) -> None:
    """A duration in seconds would look a thousand times too short here, as it would there."""
    assert value({"type": kind, "value": content}) == shown


def test_a_duration_leaves_out_what_is_zero_before_it() -> None:
    """As Bitbucket writes it."""
    assert [duration(ms) for ms in (0, 59_999, 60_000, 3_600_000)] == [
        "0s",
        "59s",
        "1m 0s",
        "1h 0m 0s",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b_c and `d*e*` *f*", "<p>a_b_c and <code>d*e*</code> <em>f</em></p>"),
        ("<script>alert(1)</script>", "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>"),
        ("[x](javascript:alert(1))", "<p>x</p>"),
        (
            "[x](https://a.example/?a=1&b=%22)",
            '<p><a href="https://a.example/?a=1&amp;b=%22">x</a></p>',
        ),
        ("[](#gpu-ci:key)", '<p><a href="#gpu-ci:key"></a></p>'),
        ('<b onclick="x()">y</b>', "<p><b>y</b></p>"),
        ("```\n<a>\n```", '<pre><code class="">&lt;a&gt;</code></pre>'),
        ("- a\n  - b\n- c", "<ul><li>a\n<ul><li>b</li></ul></li><li>c</li></ul>"),
        ("a\\|b <!-- c -->", "<p>a|b </p>"),
        (
            "| a |\n|---|\n| `x\\|y` |",
            (
                "<table><thead><tr><th>a</th></tr></thead>"
                "<tbody><tr><td><code>x|y</code></td></tr></tbody></table>"
            ),
        ),
        (
            "<details>\n**not bold**\n\n**bold**",
            "<details>\n**not bold**\n<p><strong>bold</strong></p>",
        ),
    ],
)
def test_markdown_is_rendered_and_nothing_gets_through(text: str, expected: str) -> None:
    """Names of tests hold every character there is.

    What a reviewer would see is seen here first.
    """
    assert rendered(text, tags=True) == expected
