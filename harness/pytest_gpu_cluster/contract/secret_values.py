"""The values that are secrets: of which variables and options, and which parts of a value.

A variable is known for a secret by its name, or because `secret-env` names it. What cannot be
masked without masking half of every report is named by `unmaskable`, so that it can be said.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import unquote

from pytest_gpu_cluster.contract.errors import RequestError
from pytest_gpu_cluster.contract.frozen import dataclass

# What CI hosts, clouds and package registries call them, wherever it stands in a name …
_WORDS = (
    r"SECRET(?:_?KEY)?|TOKEN|PASSWORD|PASSWD|PASSPHRASE|PASSCODE|CREDENTIAL|CRED"
    r"|(?:PRIVATE|API|ACCESS|STORAGE|ACCOUNT|SIGNING|ENCRYPTION|MASTER)_?KEY"
    r"|CONN(?:ECTION)?_?STR(?:ING)?|(?:WEB)?HOOK(?:_?UR[LI])?|COOKIE|JWT|BEARER|KEYTAB|NETRC"
    r"|KUBE_?CONFIG|DOCKER_?CONFIG_?JSON"
)
# … and as a word of their own.
_OWN_WORDS = (
    r"O?AUTH|KEY|PWD|PASS|PW|SAS|DSN|PAT|PRIVATE|CERT|CERTIFICATE|PEM|PFX|P12|PIN|OTP|TOTP|SALT"
    r"|PEPPER|SIG|SIGNATURE|LICEN[CS]E"
)
_SECRET_NAME = re.compile(
    rf"(?:{_WORDS})S?\d*(?:_|$)|(?:^|_)(?:{_OWN_WORDS})S?(?:_|$)"
    r"|(?:^|_)SESSION(?:_?ID)?$"
)
_NO_SECRET_NAME = re.compile(r"^(?:XDG|DBUS|DESKTOP|GNOME|KDE|TERM|TMUX)_|PUBLIC_?KEY")
_PATH_NAME = re.compile(r"(?:FILE|PATH|DIR|SOCK|SOCKET|HOME|ASKPASS)$")
_SIGNED = re.compile(r"(?i)sig|token|key|secret|pass|pwd|credential|auth")  # of a URL, of `a=b;c=d`
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://(?:([^/@\s]*)@)?([^/?\s]*)([^?\s]*)(?:\?(\S*))?")
_PAIR = re.compile(r"([A-Za-z][\w .-]*?)\s*=\s*([^;\s]+)")
_PATH = re.compile(r"/[^\s:]*\.[A-Za-z][A-Za-z0-9]{1,5}")
_MARK = "-----"  # the first and the last line of a key hold no secret

FEWEST = 4  # characters: what is shorter is in every text
STRONG = 8  # a value of fewer characters may be a common word
LINE = 16  # a line of a value is a secret too from this length on
_FEW_KINDS = 4  # of fewer different characters it is a repeat
_DIGITS = 6  # a number of fewer is in many texts
_FILE_BYTES = 64 << 10  # of a file that a variable names
_CHOICES = frozenset({"", "0", "1", "true", "false", "yes", "no", "on", "off", "none", "null"})
_COMMON_TEXT = """
test tests testing user admin root guest default local localhost example dummy fake mock
password passwd secret secrets token tokens username login auth basic bearer public
private name value values data string text file files path main master auto info debug
error warning true false none null changeme postgres postgresql mysql mariadb redis
minio minioadmin rabbitmq mongo mongodb elastic python pytest linux windows x86_64
import from class def return assert raise with while yield lambda global pass break
continue else elif except finally async await list dict tuple float print object
"""
_COMMON = frozenset(_COMMON_TEXT.split())


@dataclass(frozen=True, kw_only=True)
class Secret:
    """A text to mask."""

    name: str  # of its variable, or of its option
    value: str = field(repr=False)
    whole: bool  # it is short, a word or a repeat: only where it stands by itself


@dataclass(frozen=True, kw_only=True)
class Unmaskable:
    """A variable whose value cannot be masked."""

    name: str
    why: str  # "its value …", without the value
    named: bool  # by `secret-env`


def is_secret_name(name: str) -> bool:
    """Return whether a variable or an option is named like a secret.

    >>> [is_secret_name(name) for name in ("DB_CREDS", "--api-token", "TOKENIZER")]
    [True, True, False]
    """
    upper = name.strip("-").replace("-", "_").upper()
    return bool(_SECRET_NAME.search(upper)) and not _NO_SECRET_NAME.search(upper)


def secrets_among(
    values: Iterable[tuple[str, str]], secret_env: Sequence[str] = ()
) -> tuple[Secret, ...]:
    """Return the texts to mask in pairs of a name and a value, the longest first.

    `secret_env`: globs of names whose values are masked whatever they are.
    """
    found = {
        (each.value, each.whole): each
        for each in _judged(values, secret_env)
        if isinstance(each, Secret)
    }
    return tuple(sorted(found.values(), key=lambda each: (-len(each.value), each.value)))


def unmaskable(
    values: Iterable[tuple[str, str]], secret_env: Sequence[str] = ()
) -> tuple[Unmaskable, ...]:
    """Return the names among these whose values are secrets and cannot be masked."""
    found = {
        each.name: each for each in _judged(values, secret_env) if isinstance(each, Unmaskable)
    }
    return tuple(found[name] for name in sorted(found))


def refuse_unmaskable(passed: Mapping[str, str], secret_env: Sequence[str]) -> None:
    """Raise RequestError where `secret_env` names a variable whose value cannot be masked."""
    named = [each for each in unmaskable(passed.items(), secret_env) if each.named]
    if named:
        names = "; ".join(f"{each.name} {each.why}" for each in named)
        raise RequestError(
            f"secret-env: the value of {names}, so it cannot be masked",
            remedy="give it a longer value, or take it out of secret-env or of pass-env",
        )


def option_values(args: Iterable[str], environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield name and value of options that are named like a secret, those of PYTEST_ADDOPTS too.

    >>> list(option_values(["-x", "--api-token=abc", "--password", "def"], {}))
    [('--api-token', 'abc'), ('--password', 'def')]
    """
    try:
        more = shlex.split(environ.get("PYTEST_ADDOPTS", ""))
    except ValueError:  # pytest refuses it
        more = []
    return ((option, value) for option, _, value in _options((*args, *more)) if option and value)


def without_option_values(args: Iterable[str], mask: str) -> Iterator[str]:
    """Yield the arguments with `mask` for the value of each option that is named like a secret.

    >>> list(without_option_values(["-x", "--api-token=abc", "--password", "def"], "***"))
    ['-x', '--api-token=***', '--password', '***']
    """
    for option, before, value in _options(args):
        yield before + (mask if option and value else value)


def _options(args: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Yield of each argument the secret option that it gives, what stands before the value, and it.

    The option is "" for any other argument.
    """
    name = ""
    for arg in args:
        option, equals, value = arg.partition("=")
        if name and not arg.startswith("-"):
            yield name, "", arg
        elif option.startswith("--") and is_secret_name(option):
            yield option, option + equals, value
        else:
            yield "", "", arg
        named = option.startswith("--") and not equals and is_secret_name(option)
        name = option if named else ""


# --- one variable --------------------------------------------------------------------------------


def _judged(
    values: Iterable[tuple[str, str]], secret_env: Sequence[str]
) -> Iterator[Secret | Unmaskable]:
    for name, text in values:
        value = text.strip()
        if any(fnmatchcase(name, pattern) for pattern in secret_env):
            yield from _named(name, value)
        elif is_secret_name(name):
            for part in _parts(name.strip("-").upper(), value):
                yield from _graded(name, part)
        elif (url := _URL.fullmatch(value)) and ":" in (url[1] or ""):  # whatever it is called
            for part in _of_url(url, name):
                yield from (each for each in _graded(name, part) if isinstance(each, Secret))


def _named(name: str, value: str) -> Iterator[Secret | Unmaskable]:
    """Yield the whole value of a variable that `secret-env` names, and its parts."""
    from pytest_gpu_cluster.contract.event_words import event_words  # few sessions need it

    if not value:
        return
    if len(value) < FEWEST:
        why = f"has fewer than {FEWEST} characters"
        yield Unmaskable(name=name, why=why, named=True)
    elif not any(map(str.isalnum, value)) and not _is_strong(value):
        yield Unmaskable(name=name, why="has no letter and no digit", named=True)
    elif value in event_words():
        yield Unmaskable(name=name, why="is a word of every report", named=True)
    else:
        yield Secret(name=name, value=value, whole=not _is_strong(value))
        for part in (*_parts(name.upper(), value), *_lines(value)):
            yield from (each for each in _graded(name, part) if isinstance(each, Secret))


def _graded(name: str, value: str) -> Iterator[Secret | Unmaskable]:
    """Yield a value of a variable that is named like a secret, as far as it can be masked."""
    if _is_strong(value):
        yield Secret(name=name, value=value, whole=False)
        for line in _lines(value):
            yield Secret(name=name, value=line, whole=False)
        return
    number = value.replace(".", "", 1).isdecimal()
    if value.lower() in _CHOICES or (number and "TOKENS" in name.upper()):  # MAX_TOKENS
        return
    why = ""
    if len(value) < FEWEST:
        why = f"has fewer than {FEWEST} characters"
    elif not any(map(str.isalnum, value)):
        why = "has no letter and no digit"
    elif number and len(value) < _DIGITS:
        why = "is a short number"
    elif value.lower() in _COMMON:
        why = "is a common word"
    if why:
        yield Unmaskable(name=name, why=why, named=False)
    else:
        yield Secret(name=name, value=value, whole=True)


def _is_strong(value: str) -> bool:
    """Return whether a value is masked wherever it stands: no other text has it by chance."""
    word = value.isascii() and value.isalpha() and value.islower()
    return len(value) >= STRONG and len(set(value)) >= _FEW_KINDS and not word


def _lines(value: str) -> Iterator[str]:
    """Yield the lines of a value of several that tell something by themselves."""
    lines = [line.strip() for line in value.splitlines()]
    for line in lines if len(lines) > 1 else ():
        telling = len(line) >= LINE or (_is_strong(line) and not re.search(r"\s", line))
        if telling and not line.startswith(_MARK):
            yield line


# --- the parts of a value ------------------------------------------------------------------------


def _parts(name: str, value: str) -> Iterator[str]:
    """Yield the secrets in a value: of a URL, a path or a document what opens something."""
    if url := _URL.fullmatch(value):
        yield from _of_url(url, name)
    elif value.startswith("/") and "\n" not in value and _is_path(name, value):
        yield from _of_file(value)
    else:
        yield from _of_document(value)
        yield value


def _of_url(url: re.Match[str], name: str) -> Iterator[str]:
    user, _, password = (url[1] or "").partition(":")
    pairs = [pair.partition("=") for pair in (url[4] or "").split("&")]
    parts = [password or user, *(text for key, _, text in pairs if _SIGNED.search(key))]
    if "HOOK" in name:  # its path is the secret
        parts.append((url[3] or "").strip("/"))
    yield from (form for part in parts for form in dict.fromkeys((part, unquote(part))) if form)


def _is_path(name: str, value: str) -> bool:
    return bool(_PATH_NAME.search(name) or _PATH.fullmatch(value)) or Path(value).exists()


def _of_file(path: str) -> Iterator[str]:
    """Yield the secrets of a file that a variable names, where it is on this machine."""
    try:
        file = Path(path)
        if not file.is_file() or file.stat().st_size > _FILE_BYTES:
            return
        content = file.read_text().strip()
    except (OSError, ValueError):
        return
    yield from _of_document(content)
    yield content


def _of_document(value: str) -> Iterator[str]:
    """Yield what is named like a secret in JSON, and in `name=value;name=value`."""
    if value.startswith(("{", "[")):
        with contextlib.suppress(ValueError, RecursionError):
            yield from _of_json(json.loads(value))
    elif "=" in value.rstrip("="):
        yield from (text for key, text in _PAIR.findall(value) if _SIGNED.search(key))


def _of_json(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, str) and is_secret_name(str(key)):
                yield item.strip()
            else:
                yield from _of_json(item)
    elif isinstance(value, list):
        for item in value:
            yield from _of_json(item)
