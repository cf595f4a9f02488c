"""Imports of the fork server, which every process forked from it then has for nothing.

Runs without this package, as a neighbour of the script `forkserver.py`: the standard library alone.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import pwd
import random
import sys
import sysconfig
from collections.abc import Iterable

PACKAGE = "pytest_gpu_cluster"
NODE_VARIABLE, TEMPORARY = "GPU_CLUSTER_INTERNAL_NODE", "t"  # as in lease.py and specs.py
_referrers: list[list[random.Random]] = []  # its items are made in the fork: they are not frozen
ENTRIES = (f"{PACKAGE}.agent.main", f"{PACKAGE}.worker.main")  # they import the rest


def import_modules(names: Iterable[str]) -> None:
    """Import each module; one that is not installed is named in the log."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as problem:
            print(f"absent {name} {problem}".replace("\n", " "), flush=True)


def import_pytest_plugins() -> None:
    """Import the environment's pytest plugins as pytest would, with their assertions rewritten.

    Each process would pay 0.1 s for it again. Only plugins from site-packages: an editable one may
    change while the cluster is warm. This package has its own way, `import_package`.
    """
    hook = None
    try:  # all private; a pytest that has it otherwise costs the time, nothing else
        from _pytest.assertion import install_importhook
        from _pytest.config import default_plugins, get_config

        for name in default_plugins:
            importlib.import_module(f"_pytest.{name}")
        config = get_config()
        hook = install_importhook(config)
        config._mark_plugins_for_rewrite(hook, False)
        installed = tuple(f"{sysconfig.get_path(name)}/" for name in ("purelib", "platlib"))
        for point in importlib.metadata.entry_points(group="pytest11"):
            top = point.module.partition(".")[0]
            spec = importlib.util.find_spec(top)
            if top != PACKAGE and spec is not None and (spec.origin or "").startswith(installed):
                importlib.import_module(point.module)
    except Exception as problem:  # noqa: BLE001
        # Whose plugin it is will say so when a session imports it.
        print(f"plugins {type(problem).__name__}: {problem}".replace("\n", " "), flush=True)
    finally:
        if hook in sys.meta_path:
            sys.meta_path.remove(hook)


def import_package(code: str) -> None:
    """Import this package, the cluster's own, from the directory `code`.

    A session's agent, its selecting process and its first worker would each pay 0.1 s for it.
    """
    sys.path.insert(0, code)
    import_modules(ENTRIES)
    sys.path.remove(code)


def be_first_to_go() -> None:
    """Let the kernel end test processes before all others when memory is short: the biggest one.

    Ray's actors, which hold reservations, have the same score and are small.
    """
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def become(user: str) -> None:
    """Make a fork a process of another user, which can open its stdout and stderr by name.

    Its variables name the user and its places: where it has no home, the directory of temporary
    files of the node. Raises KeyError, OSError.
    """
    entry = pwd.getpwnam(user)
    has_home = os.path.isdir(entry.pw_dir)
    home = entry.pw_dir if has_home else os.path.join(os.environ[NODE_VARIABLE], TEMPORARY)
    os.environ.update(HOME=home, USER=user, LOGNAME=user, XDG_CACHE_HOME=f"{home}/.cache")
    for descriptor in (1, 2):
        os.fchown(descriptor, entry.pw_uid, entry.pw_gid)
    os.initgroups(user, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


def adapt(code: str, name: str) -> None:
    """Make a fork a process of its own, which is to import from the directory `code`.

    This package stays imported where `code` holds the same: a directory's name is that of its
    content, and `name` is that of the cluster's own. Raises RuntimeError: CUDA is used.
    """
    if os.path.basename(code) != name:
        for module in [module for module in sys.modules if module.partition(".")[0] == PACKAGE]:
            del sys.modules[module]
    if (trio := sys.modules.get("trio._core._run")) is not None:
        # Hypothesis warns of a generator that nobody refers to, and does not see what is frozen.
        _referrers.append([trio._r])
    random.seed()  # forks would otherwise draw the same numbers
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()
    if (torch := sys.modules.get("torch")) is not None:
        torch.seed()
        if torch.cuda._is_in_bad_fork():
            raise RuntimeError(
                "the fork server had initialised CUDA: "
                "a preloaded module touches the GPU when imported"
            )
