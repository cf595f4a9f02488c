"""A repository without the contents of files, for tools that ask git where they are.

It has the commits, the directories of the last one, tags, and the contents of those tracked files
that differ: enough for `rev-parse`, `log`, `describe`, `status` and `diff`. Nothing of .git/config
is in it, for the address of a remote may hold a token.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from pytest_gpu_cluster.bundle.listing import GIT_VARIABLES
from pytest_gpu_cluster.contract.errors import RequestError
from pytest_gpu_cluster.contract.globs import matcher
from pytest_gpu_cluster.contract.settings import SentTree

COMMITS = 20_000  # of a longer history only the last commit is sent
CONFIG = """[core]
\trepositoryformatversion = 0
\tfilemode = true
\tbare = false
[gc]
\tauto = 0
"""
# The user's configuration may give the index forms that another git does not read.
PLAIN = ("core.splitIndex=false", "core.untrackedCache=false", "core.fsmonitor=false")


def repository_of(tree: SentTree) -> dict[str, bytes]:
    """Return the files of a `.git` for a tree, by their path in it. Raises RequestError."""
    is_excluded = matcher(tree.files.exclude)
    prefix = f"{tree.start}/" if tree.start else ""
    files = minimal_repository(tree.top / tree.start, lambda path: is_excluded(f"{prefix}{path}"))
    return {f"{prefix}{path}": content for path, content in files.items()}


def minimal_repository(top: Path, is_excluded: Callable[[str], bool]) -> dict[str, bytes]:
    """Return the files of a `.git` for the repository at `top`, by their path relative to it.

    A file that is excluded from the tree does not count as deleted. Raises RequestError.
    """
    if not (top / ".git").exists():
        raise RequestError(
            f"git is true, but {top} is not the top of a git repository",
            remedy='set tree = "git", so that the whole repository is sent, or git = false',
        )
    with tempfile.TemporaryDirectory(prefix="gpu-cluster-") as directory:
        try:
            return _files(_Git(top, Path(directory)), is_excluded)
        except subprocess.CalledProcessError as error:
            command = " ".join(error.cmd[1:])
            raise RequestError(
                f"git is true, and {command!r} failed in {top}: {error.stderr.decode().strip()}",
                remedy="make that command work (is there a commit?), or set git = false",
            ) from error


class _Git:
    """Runs git in the repository, with an index of its own in a temporary directory."""

    def __init__(self, top: Path, directory: Path) -> None:
        self.top, self.directory = top, directory
        self._environ = {k: v for k, v in os.environ.items() if k not in GIT_VARIABLES}
        self._options = [word for option in PLAIN for word in ("-c", option)]

    def raw(self, *arguments: str, stdin: bytes = b"", own_index: bool = False) -> bytes:
        index = {"GIT_INDEX_FILE": str(self.directory / "index")} if own_index else {}
        return subprocess.run(
            ["git", *self._options, "--no-optional-locks", *arguments],
            cwd=self.top,
            env=self._environ | index,
            input=stdin,
            capture_output=True,
            check=True,
        ).stdout

    def lines(self, *arguments: str) -> list[str]:
        return os.fsdecode(self.raw(*arguments)).splitlines()


def _files(git: _Git, is_excluded: Callable[[str], bool]) -> dict[str, bytes]:
    (head,) = git.lines("rev-parse", "--verify", "HEAD")
    ref = next(iter(git.lines("rev-parse", "--symbolic-full-name", "HEAD")), "HEAD")
    commits = git.lines("rev-list", f"--max-count={COMMITS + 1}", "HEAD")
    cut = len(commits) > COMMITS
    tags = [] if cut else _tags(git)
    trees = git.lines(
        *("rev-list", "--objects", "--no-object-names", "--filter=blob:none", "-1", "HEAD")
    )
    objects = [*([head] if cut else commits), *trees, *_changed(git), *(tag for tag, *_ in tags)]
    files = {
        ".git/HEAD": (f"{head}\n" if ref == "HEAD" else f"ref: {ref}\n").encode(),
        # git takes a directory for a repository only when it has `refs`.
        f".git/{'refs/gpu-cluster/head' if ref == 'HEAD' else ref}": f"{head}\n".encode(),
        ".git/config": CONFIG.encode(),
        ".git/packed-refs": _packed_refs(tags),
        ".git/index": _index(git, is_excluded),
        **_pack(git, objects),
    }
    shallow = Path(git.top, *git.lines("rev-parse", "--git-path", "shallow"))
    if cut or shallow.exists():
        files[".git/shallow"] = f"{head}\n".encode() if cut else shallow.read_bytes()
    return {path: content for path, content in files.items() if content}


def _tags(git: _Git) -> list[tuple[str, str, str]]:
    """Return each tag of the history: its object, its name, and what an annotated one leads to."""
    form = "--format=%(objectname) %(refname) %(*objectname)"
    rows = (
        line.split(" ") for line in git.lines("for-each-ref", "--merged=HEAD", form, "refs/tags")
    )
    return [(tag, name, peeled) for tag, name, peeled in rows]


def _packed_refs(tags: Iterable[tuple[str, str, str]]) -> bytes:
    text = "".join(
        f"{tag} {name}\n" + (f"^{peeled}\n" if peeled else "") for tag, name, peeled in tags
    )
    return f"# pack-refs with: peeled fully-peeled sorted \n{text}".encode() if text else b""


def _changed(git: _Git) -> list[str]:
    """Return the blobs of the commit whose files differ here, so that `git diff` can show them."""
    rows = git.raw("diff-index", "-z", "--no-renames", "HEAD").split(b"\0")
    blobs = [row.split(b" ")[2].decode() for row in rows if row.startswith(b":")]
    modes = [row.split(b" ")[0] for row in rows if row.startswith(b":")]
    return [
        blob
        for blob, mode in zip(blobs, modes, strict=True)
        if blob.strip("0") and mode != b":160000"  # new, or a submodule
    ]


def _index(git: _Git, is_excluded: Callable[[str], bool]) -> bytes:
    git.raw("read-tree", "HEAD", own_index=True)
    tracked = git.raw("ls-files", "-z", own_index=True).split(b"\0")
    excluded = [path for path in tracked if path and is_excluded(os.fsdecode(path))]
    if excluded:
        stdin = b"\0".join([*excluded, b""])
        git.raw("update-index", "-z", "--skip-worktree", "--stdin", stdin=stdin, own_index=True)
    return (git.directory / "index").read_bytes()


def _pack(git: _Git, objects: Iterable[str]) -> dict[str, bytes]:
    stdin = "".join(f"{name}\n" for name in dict.fromkeys(objects)).encode()
    git.raw("pack-objects", "-q", "--threads=1", str(git.directory / "pack"), stdin=stdin)
    return {
        f".git/objects/pack/{path.name}": path.read_bytes()
        for path in sorted(git.directory.glob("pack-*"))
        if path.suffix in (".pack", ".idx")
    }
