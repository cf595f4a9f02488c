"""Plugins of others: `pytest` and `pytest --gpu-cluster` must agree, or the page says how not.

    python -m tests.plugins.run [PLUGIN ...] [--environment FOLDER] [--keep]

Each row of rows.toml is a small project that is run both ways with one plugin loaded. Writes
plugins.json, and docs/plugins.md from it; rows of plugins that are not named stay as they are.
Exits 1 when a row differs and has no note.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.compared import Outcome, differences, end_cluster, read_cases, read_counts
from tests.layered import make_layer
from tests.plugins.page import Result, save
from tests.plugins.rows import Row, read_rows

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
REQUIREMENTS = HERE / "requirements.txt"
MACHINES = (10, 11, 12)  # exit codes of infrastructure, environment and capacity
IGNORED = (
    ".gpu-cluster",
    ".pytest_cache",
    "__pycache__",
    ".git",
    "test-results",
    ".mypy_cache",
    ".ruff_cache",
)
# Version and entry points of each distribution, asked of the environment that has them.
ASK = """
import json
from importlib.metadata import distributions
print(json.dumps({
    found.metadata["Name"].lower().replace("_", "-"): [
        found.version, [entry.name for entry in found.entry_points if entry.group == "pytest11"]
    ] for found in distributions()
}))
"""


@dataclass(frozen=True, kw_only=True)
class Plugins:
    """The environment that the rows run in."""

    python: Path
    found: Mapping[str, tuple[str, Sequence[str]]]  # version and entry points of a distribution

    @classmethod
    def make(cls, folder: Path) -> Plugins:
        """Return the environment in `folder`, which is made of requirements.txt if it is not."""
        stamp = folder / "requirements.txt"
        wanted = REQUIREMENTS.read_text()
        python = folder.absolute() / "bin" / "python"
        if not stamp.exists() or stamp.read_text() != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            make_layer(folder, "-c", str(ROOT / "constraints.txt"), "-r", str(REQUIREMENTS))
            stamp.write_text(wanted)
        answer = subprocess.run([str(python), "-c", ASK], capture_output=True, check=True)
        return cls(python=python, found=json.loads(answer.stdout))

    def loading(self, row: Row) -> list[str]:
        """Return the options that load the plugins of a row, and ours."""
        names = [name for plugin in (row.plugin, *row.also) for name in self.found[plugin][1]]
        return [part for name in ("gpu_cluster", *names) for part in ("-p", name)]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One side of a row."""

    outcome: Outcome
    output: str
    written: Counter[str]  # names of the files that the run has made or changed


def run_row(plugins: Plugins, row: Row, home: Path, *options: str) -> Run:
    """Run one side of a row below `home`, in a project of its own."""
    project = home / "project"
    for name, text in row.contents().items():
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if row.git:
        subprocess.run(["git", "init", "-q", "."], cwd=project, check=True)
    if row.before is not None:
        start(plugins, row, row.before, project, *options)
    earlier = files(project)
    begun = time.monotonic()
    process = start(plugins, row, row.args, project, "--junitxml=../junit.xml", *options)
    now = files(project)
    output = process.stdout + process.stderr
    return Run(
        outcome=Outcome(
            exit_code=process.returncode,
            cases=read_cases(home / "junit.xml"),
            counts=read_counts(process.stdout),
            seconds=time.monotonic() - begun,
            tail=output[-3000:],
        ),
        output=output,
        written=Counter(normal(name) for name in now if now[name] != earlier.get(name)),
    )


def start(
    plugins: Plugins, row: Row, args: str, project: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    hidden = ("PYTEST", "CI", "COV", "GITHUB", "BUILD")
    base = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    environ = {
        **base,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "GPU_CLUSTER_STORE": str(project.parents[2] / "store"),
        "GPU_CLUSTER_IDLE_MINUTES": "10",
        "GPU_CLUSTER_SIMULATED_GPUS": "1",
        "GPU_CLUSTER_PASS_ENV": "PYTEST_*,CI,ROW_*," + ",".join(row.env),
        "ROW_ARGS": args,
        "COLUMNS": "100",
        **row.env,
    }
    command = [str(plugins.python), "-m", "pytest", *plugins.loading(row), *shlex.split(args)]
    # pytest warns of a plugin that is loaded by a name that a module has too, such as `html`.
    command += ["-W", "ignore:Module already imported"]
    return subprocess.run(
        [*command, *options],
        cwd=project,
        env=environ,
        text=True,
        capture_output=True,
        timeout=180,
        check=False,
    )


def files(project: Path) -> dict[str, bytes]:
    """Return the contents of a project's files, but of caches and of our own."""
    return {
        str(path.relative_to(project)): path.read_bytes()
        for path in project.rglob("*")
        if path.is_file() and not set(path.relative_to(project).parts) & set(IGNORED)
    }


def normal(name: str) -> str:
    """Return a file's name without what differs between any two runs.

    >>> normal("allure/0a1b2c3d-77aa-result.json")
    'allure/*-result.json'
    """
    return re.sub(r"\b[0-9a-f]{8,}(-[0-9a-f]{4,})*\b|\d{5,}(_\d+)*", "*", name)


def judge(row: Row, plain: Run, remote: Run) -> tuple[str, str]:
    """Return the verdict on a row, and how it came to it."""
    refusal = re.search(r"^ERROR: (.*--gpu-cluster.*)$", remote.output, re.MULTILINE)
    if refusal and remote.outcome.exit_code == 4 != plain.outcome.exit_code:
        return "refused", refusal[1]
    lines = [line.partition("; it said")[0] for line in differences(plain.outcome, remote.outcome)]
    lines = [*lines[:3], f"{len(lines) - 3} more"] if len(lines) > 4 else lines
    if row.shows and not re.search(row.shows, plain.output):
        lines.append(f"plain pytest shows no `{row.shows}`")
    elif row.shows and not re.search(row.shows, remote.output):
        lines.append(f"its output has no `{row.shows}`")
    more = remote.written - plain.written
    if more:
        lines.append(f"it also writes {', '.join(sorted(more))}")
    if lines:
        return "differs", "; ".join(lines)
    if missing := plain.written - remote.written:
        return "same, files stay on the cluster", named(missing)
    return ("same, files home" if plain.written else "same"), ""


def named(names: Iterable[str]) -> str:
    """Return the names of files; of many in one folder, their number.

    >>> named(["a/1", "a/2", "a/3", "a/4", "b"])
    '4 files in a, b'
    """
    folders: dict[str, list[str]] = {}
    for name in sorted(names):
        folders.setdefault(name.partition("/")[0], []).append(name)
    parts = (
        f"{len(inside)} files in {folder}" if len(inside) > 3 else ", ".join(inside)
        for folder, inside in folders.items()
    )
    return ", ".join(parts)


def compare(plugins: Plugins, rows: Sequence[Row], scratch: Path, *, keep: bool) -> list[Result]:
    """Run all rows both ways on one warm cluster; print a line for each."""
    results = []
    try:
        for number, row in enumerate(rows):
            home = scratch / f"{number:03}"
            plain = run_row(plugins, row, home / "plain")
            remote = run_row(plugins, row, home / "remote", "--gpu-cluster")
            if remote.outcome.exit_code in MACHINES:  # once more: it says nothing of the plugin
                remote = run_row(plugins, row, home / "again", "--gpu-cluster")
            if keep:
                for side, run in (("plain", plain), ("remote", remote)):
                    (home / f"{side}.txt").write_text(run.output)
            verdict, how = judge(row, plain, remote)
            version = plugins.found[row.plugin][0]
            results.append(Result(row=row.name, version=version, verdict=verdict, how=how))
            print(f"{home.name} {row.name} {row.args}: {verdict} {how}", flush=True)
    finally:
        end_cluster(plugins.python, {**os.environ, "GPU_CLUSTER_STORE": str(scratch / "store")})
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the plugins; 1 when one differs and its row has no note."""
    parser = argparse.ArgumentParser(
        description="compare pytest with pytest --gpu-cluster under other people's plugins"
    )
    parser.add_argument("names", nargs="*", help="plugins; default: all")
    parser.add_argument(
        "--environment", type=Path, default=ROOT / ".venv-plugins", help="where they are installed"
    )
    parser.add_argument("--keep", action="store_true", help="keep the projects and their output")
    arguments = parser.parse_args(argv)
    every = read_rows()
    rows = [row for row in every if not arguments.names or row.plugin in arguments.names]
    unknown = set(arguments.names) - {row.plugin for row in rows}
    if unknown:
        parser.error(f"rows.toml has no row of {', '.join(sorted(unknown))}")
    plugins = Plugins.make(arguments.environment)
    scratch = Path(tempfile.mkdtemp(prefix="gpu-cluster-plugins-"))
    try:
        results = compare(plugins, rows, scratch, keep=arguments.keep)
    finally:
        if arguments.keep:
            print(f"kept {scratch}")
        else:
            shutil.rmtree(scratch, ignore_errors=True)
    save(results, every)
    noted = {row.name for row in rows if row.note}
    silent = [each for each in results if each.verdict == "differs" and each.row not in noted]
    for each in silent:
        print(f"{each.row} differs and has no note: {each.how}")
    return 1 if silent else 0


if __name__ == "__main__":
    sys.exit(main())
