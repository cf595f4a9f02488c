"""Files of a working tree: write them, read them back, and list those of a stored tree."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from pytest_gpu_cluster.bundle.ship import Tree
from pytest_gpu_cluster.contract.store import Store

Files = Mapping[str, bytes | str]


def write(root: Path, files: Files) -> None:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content if isinstance(content, bytes) else content.encode())


def read(root: Path) -> dict[str, tuple[str, bytes | str]]:
    """Return the kind of every file and link below `root`, and its bytes or target."""
    contents: dict[str, tuple[str, bytes | str]] = {}
    for folder, folders, names in os.walk(root):
        for name in [*names, *folders]:
            path = Path(folder, name)
            if path.is_symlink():
                contents[str(path.relative_to(root))] = ("link", os.readlink(path))
            elif path.is_file():
                kind = "executable" if path.stat().st_mode & 0o100 else "file"
                contents[str(path.relative_to(root))] = (kind, path.read_bytes())
    return contents


def paths(store: Store, tree: Tree) -> list[str]:
    raw = store.get(f"trees/{tree.digest}.json")
    assert raw is not None
    return [entry["path"] for entry in json.loads(raw)["entries"]]
