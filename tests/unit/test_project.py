"""One rule says whose settings hold and what is sent, from wherever somebody stands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import pytest

from pytest_gpu_cluster.bundle.listing import listing
from pytest_gpu_cluster.contract.errors import RequestError
from pytest_gpu_cluster.contract.settings import FileSettings, SentTree
from pytest_gpu_cluster.project import (
    ProjectDirectory,
    command,
    find_project,
    project_of_run,
    sent_tree,
    unread_note,
)
from tests.working_trees import write

TABLE = "[tool.gpu-cluster]\n"


@pytest.fixture
def mono(tmp_path: Path) -> Path:
    """A repository of services, of which one has settings, with a library beside them."""
    write(
        tmp_path / "mono",
        {
            ".git/HEAD": "",
            "pyproject.toml": "[project]\nname = 'gpu-cluster'\n",  # the words alone are no table
            "services/ml/pyproject.toml": TABLE,
            "services/ml/tests/deep/test_a.py": "",
            "services/web/test_b.py": "",
            "libs/common/acme.py": "",
            "libs/.gpu-cluster/blobs/1": "",
        },
    )
    return tmp_path / "mono"


@pytest.mark.parametrize(
    ("start", "root", "configured"),
    [
        ("services/ml/tests/deep", "services/ml", True),
        ("services/ml", "services/ml", True),
        ("services/web", ".", False),
        (".", ".", False),
    ],
)
def test_the_nearest_table_is_the_project_else_the_repository(
    mono: Path, start: str, root: str, *, configured: bool
) -> None:
    """Whoever stands in a subdirectory means the same project."""
    found = find_project(mono / start)

    assert found == ProjectDirectory(root=mono / root, configured=configured)


def test_without_git_and_table_a_pyproject_marks_the_project(tmp_path: Path) -> None:
    """A copy without .git is one project too; a directory without anything is its own."""
    write(tmp_path, {"a/pyproject.toml": "[tool.pytest.ini_options]\n", "a/tests/x": "", "b/x": ""})

    assert find_project(tmp_path / "a/tests").root == tmp_path / "a"
    assert find_project(tmp_path / "b").root == tmp_path / "b"


def test_a_broken_file_is_named_only_where_it_may_have_the_table(tmp_path: Path) -> None:
    """A settings table that cannot be read must not be passed over."""
    write(tmp_path, {"a/pyproject.toml": "[tool.gpu-cluster\n", "b/pyproject.toml": "[tool\n"})

    with pytest.raises(RequestError, match=r"a/pyproject\.toml cannot be read"):
        find_project(tmp_path / "a")
    assert not find_project(tmp_path / "b").configured


RUNS = [
    # rootdir, where pytest is started, what it is given, the project, what is said
    ("services/ml", "services/ml", [], "services/ml", ""),
    ("services/ml", "services/ml/tests", [], "services/ml", ""),
    ("services/ml", ".", ["services/ml"], "services/ml", ""),
    ("services/ml/tests", "services/ml", ["tests"], "services/ml", ""),  # tests/pytest.ini
    (".", "services/ml", [], "services/ml", ""),  # --rootdir=../..
    (".", ".", ["services/ml/tests"], ".", "settings: none; not read: services/ml/pyproject.toml"),
    ("services/web", "services/ml", [], ".", "settings: none; not read: pyproject.toml"),
]


@pytest.mark.parametrize(("rootdir", "cwd", "named", "project", "note"), RUNS)
def test_a_run_and_the_command_agree(
    mono: Path, rootdir: str, cwd: str, named: list[str], project: str, note: str
) -> None:
    """The printed command is pasted where pytest was started, and reaches the store of the run."""
    here = mono / cwd

    found = project_of_run(mono / rootdir, here, [here / path for path in named])
    words = command(found.root, here).split()

    assert found.root == mono / project
    assert unread_note(found, here) == note
    start = here / words[2] if words[1:] else here
    assert find_project(Path(os.path.normpath(start))).root == found.root


def test_a_table_between_or_beside_is_said_but_not_one_above(mono: Path) -> None:
    """Settings that are silently not read are the worst kind; outer ones lose by rule."""
    write(mono, {"pyproject.toml": TABLE, "services/ml/tests/pyproject.toml": TABLE})
    ml = mono / "services/ml"

    from_ml = project_of_run(ml, ml, [ml / "tests/deep"])
    from_top = project_of_run(ml, mono, [])
    inner = project_of_run(ml, ml / "tests", [])

    assert unread_note(from_ml, ml) == "settings: pyproject.toml; not read: tests/pyproject.toml"
    assert unread_note(from_top, mono) == (
        "settings: services/ml/pyproject.toml; not read: pyproject.toml"
    )
    assert unread_note(inner, ml / "tests") == (
        "settings: pyproject.toml; not read: ../pyproject.toml"
    )


def sent(
    mono: Path,
    rootdir: str,
    *,
    tree: Literal["project", "git"] = "project",
    files: FileSettings | None = None,
) -> SentTree:
    place = mono / rootdir
    return sent_tree(place, find_project(place), tree=tree, files=files or FileSettings())


def test_the_tree_is_the_project_or_the_repository(mono: Path) -> None:
    """With tests/pytest.ini the code above is sent too; a large repository never is by chance."""
    assert sent(mono, "services/ml/tests") == SentTree(top=mono / "services/ml")
    assert sent(mono, "services/web") == SentTree(top=mono / "services/web")
    assert sent(mono, "services/ml", tree="git") == SentTree(top=mono)


def test_siblings_that_are_included_come_along_and_nothing_else(mono: Path) -> None:
    """The tree begins above them all; the globs keep their meaning, and no store is sent."""
    write(mono / "services/ml", {"data/big.bin": "", "notes/a.md": "", ".gitignore": "data\n"})
    files = FileSettings(
        include=("../../libs/**", "data/*.bin", "./*.md"),
        exclude=("tests/deep", "*.md"),
        allow_files=("../../libs/*.pem",),
    )

    tree = sent(mono, "services/ml", files=files)
    (mono / ".git/HEAD").unlink()
    (mono / ".git").rmdir()
    paths = listing(
        tree.top, start=tree.start, include=tree.files.include, exclude=tree.files.exclude
    )

    assert (tree.top, tree.start) == (mono, "services/ml")
    assert tree.files == FileSettings(
        include=("libs/**", "services/ml/data/*.bin", "services/ml/**/*.md"),
        exclude=("services/ml/tests/deep", "*.md"),
        allow_files=("libs/*.pem",),
    )
    assert paths == [
        "libs/common/acme.py",
        "services/ml/.gitignore",
        "services/ml/data/big.bin",
        "services/ml/pyproject.toml",
    ]


def test_what_cannot_be_sent_is_refused(mono: Path, tmp_path: Path) -> None:
    """A wrong glob or a missing repository costs nothing yet."""
    write(tmp_path / "plain", {"pyproject.toml": TABLE})

    with pytest.raises(RequestError, match="is in no git repository"):
        sent(tmp_path / "plain", ".", tree="git")
    with pytest.raises(RequestError, match=r"exclude '\.\./web/\*\*' leads out of the tree"):
        sent(mono, "services/ml", files=FileSettings(exclude=("../web/**",)))
    with pytest.raises(RequestError, match="include leads from"):
        sent(mono, "services/ml", files=FileSettings(include=("../" * 40 + "etc/*",)))
