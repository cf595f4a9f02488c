"""A working tree goes up once, comes down whole, and takes no secret along."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_tests.s3_server import S3Server
from pytest_gpu_cluster.bundle import index
from pytest_gpu_cluster.bundle.listing import LITTER
from pytest_gpu_cluster.bundle.ship import ship, ship_files
from pytest_gpu_cluster.contract.errors import RequestError, StoreError
from pytest_gpu_cluster.contract.model import Tree
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.node.unpack import unpack

Files = Mapping[str, bytes | str]


def write(root: Path, files: Files) -> None:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content if isinstance(content, bytes) else content.encode())


def read(root: Path) -> dict[str, tuple[str, bytes | str]]:
    """Every file and link below `root`: its kind, and its bytes or target."""
    found: dict[str, tuple[str, bytes | str]] = {}
    for folder, folders, names in os.walk(root):
        for name in [*names, *folders]:
            path = Path(folder, name)
            if path.is_symlink():
                found[str(path.relative_to(root))] = ("link", os.readlink(path))
            elif path.is_file():
                kind = "executable" if path.stat().st_mode & 0o100 else "file"
                found[str(path.relative_to(root))] = (kind, path.read_bytes())
    return found


def paths(store: Store, tree: Tree) -> list[str]:
    raw = store.get(f"trees/{tree.digest}.json")
    assert raw is not None
    return [entry["path"] for entry in json.loads(raw)["entries"]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "project"
    path.mkdir()
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"), base=tmp_path)


@pytest.fixture
def git(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run git in a new repository at `root`, with nobody's configuration."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "a")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "a@b.example")

    def run(*args: str, cwd: Path = root) -> None:
        subprocess.run(
            ["git", "-c", "protocol.file.allow=always", *args],
            cwd=cwd,
            check=True,
            capture_output=True,
        )

    run("init", "-q")
    return run


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files written by a test count as old, so that it need not wait two seconds for the index to trust them."""
    monkeypatch.setattr(index, "RACY_NS", -3_600_000_000_000)


# --- there and back -------------------------------------------------------------------------------------------------


NAMES = st.one_of(
    st.text(
        st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8
    ),
    st.binary(min_size=1, max_size=8).map(
        lambda raw: os.fsdecode(raw.replace(b"/", b"_").replace(b"\0", b"_"))
    ),
).filter(lambda name: name not in {".", "..", "pyvenv.cfg", *LITTER})
LEAVES = st.one_of(
    st.tuples(st.sampled_from(["file", "executable"]), st.binary(max_size=200)),
    st.tuples(st.just("link"), st.sampled_from(["sibling", "./a", "b"])),
)
TREES = st.dictionaries(
    NAMES, st.recursive(LEAVES, lambda inner: st.dictionaries(NAMES, inner, max_size=4)), max_size=6
)


def lay_out(at: Path, tree: Mapping[str, object]) -> None:
    at.mkdir(exist_ok=True)
    for name, content in tree.items():
        match content:
            case ("link", str(target)):
                (at / name).symlink_to(target)
            case (str(kind), bytes(data)):
                (at / name).write_bytes(data)
                (at / name).chmod(0o755 if kind == "executable" else 0o644)
            case dict():
                lay_out(at / name, content)


@given(tree=TREES)
@settings(deadline=None, max_examples=60)
def test_any_tree_comes_back_as_it_was(tree: dict[str, object]) -> None:
    """Names in any bytes, empty files, execute bits and links: a test that reads its own data must find it."""
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory)
        lay_out(top / "project", tree)
        store = Store.open("store", base=top)

        shipped = ship(store, top / "project")
        unpack(store, shipped.digest, top / "node" / "project", cache=top / "cache")

        assert read(top / "node" / "project") == read(top / "project")
        assert shipped.files == len(read(top / "project"))


def test_it_works_over_s3(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store of a rented machine; the index lies in the user's cache directory then."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    write(root, {"a.py": "a = 1\n", "data/b.bin": os.urandom(10_000), "c": b""})
    with S3Server() as server:
        server.make_bucket("bucket")
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        store = Store.open("s3://bucket/prefix", base=tmp_path)

        first, second = ship(store, root), ship(store, root)
        for node in ("one", "two"):  # the second from the cache
            unpack(store, first.digest, tmp_path / node, cache=tmp_path / "cache")

            assert read(tmp_path / node) == read(root)

    assert (first.sent_blobs, second.sent_blobs) == (3, 0)
    assert (first.digest, first.files, first.bytes) == (second.digest, 3, 10_006)
    assert list((tmp_path / "xdg" / "gpu-cluster").iterdir())


# --- only what changed goes up --------------------------------------------------------------------------------------


def test_an_unchanged_tree_sends_no_blob_and_a_changed_file_one(
    root: Path, store: Store, at_once: None
) -> None:
    """Starting a run must not cost more than what changed since the last one."""
    write(root, {f"d{n % 7}/f{n}.py": f"n = {n}\n" for n in range(300)})

    first = ship(store, root)
    before = store.requests
    second = ship(store, root)
    asked = store.requests - before
    write(root, {"d0/f0.py": "n = 'new'\n"})
    third = ship(store, root)

    assert (first.files, first.sent_blobs) == (300, 300)
    assert (second.sent_blobs, second.sent_bytes, second.digest) == (0, 0, first.digest)
    assert asked <= 2
    assert third.sent_blobs == 1


def test_equal_files_are_one_blob(root: Path, store: Store) -> None:
    """A hundred empty __init__.py are one request."""
    write(root, {f"p{n}/__init__.py": "" for n in range(100)})

    assert ship(store, root).sent_blobs == 1


def test_a_checkout_without_an_index_sends_only_what_the_store_lacks(
    root: Path, store: Store, tmp_path: Path
) -> None:
    """Every CI job starts from a fresh clone."""
    write(root, {f"f{n}.py": f"n = {n}\n" for n in range(200)})
    ship(store, root)
    root.rename(tmp_path / "clone")
    write(tmp_path / "clone", {"new.py": "new = True\n"})

    assert ship(store, tmp_path / "clone").sent_blobs == 1


@pytest.mark.parametrize("count", [5, 300])
def test_a_blob_that_the_store_lost_is_sent_again(
    root: Path, store: Store, at_once: None, count: int
) -> None:
    """The index remembers files, never what a store holds: pruning deletes trees, then blobs."""
    write(root, {f"f{n}.py": f"n = {n}\n" for n in range(count)})
    tree = ship(store, root)
    store.delete([f"trees/{tree.digest}.json", store.list("blobs/")[0]])

    again = ship(store, root)

    assert again.sent_blobs >= 1
    assert len(store.list("blobs/")) == count


def test_a_file_changed_under_its_old_size_and_time_is_seen(
    root: Path, store: Store, at_once: None
) -> None:
    """Tools that restore timestamps exist; the inode's change time gives them away."""
    write(root, {"a.py": "a = 1\n"})
    old = (root / "a.py").stat()
    first = ship(store, root)
    write(root, {"a.py": "a = 2\n"})
    os.utime(root / "a.py", ns=(old.st_atime_ns, old.st_mtime_ns))

    assert ship(store, root).digest != first.digest


def test_a_file_just_written_is_not_trusted_to_its_timestamp(root: Path, store: Store) -> None:
    """Two writes within one tick of the clock leave the same stamp; git's index has the same rule."""
    write(root, {"a.py": "a = 1\n"})

    ship(store, root)

    (index,) = (Path(store.root or "") / "index").iterdir()
    assert json.loads(index.read_text())["files"] == {}


def test_a_trusted_file_is_not_read(root: Path, store: Store, at_once: None) -> None:
    """Reading 5,000 files would cost the budget; the doctored index shows that it is believed."""
    write(root, {"a.py": "a = 1\n", "b.py": "b = 1\n"})
    ship(store, root)
    (index,) = (Path(store.root or "") / "index").iterdir()
    saved = json.loads(index.read_text())
    saved["files"]["b.py"][4] = saved["files"]["a.py"][4]
    index.write_text(json.dumps(saved))

    tree = ship(store, root)
    unpack(store, tree.digest, root.parent / "node")

    assert (root.parent / "node" / "b.py").read_text() == "a = 1\n"


def test_a_broken_index_costs_time_only(root: Path, store: Store) -> None:
    """It is a cache; a disk that filled up while it was written must not stop a run."""
    write(root, {"a.py": "a = 1\n"})
    tree = ship(store, root)
    (index,) = (Path(store.root or "") / "index").iterdir()
    for content in ("", "[]", '{"v": 1}', '{"v": 1, "files": {"a.py": [1]}, "tree": ""}'):
        index.write_text(content)

        assert ship(store, root).digest == tree.digest


def test_incompressible_data_is_kept_as_it_is(root: Path, store: Store) -> None:
    """Images and weights are packed already; packing them again costs seconds and gains nothing."""
    noise = os.urandom(300_000)
    write(root, {"noise.bin": noise, "text.txt": "again and again\n" * 20_000})

    tree = ship(store, root)

    assert store.get(f"blobs/{hashlib.sha256(noise).hexdigest()}") == b"\0" + noise
    assert tree.sent_bytes < 310_000


def test_own_files_need_no_working_tree(store: Store, tmp_path: Path) -> None:
    """This package's own code goes the same way, from wherever it is installed."""
    script = tmp_path / "run.sh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)

    tree = ship_files(store, {"bin/run.sh": script, "harness/__init__.py": b""})
    again = ship_files(store, {"harness/__init__.py": b"", "bin/run.sh": script})
    unpack(store, tree.digest, tmp_path / "code")

    assert (tree.sent_blobs, again.sent_blobs, tree.digest) == (2, 0, again.digest)
    assert read(tmp_path / "code") == {
        "bin/run.sh": ("executable", b"#!/bin/sh\n"),
        "harness/__init__.py": ("file", b""),
    }


# --- what belongs to the tree ---------------------------------------------------------------------------------------


def test_git_decides_what_belongs(root: Path, store: Store, git: Callable[..., None]) -> None:
    """Tracked and new files go, ignored and deleted ones do not: what a colleague would get from a commit."""
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
    """The default store is `.gpu-cluster` beside pyproject.toml; each run would ship all the runs before it."""
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
    """Data that git ignores is often what a test needs; patterns mean what they mean in .gitignore."""
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


# --- links ----------------------------------------------------------------------------------------------------------


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


# --- a tree that moves ----------------------------------------------------------------------------------------------


def meddle(store: Store, monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
    """Call `act` with 0, 1, … whenever the store is asked for a tree: after files were read, before they are sent."""
    get, times = store.get, iter(range(1000))

    def asked(key: str) -> bytes | None:
        act(next(times))
        return get(key)

    monkeypatch.setattr(store, "get", asked)


def test_a_file_that_changes_meanwhile_is_read_again(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An editor saves while the tree goes up; what arrives is one state of the file, and its digest is true."""
    write(root, {"a.py": "a = 1\n", "b.py": ""})
    meddle(store, monkeypatch, lambda n: write(root, {"a.py": "a = 22\n"} if n == 0 else {}))

    tree = ship(store, root)
    unpack(store, tree.digest, tmp_path / "node")

    assert (tmp_path / "node" / "a.py").read_text() == "a = 22\n"


def test_a_file_that_vanishes_meanwhile_is_left_out(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Editors make and remove swap files all the time."""
    write(root, {"a.py": "", ".a.py.swp": "x"})
    meddle(store, monkeypatch, lambda n: (root / ".a.py.swp").unlink(missing_ok=True))

    assert paths(store, ship(store, root)) == ["a.py"]


def test_a_file_that_never_rests_is_named(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log file inside the tree; trying for ever would hang the run."""
    write(root, {"server.log": ""})
    meddle(store, monkeypatch, lambda n: write(root, {"server.log": f"line {n}\n"}))

    with pytest.raises(RequestError, match=r"'server\.log' keeps changing") as caught:
        ship(store, root)

    assert "exclude" in caught.value.remedy


# --- what is refused ------------------------------------------------------------------------------------------------


def test_a_tree_over_the_limit_is_refused_with_its_biggest_files(root: Path, store: Store) -> None:
    """Nobody means to upload a checkpoint at every run."""
    write(root, {"model.ckpt": b"\0" * 3_000_000, "a.py": "", "b.bin": b"\0" * 2_000_000})

    with pytest.raises(RequestError, match=r"4\.8 MiB, over the limit of 1\.0 MiB") as caught:
        ship(store, root, limit_bytes=1 << 20)

    assert caught.value.what.index("model.ckpt") < caught.value.what.index("b.bin")
    assert "exclude" in caught.value.remedy
    assert store.list("blobs/") == []
    assert ship(store, root, exclude=["*.ckpt", "*.bin"], limit_bytes=1 << 20).files == 1


def body(length: int, alphabet: str = "aB3dE5gH7jK9") -> str:
    """Something that looks like a secret and is none; put together here, so that this file holds no such thing."""
    return "".join(
        alphabet[n * n % len(alphabet)] + alphabet[n % len(alphabet)] for n in range(length)
    )[:length]


PEM = (
    "-----BEGIN {}PRIVATE KEY-----\n"
    + body(64)
    + "\n"
    + body(64)
    + "\n-----END {}PRIVATE KEY-----\n"
)
AWS_ID = "AKIA" + body(16, "A2B3C4D5E6F7")
SUSPECTS: dict[str, tuple[str, str]] = {
    ".env": ("DEBUG=1\n", "environment variables"),
    "deploy/.env.production": ("# x\nexport KEY='v'\n", "environment variables"),
    "server.pem": (PEM.format("", ""), "a private key"),
    "tls.key": (PEM.format("EC ", "EC "), "a private key"),
    "keys/id_rsa": ("anything", "an SSH private key"),
    "keys/id_ed25519_work": ("anything", "an SSH private key"),
    "cert.p12": ("\0", "private keys"),
    "cert.PFX": ("\0", "private keys"),
    "passwords.kdbx": ("\0", "a password database"),
    ".aws/credentials": ("[default]\n", "an AWS credentials file"),
    "home/.netrc": ("", "a file of logins"),
    ".pypirc": ("", "a file of logins"),
    ".npmrc": ("//registry.npmjs.org/:_authToken=npm_x\n", "an npm token"),
    "my-service-account-prod.json": ("{}", "a service account's key"),
    "notes.txt": ("x\n" + PEM.format("OPENSSH ", "OPENSSH "), "a private key"),
    "quoted.py": ('KEY = """' + PEM.format("RSA ", "RSA ") + '"""', "a private key"),
    "gcp.json": (json.dumps({"private_key": PEM.format("", "")}), "a private key"),
    "config.ini": (f"id = {AWS_ID}\nsecret = {body(40)}\n", "an AWS key with its secret"),
    "setup.sh": (f"export AWS_SECRET_ACCESS_KEY={body(40)}\n", "an AWS secret key"),
    "boto.cfg": (f"aws_secret_access_key = {body(40)}\n", "an AWS secret key"),
    "a.yml": (f"token: ghp_{body(36)}\n", "a GitHub token"),
    "b.yml": (f"token: github_pat_{body(22)}_{body(59)}\n", "a GitHub token"),
    "c.yml": (f"token: glpat-{body(20)}\n", "a GitLab token"),
    "d.yml": (f"token: xoxb-{body(12, '0123456789')}-{body(24)}\n", "a Slack token"),
    "e.yml": (f"token: hf_{body(34)}\n", "a Hugging Face token"),
}


@pytest.mark.parametrize("path", SUSPECTS)
def test_a_credential_is_refused_by_name_and_reason(root: Path, store: Store, path: str) -> None:
    """A bucket is read by more people than a laptop; the refusal itself must not repeat the value."""
    content, reason = SUSPECTS[path]
    write(root, {"a.py": "", path: content})

    with pytest.raises(RequestError) as caught:
        ship(store, root)

    assert f"{path!r}: " in caught.value.what
    assert reason in caught.value.what
    assert f'allow-files = ["{path}"]' in caught.value.remedy
    assert not [word for word in content.split() if len(word) > 20 and word in str(caught.value)]
    assert store.list("blobs/") == []
    assert ship(store, root, allow_files=[path]).files == 2
    assert ship(store, root, exclude=[path]).files == 1


HARMLESS = {
    ".env": "# nothing set\nAPI_KEY=\nOTHER=''\n",
    ".env.example": "API_KEY=your-key-here\nPORT=8080\n",
    "prod/.env.local.sample": "API_KEY=x\n",
    ".envrc": "use flake\n",
    "ca.pem": "-----BEGIN CERTIFICATE-----\n" + body(64) + "\n-----END CERTIFICATE-----\n",
    "public.pem": "-----BEGIN PUBLIC KEY-----\n" + body(64) + "\n-----END PUBLIC KEY-----\n",
    "id_rsa.pub": "ssh-rsa " + body(64),
    "id_rsa_tools.py": "def parse(): ...\n",
    ".npmrc": "//registry.npmjs.org/:_authToken=${NPM_TOKEN}\nsave-exact=true\n",
    "credentials": "a chapter",
    "credentials.py": "AWS_SECRET_ACCESS_KEY = os.environ['AWS_SECRET_ACCESS_KEY']\n",
    "scanner.py": "MARK = '-----BEGIN RSA PRIVATE KEY-----'\nif MARK in text:\n    raise ValueError(text)\n",
    "test_moto.py": "os.environ['AWS_SECRET_ACCESS_KEY'] = 'testing'\nKEY = 'AKIAIOSFODNN7EXAMPLE'\n",
    "readme.md": "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY\nAKIAIOSFODNN7EXAMPLE\n",
    "usage.md": "export GITHUB_TOKEN=ghp_" + "x" * 36 + "\n",
    "lock.json": f'"integrity": "sha512-{body(86)}==", "sha1": "{body(40)}"\n',
    "id_only.py": f"ACCOUNT_KEY = '{AWS_ID}'\n",
}


def test_what_only_resembles_a_credential_may_travel(root: Path, store: Store) -> None:
    """A check that cries wolf gets switched off."""
    write(root, HARMLESS)

    assert ship(store, root).files == len(HARMLESS)


def test_a_credential_behind_an_outside_link_is_seen(
    root: Path, store: Store, tmp_path: Path
) -> None:
    """The link has a harmless name; its content would travel in its place."""
    write(tmp_path, {".aws/credentials": "[default]\n"})
    (root / "config").symlink_to(tmp_path / ".aws" / "credentials")

    with pytest.raises(RequestError, match="'config': an AWS credentials file"):
        ship(store, root)


def test_a_verdict_is_remembered_with_the_digest(root: Path, store: Store, at_once: None) -> None:
    """An unchanged file is not scanned again, yet allow-files may be taken back."""
    write(root, {"tests/key.pem": PEM.format("", "")})
    ship(store, root, allow_files=["tests/*.pem"])

    with pytest.raises(RequestError, match="a private key"):
        ship(store, root)


# --- on a node ------------------------------------------------------------------------------------------------------


@pytest.fixture
def shipped(root: Path, store: Store) -> Tree:
    write(root, {"a.py": "a = 1\n", "pkg/b.py": "b = 1\n"})
    return ship(store, root)


B = b"b = 1\n"


def remote(store: Store) -> Store:
    """The same store as a machine elsewhere sees it: not on a disk of its own, so that a cache is worth it."""
    store.is_local = False
    return store


def test_a_test_that_writes_into_its_tree_does_not_reach_the_cache(
    store: Store, shipped: Tree, tmp_path: Path
) -> None:
    """The next session on this node gets what was shipped, not what the last one left."""
    unpack(remote(store), shipped.digest, tmp_path / "one", cache=tmp_path / "cache")
    with (tmp_path / "one" / "a.py").open("r+") as file:
        file.write("spoilt")

    unpack(store, shipped.digest, tmp_path / "two", cache=tmp_path / "cache")

    assert (tmp_path / "two" / "a.py").read_text() == "a = 1\n"


def test_the_cache_saves_every_request_but_the_trees(
    store: Store, shipped: Tree, tmp_path: Path
) -> None:
    """A blob from S3 costs 20 ms."""
    unpack(remote(store), shipped.digest, tmp_path / "one", cache=tmp_path / "cache")
    before = store.requests

    unpack(store, shipped.digest, tmp_path / "two", cache=tmp_path / "cache")

    assert store.requests - before == 1
    assert read(tmp_path / "two") == read(tmp_path / "one")


def test_a_spoilt_cache_is_mended(store: Store, shipped: Tree, tmp_path: Path) -> None:
    """It lies on a disk that tests may write to."""
    unpack(remote(store), shipped.digest, tmp_path / "one", cache=tmp_path / "cache")
    for blob in (tmp_path / "cache").iterdir():
        blob.write_text("spoilt")

    unpack(store, shipped.digest, tmp_path / "two", cache=tmp_path / "cache")

    assert read(tmp_path / "two") == read(tmp_path / "one")
    assert "spoilt" not in [blob.read_text() for blob in (tmp_path / "cache").iterdir()]


def test_asking_again_leaves_a_tree_in_use_alone(
    store: Store, shipped: Tree, tmp_path: Path
) -> None:
    """Every worker of a node asks for the tree; the tests of the first are running in it by then."""
    unpack(store, shipped.digest, tmp_path / "node")
    (tmp_path / "node" / "a.py").write_text("changed by a test")

    unpack(store, shipped.digest, tmp_path / "node")

    assert (tmp_path / "node" / "a.py").read_text() == "changed by a test"


def test_two_at_once_make_one_tree(store: Store, shipped: Tree, tmp_path: Path) -> None:
    """Workers start together."""
    problems: list[BaseException] = []

    def make() -> None:
        try:
            unpack(store, shipped.digest, tmp_path / "node")
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert problems == []
    assert sorted(read(tmp_path / "node")) == ["a.py", "pkg/b.py"]
    assert sorted(path.name for path in tmp_path.iterdir() if "node" in path.name) == [
        "node",
        "node.tree",
    ]


def test_another_tree_does_not_mix_with_what_is_there(
    store: Store, shipped: Tree, tmp_path: Path
) -> None:
    """Two trees in one directory would be a third that nobody shipped."""
    unpack(store, ship_files(store, {"x": b""}).digest, tmp_path / "node")

    with pytest.raises(StoreError, match="already holds"):
        unpack(store, shipped.digest, tmp_path / "node")


@pytest.mark.parametrize(
    "damage", ["missing", "other bytes", "not zlib", "unknown packing", "empty"]
)
def test_a_bad_blob_is_named_and_sent_anew_the_next_time(
    root: Path, store: Store, shipped: Tree, tmp_path: Path, damage: str
) -> None:
    """Whoever can write to the store must not choose what runs here; and a loss heals by running again."""
    key = f"blobs/{hashlib.sha256(B).hexdigest()}"
    bad = {
        "other bytes": b"\1" + zlib.compress(b"b = 2\n"),
        "not zlib": b"\1x",
        "unknown packing": b"\7b",
        "empty": b"",
    }
    if damage == "missing":
        store.delete([key])
    else:
        store.put(key, bad[damage])

    with pytest.raises(StoreError, match=key) as caught:
        unpack(store, shipped.digest, tmp_path / "node")

    assert "pkg/b.py" in caught.value.what
    assert "run again" in caught.value.remedy
    assert not (tmp_path / "node").exists()
    assert ship(store, root).sent_blobs >= 1
    unpack(store, shipped.digest, tmp_path / "node")


@pytest.mark.parametrize("damage", ["missing", "other bytes"])
def test_a_bad_tree_is_named_and_sent_anew_the_next_time(
    root: Path, store: Store, shipped: Tree, tmp_path: Path, damage: str
) -> None:
    """A tree is believed by its digest alone."""
    key = f"trees/{shipped.digest}.json"
    if damage == "missing":
        store.delete([key])
    else:
        store.put(key, (store.get(key) or b"").replace(b"a.py", b"b.py"))

    with pytest.raises(StoreError, match=shipped.digest):
        unpack(store, shipped.digest, tmp_path / "node")

    ship(store, root)
    unpack(store, shipped.digest, tmp_path / "node")


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "a//x", ".", "", "a\0b", "x/"])
def test_a_path_out_of_the_tree_is_refused(store: Store, tmp_path: Path, path: str) -> None:
    """A node unpacks what a store gives it, next to other sessions."""
    tree = ship_files(store, {path: b"x"})

    with pytest.raises(StoreError, match="leads out of the tree"):
        unpack(store, tree.digest, tmp_path / "node")


def test_no_file_is_written_through_a_link_of_the_tree(store: Store, tmp_path: Path) -> None:
    """A link to /etc and a file below it: each harmless alone."""
    blob = hashlib.sha256(b"x").hexdigest()
    store.put(f"blobs/{blob}", b"\0x")
    (tmp_path / "outside").mkdir()
    link = {"path": "a", "link": str(tmp_path / "outside")}
    entries = [link, {"path": "a/x", "blob": blob, "mode": "644", "size": 1}]
    raw = json.dumps({"v": 1, "root": "", "entries": entries}).encode()
    digest = hashlib.sha256(raw).hexdigest()
    store.put(f"trees/{digest}.json", raw)

    with pytest.raises(StoreError):
        unpack(store, digest, tmp_path / "node")

    assert list((tmp_path / "outside").iterdir()) == []
