"""The files and links of a working tree."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_gpu_cluster.bundle.ship import ship
from pytest_gpu_cluster.contract.errors import RequestError
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.node.unpack import unpack
from tests.working_trees import paths, read, write


# --- what belongs to the tree ---
def test_git_decides_what_belongs(root: Path, store: Store, git: Callable[..., None]) -> None:
    """Tracked and new files go, ignored and deleted ones do not: as in a colleague's checkout."""
    write(
        root,
        {
            ".gitignore": "*.log\n/build\n",
            "a.py": "",
            "gone.py": "",
            "forced.log": "",
            "sub dir/ü.py": "",
        },
    )
    git("add", "-A", "-f")
    git("commit", "-qm", "x")
    (root / "gone.py").unlink()
    write(
        root,
        {
            "new.py": "",
            "b.log": "",
            "build/c.py": "",
            "pkg/__pycache__/a.pyc": "",
            "env/pyvenv.cfg": "",
        },
    )
    write(root, {"env/lib/huge.py": "", "node_modules/x.js": ""})

    assert paths(store, ship(store, root)) == [
        ".gitignore",
        "a.py",
        "forced.log",
        "new.py",
        "sub dir/ü.py",
    ]


def test_a_root_below_the_repository_ships_itself_alone(
    root: Path, store: Store, git: Callable[..., None]
) -> None:
    """pytest's rootdir of a monorepo is one of its projects."""
    write(root, {"one/a.py": "", "one/.gitignore": "*.log\n", "one/x.log": "", "two/b.py": ""})
    git("add", "one/a.py", "two")

    assert paths(store, ship(store, root / "one")) == [".gitignore", "a.py"]


def test_submodules_and_repositories_inside_are_part_of_the_tree(
    root: Path, store: Store, git: Callable[..., None], tmp_path: Path
) -> None:
    """A test imports them like everything else; git alone would list their names only."""
    for inner in (tmp_path / "library", root / "clone"):
        write(inner, {"lib.py": "", ".gitignore": "*.log\n"})
        git("init", "-q", cwd=inner)
        git("add", "-A", cwd=inner)
        git("commit", "-qm", "x", cwd=inner)
    git("submodule", "add", "-q", str(tmp_path / "library"), "third/library")
    write(root, {"third/library/new.py": "", "third/library/x.log": "", "clone/new.py": ""})

    shipped = paths(store, ship(store, root))

    inside = [path for path in shipped if path.startswith("third/library/")]
    assert inside == ["third/library/.gitignore", "third/library/lib.py", "third/library/new.py"]
    assert [path for path in shipped if path.startswith("clone/")] == [
        "clone/.gitignore",
        "clone/lib.py",
        "clone/new.py",
    ]


def test_a_git_hook_does_not_mislead(
    root: Path,
    store: Store,
    git: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """pytest from a pre-push hook inherits GIT_DIR and GIT_INDEX_FILE of another place."""
    write(root, {"a.py": ""})
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "elsewhere" / "index"))

    assert paths(store, ship(store, root)) == ["a.py"]


def test_git_that_refuses_is_an_error_not_a_guess(
    root: Path, store: Store, git: Callable[..., None]
) -> None:
    """Falling back to "everything" would ship what .gitignore keeps back."""
    write(root, {"a.py": ""})
    (root / ".git" / "HEAD").unlink()

    with pytest.raises(RequestError, match="git ls-files failed"):
        ship(store, root)


def test_a_root_that_an_outer_repository_ignores_is_shipped(
    root: Path, store: Store, git: Callable[..., None]
) -> None:
    """A versioned home directory ignores the projects in it."""
    write(root, {".gitignore": "*\n", "home/project/a.py": ""})

    assert paths(store, ship(store, root / "home" / "project")) == ["a.py"]


def test_without_git_everything_but_litter_goes(root: Path, store: Store) -> None:
    """A tarball or a mounted directory works too."""
    write(
        root,
        {
            "a.py": "",
            ".hidden": "",
            "pkg/b.py": "",
            "pkg/__pycache__/b.pyc": "",
            ".pytest_cache/v": "",
        },
    )
    write(
        root,
        {
            "venv/pyvenv.cfg": "",
            "venv/lib/x.py": "",
            "node_modules/m/i.js": "",
            "sub/.git/HEAD": "",
        },
    )

    assert paths(store, ship(store, root)) == [".hidden", "a.py", "pkg/b.py"]


def test_a_store_inside_the_tree_does_not_ship_itself(root: Path) -> None:
    """The default store is beside pyproject.toml; each run would ship all the runs before it."""
    write(root, {"a.py": ""})
    store = Store.open(".gpu-cluster", base=root)

    for _ in range(2):
        assert paths(store, ship(store, root, include=["**/*"])) == ["a.py"]


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ([], [], [".gitignore", "docs/a.md", "src/a.py", "src/deep/er/b.py"]),
        (
            ["data/**"],
            [],
            [
                ".gitignore",
                "data/x.bin",
                "data/y/z.bin",
                "docs/a.md",
                "src/a.py",
                "src/deep/er/b.py",
            ],
        ),
        (["data/*.bin"], ["docs"], [".gitignore", "data/x.bin", "src/a.py", "src/deep/er/b.py"]),
        (["data/y/z.bin"], ["**/*.py"], [".gitignore", "data/y/z.bin", "docs/a.md"]),
        (["./data/"], ["*.bin", "src/*/"], [".gitignore", "docs/a.md", "src/a.py"]),
        ([], ["src/**/b.py", ".git*"], ["docs/a.md", "src/a.py"]),
        ([], ["b.py", "a"], [".gitignore", "docs/a.md", "src/a.py"]),
        (["nothing/here/*"], [], [".gitignore", "docs/a.md", "src/a.py", "src/deep/er/b.py"]),
    ],
)
def test_include_adds_and_exclude_has_the_last_word(
    root: Path,
    store: Store,
    git: Callable[..., None],
    include: list[str],
    exclude: list[str],
    expected: list[str],
) -> None:
    """Data that git ignores is often what a test needs; patterns are those of .gitignore."""
    write(
        root,
        {
            ".gitignore": "/data\n",
            "data/x.bin": "1",
            "data/y/z.bin": "2",
            "docs/a.md": "",
            "src/a.py": "",
        },
    )
    write(root, {"src/deep/er/b.py": ""})

    assert paths(store, ship(store, root, include=include, exclude=exclude)) == expected


def test_pipes_and_sockets_are_left_out(root: Path, store: Store) -> None:
    """Reading a pipe would wait for ever."""
    write(root, {"a.py": ""})
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))

        assert paths(store, ship(store, root)) == ["a.py"]


# --- links ---
def test_links_inside_stay_links_and_absolute_ones_become_relative(
    root: Path, store: Store, tmp_path: Path
) -> None:
    """The tree lies elsewhere on a node: an absolute link would lead back to the client's path."""
    write(root, {"pkg/a.py": "", "data/x": "1"})
    (root / "pkg" / "data").symlink_to("../data")
    (root / "pkg" / "absolute").symlink_to(root / "data" / "x")
    (root / "dangling").symlink_to("nowhere")

    unpack(store, ship(store, root).digest, tmp_path / "node")

    links = {
        path: target for path, (kind, target) in read(tmp_path / "node").items() if kind == "link"
    }
    assert links == {"pkg/data": "../data", "pkg/absolute": "../data/x", "dangling": "nowhere"}


def test_a_link_to_an_outside_file_brings_the_file(
    root: Path, store: Store, tmp_path: Path
) -> None:
    """Shared fixtures are often linked in; over there the target does not exist."""
    write(tmp_path, {"shared.json": "{}"})
    (root / "shared.json").symlink_to("../shared.json")

    unpack(store, ship(store, root).digest, tmp_path / "node")

    assert read(tmp_path / "node") == {"shared.json": ("file", b"{}")}


def test_a_link_to_an_outside_directory_is_refused_by_name(
    root: Path, store: Store, tmp_path: Path
) -> None:
    """It may lead to a terabyte; silence would be a missing file on the cluster."""
    (tmp_path / "datasets").mkdir()
    (root / "data").symlink_to(tmp_path / "datasets")

    with pytest.raises(RequestError, match="'data' is a link to the directory") as caught:
        ship(store, root)

    assert "exclude" in caught.value.remedy
    assert ship(store, root, exclude=["data"]).files == 0


def test_a_directory_that_became_a_link_is_the_link_alone(
    root: Path, store: Store, git: Callable[..., None], tmp_path: Path
) -> None:
    """git's index still names the files below it, which can be read through the link."""
    write(root, {"old/a.py": "", "new/a.py": ""})
    git("add", "-A")
    (root / "old" / "a.py").unlink()
    (root / "old").rmdir()
    (root / "old").symlink_to("new")

    tree = ship(store, root)
    unpack(store, tree.digest, tmp_path / "node")

    assert read(tmp_path / "node") == {"new/a.py": ("file", b""), "old": ("link", "new")}
