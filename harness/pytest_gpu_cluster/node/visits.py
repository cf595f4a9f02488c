"""A session on a node beside the head: it comes with its first process, and its places go with it.

The head's keeper knows when a session ends; the others read it in the cluster's record.
"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.specs import TEMPORARY
from pytest_gpu_cluster.node.context import Node
from pytest_gpu_cluster.node.logs import NodeLogs, Served
from pytest_gpu_cluster.node.working_trees import WorkingTrees


@dataclass(frozen=True, kw_only=True, eq=False)
class Visit:
    """A session that has a tree here."""

    served: Served
    scratch: Path  # its directory, which ends with it

    @property
    def session(self) -> str:
        return self.served.session


class Visits:
    """The one session after the other that a node beside the head sees."""

    def __init__(self, node: Node, trees: WorkingTrees, logs: NodeLogs) -> None:
        self._node, self._trees, self._logs = node, trees, logs
        self._lock = threading.Lock()  # guards the next
        self.current: Visit | None = None

    def begin(self, visit: Visit) -> None:
        """Note a session that is about to have a tree here; one before it is over.

        Raises StoreError.
        """
        with self._lock:
            if self.current is None or self.current.session != visit.session:
                self._end()
                self.current = visit
                self._logs.begin(visit.served)

    def end(self, visit: Visit) -> None:
        """Remove what a session that is over has here, but keep its tree for the next one.

        Raises StoreError: its logs are not stored.
        """
        with self._lock:
            if self.current is visit:
                self._end()

    def _end(self) -> None:
        if self.current is not None:
            self._trees.keep()
            remove_places(self._node, self.current.scratch)
            self.current = None
            self._logs.end()


def prepare(node: Node, scratch: Path) -> None:
    """Make the directory of a session, and that of its tests' temporary files."""
    temporary = node.directory / TEMPORARY
    for directory in (scratch, temporary):
        directory.mkdir(parents=True, exist_ok=True)
    if node.guest is not None:
        node.guest.settle(scratch, temporary)


def remove_places(node: Node, scratch: Path) -> None:
    """Remove the directory of a session that is over, and that of its tests' temporary files."""
    for directory in (scratch, node.directory / TEMPORARY):
        shutil.rmtree(directory, ignore_errors=True)
