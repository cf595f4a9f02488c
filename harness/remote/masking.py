"""Takes secrets out of texts that others will read: events in the store, reports, what a CI host is told."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

_SECRET_NAME = re.compile(
    r"SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|PRIVATE|API_?KEY|ACCESS_?KEY|STORAGE_KEY|AUTH|(^|_)(KEY|PWD|PASS|SAS|DSN|PAT)$"
)
_FORMS = re.compile(
    r"\b(?:gh[opsu]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{40,}|glpat-[A-Za-z0-9_-]{20,}|xox[abprs]-[A-Za-z0-9-]{18,}|hf_[A-Za-z0-9]{34}"
    r"|AT(?:BB|ATT|CTT)[A-Za-z0-9_=.-]{20,}|(?:AKIA|ASIA)[0-9A-Z]{16})|://[^/\s:@\"']+:[^/\s@\"']+@"
    r"|\b(?:Basic|Bearer) [A-Za-z0-9+/=_.~-]{16,}"
    r"|-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----(?:(?!-----END)[\s\S])*(?:-----END (?:[A-Z0-9]+ )*PRIVATE KEY-----)?"
)
_SHORT = 8  # a value of fewer characters is too common a word
MASK = "***"


def secrets_of(environ: Mapping[str, str]) -> list[str]:
    """The values to take out, the longest first; of one with several lines each long line too."""
    values = {value for name, value in environ.items() if _SECRET_NAME.search(name.upper()) and _secret(value)}
    lines = {line for value in values for line in value.splitlines() if len(line) >= 2 * _SHORT}
    return sorted({value.strip() for value in values | lines}, key=len, reverse=True)


def masker(environ: Mapping[str, str]) -> Callable[[str], str]:
    """Takes secrets out of a text: values of variables that are named like one, and what has a token's known form.

    >>> masker({"MY_TOKEN": "abcdefgh1"})("it is abcdefgh1, and AKIAABCDEFGHIJKLMNOP")
    'it is ***, and ***'
    """
    wanted = secrets_of(environ)
    pattern = re.compile("|".join(re.escape(value) for value in wanted)) if wanted else None

    def mask(text: str) -> str:
        text = pattern.sub(MASK, text) if pattern is not None else text
        return _FORMS.sub(lambda found: f"://{MASK}@" if found[0].startswith("://") else MASK, text)

    return mask


def _secret(value: str) -> bool:
    """Not a word, a number, a path or a URL that happens to be in a variable with such a name."""
    plain = value.strip()
    return len(plain) >= _SHORT and not plain.startswith(("/", "http://", "https://", "file:", "s3://")) and len(set(plain)) >= 4
