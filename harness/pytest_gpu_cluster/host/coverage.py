"""Coverage that was measured on the cluster, put where pytest-cov looks for it, with the paths of this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest


def bring_coverage(
    config: pytest.Config, parts: Iterable[bytes], path_here: Callable[[str], str]
) -> None:
    """Write each data file beside pytest-cov's own, as `.coverage.gpu-cluster.N`, from where it combines them.

    `parts` are SQLite data files of coverage.py; `path_here` maps a path of the cluster to one of this machine.
    """
    plugin = config.pluginmanager.get_plugin("_cov")
    controller = getattr(plugin, "cov_controller", None)
    if controller is None:
        return
    from coverage import CoverageData

    controller.cov._warn_no_data = False  # as pytest-cov itself does where the tests run elsewhere
    target = Path(controller.cov.config.data_file)
    for number, part in enumerate(parts):
        with tempfile.TemporaryDirectory() as scratch:
            there = Path(scratch, "there")
            there.write_bytes(part)
            measured = CoverageData(basename=str(there))
            measured.read()
            here = CoverageData(basename=f"{target}.gpu-cluster.{number}")
            here.update(measured, map_path=path_here)
            here.close()
            measured.close()
