"""What tests wrote: found on the node, and written here over nothing of the user's."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpu_cluster.artifacts_command import fetch_artifacts
from pytest_gpu_cluster.bundle.ship import ship_files
from pytest_gpu_cluster.contract.errors import RequestError
from pytest_gpu_cluster.contract.masking import PassedValues
from pytest_gpu_cluster.contract.outputs import (
    REST_BYTES,
    REST_FILES,
    NodeOutputs,
    OutputsOrder,
    WrittenFile,
)
from pytest_gpu_cluster.contract.record import SessionRecord
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.contract.trees import FileEntry
from pytest_gpu_cluster.host.outputs import output_lines
from pytest_gpu_cluster.node.outputs import (
    FoundFile,
    collect,
    mark_begin,
    touched,
    within_limits,
    written,
)
from pytest_gpu_cluster.node.unpack import unpack
from pytest_gpu_cluster.options import option_globs
from pytest_gpu_cluster.outputs import Homecoming, UnsafePathError, bring_home, merge, write_file

SESSION = "20261127-000000-abcd"


def entry(path: str, content: bytes, *, mode: int = 0o644) -> FileEntry:
    return FileEntry(path, mode, hashlib.sha256(content).hexdigest(), len(content))


# --- on the node ----------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "d/a", "d/b", "d/e/c", "__pycache__/x", "x.pyc", ".coverage"])
CONTENTS = st.sampled_from([b"", b"one", b"two"])
WRITES = st.lists(
    st.one_of(
        st.tuples(st.just("write"), NAMES, CONTENTS),
        st.tuples(st.just("replace"), NAMES, CONTENTS),
        st.tuples(st.just("executable"), NAMES, st.just(b"")),
        st.tuples(st.just("remove"), NAMES, st.just(b"")),
        st.tuples(st.just("link"), NAMES, st.just(b"")),
    )
)


def act(root: Path, what: str, name: str, content: bytes) -> None:
    """Do what a test may do to one path of its tree."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    match what:
        case "write" if not path.is_symlink():
            path.write_bytes(content)
        case "replace":  # with an old time, as unpacking an archive does
            other = path.with_name("temporary")
            other.write_bytes(content)
            os.utime(other, (0, 0))
            other.replace(path)
        case "executable" if path.is_file() and not path.is_symlink():
            path.chmod(0o755)
        case "remove":
            path.unlink(missing_ok=True)
        case "link":
            path.unlink(missing_ok=True)
            path.symlink_to("/etc/hostname")


@given(before=st.dictionaries(NAMES, CONTENTS), acts=WRITES)
def test_what_is_found_is_what_differs_from_what_was_sent(
    before: dict[str, bytes], acts: list[tuple[str, str, bytes]]
) -> None:
    """Whatever tests did: a file that is as it was sent is no output, and no other is missed."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory, "tree")
        root.mkdir()
        for name, content in before.items():
            act(root, "write", name, content)
        mark_begin(root)
        for each in acts:
            act(root, *each)
        since_ns = root.with_name("tree.began").stat().st_ctime_ns
        sent = {name: entry(name, content) for name, content in before.items()}

        found = written(root, touched(root, since_ns=since_ns), sent)

        expected = {
            path.relative_to(root).as_posix()
            for path in root.rglob("*")
            if path.is_file()
            and not path.is_symlink()
            and not {"__pycache__", "x.pyc", ".coverage"} & set(path.relative_to(root).parts)
        }
        expected -= {
            name
            for name in expected & before.keys()
            if (root / name).read_bytes() == before[name] and not os.access(root / name, os.X_OK)
        }
        assert {file.path for file in found} == expected


def test_litter_that_is_named_is_found(tmp_path: Path) -> None:
    """Hypothesis's database is litter, until somebody asks for it."""
    (tmp_path / ".hypothesis").mkdir()
    (tmp_path / ".hypothesis" / "example").touch()

    def found(*globs: str) -> list[str]:
        return [file.path for file in touched(tmp_path, since_ns=0, globs=globs)]

    assert (found(), found(".hypothesis/**")) == ([], [".hypothesis/example"])


def found_file(path: str, size: int) -> FoundFile:
    values = (0o100644, 0, 0, 1, 0, 0, size, 0, 0, 0)
    return FoundFile(path, os.stat_result(values))


@given(sizes=st.lists(st.integers(0, REST_BYTES), max_size=12))
def test_the_rest_has_a_limit_and_what_is_named_does_not_pay_for_it(sizes: list[int]) -> None:
    """A test that writes gigabytes must not fill the store, nor push out what was asked for."""
    rest = [found_file(f"rest/{n}", size) for n, size in enumerate(sizes)]
    wanted = [found_file(f"out/{n}", REST_BYTES) for n in range(3)]

    chosen, left = within_limits([*rest, *wanted], lambda path: path.startswith("out/"))

    assert chosen[:3] == wanted
    assert sum(file.status.st_size for file in chosen[3:]) <= REST_BYTES
    assert len(chosen) + left == len(sizes) + 3
    assert left == 0 or sum(sizes) > REST_BYTES


def test_the_rest_is_limited_in_number() -> None:
    """A thousand files are read by nobody; a million would be a day of requests."""
    files = [found_file(f"{n}", 0) for n in range(REST_FILES + 5)]

    assert within_limits(files, lambda path: False)[1] == 5


# --- on the way -----------------------------------------------------------------------------------


def listed(node: str, *files: tuple[str, str, int]) -> NodeOutputs:
    return NodeOutputs(
        node=node,
        files=tuple(
            WrittenFile(path=path, executable=False, blob=64 * blob, size=1, mtime_ns=at)
            for path, blob, at in files
        ),
    )


def test_of_two_nodes_the_later_writer_wins_and_both_are_named() -> None:
    """Nobody could say otherwise whose snapshot it is."""
    head, other = listed("head", ("a", "1", 20), ("b", "1", 5)), listed("f00d", ("a", "2", 10))

    merged = merge([head, other])

    assert merged == merge([other, head])
    assert {path: file.blob[0] for path, file in merged.files.items()} == {"a": "1", "b": "1"}
    assert [(c.path, c.nodes) for c in merged.conflicts] == [("a", ("f00d", "head"))]
    assert [(node, file.blob[0]) for node, file in merged.earlier] == [("f00d", "2")]
    same = merge([head, listed("f00d", ("a", "1", 10))])
    assert same.conflicts == ()


def test_what_is_beyond_the_limits_and_who_wrote_twice_is_said() -> None:
    """A missing file is looked for in the record first, and a wrong one in the test."""
    merged = merge([listed("head", ("a\n", "1", 2)), listed("f00d", ("a\n", "2", 1))])
    home = Homecoming(written=("a\n",), merged=replace(merged, left=7))

    assert [*output_lines(home, SESSION)] == [
        "outputs: 1 file came home: 'a\\n'",
        "outputs: 'a\\n' was written on f00d and on head, there later",
        (
            "outputs: 7 more that the tests wrote are not in the record, which takes 1,000 files of"
            " 32 MiB together, and 1 GiB of what outputs names"
        ),
    ]


# --- here -----------------------------------------------------------------------------------------

PARTS = st.sampled_from(
    [
        "a",
        "b",
        "file",
        "..",
        ".",
        "",
        "out",
        "secret",
        "in",
        ".git",
        ".GIT",
        "x\0",
        "\udcff",
        "\ud800",
    ]
)


@given(path=st.lists(PARTS, min_size=1, max_size=4).map("/".join), executable=st.booleans())
def test_nothing_is_written_outside_or_through_a_link(path: str, executable: bool) -> None:
    """Whoever can write to the store could otherwise write to the home directory of its readers."""
    with tempfile.TemporaryDirectory() as directory:
        root, outside = Path(directory, "root"), Path(directory, "outside")
        (root / "a").mkdir(parents=True)
        outside.mkdir()
        (outside / "secret").write_bytes(b"secret")
        (root / "file").write_bytes(b"old")
        (root / "out").symlink_to(outside)
        (root / "secret").symlink_to(outside / "secret")
        (root / "in").symlink_to("a")
        try:
            write_file(root, path, b"new", executable=executable)
        except UnsafePathError:
            refused = True
        else:
            refused = False

        parts = path.split("/")
        assert {each.name: each.read_bytes() for each in outside.iterdir()} == {"secret": b"secret"}
        assert not (root / ".git").exists()
        assert refused == (
            any(part.lower() in ("..", ".", "", ".git", "x\0", "\ud800") for part in parts)
            or parts[0] in ("out", "in", "secret")
            or (parts[0] == "file" and len(parts) > 1)
            or path == "a"
        )
        if not refused:
            target = Path(os.path.realpath(root / path))
            assert target == root.resolve() / path
            assert target.read_bytes() == b"new"
            assert os.access(target, os.X_OK) == executable
        assert not list(root.rglob("*.gpu-cluster"))


def test_a_file_that_is_there_keeps_its_other_bits(tmp_path: Path) -> None:
    """What nobody else may read stays so."""
    (tmp_path / "private").touch(mode=0o600)

    write_file(tmp_path, "private", b"", executable=True)

    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o700


class Home:
    """A tree here, what was sent of it, and the same tree on a node; the tests write there."""

    def __init__(self, directory: Path, **sent: str) -> None:
        self.root, self.node = directory / "here", directory / "node" / "tree"
        self.root.mkdir()
        self.store = Store.open(str(directory / "store"), base=directory)
        self.record = SessionRecord(self.store, SESSION)
        self.began = time.time() + 60  # everything here is older, unless it says otherwise
        self.write(self.root, **sent)
        self.tree = ship_files(self.store, {name: self.root / name for name in sent}).digest
        unpack(self.store, self.tree, self.node)
        mark_begin(self.node)

    @staticmethod
    def write(root: Path, **files: str) -> None:
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)

    def bring(self, *outputs: str, of_options: tuple[str, ...] = ()) -> Homecoming:
        order = OutputsOrder(
            session=SESSION,
            node="head",
            root=self.node,
            tree=self.tree,
            globs=(*outputs, *of_options),
            passed=PassedValues(),
        )
        collect(self.store, order)
        return bring_home(
            self.record,
            self.root,
            tree=self.tree,
            outputs=outputs,
            of_options=of_options,
            began=self.began,
        )

    def here(self) -> dict[str, str]:
        return {
            path.relative_to(self.root).as_posix(): path.read_text()
            for path in sorted(self.root.rglob("*"))
            if path.is_file()
        }


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path, sent="1", edited="1", removed="1", same="1")


def test_what_was_sent_comes_home_over_nothing_of_the_users(home: Home) -> None:
    """Somebody goes on working while the tests run."""
    files = dict.fromkeys(("sent", "edited", "removed", "same", "new", "unsent"), "2")
    home.write(home.node, **files)
    home.write(home.root, edited="mine", same="2", unsent="mine")
    (home.root / "removed").unlink()

    brought = home.bring("**")

    assert home.here() == {"sent": "2", "new": "2", "edited": "mine", "same": "2", "unsent": "mine"}
    assert brought.written == ("new", "sent")
    assert brought.kept == {
        "edited": "changed here during the run",
        "removed": "was removed here during the run",
        "unsent": "is here too and was not sent",
    }


def test_what_no_glob_names_stays_in_the_record_and_is_named(home: Home, tmp_path: Path) -> None:
    """A snapshot that was written far away is missed a week later, unless a line says so now."""
    home.write(home.node, **{"deep/er/a": "x", "deep/er/b": "y", "new": "z"})

    brought = home.bring("new")
    lines = [*output_lines(brought, SESSION)]
    _, text = fetch_artifacts(home.record, str(tmp_path / "fetched"), only_list=False)

    stays = (
        "outputs: 2 files that the tests wrote did not come home: deep/er/…;"
        f' outputs = ["deep/er/**"] brings such files, gpu-cluster artifacts {SESSION} these'
    )
    assert lines == ["outputs: 1 file came home: new", stays]
    assert (tmp_path / "fetched" / "outputs" / "deep" / "er" / "b").read_text() == "y"
    assert text.endswith(f"3 files are in {tmp_path / 'fetched'}")
    with pytest.raises(RequestError, match="is not empty"):
        fetch_artifacts(home.record, str(tmp_path / "fetched"), only_list=False)


def test_a_file_that_git_ignores_comes_home_again_until_it_is_edited(home: Home) -> None:
    """It is not sent, so only what came home the last time can be overwritten without a loss."""
    (home.root / "ignored").unlink(missing_ok=True)
    results = []
    for content in ("first", "second"):
        home.write(home.node, ignored=content)
        results.append((home.bring("ignored").written, home.here()["ignored"]))
    home.write(home.root, ignored="mine")
    home.write(home.node, ignored="third")
    kept = home.bring("ignored").kept

    assert results == [(("ignored",), "first"), (("ignored",), "second")]
    assert (list(kept), home.here()["ignored"]) == (["ignored"], "mine")


def test_the_file_of_an_option_is_overwritten_as_pytest_does_here(home: Home) -> None:
    """`--alluredir out` is given every day; but not over what was edited meanwhile."""
    home.write(home.root, **{"out.json": "yesterday"})
    home.write(home.node, **{"out.json": "today"})
    first = home.bring(of_options=("./out.json",))
    home.began = 0.0
    home.write(home.root, **{"out.json": "mine"})
    home.write(home.node, **{"out.json": "tomorrow"})
    second = home.bring(of_options=("./out.json",))

    assert (first.written, list(second.kept)) == (("out.json",), ["out.json"])


def test_a_link_here_is_never_written_through(home: Home, tmp_path: Path) -> None:
    """`snapshots` may be a link to a directory that is shared."""
    (tmp_path / "shared").mkdir()
    (home.root / "snapshots").symlink_to(tmp_path / "shared")
    home.write(home.node, **{"snapshots/a": "x"})

    brought = home.bring("snapshots/**")

    assert brought.kept == {"snapshots/a": "lies behind 'snapshots', which is no directory here"}
    assert not any((tmp_path / "shared").iterdir())


# --- options of plugins ---------------------------------------------------------------------------


def test_options_of_plugins_become_globs_from_where_they_were_given() -> None:
    """A relative path is pytest's, an absolute one leads into the same tree."""
    values = {
        "allure_report_dir": "/p/allure",
        "memray_bin_path": Path("b[1]"),
        "update_snapshots": True,
        "snapshot_dirname": "__snapshots__",
        "inline_snapshot": "report",
    }

    written_globs = option_globs(values, root=Path("/p"), cwd=Path("/p/sub"))

    assert written_globs == ("./allure/**", "./sub/b[[]1]/**", "__snapshots__/")


@pytest.mark.parametrize("place", ["/tmp/allure", "../../allure"])
def test_an_option_that_leads_out_of_the_tree_is_refused(place: str) -> None:
    """Its files would stay on a machine that is gone in five minutes."""
    with pytest.raises(RequestError, match=r"--alluredir writes to .*, which is outside the tree"):
        option_globs({"allure_report_dir": place}, root=Path("/p"), cwd=Path("/p/sub"))


def test_the_table_speaks_of_the_options_that_the_plugins_have(pytester: pytest.Pytester) -> None:
    """A plugin may rename where its option is kept; then its files would stay away in silence."""
    config = pytester.parseconfig("--snapshot-update", "--alluredir=allure")

    written_globs = option_globs(vars(config.option), root=pytester.path, cwd=pytester.path)

    assert set(written_globs) == {"./allure/**", "__snapshots__/"}
