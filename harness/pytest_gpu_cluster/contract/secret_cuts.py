"""Pieces of a secret: pytest abridges long values, and leaves their beginnings and ends."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

MASK = "***"
_ELLIPSIS = re.compile(r"\.\.\.|…")
_PIECE = 16  # a beginning or an end of this length is known wherever it stands
_CUT = 4  # and beside an ellipsis one of this
# Of a key's first line, which other keys have too, and of JSON, whose beginning is no secret
_MARKS = ("-----", "{", "[")


class Cuts:
    """The pieces of some values."""

    def __init__(self, values: Sequence[str]) -> None:
        self._forms = sorted({form for value in values for form in _plain_forms(value)})
        self._long = [
            form for form in self._forms if len(form) >= 2 * _PIECE and not form.startswith(_MARKS)
        ]
        self.ends = {end for form in self._long for end in (form[:_PIECE], form[-_PIECE:])}
        self._longest = max(map(len, self._forms), default=0)
        self._grams = {
            form[start : start + _CUT]
            for form in self._forms
            for start in range(len(form) - _CUT + 1)
        }

    def are_abridged(self, text: str) -> bool:
        """Return False where no piece stands beside an ellipsis."""
        return any(
            text[dots.start() - _CUT : dots.start()] in self._grams
            or text[dots.end() : dots.end() + _CUT] in self._grams
            for dots in _ellipses(text)
        )

    def without_ends(self, text: str) -> str:
        """Return a text with long beginnings and ends masked."""
        if any(end in text for end in self.ends):
            for form in self._long:
                text = _without_ends(text, form)
        return text

    def without_abridged(self, text: str) -> str:
        """Return a text with what stands beside an ellipsis masked."""
        if not self.are_abridged(text):
            return text
        parts, position = [], 0
        for dots in _ellipses(text):
            before = text[position : dots.start()]
            if before[-_CUT:] in self._grams and (length := self._head(before)):
                before = before[:-length] + MASK
            parts += [before, dots[0]]
            position = dots.end()
            if text[position : position + _CUT] in self._grams:
                length = self._tail(text[position : position + self._longest])
                parts.append(MASK * (length > 0))
                position += length
        return "".join([*parts, text[position:]])

    def _head(self, text: str) -> int:
        """Return the length of the longest beginning of a value that ends the text."""
        places = ((form, at + _CUT) for form, at in self._places(text[-_CUT:]))
        return max(
            (n for form, n in places if n < len(form) and text.endswith(form[:n])), default=0
        )

    def _tail(self, text: str) -> int:
        """Return the length of the longest end of a value that begins the text."""
        places = ((form, at) for form, at in self._places(text[:_CUT]) if at)
        return max((len(form) - at for form, at in places if text.startswith(form[at:])), default=0)

    def _places(self, gram: str) -> Iterator[tuple[str, int]]:
        """Yield the values that hold a text, and its places in them."""
        for form in self._forms:
            at = form.find(gram)
            while at >= 0:
                yield form, at
                at = form.find(gram, at + 1)


def _ellipses(text: str) -> list[re.Match[str]]:
    return [*_ELLIPSIS.finditer(text)] if "..." in text or "…" in text else []


def _plain_forms(value: str) -> set[str]:
    """Return a value as it is, and as Python and JSON write it."""
    escaped = value.encode("unicode_escape", "surrogatepass").decode()
    return {value, repr(value)[1:-1], ascii(value)[1:-1], json.dumps(value)[1:-1], escaped}


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
