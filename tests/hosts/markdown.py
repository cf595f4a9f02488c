"""A small and safe Markdown renderer: the part of GitHub's dialect that reports are written in.

Everything is escaped. Tags are text, but for the few harmless ones that a host lets through; then,
as with the real ones, a line that begins with such a tag is taken as it is up to the next empty
line, and comments are not shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

TAGS = frozenset(
    {
        "details",
        "summary",
        "br",
        "sub",
        "sup",
        "b",
        "i",
        "em",
        "strong",
        "code",
        "kbd",
        "p",
        "table",
        "tr",
        "td",
        "th",
        "pre",
    }
)
_BULLET = re.compile(r"(?P<indent> *)(?P<mark>[-*+]|\d{1,9}[.)])(?P<gap> +)(?P<text>.*)")
_FENCE = re.compile(r" {0,3}(?P<mark>`{3,}|~{3,})(?P<language>[^`]*)$")
_RULE = re.compile(r" {0,3}([-*_])( *\1){2,} *$")
_HEADING = re.compile(r" {0,3}(?P<level>#{1,6})(?: +(?P<text>.*?))?(?: +#+)? *$")
_COLUMNS = re.compile(r" *\|? *:?-+:? *(\| *:?-+:? *)*\|? *$")
_TAG = re.compile(r"<(?P<close>/?)(?P<name>[a-zA-Z][a-zA-Z0-9]*)(?P<rest>\s[^<>]*)?/?>")
_BLOCK_TAG = re.compile(r" {0,3}</?(details|summary|p|table|tr|td|th|pre)\b|\s*<!--", re.IGNORECASE)
_UNDERLINE = re.compile(r" {0,3}(=+|-+) *$")
_INTERRUPTS = re.compile(r" {0,3}(#{1,6}( |$)|`{3}|~{3}|>|[-*+] |1[.)] |(=+|-+) *$)")
_PUNCTUATION = re.escape("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


def rendered(text: str, *, tags: bool) -> str:
    """HTML of a Markdown text; `tags` lets the harmless ones through."""
    return "\n".join(_Blocks(text.expandtabs(4).splitlines(), tags).all())


@dataclass
class _Blocks:
    lines: list[str]
    tags: bool
    index: int = 0

    def all(self) -> Iterator[str]:
        while self.index < len(self.lines):
            if self.lines[self.index].strip():
                yield self._block()
            else:
                self.index += 1

    def _block(self) -> str:
        line = self.lines[self.index]
        if match := _FENCE.match(line):
            return self._fenced(match["mark"], match["language"].strip())
        if match := _HEADING.match(line):
            self.index += 1
            level = len(match["level"])
            return f"<h{level}>{self._inline(match['text'] or '')}</h{level}>"
        if _RULE.match(line):
            self.index += 1
            return "<hr>"
        if self.tags and _BLOCK_TAG.match(line):
            return self._raw()
        if line.lstrip().startswith(">"):
            return self._quote()
        if _BULLET.match(line):
            return self._list()
        if line.startswith("    "):
            return self._indented()
        if self._is_table():
            return self._table()
        return self._paragraph()

    def _take(self, more: re.Pattern[str] | None = None) -> list[str]:
        """The lines up to the next empty one, or to one that fits `more`."""
        start = self.index
        self.index += 1
        while (
            self.index < len(self.lines)
            and self.lines[self.index].strip()
            and not (more and more.match(self.lines[self.index]))
        ):
            self.index += 1
        return self.lines[start : self.index]

    def _fenced(self, mark: str, language: str) -> str:
        self.index += 1
        start = self.index
        end = re.compile(rf" {{0,3}}{re.escape(mark[0])}{{{len(mark)},}} *$")
        while self.index < len(self.lines) and not end.match(self.lines[self.index]):
            self.index += 1
        body = "\n".join(self.lines[start : self.index])
        self.index += 1
        return f'<pre><code class="{escape(language)}">{escape(body)}</code></pre>'

    def _indented(self) -> str:
        start = self.index
        while self.index < len(self.lines) and (
            self.lines[self.index].startswith("    ") or not self.lines[self.index].strip()
        ):
            self.index += 1
        body = "\n".join(line[4:] for line in self.lines[start : self.index]).rstrip()
        return f"<pre><code>{escape(body)}</code></pre>"

    def _raw(self) -> str:
        """Tags up to the next empty line, with no Markdown in them; a comment up to its end."""
        if self.lines[self.index].lstrip().startswith("<!--"):
            start = self.index
            while self.index < len(self.lines) and "-->" not in self.lines[self.index]:
                self.index += 1
            self.index += 1
            return _tagged(
                re.sub(
                    r"<!--.*?(-->|$)",
                    "",
                    "\n".join(self.lines[start : self.index]),
                    flags=re.DOTALL,
                )
            )
        return _tagged("\n".join(self._take()))

    def _quote(self) -> str:
        inner = [re.sub(r"^ {0,3}> ?", "", line) for line in self._take()]
        return f"<blockquote>{self._within(inner)}</blockquote>"

    def _list(self) -> str:
        first = _BULLET.match(self.lines[self.index])
        assert first is not None
        kind, indent, items = (
            ("ol" if first["mark"][0].isdigit() else "ul"),
            len(first["indent"]),
            [],
        )
        while (
            self.index < len(self.lines)
            and (match := _BULLET.match(self.lines[self.index]))
            and len(match["indent"]) <= indent
        ):
            items.append(self._item(len(match["indent"]) + len(match["mark"]) + 1, match["text"]))
        return f"<{kind}>{''.join(items)}</{kind}>"

    def _item(self, width: int, text: str) -> str:
        """One item: its line, and what is below it and indented at least so much."""
        inner = [text]
        self.index += 1
        while self.index < len(self.lines):
            line = self.lines[self.index]
            follows = "".join(self.lines[self.index + 1 : self.index + 2])
            if not (
                line.startswith(" " * min(width, 2))
                if line.strip()
                else follows.startswith(" " * min(width, 2))
            ):
                break
            inner.append(line[width:] if not line[:width].strip() else line.lstrip())
            self.index += 1
        html = re.sub(r"^<p>(.*?)</p>", r"\1", self._within(inner), count=1, flags=re.DOTALL)
        return f"<li>{html}</li>"

    def _within(self, lines: list[str]) -> str:
        return "\n".join(_Blocks(lines, self.tags).all())

    def _is_table(self) -> bool:
        below = "".join(self.lines[self.index + 1 : self.index + 2])
        return (
            "|" in self.lines[self.index]
            and bool(_COLUMNS.match(below))
            and len(_cells(self.lines[self.index])) == len(_cells(below))
        )

    def _table(self) -> str:
        head, columns, *rows = self._take()
        aligned = [_alignment(column) for column in _cells(columns)]
        body = "".join(self._row("td", _cells(row), aligned) for row in rows)
        header = self._row("th", _cells(head), aligned)
        return f"<table><thead>{header}</thead><tbody>{body}</tbody></table>"

    def _row(self, tag: str, cells: list[str], aligned: list[str]) -> str:
        cells = [*cells, *[""] * len(aligned)][: len(aligned)]
        parts = (
            f"<{tag}{style}>{self._inline(cell)}</{tag}>"
            for cell, style in zip(cells, aligned, strict=True)
        )
        return f"<tr>{''.join(parts)}</tr>"

    def _paragraph(self) -> str:
        lines = self._take(_INTERRUPTS)
        text = "\n".join(
            line.strip() + ("  " if line.endswith("  ") else "") for line in lines
        ).strip()
        below = _UNDERLINE.match("".join(self.lines[self.index : self.index + 1]))
        if below is None:
            return f"<p>{self._inline(text)}</p>"
        self.index += 1
        level = 1 if below[1].startswith("=") else 2
        return f"<h{level}>{self._inline(text)}</h{level}>"

    def _inline(self, text: str) -> str:
        return inline(text, tags=self.tags)


def inline(text: str, *, tags: bool) -> str:
    """HTML of a text within a line: code, links, emphasis; `tags` as in `rendered`."""
    fragments: list[str] = []

    def keep(html: str) -> str:
        fragments.append(html)
        return f"\ue000{len(fragments) - 1}\ue001"

    text = re.sub("[\ue000\ue001]", "", text)
    text = re.sub(
        r"(?<![`\\])(`+)(?!`)(.+?)(?<!`)\1(?!`)",
        lambda m: keep(f"<code>{escape(_code(m[2]))}</code>"),
        text,
        flags=re.DOTALL,
    )
    text = re.sub(rf"\\([{_PUNCTUATION}])", lambda m: keep(escape(m[1])), text)
    if tags:
        text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
        text = _TAG.sub(lambda m: keep(_tag(m)), text)
    text = re.sub(r"<(https?://[^<>\s]+)>", lambda m: keep(_anchor(m[1], escape(m[1]))), text)
    link = re.compile(
        r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]"  # the text
        r"\(\s*(<[^<>\n]*>|(?:[^\s()]|\([^\s()]*\))*)"  # the address
        r"(?:\s+(?:\"[^\"]*\"|'[^']*'))?\s*\)"  # the title
    )
    text = link.sub(
        lambda m: keep(
            _anchor(_opened(m[3].strip("<>"), fragments), _emphasized(escape(m[2], quote=False)))
        ),
        text,
    )
    text = re.sub(
        r"https?://[^\s<>\ue000]*[^\s<>\ue000.,:;!?\"')\]]",
        lambda m: keep(_anchor(m[0], escape(m[0]))),
        text,
    )
    text = re.sub(
        r"&(#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z]\w{1,30});", lambda m: keep(m[0]), text
    )  # characters written by name
    html = _emphasized(escape(text, quote=False))
    html = re.sub(r"(  |\\)\n", "<br>\n", html)
    while "\ue000" in html:
        html = re.sub("\ue000(\\d+)\ue001", lambda m: fragments[int(m[1])], html)
    return html


def _emphasized(text: str) -> str:
    for mark, tag in (
        (r"\*\*", "strong"),
        ("__", "strong"),
        ("~~", "del"),
        (r"\*", "em"),
        ("_", "em"),
    ):
        edge = r"\w" if "_" in mark else r"\\"
        text = re.sub(
            rf"(?<!{edge}){mark}(?=\S)(.+?)(?<=\S){mark}(?!{edge})",
            rf"<{tag}>\1</{tag}>",
            text,
            flags=re.DOTALL,
        )
    return text


def _code(text: str) -> str:
    text = text.replace("\n", " ")
    return text[1:-1] if text.startswith(" ") and text.endswith(" ") and text.strip() else text


def _anchor(address: str, html: str) -> str:
    """A link to where a link may go; elsewhere its text alone."""
    if re.match(r"(https?://|mailto:|[/#.\w-])", address) and not re.match(
        r"(?!https?:|mailto:)[^/#?]*:", address
    ):
        return f'<a href="{escape(address)}">{html}</a>'
    return html


def _opened(text: str, fragments: list[str]) -> str:
    return re.sub(
        "\ue000(\\d+)\ue001", lambda m: re.sub(r"<[^>]*>", "", fragments[int(m[1])]), text
    )


def _tagged(text: str) -> str:
    """Text with the harmless tags as they are, without attributes, and all else escaped."""
    pieces, end = [], 0
    for match in _TAG.finditer(text):
        pieces += [escape(text[end : match.start()], quote=False), _tag(match)]
        end = match.end()
    return "".join([*pieces, escape(text[end:], quote=False)])


def _tag(match: re.Match[str]) -> str:
    name = match["name"].lower()
    if name not in TAGS:
        return escape(match[0])
    opened = (
        " open"
        if name == "details" and not match["close"] and (match["rest"] or "").strip() == "open"
        else ""
    )
    return f"<{match['close']}{name}{opened}>"


def _cells(row: str) -> list[str]:
    """The cells of a row of a table.

    A bar within code or after a backslash is text only where it is escaped.
    """
    row = row.strip().removeprefix("|")
    row = row[:-1] if row.endswith("|") and not row.endswith("\\|") else row
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row)]


def _alignment(column: str) -> str:
    to_left, to_right = column.startswith(":"), column.endswith(":")
    side = "center" if to_left and to_right else "right" if to_right else ""
    return f' style="text-align: {side}"' if side else ""
