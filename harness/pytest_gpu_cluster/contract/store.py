"""The object store: put, create-if-absent, get, list, delete. No other module calls obstore.

A store is a path or `file://` (the embedded default), `s3://`, `gs://` or `az://`. Every call
blocks, may be made from any thread, and fails with StoreError alone: the call, its URL, and a
remedy. Credentials come from the environment and enter no message. A process that has opened a
store must not fork and go on using it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlsplit

from pytest_gpu_cluster.contract.background import Background
from pytest_gpu_cluster.contract.bounded import LISTED_KEYS, OBJECT_BYTES
from pytest_gpu_cluster.contract.errors import StoreError
from pytest_gpu_cluster.contract.local_files import (
    MARK,
    check_there,
    check_way,
    is_open_to_others,
    keys_below,
    make_root,
    mark_root,
    names_in,
)
from pytest_gpu_cluster.contract.store_errors import (
    check_url,
    damaged,
    redact,
    redact_error,
    translate_error,
)

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig, S3Config

# Variables that open the store, by how their names begin: keeper and agent have them, Ray and test
# processes do not.
STORE_CREDENTIALS = ("AWS_", "AZURE_", "GOOGLE_")

T = TypeVar("T")
Keys = list[str]  # inside Store, `list` is a method

# For one request, and for all tries of one call. A blob goes up in parts of 5 MiB: a line of
# 0.2 MiB/s is enough.
REQUEST_TIMEOUT_S = 30.0
PATIENCE_S = 60.0
MAX_RETRIES = 8  # 0.1 s doubling up to 5 s, with jitter: about 8 s of back-off
DISK_THREADS = 4  # more only wait for each other
REMOTE_THREADS = 32  # nearly all of a request's time is waiting


def credentials(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that open the store."""
    return {name: value for name, value in environ.items() if name.startswith(STORE_CREDENTIALS)}


def local_path(url: str, *, base: Path) -> Path | None:
    """Return the absolute path of a store on this disk, without `..`; None for one elsewhere."""
    if "://" not in url:
        path = (base / Path(url).expanduser()).absolute()
    elif urlsplit(url).scheme == "file":
        path = Path(unquote(urlsplit(url).path))
    else:
        return None
    return path.resolve() if ".." in path.parts else path


class Store:
    """One object store. `url` is absolute and safe to print; a key has `/` between its parts."""

    def __init__(self, inner: ObjectStore, url: str, root: Path | None) -> None:
        self._inner, self.url, self.root = inner, url, root
        self.is_local = root is not None
        # Calls; a list counts one for each 1,000 keys. The vendor's own retries are not counted.
        self.requests = 0
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        url: str,
        *,
        base: Path,
        make: bool = True,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
        patience_s: float = PATIENCE_S,
    ) -> Store:
        """Open the store at `url`; a path is relative to `base`. Raises StoreError.

        A local store is made if absent, private (0700; an empty directory becomes so), and ignores
        itself in git. One that others may write is refused, since whoever writes to it runs code on
        this machine; one that is absent, unless it is to `make`. No request is sent to a remote
        one: see `check_writable`.
        """
        path = local_path(url, base=base)
        if path is not None:
            if not make:
                check_there(path, f"cannot use {path.as_uri()} as a store")
            return _open_local(path)
        return _open_remote(url, request_timeout_s, patience_s)

    def put(self, key: str, data: bytes) -> None:
        """Store `data` at `key`; readers see the old or the new object, never a part."""
        import obstore

        def put() -> None:
            self._check(key)
            obstore.put(self._inner, key, data, max_concurrency=4)

        self._call(f"put {key}", put)

    def create(self, key: str, data: bytes) -> bool:
        """Store `data` at `key` if the key is free. Return True when the key holds `data` now.

        A lost answer is settled by reading back, so `data` must be unique to the caller: put a
        nonce in it.
        """
        from obstore.exceptions import GenericError

        try:
            return self._create_once(key, data)
        except StoreError as error:
            if self.is_local or not isinstance(error.__cause__, GenericError):
                raise
        content = self.get(key)  # the lost answer may have been a success
        return self._create_once(key, data) if content is None else content == data

    def _create_once(self, key: str, data: bytes) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        def create() -> bool:
            self._check(key)
            try:
                obstore.put(self._inner, key, data, mode="create")
            except (AlreadyExistsError, PreconditionError):
                return False
            return True

        return self._call(f"create {key}", create) or self.get(key) == data

    def get(self, key: str, *, limit_bytes: int = OBJECT_BYTES) -> bytes | None:
        """Return the object at `key`, or None when there is none.

        Raises UnreadableRecordError for more than `limit_bytes`, of which nothing is read.
        """
        import obstore

        def get() -> bytes | None:
            if not self._check(key):
                return None
            with _Absent():
                answer = obstore.get(self._inner, key)  # its body is not on its way yet
                if (size := answer.meta["size"]) > limit_bytes:
                    raise damaged(self.url, key, f"it has {size:,} of {limit_bytes:,} bytes")
                return bytes(answer.bytes())
            return None

        return self._call(f"get {key}", get)

    def holds(self, key: str) -> bool:
        """Return True where there is an object at `key`, without reading it."""
        import obstore

        def head() -> bool:
            with _Absent():
                return self._check(key) and bool(obstore.head(self._inner, key))
            return False

        return self._call(f"look for {key}", head)

    def list(self, prefix: str, *, after: str | None = None) -> Keys:
        """Return all keys below the folder `prefix`, sorted; with `after`, only the later ones."""
        import obstore

        def pages() -> Keys:
            if self.root is not None:
                below = keys_below(self.root, prefix)
                return [key for key in below if after is None or key > after]
            stream = obstore.list(
                self._inner, prefix.rstrip("/") or None, offset=after, chunk_size=1000
            )
            keys: Keys = []
            for page in stream:
                keys += [meta["path"] for meta in page]
                if len(keys) > LISTED_KEYS:
                    raise damaged(self.url, prefix, f"it has more than {LISTED_KEYS:,} keys")
            return keys

        keys = self._call(f"list {prefix}", pages)
        self._count(len(keys) // 1000)
        return sorted(key for key in keys if key != MARK)

    def names(self, prefix: str) -> Keys:
        """Return the names directly in the folder `prefix`, sorted; one cheap request."""
        folders, files = self._names(prefix)
        return sorted({*folders, *files})

    def folders(self, prefix: str) -> Keys:
        """Return the names of the folders directly in `prefix`, sorted; one cheap request."""
        return sorted(self._names(prefix)[0])

    def _names(self, prefix: str) -> tuple[Keys, Keys]:
        """Return the names of folders, and those of objects."""
        import obstore

        def names() -> tuple[Keys, Keys]:
            if self.root is not None:
                return names_in(self.root, prefix)
            page = obstore.list_with_delimiter(self._inner, prefix.rstrip("/") or None)
            return [*page["common_prefixes"]], [meta["path"] for meta in page["objects"]]

        folders, files = (
            [path.rstrip("/").rpartition("/")[2] for path in paths]
            for paths in self._call(f"list {prefix}", names)
        )
        return folders, [name for name in files if name != MARK]

    def delete(self, keys: Iterable[str]) -> None:
        """Delete `keys`; a key that is absent is no error."""
        import obstore

        def delete(batch: Keys) -> None:
            for key in batch:
                self._check(key)
            with _Absent():
                obstore.delete(self._inner, batch)
                return
            for key in batch if len(batch) > 1 else ():  # some stores stop at one that is absent
                delete([key])

        if all_keys := [*keys]:
            self._call(f"delete {all_keys[0]}", lambda: delete(all_keys))

    def check_writable(self) -> None:
        """Create, read back and delete a probe, which must not be created a second time.

        Raises StoreError with a remedy.
        """
        key, data = f"probe-{os.urandom(8).hex()}", os.urandom(16)
        intact = self.create(key, data) and self.get(key) == data
        overwritten = intact and self.create(key, os.urandom(16))
        self.delete([key])
        if overwritten or not intact:
            problem = "overwrites what it has" if overwritten else "did not return what was put"
            raise StoreError(
                f"{self.url} {problem}, when a key is to be created",
                remedy="use a store with read-after-write consistency and conditional writes"
                " (S3's If-None-Match): they decide whom a cluster serves",
            )

    def local_file(self, key: str) -> Path | None:
        """Return the path of a key of a local store; None for one elsewhere.

        Raises StoreError where a link leads there.
        """
        if self.root is None:
            return None
        check_way(self.root, key)
        return self.root / key

    def _check(self, key: str) -> bool:
        """Return False where a local store has nothing at `key`.

        Raises StoreError where a link leads there.
        """
        return self.root is None or check_way(self.root, key)

    def _count(self, n: int) -> None:
        with self._lock:
            self.requests += n

    def _call(self, action: str, call: Callable[[], T]) -> T:
        """Return `call()`, with the vendor's errors translated."""
        from obstore.exceptions import BaseError

        self._count(1)
        if self.root is not None:
            check_there(self.root, f"cannot {action} in {self.url}")
        try:
            on_main = threading.current_thread() is threading.main_thread()
            # In this thread, a slow call would delay Ctrl-C to its end.
            return Background(call).result() if on_main and not self.is_local else call()
        except (BaseError, OSError, ValueError) as error:
            raise translate_error(f"cannot {action} in {self.url}", error) from redact_error(error)


class _Absent:
    """Leaves the block where the object is not there; a bucket that is not there is an error."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: object, trace: object) -> bool:
        return isinstance(error, FileNotFoundError) and "NoSuchBucket" not in str(error)


def _open_local(path: Path) -> Store:
    from obstore.store import LocalStore

    url = path.as_uri()
    try:
        if is_open_to_others(make_root(path)):
            raise StoreError(
                f"others may write to the store {url}, and whoever writes to it runs code here",
                remedy=f"run: chmod go-w {path}, or choose a directory of your own",
            )
        mark_root(path)
        return Store(LocalStore(path, automatic_cleanup=True), url, path)
    except OSError as error:
        vendor_like = OSError(f"{error.strerror} (os error {error.errno})")
        raise translate_error(f"cannot use {url} as a store", vendor_like) from error


def _open_remote(url: str, request_timeout_s: float, patience_s: float) -> Store:
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    parts, shown = urlsplit(url), redact(url)
    check_url(parts, shown)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    client: ClientConfig = {
        "timeout": timedelta(seconds=request_timeout_s),
        "connect_timeout": timedelta(seconds=min(5.0, request_timeout_s)),
    }
    allowed = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("true", "1")  # options hide it
    if allowed or urlsplit(endpoint).hostname in ("localhost", "127.0.0.1", "::1"):
        client["allow_http"] = True
    retry: RetryConfig = {
        "max_retries": MAX_RETRIES,
        "retry_timeout": timedelta(seconds=patience_s),
        "backoff": {
            "init_backoff": timedelta(seconds=0.1),
            "max_backoff": timedelta(seconds=5),
            "base": 2,
        },
    }
    config: S3Config = {"endpoint": endpoint} if parts.scheme == "s3" and endpoint else {}
    try:
        inner = from_url(url, config=config, client_options=client, retry_config=retry)
    except (BaseError, ValueError) as error:
        raise translate_error(f"cannot use {shown} as a store", error) from redact_error(error)
    return Store(inner, url.rstrip("/"), None)
