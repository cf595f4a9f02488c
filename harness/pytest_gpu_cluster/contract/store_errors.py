"""Failures of the object store: the vendor's errors with a meaning, a remedy and no secret."""

from __future__ import annotations

import os
import re
from urllib.parse import SplitResult

from pytest_gpu_cluster.contract.errors import StoreError, UnreadableRecordError

_AWS_LOGIN = 'eval "$(aws configure export-credentials --format env)"'
# Patterns of the vendor's texts, each with its meaning and its remedy; the first match holds.
# Texts decide here because the vendor gives no codes.
REMEDIES: tuple[tuple[str, str, str], ...] = (
    (
        "RequestTimeTooSkewed",
        "the clocks differ",
        "set this machine's clock (NTP): it is more than 15 minutes off",
    ),
    (
        "NoSuchBucket",
        "there is no such bucket",
        "create the bucket, or correct `store` in [tool.gpu-cluster]",
    ),
    (
        "PermanentRedirect|AuthorizationHeaderMalformed",
        "wrong region",
        "set AWS_REGION to the bucket's region",
    ),
    (
        "InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken",
        "the credentials are wrong or expired",
        f"renew them: aws sso login, then {_AWS_LOGIN}",
    ),
    (
        "/latest/(api|meta-data)/|metadata.google.internal|metadata/identity",
        "no credentials were found",
        f"set them in the environment; for AWS: {_AWS_LOGIN}",
    ),
    (
        r"status: 40[13]|code: 401",
        "access denied",
        "allow get, put, list and delete on this prefix for the role in use",
    ),
    (
        r"code: (28|122)\b|os error 28",
        "the disk is full",
        "free space there, or choose another `store` in [tool.gpu-cluster]",
    ),
    (
        r"code: 30\b|os error 30",
        "the file system is read-only",
        "choose a writable `store` in [tool.gpu-cluster]",
    ),
    (
        r"code: (1|13)\b|os error (1|13)\b",
        "permission denied",
        "make it writable for this user, or choose another store",
    ),
    (
        r"code: (17|20|21)\b|os error (17|20)\b",
        "a file is where a directory should be, or the reverse",
        "move it away, or choose another store",
    ),
    (
        "dns error|lookup address",
        "the host name is unknown",
        "check AWS_ENDPOINT_URL, the store's URL, the network",
    ),
    (
        "BadScheme",
        "http:// is not encrypted",
        "use https://, or set AWS_ALLOW_HTTP=true on a network you trust",
    ),
    (
        "kind: Connect",
        "nobody answers there",
        "check the network, and AWS_ENDPOINT_URL where it is set",
    ),
    (
        "kind: (Timeout|TimedOut|Interrupted)|timed out",
        "it was too slow",
        "check the network, then run again",
    ),
    (
        r"status: 507",
        "the store is full",
        "free space there or raise its quota, or choose another `store` in [tool.gpu-cluster]",
    ),
    (r"status: (5\d\d|429)", "the store is busy or ill", "wait a minute, then run again"),
    ("HTTP error", "the connection broke", "check the network, then run again"),
    ("MissingAccount", "which account?", "set AZURE_STORAGE_ACCOUNT_NAME"),
    (
        "parse path|InvalidPath",
        "that is no key",
        "rename or remove it: no empty, '.' or '..' part, no '#1' at the end",
    ),
    (
        r"code: 2\b|os error 2\b",
        "there is no such place",
        "choose another `store` in [tool.gpu-cluster]",
    ),
)


def redact(text: str) -> str:
    """Return `text` without user info and query strings of URLs, and values of secret variables."""
    text = re.sub(r"://[^/\s\"'@]*@", "://***@", text)
    text = re.sub(r"(://[^\s\"'?]*)\?[^\s\"')]*", r"\1?***", text)
    for name, value in os.environ.items():
        if len(value) >= 8 and re.search(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY|STORAGE_KEY|SAS", name):
            text = text.replace(value, "***")
    return text


def redact_error(error: Exception) -> Exception:
    """Return the vendor's error, or a copy without secrets in its text: a traceback prints it."""
    text = redact(str(error))
    if text == str(error):
        return error
    copy: Exception = type(error)(text)
    return copy.with_traceback(error.__traceback__)


def translate_error(action: str, error: Exception) -> StoreError:
    """Return the StoreError of a failed `action`: its meaning, a line of the vendor's, a remedy."""
    action, text = redact(action), redact(str(error))
    line = " ".join(text.split("\n\nDebug source:")[0].split())
    if answer := re.search(r"<Code>(\w+)</Code>\s*<Message>([^<]*)", line):
        line = f"{answer[1]}: {answer[2]}"
    else:
        line = line.rpartition(" - ")[2][:300]
        if host := re.search(r"\buri: Some\(\s*(https?://[^/\s]+)", text):
            line = f"{line} ({host[1]})"
    for pattern, meaning, remedy in REMEDIES:
        if re.search(pattern, text):
            return StoreError(f"{action}: {meaning}: {line}", remedy=remedy)
    return StoreError(f"{action}: {line}", remedy="run: gpu-cluster doctor")


def damaged(url: str, key: str, problem: Exception | str) -> UnreadableRecordError:
    """Return the error for an object that is not the noun that belongs there."""
    return UnreadableRecordError(
        f"{key} in {url} is not what was written there: {problem}",
        remedy="use the version of pytest-gpu-cluster that wrote it, or remove that key",
    )


def check_url(parts: SplitResult, shown: str) -> None:
    """Refuse the URL of a store with credentials in it, or of a kind that is none."""
    names_user = "@" in parts.netloc and not parts.scheme.startswith("abfs")
    if parts.password or parts.query or names_user:
        raise StoreError(
            f"the store URL {shown} has credentials in it",
            remedy="take them out; set them in the environment",
        )
    if parts.scheme not in ("s3", "gs", "az", "abfs", "abfss"):
        raise StoreError(
            f"{shown} is no store: unknown scheme {parts.scheme!r}",
            remedy="use a path, s3://, gs:// or az://",
        )
