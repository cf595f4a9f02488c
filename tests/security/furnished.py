"""A store with a cluster and a closed session, as this package writes it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pytest_gpu_cluster.bundle.index import index_path
from pytest_gpu_cluster.bundle.ship import ship_files
from pytest_gpu_cluster.contract.cluster_record import (
    Announcement,
    ClusterDescription,
    ClusterRecord,
    NodePhase,
    NodeRecord,
)
from pytest_gpu_cluster.contract.events import (
    Collected,
    CollectorFinished,
    Header,
    Hello,
    Interrupted,
    NodeReady,
    SessionFinished,
    Summary,
    TestFinished,
    WarningRaised,
)
from pytest_gpu_cluster.contract.failures import Closer, StopReason
from pytest_gpu_cluster.contract.gpus import Gpu
from pytest_gpu_cluster.contract.outputs import NodeOutputs, WrittenFile
from pytest_gpu_cluster.contract.record import (
    Ending,
    SessionRecord,
    branch_key,
    put_durations,
)
from pytest_gpu_cluster.contract.records import (
    ReportData,
    TestRecord,
    WarningRecord,
    crash_records,
)
from pytest_gpu_cluster.contract.request import CI, Limits, SessionRequest, Shape
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.report import render
from pytest_gpu_cluster.report.model import Delta, Report, ReportContext

SESSION, CLUSTER, SUITE = "20260101-120000-abcd", "c1", "gpu-cluster"
CONTENT = b"x = 1\n" * 99
SHAPE = Shape(
    owner="me",
    environment="abc",
    nodes=1,
    gpus_per_node="auto",
    facts={"python": "/usr/bin/python"},
)
REQUEST = SessionRequest(
    session=SESSION,
    asked_at=1.0,
    provider="local",
    agent="x:y",
    root_name="project",
    origin="/project",
    cwd=".",
    args=("-x",),
    passed=("TOKEN",),
    limits=Limits(max_s=1, idle_s=1, test_timeout_s=1, infra_retries=1, default_gpus=None),
    cache={"cache/lastfailed": {"a.py::t": True}},
    mtimes={"a.py": 1},
    ci=CI(host="github", branch="main"),
    quarantined=(("p", "C", "t"),),
    shape=SHAPE,
)
NODE = NodeRecord(
    name="n1",
    phase=NodePhase.READY,
    text="is in Ray",
    seconds=1.0,
    directory=Path("/far/n1"),
    ray_node="b" * 56,
    gpus=(Gpu(id="0", name="A100", memory_gib=80.0, simulated=False),),
)
PLACE = ("a.py", 3, "t")
WARNING: WarningRecord = {
    "kind": "warning",
    "category": "UserWarning",
    "module": "builtins",
    "text": "old",
    "filename": "a.py",
    "lineno": 3,
    "line": "",
    "source": False,
    "when": "runtest",
    "nodeid": "a.py::t",
    "location": {"$t": ["a.py", 3, "t"]},
}
RECORDS: list[TestRecord] = [
    *crash_records(
        "a.py::t", PLACE, when="call", text="E boom\nmore", sections=[("Captured stdout", "hi")]
    ),
    WARNING,
    {"kind": "output", "text": "o", "via": "out", "fd": 1},
    {"kind": "log_file", "text": "l"},
    {"kind": "xml_property", "nodeid": "a.py::t", "name": "n", "value": "v"},
    {"kind": "plugin", "plugin": "benchmark", "data": {"times_s": [0.1]}},
]
SKIPPED: ReportData = {
    "$report_type": "CollectReport",
    "nodeid": "b.py",
    "outcome": "skipped",
    "longrepr": {"$t": ["b.py", 1, "Skipped: no"]},
    "result": None,
    "sections": [],
}
EVENTS = (
    Hello(
        root="/far", origin="/project", workers=1, pytest="9", python="3.11", executable="python"
    ),
    NodeReady(
        node="head",
        host="h",
        gpus=(Gpu(id="0", name="simulated GPU", memory_gib=0.0, simulated=True),),
        driver=None,
        simulated=True,
    ),
    Header(parts=[{"plugin": "x", "lines": ["x: 1"]}]),
    CollectorFinished(report=SKIPPED, kids=((True, "b.py::t", "t"),)),
    WarningRaised(warning=WARNING),
    Collected(
        items=[
            {
                "nodeid": "a.py::t",
                "name": "t",
                "parent": 0,
                "location": [*PLACE],
                "outside": None,
                "gpu": {"count": 1},
                "ray": None,
            }
        ],
        collectors=[{"nodeid": "a.py", "name": "a.py", "parent": -1}],
        parts=[],
    ),
    TestFinished(nodeid="a.py::t", index=0, records=RECORDS, duration_s=0.5),
    Interrupted(text="stop", longrepr={"reprcrash": None}, records=RECORDS[:1]),
    Summary(parts=[{"plugin": "x", "text": "t", "fresh": True}]),
    SessionFinished(pytest_status=1, tests_status=1, fit=True),
)


def furnish(store: Store) -> None:
    """Write a cluster and a closed session, as client, keeper and agent do."""
    cluster, record = ClusterRecord(store, CLUSTER), SessionRecord(store, SESSION)
    cluster.put_description(
        ClusterDescription(id=CLUSTER, provider="local", protocol=1, shape=SHAPE, deadline_s=60)
    )
    cluster.announce(Announcement(session=SESSION, idle_left_s=1.0))
    cluster.put_head("127.0.0.1:1")
    cluster.put_node(NODE)
    cluster.put_key("00" * 32)
    cluster.put_sealed(SESSION, b"sealed")
    cluster.offer(SESSION)
    cluster.decide(SESSION, taken=True)
    tree = ship_files(store, {"a.py": CONTENT, "p/b.py": b"", "p/c": b"c"})
    record.put_request(REQUEST)
    record.beat("1 1")
    record.order_stop(StopReason.CLIENT_LOST)
    journal = record.writer("agent")
    for event in EVENTS:
        journal.append(event)
    journal.close()
    store.put(f"{record.artifacts_prefix()}/t/out.txt", b"out")
    store.put(record.coverage_key("w1"), b"SQLite format 3\0")
    digest = hashlib.sha256(CONTENT).hexdigest()
    record.put_output(digest, CONTENT)
    record.put_outputs(NodeOutputs(node="head", files=(written(digest, len(CONTENT)),)))
    difference = Delta(branch="main", session="s", slower=(("a.py::t", 1.0, 2.0),))
    report = Report(
        session=SESSION, context=ReportContext(suite=SUITE), verdict="failed", delta=difference
    )
    record.put_summary(render.json_text(report))
    record.close(Ending(exit_code=1), by=Closer.CLIENT, seconds=1.0, counts={"failed": 1})
    put_durations(store, {"a.py::t": [0.5, 0.4]})
    baseline = {"v": 1, "session": "s", "commit": "", "branch": "main", "selection": ["-x"]}
    baseline["tests"] = {"a.py::t": ["passed", 0.5]}
    store.put(branch_key("main", SUITE), json.dumps(baseline).encode())
    assert store.root is not None
    (store.root / "handed").write_text('{"TOKEN": "secret"}')
    home = {"a.py": digest}
    store.put(place_of(store, "home"), json.dumps(home).encode())
    row = [1, 2, 3, 4, digest, ""]
    head = {"v": 2, "survey": "s", "tree": tree.digest, "files": 3, "bytes": 4}
    lines = f"{json.dumps(head)}\n{json.dumps({'a.py': row})}"
    store.put(place_of(store, "index"), lines.encode())


def written(digest: str, size: int) -> WrittenFile:
    return WrittenFile(path="out/a", executable=False, blob=digest, size=size, mtime_ns=1)


def place_of(store: Store, kind: str) -> str:
    assert store.root is not None
    return index_path(store, store.root, kind).relative_to(store.root).as_posix()
