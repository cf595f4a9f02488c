"""Secrets are masked in texts that others read: events of the store, reports, a CI host's pages."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import unquote

_WORDS = (
    r"SECRET(?:_?KEY)?|TOKEN|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL"
    r"|PRIVATE_?KEY|API_?KEY|ACCESS_?KEY|STORAGE_?KEY"
)
_SECRET_NAME = re.compile(
    rf"(?:{_WORDS})S?\d*(?:_|$)|(?:^|_)(?:AUTH|KEY|PWD|PASS|SAS|DSN|PAT|PRIVATE)(?:_|$)"
)
# A value of these is no path, even if it begins like one.
_KEY_NAME = re.compile(r"SECRET|ACCESS_?KEY|STORAGE_?KEY|PASSWORD")
_SIGNED = re.compile(r"(?i)sig|token|key|secret|password|credential")  # parameters of a URL
_FORMS = re.compile(
    r"\b(?:gh[opsu]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{40,}|glpat-[A-Za-z0-9_-]{20,}"
    r"|xox[abprs]-[A-Za-z0-9-]{18,}|hf_[A-Za-z0-9]{34}"
    r"|AT(?:BB|ATT|CTT)[A-Za-z0-9_=.-]{20,}|(?:AKIA|ASIA)[0-9A-Z]{16})|://[^/\s:@\"']+:[^/\s@\"']+@"
    r"|\b(?:Basic|Bearer) [A-Za-z0-9+/=_.~-]{16,}"
    r"|-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----(?:(?!-----END)[\s\S])*?[A-Za-z0-9+/=]{16}"
    r"(?:(?!-----END)[\s\S])*(?:-----END (?:[A-Z0-9]+ )*PRIVATE KEY-----)?"
)
_SHORT = 8  # a value of fewer characters may be a common word
# A beginning or an end of this length is masked too: pytest abridges long values.
_PIECE = 16
_MARK = "-----"  # the first and the last line of a key hold no secret
MASK = "***"


def masker(environ: Mapping[str, str]) -> Callable[[str], str]:
    """Return a function that masks secrets in a text.

    Secrets are values of variables that are named like one, and tokens of a known form.

    >>> masker({"MY_TOKEN": "abcdefgh1"})("it is abcdefgh1, and AKIAABCDEFGHIJKLMNOP")
    'it is ***, and ***'
    """
    secrets = secrets_of(environ)
    pattern = re.compile("|".join(re.escape(value) for value in secrets)) if secrets else None
    long = [value for value in secrets if len(value) >= 2 * _PIECE and not value.startswith(_MARK)]

    def mask(text: str) -> str:
        text = pattern.sub(MASK, text) if pattern is not None else text
        for value in long:
            text = _without_ends(text, value)
        return _FORMS.sub(lambda match: f"://{MASK}@" if match[0].startswith("://") else MASK, text)

    return mask


def secrets_of(environ: Mapping[str, str]) -> list[str]:
    """Return the texts to mask, the longest first.

    They are values, long lines of values, and both as they are written inside quotes.
    """
    values = {
        part
        for name, value in environ.items()
        if _SECRET_NAME.search(name.upper())
        for part in _secret_parts(name.upper(), value.strip())
    }
    lines = {line.strip() for value in values for line in value.splitlines()}
    lines = {line for line in lines if len(line) >= 2 * _SHORT and not line.startswith(_MARK)}
    forms = {form for value in values | lines for form in _written_forms(value)}
    return sorted(forms, key=lambda value: (-len(value), value))


def _secret_parts(name: str, value: str) -> Iterator[str]:
    """Yield the secrets in a value: no word, number, path, nor URL without a password."""
    if url := re.fullmatch(r"[a-z0-9+]+://(?:([^/@\s]*)@)?[^?\s]*(?:\?(\S*))?", value):
        user, _, password = (url[1] or "").partition(":")
        pairs = [pair.partition("=") for pair in (url[2] or "").split("&")]
        parts = [password or user, *(text for key, _, text in pairs if _SIGNED.search(key))]
        yield from (form for part in parts for form in (part, unquote(part)) if len(part) >= _SHORT)
        return
    mixed = len(value) >= 4 * _SHORT and all(
        re.search(kind, value) for kind in ("[0-9]", "[a-z]", "[A-Z]")
    )
    path = value.startswith("/") and not (mixed and _KEY_NAME.search(name))
    if len(value) >= _SHORT and not path and len(set(value)) >= 4:
        yield value


def _written_forms(value: str) -> set[str]:
    """Return a text as it is, as Python and JSON write it, and as pytest puts it into an id."""
    escaped = value.encode("unicode_escape", "surrogatepass").decode()
    return {
        value,
        repr(value)[1:-1],
        ascii(value)[1:-1],
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        escaped,
    }


def _without_ends(text: str, value: str) -> str:
    """Return `text` with long beginnings and ends of `value` masked."""
    start = text.find(value[:_PIECE])
    while start >= 0:
        end = start + _PIECE
        while end < len(text) and end - start < len(value) and text[end] == value[end - start]:
            end += 1
        text = text[:start] + MASK + text[end:]
        start = text.find(value[:_PIECE], start + len(MASK))
    piece = text.rfind(value[-_PIECE:])
    while piece >= 0:
        start, back = piece, len(value) - _PIECE
        while start > 0 and back > 0 and text[start - 1] == value[back - 1]:
            start, back = start - 1, back - 1
        text = text[:start] + MASK + text[piece + _PIECE :]
        piece = text.rfind(value[-_PIECE:], 0, max(0, start))
    return text
