"""Every reader of a store: its key, and all that is made of what is there."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from pytest_gpu_cluster.bundle.index import StatIndex
from pytest_gpu_cluster.bundle.repository import modification_times
from pytest_gpu_cluster.bundle.retention import prune
from pytest_gpu_cluster.cli_lines import log_line, session_line, session_row
from pytest_gpu_cluster.contract.cluster_record import (
    ClusterRecord,
    clusters,
)
from pytest_gpu_cluster.contract.events import (
    CollectorFinished,
    TestFinished,
)
from pytest_gpu_cluster.contract.record import (
    DURATIONS,
    SessionRecord,
    branch_key,
    durations,
)
from pytest_gpu_cluster.contract.request import CI
from pytest_gpu_cluster.contract.settings import Settings
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.contract.trees import blob_key, get_tree, tree_key
from pytest_gpu_cluster.host import deserialize
from pytest_gpu_cluster.host.coverage import write_coverage
from pytest_gpu_cluster.node.session import take_passed
from pytest_gpu_cluster.node.unpack import unpack
from pytest_gpu_cluster.outputs import HomeMemory, merge
from pytest_gpu_cluster.report import delta, render
from pytest_gpu_cluster.report.model import Report, ReportContext
from pytest_gpu_cluster.report_command import report_session
from tests.security.furnished import CLUSTER, CONTENT, SESSION, SUITE, place_of, written


class Reader(NamedTuple):
    """A key of the store, and everything that this package makes of what is there."""

    key: Callable[[Store], str]
    read: Callable[[Store, Any], object]  # with pytest's config
    # Where it is taken out of the store: "module.py:function"
    sites: tuple[str, ...]
    lines: bool = False  # JSON lines that zlib has packed


def _record(name: str) -> Callable[[Store], str]:
    return lambda store: f"sessions/{SESSION}/{name}"


def _cluster(name: str) -> Callable[[Store], str]:
    return lambda store: f"clusters/{CLUSTER}/{name}"


def _of_record(read: Callable[[SessionRecord], object]) -> Callable[[Store, Any], object]:
    return lambda store, config: read(SessionRecord(store, SESSION))


def _of_cluster(read: Callable[[ClusterRecord], object]) -> Callable[[Store, Any], object]:
    return lambda store, config: read(ClusterRecord(store, CLUSTER))


def _report(record: SessionRecord) -> object:
    """Make the report of `gpu-cluster report`, as all its readers do."""
    report, _ = report_session(
        record, settings=Settings(), environ={}, root=Path("/"), publish_it=False
    )
    return render.markdown(report, limit=10_000), render.json_text(report)


def _listing(record: SessionRecord) -> object:
    return session_line(session_row(record), running=False)


def _journal(store: Store, config: Any) -> None:
    record = SessionRecord(store, SESSION)
    [log_line(entry) for entry in record.journal().poll()]
    _report(record)
    for event in record.reader().poll():
        match event:
            case TestFinished():
                for each in event.records:
                    if each["kind"] == "report":
                        deserialize.report(config, each["report"])
            case CollectorFinished():
                deserialize.collect_report(config, event.report)
            case _:
                pass


def _tree(store: Store, config: Any) -> None:
    """Read every tree of the store, under the digest that its bytes have."""
    for name in store.names("trees"):
        content = store.get(f"trees/{name}") or b""
        digest = hashlib.sha256(content).hexdigest()
        store.put(tree_key(digest), content)
        with tempfile.TemporaryDirectory() as place:
            try:
                modification_times(store, digest, Path(place))
                get_tree(store, digest)
                unpack(store, digest, Path(place, "tree"))
            finally:
                if tree_key(digest) != f"trees/{name}":
                    store.delete([tree_key(digest)])
                assert set(Path(place).iterdir()) <= {Path(place, "tree"), Path(place, "tree.tree")}


def _blob(store: Store, config: Any) -> None:
    """Unpack the tree that names the blob; a blob that is wrong takes its tree with it."""
    key = f"trees/{store.names('trees')[0]}"
    tree = store.get(key) or b""
    with tempfile.TemporaryDirectory() as place:
        try:
            unpack(store, hashlib.sha256(tree).hexdigest(), Path(place, "tree"))
        finally:
            store.put(key, tree)


def _coverage(store: Store, config: Any) -> None:
    record = SessionRecord(store, SESSION)
    with tempfile.TemporaryDirectory() as place:
        settings = SimpleNamespace(data_file=f"{place}/.coverage")
        plugin = SimpleNamespace(
            cov_controller=SimpleNamespace(cov=SimpleNamespace(config=settings))
        )
        with_plugin = SimpleNamespace(pluginmanager=SimpleNamespace(get_plugin=lambda name: plugin))
        parts = record.coverage([record.coverage_key("w1"), "sessions/other/coverage/w"])
        assert set(parts) == {record.coverage_key("w1")}
        write_coverage(cast(Any, with_plugin), parts, str)


def _passed(store: Store, config: Any) -> object:
    assert store.root is not None
    return take_passed(store.root / "handed")


def _home(store: Store, config: Any) -> object:
    assert store.root is not None
    return HomeMemory(SessionRecord(store, SESSION), store.root).digests


def _index(store: Store, config: Any) -> None:
    assert store.root is not None
    StatIndex(store, store.root).scan([])


def _baseline(store: Store, config: Any) -> object:
    report = Report(session=SESSION, context=ReportContext(suite=SUITE), verdict="failed")
    return delta.against_branch(report, store, CI(host="github", branch="main"), SUITE)


RECORD, OF_CLUSTER = "contract/record.py:", "contract/cluster_record.py:"
READERS: Mapping[str, Reader] = {
    "cluster": Reader(
        _cluster("cluster.json"),
        lambda store, config: (ClusterRecord(store, CLUSTER).description(), [*clusters(store)]),
        (f"{OF_CLUSTER}description",),
    ),
    "announcement": Reader(
        _cluster("state.json"),
        lambda store, config: (ClusterRecord(store, CLUSTER).announcement(), [*clusters(store)]),
        (f"{OF_CLUSTER}announcement",),
    ),
    "head": Reader(_cluster("head.json"), _of_cluster(ClusterRecord.head), (f"{OF_CLUSTER}head",)),
    "node": Reader(
        _cluster("nodes/n1.json"), _of_cluster(ClusterRecord.nodes), (f"{OF_CLUSTER}nodes",)
    ),
    "key": Reader(_cluster("key.json"), _of_cluster(ClusterRecord.key), (f"{OF_CLUSTER}key",)),
    "sealed": Reader(  # what is in it is opened by the keeper: test_sealing
        _cluster(f"sealed/{SESSION}"),
        _of_cluster(lambda record: record.put_sealed(SESSION, record.take_sealed(SESSION) or b"")),
        (f"{OF_CLUSTER}take_sealed",),
    ),
    "decision": Reader(
        _cluster(f"decision/{SESSION}"),
        _of_cluster(lambda record: record.decision(SESSION)),
        (f"{OF_CLUSTER}decision",),
    ),
    "cluster's heartbeat": Reader(
        _cluster("state.json"), _of_cluster(ClusterRecord.heartbeat), (f"{OF_CLUSTER}heartbeat",)
    ),
    "offer": Reader(
        _cluster("inbox/00000001"),
        _of_cluster(lambda record: record.has_offer(SESSION)),
        (f"{OF_CLUSTER}offers",),
    ),
    "request": Reader(
        _record("request.json"),
        _of_record(lambda record: (record.request(), _listing(record), _report(record))),
        (f"{RECORD}request", "contract/stored.py:get_noun"),
    ),
    "heartbeat": Reader(
        _record("control/heartbeat"),
        _of_record(SessionRecord.heartbeat),
        (f"{RECORD}heartbeat",),
    ),
    "stop order": Reader(
        _record("control/heartbeat"),
        _of_record(SessionRecord.stop_order),
        (f"{RECORD}heartbeat",),
    ),
    "journal": Reader(
        _record("events/agent/00000001"),
        _journal,
        ("contract/journal_reader.py:_follow", "contract/journal_reader.py:_look_beyond"),
        lines=True,
    ),
    "result": Reader(
        _record("result.json"),
        _of_record(lambda record: (record.is_closed(), _listing(record), _report(record))),
        (f"{RECORD}result", f"{RECORD}is_closed"),
    ),
    "artifact": Reader(
        _record("artifacts/t/out.txt"),
        _of_record(lambda record: record.artifact("t/out.txt")),
        (f"{RECORD}artifact",),
    ),
    "output": Reader(
        lambda store: f"sessions/{SESSION}/outputs/blobs/{hashlib.sha256(CONTENT).hexdigest()}",
        _of_record(
            lambda record: record.output(written(hashlib.sha256(CONTENT).hexdigest(), len(CONTENT)))
        ),
        (f"{RECORD}output",),
    ),
    "listing": Reader(
        _record("outputs/head.json"),
        _of_record(lambda record: merge(record.outputs())),
        (f"{RECORD}outputs",),
    ),
    "coverage": Reader(_record("coverage/w1"), _coverage, (f"{RECORD}coverage",)),
    "summary": Reader(
        _record("summary.json"),
        _of_record(lambda record: (record.summary(), _report(record))),
        (f"{RECORD}summary",),
    ),
    "durations": Reader(
        lambda store: DURATIONS, lambda store, config: durations(store), (f"{RECORD}durations",)
    ),
    "baseline": Reader(
        lambda store: branch_key("main", SUITE), _baseline, ("report/delta.py:against_branch",)
    ),
    "tree": Reader(
        lambda store: f"trees/{store.names('trees')[0]}",
        _tree,
        (
            "contract/trees.py:get_tree",
            "node/unpack.py:read_tree",
            "node/unpack.py:unpack",
            "node/unpack.py:make",
            "node/outputs.py:_sent",
            "node/working_trees.py:_make",
            "bundle/repository.py:modification_times",
            "bundle/ship.py:_stored",
            "host/not_sent.py:lines",
            "outputs.py:_sent",
        ),
    ),
    "blob": Reader(
        lambda store: blob_key(hashlib.sha256(CONTENT).hexdigest()),
        _blob,
        ("node/unpack.py:_fetch",),
    ),
    "retention": Reader(
        _record("request.json"),
        lambda store, config: prune(store, keep_sessions=1),
        ("bundle/retention.py:prune", "bundle/retention.py:_prune_trees"),
    ),
    "passed values": Reader(lambda store: "handed", _passed, ("node/session.py:take_passed",)),
    "home": Reader(lambda store: place_of(store, "home"), _home, ("outputs.py:__init__",)),
    "index": Reader(lambda store: place_of(store, "index"), _index, ("bundle/index.py:__init__",)),
}
