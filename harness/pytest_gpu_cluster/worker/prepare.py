"""Prepare a forked process for the user's pytest: environment, imports, options."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import pytest
from _pytest.assertion.rewrite import AssertionRewritingHook

from pytest_gpu_cluster.contract.codec import PathMap
from pytest_gpu_cluster.contract.specs import TEMPORARY, Role, WorkerSpec
from pytest_gpu_cluster.contract.store import STORE_CREDENTIALS
from pytest_gpu_cluster.fixtures import SPEC
from pytest_gpu_cluster.worker import benchmarks
from pytest_gpu_cluster.worker.task_entry import NODE

# The beginnings of variables that no test process inherits. Importing Ray sets PYTHONBREAKPOINT.
HIDDEN = ("RAY_", "GPU_CLUSTER_", "OMP_", *STORE_CREDENTIALS, "PYTHON")
REFRESH_S = 30.0
# Options that write files or draw conclusions, by their `dest`, with the value that switches each
# off: the client does both.
OUTPUTS: Mapping[str, object] = {
    "xmlpath": None,
    "htmlpath": None,
    "report_log": None,
    "json_report": False,
    "json_report_file": None,
    "pastebin": None,
    "cov_report": {},
    "cov_fail_under": None,
    "store_durations": False,
    "benchmark_json": None,
    "benchmark_save": None,
    "benchmark_autosave": False,
    "benchmark_compare": [],
    "benchmark_compare_fail": None,
    "benchmark_histogram": [],
    "max_warnings": None,
    "debug": None,
    "clean_alluredir": False,
}
# Options that select tests, likewise: the tests are selected when a process is told to run some.
SELECTION: Mapping[str, object] = {
    "keyword": "",
    "markexpr": "",
    "deselect": None,
    "lf": False,
    "failedfirst": False,
    "newfirst": False,
    "stepwise": False,
    "stepwise_skip": False,
    "stepwise_reset": False,
    "collectonly": False,
    "pyargs": False,
}
# Options of this package's plugin, which is not loaded here, and of pytest-xdist likewise.
FLAGS = ("--gpu-cluster", "--gpu-plan")
VALUED = ("--gpu-profile",)
XDIST_FLAGS = ("--looponfail", "--loadscope-reorder", "--no-loadscope-reorder")
XDIST_VALUED = (
    *("--maxprocesses", "--max-worker-restart", "--tx", "--px"),
    *("--rsyncdir", "--rsyncignore", "--testrunuid", "--maxschedchunk"),
)
XDIST_VARIABLES = (
    *("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"),
    "PYTEST_XDIST_TESTRUNUID",
)
XDIST_MARK = "xdist_group(name): tests of one name run in one process, in their order"
XDIST_INI = ("rsyncdirs", "rsyncignore", "looponfailroots")
OWN_PLUGIN = "pytest_gpu_cluster.plugin"
# Names that `-p` must not have: they load xdist, or leave pytest without its terminal reporter.
REFUSED_PLUGINS = ("no:terminal", "xdist", "xdist.plugin", "xdist.looponfail")


def node_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what a test has of the environment that its node's fork server has."""
    plain = {name: value for name, value in environ.items() if not name.startswith(HIDDEN)}
    node = environ.get(NODE)
    return plain | {"TMPDIR": f"{node}/{TEMPORARY}"} if node else plain


def set_environment(spec: WorkerSpec) -> None:
    """Set the process's environment, directory and import path as the client's were.

    The shipped tree stands in the place of the client's.
    """
    variables = {**node_variables(os.environ), **spec.env}
    os.environ.clear()
    os.environ.update(variables)
    values = (spec.worker, str(spec.workers), spec.testrun)
    os.environ.update(zip(XDIST_VARIABLES, values, strict=True))
    os.environ["COLUMNS"] = str(spec.client.columns)
    scratch = Path(spec.scratch)
    for name in ("cache", "artifacts"):
        (scratch / name).mkdir(parents=True, exist_ok=True)
    os.environ["COVERAGE_FILE"] = str(scratch / f"coverage.{spec.worker}")
    Path(spec.tree.cwd).mkdir(parents=True, exist_ok=True)  # it may lie beside the tree
    os.chdir(spec.tree.cwd)
    relocate_imports(path_map(spec), spec.client.sys_path)


def refresh_repository(spec: WorkerSpec) -> None:
    """Have git take note of the times of the files, where a `.git` came with the tree.

    Until then it would take each for changed. Another process on the node may be doing the same.
    """
    root = Path(spec.tree.root)
    above = (Path(spec.tree.rootdir), *Path(spec.tree.rootdir).parents)
    inside = (path for path in above if path.is_relative_to(root))
    top = next((path for path in inside if (path / ".git").is_dir()), None)
    deadline = time.monotonic() + REFRESH_S
    while top is not None and time.monotonic() < deadline:
        command = ["git", "update-index", "-q", "--refresh"]
        try:
            done = subprocess.run(command, cwd=top, check=False, capture_output=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            return  # without git, nobody asks it
        if b"index.lock" not in done.stderr:
            return
        time.sleep(0.05)


def hide_own_plugin() -> None:
    """Make this package's plugin one without hooks: addopts or PYTEST_PLUGINS may name it.

    Its docstring keeps pytest from a warning that it was imported before it could be rewritten.
    """
    sys.modules[OWN_PLUGIN] = ModuleType(OWN_PLUGIN, "PYTEST_DONT_REWRITE")


def accept_preloaded() -> None:
    """Let plugins be modules that the fork server has imported, as `-p asyncio` or `-p rich`.

    pytest would warn that it cannot rewrite them, where plain pytest has nothing to warn of.
    """
    preloaded = dict.fromkeys(sys.modules, Path())
    begin = AssertionRewritingHook.__init__

    def begin_accepting(hook: AssertionRewritingHook, config: pytest.Config) -> None:
        begin(hook, config)
        hook._rewritten_names.update(preloaded)  # private: no warning for a name of these

    AssertionRewritingHook.__init__ = begin_accepting  # type: ignore[assignment, method-assign]


def path_map(spec: WorkerSpec) -> PathMap:
    """Return the map from the client's tree to the shipped one."""
    return PathMap([(spec.tree.origin, spec.tree.root)])


def relocate_imports(paths: PathMap, client_only: Sequence[str]) -> None:
    """Point sys.path, editable installs and PYTHONPATH into the shipped tree.

    `client_only` are directories of the tree that only the client's sys.path had, as `python -m
    pytest` puts one there.
    """

    def relocated(path: str) -> str:
        """Return the path in the shipped tree, if it was shipped: a virtual environment was not."""
        remote = paths.text(path)
        return remote if os.path.exists(remote) else path

    exported = [
        relocated(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path
    ]
    exported += [relocated(path) for path in sys.path if relocated(path) != path]
    for mapping in _editable_mappings():
        for name, place in list(mapping.items()):
            if isinstance(place, list):
                mapping[name] = [relocated(path) for path in place]
                continue
            mapping[name] = remote = relocated(str(place))
            if remote != str(place):
                exported.append(str(Path(remote).parent))
    first = [relocated(path) for path in client_only]
    sys.path[:] = list(dict.fromkeys([*first, *exported, *(relocated(path) for path in sys.path)]))
    if exported:
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(exported))
    sys.path_importer_cache.clear()


def _editable_mappings() -> Iterator[dict[str, str | list[str]]]:
    """Yield the tables of setuptools' editable finders.

    A table leads from a package to its place or, for a namespace, to places.
    """
    for finder in sys.meta_path:
        module = sys.modules.get(getattr(finder, "__module__", ""))
        if "__editable__" in getattr(module, "__name__", ""):
            yield from (
                table
                for name in ("MAPPING", "NAMESPACES")
                if isinstance(table := getattr(module, name, None), dict)
            )


def write_cache(spec: WorkerSpec) -> None:
    """Write the client's cache, as a private copy."""
    for name, value in spec.client.cache.items():
        if value is not None:
            path = Path(spec.scratch, "cache", "v", "cache", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(value))


def pytest_arguments(spec: WorkerSpec) -> list[str]:
    """Return the command line for pytest: what was typed, with the paths of the shipped tree.

    Before it stand the arguments that make pytest a test process.
    """
    paths = path_map(spec)
    inipath = paths.text(spec.client.inipath)
    return [
        *("-p", "no:xdist", "-p", "no:xdist.looponfail", "-p", "no:gpu_cluster"),
        f"--rootdir={spec.tree.rootdir}",
        *("-o", f"cache_dir={spec.scratch}/cache"),
        # Else pytest looks beside any argument that is a file, and the client has written some.
        *(("-c", inipath) if Path(inipath).is_file() else ()),
        *_allowed([paths.text(argument) for argument in spec.args]),
    ]


def _allowed(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the arguments without refused plugins and without another cache directory."""
    waiting = iter(arguments)
    for argument in waiting:
        if argument == "-p":
            name = next(waiting, "")
            if name not in REFUSED_PLUGINS:
                yield from (argument, name)
        elif argument == "-o":
            setting = next(waiting, "")
            if not setting.startswith("cache_dir="):
                yield from (argument, setting)
        elif not (
            argument.startswith("-p") and argument[2:] in REFUSED_PLUGINS
        ) and not argument.startswith(("-ocache_dir=", "--override-ini=cache_dir=")):
            yield argument


class Options:
    """An early plugin: the client's options are understood and do nothing, in addopts too."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self.typed: dict[str, object] = {}  # the user's values of OUTPUTS and SELECTION

    @pytest.hookimpl(tryfirst=True)
    def pytest_addoption(self, parser: pytest.Parser) -> None:
        group = parser.getgroup("gpu-cluster")
        for option in FLAGS:
            group.addoption(option, action="store_true")
        for option in VALUED:
            group.addoption(option)
        xdist = parser.getgroup("xdist")
        for option in XDIST_VALUED:
            xdist.addoption(option, action="append")
        xdist.addoption("--dist", default="no")  # its own default: plugins compare with it
        for option in XDIST_FLAGS:
            xdist.addoption(option, action="store_true", dest=option.strip("-").replace("-", "_"))
        xdist._addoption("-n", "--numprocesses")  # private: lower-case letters are pytest's own
        xdist._addoption("-d", "--distload", action="store_true")
        xdist._addoption("-f", dest="looponfail_short", action="store_true")
        for name in XDIST_INI:
            parser.addini(name, "pytest-xdist's; it does not run here", type="linelist")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_load_initial_conftests(
        self, early_config: pytest.Config, parser: pytest.Parser
    ) -> Iterator[None]:
        """Change options before pytest-cov reads them here and starts.

        A conftest may implement xdist's hooks, which nobody calls.
        """
        try:
            early_config.getini("cache_dir")
        except ValueError:  # with -p no:cacheprovider
            parser.addini("cache_dir", "nobody asks for it")
        with contextlib.suppress(ImportError):
            early_config.pluginmanager.add_hookspecs(importlib.import_module("xdist.newhooks"))
        for name in ("cov_report", "cov_fail_under"):
            if hasattr(early_config.known_args_namespace, name):
                setattr(early_config.known_args_namespace, name, OUTPUTS[name])
        return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        spec, option = self.spec, config.option
        benchmarks.enable(config)
        config.stash[SPEC] = spec
        if "xdist" in sys.modules:  # installed, and kept from registering its mark
            config.addinivalue_line("markers", XDIST_MARK)
        neutral = {**OUTPUTS, **(SELECTION if spec.role is Role.RUN else {})}
        for name, value in neutral.items():
            if hasattr(option, name):
                self.typed[name] = getattr(option, name)
                setattr(option, name, value)
        coverage = config.pluginmanager.get_plugin("_cov")
        if coverage is not None and hasattr(coverage, "options"):
            coverage.options.cov_fail_under = None  # which it has read from coverage's settings
        option.basetemp = f"{spec.scratch}/basetemp"
        option.color = spec.client.color
        if spec.client.seed is not None and hasattr(option, "randomly_seed"):
            option.randomly_seed = spec.client.seed
        if hasattr(option, "log_file") and (option.log_file or config.getini("log_file")):
            option.log_file = f"{spec.scratch}/log-file"
