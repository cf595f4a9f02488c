"""Ray on this machine alone: its nodes have the address 127.0.0.1, and nothing listens elsewhere.

Ray itself does so on systems where it supports no second machine; on Linux it replaces a loopback
address by the machine's own, and listens on all, unless it is told to behave as there.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

ADDRESS = "127.0.0.1"
# Of Ray's processes, and of each that connects to them.
VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
VARIABLES: Mapping[str, str] = {VARIABLE: "0"}


def is_loopback(address: str) -> bool:
    """Return True for the address, with or without a port, of a Ray that is on loopback alone.

    >>> is_loopback("127.0.0.1:6379"), is_loopback("10.0.0.7:6379")
    (True, False)
    """
    return address.partition(":")[0] == ADDRESS


def follow_address(address: str) -> None:
    """Have Ray in this process, where it is imported already, connect to `address` as it stands."""
    constants = sys.modules.get("ray._private.ray_constants")
    if constants is not None:
        constants.ENABLE_RAY_CLUSTER = not is_loopback(address)  # type: ignore[attr-defined]
