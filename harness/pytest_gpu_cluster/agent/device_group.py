"""The placement group that holds our devices on a Ray that others use too.

The driver of the job makes the first one, for the first session. A test that drives the cluster
gets its devices from Ray itself: for it the group is dropped, as at the end of each session. One
that is made again, on the same nodes, is the agent's, and ends with it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pytest_gpu_cluster.contract.errors import CapacityError
from pytest_gpu_cluster.contract.gpus import Gpu
from pytest_gpu_cluster.contract.ray_place import Scope
from pytest_gpu_cluster.ray_remains import placement_group

LOOK_S = 0.05
UP = "CREATED"  # Ray's word for a group that has its resources
NODE_LABEL = "ray.io/node-id"  # which Ray itself gives to each node


class DeviceGroup:
    """Our bundles, one for each node, while they are not dropped."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._numbers = {node.id: number for number, node in enumerate(scope.nodes)}
        self._lock = threading.Lock()  # guards the next
        self._group: Any = placement_group(scope.group)  # None: it was dropped

    def hold(self) -> bool:
        """Hold our devices; return True where they had to be taken. Raises CapacityError."""
        from ray.util.placement_group import placement_group_table

        with self._lock:
            if self._group is not None and placement_group_table(self._group).get("state") == UP:
                return False
            self._group = self._take()
            return True

    def ids(self, home: str) -> list[str]:
        """Return the ids of our devices on a node, none of which anybody uses yet."""
        import ray

        def held() -> list[str]:  # nested, so that Ray's processes need not import this module
            import ray

            return list(ray.get_runtime_context().get_accelerator_ids().get("GPU", []))

        task = ray.remote(num_cpus=0, num_gpus=self._scope.bundle["GPU"], max_retries=0)(held)
        ids: list[str] = ray.get(task.options(scheduling_strategy=self.strategy(home)).remote())
        return ids

    def strategy(self, home: str) -> Any:
        """Return how Ray finds our devices on a node. Raises CapacityError: they are not free."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        with self._lock:
            if self._group is None:
                self._group = self._take()
            return PlacementGroupSchedulingStrategy(
                self._group, placement_group_bundle_index=self._numbers[home]
            )

    def drop(self) -> None:
        """Give our devices back to Ray; quiet when they are not held."""
        from ray.util import remove_placement_group

        with self._lock:
            group, self._group = self._group, None
            if group is not None:
                remove_placement_group(group)

    def _take(self) -> Any:
        from ray.util.placement_group import placement_group as new_group
        from ray.util.placement_group import placement_group_table, remove_placement_group

        nodes = self._scope.nodes
        group = new_group(
            [dict(self._scope.bundle) for _ in nodes],
            strategy="STRICT_SPREAD" if len(nodes) > 1 else "PACK",
            bundle_label_selector=[{NODE_LABEL: node.id} for node in nodes],
        )
        deadline = time.monotonic() + self._scope.wait_s
        while placement_group_table(group)["state"] != UP:
            if time.monotonic() > deadline:
                remove_placement_group(group)
                raise CapacityError(
                    f"the devices of this cluster, {len(nodes)} x {dict(self._scope.bundle)}, were"
                    f" given back, and not free again within {self._scope.wait_s / 60:g} minutes",
                    remedy="look at `ray status` for who holds them; then run again",
                )
            time.sleep(LOOK_S)
        return group


def devices_named(known: Sequence[Gpu], ids: Sequence[str]) -> tuple[Gpu, ...]:
    """Return the devices of these ids on a node.

    A shared Ray may give others than those that the node began with, after a test has driven it or
    a session has ended: the devices of a node are of one kind.
    """
    by_id = {gpu.id: gpu for gpu in known}
    return tuple(by_id[each] if each in by_id else replace(known[0], id=each) for each in ids)
