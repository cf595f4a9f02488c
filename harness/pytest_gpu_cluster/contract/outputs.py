"""Nouns of the files that tests wrote into the tree: what a node is asked for, and its listing."""

from __future__ import annotations

from pathlib import Path

from pytest_gpu_cluster.contract.bounded import FILE_BYTES
from pytest_gpu_cluster.contract.fields import FieldError, Noun, shown
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.masking import PassedValues
from pytest_gpu_cluster.contract.trees import is_digest

# Of what no glob of `outputs` names, a node stores so much.
REST_BYTES = 32 << 20
REST_FILES = 1_000
HEAD = "head"  # the name of the head node's listing
WANTED_BYTES = 1 << 30  # and of what one names; a tree may be as big on its way out


@dataclass(frozen=True, kw_only=True)
class WrittenFile(Noun):
    """A regular file that is not as it was sent, or was not sent."""

    path: str  # relative to the tree, decoded by os.fsdecode
    executable: bool
    blob: str  # sha256 of its bytes; the key in the record ends with it
    size: int  # in bytes
    mtime_ns: int  # on the clock of its node

    def __post_init__(self) -> None:
        if not is_digest(self.blob) or not 0 <= self.size <= FILE_BYTES:
            size, blob = shown(self.size), shown(self.blob)
            raise FieldError(f"WrittenFile: no file has {size} bytes and the digest {blob}")


@dataclass(frozen=True, kw_only=True)
class NodeOutputs(Noun):
    """The files that the tests wrote on one node, as far as the record has them."""

    node: str  # head, or the beginning of Ray's node id
    files: tuple[WrittenFile, ...]
    left: int = 0  # files beyond the limits, which are lost with the node


@dataclass(frozen=True, kw_only=True)
class OutputsOrder(Noun):
    """A node is to store what the tests of a session wrote into its tree."""

    session: str
    node: str  # the name of its listing
    root: Path  # of the tree, on the node
    tree: str  # digest of the tree as it was sent
    globs: tuple[str, ...]  # what is to come home, relative to the tree
    passed: PassedValues  # no file that holds a secret of these is stored


@dataclass(frozen=True, kw_only=True)
class HeldBack(Noun):
    """A file that is not stored: it holds a secret, or its name does."""

    path: str
    variable: str  # whose secret it is, or the option

    def __str__(self) -> str:
        return f"{self.path} was held back: it holds the value of {self.variable}"
