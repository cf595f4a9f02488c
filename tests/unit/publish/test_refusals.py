"""A refusal: its text in the host's words, and the time that it asks to wait."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from pytest_gpu_cluster.publish.exchange import Response
from pytest_gpu_cluster.publish.http import refusal, retry_after_s
from pytest_gpu_cluster.publish.refusals import refusal_text


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            '{"type":"error","error":{"message":"No","detail":"The scope is missing."}}',
            "No; The scope is missing.",
        ),
        (
            '{"type":"error","error":{"message":"No","fields":{"url":["a","b"],"key":["c"]}}}',
            "No; url: a, b; key: c",
        ),
        (
            '{"code":400,"message":"Bulk upload supports a maximum of /100."}',
            "Bulk upload supports a maximum of /100.",
        ),
        (
            '{"key":"report-service.general.bad-request","message":"Too long.","arguments":{}}',
            "Too long.",
        ),
        (
            '{"message":"Bad credentials","documentation_url":"https://a.example","status":"401"}',
            "Bad credentials",
        ),
        ('{"message":"401 Unauthorized"}', "401 Unauthorized"),
        ('{"error":"pipeline_id is missing"}', "pipeline_id is missing"),
        ('{"message":{"target_url":["is blocked"]}}', "target_url: is blocked"),
        (
            '{"error":"invalid_token","error_description":"Token is expired."}',
            "invalid_token; Token is expired.",
        ),
        ('{"message":"<h1>Bad <b>Request</b></h1>"}', "Bad Request"),
        (
            (
                "<html><head><style>p {color: red}</style><script>x()</script></head>"
                "<body><h1>Bad\n Gateway</h1></body></html>"
            ),
            "Bad Gateway",
        ),
        ("Retry later\n", "Retry later"),
        ("", "no reason was given"),
        ("<html></html>", "no reason was given"),
        ("\x1b[31mred\x1b[0m \x07", "red"),
    ],
)
def test_a_refusal_is_shown_in_the_hosts_words_alone(body: str, expected: str) -> None:
    """One line that a person can search for: no braces of JSON, no tags, no control characters."""
    assert refusal_text(body) == expected


@pytest.mark.parametrize(
    "body",
    [
        "null",
        "[]",
        "3",
        "{}",
        '{"error": null}',
        '{"error": []}',
        '{"error": {"fields": 3}}',
        "[[[",
        "{" * 5000,
    ],
)
def test_whatever_a_refusal_is_it_is_shown_in_a_line(body: str) -> None:
    """A body that cannot be understood is shown as it is, cut."""
    text = refusal_text(body)

    assert text
    assert "\n" not in text
    assert len(text) <= 301


def test_a_long_refusal_is_cut() -> None:
    """A page of a proxy has a hundred lines of style."""
    assert refusal_text("x" * 5000) == "x" * 300 + "…"


def test_a_refusal_keeps_its_status_and_its_body() -> None:
    """A publisher decides by them: what an older GitLab says twice is none."""
    problem = refusal(Response(status=400, text='{"message":"Cannot transition status via :run"}'))

    assert str(problem) == "400: Cannot transition status via :run"
    assert (problem.status, problem.body) == (
        400,
        '{"message":"Cannot transition status via :run"}',
    )


@pytest.mark.parametrize(
    ("code", "header", "seconds"),
    [
        (429, "3", 3.0),
        (429, "0", 0.0),
        (403, "60", 60.0),
        (503, "7", 7.0),
        (429, "Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        (429, "", None),
        (429, "soon", None),
        (429, "-1", None),
        (429, "²", None),
        (429, "Mon, 99 Foo 2026 99:99:99 GMT", None),
        (404, "3", None),
        (200, "3", None),
    ],
)
def test_how_long_a_host_asks_to_wait(code: int, header: str, seconds: float | None) -> None:
    """In seconds or as a date; what is neither is not a wish."""
    assert (
        retry_after_s(
            Response(status=code, text="", headers={"retry-after": header} if header else {})
        )
        == seconds
    )


def test_a_date_to_wait_for_is_counted_from_now() -> None:
    """To the second, as dates have no more."""
    seconds = retry_after_s(
        Response(
            status=429, text="", headers={"retry-after": formatdate(time.time() + 30, usegmt=True)}
        )
    )

    assert seconds is not None
    assert 28 <= seconds <= 30
