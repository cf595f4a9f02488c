"""Print the objects below a prefix of a store, for a test in another network: URL PREFIX."""

from __future__ import annotations

import contextlib
import json
import sys
import zlib
from pathlib import Path

from pytest_gpu_cluster.contract.store import Store


def text_of(content: bytes) -> str:
    """Return an object as text; a segment of a journal is unpacked."""
    with contextlib.suppress(zlib.error):
        content = zlib.decompress(content)
    return content.decode(errors="replace")


def main(url: str, prefix: str) -> None:
    """Print them as one JSON object, by key."""
    store = Store.open(url, base=Path("/"))
    print(json.dumps({key: text_of(store.get(key) or b"") for key in store.list(prefix)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
