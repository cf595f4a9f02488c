"""The shapes in which a secret stands in a text, as regular expressions.

Quoting can be repeated: JSON in JSON, the repr of a repr. So a character that some notation writes
in another way matches with any number of backslashes before it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import field
from functools import partial
from itertools import pairwise

from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.secret_values import Secret

_ENCODED_BYTES = 6  # of fewer the encoded form is so short that it may be chance
_HEAD_BYTES = 48  # of a longer value base64 is known by its beginning
_SHARD = 24  # a line that a tool has wrapped holds at least one piece of this length
_TELLING = 5  # characters of a probe that few texts have
_KNOWN_WORDS = 100_000
_PLAIN = re.compile(r"[A-Za-z0-9]+")
_NAMES = {'"': "quot", "&": "amp", "<": "lt", ">": "gt", "'": "apos"}
_ESCAPES = {"\n": "n", "\r": "r", "\t": "t", "\b": "b", "\f": "f", "\0": "0"}
# A line break; it may be missing where the text was put together again.
_NEWLINE = (
    r"(?:\\*\r?\n(?:[E>|](?=[ \t]))?[ \t]*|[ \t]+|(?:\\+r)?\\+n|(?:%(?:25)*0[Dd])?%(?:25)*0[Aa]"
    r"|\\+(?:x|u00)0[aA]|&#(?:10|x[aA]);)?"
)

# What may stand in the middle of a text that was broken over lines, by pprint, textwrap or base64:
# the quotes, the marks of pytest's lines, and colours.
SEAM = re.compile(
    r"(?:\x1b\[[0-9;]*m)+"
    r"|[\"']?[ \t]*\r?\n(?:[E>|](?=[ \t]))?[ \t]*(?:[+?-](?=[ \t]))?[ \t]*(?:[bBuU]?[\"'])?"
)


@dataclass(frozen=True)
class Form:
    """One shape of a secret. `probe` is in every text that matches it, as it is.

    To look for a plain text is a hundred times faster than for an expression.
    """

    secret: Secret
    text: str = field(repr=False)
    probe: str = field(repr=False)
    expression: Callable[[], str] = field(repr=False)


def forms_of(secret: Secret) -> Iterator[Form]:
    """Yield the shapes of one secret."""
    value = secret.value
    raw = _encoded(value)
    yield _form(secret, value, partial(_written, value, whole=secret.whole))
    if len(raw) >= _ENCODED_BYTES:
        for text in _base64(raw):
            yield _form(secret, text, partial(_base64_expression, text, len(raw)))
        rest = "[0-9a-fA-F]*" if len(raw) > _HEAD_BYTES else ""
        digits = raw[:_HEAD_BYTES].hex()
        for text in (digits, digits.upper()):
            yield _form(secret, text, partial(str.__add__, text, rest))


def probes_of(forms: Iterable[Form], pieces: Iterable[str]) -> set[str]:
    """Return plain texts, one of which is in every text that holds a form or a piece.

    Of a form that a line break has broken, one is left whole.
    """
    probes = set(filter(_is_telling, map(_probe, pieces)))
    for form in forms:
        length = len(form.text)
        shards = 1 if form.secret.whole else max(2, round(length / _SHARD))
        cuts = [length * n // shards for n in range(shards + 1)]
        found = {_probe(form.text[start:stop]) for start, stop in pairwise(cuts)}
        telling = {probe for probe in found if _is_telling(probe)}
        probes |= telling if len(telling) > 1 else {*telling, form.probe}
    return probes


class Gate:
    """Passes over texts that hold none of some probes. What a word holds is looked up once."""

    def __init__(self, probes: Collection[str]) -> None:
        self._probes, self._known = probes, dict[str, bool]()
        self._size = min(map(len, probes), default=1)
        self._open = self._size == 0  # a secret of no plain character: in any text, maybe
        self._heads = {probe[: self._size] for probe in probes}
        self._words = re.compile(f"[A-Za-z0-9]{{{max(self._size, 1)},}}")

    def may_hold(self, text: str) -> bool:
        """Return False where a text holds no probe."""
        if self._open or not self._probes:
            return self._open
        if len(self._known) > _KNOWN_WORDS:
            self._known.clear()
        for word in set(self._words.findall(text)):
            holds = self._known.get(word)
            if holds is None:
                holds = self._known[word] = self._holds(word)
            if holds:
                return True
        return False

    def _holds(self, word: str) -> bool:
        size = self._size
        starts = range(len(word) - size + 1)
        return any(word[at : at + size] in self._heads for at in starts) and any(
            probe in word for probe in self._probes
        )


def _form(secret: Secret, text: str, expression: Callable[[], str]) -> Form:
    return Form(secret, text, _probe(text), expression)


def _probe(text: str) -> str:
    """Return the longest run of characters that every notation writes as they are.

    A word that many texts have comes last.
    """
    return max(_PLAIN.findall(text), key=lambda run: (_is_telling(run), len(run)), default="")


def _is_telling(run: str) -> bool:
    return len(run) >= _TELLING and not run.islower()


def _encoded(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape" if _is_escaped(value) else "surrogatepass")


def _written(value: str, *, whole: bool) -> str:
    written = "".join(map(_character, value))
    return _standing_alone(written, value) if whole else written


def _is_escaped(value: str) -> bool:
    """Return whether each lone surrogate stands for a byte, as in `os.environ`."""
    return all("\udc80" <= c <= "\udcff" for c in value if "\ud800" <= c <= "\udfff")


def _standing_alone(written: str, value: str) -> str:
    before = r"(?<![A-Za-z0-9])" if value[0].isalnum() else ""
    after = r"(?![A-Za-z0-9])" if value[-1].isalnum() else ""
    return f"{before}{written}{after}"


def _character(character: str) -> str:
    if character.isascii() and character.isalnum():
        return character
    if character == "\n":
        return _NEWLINE
    code, plain = ord(character), re.escape(character)
    if character in "_-.~":
        return rf"\\*{plain}"
    if character == "\\":
        forms = [r"\\+"]
    elif not character.isprintable():
        forms = [plain]
    else:
        forms = [rf"\\*{plain}"]
    if escape := _ESCAPES.get(character):
        forms.append(rf"\\+{escape}")
    if character == " ":
        forms.append(r"\+")
    if name := _NAMES.get(character):
        forms.append(f"&{name};")
    if code <= 0xFF:
        forms.append(rf"\\+x{_digits(f'{code:02x}')}")
    if code <= 0xFFFF:
        forms.append(rf"\\+u{_digits(f'{code:04x}')}")
    else:
        high, low = 0xD800 + ((code - 0x10000) >> 10), 0xDC00 + (code & 0x3FF)
        forms.append(rf"\\+u{_digits(f'{high:04x}')}\\+u{_digits(f'{low:04x}')}")
        forms.append(rf"\\+U{_digits(f'{code:08x}')}")
    forms.append(rf"&#(?:0*{code}|[xX]0*{_digits(f'{code:x}')});")
    forms += _bytes_of(character, code)
    return f"(?:{'|'.join(forms)})"


def _bytes_of(character: str, code: int) -> Iterator[str]:
    """Yield a character as URLs have it, and as the repr of bytes."""
    escaped = 0xDC80 <= code <= 0xDCFF
    raw = character.encode("utf-8", "surrogateescape" if escaped else "surrogatepass")
    yield "".join(f"%(?:25)*{_digits(f'{byte:02x}')}" for byte in raw)
    if code > 0x7F:
        yield "".join(rf"\\+x{_digits(f'{byte:02x}')}" for byte in raw)
        yield re.escape(raw.decode("latin-1"))


def _digits(text: str) -> str:
    """Return the expression of hexadecimal digits in either case."""
    return "".join(f"[{d}{d.upper()}]" if d.isalpha() else d for d in text)


def _base64(raw: bytes) -> Iterator[str]:
    """Yield base64 of a value at its three places within three bytes, as in `user:password`."""
    for before, first in ((0, 0), (1, 2), (2, 3)):
        head = b"\0" * before + raw[:_HEAD_BYTES]
        yield base64.b64encode(head).decode()[first : len(head) * 8 // 6]


def _base64_expression(encoded: str, length: int) -> str:
    written = encoded.replace("+", "(?:[+-]|%2[Bb])").replace("/", "(?:[/_]|%2[Ff])")
    rest = r"[A-Za-z0-9+/_-]*" if length > _HEAD_BYTES else r"[A-Za-z0-9+/_-]?"
    return rf"{written}{rest}(?:=|%3[Dd]){{0,2}}"
