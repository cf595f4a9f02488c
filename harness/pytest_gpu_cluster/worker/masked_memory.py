"""What pytest remembers of tests whose ids were masked: it finds them by their real ids again."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from pytest_gpu_cluster.contract.masked_ids import MaskedFailures, real_id
from pytest_gpu_cluster.contract.masking import Masker
from pytest_gpu_cluster.contract.secret_cuts import MASK
from pytest_gpu_cluster.contract.specs import WorkerSpec


class MaskedMemory:
    """The client's cache knows masked ids alone; --lf, --ff, --nf and --sw compare real ones."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._holds = MASK in json.dumps(dict(spec.client.cache))
        self._mask: Masker | None = spec.passed.masker() if self._holds else None

    def configure(self, config: pytest.Config) -> None:
        """Let failures be found before anything is collected: --lf passes over other files."""
        plugin = config.pluginmanager.get_plugin("lfplugin")
        if plugin is not None and self._mask is not None:
            plugin.lastfailed = MaskedFailures(plugin.lastfailed, self._mask)

    def before_selection(self, config: pytest.Config, items: Sequence[pytest.Item]) -> None:
        """Give the plugins that sort and leave out tests the real ids."""
        if self._mask is None:
            return
        new = config.pluginmanager.get_plugin("nfplugin")
        if new is not None:
            known = MaskedFailures(dict.fromkeys(new.cached_nodeids, True), self._mask)
            new.cached_nodeids |= {id_of(item) for item in items if id_of(item) in known}
        stepwise = config.pluginmanager.get_plugin("stepwiseplugin")
        if stepwise is not None and MASK in (last := str(stepwise.cached_info.last_failed)):
            real = real_id(last, ((item.nodeid, item.name) for item in items), self._mask)
            ids = {item.nodeid: id_of(item) for item in items}
            stepwise.cached_info.last_failed = ids.get(real, stepwise.cached_info.last_failed)


def id_of(item: pytest.Item) -> object:
    """Return an id as pytest's own plugins compare it: from 9.2 on it is no text."""
    return getattr(item, "id", item.nodeid)
