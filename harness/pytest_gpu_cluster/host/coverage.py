"""Hand coverage that was measured on the cluster to pytest-cov, with the paths of this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pytest_gpu_cluster.contract.errors import UnreadableRecordError


def write_coverage(
    config: pytest.Config, parts: Mapping[str, bytes], map_path: Callable[[str], str]
) -> None:
    """Write each data file as `.coverage.gpu-cluster.N`, where pytest-cov combines them.

    `parts` are SQLite data files of coverage.py by their keys in the store. `map_path` maps a path
    of the cluster to one of this machine. Does nothing without pytest-cov. Raises StoreError for
    what is no such file.
    """
    plugin = config.pluginmanager.get_plugin("_cov")
    controller = getattr(plugin, "cov_controller", None)
    if controller is None:
        return
    from coverage import CoverageData

    # pytest-cov does so where tests run in other processes: nothing is imported in this one.
    controller.cov._warn_no_data = controller.cov._warn_unimported_source = False
    target = Path(controller.cov.config.data_file)
    for number, (key, part) in enumerate(parts.items()):
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, "remote")
            path.write_bytes(part)
            remote = CoverageData(basename=str(path))
            local = CoverageData(basename=f"{target}.gpu-cluster.{number}")
            try:
                remote.read()
                local.update(remote, map_path=map_path)
            except Exception as problem:  # of coverage, of sqlite, or of values that are no paths
                raise UnreadableRecordError(
                    f"{key} is no data of coverage.py: {problem}",
                    remedy="run again; nothing else may write to the store's sessions/",
                ) from problem
            finally:
                local.close()
                remote.close()
