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
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from pytest_gpu_cluster.contract import procfs
from pytest_gpu_cluster.contract.cluster_directory import is_own, remove_directory
from pytest_gpu_cluster.contract.cluster_record import ClusterRecord
from pytest_gpu_cluster.contract.errors import HarnessError
from pytest_gpu_cluster.contract.events import SessionFinished
from pytest_gpu_cluster.contract.failures import Closer, FailureClass
from pytest_gpu_cluster.contract.masking import masker
from pytest_gpu_cluster.contract.record import Ending, SessionRecord
from pytest_gpu_cluster.contract.silence import Stopwatch
from pytest_gpu_cluster.contract.specs import KeeperSpec
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.node.forkserver import PR_SET_CHILD_SUBREAPER, end_descendants, prctl
from pytest_gpu_cluster.node.keeper import run_keeper
from pytest_gpu_cluster.node.logs import Legacy, NodeLogs, Served
from pytest_gpu_cluster.node.processes import stopped_for
from pytest_gpu_cluster.node.session import SESSION_FILE

T = TypeVar("T")
PLACES = ("s", "code")  # of sessions, in the directory of the head
GUARD = "guard"  # the writer of a session's journal
KEEPER = "the keeper of the head node"
STOPPED_TICK_S = 0.1


def guard(spec: KeeperSpec) -> int:
    """Run the keeper in a child; when it has ended, leave nothing of the node."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    parent = os.getpid()
    legacy = Legacy()
    pid = os.fork()
    if pid == 0:
        _keep(spec, parent, legacy)
    signal.signal(signal.SIGTERM, lambda *_: _ask_to_end(pid))
    if spec.ray is not None:
        threading.Thread(target=_end_with_stdin, args=(pid,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    status, why = wait_for_keeper(pid, spec.boot.waits.grace_s)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_descendants(os.getpid())
    served = _tried(lambda: lost_session(spec, status, legacy))
    record = _tried(lambda: leave_record(spec, status, why))
    _tried(lambda: leave_logs(spec, served, legacy))
    remove_node(spec.directory)
    if record is not None:
        # A SIGTERM comes from a client, which will close the record itself.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        close_record(record, heartbeat_s=spec.boot.waits.heartbeat_s)
    return status if spec.ray is not None else 0


def _tried(step: Callable[[], T]) -> T | None:
    """Return what a step does; None where it fails: no store may keep the directory alive."""
    try:
        return step()
    except Exception as problem:  # noqa: BLE001 - as said
        print(f"guard: {problem}", flush=True)
        return None


def _ask_to_end(pid: int) -> None:
    """Have the keeper end in order, also one that is stopped."""
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGCONT)


def _end_with_stdin(pid: int) -> None:
    """Have the keeper end when the node actor, which holds the other end of stdin, is gone."""
    while os.read(0, 4096):
        pass
    with contextlib.suppress(ProcessLookupError):
        _ask_to_end(pid)


def wait_for_keeper(pid: int, grace_s: float) -> tuple[int, str]:
    """Wait for the end of the keeper; kill one that was stopped, as by SIGSTOP, for `grace_s`.

    Return its exit code, and the words for its end.
    """
    why = ""
    _, status = os.waitpid(pid, os.WUNTRACED)
    while os.WIFSTOPPED(status):
        if not _goes_on(pid, grace_s):
            why = stopped_for(KEEPER, pid, grace_s)
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, os.WUNTRACED)
    code = os.waitstatus_to_exitcode(status)
    return code, why or f"{KEEPER} was lost (exit {code})"


def _goes_on(pid: int, grace_s: float) -> bool:
    """Wait until a stopped process goes on or ends; return False after `grace_s` seconds."""
    stopped = Stopwatch()
    while procfs.is_stopped(pid):
        if stopped.look(True) > grace_s:
            return False
        time.sleep(STOPPED_TICK_S)
    return True


def _keep(spec: KeeperSpec, parent: int, legacy: Legacy) -> NoReturn:
    """Be the keeper, and do the guard's work when the guard is gone. Never returns."""
    code = 1
    try:
        try:
            run_keeper(spec, legacy)
            code = 0
        finally:
            if os.getppid() != parent:
                with contextlib.suppress(HarnessError):
                    leave_record(spec, 0, "")
                remove_node(spec.directory)
    except HarnessError as problem:
        print(f"keeper: {problem}", flush=True)
        code = problem.exit_code
    except BaseException:  # noqa: BLE001 - printed, and the exit code says so
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def remove_node(directory: Path) -> None:
    """Remove a node's directory, which lies in a cluster's: another one is left alone.

    The cluster's goes with its last node, the user's with the last cluster.
    """
    if not is_own(directory.parent):
        return
    shutil.rmtree(directory, ignore_errors=True)
    if not any(map(_is_node, directory.parent.glob("n*"))):
        remove_directory(directory.parent)
        with contextlib.suppress(OSError):
            directory.parent.parent.rmdir()


def _is_node(directory: Path) -> bool:
    """Return True for the directory of a node of this machine.

    A session has its places at the same path on all nodes, below the head's directory; on another
    machine there is nothing else in that.
    """
    with contextlib.suppress(OSError):  # its own guard removes it, or it is none
        return any(path.name not in PLACES for path in directory.iterdir())
    return False


def lost_session(spec: KeeperSpec, status: int, legacy: Legacy) -> Served | None:
    """Return the session whose logs a keeper could not store. Raises StoreError.

    It is what the keeper served, or what waits for a node that did not come up.
    """
    served = legacy.take()
    if status == 0 or served.session:
        return served if served.session else None
    store = Store.open(spec.boot.store, base=Path("/"), make=False)
    return Served(session=ClusterRecord(store, spec.boot.cluster).wanted_by())


def leave_logs(spec: KeeperSpec, served: Served | None, legacy: Legacy) -> None:
    """Store the logs of a keeper that could not do it. Raises StoreError."""
    if served is not None:
        store = Store.open(spec.boot.store, base=Path("/"), make=False)
        logs = NodeLogs(store, spec.directory, legacy)
        logs.begin(served)
        logs.end()


def leave_record(spec: KeeperSpec, status: int, why: str) -> SessionRecord | None:
    """Say what happened after a keeper's end, and strike the cluster off the list.

    `status` is the keeper's exit code, `why` the words for it. Return the record of a session that
    was lost with the head's keeper, after its last event; None where no session was. Raises
    StoreError.
    """
    if not spec.head:
        return None
    store = Store.open(spec.boot.store, base=Path("/"), make=False)
    path = spec.directory / SESSION_FILE
    record = SessionRecord(store, path.read_text()) if status != 0 and path.exists() else None
    if record is not None:
        event = SessionFinished(failure_class=FailureClass.INFRASTRUCTURE, message=why)
        timeout_s = spec.boot.waits.store_patience_s
        record.append_end(GUARD, event, mask=masker({}), timeout_s=timeout_s)
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
        remove_node(path.parent)
        raise
    path.unlink()  # before there is a test that could read it
    os.environ.update(spec.credentials)
    if spec.ray is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # Ray blocks SIGINT in its processes
    return guard(spec)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
