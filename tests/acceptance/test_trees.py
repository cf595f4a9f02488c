"""Repositories with more than one project: what is sent, and what a test sees of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.processes import CLUSTERS, left_of
from tests.acceptance.project import Project, Ran
from tests.working_trees import write

LIBRARY = '[tool.pytest.ini_options]\npythonpath = ["../../libs/common/src"]\n'
GIT = ("git", "-c", "user.name=a", "-c", "user.email=a@example.com")
USES_LIBRARY = """
import os
import subprocess
import sys
from pathlib import Path

from acme_common import scale


def test_library_and_its_children(request, pytestconfig):
    assert scale.twice(2) == 4
    assert request.node.nodeid == "tests/test_uses.py::test_library_and_its_children"
    assert Path(os.getcwd()) == pytestconfig.rootpath
    assert pytestconfig.rootpath.parts[-2:] == ("services", "ml")
    assert os.path.relpath(scale.__file__) == "../../libs/common/src/acme_common/scale.py"


def test_git(request):
    if (commit := os.environ.get("GPU_CLUSTER_GIT_COMMIT")) is not None:
        facts = request.getfixturevalue("cluster")
        branch = os.environ["GPU_CLUSTER_GIT_BRANCH"]
        assert os.environ["GPU_CLUSTER_GIT_DIRTY"] == "true"
        assert (facts.commit, facts.branch, facts.dirty) == (commit, branch, True)
        print(f"GIT {commit} {branch}")
    if os.path.exists("../../.git"):
        answers = [
            subprocess.run(["git", *words], capture_output=True, text=True).stdout.splitlines()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        ]
        print("STATUS", *answers[0], answers[1])
"""
READS = """
from pathlib import Path

def test_data():
    assert Path("../../shared_data/points.csv").read_text() == "1,2"

def test_ignored():
    assert (Path(__file__).parent / "data" / "ignored.bin").read_bytes() == b"x"
"""


def git(top: Path, *arguments: str) -> str:
    done = subprocess.run([*GIT, *arguments], cwd=top, check=True, capture_output=True, text=True)
    return done.stdout.rstrip("\n")


@pytest.fixture
def mono(tmp_path: Path) -> Path:
    """A repository of two services with a library and data above them, one file dirty."""
    top = tmp_path / "mono"
    write(
        top,
        {
            "libs/common/src/acme_common/__init__.py": "",
            "libs/common/src/acme_common/scale.py": "def twice(x):\n    return 3 * x\n",
            "shared_data/points.csv": "1,2",
            "services/web/test_web.py": "def test_web():\n    assert False\n",
            "services/ml/tests/test_uses.py": USES_LIBRARY,
            "services/ml/tests/test_reads.py": READS,
            "services/ml/tests/data/ignored.bin": "x",
            ".gitignore": "*.bin\n*.txt\n.pytest_cache\n__pycache__\njunit.xml\n",
        },
    )
    git(top, "init", "-q", "-b", "topic")
    git(top, "add", ".")
    git(top, "commit", "-qm", "one")
    write(top, {"libs/common/src/acme_common/scale.py": "def twice(x):\n    return 2 * x\n"})
    return top


def results(ran: Ran) -> dict[str, str]:
    return dict(
        re.findall(r"^(?:\[\S+\] )?(\S+::\S+) (PASSED|FAILED|SKIPPED|ERROR)", ran.out, re.M)
    )


def test_a_service_is_tested_with_the_library_above_it(mono: Path, shared_store: str) -> None:
    """Plain pytest finds its siblings by relative paths; so does the cluster, once they are sent.

    Before that, the run says what was not sent and which setting sends it.
    """
    ml = Project(mono / "services" / "ml", shared_store)
    table = "[tool.gpu-cluster]\n"
    write(ml.root, {"pyproject.toml": f"{LIBRARY}{table}"})
    plain = ml.plain("-v")

    narrow = ml.run("-v", "--continue-on-collection-errors")
    write(
        ml.root,
        {"pyproject.toml": f'{LIBRARY}{table}tree = "git"\ninclude = ["*.bin"]\ngit = true\n'},
    )
    whole = ml.run("-v", "-rP")
    globs = '["../../libs/**", "../../shared_data/*", "tests/data/**"]'
    write(ml.root, {"pyproject.toml": f"{LIBRARY}{table}include = {globs}\n"})
    siblings = ml.run("-v")

    assert (plain.code, len(results(plain))) == (0, 4), plain.out
    assert narrow.code == 1, narrow.out
    lines = [line for line in narrow.out.splitlines() if "not sent" in line]
    asked = "gpu-cluster: not sent, though the tests asked for it:"
    points, library = "../../shared_data/points.csv", "../../libs/common/src/acme_common"
    assert sorted(lines) == [  # two tests that ran side by side asked for the first and the last
        f'{asked} {library}; tree = "git" or include = ["{library}/**"] sends it',
        f'{asked} {points}; tree = "git" or include = ["{points}"] sends it',
        f'{asked} tests/data/ignored.bin; include = ["tests/data/ignored.bin"] sends it',
    ], narrow.out
    for ran in (whole, siblings):
        assert (ran.code, results(ran)) == (0, results(plain)), ran.out
        assert "not sent" not in ran.out
    head, status = git(mono, "rev-parse", "HEAD"), git(mono, "status", "--porcelain")
    assert f"GIT {head} topic" in whole.out
    assert f"STATUS {head} {status.splitlines()}" in whole.out
    assert "STATUS" not in siblings.out


def test_tests_with_an_ini_of_their_own_keep_the_settings_above(mono: Path, lone: Project) -> None:
    """tests/pytest.ini makes tests/ pytest's rootdir; settings, code and store stay the project's.

    The printed command works in the directory where it was printed, which may be above as well.
    """
    ml, top = Project(mono / "services" / "ml", lone.store), Project(mono, lone.store)
    (mono / "pyproject.toml").unlink()
    for each in (ml, top):
        del each.environ["GPU_CLUSTER_STORE"]
    write(
        ml.root,
        {
            "tests/pytest.ini": "[pytest]\npythonpath = .. ../../../libs/common/src\n",
            "tests/test_uses.py": "import app\ndef test_app():\n    assert app.ANSWER == 42\n",
            "app.py": "from acme_common import scale\nANSWER = scale.twice(21)\n",
        },
    )
    ml.settings("nodez = 1")
    typo = ml.run("tests/test_uses.py")
    ml.settings('store = "../../../store"\ntree = "git"\nidle-minutes = 3')
    plain = ml.plain("-v", "tests/test_uses.py")

    inside = ml.run("-v", "tests/test_uses.py")
    above = top.run("-v", "services/ml/tests/test_uses.py")

    assert typo.code == 4
    assert "tool.gpu-cluster.nodez" in typo.out
    assert "did you mean nodes?" in typo.out
    assert (inside.code, results(inside)) == (0, results(plain)), inside.out
    assert above.code == 0, above.out
    assert above.cluster == inside.cluster
    assert f"file://{lone.store}/sessions/" in inside.out
    assert inside.out.rstrip().endswith(f"to end it now: gpu-cluster down {inside.cluster}")
    printed = above.out.rstrip().rpartition("to end it now: ")[2]
    assert printed == f"gpu-cluster -C services/ml down {inside.cluster}"
    closed = top.command(*printed.split()[1:])
    assert (closed.returncode, closed.stdout) == (0, f"cluster {inside.cluster} closed\n")
    assert left_of(inside.cluster) == []


def test_the_newest_file_is_the_newest_here(project: Project) -> None:
    """--nf sorts by the time of the file on the machine where somebody has just saved it."""
    project.write(test_a="def test_a(): pass", test_b="def test_b(): pass")
    project.write(test_c="def test_c(): pass")
    for age, name in enumerate(("test_b", "test_c", "test_a")):
        os.utime(project.root / f"{name}.py", (1e9 - age, 1e9 - age))
    arguments = ("--nf", "--collect-only", "-q")

    ran, plain = project.run(*arguments), project.plain(*arguments)

    order = ["test_b.py::test_b", "test_c.py::test_c", "test_a.py::test_a"]
    assert [line for line in plain.out.splitlines() if "::" in line] == order
    assert [line for line in ran.out.splitlines() if "::" in line] == order


SHOWS = """
import json
import sys

def test_shows():
    main = sys.modules["__main__"]
    spec = main.__spec__
    shown = {
        "argv": sys.argv,
        "orig_argv": sys.orig_argv,
        "main": [main.__name__, main.__file__, main.__package__, spec and spec.name],
        "path": sys.path,
        "modules": {
            name: getattr(module, "__file__", None) or ""
            for name, module in sys.modules.items()
            if "." not in name
        },
    }
    print("SHOWN " + json.dumps(shown))

def test_a_child_process_sees_the_same():
    import multiprocessing
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(len, [(1, 2)]) == [2]
"""


def shown(ran: Ran) -> dict[str, object]:
    assert ran.code == 0, ran.out
    found = re.search(r"SHOWN (\{.*\})", ran.out)
    assert found is not None, ran.out
    document: dict[str, object] = json.loads(found[1])
    return document


@pytest.mark.parametrize("started", ["pytest", "python -m pytest"])
def test_a_test_process_is_a_pytest_but_for_one_package(project: Project, started: str) -> None:
    """A name of ours beside the user's would be imported in the place of theirs.

    A program that asks what it is sees pytest, and none of the machinery around it.
    """
    project.write(test_shows=SHOWS)
    (project.root / "harness").mkdir()
    (project.root / "harness" / "__init__.py").write_text("")
    if started == "pytest":
        project.pytest = (str(Path(sys.executable).with_name("pytest")),)
    arguments = ("-rP", "--color=no", "-p", "no:cacheprovider")

    plain, there = shown(project.plain(*arguments)), shown(project.run(*arguments))

    def typed(argv: object) -> list[str]:
        assert isinstance(argv, list)
        return [word for word in argv if word != "--gpu-cluster"]

    assert there["main"] == plain["main"]
    assert typed(there["argv"]) == plain["argv"]
    assert typed(there["orig_argv"]) == plain["orig_argv"]
    path, paths = plain["path"], there["path"]
    assert isinstance(path, list)
    assert isinstance(paths, list)
    assert paths[: len(path)] == path
    _of_this_package, *of_ray = paths[len(path) :]
    assert all(each.endswith("ray/thirdparty_files") for each in of_ray)
    before, after = plain["modules"], there["modules"]
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    assert before.keys() <= after.keys()
    ours = {name for name, file in after.items() if file.startswith(f"{CLUSTERS}/")}
    assert ours == {"pytest_gpu_cluster"}
