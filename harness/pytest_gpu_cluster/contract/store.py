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
from urllib.parse import SplitResult, unquote, urlsplit

from pytest_gpu_cluster.contract.errors import StoreError
from pytest_gpu_cluster.contract.store_errors import redact, redact_error, translate_error

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
        request_timeout_s: float = REQUEST_TIMEOUT_S,
        patience_s: float = PATIENCE_S,
    ) -> Store:
        """Open the store at `url`; a path is relative to `base`. Raises StoreError.

        A local store is made if absent, private (0700), and ignores itself in git. One that others
        may write is refused, since whoever writes to it runs code on this machine. No request is
        sent to a remote one: see `check_writable`.
        """
        path = local_path(url, base=base)
        if path is not None:
            return _open_local(path)
        return _open_remote(url, request_timeout_s, patience_s)

    def put(self, key: str, data: bytes) -> None:
        """Store `data` at `key`; readers see the old or the new object, never a part."""
        import obstore

        self._call(f"put {key}", lambda: obstore.put(self._inner, key, data, max_concurrency=4))

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
            try:
                obstore.put(self._inner, key, data, mode="create")
            except (AlreadyExistsError, PreconditionError):
                return False
            return True

        return self._call(f"create {key}", create) or self.get(key) == data

    def get(self, key: str) -> bytes | None:
        """Return the object at `key`, or None when there is none."""
        import obstore

        def get() -> bytes | None:
            try:
                return bytes(obstore.get(self._inner, key).bytes())
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise
                return None

        return self._call(f"get {key}", get)

    def list(self, prefix: str, *, after: str | None = None) -> Keys:
        """Return all keys below the folder `prefix`, sorted; with `after`, only the later ones."""
        import obstore

        def pages() -> Keys:
            stream = obstore.list(
                self._inner, prefix.rstrip("/") or None, offset=after, chunk_size=1000
            )
            return [meta["path"] for page in stream for meta in page]

        keys = self._call(f"list {prefix}", pages)
        self._count(len(keys) // 1000)
        return sorted(key for key in keys if key != ".gitignore")

    def names(self, prefix: str) -> Keys:
        """Return the names directly in the folder `prefix`, sorted; one cheap request."""
        import obstore

        page = self._call(
            f"list {prefix}",
            lambda: obstore.list_with_delimiter(self._inner, prefix.rstrip("/") or None),
        )
        paths = [*page["common_prefixes"], *(meta["path"] for meta in page["objects"])]
        return sorted({path.rstrip("/").rpartition("/")[2] for path in paths} - {".gitignore"})

    def delete(self, keys: Iterable[str]) -> None:
        """Delete `keys`; a key that is absent is no error."""
        import obstore

        def delete(batch: Keys) -> None:
            try:
                obstore.delete(self._inner, batch)
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise
                # Some stores stop at the first key that is absent.
                for key in batch if len(batch) > 1 else ():
                    delete([key])

        if all_keys := [*keys]:
            self._call(f"delete {all_keys[0]}", lambda: delete(all_keys))

    def check_writable(self) -> None:
        """Put, read back and delete a probe. Raises StoreError with a remedy."""
        key, data = f"probe-{os.urandom(8).hex()}", os.urandom(16)
        self.put(key, data)
        if self.get(key) != data:
            raise StoreError(
                f"{self.url} did not return what was put there",
                remedy="use a store with read-after-write consistency",
            )
        self.delete([key])

    def _count(self, n: int) -> None:
        with self._lock:
            self.requests += n

    def _call(self, action: str, call: Callable[[], T]) -> T:
        """Return `call()`, with the vendor's errors translated."""
        from obstore.exceptions import BaseError

        self._count(1)
        try:
            on_main = threading.current_thread() is threading.main_thread()
            return _interruptible(call) if on_main and not self.is_local else call()
        except (BaseError, OSError, ValueError) as error:
            raise translate_error(f"cannot {action} in {self.url}", error) from redact_error(error)


def _interruptible(call: Callable[[], T]) -> T:
    """Return `call()`, made in a thread: in this one, a slow call would delay Ctrl-C to its end."""
    answers: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(call())
        except BaseException as error:  # noqa: BLE001 - raised again in the calling thread
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return answers[0]


def _open_local(path: Path) -> Store:
    from obstore.store import LocalStore

    url = path.as_uri()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        stat = path.stat()
        if stat.st_mode & 0o022 or (os.geteuid() != 0 and stat.st_uid not in (0, os.geteuid())):
            raise StoreError(
                f"others may write to the store {url}, and whoever writes to it runs code here",
                remedy=f"run: chmod go-w {path}, or choose a directory of your own",
            )
        ignore = path / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n")
        return Store(LocalStore(path, automatic_cleanup=True), url, path)
    except OSError as error:
        vendor_like = OSError(f"{error.strerror} (os error {error.errno})")
        raise translate_error(f"cannot use {url} as a store", vendor_like) from error


def _open_remote(url: str, request_timeout_s: float, patience_s: float) -> Store:
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    parts, shown = urlsplit(url), redact(url)
    _check_url(parts, shown)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    client: ClientConfig = {
        "timeout": timedelta(seconds=request_timeout_s),
        "connect_timeout": timedelta(seconds=min(5.0, request_timeout_s)),
    }
    if urlsplit(endpoint).hostname in ("localhost", "127.0.0.1", "::1"):
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


def _check_url(parts: SplitResult, shown: str) -> None:
    names_user = "@" in parts.netloc and not parts.scheme.startswith("abfs")
    if parts.password or parts.query or names_user:
        raise StoreError(
            f"the store URL {shown} has credentials in it",
            remedy="take them out; set them in the environment",
        )
    if parts.scheme not in ("s3", "gs", "az", "abfs", "abfss"):
        raise StoreError(
            f"{shown} is no store: unknown scheme {parts.scheme!r}",
            remedy="use a path, s3://, gs:// or az://",
        )
