"""Secrets are masked in texts that others read: events of the store, reports, a CI host's pages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from itertools import islice

from pytest_gpu_cluster.contract.codec import map_strings
from pytest_gpu_cluster.contract.event_words import event_words
from pytest_gpu_cluster.contract.fields import JsonObject, Noun
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.secret_cuts import MASK, Cuts
from pytest_gpu_cluster.contract.secret_forms import SEAM, Form, Gate, forms_of, probes_of
from pytest_gpu_cluster.contract.secret_values import (
    Secret,
    option_values,
    secrets_among,
    unmaskable,
)

# Tokens whose form is known. The plain texts are looked for first: most texts have none of them.
_HINTS = (
    *("ghp_", "gho_", "ghr_", "ghs_", "ghu_", "github_pat_", "glpat-", "xox", "hf_", "sk-"),
    *("ATBB", "ATATT", "ATCTT", "AKIA", "ASIA", "AIza", "npm_", "pypi-", "dapi", "wandb_v1_"),
    *("://", "Basic ", "Bearer ", "-----BEGIN"),
)
_FORMS = re.compile(
    r"\b(?:gh[oprsu]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{40,}|glpat-[A-Za-z0-9_-]{20,}"
    r"|xox[abprs]-[A-Za-z0-9-]{18,}|hf_[A-Za-z0-9]{34}|npm_[A-Za-z0-9]{36}"
    r"|sk-(?:ant|proj|svcacct|admin)-[A-Za-z0-9_-]{40,}|pypi-AgE[A-Za-z0-9_-]{50,}"
    r"|dapi[0-9a-f]{32}|wandb_v1_[A-Za-z0-9_]{60,}|AIza[A-Za-z0-9_-]{35}"
    r"|AT(?:BB|ATT|CTT)[A-Za-z0-9_=.-]{20,}|(?:AKIA|ASIA)[0-9A-Z]{16})|://[^/\s:@\"']+:[^/\s@\"']+@"
    r"|\b(?:Basic|Bearer) [A-Za-z0-9+/=_.~-]{16,}"
    r"|-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----(?:(?!-----END)[\s\S])*?[A-Za-z0-9+/=]{16}"
    r"(?:(?!-----END)[\s\S])*(?:-----END (?:[A-Z0-9]+ )*PRIVATE KEY-----)?"
)
_WORD = re.compile(r"[A-Za-z_$.]{2,24}")
_CACHED_CHARS, _CACHED = 200, 20_000  # texts that repeat: names, words, paths
_BIG_FILE = 8 << 20  # bytes
_COMPILED = 200  # expressions, each for the secrets that some text held


class Masker:
    """Takes secrets out of texts."""

    def __init__(self, secrets: Sequence[Secret]) -> None:
        self._secrets = secrets
        self._forms = [form for secret in secrets for form in forms_of(secret)]
        self._strong = [form for form in self._forms if not form.secret.whole]
        self._compiled: dict[tuple[int, ...], re.Pattern[str]] = {}
        self._cuts = Cuts([each.value for each in secrets if not each.whole])
        self._gate = Gate(probes_of(self._forms, self._cuts.ends))
        # As a whole text these are words of an event, and of no secret.
        words = {each.value for each in secrets if _WORD.fullmatch(each.value)}
        self._kept = words & event_words() if words else words
        self._cache: dict[str, str] = {}

    @property
    def any(self) -> bool:
        """True when there is a secret to mask, beside tokens of a known form."""
        return bool(self._secrets)

    def __call__(self, text: str) -> str:
        """Return a text without secrets, and without tokens of a known form."""
        if len(text) > _CACHED_CHARS:
            return self._masked(text)
        masked = self._cache.get(text)
        if masked is None:
            if len(self._cache) >= _CACHED:
                self._cache.clear()
            masked = self._cache[text] = self._masked(text)
        return masked

    def _masked(self, text: str) -> str:
        if self._gate.may_hold(text):
            if "\n" in text or "\x1b" in text:  # as a whole, before its lines
                text = self._without_broken(text)
            if pattern := self._pattern(text, self._forms):
                text = pattern.sub(MASK, text)
            text = self._cuts.without_ends(text)
        text = self._cuts.without_abridged(text)
        if any(hint in text for hint in _HINTS):
            text = _FORMS.sub(lambda m: f"://{MASK}@" if m[0].startswith("://") else MASK, text)
        return text

    def _pattern(self, text: str, forms: Sequence[Form]) -> re.Pattern[str] | None:
        """Return what matches the secrets that a text may hold; None where it holds none."""
        found = tuple(index for index, form in enumerate(forms) if form.probe in text)
        if not found:
            return None
        key = (len(forms), *found)
        if key not in self._compiled:
            if len(self._compiled) >= _COMPILED:
                self._compiled.clear()
            expressions = [forms[index].expression() for index in found]
            self._compiled[key] = re.compile("|".join(expressions))
        return self._compiled[key]

    def _without_broken(self, text: str) -> str:
        """Mask what a line break, with quotes and marks around it, or a colour has broken."""
        squeezed = SEAM.sub("", text)
        pattern = self._pattern(squeezed, self._strong)
        spans = [match.span() for match in pattern.finditer(squeezed)] if pattern else []
        if not spans:
            return text
        parts: list[str] = []
        begin = position = 0  # of the piece, in the squeezed text and in the whole
        for seam in (*SEAM.finditer(text), None):
            piece = text[position : seam.start() if seam is not None else len(text)]
            parts += [_without_spans(piece, begin, spans), seam[0] if seam is not None else ""]
            begin += len(piece)
            position = seam.end() if seam is not None else len(text)
        return "".join(parts)

    # -- JSON and files ----------------------------------------------------------------------------

    def json(self, value: JsonObject, names: Mapping[str, str] | None = None) -> JsonObject:
        """Return a JSON object with every string masked, keys too; the same one where none holds.

        `names`: what stands for a string as a whole.
        """
        return self._json(value, names or {}) if self.touches(value) else value

    def touches(self, value: JsonObject) -> bool:
        """Return False where no string of a JSON object can hold a secret."""
        line = json.dumps(value)
        return (
            self._gate.may_hold(line)
            or any(hint in line for hint in _HINTS)
            or self._cuts.are_abridged(line)
        )

    def _json(self, value: JsonObject, names: Mapping[str, str]) -> JsonObject:
        def mask(text: str) -> str:
            shown = names.get(text)
            return shown if shown is not None else text if text in self._kept else self(text)

        return map_strings(value, mask, self._lines)

    def _lines(self, lines: list[str]) -> list[str]:
        """Return a list of texts without what is broken over several of them."""
        text = "\n".join(lines)
        masked = self._without_broken(text) if self._strong else text
        if masked == text:
            return lines
        rest = iter(masked.split("\n"))
        return ["\n".join(islice(rest, line.count("\n") + 1)) for line in lines]

    def holder(self, content: bytes) -> str:
        """Return the name of the variable whose secret a file holds; "" for none.

        In a binary file a short value or a word is chance; in a big one only the value itself is
        looked for, and in a big text what no line break has broken.
        """
        big, binary = len(content) > _BIG_FILE, b"\0" in content
        forms = self._strong if binary else self._forms
        if big and binary:
            raw = ((each.secret.name, _bytes(each.secret.value)) for each in forms)
            return next((name for name, value in raw if value in content), "")
        texts = [content.decode("latin-1")]
        if not big:
            texts.append(texts[0].replace("\0", "") if binary else SEAM.sub("", texts[0]))
        for text in texts:
            for form in forms:
                if form.probe in text and re.search(form.expression(), text):
                    return form.secret.name
        return ""


def _bytes(value: str) -> bytes:
    return value.encode("utf-8", "replace")


def masker(environ: Mapping[str, str], secret_env: Sequence[str] = ()) -> Masker:
    """Return what masks the secrets among variables, and tokens of a known form.

    Secrets are values of variables that are named like one, or that `secret_env` names by globs.

    >>> masker({"MY_TOKEN": "abcdefgh1"})("it is abcdefgh1, and AKIAABCDEFGHIJKLMNOP")
    'it is ***, and ***'
    """
    return Masker(secrets_among(environ.items(), secret_env))


def client_masker(environ: Mapping[str, str], secret_env: Sequence[str] = ()) -> Masker:
    """Return what masks the texts of this machine: by values that no other text has by chance.

    What tests say has been masked where they ran, of the variables that they got.
    """
    named = secrets_among(environ.items(), secret_env)
    return Masker([each for each in named if not each.whole])


@dataclass(frozen=True, kw_only=True)
class PassedValues(Noun):
    """What the tests of a session were given, in which secrets may be."""

    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    args: tuple[str, ...] = field(default=(), repr=False)  # of pytest
    secret_env: tuple[str, ...] = ()

    def pairs(self) -> Iterable[tuple[str, str]]:
        """Return the names and values of variables and of options."""
        return (*self.env.items(), *option_values(self.args, self.env))

    def compact(self) -> PassedValues:
        """Return the same secrets without the arguments that hold none, of which there are many.

        >>> PassedValues(args=("a.py::test", "--api-token", "abc")).compact().args
        ('--api-token=abc',)
        """
        args = tuple(f"{option}={value}" for option, value in option_values(self.args, {}))
        return PassedValues(env=self.env, args=args, secret_env=self.secret_env)

    def secrets(self) -> tuple[Secret, ...]:
        """Return the texts among these to mask."""
        return secrets_among(self.pairs(), self.secret_env)

    def masker(self) -> Masker:
        """Return what masks the secrets among these."""
        return Masker(self.secrets())


def not_masked_line(passed: PassedValues) -> str:
    """Return a line that names the secrets which are not masked, and why; "" for none.

    >>> not_masked_line(PassedValues(env={"DB_PASSWORD": "admin"}))
    'not masked: DB_PASSWORD, whose value is a common word'
    """
    names = [f"{each.name}, whose value {each.why}" for each in unmaskable(passed.pairs())]
    return f"not masked: {'; '.join(names)}" if names else ""


# --- pieces --------------------------------------------------------------------------------------


def _without_spans(piece: str, begin: int, spans: Iterable[tuple[int, int]]) -> str:
    """Return a piece that begins at `begin` of a text without these spans of the text.

    The mask stands where a span begins.
    """
    parts, position = [], 0
    for start, stop in spans:
        first, last = max(start - begin, position), min(stop - begin, len(piece))
        if first < last:
            parts += [piece[position:first], MASK * (start >= begin)]
            position = last
    return "".join([*parts, piece[position:]])
