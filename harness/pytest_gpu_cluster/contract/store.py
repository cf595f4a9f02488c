"""The object store: put, create-if-absent, get, list, delete, behind one door (obstore and its errors stay in here).

A store is a path or `file://` (the embedded default), `s3://`, `gs://` or `az://`. Every call blocks, may be made from
any thread, and fails with StoreError alone: what was tried, on which URL, and a remedy. Credentials come from the
environment and enter no message. A process that has opened a store must not fork and go on using it.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from pytest_gpu_cluster.contract.errors import StoreError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")
Keys = list[str]  # inside Store, `list` is a method

# One request, and all tries of one call. A blob goes up in parts of 5 MiB, so this asks for 0.2 MiB/s of a bad line.
REQUEST_TIMEOUT_S = 30.0
PATIENCE_S = 60.0
MAX_RETRIES = 8  # 0.1 s doubling up to 5 s, with jitter: about 8 s of back-off
YOUNG_S = 3600.0  # prune keeps what is younger

# Looked for in the vendor's words, first match: what it means, what to do. The vendor gives no codes, only text.
REMEDIES: tuple[tuple[str, str, str], ...] = (
    (
        "RequestTimeTooSkewed",
        "the clocks differ",
        "set this machine's clock (NTP): it is more than 15 minutes off",
    ),
    (
        "NoSuchBucket",
        "there is no such bucket",
        "create the bucket, or correct `store` in [tool.gpu-cluster]",
    ),
    (
        "PermanentRedirect|AuthorizationHeaderMalformed",
        "wrong region",
        "set AWS_REGION to the bucket's region",
    ),
    (
        "InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken",
        "the credentials are wrong or expired",
        'renew them: aws sso login, then eval "$(aws configure export-credentials --format env)"',
    ),
    (
        "/latest/(api|meta-data)/|metadata.google.internal|metadata/identity",
        "no credentials were found",
        'set them in the environment; for AWS: eval "$(aws configure export-credentials --format env)"',
    ),
    (
        r"status: 40[13]|code: 401",
        "access denied",
        "allow get, put, list and delete on this prefix for the role in use",
    ),
    (
        r"code: (28|122)\b|os error 28",
        "the disk is full",
        "free space there, or choose another `store` in [tool.gpu-cluster]",
    ),
    (
        r"code: 30\b|os error 30",
        "the file system is read-only",
        "choose a writable `store` in [tool.gpu-cluster]",
    ),
    (
        r"code: (1|13)\b|os error (1|13)\b",
        "permission denied",
        "make it writable for this user, or choose another store",
    ),
    (
        r"code: (17|20|21)\b|os error (17|20)\b",
        "a file is where a directory should be, or the reverse",
        "move it away, or choose another store",
    ),
    (
        "dns error|lookup address",
        "the host name is unknown",
        "check AWS_ENDPOINT_URL, the store's URL, the network",
    ),
    (
        "BadScheme",
        "http:// is not encrypted",
        "use https://, or set AWS_ALLOW_HTTP=true on a network you trust",
    ),
    (
        "kind: Connect",
        "nobody answers there",
        "check the network, and AWS_ENDPOINT_URL where it is set",
    ),
    (
        "kind: (Timeout|TimedOut|Interrupted)|timed out",
        "it was too slow",
        "check the network, then run again",
    ),
    (r"status: (5\d\d|429)", "the store is busy or ill", "wait a minute, then run again"),
    ("HTTP error", "the connection broke", "check the network, then run again"),
    ("MissingAccount", "which account?", "set AZURE_STORAGE_ACCOUNT_NAME"),
    (
        "parse path|InvalidPath",
        "that is no key",
        "rename it: no empty, '.' or '..' part, no '#1' at the end",
    ),
    (
        r"code: 2\b|os error 2\b",
        "there is no such place",
        "choose another `store` in [tool.gpu-cluster]",
    ),
)


def without_secrets(text: str) -> str:
    """`text` with user info, query strings of URLs, and the values of secret environment variables taken out."""
    text = re.sub(r"://[^/\s\"'@]*@", "://***@", text)
    text = re.sub(r"(://[^\s\"'?]*)\?[^\s\"')]*", r"\1?***", text)
    for name, value in os.environ.items():
        if len(value) >= 8 and re.search(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY|STORAGE_KEY|SAS", name):
            text = text.replace(value, "***")
    return text


class Store:
    """One object store. `url` is absolute and safe to print; keys are relative to it, with `/` between parts."""

    def __init__(self, inner: ObjectStore, url: str, root: Path | None) -> None:
        self._inner, self.url, self.root = inner, url, root
        self.is_local = root is not None
        self.requests = 0  # calls made; a list counts one for each 1,000 keys, a vendor's own retries are not seen
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
        """The store at `url`; a path is relative to `base`. Raises StoreError when it cannot be one.

        A local store is made if absent, private (0700), and ignores itself in git; one that others may write is
        refused, since whoever writes to it runs code here. A remote one is not asked: see `check_writable`.
        """
        scheme = urlsplit(url).scheme if "://" in url else "file"
        if scheme == "file":
            path = (
                Path(unquote(urlsplit(url).path)) if "://" in url else base / Path(url).expanduser()
            )
            return _open_local(path.absolute())
        return _open_remote(url, request_timeout_s, patience_s)

    def put(self, key: str, data: bytes) -> None:
        """Store `data` at `key`, whatever was there; readers see the old or the new object, never a part."""
        import obstore

        self._call(f"put {key}", lambda: obstore.put(self._inner, key, data, max_concurrency=4))

    def create(self, key: str, data: bytes) -> bool:
        """Store `data` at `key` if nothing is there; True when `key` now holds it, False when something else does.

        An answer that got lost is settled by reading back: so `data` must be the caller's alone (put a nonce in it).
        """
        from obstore.exceptions import GenericError

        try:
            return self._create_once(key, data)
        except StoreError as error:
            if self.is_local or not isinstance(error.__cause__, GenericError):
                raise
        found = self.get(key)  # did the lost answer say yes?
        return self._create_once(key, data) if found is None else found == data

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
        """The object at `key`, or None when there is none."""
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
        """Every key in the folder `prefix` ("" for all) and below, sorted; with `after`, only those beyond that key."""
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
        """What is directly in the folder `prefix`: the next part of every key below it, sorted; one cheap request."""
        import obstore

        found = self._call(
            f"list {prefix}",
            lambda: obstore.list_with_delimiter(self._inner, prefix.rstrip("/") or None),
        )
        paths = [*found["common_prefixes"], *(meta["path"] for meta in found["objects"])]
        return sorted({path.rstrip("/").rpartition("/")[2] for path in paths} - {".gitignore"})

    def delete(self, keys: Iterable[str]) -> None:
        """Delete `keys`; quiet where one is not there."""
        import obstore

        def delete(batch: Keys) -> None:
            try:
                obstore.delete(self._inner, batch)
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise
                for key in (
                    batch if len(batch) > 1 else ()
                ):  # some stores stop at the first that is not there
                    delete([key])

        if wanted := [*keys]:
            self._call(f"delete {wanted[0]}", lambda: delete(wanted))

    def check_writable(self) -> None:
        """Put, read back and delete a probe. Raises StoreError with a remedy when any of them does not work."""
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

    def _call(self, doing: str, call: Callable[[], T]) -> T:
        """The one door for vendor errors."""
        from obstore.exceptions import BaseError

        self._count(1)
        try:
            on_main = threading.current_thread() is threading.main_thread()
            return _interruptible(call) if on_main and not self.is_local else call()
        except (BaseError, OSError, ValueError) as error:
            raise translated(f"cannot {doing} in {self.url}", error) from _clean(error)


def _interruptible(call: Callable[[], T]) -> T:
    """`call()` in a thread that is waited for: made directly, a slow one would hold Ctrl-C back until it ends."""
    answers: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(call())
        except BaseException as error:  # handed over, not handled
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return answers[0]


def translated(what: str, error: Exception) -> StoreError:
    """A StoreError that says `what` failed, in our words and in the vendor's shortest, with a remedy."""
    what, said = without_secrets(what), without_secrets(str(error))
    line = " ".join(said.split("\n\nDebug source:")[0].split())
    if answer := re.search(r"<Code>(\w+)</Code>\s*<Message>([^<]*)", line):
        line = f"{answer[1]}: {answer[2]}"
    else:
        line = line.rpartition(" - ")[2][:300]
        if host := re.search(r"\buri: Some\(\s*(https?://[^/\s]+)", said):
            line = f"{line} ({host[1]})"
    for pattern, meaning, remedy in REMEDIES:
        if re.search(pattern, said):
            return StoreError(f"{what}: {meaning}: {line}", remedy=remedy)
    return StoreError(f"{what}: {line}", remedy="run: gpu-cluster doctor")


def _clean(error: Exception) -> Exception:
    """The vendor's error itself, or a copy without the secrets in its text: a traceback prints it."""
    said = without_secrets(str(error))
    if said == str(error):
        return error
    copy: Exception = type(error)(said)
    return copy.with_traceback(error.__traceback__)


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
        raise translated(
            f"cannot use {url} as a store", OSError(f"{error.strerror} (os error {error.errno})")
        ) from error


def _open_remote(url: str, request_timeout_s: float, patience_s: float) -> Store:
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    parts, shown = urlsplit(url), without_secrets(url)
    if (
        parts.password
        or parts.query
        or ("@" in parts.netloc and not parts.scheme.startswith("abfs"))
    ):
        raise StoreError(
            f"the store URL {shown} has credentials in it",
            remedy="take them out; set them in the environment",
        )
    if parts.scheme not in ("s3", "gs", "az", "abfs", "abfss"):
        raise StoreError(
            f"{shown} is no store: unknown scheme {parts.scheme!r}",
            remedy="use a path, s3://, gs:// or az://",
        )
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    loopback = urlsplit(endpoint).hostname in ("localhost", "127.0.0.1", "::1")
    settings: dict[str, Any] = {  # Any: the vendor asks for a TypedDict of each scheme
        "config": {"endpoint": endpoint} if parts.scheme == "s3" and endpoint else {},
        "client_options": {
            "timeout": timedelta(seconds=request_timeout_s),
            "connect_timeout": timedelta(seconds=min(5.0, request_timeout_s)),
            **({"allow_http": True} if loopback else {}),
        },
        "retry_config": {
            "max_retries": MAX_RETRIES,
            "retry_timeout": timedelta(seconds=patience_s),
            "backoff": {
                "init_backoff": timedelta(seconds=0.1),
                "max_backoff": timedelta(seconds=5),
                "base": 2,
            },
        },
    }
    try:
        inner = from_url(url, **settings)
    except (BaseError, ValueError) as error:
        raise translated(f"cannot use {shown} as a store", error) from _clean(error)
    return Store(inner, url.rstrip("/"), None)


def prune(store: Store, *, keep_sessions: int = 20) -> None:
    """Forget all but the newest sessions of a local store, and every tree and blob that no kept session refers to.

    What is younger than an hour stays: a tree or blob, somebody may be sending it; a session that still writes events.
    Trees go before blobs, so that a tree that is there has its blobs. Raises StoreError.
    """
    assert store.root is not None, "only a local store is pruned; give a bucket a lifecycle rule"
    try:
        _prune(store.root, keep_sessions)
    except OSError as error:
        raise translated(f"cannot prune {store.url}", error) from error


def _prune(root: Path, keep_sessions: int) -> None:
    import shutil

    ids = sorted((entry.name for entry in _entries(root / "sessions")), reverse=True)
    kept = ids[:keep_sessions]
    for session in ids[keep_sessions:]:
        folder = root / "sessions" / session
        if (folder / "result.json").exists() or not any(
            map(_young, (folder, *folder.glob("events/*")))
        ):
            shutil.rmtree(folder, ignore_errors=True)  # a rest is taken the next time
        else:
            kept.append(session)
    trees: set[str] = set()
    for session in kept:
        with contextlib.suppress(FileNotFoundError):  # a session about to begin: its tree is young
            trees.update(_digests(root / "sessions" / session / "request.json", "tree|code"))
    blobs: set[str] = set()
    for entry in _entries(root / "trees"):
        if entry.name.removesuffix(".json") in trees or _young(Path(entry.path)):
            blobs.update(_digests(Path(entry.path), "blob"))
        else:
            Path(entry.path).unlink(missing_ok=True)
    for entry in _entries(root / "blobs"):
        if entry.name not in blobs and not _young(Path(entry.path)):
            Path(entry.path).unlink(missing_ok=True)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        return list(entries)
    return []


def _young(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < YOUNG_S
    except FileNotFoundError:
        return True  # another prune was faster


def _digests(path: Path, keys: str) -> list[str]:
    """The values of `keys` in a JSON file, without the time to parse it; too many at worst, which keeps too much."""
    return [
        found.decode()
        for found in re.findall(rf'"(?:{keys})":\s*"([0-9a-f]{{64}})"'.encode(), path.read_bytes())
    ]
