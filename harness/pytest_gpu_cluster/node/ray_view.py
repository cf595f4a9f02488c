"""What a driver is told of the Ray that it is connected to. `ray` is the module, untyped."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

CONNECT_S = 3.0


def head_answers(address: str) -> bool:
    """Return whether Ray's head takes connections at its address."""
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), CONNECT_S):
        return True
    return False


def free_gpus(ray: Any) -> str:
    """Return the free GPUs of each node that has some, in words."""
    free = ray._private.state.available_resources_per_node()
    having = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    if not having:
        return "no node of it has a GPU"
    each = (
        f"{node['NodeManagerHostname']}"
        f" {free.get(node['NodeID'], {}).get('GPU', 0):g} of {node['Resources']['GPU']:g}"
        for node in having
    )
    return f"free GPUs: {', '.join(each)}"


def ray_status(ray: Any) -> str:
    """Return what `ray status` says; "" where it cannot be had."""
    try:
        from ray.autoscaler._private.commands import debug_status

        constants, values = ray._private.ray_constants, ray.experimental.internal_kv
        status, error = (
            values._internal_kv_get(key)
            for key in (constants.DEBUG_AUTOSCALING_STATUS, constants.DEBUG_AUTOSCALING_ERROR)
        )
        address = ray.get_runtime_context().gcs_address
        return str(debug_status(status, error, address=address)).strip()
    except Exception:  # noqa: BLE001 - it is an addition, by private names of Ray
        return ""
