"""Who may import whom: the drawing of the architecture, held by a test."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.conftest import RunPython

PACKAGE = "pytest_gpu_cluster"
# A room is a folder, or a module beside the folders. Each names the rooms (or single modules of
# one) that it may import; what
# is in one room may import each other. The package itself and `contract.errors` are everybody's.
ARROWS: dict[str, tuple[str, ...]] = {
    "plugin": ("options", "fixtures", "host", "contract"),
    "cli": (
        *("cli_lines", "options", "project", "clusters", "providers", "report_command"),
        *("artifacts_command", "doctor", "outputs", "contract"),
    ),
    "cli_lines": ("contract",),
    "artifacts_command": ("outputs", "contract"),
    "doctor": (
        *("asked", "bucket_costs", "clusters", "options", "project", "providers"),
        *("publish", "contract"),
    ),
    "bucket_costs": ("contract",),
    "report_command": ("liveness", "outputs", "report", "publish", "contract"),
    "host": ("session", "outputs", "report", "publish", "contract"),
    "session": (
        *("asked", "bundle", "clusters", "environment", "liveness", "outputs", "providers"),
        "contract",
    ),
    "outputs": ("bundle", "contract"),
    "asked": ("bundle", "providers", "contract"),
    "clusters": ("environment", "liveness", "providers", "contract"),
    "liveness": ("contract",),
    "publish": ("report", "contract"),
    "report": ("contract",),
    "bundle": ("contract",),
    "options": ("project", "settings_keys", "settings_schema", "contract"),
    "settings_schema": ("providers", "settings_keys", "contract"),
    "providers": ("environment", "settings_keys", "contract"),
    "settings_keys": (),
    "project": ("contract",),
    "environment": (),
    "fixtures": ("contract",),
    "ray_remains": ("contract",),
    # These four travel with every session and know nothing of the client.
    "contract": (),
    "node": ("contract",),
    "agent": ("node.lease", "ray_remains", "contract"),
    "worker": ("fixtures", "ray_remains", "contract"),
}
EVERYBODY = "contract.errors"
SHIPPED = ("contract", "node", "agent", "worker", "fixtures", "ray_remains")
# Never on the client: heavy, or a vendor's. A provider may import its own vendor's SDK, and so may
# what the doctor asks by hand, where it is installed.
HEAVY = (
    *("ray", "torch", "boto3", "botocore", "pydantic", "rich", "numpy"),
    *("pandas", "pyarrow", "pynvml"),
)


def modules(package: Path) -> dict[str, Path]:
    """Each module by its dotted name below the package: `worker/main.py` is `worker.main`."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(
    tree: ast.AST, module: str, *, is_package: bool, known: frozenset[str]
) -> Iterator[str]:
    """Absolute dotted names that a module imports, anywhere in it.

    `from p import m` is `p.m` if that is a module.
    """
    package = [PACKAGE, *module.split(".")] if module else [PACKAGE]
    if not is_package:
        package = package[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full.removeprefix(f"{PACKAGE}.") in known else base


def room(module: str) -> str:
    return module.partition(".")[0]


def allowance(target: str, allowed: tuple[str, ...]) -> str | None:
    """Return the entry of `allowed` that lets a module import `target`, the narrower one first."""
    return next((name for name in (target, room(target)) if name in allowed), None)


def survey(
    package: Path, arrows: Mapping[str, tuple[str, ...]]
) -> tuple[list[str], set[tuple[str, str]]]:
    """Return every wrong import as `module -> imported`, and every allowance that was used."""
    files = modules(package)
    known = frozenset(files)
    wrong: list[str] = []
    used: set[tuple[str, str]] = set()
    for module, path in files.items():
        if module and room(module) not in arrows:
            wrong.append(f"{module} has no row in the table")
            continue
        tree, is_package = ast.parse(path.read_text("utf-8")), path.name == "__init__.py"
        for name in imported(tree, module, is_package=is_package, known=known):
            target = name.removeprefix(f"{PACKAGE}.")
            if name.startswith(f"{PACKAGE}.") and room(target) != room(module):
                entry = allowance(target, arrows.get(room(module), ()))
                if entry is not None:
                    used.add((room(module), entry))
                elif target != EVERYBODY:
                    wrong.append(f"{module} -> {target}")
            if room(name) in HEAVY and room(module) not in (*SHIPPED, "providers", "bucket_costs"):
                wrong.append(f"{module} -> {name} (the client stays thin)")
    return wrong, used


def write(package: Path, files: Mapping[str, str]) -> None:
    for name, source in files.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)


def test_the_arrows_hold(repository: Path) -> None:
    """An arrow that nobody drew is how a shipped module ends up needing the whole client."""
    assert survey(repository / "harness" / PACKAGE, ARROWS)[0] == []


def test_no_arrow_is_drawn_that_nobody_uses(repository: Path) -> None:
    """A drawing that is wider than the house lets the next wrong import pass unseen."""
    _, used = survey(repository / "harness" / PACKAGE, ARROWS)

    drawn = {(name, target) for name, allowed in ARROWS.items() for target in allowed}
    assert drawn - used == set()


def test_no_arrow_leads_back() -> None:
    """Two rooms that need each other are one room with a wall in it."""
    left = {name: {room(target) for target in allowed} for name, allowed in ARROWS.items()}
    while free := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}


SKELETON = dict.fromkeys(
    (
        *("__init__.py", "session.py", "clusters.py", "contract/__init__.py"),
        *("contract/store.py", "contract/errors.py", "contract/journal.py"),
        *("providers/__init__.py", "providers/local.py", "worker/__init__.py", "worker/main.py"),
        *("node/__init__.py", "node/lease.py", "node/keeper.py", "agent/__init__.py"),
    ),
    "",
)


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("worker/main.py", f"from {PACKAGE}.session import run", "worker.main -> session"),
        ("worker/main.py", "from ..session import run", "worker.main -> session"),
        ("worker/main.py", f"from {PACKAGE} import session", "worker.main -> session"),
        ("contract/store.py", f"import {PACKAGE}.clusters", "contract.store -> clusters"),
        (
            "node/lease.py",
            f"def f():\n    from {PACKAGE}.worker import main",
            "node.lease -> worker.main",
        ),
        ("agent/loop.py", f"from {PACKAGE}.node.keeper import Keeper", "agent.loop -> node.keeper"),
        ("session.py", "import ray", "session -> ray (the client stays thin)"),
        ("helpers.py", "", "helpers has no row in the table"),
    ],
)
def test_a_wrong_arrow_is_named(tmp_path: Path, path: str, source: str, expected: str) -> None:
    """A check that cannot fail is worth nothing: each way of writing an import is seen."""
    write(tmp_path, {**SKELETON, path: source})

    assert survey(tmp_path, ARROWS)[0] == [expected]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("worker/main.py", f"import ray\nfrom {PACKAGE}.contract import store\nimport {PACKAGE}"),
        ("agent/loop.py", f"from {PACKAGE}.node.lease import Lease"),
        ("clusters.py", f"from {PACKAGE} import providers"),
        ("environment.py", f"from {PACKAGE}.contract.errors import RequestError"),
    ],
)
def test_a_drawn_arrow_is_allowed(tmp_path: Path, path: str, source: str) -> None:
    """A check that always fails would be switched off."""
    write(tmp_path, {**SKELETON, path: source})

    assert survey(tmp_path, ARROWS)[0] == []


NEW_MODULES = """
import json, sys
import pytest, _pytest.config, _pytest.terminal
before = set(sys.modules)
import pytest_gpu_cluster.plugin
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_the_plugin_costs_nothing_where_it_is_not_asked_for(run_python: RunPython) -> None:
    """Every pytest run of an environment that has the plugin imports it, flag or not."""
    done = run_python("-c", NEW_MODULES)

    assert done.returncode == 0, done.stderr
    new = json.loads(done.stdout)
    heavy = (*HEAVY, "obstore", "asyncio", "multiprocessing")
    assert [m for m in new if m.split(".")[0] in heavy] == []
    assert len(new) <= 15, f"{len(new)} modules: {new}"
