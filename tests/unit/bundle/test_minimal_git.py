"""The repository that is sent, beside the one that it was made of."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_gpu_cluster.bundle import minimal_git
from pytest_gpu_cluster.bundle.listing import listing
from pytest_gpu_cluster.bundle.minimal_git import minimal_repository
from pytest_gpu_cluster.contract.errors import RequestError
from pytest_gpu_cluster.contract.globs import matcher
from tests.working_trees import write

TOKEN = "https://x:ghp_secret@example.com/acme.git"
AS_SOMEBODY = (
    "-c",
    "user.name=a",
    "-c",
    "user.email=a@example.com",
    "-c",
    "protocol.file.allow=always",
)
ASKED = [
    ("rev-parse", "HEAD"),
    ("rev-parse", "--abbrev-ref", "HEAD"),
    ("rev-parse", "--show-prefix"),
    ("log", "-3", "--format=%H %an %ct %s"),
    ("describe", "--always"),
    ("describe", "--tags", "--long", "--dirty"),
    ("status", "--porcelain"),
    ("status", "--porcelain", "--untracked-files=no"),
    ("diff",),
    ("diff", "--raw", "--cached"),
    ("ls-files",),
    ("rev-list", "--count", "HEAD"),
    ("ls-tree", "-r", "HEAD"),
]


def git(top: Path, *arguments: str) -> str:
    command = ["git", *AS_SOMEBODY, *arguments]
    return subprocess.run(command, cwd=top, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits on each side of a merge, a tag below, and a remote whose address has a token."""
    top = tmp_path / "here"
    write(top, {"a.py": "1\n", "docs/b.md": "2\n", "sub/deep/c.py": "3\n", ".gitignore": "*.bin\n"})
    git(top, "init", "-q", "-b", "main")
    git(top, "remote", "add", "origin", TOKEN)
    git(top, "add", ".")
    git(top, "commit", "-qm", "one")
    git(top, "checkout", "-q", "-b", "side")
    write(top, {"side.py": "s\n"})
    git(top, "add", ".")
    git(top, "commit", "-qm", "side")
    git(top, "checkout", "-q", "main")
    write(top, {"a.py": "11\n"})
    git(top, "commit", "-qam", "two")
    git(top, "tag", "-a", "v1.0", "-m", "first")
    git(top, "merge", "-q", "--no-edit", "side")
    return top


def sent(top: Path, target: Path, exclude: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Write what would be sent, as a node unpacks it and a test process finds it."""
    files = minimal_repository(top, matcher(exclude))
    paths = listing(top, include=(), exclude=exclude)
    write(target, {path: (top / path).read_bytes() for path in paths if (top / path).exists()})
    write(target, files)
    subprocess.run(["git", "update-index", "-q", "--refresh"], cwd=target, check=False)
    return files


def clean(top: Path) -> None: ...
def dirty(top: Path) -> None:
    write(top, {"a.py": "111\n", "new.py": "", "data.bin": "ignored"})
    (top / "side.py").unlink()


def detached(top: Path) -> None:
    git(top, "checkout", "-q", "--detach", "HEAD~1")


@pytest.mark.parametrize("change", [clean, dirty, detached])
def test_git_gives_the_answers_that_it_gives_here(
    repository: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """Versions are made of tags and experiments recorded under commits, by tools that call git."""
    change(repository)

    files = sent(repository, tmp_path / "there")

    for command in ASKED:
        assert git(tmp_path / "there", *command) == git(repository, *command), command
    assert sum(map(len, files.values())) < 10_000
    assert not [path for path, content in files.items() if b"ghp_secret" in content]


def test_an_excluded_file_is_not_deleted(repository: Path, tmp_path: Path) -> None:
    """A tree of which a part stays at home is as clean as it is there."""
    sent(repository, tmp_path / "there", exclude=("docs", "side.py"))

    assert git(tmp_path / "there", "status", "--porcelain") == ""
    assert not (tmp_path / "there" / "docs").exists()


def test_the_same_commit_is_the_same_repository(repository: Path) -> None:
    """An unchanged tree is not sent again."""
    assert minimal_repository(repository, matcher(())) == minimal_repository(
        repository, matcher(())
    )


def test_a_long_or_shallow_history_is_cut(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CI clones are shallow; a history of a hundred thousand commits is not worth its way."""
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{repository}", "clone")
    sent(tmp_path / "clone", tmp_path / "shallow")
    monkeypatch.setattr(minimal_git, "COMMITS", 1)
    sent(repository, tmp_path / "cut")

    for copy in ("shallow", "cut"):
        assert git(tmp_path / copy, "rev-parse", "HEAD") == git(repository, "rev-parse", "HEAD")
        assert git(tmp_path / copy, "rev-list", "--count", "HEAD") == "1\n"
        assert git(tmp_path / copy, "status", "--porcelain") == ""


def test_without_a_repository_or_a_commit_it_is_refused(tmp_path: Path) -> None:
    """A tool on the cluster would find another repository above, or none."""
    with pytest.raises(RequestError, match="is not the top of a git repository"):
        minimal_repository(tmp_path, matcher(()))
    git(tmp_path, "init", "-q")
    with pytest.raises(RequestError, match="is there a commit"):
        minimal_repository(tmp_path, matcher(()))
