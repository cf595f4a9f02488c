"""Makes a forked process the place in which the user's pytest runs: environment, imports, arguments, options."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_gpu_cluster.contract.codec import PathMap
from pytest_gpu_cluster.fixtures import SPEC

# Options that write files or draw conclusions: the client does both. Name on the command line, dest, and the neutral value.
OUTPUTS: dict[str, Any] = {
    "xmlpath": None,
    "htmlpath": None,
    "report_log": None,
    "json_report": False,
    "json_report_file": None,
    "pastebin": None,
    "cov_report": {},
    "cov_fail_under": None,
    "store_durations": False,
    "max_warnings": None,
    "debug": None,
}
# What chose the tests has chosen by the time a worker is told what to run.
SELECTION: dict[str, Any] = {
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
VALUED = ("--gpu-profile", "--gpu-keep", "--gpu-keep-on-failure", "--gpu-budget", "--gpu-attach")
FLAGS = ("--gpu-cluster", "--gpu-plan", "--gpu-detach")
XDIST_VALUED = (
    "--maxprocesses",
    "--max-worker-restart",
    "--dist",
    "--tx",
    "--px",
    "--rsyncdir",
    "--rsyncignore",
    "--testrunuid",
    "--maxschedchunk",
)
XDIST_FLAGS = ("--looponfail", "--loadscope-reorder", "--no-loadscope-reorder")
XDIST_INI = ("rsyncdirs", "rsyncignore", "looponfailroots")


def environment(spec: Mapping[str, Any]) -> None:
    """Set the process's environment, directory and import path as the client's were, in the shipped tree's place."""
    os.environ.clear()
    os.environ.update(spec["env"])
    os.environ["PYTEST_XDIST_WORKER"] = spec["worker"]
    os.environ["PYTEST_XDIST_WORKER_COUNT"] = str(spec["workers"])
    os.environ["PYTEST_XDIST_TESTRUNUID"] = spec["testrun"]
    os.environ["COLUMNS"] = str(spec["columns"])
    scratch = Path(spec["scratch"])
    for name in ("cache", "artifacts"):
        (scratch / name).mkdir(parents=True, exist_ok=True)
    os.environ["COVERAGE_FILE"] = str(scratch / f"coverage.{spec['worker']}")
    Path(spec["cwd"]).mkdir(parents=True, exist_ok=True)  # it may lie beside the tree
    os.chdir(spec["cwd"])
    imports(PathMap([(spec["origin"], spec["root"])]), spec)


def imports(here: PathMap, spec: Mapping[str, Any]) -> None:
    """Whatever pointed into the client's tree points into the shipped one: sys.path, editable installs, PYTHONPATH.

    `spec["sys_path"]` are directories of the tree that only the client's sys.path had, `python -m pytest` puts one there.
    """

    def relocated(path: str) -> str:
        """Its place in the shipped tree, if it was shipped: a virtual environment inside the client's tree was not."""
        there = here.text(path)
        return there if os.path.exists(there) else path

    exported = [
        relocated(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path
    ]
    exported += [relocated(path) for path in sys.path if relocated(path) != path]
    for mapping in _editable_mappings():
        for name, place in list(mapping.items()):
            mapping[name] = (
                [relocated(path) for path in place]
                if isinstance(place, list)
                else relocated(str(place))
            )
            if mapping[name] != place and isinstance(place, str):
                exported.append(str(Path(mapping[name]).parent))
    first = [relocated(path) for path in spec.get("sys_path", ())]
    sys.path[:] = list(dict.fromkeys([*first, *exported, *(relocated(path) for path in sys.path)]))
    if exported:
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(exported))
    sys.path_importer_cache.clear()


def _editable_mappings() -> Iterator[dict[str, Any]]:
    """The tables of setuptools' editable finders, from package name to place or, for namespaces, to places."""
    for finder in sys.meta_path:
        module = sys.modules.get(getattr(finder, "__module__", ""))
        if "__editable__" in getattr(module, "__name__", ""):
            yield from (
                table
                for name in ("MAPPING", "NAMESPACES")
                if isinstance(table := getattr(module, name, None), dict)
            )


def write_cache(spec: Mapping[str, Any]) -> None:
    """The client's cache, as a private copy."""
    import json

    for name, value in spec["cache"].items():
        if value is not None:
            path = Path(spec["scratch"], "cache", "v", "cache", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(value))


def arguments(spec: Mapping[str, Any]) -> list[str]:
    """The command line for pytest here: what was typed, in this tree, behind what makes it a worker."""
    here = PathMap([(spec["origin"], spec["root"])])
    scratch = spec["scratch"]
    ours = [
        "-p",
        "no:xdist",
        "-p",
        "no:xdist.looponfail",
        "-p",
        "no:gpu_cluster",
        f"--rootdir={spec['root']}",
        "-o",
        f"cache_dir={scratch}/cache",
    ]
    return [*ours, *_allowed([here.text(arg) for arg in spec["args"]])]


def _allowed(args: Sequence[str]) -> Iterator[str]:
    """Arguments without those that would load xdist or leave pytest without its terminal reporter."""
    refused = ("no:terminal", "xdist", "xdist.plugin", "xdist.looponfail")
    waiting = iter(args)
    for arg in waiting:
        if arg == "-p":
            name = next(waiting, "")
            if name not in refused:
                yield from (arg, name)
        elif arg == "-o":
            setting = next(waiting, "")
            if not setting.startswith("cache_dir="):
                yield from (arg, setting)
        elif not (arg.startswith("-p") and arg[2:] in refused) and not arg.startswith(
            ("-ocache_dir=", "--override-ini=cache_dir=")
        ):
            yield arg


class Options:
    """An early plugin: options that are the client's are understood and do nothing, in addopts too."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.spec = spec
        self.asked: dict[str, Any] = {}  # what was typed of OUTPUTS and SELECTION

    @pytest.hookimpl(tryfirst=True)
    def pytest_addoption(self, parser: pytest.Parser) -> None:
        ours = parser.getgroup("gpu-cluster")
        for option in FLAGS:
            ours.addoption(option, action="store_true")
        for option in VALUED:
            ours.addoption(option)
        xdist = parser.getgroup("xdist")
        for option in XDIST_VALUED:
            xdist.addoption(option, action="append")
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
        """pytest-cov reads its options here and starts. A conftest may implement xdist's hooks; nobody calls them."""
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
        config.stash[SPEC] = self.spec
        option = config.option
        neutral = {**OUTPUTS, **(SELECTION if self.spec["role"] == "run" else {})}
        for name, value in neutral.items():
            if hasattr(option, name):
                self.asked[name] = getattr(option, name)
                setattr(option, name, value)
        option.basetemp = f"{self.spec['scratch']}/basetemp"
        option.color = self.spec["color"]
        if self.spec.get("seed") is not None and hasattr(option, "randomly_seed"):
            option.randomly_seed = self.spec["seed"]
        if hasattr(option, "log_file") and (option.log_file or config.getini("log_file")):
            option.log_file = f"{self.spec['scratch']}/log-file"
