"""Files and modules that the tests missed on the cluster, and that are here: they were not sent."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import pytest

from pytest_gpu_cluster.contract.events import (
    CollectorFinished,
    Event,
    Hello,
    TestFinished,
    UsageError,
)
from pytest_gpu_cluster.contract.settings import RunRequest
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.contract.trees import get_tree

_FILE = re.compile(r"No such file or directory: '([^'\\]+)'")
_MODULE = re.compile(r"No module named '([\w.]+)'")
SHOWN = 3  # lines


class NotSent:
    """Listens to what failed, and looks at the end for what of it lies here."""

    def __init__(self, config: pytest.Config, request: RunRequest) -> None:
        self._config, self._request = config, request
        self._top = request.tree.top
        self._root = ""  # of the tree on the cluster
        self._files: dict[str, None] = {}  # as the errors name them, in their order
        self._modules: dict[str, None] = {}

    def note(self, event: Event) -> None:
        """Take note of the missing files and modules that an event names."""
        match event:
            case Hello():
                self._root = event.root
            case CollectorFinished() if event.report["outcome"] == "failed":
                self._read(event.report["longrepr"])
            case TestFinished():
                for record in event.records:
                    if record["kind"] == "report" and record["report"]["outcome"] == "failed":
                        self._read(record["report"]["longrepr"])
            case UsageError():  # of a conftest.py
                self._read(event.text)

    def _read(self, failure: object) -> None:
        text = json.dumps(failure, ensure_ascii=False)
        self._files |= dict.fromkeys(_FILE.findall(text))
        self._modules |= dict.fromkeys(_MODULE.findall(text))

    def lines(self, store: Store, tree: str) -> list[str]:
        """Return a line for each file or module that is here and not in the tree `tree`."""
        if not (self._files or self._modules) or (stored := get_tree(store, tree)) is None:
            return []
        sent = {file.path for file in stored.files} | {link.path for link in stored.links}
        here = [*self._files_here(), *self._modules_here()]
        lines = [self._line(path) for path in dict.fromkeys(here) if self._is_missing(path, sent)]
        more = [f"not sent: {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        return lines[:SHOWN] + more

    # -- candidates --------------------------------------------------------------------------------

    def _bound(self) -> Path:
        """Return the directory below which this looks: the repository, or just above the tree."""
        above = (self._top, *self._top.parents)
        return next((path for path in above if (path / ".git").exists()), self._top.parent)

    def _files_here(self) -> Iterator[Path]:
        for text in self._files:
            if not os.path.isabs(text):
                yield self._request.invocation_dir / text
            elif self._root:
                yield self._top / os.path.relpath(text, self._root)
                yield Path(text)

    def _modules_here(self) -> Iterator[Path]:
        for name in self._modules:
            for root in self._import_roots():
                path = root.joinpath(*name.split("."))
                if path.is_dir() and next(path.glob("*.py"), None) is not None:
                    yield path
                yield path.with_name(f"{path.name}.py")

    def _import_roots(self) -> Iterable[Path]:
        """Return where a module of the user's may lie on this machine."""
        import sys

        bound = self._bound()
        root = self._request.root
        near = [path for path in (root, *root.parents) if path.is_relative_to(bound)]
        named = [*self._config.getini("pythonpath"), *map(Path, sys.path)]
        return dict.fromkeys([*named, *near, *(path / "src" for path in near)])

    def _is_missing(self, path: Path, sent: Collection[str]) -> bool:
        path = Path(os.path.normpath(path))
        if not path.is_relative_to(self._bound()) or ".git" in path.parts or not path.exists():
            return False
        if not path.is_relative_to(self._top):
            return True
        inside = path.relative_to(self._top).as_posix()
        return inside not in sent and not any(each.startswith(f"{inside}/") for each in sent)

    # -- words -------------------------------------------------------------------------------------

    def _line(self, path: Path) -> str:
        path = Path(os.path.normpath(path))
        seen = os.path.relpath(path, self._request.invocation_dir)
        if path.is_dir() and next(path.rglob("*"), None) is None:
            return f"not sent: {seen}, for it is an empty directory; a file in it makes it travel"
        glob = os.path.relpath(path, self._request.project) + ("/**" if path.is_dir() else "")
        remedy = f"include = {json.dumps([glob])}"
        if not path.is_relative_to(self._top) and (self._bound() / ".git").exists():
            remedy = f'tree = "git" or {remedy}'
        return f"not sent, though the tests asked for it: {seen}; {remedy} sends it"
