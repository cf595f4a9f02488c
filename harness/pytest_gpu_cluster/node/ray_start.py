"""`ray start`, without the processes that nobody asks on a cluster of tests.

A script in the place of Ray's own. Its arguments are those of `ray start`. What it changes in Ray
is private there: a name that a later Ray does not have is left alone, and its process runs.
"""

from __future__ import annotations

import importlib
from types import SimpleNamespace

# Ray Client's server, and the head of a dashboard that is not included: 210 MB of memory.
UNASKED = ("start_ray_client_server", "start_api_server")


def main() -> None:
    """Start Ray's processes, and stay as long as they."""
    node = importlib.import_module("ray._private.node").Node
    scripts = importlib.import_module("ray.scripts.scripts")
    for name in UNASKED:
        if hasattr(node, name):
            setattr(node, name, lambda *_, **__: None)
    # On loopback alone Ray takes itself for one node, as on other systems, and would refuse to
    # join another there.
    constants = importlib.import_module("ray._private.ray_constants")
    patched = SimpleNamespace(**{**vars(constants), "ENABLE_RAY_CLUSTER": True})
    setattr(scripts, "ray_constants", patched)  # noqa: B010 - the module's own type is another
    scripts.main()


if __name__ == "__main__":
    main()
