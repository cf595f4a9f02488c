"""Who may import whom: the drawing of the architecture, held by a test."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from tests.conftest import RunPython

# First pattern that fits a module names what it may import of harness; model and errors are everybody's.
# `harness` itself (version, public names) is free too: it imports nothing that is not.
ARROWS: dict[str, tuple[str, ...]] = {
    "model": (),
    "errors": (),
    "thin": (),
    "plugin": ("options", "session", "thin", "replay", "progress", "combine", "reporting", "publish", "remote.fixtures", "remote.wire"),
    "combine": (),
    "cli": (
        *("options", "environment", "clusters", "store", "journal", "providers", "remote.gpu"),
        *("reporting", "report", "report.*", "publish"),
    ),
    "session": (
        *("bundle", "environment", "clusters", "store", "journal", "providers"),
        "remote.wire",
    ),
    "reporting": ("clusters", "journal", "publish", "publish.*", "report", "report.*", "store", "remote.masking", "remote.wire"),
    "clusters": ("environment", "journal", "providers", "store"),
    "journal": ("store", "remote.wire"),
    "bundle": ("store", "worktree", "credentials", "remote.unpack"),  # both sides of one format
    "worktree": (),
    "credentials": (),
    "environment": ("store",),
    "replay": ("rebuild", "remote.wire"),
    "rebuild": ("remote.wire",),
    "progress": ("remote.wire",),
    "options": (),
    "store": (),
    "report": ("report.*",),
    "report.*": ("report.*", "remote.wire"),
    "publish": ("publish.*",),
    "publish.*": ("publish", "publish.*", "report", "report.words"),
    "providers": (),
    # What a machine has is asked before it is planned for; which variables a store's client reads, before it is started.
    "providers.*": ("providers", "remote.gpu", "store"),
    # The quarantine: it travels with every session and knows nothing of the client.
    "remote": ("remote.*",),
    "remote.*": ("remote", "remote.*", "store", "journal"),
}
EVERYBODY = ("model", "errors")
# Never on the client: heavy, or a vendor's. A provider may import its own vendor's SDK.
HEAVY = ("ray", "torch", "boto3", "botocore", "pydantic", "rich", "numpy", "pandas", "pyarrow", "pynvml")


def module_name(path: Path, package: Path) -> str:
    """`harness/remote/wire.py` -> `remote.wire`; `harness/__init__.py` -> ``."""
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST, module: str, *, is_package: bool, known: frozenset[str]) -> Iterator[str]:
    """Absolute dotted names that a module imports, anywhere in it; `from p import m` is `p.m` if that is a module."""
    package = ["harness", *module.split(".")] if module else ["harness"]
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
                yield full if full.removeprefix("harness.") in known else base


def violations(package: Path) -> list[str]:
    """Every import in `package` that no arrow allows, as `module -> imported`, and every module without an arrow."""
    files = {module_name(path, package): path for path in sorted(package.rglob("*.py"))}
    known = frozenset(files)
    found = []
    for module, path in files.items():
        pattern = next((p for p in ARROWS if fnmatchcase(module, p)), None)
        if module and pattern is None:
            found.append(f"{module} has no row in the table")
            continue
        allowed = EVERYBODY + (ARROWS[pattern] if pattern else ())
        is_package = path.name == "__init__.py"
        for name in imported(ast.parse(path.read_text("utf-8")), module, is_package=is_package, known=known):
            ours = name.startswith("harness.")
            if ours and not any(fnmatchcase(name.removeprefix("harness."), a) for a in allowed):
                found.append(f"{module} -> {name.removeprefix('harness.')}")
            heavy = name.split(".")[0] in HEAVY
            if heavy and not module.startswith(("remote.", "providers.")):
                found.append(f"{module} -> {name} (the client stays thin)")
    return found


def lay_out(package: Path, *modules: str) -> None:
    for module in modules:
        path = package / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_the_arrows_hold(repository: Path) -> None:
    """An arrow that nobody drew is how a quarantined module ends up needing the whole client on a rented machine."""
    assert violations(repository / "harness") == []


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("remote/worker.py", "from harness.session import run", "remote.worker -> session"),
        ("remote/worker.py", "from ..session import run", "remote.worker -> session"),
        ("remote/worker.py", "from harness import session", "remote.worker -> session"),
        ("store.py", "import harness.journal", "store -> journal"),
        ("store.py", "def late():\n    from harness.journal import JournalWriter", "store -> journal"),
        ("clusters.py", "from harness.providers.local import Local", "clusters -> providers.local"),
        ("session.py", "import ray", "session -> ray (the client stays thin)"),
        ("helpers.py", "", "helpers has no row in the table"),
    ],
)
def test_a_wrong_arrow_is_named(tmp_path: Path, path: str, source: str, expected: str) -> None:
    """A check that cannot fail is worth nothing: each way of writing an import is seen."""
    package = tmp_path / "harness"
    lay_out(package, "__init__", "session", "journal", "providers/__init__", "remote/__init__")
    (package / path).write_text(source)

    assert violations(package) == [expected]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("remote/worker.py", "import ray\nfrom harness.remote import wire\nfrom harness import __version__"),
        ("clusters.py", "from harness import errors, model, providers"),
    ],
)
def test_a_drawn_arrow_is_allowed(tmp_path: Path, path: str, source: str) -> None:
    """A check that always fails would be switched off."""
    package = tmp_path / "harness"
    for name in (
        "__init__.py",
        "errors.py",
        "model.py",
        "providers/__init__.py",
        "remote/__init__.py",
        "remote/wire.py",
    ):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).touch()
    (package / path).write_text(source)

    assert violations(package) == []


NEW_MODULES = """
import json, sys
import pytest, _pytest.config, _pytest.terminal
before = set(sys.modules)
import harness.plugin
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_the_plugin_costs_nothing_where_it_is_not_asked_for(run_python: RunPython) -> None:
    """Every pytest run of an environment that has the plugin imports it, with or without the flag."""
    done = run_python("-c", NEW_MODULES)

    assert done.returncode == 0, done.stderr
    new = json.loads(done.stdout)
    assert [m for m in new if m.split(".")[0] in (*HEAVY, "obstore", "asyncio", "multiprocessing")] == []
    assert len(new) <= 15, f"{len(new)} modules: {new}"
