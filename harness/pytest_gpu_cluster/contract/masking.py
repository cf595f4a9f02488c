"""Takes secrets out of texts that others will read: events in the store, reports, what a CI host is told."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import unquote

_WORDS = "SECRET(?:_?KEY)?|TOKEN|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|PRIVATE_?KEY|API_?KEY|ACCESS_?KEY|STORAGE_?KEY"
_SECRET_NAME = re.compile(
    rf"(?:{_WORDS})S?\d*(?:_|$)|(?:^|_)(?:AUTH|KEY|PWD|PASS|SAS|DSN|PAT|PRIVATE)(?:_|$)"
)
_KEY_NAME = re.compile(
    r"SECRET|ACCESS_?KEY|STORAGE_?KEY|PASSWORD"
)  # what is in these is no path, whatever it begins with
_SIGNED = re.compile(r"(?i)sig|token|key|secret|password|credential")  # parameters of a URL
_FORMS = re.compile(
    r"\b(?:gh[opsu]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{40,}|glpat-[A-Za-z0-9_-]{20,}|xox[abprs]-[A-Za-z0-9-]{18,}|hf_[A-Za-z0-9]{34}"
    r"|AT(?:BB|ATT|CTT)[A-Za-z0-9_=.-]{20,}|(?:AKIA|ASIA)[0-9A-Z]{16})|://[^/\s:@\"']+:[^/\s@\"']+@"
    r"|\b(?:Basic|Bearer) [A-Za-z0-9+/=_.~-]{16,}"
    r"|-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----(?:(?!-----END)[\s\S])*?[A-Za-z0-9+/=]{16}"
    r"(?:(?!-----END)[\s\S])*(?:-----END (?:[A-Z0-9]+ )*PRIVATE KEY-----)?"
)
_SHORT = 8  # a value of fewer characters is too common a word
_PIECE = 16  # so much of the beginning or the end of a long value is one of its own: pytest abridges what it shows
_MARK = "-----"  # the first and the last line of a key say nothing, and every other key is known by them
MASK = "***"


def masker(environ: Mapping[str, str]) -> Callable[[str], str]:
    """Takes secrets out of a text: values of variables that are named like one, and what has a token's known form.

    >>> masker({"MY_TOKEN": "abcdefgh1"})("it is abcdefgh1, and AKIAABCDEFGHIJKLMNOP")
    'it is ***, and ***'
    """
    wanted = secrets_of(environ)
    pattern = re.compile("|".join(re.escape(value) for value in wanted)) if wanted else None
    long = [value for value in wanted if len(value) >= 2 * _PIECE and not value.startswith(_MARK)]

    def mask(text: str) -> str:
        text = pattern.sub(MASK, text) if pattern is not None else text
        for value in long:
            text = _without_ends(text, value)
        return _FORMS.sub(lambda found: f"://{MASK}@" if found[0].startswith("://") else MASK, text)

    return mask


def secrets_of(environ: Mapping[str, str]) -> list[str]:
    """The texts to take out, the longest first: values, their long lines, and both as they are written inside quotes."""
    values = {
        part
        for name, value in environ.items()
        if _SECRET_NAME.search(name.upper())
        for part in _secrets(name.upper(), value.strip())
    }
    lines = {line.strip() for value in values for line in value.splitlines()}
    lines = {line for line in lines if len(line) >= 2 * _SHORT and not line.startswith(_MARK)}
    found = {form for value in values | lines for form in _written(value)}
    return sorted(found, key=lambda value: (-len(value), value))


def _secrets(name: str, value: str) -> Iterator[str]:
    """What of a variable's value opens something: not a word, a number, a path, or a URL without credentials."""
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


def _written(value: str) -> set[str]:
    """A text as it is, as Python and JSON write it, and as pytest puts it into an id."""
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
    """`text` without long beginnings and ends of `value`."""
    at = text.find(value[:_PIECE])
    while at >= 0:
        end = at + _PIECE
        while end < len(text) and end - at < len(value) and text[end] == value[end - at]:
            end += 1
        text = text[:at] + MASK + text[end:]
        at = text.find(value[:_PIECE], at + len(MASK))
    at = text.rfind(value[-_PIECE:])
    while at >= 0:
        begin, back = at, len(value) - _PIECE
        while begin > 0 and back > 0 and text[begin - 1] == value[back - 1]:
            begin, back = begin - 1, back - 1
        text = text[:begin] + MASK + text[at + _PIECE :]
        at = text.rfind(value[-_PIECE:], 0, max(0, begin))
    return text
