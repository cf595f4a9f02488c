"""Nouns in the store: one JSON object at one key."""

from __future__ import annotations

import json
from typing import TypeVar

from pytest_gpu_cluster.contract.bounded import DOCUMENT_BYTES, parse_json
from pytest_gpu_cluster.contract.fields import Noun
from pytest_gpu_cluster.contract.ids import is_id
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.contract.store_errors import damaged

N = TypeVar("N", bound=Noun)


def ids_in(store: Store, folder: str) -> list[str]:
    """Return the ids of the nouns `<id>.json` directly in a folder, sorted."""
    names = [name for name in store.names(folder) if name.endswith(".json")]
    return [*filter(is_id, (name.removesuffix(".json") for name in names))]


def put_noun(store: Store, key: str, noun: Noun) -> None:
    store.put(key, json.dumps(noun.to_json()).encode())


def get_noun(
    store: Store, key: str, kind: type[N], *, limit_bytes: int = DOCUMENT_BYTES
) -> N | None:
    """Return the noun at `key`; None when nothing is there. Raises StoreError for anything else."""
    raw = store.get(key, limit_bytes=limit_bytes)
    if raw is None:
        return None
    try:
        return kind.from_json(parse_json(raw))
    except ValueError as problem:  # FieldError is one
        raise damaged(store.url, key, problem) from problem
