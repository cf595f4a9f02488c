"""Seven repositories as teams have them: pytest and `pytest --gpu-cluster` agree, three times.

The second run is warm, and the third knows how long each test took.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.acceptance.project import Project, Ran
from tests.layered import make_layer
from tests.working_trees import write

OUTPUT = re.compile(r"\w+-[0-9]\.txt")  # of a run, beside its project
OWN = {".gpu-cluster", ".pytest_cache", ".hypothesis", "__pycache__", "junit.xml", "store"}


@dataclass(frozen=True, kw_only=True)
class Template:
    """A repository, and how its tests are run. `settings` are keys of [tool.gpu-cluster]."""

    files: Mapping[str, str]
    args: tuple[str, ...] = ()
    directory: str = "."  # in which pytest is started
    settings: str = ""
    editable: bool = False  # it is installed with `pip install -e`
    environ: Mapping[str, str] = field(default_factory=dict)


SRC_LAYOUT = Template(
    files={
        "pyproject.toml": """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "acme-vision"
version = "1.0"

[project.scripts]
acme-answer = "acme_vision:main"

[tool.hatch.build.targets.wheel]
packages = ["src/acme_vision"]
""",
        "src/acme_vision/__init__.py": "ANSWER = 42\n\ndef main():\n    print(ANSWER)\n",
        "tests/test_vision.py": """
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import acme_vision

def test_the_module_is_that_of_the_tree():
    assert Path(acme_vision.__file__).is_relative_to(Path(__file__).parents[1])

def test_a_child_has_it_too():
    code = "import acme_vision; print(acme_vision.__file__)"
    where = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert where.strip() == acme_vision.__file__

def test_its_metadata():
    assert metadata.version("acme-vision") == "1.0"

def test_is_not_there_yet():
    assert acme_vision.ANSWER == 43
""",
    },
    editable=True,
)

MONOREPO = Template(
    directory="services/ml",
    settings='tree = "git"',
    files={
        "libs/common/src/acme_common/__init__.py": "def double(x):\n    return 2 * x\n",
        "shared_data/points.csv": "1,2",
        "services/api/test_api.py": "def test_api():\n    assert 0, 'another service'\n",
        "services/ml/tests/pytest.ini": (
            "[pytest]\npythonpath = ../../../libs/common/src ../src\nmarkers = fast\n"
        ),
        "services/ml/src/acme_ml/__init__.py": "from acme_common import double\n",
        "services/ml/tests/test_ml.py": """
from pathlib import Path

import pytest

import acme_ml

@pytest.mark.fast
def test_library():
    assert acme_ml.double(2) == 4

def test_data(pytestconfig):
    assert Path("../../shared_data/points.csv").read_text() == "1,2"
    assert pytestconfig.rootpath.name == "tests"

def test_wrong():
    assert acme_ml.double(2) == 5
""",
    },
    args=("tests", "--strict-markers"),
)

OUR_NAMES = Template(
    files={
        "harness/__init__.py": "NAME = 'theirs'\n",
        "harness/plugin.py": "def evaluate(x):\n    return x > 0\n",
        "gpu_tests/__init__.py": "",
        "gpu_tests/test_theirs.py": """
import harness
from harness import plugin

def test_theirs():
    assert harness.NAME == "theirs"
    assert plugin.evaluate(1)
""",
        # Names of modules of ours, which must not be found at the top.
        "worker.py": "WHOSE = 'the user'\n",
        "fixtures.py": "WHOSE = 'the user'\n",
        "test_names.py": """
import importlib.util

import fixtures
import worker

def test_names():
    assert fixtures.WHOSE == worker.WHOSE == "the user"
    for name in ("agent", "node", "lease", "ray_start", "preload", "task_entry", "contract"):
        assert importlib.util.find_spec(name) is None

def test_wrong():
    assert not plugin_of_theirs()

def plugin_of_theirs():
    from harness.plugin import evaluate
    return evaluate(1)
""",
    },
)

ORDER = Template(
    files={
        "test_order.py": """
import pytest

class TestShop:
    bought = []

    def test_buys(self):
        self.bought.append("gpu")

    def test_pays(self):
        assert self.bought == ["gpu"]

    def test_is_refused(self):
        assert self.bought == []

    def test_leaves(self):
        assert self.bought == ["gpu"]

@pytest.fixture(scope="module")
def steps():
    return []

@pytest.mark.parametrize("n", range(4))
def test_step(steps, n):
    assert len(steps) == n
    steps.append(n)
""",
        "test_other.py": """
import time

def test_slow():
    time.sleep(0.3)

def test_quick():
    pass
""",
    },
)

RAY_USERS = Template(
    files={
        "conftest.py": """
import numpy

LABEL = "from the conftest"

def doubled(batch):
    return {"id": batch["id"] * 2}
""",
        "data/offset.txt": "1",
        "test_data.py": """
from pathlib import Path

import pytest

from conftest import LABEL, doubled

@pytest.mark.ray
def test_batches():
    import ray
    ray.init()
    rows = ray.data.range(8).map_batches(doubled).map(with_offset).take_all()
    assert sorted(row["id"] for row in rows) == [2 * n + 1 for n in range(8)]

def with_offset(row):
    return {"id": row["id"] + int(Path("data/offset.txt").read_text())}

@pytest.mark.ray
def test_trainer(tmp_path):
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.data_parallel_trainer import DataParallelTrainer
    ray.init()
    trainer = DataParallelTrainer(
        train,
        train_loop_config={"out": str(tmp_path)},
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(storage_path=str(tmp_path / "runs"), name="run"),
    )
    trainer.fit()
    assert (tmp_path / "rank").read_text() == "0 from the conftest"

def train(config):
    from ray import train
    rank = train.get_context().get_world_rank()
    Path(config["out"], "rank").write_text(f"{rank} {LABEL}")
""",
    },
    # Of the Ray that plain pytest starts: without, it leaves a token in the home directory.
    environ={"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)},
)

FILES = Template(
    files={
        "acme.py": "def half(x):\n    return x / 2\n\ndef unused():\n    return 0\n",
        "test_files.py": """
import pytest

from acme import half

@pytest.mark.parametrize("n", [1, 2])
def test_snapshot(snapshot, n):
    assert {"half": half(n)} == snapshot

def test_speed(benchmark):
    benchmark(half, 3)

def test_wrong():
    assert half(1) == 1
""",
    },
    args=(
        *("-p", "syrupy", "-p", "benchmark", "-p", "allure_pytest"),
        *("--snapshot-update", "--alluredir=allure", "--clean-alluredir", "--cov=acme"),
        *("--cov-report=xml:coverage.xml", "--cov-fail-under=90"),
        *("--benchmark-json=bench.json", "--benchmark-min-rounds=1", "--benchmark-max-time=0.01"),
    ),
)

MANY = Template(
    files={
        **{f"data/{n // 500}/{n}.txt": str(n) for n in range(50_000)},
        "test_many.py": """
from pathlib import Path

def test_reads_one_and_writes_one():
    path = Path("data/7/3500.txt")
    assert path.read_text() == "3500"
    path.write_text("other")

def test_wrong():
    assert len(list(Path("data").rglob("*.txt"))) == 0
""",
    },
    settings="test-timeout-s = 120",
)

SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "template",
    [
        pytest.param(SRC_LAYOUT, id="src layout, editable", marks=SLOW),
        pytest.param(MONOREPO, id="monorepo"),
        pytest.param(OUR_NAMES, id="a harness and gpu_tests of its own"),
        pytest.param(ORDER, id="order and scopes"),
        pytest.param(RAY_USERS, id="Ray Data and Ray Train", marks=SLOW),
        pytest.param(FILES, id="snapshots, benchmarks, allure, coverage"),
        pytest.param(MANY, id="50,000 files", marks=SLOW),
    ],
)
def test_a_repository_runs_as_with_plain_pytest(
    template: Template, tmp_path: Path, shared_store: str
) -> None:
    """Code, outcomes and files: whatever differs, a team gives up in its first week."""
    plainly = repository(template, tmp_path / "plain", shared_store)
    far = repository(template, tmp_path / "far", shared_store)

    plain = plainly.plain(*template.args, **template.environ)
    expected = plain.code, outcomes(plain)
    files = sorted(left(tmp_path / "plain"))

    assert expected[0] == 1, plain.out
    for _ in range(3):
        ran = far.run(*template.args)
        assert (ran.code, outcomes(ran)) == expected, ran.out
        assert sorted(left(tmp_path / "far")) == files, ran.out


def repository(template: Template, top: Path, store: str) -> Project:
    """Write a repository, and return the project in it from which pytest is started."""
    write(top, {**template.files, ".git/HEAD": "ref: refs/heads/main\n"})
    (top / ".git").joinpath("objects").mkdir()
    (top / ".git").joinpath("refs").mkdir()
    settings = top / "pyproject.toml"
    before = settings.read_text() if settings.exists() else ""
    project = Project(top / template.directory, store)
    settings.write_text(f"{before}\n[tool.gpu-cluster]\n{template.settings}\n")
    if project.root != top:
        (project.root / "pyproject.toml").unlink()
    if template.editable:
        python = str(make_layer(top.parent / f"{top.name}-venv", "-e", str(top)))
        project.pytest = (python, "-m", "pytest")
    return project


def outcomes(ran: Ran) -> dict[str, str]:
    return dict(sorted(ran.cases().items()))


def left(top: Path) -> Iterator[str]:
    """The files of a repository, with the names that differ between two runs made equal."""
    for path in sorted(top.rglob("*")):
        name = path.relative_to(top)
        if path.is_dir() or OWN & {*name.parts} or name.parts[0] == ".git":
            continue
        if OUTPUT.fullmatch(path.name):
            continue
        if name.parts[0] == "allure":
            if not name.name.endswith("-result.json"):
                continue  # of fixtures, which each process sets up
            name = Path("allure", json.loads(path.read_bytes())["fullName"])
        content = f" {path.read_text()}" if path.suffix in (".ambr", ".csv") else ""
        yield f"{name}{content}"
