"""The guard of a node: the last line of the boot script, and the parent of the keeper.

When the keeper has ended, for any reason, the guard ends what is left of the tree, removes the
node's directory and says in the record what happened. When the guard dies, the keeper closes down
and does that work itself.

Run as `python -m pytest_gpu_cluster.node.guard SPEC`, with the path of a KeeperSpec in the node's
directory, which is read once and removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

from pytest_gpu_cluster.contract import procfs
from pytest_gpu_cluster.contract.cluster_record import ClusterRecord
from pytest_gpu_cluster.contract.errors import HarnessError
from pytest_gpu_cluster.contract.events import SessionFinished
from pytest_gpu_cluster.contract.failures import Closer, FailureClass
from pytest_gpu_cluster.contract.record import Ending, SessionRecord
from pytest_gpu_cluster.contract.specs import KeeperSpec
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.node.forkserver import PR_SET_CHILD_SUBREAPER, end_descendants, prctl
from pytest_gpu_cluster.node.keeper import run_keeper
from pytest_gpu_cluster.node.session import SESSION_FILE

GUARD = "guard"  # the writer of a session's journal


def guard(spec: KeeperSpec) -> int:
    """Run the keeper in a child; when it has ended, leave nothing of the node."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _keep(spec, parent)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, status = os.waitpid(pid, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_descendants(os.getpid())
    record = None
    try:
        record = leave_record(spec, os.waitstatus_to_exitcode(status))
    except Exception as problem:  # noqa: BLE001
        # A store that is gone must not keep the directory alive.
        print(f"guard: {problem}", flush=True)
    remove_directory(spec.directory)
    if record is not None:
        # A SIGTERM comes from a client, which will close the record itself.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        close_record(record, heartbeat_s=spec.boot.waits.heartbeat_s)
    return 0


def _keep(spec: KeeperSpec, parent: int) -> NoReturn:
    """Be the keeper, and do the guard's work when the guard is gone. Never returns."""
    code = 1
    try:
        try:
            run_keeper(spec)
            code = 0
        finally:
            if os.getppid() != parent:
                with contextlib.suppress(HarnessError):
                    leave_record(spec, 0)
                remove_directory(spec.directory)
    except BaseException:  # noqa: BLE001 - printed, and the exit code says so
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def remove_directory(directory: Path) -> None:
    """Remove a node's directory.

    The cluster's goes with its last node, the user's with the last cluster.
    """
    shutil.rmtree(directory, ignore_errors=True)
    if not any(directory.parent.glob("n*")):
        shutil.rmtree(directory.parent, ignore_errors=True)
        with contextlib.suppress(OSError):
            directory.parent.parent.rmdir()


def leave_record(spec: KeeperSpec, status: int) -> SessionRecord | None:
    """Say what happened after a keeper's end, and strike the cluster off the list.

    `status` is the keeper's exit code. Return the record of a session that was lost with the
    head's keeper, after its last event; None where no session was. Raises StoreError.
    """
    if not spec.head:
        return None
    store = Store.open(spec.boot.store, base=Path("/"))
    path = spec.directory / SESSION_FILE
    record = SessionRecord(store, path.read_text()) if status != 0 and path.exists() else None
    if record is not None:
        message = f"the keeper of the head node was lost (exit {status})"
        event = SessionFinished(failure_class=FailureClass.INFRASTRUCTURE, message=message)
        record.append_end(GUARD, event, timeout_s=spec.boot.waits.store_patience_s)
    ClusterRecord(store, spec.boot.cluster).delete()
    return record


def close_record(record: SessionRecord, *, heartbeat_s: float) -> None:
    """Make the record of a lost session final when its client, whose part that is, is gone too."""
    heartbeat = record.heartbeat()
    time.sleep(heartbeat_s * 1.5)
    if not record.is_closed() and record.heartbeat() == heartbeat:
        message = "client and keeper were lost; what had finished is in the journal"
        ending = Ending(failure_class=FailureClass.INFRASTRUCTURE, message=message)
        record.close(ending, by=Closer.GUARD)


def main(path: Path) -> int:
    """Guard the node that a specification describes; return the exit code."""
    procfs.forbid_inspection()
    try:
        spec = KeeperSpec.from_json(json.loads(path.read_bytes()))
    except ValueError:
        remove_directory(path.parent)
        raise
    path.unlink()  # before there is a test that could read it
    os.environ.update(spec.credentials)
    return guard(spec)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
