"""Hand coverage that was measured on the cluster to pytest-cov, with the paths of this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest


def write_coverage(
    config: pytest.Config, parts: Iterable[bytes], map_path: Callable[[str], str]
) -> None:
    """Write each data file as `.coverage.gpu-cluster.N`, where pytest-cov combines them.

    `parts` are SQLite data files of coverage.py. `map_path` maps a path of the cluster to one of
    this machine. Does nothing without pytest-cov.
    """
    plugin = config.pluginmanager.get_plugin("_cov")
    controller = getattr(plugin, "cov_controller", None)
    if controller is None:
        return
    from coverage import CoverageData

    # pytest-cov does so where tests run in other processes: nothing is imported in this one.
    controller.cov._warn_no_data = controller.cov._warn_unimported_source = False
    target = Path(controller.cov.config.data_file)
    for number, part in enumerate(parts):
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, "remote")
            path.write_bytes(part)
            remote = CoverageData(basename=str(path))
            remote.read()
            local = CoverageData(basename=f"{target}.gpu-cluster.{number}")
            local.update(remote, map_path=map_path)
            local.close()
            remote.close()
