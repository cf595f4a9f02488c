"""Objects in a store: opened by URL, read many at once and never more, for threads, Ray workers and Arrow alike."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import TypeVar
from urllib.parse import urlsplit

import obstore
from obstore.store import ObjectStore, S3Store, from_url
from pyarrow import fs

Item = TypeVar("Item")
Made = TypeVar("Made")
RETRIES = 8  # of a request that the store answers with 429 or 5xx, or not at all


def open_store(url: str) -> ObjectStore:
    """What lies under `url` (s3://bucket/prefix, file:///folder). S3's endpoint and keys are those of AWS_* variables.

    Raises obstore.exceptions.BaseError for a URL that it does not know.
    """
    if not url.startswith("s3://"):
        return from_url(url, mkdir=True) if url.startswith("file://") else from_url(url)
    plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
    return S3Store.from_url(
        url,
        client_options={"allow_http": plain, "timeout": timedelta(seconds=30)},
        retry_config={
            "max_retries": RETRIES,
            "retry_timeout": timedelta(minutes=3),
            "backoff": {
                "init_backoff": timedelta(seconds=0.1),
                "max_backoff": timedelta(seconds=5),
                "base": 2,
            },
        },
    )


def arrow(url: str) -> tuple[fs.FileSystem, str]:
    """The same place for Arrow and Ray, which do not look at AWS_ENDPOINT_URL: a file system and a path in it."""
    if url.startswith("s3://"):
        at = urlsplit(os.environ.get("AWS_ENDPOINT_URL", ""))
        return fs.S3FileSystem(
            scheme=at.scheme or None, endpoint_override=at.netloc or None
        ), url.removeprefix("s3://")
    return fs.LocalFileSystem(), url.removeprefix("file://")


def credentials(environ: Mapping[str, str]) -> dict[str, str]:
    """What a process needs to reach the same store: for the `env_vars` of Ray workers."""
    return {
        name: value
        for name, value in environ.items()
        if name.startswith("AWS_") or name == "NO_PROXY"
    }


def names(store: ObjectStore, prefix: str) -> list[str]:
    """The keys under `prefix`, sorted."""
    return sorted(str(entry["path"]) for page in obstore.list(store, prefix) for entry in page)


def read(store: ObjectStore, key: str) -> bytes:
    """One object. Raises FileNotFoundError, or obstore.exceptions.BaseError when retries did not help."""
    return bytes(obstore.get(store, key).bytes())


def write(store: ObjectStore, key: str, data: bytes) -> None:
    """One object, whole or not at all."""
    obstore.put(store, key, data, use_multipart=False)


def in_order(
    work: Callable[[Item], Made], items: Iterable[Item], *, at_once: int
) -> Iterator[Made]:
    """`work` of every item, in their order, done by `at_once` threads: so many results are under way or waiting, never more."""
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(at_once) as threads:
        try:
            for item in items:
                if len(waiting) == at_once:
                    yield waiting.popleft().result()
                waiting.append(threads.submit(work, item))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
