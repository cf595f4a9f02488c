"""The mutations of table.txt: a property, its edit, the test that must fail, and its words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).with_name("table.txt")


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """One mutation of a file of gpu_tests, and the test that must notice it.

    `edits`: (old, new), each old text once in `file`; `words`: of the assertion that must fail.
    """

    id: str
    property: str
    file: str
    edits: tuple[tuple[str, str], ...]
    test: str
    words: str


def parse_mutations(text: str) -> Iterator[Mutation]:
    """Parse the table.

    A header `## ID TEST` holds for the blocks below it. A block has the property, `in FILE`, the
    edits as lines with - and +, and `=> WORDS`. Blocks are separated by empty lines.
    """
    id = test = ""
    for block in text.strip().split("\n\n"):
        if block.startswith("## "):
            _, id, test = block.split(" ")
            continue
        property, file, *edits, words = block.split("\n")
        yield Mutation(
            id=id,
            property=property,
            file=file.removeprefix("in "),
            edits=tuple(parse_edits(edits)),
            test=test,
            words=words.removeprefix("=> "),
        )


def parse_edits(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Yield an old and a new text for each run of - lines and the + lines after it."""
    old: list[str] = []
    new: list[str] = []
    for line in lines:
        if line.startswith("-") and new:
            yield "\n".join(old), "\n".join(new)
            old, new = [], []
        (old if line.startswith("-") else new).append(line[1:])
    yield "\n".join(old), "\n".join(new)


MUTATIONS = tuple(parse_mutations(TABLE.read_text("utf-8")))
