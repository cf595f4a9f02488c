"""The facts of the local pytest that the remote one follows."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from _pytest._io import TerminalWriter
from _pytest.config import create_terminal_writer

from pytest_gpu_cluster.contract.request import PytestFacts

CACHES = ("lastfailed", "nodeids", "stepwise")  # of pytest's own plugins


def local_facts(config: pytest.Config, tree: Path) -> PytestFacts:
    """Return plugins, colour, columns, cache, seed and import path, resolved on this machine.

    `tree` is the directory that is sent.
    """
    option, manager = config.option, config.pluginmanager
    with_terminal = hasattr(option, "color")  # not with -p no:terminal
    writer = create_terminal_writer(config, sys.stdout) if with_terminal else TerminalWriter()
    cache = getattr(config, "cache", None)
    seed = getattr(option, "randomly_seed", None)
    inside = [path for path in sys.path if Path(path or ".").resolve().is_relative_to(tree)]
    return PytestFacts(
        plugins=tuple(name for name, plugin in manager.list_name_plugin() if plugin is not None),
        program=os.path.basename(sys.argv[0]),
        sys_path=tuple(
            str(Path(path or ".").resolve()) for path in inside if not path.startswith(sys.prefix)
        ),
        color="yes" if writer.hasmarkup else "no",
        columns=writer.fullwidth,
        inipath=str(config.inipath or ""),
        seed=seed if isinstance(seed, int) else None,
        cache={name: cache.get(f"cache/{name}", None) for name in CACHES}
        if cache is not None
        else {},
    )
