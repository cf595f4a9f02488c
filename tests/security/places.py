"""A store that others may write to, what a command was told, and what lies beside it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pytest_gpu_cluster import cli
from pytest_gpu_cluster.clusters.acquire import PROTOCOL
from pytest_gpu_cluster.contract import procfs

SHAPE = {
    "owner": "somebody",
    "environment": "0123",
    "nodes": 1,
    "gpus_per_node": "auto",
    "facts": {"python": "/usr/bin/python3"},
}


@dataclass(frozen=True, kw_only=True)
class Told:
    """The end of a command, and its output."""

    code: int
    out: str
    err: str


def description(cluster: str, provider: str = "local", **changed: object) -> bytes:
    """Return a cluster.json, as anybody can write it."""
    body = {
        "v": 1,
        "id": cluster,
        "provider": provider,
        "protocol": PROTOCOL,
        "shape": SHAPE,
        "where": {},
        "session": "",
        "deadline_s": 3600.0,
    }
    return json.dumps({**body, **changed}).encode()


def state(session: str | None = None) -> bytes:
    """Return the state.json of a cluster that is idle, or serves a session."""
    phase = "idle" if session is None else "busy"
    return json.dumps({"state": phase, "session": session, "ready": True}).encode()


def closed() -> bytes:
    """Return a result.json."""
    return json.dumps({"v": 1, "closed_by": "client", "nonce": "0" * 16}).encode()


class Place:
    """A project, its store, and the directory of this user's clusters: each its own directory.

    Beside them is `victim`, with files and with what makes a directory look like a cluster's.
    """

    def __init__(self, top: Path) -> None:
        self.top = top
        self.project, self.store, self.base = top / "project", top / "store", top / "clusters"
        self.victim = top / "outside" / "victim"
        for folder in (self.project, self.store, self.base):
            folder.mkdir(mode=0o700)
        self.settings("")
        (self.victim / "n0" / "handoff").mkdir(parents=True)
        (self.victim / "precious.txt").write_text("mine")
        (self.victim / "n0" / "keeper.log").write_text("a secret of mine")

    @property
    def bent(self) -> list[str]:
        """Names that lead from the clusters' directory, or the store's, to the victim."""
        return [
            "../outside/victim",
            f"c1/../{os.path.relpath(self.victim, self.base)}",
            "../../outside/victim",
            str(self.victim),
            "..",
        ]

    def settings(self, lines: str) -> None:
        (self.project / "pyproject.toml").write_text(
            f"[tool.gpu-cluster]\nstore = {str(self.store)!r}\n{lines}\n"
        )

    def guard(self, process: subprocess.Popen[bytes]) -> None:
        """Have the victim name a process of the user as its guard."""
        guards = [[process.pid, procfs.start_time(process.pid)]]
        document = {"store": self.store.as_uri(), "guards": guards}
        (self.victim / "guards.json").write_text(json.dumps(document))

    def plant(self, key: str, content: bytes) -> None:
        """Write a file into the store, as whoever may write to it."""
        path = self.store / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def command(self, *arguments: str) -> Told:
        """`gpu-cluster ARGUMENTS` in the project."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = cli.main(["-C", str(self.project), *arguments])
            except SystemExit as end:  # of argparse
                code = int(str(end.code))
        return Told(code=code, out=out.getvalue(), err=err.getvalue())

    def outside(self) -> dict[str, str]:
        """Return what is there beside the store and the clusters, with its content."""
        return {
            path: content
            for path, content in contents(self.top).items()
            if path.partition("/")[0] not in ("store", "clusters")
        }


def contents(top: Path) -> dict[str, str]:
    """Return kind and digest of everything below a directory, by its path; links not followed."""
    found: dict[str, str] = {}
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = Path(folder, name)
            status = path.lstat()
            kind = f"{stat.filemode(status.st_mode)} "
            if stat.S_ISLNK(status.st_mode):
                kind += os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                kind += hashlib.sha256(path.read_bytes()).hexdigest()
            found[os.fsencode(path.relative_to(top)).decode(errors="replace")] = kind
    return found
