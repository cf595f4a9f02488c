"""The logs of a node's own processes, on their way into the record of a session.

They are masked as everything in a record is, and one that holds a secret all the same is held back.
What a warm node has said in earlier sessions is theirs.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from pytest_gpu_cluster.contract.fields import Noun
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.masking import Masker, PassedValues
from pytest_gpu_cluster.contract.record import SessionRecord
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.node.outputs import Gate

NAMES = ("keeper.log", "ray.log", "forkserver.log", "agent.log")
LOG_BYTES = 256 * 1024  # of each; its end


@dataclass(frozen=True, kw_only=True)
class Served(Noun):
    """The session that a node serves, and what its tests were given."""

    session: str = ""  # "": none
    passed: PassedValues = PassedValues()


class Legacy:
    """What a guard needs to store the logs of a keeper that was killed: memory of both, no file."""

    def __init__(self) -> None:
        self._file = os.memfd_create("served", os.MFD_CLOEXEC)

    def leave(self, served: Served) -> None:
        """Put down what the node serves now."""
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(served.to_json()).encode(), 0)

    def take(self) -> Served:
        """Return what was put down last."""
        content = os.pread(self._file, os.fstat(self._file).st_size, 0)
        try:
            return Served.from_json(json.loads(content))
        except ValueError:  # nothing was, or the keeper died over it
            return Served()


class NodeLogs:
    """The logs in the directory of a node, whose name is that of the node."""

    def __init__(self, store: Store, directory: Path, legacy: Legacy) -> None:
        self._store, self._directory, self._legacy = store, directory, legacy
        self._served = Served()
        self._mask: Masker
        self._begun: dict[str, int] = {}  # bytes that were there when the session began
        self._stored: dict[str, int] = {}  # and those up to which it was stored

    def begin(self, served: Served) -> None:
        """Note the session that the node serves now."""
        self._served, self._mask = served, served.passed.masker()
        self._legacy.leave(served)

    def store(self) -> None:
        """Store what was logged in this session, where that is more by now. Raises StoreError."""
        if not self._served.session:
            return
        record = SessionRecord(self._store, self._served.session)
        for name in NAMES:
            begun = self._begun.get(name, 0)
            text, size = _read(self._directory / name, begun)
            if size <= max(begun, self._stored.get(name, 0)):
                continue
            masked = self._mask(text)
            if Gate(self._mask).admits(name, masked.encode()):
                record.put_log(self._directory.name, name, masked)
            self._stored[name] = size

    def end(self) -> None:
        """Let what is logged from now on be the next session's. Raises StoreError."""
        try:
            self.store()
        finally:
            self._served = Served()
            self._legacy.leave(self._served)
            self._begun = {name: _size(self._directory / name) for name in NAMES}


def _read(path: Path, begin: int) -> tuple[str, int]:
    """Return the text of a log from a byte on, or its end, and the size of the log."""
    size = _size(path)
    if size <= begin:
        return "", size
    with open(path, "rb") as file:
        file.seek(max(begin, size - LOG_BYTES))
        return file.read(LOG_BYTES).decode(errors="replace"), size


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
