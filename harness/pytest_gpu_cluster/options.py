"""Command line, `[tool.gpu-cluster]` and environment variables -> `Settings` and `RunRequest`.

The only reader of configuration. Precedence: `GPU_CLUSTER_…` variable, profile table, base table,
default. A refusal is a RequestError that names the place, the value and what was expected.
"""

from __future__ import annotations

import glob
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_gpu_cluster.contract.errors import RequestError
from pytest_gpu_cluster.contract.settings import (
    GIT_VARIABLES,
    GROUP_OF,
    GROUPS,
    RunRequest,
    Settings,
)
from pytest_gpu_cluster.project import (
    PYPROJECT,
    ProjectDirectory,
    command,
    project_of_run,
    read_toml,
    sent_tree,
    unread_note,
)
from pytest_gpu_cluster.settings_keys import PREFIX, Key, suggest

if TYPE_CHECKING:
    import pytest

    from pytest_gpu_cluster.settings_schema import KeyTable

_INTERNAL = "GPU_CLUSTER_INTERNAL_"
_FLAGS = ("--gpu-cluster", "--gpu-plan")
_OPTIONS_WITH_VALUE = ("--gpu-profile",)
_NEVER_PASSED = (
    "PYTEST_CURRENT_TEST",
    "PYTEST_VERSION",
    "PYTEST_XDIST_*",
    "GPU_CLUSTER_INTERNAL_*",
)


def add_options(parser: pytest.Parser) -> None:
    """Declare this plugin's options.

    `--gpu-cluster` is a plain flag: with an optional value it would swallow the path after it.
    """
    group = parser.getgroup("gpu-cluster", "tests on a GPU cluster")
    group.addoption(
        "--gpu-cluster", action="store_true", help="run the selected tests on a GPU cluster"
    )
    group.addoption(
        "--gpu-profile",
        metavar="NAME",
        help="put [tool.gpu-cluster.profile.NAME] over [tool.gpu-cluster]",
    )
    group.addoption(
        "--gpu-plan", action="store_true", help="show what would be launched, and spend nothing"
    )


def strip_own_options(args: Iterable[str]) -> tuple[str, ...]:
    """Return the arguments without this plugin's own options; those after `--` all stay.

    >>> strip_own_options(["--gpu-cluster", "-x", "--gpu-profile", "ci", "--gpu-profile=ci", "a"])
    ('-x', 'a')
    """
    forwarded: list[str] = []
    rest = iter(args)
    for arg in rest:
        if arg == "--":
            return (*forwarded, arg, *rest)
        if arg in _OPTIONS_WITH_VALUE:
            next(rest, None)
        elif arg not in _FLAGS and arg.partition("=")[0] not in _OPTIONS_WITH_VALUE:
            forwarded.append(arg)
    return tuple(forwarded)


def build_request(config: pytest.Config, environ: Mapping[str, str]) -> RunRequest:
    """Return the request that this pytest invocation makes. Raises RequestError."""
    # Not needed without --gpu-cluster.
    from pytest_gpu_cluster.contract.secret_values import refuse_unmaskable

    _refuse_debugger(config)
    invocation_dir, rootdir = config.invocation_params.dir, config.rootpath
    args = _expand_files([os.fspath(arg) for arg in config.invocation_params.args], invocation_dir)
    project = project_directory(config)
    settings = read_settings(
        project.root / PYPROJECT, profile=config.getoption("gpu_profile"), environ=environ
    )
    passed = passed_variables(environ, settings.pass_env)
    refuse_unmaskable(passed, settings.secret_env)
    tree = sent_tree(rootdir, project, tree=settings.tree, files=settings.files)
    written = option_globs(vars(config.option), root=tree.top, cwd=invocation_dir)
    return RunRequest(
        settings=settings,
        project=project.root,
        root=rootdir,
        tree=tree,
        invocation_dir=invocation_dir,
        option_outputs=written,
        pytest_args=strip_own_options(args),
        passed_env=passed,
        ci=_is_ci(environ),
        newest_first=bool(config.getoption("newfirst", default=False)),
        settings_note=unread_note(project, invocation_dir),
        command=command(project.root, invocation_dir),
    )


def project_directory(config: pytest.Config) -> ProjectDirectory:
    """Return the project of this pytest invocation. Raises RequestError."""
    here = config.invocation_params.dir
    named = [here / str(arg).partition("::")[0] for arg in config.option.file_or_dir]
    return project_of_run(config.rootpath, here, named)


def results_root(config: pytest.Config) -> Path:
    """Return where results go though the settings may be unreadable."""
    try:
        return project_directory(config).root
    except RequestError:
        return config.rootpath


def read_settings(pyproject: Path, *, profile: str | None, environ: Mapping[str, str]) -> Settings:
    """Return the settings of the project of `pyproject`, which need not exist. Raises RequestError.

    Under CI a cluster does not stay warm (`idle_minutes` is 0 there unless GPU_CLUSTER_IDLE_MINUTES
    is set), and results are written to `test-results`.
    """
    from pytest_gpu_cluster.settings_schema import KeyTable  # not needed without --gpu-cluster

    keys = KeyTable()
    values = _read_pyproject(pyproject, profile, keys)
    if _is_ci(environ):
        values["idle-minutes"] = 0.0
        values.setdefault("results-dir", "test-results")
    provider = environ.get("GPU_CLUSTER_PROVIDER") or values.get("provider")
    values |= _read_environ(environ, keys, provider=provider)
    provider_settings: dict[str, dict[str, object]] = {}
    for name in [name for name in values if "." in name]:
        value, resolve = values.pop(name), keys[name].resolve
        table_name, _, key = name.rpartition(".")
        table = provider_settings.setdefault(table_name, {})
        table[key] = value if resolve is None else resolve(value, pyproject.parent, environ)
    return _settings(values, provider_settings)


def _settings(
    values: Mapping[str, object], provider_settings: Mapping[str, Mapping[str, object]]
) -> Settings:
    """Return the settings with these values by key: each in its group, or in none."""
    fields: dict[str, Any] = {name: {} for name in GROUPS}  # Any: each key has checked its value
    for key, value in values.items():
        field = key.replace("-", "_")
        group_fields = fields[GROUP_OF[field]] if field in GROUP_OF else fields
        group_fields[field] = value
    fields |= {name: group(**fields[name]) for name, group in GROUPS.items()}
    return Settings(**fields, provider_settings=provider_settings)


# --- the sources ---------------------------------------------------------------------------------


def _read_pyproject(pyproject: Path, profile: str | None, keys: KeyTable) -> dict[str, object]:
    """Return the values of the base table and the profile.

    Every profile is checked, so that a typo for CI shows on the laptop.
    """
    tool = _table(read_toml(pyproject).get("tool", {}), "tool", pyproject)
    base = dict(_table(tool.get("gpu-cluster", {}), "tool.gpu-cluster", pyproject))
    tables = _table(base.pop("profile", {}), "tool.gpu-cluster.profile", pyproject)
    values = _read_table(base, "tool.gpu-cluster", pyproject, keys)
    profiles: dict[str, dict[str, object]] = {}
    for name, table in tables.items():
        path = f"tool.gpu-cluster.profile.{name}"
        profiles[name] = _read_table(_table(table, path, pyproject), path, pyproject, keys)
    if profile is None:
        return values
    if profile not in profiles:
        names = ", ".join(sorted(profiles))
        raise RequestError(
            f"--gpu-profile {profile}: {pyproject} has no [tool.gpu-cluster.profile.{profile}];"
            f" it has: {names or 'no profile'}",
            remedy=suggest(profile, profiles)
            or f"add the table, or {f'name one of: {names}' if names else 'leave the option out'}",
        )
    return values | profiles[profile]


def _read_table(
    table: Mapping[str, object], path: str, file: Path, keys: KeyTable
) -> dict[str, object]:
    """Return the checked values; those of a provider's table by `<provider>.<key>`."""
    flat: dict[str, object] = {}
    for name, value in table.items():
        if name not in keys and keys.add_if_provider(name):
            provider_table = _table(value, f"{path}.{name}", file)
            flat |= {f"{name}.{key}": inner for key, inner in provider_table.items()}
        else:
            flat[name] = value
    for key in flat:
        if key not in keys:
            raise RequestError(
                f"{path}.{key} in {file} is not a setting",
                remedy=suggest(key, keys) or f"remove it; the settings are: {', '.join(keys)}",
            )
    return {
        key: _read_value(keys[key], value, f"{path}.{key} in {file}") for key, value in flat.items()
    }


def _read_environ(
    environ: Mapping[str, str], keys: KeyTable, *, provider: object
) -> dict[str, object]:
    """Return the overrides by key. An empty variable is not set: CI exports undefined ones so."""
    values: dict[str, object] = {}
    variables = keys.variables
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name.startswith(_INTERNAL) or name in GIT_VARIABLES:
            continue
        if name not in variables and keys.add_if_provider(provider):
            variables = keys.variables
        if name not in variables:
            raise RequestError(
                f"the environment variable {name} is not a setting",
                remedy=suggest(name, variables)
                or f"unset it; the variables are: {', '.join(variables)}",
            )
        if text := environ[name].strip():
            key = keys[variables[name]]
            values[variables[name]] = _read_value(
                key, key.from_text(text), f"the environment variable {name}"
            )
    return values


def _read_value(key: Key, value: object, place: str) -> object:
    try:
        return key.read(value)
    except ValueError as hint:
        raise RequestError(
            f"{place} is {value!r}; expected {key.expected}",
            remedy=str(hint) or "correct it, or leave it out for the default",
        ) from None


def _table(value: object, path: str, file: Path) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise RequestError(
            f"{path} in {file} is {value!r}; expected a table",
            remedy=f"write [{path}] above its keys",
        )
    return value


# --- the rest of a request -----------------------------------------------------------------------


def _is_ci(environ: Mapping[str, str]) -> bool:
    return environ.get("CI", "").lower() not in ("", "false", "0")


def passed_variables(environ: Mapping[str, str], patterns: Sequence[str]) -> dict[str, str]:
    """Return the variables that reach the tests, by the patterns of `pass-env`."""
    passed = {
        name: value
        for name, value in environ.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
        and not any(fnmatchcase(name, pattern) for pattern in _NEVER_PASSED)
    }
    if "PYTEST_ADDOPTS" in passed:
        passed["PYTEST_ADDOPTS"] = shlex.join(
            strip_own_options(shlex.split(passed["PYTEST_ADDOPTS"]))
        )
    return passed


def _expand_files(args: Iterable[str], base: Path) -> list[str]:
    """Expand `@file` arguments as pytest does, an argument a line: a file may hold our options."""
    expanded: list[str] = []
    for arg in args:
        if arg.startswith("@"):
            expanded += _expand_files((base / arg[1:]).read_text().splitlines(), base)
        else:
            expanded.append(arg)
    return expanded


def option_globs(values: Mapping[str, object], *, root: Path, cwd: Path) -> tuple[str, ...]:
    """Return what the given options of known plugins write in the tree.

    `values` are those of argparse by `dest`. Raises RequestError for a path outside the tree, whose
    files could not come home.
    """
    from pytest_gpu_cluster.contract.output_options import expanded, given

    written: list[str] = []
    for option in given(values):
        for path in expanded(option, values):
            pattern = _anchored(path, option.name, root, cwd) if path.startswith("./") else path
            written.append(pattern)
    return tuple(dict.fromkeys(written))


def _anchored(path: str, option: str, root: Path, cwd: Path) -> str:
    """Return the glob, relative to the tree, of a path that is relative to the directory `cwd`."""
    folder, star, rest = path.removeprefix("./").partition("*")
    place = Path(os.path.normpath(cwd / folder))
    tops = [top for top in (root, Path(os.path.realpath(root))) if place.is_relative_to(top)]
    if not tops:
        raise RequestError(
            f"{option} writes to {place}, which is outside the tree {root}: it would stay there on"
            " the cluster",
            remedy=f"name a place inside {root}",
        )
    inside = place.relative_to(tops[0]).as_posix()
    fixed = "" if inside == "." else glob.escape(inside) + "/" * folder.endswith("/")
    return f"./{fixed}{star}{rest}"


def _refuse_debugger(config: pytest.Config) -> None:
    for option, name in (("usepdb", "--pdb"), ("trace", "--trace")):
        if config.getoption(option, default=False):
            raise RequestError(
                f"{name} needs a terminal beside the test, which a cluster does not have",
                remedy="run that test here: the same command without --gpu-cluster"
                f" (and its node id), with {name}",
            )
