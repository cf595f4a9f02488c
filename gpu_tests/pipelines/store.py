"""Objects in a store: opened by URL, and processed in order by a bounded number of threads."""

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
Result = TypeVar("Result")
RETRIES = 8  # of a request that the store answers with 429 or 5xx, or not at all


def open_store(url: str) -> ObjectStore:
    """Open the prefix `url` (s3://bucket/prefix, file:///folder).

    S3's endpoint and keys are those of the AWS_* variables. Raises obstore.exceptions.BaseError for
    a URL that is not known.
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


def arrow_filesystem(url: str) -> tuple[fs.FileSystem, str]:
    """Return the file system and the path of `url` for Arrow and Ray.

    Both ignore AWS_ENDPOINT_URL, so that the endpoint is passed explicitly.
    """
    if url.startswith("s3://"):
        endpoint = urlsplit(os.environ.get("AWS_ENDPOINT_URL", ""))
        return fs.S3FileSystem(
            scheme=endpoint.scheme or None, endpoint_override=endpoint.netloc or None
        ), url.removeprefix("s3://")
    return fs.LocalFileSystem(), url.removeprefix("file://")


def credentials(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that reach the same store, for the `env_vars` of Ray workers."""
    return {
        name: value
        for name, value in environ.items()
        if name.startswith("AWS_") or name == "NO_PROXY"
    }


def list_keys(store: ObjectStore, prefix: str) -> list[str]:
    """Return the keys under `prefix`, sorted."""
    return sorted(str(entry["path"]) for page in obstore.list(store, prefix) for entry in page)


def read(store: ObjectStore, key: str) -> bytes:
    """Return one object's bytes.

    Raises FileNotFoundError, or obstore.exceptions.BaseError when the retries did not help.
    """
    return bytes(obstore.get(store, key).bytes())


def write(store: ObjectStore, key: str, data: bytes) -> None:
    """Put one object, whole or not at all."""
    obstore.put(store, key, data, use_multipart=False)


def map_in_order(
    work: Callable[[Item], Result], items: Iterable[Item], *, at_once: int
) -> Iterator[Result]:
    """Yield `work(item)` for every item, in the order of the items, computed by `at_once` threads.

    At most `at_once` results are being computed or waiting to be consumed. An exception of `work`
    is raised at its place in the order.
    """
    waiting: deque[Future[Result]] = deque()
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
