"""Command line, `[tool.gpu-cluster]` and environment variables -> `Settings` and `RunRequest`.

The only reader of configuration. Precedence: `GPU_CLUSTER_…` variable, profile table, base table, default.
Every refusal is a RequestError that names the place, the value given and what was expected.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_gpu_cluster.contract.errors import RequestError
from pytest_gpu_cluster.contract.model import SUITE_NAME, RunRequest, Settings

if TYPE_CHECKING:
    import pytest

PROVIDERS = ("local",)
_SCHEMES = ("file", "s3", "gs", "az")
_ENV = "GPU_CLUSTER_"
_INTERNAL = "GPU_CLUSTER_INTERNAL_"
_OWN_FLAGS = ("--gpu-cluster", "--gpu-plan")
_OWN_VALUES = ("--gpu-profile",)
_NEVER_PASSED = (
    "PYTEST_CURRENT_TEST",
    "PYTEST_VERSION",
    "PYTEST_XDIST_*",
    "GPU_CLUSTER_INTERNAL_*",
)


def add_options(parser: pytest.Parser) -> None:
    """Declare this plugin's options. A plain flag: with an optional value it would swallow the path after it."""
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
    """The arguments without this plugin's own options; everything after `--` is kept.

    >>> strip_own_options(["--gpu-cluster", "-x", "--gpu-profile", "ci", "--gpu-profile=ci", "tests"])
    ('-x', 'tests')
    """
    kept: list[str] = []
    rest = iter(args)
    for arg in rest:
        if arg == "--":
            return (*kept, arg, *rest)
        if arg in _OWN_VALUES:
            next(rest, None)
        elif arg not in _OWN_FLAGS and arg.partition("=")[0] not in _OWN_VALUES:
            kept.append(arg)
    return tuple(kept)


def build_request(config: pytest.Config, environ: Mapping[str, str]) -> RunRequest:
    """What this pytest invocation asks for. Raises RequestError."""
    _refuse_debugger(config)
    invocation_dir = config.invocation_params.dir
    typed = _expand_files([os.fspath(arg) for arg in config.invocation_params.args], invocation_dir)
    settings = read_settings(
        config.rootpath / "pyproject.toml", profile=config.getoption("gpu_profile"), environ=environ
    )
    return RunRequest(
        settings=settings,
        root=config.rootpath,
        invocation_dir=invocation_dir,
        pytest_args=strip_own_options(typed),
        passed_env=_passed(environ, settings.pass_env),
        ci=_is_ci(environ),
    )


def read_settings(pyproject: Path, *, profile: str | None, environ: Mapping[str, str]) -> Settings:
    """The settings that hold for the project of `pyproject` (which need not exist). Raises RequestError.

    `local_python` comes back as the absolute path of an executable. Under CI a cluster does not stay warm (`idle_minutes`
    is 0 there unless GPU_CLUSTER_IDLE_MINUTES is set), and results are written to `test-results`.
    """
    values = _read_pyproject(pyproject, profile)
    if _is_ci(environ):
        values["idle-minutes"] = 0.0
        values.setdefault("results-dir", "test-results")
    values |= _read_environ(environ)
    values["local.python"] = _interpreter(
        str(values.get("local.python", "")), pyproject.parent, environ
    )
    fields: dict[str, Any] = {re.sub("[-.]", "_", key): value for key, value in values.items()}
    return Settings(**fields)


# --- the keys -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Key:
    """How one key is read. `read` raises ValueError for what is not `expected`; its text is a hint, or empty."""

    expected: str
    read: Callable[[object], object]
    from_text: Callable[[str], object] = str


def _number_from_text(text: str) -> object:
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _whole(least: int) -> _Key:
    def read(value: object) -> int:
        if type(value) is not int or value < least:  # a bool is an int to isinstance
            raise ValueError
        return value

    return _Key(expected=f"a whole number, {least} or more", read=read, from_text=_number_from_text)


def _number(*, zero: bool) -> _Key:
    def read(value: object) -> float:
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not math.isfinite(value)
        ):
            raise ValueError
        if value < 0 or (value == 0 and not zero):
            raise ValueError
        return float(value)

    return _Key(
        expected=f"a number, {'0 or more' if zero else 'more than 0'}",
        read=read,
        from_text=_number_from_text,
    )


def _flag() -> _Key:
    def read(value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    texts: dict[str, object] = {"true": True, "1": True, "false": False, "0": False}
    return _Key(
        expected="true or false", read=read, from_text=lambda text: texts.get(text.lower(), text)
    )


def _strings(expected: str, *, relative: bool = False) -> _Key:
    def read(value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            raise ValueError
        if relative and any(
            item.startswith(("/", "~")) or ".." in item.split("/") for item in value
        ):
            raise ValueError
        return tuple(value)

    def from_text(text: str) -> object:
        return [item.strip() for item in text.split(",") if item.strip()]

    return _Key(expected=expected, read=read, from_text=from_text)


def _read_gpus_per_node(value: object) -> object:
    return value if value == "auto" else _whole(0).read(value)


def _read_default_gpus(value: object) -> object:
    number = _number(zero=True).read(value)
    assert isinstance(number, float)
    if number > 1 and not number.is_integer():
        raise ValueError
    return number


def _read_isolation(value: object) -> object:
    if value != "worker":
        raise ValueError
    return value


def _read_text(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError
    return value


def _one_of(*words: str) -> _Key:
    def read(value: object) -> object:
        if not isinstance(value, str) or value not in words:
            raise ValueError(_near(value, words) if isinstance(value, str) else "")
        return value

    return _Key(expected=" or ".join(f'"{word}"' for word in words), read=read)


def _read_suite(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch(SUITE_NAME, value):
        raise ValueError
    return value


def _read_public_url(value: object) -> object:
    if not isinstance(value, str) or (
        value and not re.fullmatch(r"https?://[^\s?#@{}\"<>]+", value)
    ):
        raise ValueError
    return value


def _read_results_dir(value: object) -> object:
    if not isinstance(value, str) or value.startswith(("/", "~")) or ".." in value.split("/"):
        raise ValueError
    return value


def _read_provider(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError
    if value not in PROVIDERS and not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*", value):
        raise ValueError(_near(value, PROVIDERS))
    return value


def _read_store(value: object) -> object:
    if not isinstance(value, str) or not value:
        raise ValueError
    scheme, is_url, rest = value.partition("://")
    if is_url and scheme not in _SCHEMES:
        raise ValueError(_near(scheme, _SCHEMES))
    if is_url and (not rest.startswith("/") if scheme == "file" else not rest.partition("/")[0]):
        raise ValueError
    return value


_GLOBS = "a list of globs relative to pytest's rootdir and inside it"
_KEYS: dict[str, _Key] = {
    "provider": _Key(
        expected=" or ".join(f'"{name}"' for name in PROVIDERS) + ' or "package.module:Class"',
        read=_read_provider,
    ),
    "store": _Key(
        expected="a path, file:///path, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix",
        read=_read_store,
    ),
    "nodes": _whole(1),
    "gpus-per-node": _Key(
        expected='"auto" or a whole number, 0 or more',
        read=_read_gpus_per_node,
        from_text=_number_from_text,
    ),
    "simulated-gpus": _whole(0),
    "default-gpus": _Key(
        expected="a number from 0 to 1, or a whole number",
        read=_read_default_gpus,
        from_text=_number_from_text,
    ),
    "isolation": _Key(expected='"worker"', read=_read_isolation),
    "test-timeout-s": _number(zero=False),
    "max-minutes": _number(zero=False),
    "idle-minutes": _number(zero=True),
    "infra-retries": _whole(0),
    "require-gpu": _flag(),
    "pass-env": _strings("a list of names or patterns of environment variables"),
    "include": _strings(_GLOBS, relative=True),
    "exclude": _strings(_GLOBS, relative=True),
    "allow-files": _strings(_GLOBS, relative=True),
    "keep-sessions": _whole(1),
    "publish": _flag(),
    "suite": _Key(
        expected="a name of letters, digits, '.', '_' and '-', at most 80", read=_read_suite
    ),
    "public-url": _Key(
        expected="an http:// or https:// URL without a query", read=_read_public_url
    ),
    "comment": _one_of("always", "changes", "failures", "off"),
    "check-run": _flag(),
    "results-dir": _Key(
        expected="a directory relative to pytest's rootdir and inside it", read=_read_results_dir
    ),
    "junit-strict": _flag(),
    "local.python": _Key(expected="the path of a Python interpreter", read=_read_text),
}
_VARIABLES = {_ENV + re.sub("[-.]", "_", key).upper(): key for key in _KEYS}


# --- the sources ----------------------------------------------------------------------------------------------------


def _read_pyproject(pyproject: Path, profile: str | None) -> dict[str, object]:
    """Every table is checked, the profiles too that are not asked for: a typo for CI shows on the laptop."""
    import tomllib  # 1.5 ms that a pytest without this plugin's flag need not pay

    try:
        document = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    except FileNotFoundError:
        document = {}
    except (OSError, ValueError) as error:
        raise RequestError(
            f"{pyproject} cannot be read: {error}", remedy=f"mend {pyproject}"
        ) from error
    tool = _table(document.get("tool", {}), "tool", pyproject)
    base = dict(_table(tool.get("gpu-cluster", {}), "tool.gpu-cluster", pyproject))
    tables = _table(base.pop("profile", {}), "tool.gpu-cluster.profile", pyproject)
    values = _read_table(base, "tool.gpu-cluster", pyproject)
    profiles = {
        name: _read_table(_table(table, path, pyproject), path, pyproject)
        for name, table in tables.items()
        for path in (f"tool.gpu-cluster.profile.{name}",)
    }
    if profile is None:
        return values
    if profile not in profiles:
        known = ", ".join(sorted(profiles)) or "none"
        raise RequestError(
            f"--gpu-profile {profile}: {pyproject} has no [tool.gpu-cluster.profile.{profile}]; it has: {known}",
            remedy=_near(profile, profiles) or f"add the table, or name one of: {known}",
        )
    return values | profiles[profile]


def _read_table(table: Mapping[str, object], path: str, file: Path) -> dict[str, object]:
    flat = {key: value for key, value in table.items() if key != "local"}
    if "local" in table:
        local = _table(table["local"], f"{path}.local", file)
        flat |= {f"local.{key}": value for key, value in local.items()}
    for key in flat:
        if key not in _KEYS:
            raise RequestError(
                f"{path}.{key} in {file} is not a setting",
                remedy=_near(key, _KEYS) or f"remove it; the settings are: {', '.join(_KEYS)}",
            )
    return {key: _read_value(key, value, f"{path}.{key} in {file}") for key, value in flat.items()}


def _read_environ(environ: Mapping[str, str]) -> dict[str, object]:
    """The overrides. A variable that is empty counts as not set, as CI systems export undefined ones."""
    values: dict[str, object] = {}
    for name in sorted(environ):
        if not name.startswith(_ENV) or name.startswith(_INTERNAL):
            continue
        if name not in _VARIABLES:
            raise RequestError(
                f"the environment variable {name} is not a setting",
                remedy=_near(name, _VARIABLES)
                or f"unset it; the variables are: {', '.join(_VARIABLES)}",
            )
        if text := environ[name].strip():
            key = _VARIABLES[name]
            values[key] = _read_value(
                key, _KEYS[key].from_text(text), f"the environment variable {name}"
            )
    return values


def _read_value(key: str, value: object, place: str) -> object:
    try:
        return _KEYS[key].read(value)
    except ValueError as hint:
        raise RequestError(
            f"{place} is {value!r}; expected {_KEYS[key].expected}",
            remedy=str(hint) or "correct it, or leave it out for the default",
        ) from None


def _table(value: object, path: str, file: Path) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise RequestError(
            f"{path} in {file} is {value!r}; expected a table",
            remedy=f"write [{path}] above its keys",
        )
    return value


def _near(name: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches  # only when something is wrong

    return "".join(f"did you mean {match}?" for match in get_close_matches(name, list(known), n=1))


# --- the rest of a request ------------------------------------------------------------------------------------------


def _is_ci(environ: Mapping[str, str]) -> bool:
    return environ.get("CI", "").lower() not in ("", "false", "0")


def _interpreter(python: str, root: Path, environ: Mapping[str, str]) -> str:
    """An absolute path, links kept: a virtual environment is known by the link it is started through."""
    if not python:
        return sys.executable
    path = root / python
    if "/" not in python and not path.is_file():
        path = Path(shutil.which(python, path=environ.get("PATH")) or path)
    if not path.is_file() or not os.access(path, os.X_OK):
        raise RequestError(
            f"tool.gpu-cluster.local.python is {python!r}; {path} is not an executable file",
            remedy="give a path relative to pytest's rootdir, or leave it out for the interpreter that runs pytest",
        )
    return str(path.absolute())


def _passed(environ: Mapping[str, str], patterns: Sequence[str]) -> dict[str, str]:
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
    """`@file` arguments as pytest expands them, an argument a line: our own options may stand in the file."""
    expanded: list[str] = []
    for arg in args:
        if arg.startswith("@"):
            expanded += _expand_files((base / arg[1:]).read_text().splitlines(), base)
        else:
            expanded.append(arg)
    return expanded


def _refuse_debugger(config: pytest.Config) -> None:
    for option, name in (("usepdb", "--pdb"), ("trace", "--trace")):
        if config.getoption(option, default=False):
            raise RequestError(
                f"{name} needs a terminal beside the test, which a cluster does not have",
                remedy=f"run that test here: the same command without --gpu-cluster (and its node id), with {name}",
            )
