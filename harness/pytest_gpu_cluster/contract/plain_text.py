"""Text for a terminal, a page or a host: without what would act on its reader's screen."""

from __future__ import annotations

import re

# Also characters that turn the text around them, and halves of characters.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_ANSI = re.compile("\x1b\\[[0-9;?]*[A-Za-z]")


def plain(text: str) -> str:
    """Return `text` without control characters and ANSI colours; line ends and tabs stay.

    >>> plain("\\x1b[31mred\\x1b[0m\\x07")
    'red'
    """
    return _CONTROL.sub("", _ANSI.sub("", text))
