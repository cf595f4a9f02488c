"""Planted secrets: one run that leaks each in a way of its own, and nobody who can read one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.acceptance.project import Project, Ran
from tests.hosts import FakeBitbucket
from tests.security.plants import (
    BROKEN,
    CONFTEST,
    ENVIRON,
    OPTIONS,
    PLANTS,
    TESTS,
    WAYS,
    WAYS_MODULE,
    Plant,
)

SETTINGS = """
pass-env = ["P_*", "ANY_*", "PLANTED", "CI"]
secret-env = ["ANY_*"]
outputs = ["results/**"]
simulated-gpus = 2
"""
ARGS = (
    *("-rA", "--showlocals", "--continue-on-collection-errors", "-v"),
    f"--api-token={OPTIONS[0].value}",
    *("--db-password", OPTIONS[1].value),
)
PLANTED = " ".join(f"{each.name}={each.way}" for each in PLANTS if each.way in WAYS)
EVERY = (*PLANTS, *OPTIONS)
TOLD = {**ENVIRON, "PLANTED": PLANTED, "P_COMMON_PASSWORD": "postgres"}


@dataclass(frozen=True)
class Planted:
    """The run, and everything of it that somebody may read."""

    project: Project
    ran: Ran
    texts: Mapping[str, str]  # by where they are

    def holders(self, plant: Plant) -> list[str]:
        """Return where a secret is found."""
        needle = re.compile("|".join(plant.needles))
        return [
            f"{place}: …{text[max(0, match.start() - 30) : match.end() + 30]!r}…"
            for place, text in self.texts.items()
            if (match := needle.search(text))
        ]


def read_all(project: Project, ran: Ran, host: FakeBitbucket) -> dict[str, str]:
    """Return every text of a run: of store, terminal, files and requests, names too."""
    store = project.opened()
    keys = [key for key in store.list("") if not key.startswith("clusters/")]
    texts = {f"store {key}": f"{key}\n{project.get(key).decode('latin-1')}" for key in keys}
    for path in project.root.rglob("*"):
        if path.is_file() and ".pytest_cache" not in path.parts:
            name = path.relative_to(project.root).as_posix()
            texts[f"file {name}"] = f"{name}\n{path.read_bytes().decode('latin-1')}"
    requests = [f"{each.method} {each.path}\n{json.dumps(each.body)}" for each in host.requests]
    report = project.command("report", ran.session)
    logs = project.command("logs", ran.session)
    return texts | {
        "terminal": ran.out,
        "requests": "\n".join(requests),
        "gpu-cluster report": report.stdout + report.stderr,
        "gpu-cluster logs": logs.stdout + logs.stderr,
        "history": project.get("history/durations.json").decode(),
    }


def write_tests(project: Project) -> None:
    project.settings(SETTINGS)
    project.write(conftest=CONFTEST, ways=WAYS_MODULE, test_plants=TESTS, test_broken=BROKEN)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planted]:
    home = tmp_path_factory.mktemp("planted")
    (home / "store").mkdir(mode=0o700)
    project = Project(home / "project", str(home / "store"))
    write_tests(project)
    cache = project.root / ".pytest_cache" / "v" / "cache"
    cache.mkdir(parents=True)
    failed = {f"gone.py::t[{ENVIRON['P_CACHED_TOKEN']}]": True}
    (cache / "lastfailed").write_text(json.dumps(failed))
    with FakeBitbucket(token="bb-0123456789") as host:
        told = host.environ(token=True, clone_dir=str(project.root))
        ran = project.run(*ARGS, **TOLD, **told, GPU_CLUSTER_IDLE_MINUTES="5")
        yield Planted(project, ran, read_all(project, ran, host))
    assert project.command("down").returncode == 0


@pytest.mark.parametrize("plant", EVERY, ids=lambda plant: f"{plant.name}-{plant.way}")
def test_a_planted_secret_is_found_nowhere(planted: Planted, plant: Plant) -> None:
    """The store is a team's, the terminal a CI host's, the JUnit file anybody's."""
    assert planted.holders(plant) == []


def test_the_secrets_were_told_and_the_results_are_those_of_plain_pytest(planted: Planted) -> None:
    """A run that tells nothing would hide every secret; plain pytest shows what these tests say."""
    ran, results = planted.ran, planted.ran.cases()
    beside = Project(planted.project.root.parent / "plain", planted.project.store)
    write_tests(beside)
    plain = beside.plain(*ARGS, "--deselect=test_plants.py::test_crash", **TOLD)
    spoken = plain.out + plain.junit.read_text()
    raw = [each.name for each in EVERY if any(re.search(n, spoken) for n in each.needles)]

    assert len(EVERY) >= 61
    assert len(raw) >= 61, sorted({each.name for each in EVERY} - set(raw))
    assert "***" in ran.out
    assert [name for name in results if "***" in name] == [
        "test_id[***]",
        "test_id[***-2]",
        "test_in_class[***]",
    ]
    outcomes = {name: outcome for name, outcome in results.items() if name != "test_crash"}
    assert sorted(outcomes.values()) == sorted(plain.cases().values())
    assert (results["test_id[***]"], results["test_id[***-2]"]) == ("passed", "failure")


def test_what_is_held_back_or_not_masked_is_said(planted: Planted) -> None:
    """A file that does not come home is missed; a password that shows has to be changed."""
    said = " ".join(line for line in planted.ran.out.splitlines() if "gpu-cluster:" in line)

    for name in ("ARTIFACT", "ARTIFACT_NAME", "ARTIFACT_FOLDER", "OUTPUT", "OUTPUT_NAME"):
        assert f"held back: it holds the value of P_{name}_TOKEN" in said, name
    assert "not masked: P_COMMON_PASSWORD, whose value is a common word" in said
    artifacts = [key for key in planted.texts if "/artifacts/" in key]
    assert [key.rpartition("/")[2] for key in artifacts] == ["good.txt"]
    assert (planted.project.root / "results" / "good.txt").read_text() == "harmless"
    assert not (planted.project.root / "results" / "bad.txt").exists()


def test_a_test_with_a_masked_id_runs_again(planted: Planted) -> None:
    """--lf knows it by its masked id; passing over it would call it mended."""
    again = planted.project.run(
        "--lf", "test_plants.py", *ARGS, **TOLD, GPU_CLUSTER_IDLE_MINUTES="5"
    )
    names = again.cases()

    assert names["test_id[***-2]"] == "failure"
    assert "test_in_class[***]" in names
    assert "test_properties" not in names


def test_a_value_that_cannot_be_masked_is_refused_before_anything_starts(
    planted: Planted, tmp_path: Path
) -> None:
    """`secret-env` is a promise; the refusal names the variable and not its value."""
    project = Project(tmp_path / "project", str(tmp_path / "store"))
    project.settings(SETTINGS)

    ran = project.run(ANY_PIN="712", ANY_OTHER="passed")

    assert ran.code == 4
    assert "secret-env: the value of ANY_OTHER is a word of every report; ANY_PIN has" in ran.out
    assert "712" not in ran.out
    assert not (tmp_path / "store").exists()
