"""What the tests missed is named only where it is really here, and was really not sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_gpu_cluster.bundle.ship import ship
from pytest_gpu_cluster.contract.events import Hello, UsageError
from pytest_gpu_cluster.contract.settings import RunRequest, SentTree, Settings
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.host.not_sent import NotSent
from tests.working_trees import write

NODE = "/tmp/node/s/tree/ml"  # the tree's place there
FILE = "FileNotFoundError: [Errno 2] No such file or directory: '{}'"
MODULE = "ModuleNotFoundError: No module named '{}'"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            FILE.format("../data/a.csv"),
            '../data/a.csv; tree = "git" or include = ["../data/a.csv"]',
        ),
        (FILE.format(f"{NODE}/tests/../../data/a.csv"), "../data/a.csv"),
        (FILE.format("weights.bin"), 'weights.bin; include = ["weights.bin"]'),
        (FILE.format("empty"), "empty, for it is an empty directory"),
        (MODULE.format("acme.deep"), '../src/acme/deep.py; tree = "git"'),
        (MODULE.format("pkg._version"), 'pkg/_version.py; include = ["pkg/_version.py"]'),
        (FILE.format("sent.txt"), ""),  # a test has removed it there
        (FILE.format("pkg"), ""),  # a directory that was sent
        (FILE.format("../data/absent.csv"), ""),
        (FILE.format("../.git/HEAD"), ""),
        (FILE.format("../../outside.txt"), ""),  # of another repository
        (FILE.format("/etc/passwd"), ""),
        (MODULE.format("yaml_that_nobody_has"), ""),
        (MODULE.format("data"), ""),  # a directory without a module
    ],
)
def test_a_claim_is_certain(pytester: pytest.Pytester, text: str, line: str) -> None:
    """A wrong hint sends somebody the wrong way."""
    top, project = pytester.path / "mono", pytester.path / "mono/ml"
    write(
        pytester.path,
        {
            "outside.txt": "",
            "mono/.git/HEAD": "",
            "mono/data/a.csv": "",
            "mono/src/acme/deep.py": "",
            "mono/ml/sent.txt": "",
            "mono/ml/pkg/__init__.py": "",
            "mono/ml/pkg/_version.py": "",
            "mono/ml/weights.bin": "",
        },
    )
    (project / "empty").mkdir()
    store = Store.open(str(pytester.path / "store"), base=pytester.path)
    (top / ".git" / "HEAD").rename(top / "HEAD")
    (top / ".git").rmdir()  # or git would be asked for the list of files
    tree = ship(store, project, exclude=["weights.bin", "_version.py"])
    (top / ".git").mkdir()
    request = RunRequest(
        settings=Settings(),
        project=project,
        root=project,
        tree=SentTree(top=project),
        invocation_dir=project,
        pytest_args=(),
        passed_env={},
    )
    hint = NotSent(pytester.parseconfig(), request)
    hello = {"workers": 1, "pytest": "9", "python": "3.11", "executable": "python"}
    hint.note(Hello.from_json({"root": NODE, "origin": str(project), **hello}))

    hint.note(UsageError(text=text))
    lines = hint.lines(store, tree.digest)

    assert len(lines) == bool(line), lines
    assert all(line in each for each in lines), lines


def test_many_are_counted(pytester: pytest.Pytester) -> None:
    """A hundred missing files are one mistake."""
    write(pytester.path, {f"data/{number}.bin": "" for number in range(5)})
    store = Store.open(str(pytester.path / "store"), base=pytester.path)
    tree = ship(store, pytester.path, exclude=["data"])
    request = RunRequest(
        settings=Settings(),
        project=pytester.path,
        root=pytester.path,
        tree=SentTree(top=Path(pytester.path)),
        invocation_dir=pytester.path,
        pytest_args=(),
        passed_env={},
    )
    hint = NotSent(pytester.parseconfig(), request)
    for number in range(5):
        hint.note(UsageError(text=FILE.format(f"data/{number}.bin")))

    *_, last = lines = hint.lines(store, tree.digest)

    assert (len(lines), last) == (4, "not sent: 2 more")
