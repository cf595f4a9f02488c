"""The text of a refusal, in one line: the host's own words without JSON, HTML or control bytes."""

from __future__ import annotations

import contextlib
import json
import re

from pytest_gpu_cluster.report import render

REASON_CHARS = 300
NO_REASON = "no reason was given"
MARKUP = re.compile(r"<(style|script)\b.*?</\1>|</?[A-Za-z!][^>]*>", re.S)


def refusal_text(body: str) -> str:
    """Return the message of a response that refuses a request.

    Hosts answer with three shapes of JSON, with HTML, or with nothing.

    >>> refusal_text('{"error": {"message": "key: too long", "fields": {"key": ["at most 40"]}}}')
    'key: too long; key: at most 40'
    >>> refusal_text("<html><h1>Bad Request (400)</h1></html>"), refusal_text("")
    ('Bad Request (400)', 'no reason was given')
    """
    text = body
    with contextlib.suppress(ValueError, RecursionError):
        text = _message(json.loads(body)) or body
    line = render.one_line(MARKUP.sub(" ", text))
    return (f"{line[:REASON_CHARS]}…" if len(line) > REASON_CHARS else line) or NO_REASON


def _message(answer: object) -> str:
    """Return message, detail and the errors of single fields, joined; "" where there are none."""
    outer = answer if isinstance(answer, dict) else {"message": answer}
    error = outer.get("error") or outer
    if not isinstance(error, dict):
        error = {"message": error, "detail": outer.get("error_description")}
    message, fields = error.get("message"), error.get("fields") or error.get("errors") or {}
    if isinstance(message, dict):  # GitLab: the errors of the fields stand in their place
        message, fields = "", message
    if not isinstance(fields, dict):
        fields = {"errors": fields}
    details = [f"{name}: {_joined(value)}" for name, value in fields.items()]
    parts = [message, error.get("detail"), *details]
    return "; ".join(_joined(part) for part in parts if part)


def _joined(value: object) -> str:
    return ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)
