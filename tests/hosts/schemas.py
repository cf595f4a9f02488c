"""Schemas of the request bodies that each host takes, in our own words.

Field names, limits and values that are known from their answers.

A field that is not listed is refused, although most hosts would ignore it: a name that was mistyped
is never what was meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import jsonschema  # type: ignore[import-untyped]  # ships no types

Schema = dict[str, Any]


@dataclass(frozen=True)
class Violation:
    """One rule that a value breaks.

    `field` is where ("" for the value itself), `rule` the schema's keyword, `limit` its value.
    """

    field: str
    rule: str
    limit: Any
    value: Any

    def __str__(self) -> str:
        return f"{self.field or 'the body'}: {self._words()}"

    def _words(self) -> str:
        match self.rule:
            case "maxLength":
                return f"{len(self.value)} characters, at most {self.limit}"
            case "maxItems":
                return f"{len(self.value)} items, at most {self.limit}"
            case "minItems" | "minLength":
                return "empty"
            case "required":
                return "missing"
            case "unknown":
                return "no such field"
            case "format":
                return f"{_short(self.value)} is not a {self.limit}"
            case _:
                return f"{_short(self.value)} breaks {self.rule} {_short(self.limit)}"


def violations(schema: Schema, value: object) -> list[Violation]:
    """Every rule of `schema` that `value` breaks, in the order of the fields."""
    checker = jsonschema.Draft202012Validator(schema, format_checker=FORMATS)
    broken = [violation for error in checker.iter_errors(value) for violation in _broken(error)]
    return sorted(broken, key=lambda v: (v.field, v.rule))


def words(broken: list[Violation]) -> str:
    """Some of them in words, and how many more there are."""
    more = [f"and {len(broken) - 5} more"] if len(broken) > 5 else []
    return "; ".join([*map(str, broken[:5]), *more])


def _broken(error: Any) -> list[Violation]:
    field = ".".join(str(part) for part in error.absolute_path)
    prefix = f"{field}." if field else ""
    if error.validator == "required":
        missing = [name for name in error.validator_value if name not in error.instance]
        named = [name for name in missing if error.message.startswith(repr(name))]
        return [Violation(prefix + name, "required", None, None) for name in named]
    if error.validator == "additionalProperties":
        extra = sorted(set(error.instance) - set(error.schema.get("properties", {})))
        return [Violation(prefix + name, "unknown", None, error.instance[name]) for name in extra]
    return [Violation(field, error.validator, error.validator_value, error.instance)]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# Formats: what a pattern would say badly.


def _is_web_address(value: object) -> bool:
    if not isinstance(value, str):
        return True
    try:
        parts = urlsplit(value)
        host = parts.hostname
    except ValueError:
        return False
    return (
        parts.scheme in ("http", "https")
        and bool(host)
        and not any(c.isspace() or ord(c) < 32 for c in value)
    )


def _is_public_web_address(value: object) -> bool:
    """An address with a dot in the host's name.

    Bitbucket takes no bare name for a host, and Jenkins found localhost refused too.
    """
    if not isinstance(value, str) or not _is_web_address(value):
        return not isinstance(value, str)
    host = urlsplit(value).hostname or ""
    return "." in host.strip(".") and not host.endswith("localhost")


def _has_no_template(value: object) -> bool:
    """An address without braces.

    Bitbucket puts the repository and the commit in the place of {repository.full_name}.
    """
    return not isinstance(value, str) or not set("{}") & set(value)


def _is_repository_path(value: object) -> bool:
    if not isinstance(value, str):
        return True
    return "\\" not in value and all(part not in ("", ".", "..") for part in value.split("/"))


FORMATS = jsonschema.FormatChecker(formats=())
for _name, _check in {
    "web address": _is_web_address,
    "public web address": _is_public_web_address,
    "literal address": _has_no_template,
    "path in the repository": _is_repository_path,
}.items():
    FORMATS.checks(_name)(_check)


def text(most: int | None = None, *, filled: bool = False) -> Schema:
    """A string; `filled` if one of spaces alone will not do."""
    return {
        "type": "string",
        **({"maxLength": most} if most else {}),
        **({"minLength": 1, "pattern": r"\S"} if filled else {}),
    }


def record(required: str, **fields: Schema) -> Schema:
    """An object with these fields and no other; `required` are names, with spaces between."""
    return {
        "type": "object",
        "required": required.split(),
        "properties": fields,
        "additionalProperties": False,
    }


def one_of(values: str) -> Schema:
    """One of these words, given with spaces between."""
    return {"type": "string", "enum": values.split()}


LINK: Schema = {"type": "string", "format": "web address"}
PUBLIC_LINK: Schema = {
    "type": "string",
    "allOf": [{"format": "public web address"}, {"format": "literal address"}],
}
LINE: Schema = {"type": "integer", "minimum": 1}

# Bitbucket.

_VALUES: Mapping[str, Schema] = {
    "BOOLEAN": {"type": "boolean"},
    "DATE": {
        "type": "number",
        "minimum": 1e11,
    },  # milliseconds; in seconds it would be a day of January 1970
    "DURATION": {"type": "number", "minimum": 0},  # milliseconds
    "LINK": record("text href", text=text(filled=True), href=LINK),
    "NUMBER": {"type": "number"},
    "PERCENTAGE": {"type": "number", "minimum": 0, "maximum": 100},
    "TEXT": {"type": "string"},
}

BITBUCKET_DATA: Schema = {
    **record("title value", title=text(filled=True), type=one_of(" ".join(_VALUES)), value={}),
    "allOf": [
        {
            "if": {"properties": {"type": {"const": name}}, "required": ["type"]},
            "then": {"properties": {"value": schema}},
        }
        for name, schema in _VALUES.items()
    ]
    + [
        {
            "if": {"not": {"required": ["type"]}},
            "then": {"properties": {"value": {"type": ["boolean", "number", "string"]}}},
        }
    ],
}

BITBUCKET_REPORT = record(
    "title details",
    title=text(450, filled=True),
    details=text(2000, filled=True),
    external_id=text(filled=True),
    reporter=text(),
    link=LINK,
    remote_link_enabled={"type": "boolean"},
    logo_url=LINK,
    report_type=one_of("SECURITY COVERAGE TEST BUG"),
    result=one_of("PASSED FAILED PENDING"),
    data={"type": "array", "maxItems": 10, "items": BITBUCKET_DATA},
)

BITBUCKET_ANNOTATION = record(
    "external_id annotation_type summary",
    external_id=text(filled=True),
    annotation_type=one_of("VULNERABILITY CODE_SMELL BUG"),
    summary=text(450, filled=True),
    details=text(2000),
    path={"type": "string", "format": "path in the repository"},
    line=LINE,
    result=one_of("PASSED FAILED SKIPPED IGNORED"),
    severity=one_of("CRITICAL HIGH MEDIUM LOW"),
    link=LINK,
)

BITBUCKET_ANNOTATIONS: Schema = {
    "type": "array",
    "minItems": 1,
    "maxItems": 100,
    "items": BITBUCKET_ANNOTATION,
}

BITBUCKET_STATUS = record(
    "key state url",
    key=text(40, filled=True),
    state=one_of("SUCCESSFUL FAILED INPROGRESS STOPPED"),
    url=PUBLIC_LINK,
    name=text(255),
    description=text(255),
    refname={"type": ["string", "null"]},
)

BITBUCKET_COMMENT = record(
    "content",
    content=record("raw", raw=text(filled=True)),
    inline=record(
        "path",
        path={"type": "string", "format": "path in the repository"},
        to=LINE,
        **{"from": LINE},
    ),
    parent=record("id", id={"type": "integer"}),
    pending={"type": "boolean"},
)

# GitHub.

GITHUB_STATUS = record(
    "state",
    state=one_of("error failure pending success"),
    target_url=LINK,
    description=text(140),
    context=text(filled=True),
)

_KIB_64 = 64 * 1024

GITHUB_ANNOTATION = record(
    "path start_line end_line annotation_level message",
    path={"type": "string", "format": "path in the repository"},
    start_line=LINE,
    end_line=LINE,
    start_column=LINE,
    end_column=LINE,
    annotation_level=one_of("notice warning failure"),
    message=text(_KIB_64, filled=True),
    title=text(255),
    raw_details=text(_KIB_64),
)

_CHECK_RUN: Mapping[str, Schema] = {
    "name": text(filled=True),
    "details_url": LINK,
    "external_id": text(),
    "status": one_of("queued in_progress completed"),
    "conclusion": one_of(
        "action_required cancelled failure neutral success skipped timed_out"
    ),  # stale is GitHub's own to set
    "started_at": text(filled=True),
    "completed_at": text(filled=True),
    "output": record(
        "title summary",
        title=text(filled=True),
        summary=text(65535),
        text=text(65535),
        annotations={"type": "array", "maxItems": 50, "items": GITHUB_ANNOTATION},
    ),
    "actions": {
        "type": "array",
        "maxItems": 3,
        "items": record(
            "label description identifier",
            label=text(20),
            description=text(40),
            identifier=text(20),
        ),
    },
}

GITHUB_NEW_CHECK_RUN = record("name head_sha", head_sha=text(filled=True), **_CHECK_RUN)
GITHUB_CHECK_RUN = record("", **_CHECK_RUN)
GITHUB_COMMENT = record("body", body=text(65536, filled=True))

# GitLab.

GITLAB_STATUS = record(
    "state",
    state=one_of("pending running success failed canceled skipped"),
    ref=text(filled=True),
    name=text(255, filled=True),
    context=text(255, filled=True),
    target_url={**LINK, "maxLength": 255},
    description=text(255),
    coverage={"type": "number"},
    pipeline_id={"type": "integer"},
)

GITLAB_NOTE = record("body", body=text(1_000_000, filled=True))

GITLAB_ANNOTATIONS_REPORT: Schema = {
    "type": "object",
    "additionalProperties": {
        "type": "array",
        "items": record(
            "external_link", external_link=record("label url", label=text(filled=True), url=LINK)
        ),
    },
}
