"""The next session gets the tree that was shipped, whatever the last one did to its own."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import shutil
import stat
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpu_cluster.bundle.ship import ship
from pytest_gpu_cluster.contract.errors import StoreError
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.contract.trees import FileEntry, LinkEntry, StoredTree, pack_blob, tree_key
from pytest_gpu_cluster.node import working_trees
from pytest_gpu_cluster.node.unpack import unpack
from pytest_gpu_cluster.node.working_trees import KEPT, WorkingTrees
from tests.working_trees import read, write

FILES = ("a.py", "pkg/b.py", "pkg/deep/c.py", "run.sh", "same.py")
FOLDERS = ("pkg", "pkg/deep")


class NodeOfSessions:
    """A node that serves one session after the other, and the store of their trees."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.store = Store.open(str(top / "store"), base=top)
        self.root = top / "project"
        self.root.mkdir()
        (top / "node").mkdir()
        self.trees = WorkingTrees(self.store, top / "node", cache=top / "node" / "cache")
        self.numbers = count()
        self.scratch = top / "node" / "s" / "none"

    def session(self) -> Path:
        """Ship the project, begin a session, and return its tree."""
        self.scratch = self.top / "node" / "s" / str(next(self.numbers))
        self.scratch.mkdir(parents=True)
        target = self.scratch / "tree" / "project"
        self.trees.unpack(ship(self.store, self.root).digest, target)
        return target

    def end(self) -> None:
        """End the session as the head does."""
        self.trees.keep()
        shutil.rmtree(self.scratch)

    def wait(self) -> None:
        """Wait, as a cluster does between two sessions, until the tree is mended."""
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and thread.name in ("mend", "discard"):
                thread.join()

    def anew(self) -> Path:
        """Return the project as a node unpacks it that has never seen it."""
        target = self.top / "anew" / str(next(self.numbers))
        unpack(self.store, ship(self.store, self.root).digest, target)
        return target


@pytest.fixture
def node(tmp_path: Path) -> NodeOfSessions:
    node = NodeOfSessions(tmp_path)
    fill(node.root)
    return node


def fill(root: Path) -> None:
    write(root, {path: f"the content of {path}\n" for path in FILES})
    write(root, {"same.py": "the content of a.py\n"})
    (root / "run.sh").chmod(0o755)
    (root / "link").symlink_to("pkg/b.py")
    (root / "folder").symlink_to("pkg")


def everything(top: Path) -> dict[str, tuple[int, bytes | str, int]]:
    """Return mode, content or target, and number of names of all below a directory, and its own."""
    contents: dict[str, tuple[int, bytes | str, int]] = {"": (top.stat().st_mode, "", 0)}
    for folder, folders, names in os.walk(top):
        for name in [*names, *folders]:
            path = Path(folder, name)
            status = path.lstat()
            content: bytes | str = ""
            if path.is_symlink():
                content = os.readlink(path)
            elif path.is_file():
                content = path.read_bytes()
            links = status.st_nlink if stat.S_ISREG(status.st_mode) else 0
            contents[str(path.relative_to(top))] = (status.st_mode, content, links)
    return contents


# -- what a test can do to its tree ----------------------------------------------------------------

Change = Callable[[Path, str, str], None]  # the tree, a path of it, and another


def overwrite(tree: Path, path: str, _: str) -> None:
    """Write as many bytes, and set the times back."""
    before = (tree / path).stat()
    with (tree / path).open("r+b") as file:
        file.write(b"X")
    os.utime(tree / path, ns=(before.st_atime_ns, before.st_mtime_ns))


def write_through_a_map(tree: Path, path: str, _: str) -> None:
    with (tree / path).open("r+b") as file:
        if os.fstat(file.fileno()).st_size:  # nothing of an empty file can be mapped
            with mmap.mmap(file.fileno(), 0) as content:
                content[0] ^= 1


def truncate(tree: Path, path: str, _: str) -> None:
    os.truncate(tree / path, 0)


def delete(tree: Path, path: str, _: str) -> None:
    (tree / path).unlink()


def make_executable_or_not(tree: Path, path: str, _: str) -> None:
    (tree / path).chmod((tree / path).stat().st_mode ^ 0o111)


def chmod_folder(tree: Path, path: str, _: str) -> None:
    (tree / path).parent.chmod(0o700)


def become_a_folder(tree: Path, path: str, _: str) -> None:
    (tree / path).unlink()
    (tree / path).mkdir()
    (tree / path / "x").write_text("x")


def become_a_link(tree: Path, path: str, other: str) -> None:
    shutil.copyfile(tree / path, tree.parent / "elsewhere")  # raises OSError for a pipe
    (tree / path).unlink()
    (tree / path).symlink_to(tree.parent / "elsewhere")


def lead_a_folder_out(tree: Path, path: str, _: str) -> None:
    """Put a link in the place of a directory, to a copy of it that is not the test's to lose."""
    folder = (tree / path).parent
    precious = tree.parents[3].parent / "precious"
    if folder != tree and not precious.exists():
        shutil.copytree(folder, precious, symlinks=True)
        shutil.rmtree(folder)
        folder.symlink_to(precious)


def make_new_files(tree: Path, path: str, _: str) -> None:
    (tree / path).with_name("new.py").write_text("new")
    write((tree / path).parent, {"__pycache__/a.pyc": b"\0", "new/deep/file": "new"})


def make_a_pipe(tree: Path, path: str, _: str) -> None:
    (tree / path).unlink()
    os.mkfifo(tree / path)


def link_from_outside(tree: Path, path: str, _: str) -> None:
    """Keep a name of the file outside, by which another session could change it."""
    outside = tree.parent / "outside"
    outside.unlink(missing_ok=True)
    os.link(tree / path, outside)


def rename(tree: Path, path: str, other: str) -> None:
    (tree / path).replace(tree / other)


def swap(tree: Path, path: str, other: str) -> None:
    if path == other:
        return
    (tree / path).rename(tree / "third")
    (tree / other).rename(tree / path)
    (tree / "third").rename(tree / other)


def remake_folder(tree: Path, path: str, _: str) -> None:
    """Remove a directory and write the same files."""
    folder = (tree / path).parent
    if folder != tree:
        shutil.copytree(folder, tree.parent / "copy", symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(folder)
        shutil.copytree(tree.parent / "copy", folder, symlinks=True)


def remove_everything(tree: Path, path: str, _: str) -> None:
    shutil.rmtree(tree)


def lead_the_tree_out(tree: Path, path: str, _: str) -> None:
    precious = tree.parents[3].parent / "precious"
    if not precious.exists():
        shutil.copytree(tree, precious, symlinks=True)
        shutil.rmtree(tree)
        tree.symlink_to(precious)


def lead_the_folder_above_out(tree: Path, path: str, _: str) -> None:
    precious = tree.parents[3].parent / "precious"
    if not precious.exists():
        precious.mkdir()
        shutil.copytree(tree, precious / tree.name, symlinks=True)
        shutil.rmtree(tree.parent)
        tree.parent.symlink_to(precious)


CHANGES: tuple[Change, ...] = (
    overwrite,
    write_through_a_map,
    truncate,
    delete,
    make_executable_or_not,
    chmod_folder,
    become_a_folder,
    become_a_link,
    lead_a_folder_out,
    make_new_files,
    make_a_pipe,
    link_from_outside,
    rename,
    swap,
    remake_folder,
    remove_everything,
    lead_the_tree_out,
    lead_the_folder_above_out,
)

changes = st.lists(
    st.tuples(st.sampled_from(CHANGES), st.sampled_from(FILES), st.sampled_from(FILES)), max_size=4
)


def edit_nothing(root: Path) -> None: ...


def edit_a_file(root: Path) -> None:
    (root / "pkg" / "b.py").write_text("edited")


def add_and_remove_files(root: Path) -> None:
    (root / "a.py").unlink()
    write(root, {"z.py": "z", "pkg/other/z.py": "z"})
    (root / "run.sh").chmod(0o644)


def turn_a_file_into_a_folder(root: Path) -> None:
    (root / "a.py").unlink()
    write(root, {"a.py/b.py": "b"})


def turn_a_folder_into_a_link(root: Path) -> None:
    shutil.rmtree(root / "pkg" / "deep")
    (root / "pkg" / "deep").symlink_to("..")


def turn_a_link_into_a_folder(root: Path) -> None:
    (root / "folder").unlink()
    write(root, {"folder/b.py": "b"})


def replace_most_files(root: Path) -> None:
    shutil.rmtree(root)
    write(root, {"other.py": "o", "pkg/b.py": "the content of pkg/b.py\n"})


EDITS = (
    edit_nothing,
    edit_a_file,
    add_and_remove_files,
    turn_a_file_into_a_folder,
    turn_a_folder_into_a_link,
    turn_a_link_into_a_folder,
    replace_most_files,
)


@pytest.mark.parametrize("trusted", [True, False], ids=["by stat", "by content"])
@settings(max_examples=40)
@given(done=changes, then=changes, edit=st.sampled_from(EDITS))
def test_a_session_never_sees_what_another_did_to_its_tree(
    trusted: bool,
    done: list[tuple[Change, str, str]],
    then: list[tuple[Change, str, str]],
    edit: Callable[[Path], None],
) -> None:
    """A test that overwrites a file would make the tests of the next session pass or fail."""
    with TemporaryDirectory() as top, pytest.MonkeyPatch.context() as patch:
        if not trusted:
            patch.setattr(working_trees, "stat_tells_all", lambda probe: False)
        node = NodeOfSessions(Path(top))
        fill(node.root)
        for changed in (done, then):
            tree = node.session()
            for change, path, other in changed:
                with contextlib.suppress(OSError):  # an earlier one may have made it impossible
                    change(tree, path, other)
            precious = read(node.top / "precious")
            node.end()
            if changed is done:
                edit(node.root)

            assert everything(node.session()) == everything(node.anew())
            assert read(node.top / "precious") == precious
            node.end()
        node.wait()


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_each_kind_of_change_is_undone(node: NodeOfSessions, change: Change) -> None:
    """Each by itself, so that a failure names it."""
    tree = node.session()
    change(tree, "pkg/b.py", "pkg/deep/c.py")
    node.end()

    assert everything(node.session()) == everything(node.anew())


# -- what is kept ----------------------------------------------------------------------------------


def times(tree: Path) -> dict[str, int]:
    """Return when each file was written, in ns: an inode may be used again."""
    return {path: (tree / path).stat().st_ctime_ns for path in FILES}


def test_an_unchanged_tree_is_not_written_nor_read_again(node: NodeOfSessions) -> None:
    """50,000 files take ten seconds to write, and a third of one to look at."""
    before = times(node.session())
    node.end()
    node.store.delete([f"blobs/{name}" for name in os.listdir(node.top / "store" / "blobs")])

    tree = node.session()

    assert times(tree) == before
    assert not (node.top / "node" / KEPT).exists()


def test_the_next_session_finds_its_tree_mended(
    node: NodeOfSessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node looks for changes while it waits: with 50,000 files, a third of a second less."""
    tree = node.session()
    (tree / "a.py").write_text("changed by a test")
    (tree / "new.py").write_text("left by a test")
    node.end()
    node.wait()
    monkeypatch.delattr(working_trees, "snapshot")

    assert everything(node.session()) == everything(node.anew())


def test_a_mended_tree_becomes_the_one_that_was_edited_meanwhile(node: NodeOfSessions) -> None:
    """What it was mended to is what the difference is applied to, whatever the session left."""
    tree = node.session()
    (tree / "pkg" / "b.py").write_text("changed by a test")
    node.end()
    node.wait()
    (node.root / "pkg" / "b.py").write_text("edited")
    (node.root / "a.py").unlink()

    assert everything(node.session()) == everything(node.anew())


def test_only_the_difference_is_written(node: NodeOfSessions) -> None:
    """Between two runs somebody edits a file, and a test leaves another."""
    tree = node.session()
    before = times(tree)
    (tree / "pkg" / "deep" / "c.py").write_text("changed by a test")
    node.end()
    (node.root / "pkg" / "b.py").write_text("edited")

    after = times(node.session())

    assert {path for path in FILES if after[path] != before[path]} == {"pkg/b.py", "pkg/deep/c.py"}


def test_another_project_does_not_wait_for_the_removal_of_the_last_tree(
    node: NodeOfSessions,
) -> None:
    """Its tree may be small, and the last one big; what is left of that goes in the background."""
    node.session()
    node.end()
    replace_most_files(node.root)

    tree = node.session()

    assert everything(tree) == everything(node.anew())
    node.wait()
    assert sorted(path.name for path in (node.top / "node").iterdir()) == ["s"]


def test_a_tree_in_use_is_left_alone_when_it_is_asked_for_again(node: NodeOfSessions) -> None:
    """Every process of a session asks for it, the first of them may have changed it by then."""
    tree = node.session()
    (tree / "a.py").write_text("changed by a test")

    node.trees.unpack(ship(node.store, node.root).digest, tree)

    assert (tree / "a.py").read_text() == "changed by a test"


def test_a_node_that_hears_of_no_end_takes_the_tree_from_the_last_sessions_place(
    node: NodeOfSessions,
) -> None:
    """Only the head is told of a session's end; the others are asked for the next tree."""
    first = node.session()
    before = times(first)
    (first / "a.py").write_text("changed by a test")

    second = node.session()

    assert everything(second) == everything(node.anew())
    assert times(second)["pkg/b.py"] == before["pkg/b.py"]
    assert not first.exists()


def test_a_failure_halfway_leaves_no_tree_and_the_next_try_makes_all_of_it(
    node: NodeOfSessions,
) -> None:
    """Half a tree that counts as whole would make tests pass that should fail."""
    first = node.session()
    (first / "a.py").write_text("changed by a test")
    for name in os.listdir(node.top / "store" / "blobs"):
        node.store.delete([f"blobs/{name}"])
    node.end()

    with pytest.raises(StoreError, match="has lost a file of the tree"):
        node.session()

    assert list((node.scratch / "tree").iterdir()) == []
    ship(node.store, node.root)
    assert everything(node.session()) == everything(node.anew())


def test_a_tree_that_is_made_early_is_the_one_that_is_asked_for(node: NodeOfSessions) -> None:
    """The keeper begins before the agent asks; both are to get one tree."""
    target = node.top / "node" / "s" / "early" / "tree" / "project"
    digest = ship(node.store, node.root).digest
    node.trees.begin(digest, target)

    node.trees.unpack(digest, target)

    assert everything(target) == everything(node.anew())
    assert sorted(path.name for path in target.parent.iterdir()) == ["project", "project.tree"]


def test_the_failure_of_a_tree_that_is_made_early_is_told_to_who_asks_for_it(
    node: NodeOfSessions,
) -> None:
    """A second try finds no tree in the store any more, and could only say that."""
    target = node.top / "node" / "s" / "early" / "tree" / "project"
    digest = ship(node.store, node.root).digest
    node.store.delete(node.store.list("blobs/"))
    node.trees.begin(digest, target)

    with pytest.raises(StoreError, match="has lost a file of the tree"):
        node.trees.unpack(digest, target)


def test_a_file_is_not_written_through_a_link_that_was_kept(node: NodeOfSessions) -> None:
    """The last tree had the link, the next has a file below it too: each harmless alone."""
    outside = node.top / "outside"
    outside.mkdir()
    blob = hashlib.sha256(b"x").hexdigest()
    node.store.put(f"blobs/{blob}", pack_blob(b"x"))
    x, link = FileEntry("x", 0o644, blob, 1), LinkEntry("a", str(outside))
    below = FileEntry("a/x", 0o644, blob, 1)
    digests = []
    for files in ((x,), (x, below)):
        raw = StoredTree(root="", files=files, links=(link,)).to_bytes()
        digests.append(hashlib.sha256(raw).hexdigest())
        node.store.put(tree_key(digests[-1]), raw)
    node.trees.unpack(digests[0], node.top / "node" / "s" / "1" / "tree")

    with pytest.raises(StoreError):
        node.trees.unpack(digests[1], node.top / "node" / "s" / "2" / "tree")

    assert list(outside.iterdir()) == []
