"""The figures, one function for each thing that is set up; each returns the rows it measured.

A peer (plain pytest, pytest-xdist, bare `ray start`) runs in the same round as what is compared
with it, so that a noisy machine is noisy for both. Every value is a median over the rounds.
"""

from __future__ import annotations

import contextlib
import os
import platform
import random
import secrets
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import pytest

from gpu_tests.s3_server import Answer, S3Server
from pytest_gpu_cluster.contract.record import session_ids
from pytest_gpu_cluster.contract.store import Store
from tests import traffic
from tests.benchmarks.drive import BenchError, Lab, Run, test_properties
from tests.benchmarks.given_ray import SETTINGS, bare_job_s, ray_lab

IDLE_WATCH_S = 60.0
FAR_S = 0.05  # of a request to a store that is not near
MANY = 20_000
FILES, MORE_FILES = 5_000, 50_000
SLOTS = 4
HEAVY_TESTS, HEAVY_SUM_S = 40, 40.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure.

    `value` and `baseline` are medians; the value must not exceed the budget, if it has one.
    """

    name: str
    value: float
    unit: str
    budget: float | None = None
    baseline: float | None = None
    samples: tuple[float, ...] = ()
    note: str = ""

    @property
    def missed(self) -> bool:
        return self.budget is not None and self.value > self.budget


def row(
    name: str,
    unit: str,
    samples: Iterable[float],
    *,
    baseline: Iterable[float] = (),
    note: str = "",
) -> Row:
    """The row of a figure from its samples, and its baseline from theirs."""
    values, peers = tuple(samples), tuple(baseline)
    return Row(
        name=name,
        value=statistics.median(values),
        unit=unit,
        budget=BUDGETS.get(name),
        baseline=statistics.median(peers) if peers else None,
        samples=values,
        note=note,
    )


def trivial(count: int) -> str:
    return (
        f'import pytest\n\n@pytest.mark.parametrize("i", range({count}))\n'
        "def test_it(i):\n    assert i >= 0\n"
    )


def warm(lab: Lab, rounds: int) -> list[Row]:
    """First result on a warm cluster, over plain pytest."""
    with lab.cluster_of(lab.project("warm", trivial(10))) as project:
        lab.pytest(project, "-v", "--gpu-cluster")
        plain, remote = [], []
        for _ in range(rounds):
            plain.append(lab.pytest(project, "-v").first_s)
            remote.append(lab.pytest(project, "-v", "--gpu-cluster").first_s)
    over = [r - p for r, p in zip(remote, plain, strict=True)]
    return [
        row(
            "warm_first_result_over_plain_s",
            "s",
            over,
            baseline=plain,
            note="baseline: plain pytest to its first result",
        )
    ]


def cold(lab: Lab, rounds: int) -> list[Row]:
    """First result with no cluster running, over Ray's own start."""
    bare, remote = [], []
    with lab.cluster_of(lab.project("cold", trivial(10))) as project:
        for _ in range(rounds):
            bare.append(lab.ray_start_s())
            remote.append(lab.pytest(project, "-v", "--gpu-cluster").first_s)
            lab.down(project)
    over = [r - b for r, b in zip(remote, bare, strict=True)]
    return [
        row(
            "cold_first_result_over_ray_s",
            "s",
            over,
            baseline=bare,
            note="baseline: bare `ray start --head`",
        )
    ]


def given_ray(lab: Lab, rounds: int) -> list[Row]:
    """First result of a session that is a job on a Ray cluster that is there: of a new job, beside
    a bare one in the same round, and of one that is warm, beside plain pytest.
    """
    project = lab.project("given", trivial(10), SETTINGS)
    bare, cold, plain, over = [], [], [], []
    with ray_lab(lab) as (there, rig):
        for _ in range(rounds):
            bare.append(bare_job_s(rig))
            cold.append(there.pytest(project, "-v", "--gpu-cluster").first_s)
            plain.append(there.pytest(project, "-v").first_s)
            over.append(there.pytest(project, "-v", "--gpu-cluster").first_s - plain[-1])
            there.down(project)
    return [
        row(
            "ray_submit_first_result_s",
            "s",
            cold,
            baseline=bare,
            note="baseline: a job that does nothing, to its end",
        ),
        row("ray_warm_first_result_s", "s", over, baseline=plain, note="baseline: plain pytest"),
    ]


TORCH = "import torch\n\ndef test_it():\n    assert torch.ones(3).sum() == 3\n"


def torch_test(lab: Lab, rounds: int) -> list[Row]:
    """One test that imports torch: the whole command on a warm cluster, and plain pytest."""
    with lab.cluster_of(lab.project("torch", TORCH)) as project:
        lab.pytest(project, "-q", "--gpu-cluster")
        plain, ours = [], []
        for _ in range(rounds):
            plain.append(lab.pytest(project, "-q").wall_s)
            ours.append(lab.pytest(project, "-q", "--gpu-cluster").wall_s)
    ratios = [o / p for o, p in zip(ours, plain, strict=True)]
    note = f"wall {statistics.median(ours):.2f} s; baseline: seconds of plain pytest"
    return [row("torch_warm_vs_plain", "ratio", ratios, baseline=plain, note=note)]


def thousand(lab: Lab, rounds: int) -> list[Row]:
    """1,000 trivial tests on two warm slots beside pytest-xdist with two workers, and what they
    cost in the journal.
    """
    tests = 1_000
    with lab.cluster_of(lab.project("thousand", trivial(tests), "simulated-gpus = 2")) as project:
        lab.pytest(project, "-q", "--gpu-cluster")
        ours, xdist, plain = [], [], []
        for _ in range(rounds):
            plain.append(lab.pytest(project, "-q").wall_s)
            xdist.append(lab.pytest(project, "-q", "-n2").wall_s)
            ours.append(lab.pytest(project, "-q", "--gpu-cluster").wall_s)
        sessions = [
            p for p in (Path(lab.store(project)) / "sessions").iterdir() if (p / "events").is_dir()
        ]
        written = [
            sum(f.stat().st_size for f in s.glob("events/**/*") if f.is_file()) / tests
            for s in sessions
        ]
    ratios = [o / x for o, x in zip(ours, xdist, strict=True)]
    wall, alone = statistics.median(ours), statistics.median(plain)
    note = f"wall {wall:.2f} s; baseline: seconds of xdist -n2; plain pytest {alone:.2f} s"
    return [
        row("trivial_1000_vs_xdist", "ratio", ratios, baseline=xdist, note=note),
        row("event_bytes_per_test", "B", written, note="compressed, in the store"),
    ]


PRINTS = """import pytest

@pytest.mark.parametrize("i", range({}))
def test_it(i):
    for epoch in range(i % 2 * 20):
        print("epoch", epoch, "loss", i / 7)
"""


def masking(lab: Lab, rounds: int) -> list[Row]:
    """The part of a run of 1,000 tests that masking takes; every second test has output."""
    from pytest_gpu_cluster.contract.record import SessionRecord, session_ids
    from pytest_gpu_cluster.contract.store import Store
    from tests.benchmarks.masking_cost import masking_cost_s

    tests = 1_000
    passed = {f"GPU_TESTS_{n}_TOKEN": secrets.token_urlsafe(30) for n in range(10)}
    there = replace(lab, env={**lab.env, **passed})
    walls, costs = [], []
    with there.cluster_of(there.project("masking", PRINTS.format(tests))) as project:
        there.pytest(project, "-q", "--gpu-cluster")
        for _ in range(rounds):
            walls.append(there.pytest(project, "-q", "--gpu-cluster").wall_s)
            store = Store.open(there.store(project), base=project)
            record = SessionRecord(store, session_ids(store)[-1])
            costs.append(masking_cost_s(record, passed, tests=tests))
    shares = [cost / wall for cost, wall in zip(costs, walls, strict=True)]
    cost, wall = statistics.median(costs), statistics.median(walls)
    note = f"{cost:.3f} s of CPU in a run of {wall:.2f} s, ten passed secrets"
    return [row("masking_share_1000", "ratio", shares, note=note)]


def heavy_durations(seed: int = 7) -> list[float]:
    """Seconds of 40 lognormal tests that sum to 40 s, the longest within a quarter of that; the
    same on every run.
    """
    source = random.Random(seed)
    raw = [source.lognormvariate(0.0, 1.2) for _ in range(HEAVY_TESTS)]
    scaled = [min(r / sum(raw), 1 / SLOTS) for r in raw]
    return [s / sum(scaled) * HEAVY_SUM_S for s in scaled]


def lower_bound_s(durations: Sequence[float], slots: int) -> float:
    """No schedule is shorter than its longest test, nor than its sum over the slots."""
    return max(*durations, sum(durations) / slots)


HEAVY = """import time
import pytest

@pytest.mark.parametrize("seconds", {durations})
def test_it(seconds, record_property):
    record_property("began", repr(time.time()))
    time.sleep(seconds)
    record_property("ended", repr(time.time()))
"""


def makespan_s(junit: Path) -> float:
    """Seconds from the start of the first test to the end of the last."""
    spans = test_properties(junit).values()
    return max(float(s["ended"]) for s in spans) - min(float(s["began"]) for s in spans)


def heavy_tail(lab: Lab, rounds: int) -> list[Row]:
    """A heavy-tailed suite on four slots whose durations are known, beside xdist's load and
    worksteal.
    """
    durations = heavy_durations()
    tests = HEAVY.format(durations=[round(d, 4) for d in durations])
    junit = lab.scratch / "heavy.xml"
    peers = {
        "load": ("-n4", "--dist=load"),
        "worksteal": ("-n4", "--dist=worksteal"),
        "ours": ("--gpu-cluster",),
    }
    ratios: dict[str, list[float]] = {name: [] for name in peers}
    with lab.cluster_of(lab.project("heavy", tests, f"simulated-gpus = {SLOTS}")) as project:
        lab.pytest(project, "-q", "--gpu-cluster")  # records the durations
        for _ in range(rounds):
            for name, options in peers.items():
                lab.pytest(project, "-q", f"--junitxml={junit}", *options)
                ratios[name].append(makespan_s(junit) / lower_bound_s(durations, SLOTS))
    best = min(ratios["load"], ratios["worksteal"], key=statistics.median)
    load, worksteal = (statistics.median(ratios[name]) for name in ("load", "worksteal"))
    note = (
        "first start to last end; baseline: the better of"
        f" xdist load {load:.3f} and worksteal {worksteal:.3f}"
    )
    return [row("heavy_tail_vs_bound", "ratio", ratios["ours"], baseline=best, note=note)]


def fill(folder: Path, files: int) -> None:
    """Write so many small files, and add them to a new repository."""
    for number in range(files):
        path = folder / f"d{number % (files // 100)}" / f"f{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"file {number}\n" * 20)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    subprocess.run(["git", "add", "."], cwd=folder, check=True)


def tree(lab: Lab, rounds: int) -> list[Row]:
    """5,000 files to the store again: unchanged, and with one of them changed."""
    from pytest_gpu_cluster.bundle.ship import ship
    from pytest_gpu_cluster.contract.store import Store

    folder = lab.scratch / "tree"
    fill(folder, FILES)
    store = Store.open(str(lab.scratch / "tree.store"), base=lab.scratch)
    ship(store, folder, include=(), exclude=(), allow_files=())
    seconds, unchanged, changed = [], [], []
    for number in range(rounds):
        began = time.monotonic()
        unchanged.append(ship(store, folder, include=(), exclude=(), allow_files=()).sent_blobs)
        seconds.append(time.monotonic() - began)
        (folder / "d1" / "f1.txt").write_text(f"changed {number}\n")
        changed.append(ship(store, folder, include=(), exclude=(), allow_files=()).sent_blobs)
    if any(unchanged):
        raise BenchError(f"an unchanged tree sent {unchanged} blobs")
    return [
        row("tree_unchanged_s", "s", seconds, note="5,000 files, no blob sent"),
        row("tree_one_changed_blobs", "blobs", changed),
    ]


def tree_halves(lab: Lab, rounds: int) -> list[Row]:
    """An unchanged tree of many files: until the client has it in the store, and until the node has
    it for the next session.
    """
    from pytest_gpu_cluster.bundle.index import RACY_NS
    from pytest_gpu_cluster.bundle.ship import ship
    from pytest_gpu_cluster.contract.store import Store
    from pytest_gpu_cluster.node.working_trees import WorkingTrees

    rows: list[Row] = []
    for files in (FILES, MORE_FILES):
        folder, node = lab.scratch / f"files-{files}", lab.scratch / f"node-{files}"
        fill(folder, files)
        node.mkdir()
        store = Store.open(str(lab.scratch / f"{files}.store"), base=lab.scratch)
        trees = WorkingTrees(store, node, cache=node / "cache")
        time.sleep(RACY_NS / 1e9)  # a younger file is read again
        client, there, mended = [], [], list[float]()
        for number in range(rounds + 1):  # the first sends and writes all of it
            began = time.monotonic()
            digest = ship(store, folder).digest
            client.append(time.monotonic() - began)
            began = time.monotonic()
            trees.unpack(digest, node / str(number) / "tree")
            there.append(time.monotonic() - began)
            began = time.monotonic()
            trees.keep()
            for thread in threading.enumerate():  # as long as the node waits for the next session
                if thread.name == "mend":
                    thread.join()
            mended.append(time.monotonic() - began)
        note = f"{files:,} files, unchanged"
        if files != FILES:  # that is tree_unchanged_s
            rows.append(row(f"tree_{files}_client_s", "s", client[1:], note=note))
        note += f"; from nothing {there[0]:.1f} s, mended in {statistics.median(mended):.2f} s"
        rows.append(row(f"tree_{files}_node_s", "s", there[1:], note=note))
    return rows


def warm_trees(lab: Lab, rounds: int) -> list[Row]:
    """A whole warm run over plain pytest, of one test in an unchanged tree of many files, beside
    the same in a tree of one.
    """
    rows: list[Row] = []
    alone = lab.project("alone", trivial(1))
    for files in (FILES, MORE_FILES):
        project = lab.project(f"files_{files}", trivial(1))
        fill(project / "data", files)
        with lab.cluster_of(alone), lab.cluster_of(project):
            for each in (alone, project, project):  # by the second, files are old enough to trust
                lab.pytest(each, "-q", "--gpu-cluster")
            over: dict[Path, list[float]] = {alone: [], project: []}
            for _ in range(rounds):
                for each, samples in over.items():
                    plain = lab.pytest(each, "-q").wall_s
                    samples.append(lab.pytest(each, "-q", "--gpu-cluster").wall_s - plain)
        rows.append(
            row(
                f"warm_tree_{files}_over_plain_s",
                "s",
                over[project],
                baseline=over[alone],
                note=f"{files:,} files, unchanged; baseline: a tree of one file",
            )
        )
    return rows


LAG = """import time
import pytest

@pytest.mark.parametrize("i", range(20))
def test_it(i, record_property):
    time.sleep(0.3)
    record_property("ended", repr(time.time()))
"""


def lags(run: Run, junit: Path) -> list[float]:
    """Seconds from the end of each test there to its line here; both clocks are this machine's."""
    ended = test_properties(junit)
    return [
        seen - float(ended[nodeid.rpartition("::")[2]]["ended"])
        for nodeid, seen in run.seen.items()
    ]


def lag_rounds(lab: Lab, project: Path, rounds: int) -> tuple[list[float], list[Run]]:
    junit = lab.scratch / "lag.xml"
    lab.pytest(project, "-v", "--gpu-cluster")
    medians, runs = [], []
    for _ in range(rounds):
        runs.append(lab.pytest(project, "-v", "--gpu-cluster", f"--junitxml={junit}"))
        medians.append(statistics.median(lags(runs[-1], junit)))
    return medians, runs


def lag_file(lab: Lab, rounds: int) -> list[Row]:
    """How late a result is seen, store on this disk."""
    with lab.cluster_of(lab.project("lag", LAG)) as project:
        samples, _ = lag_rounds(lab, project, rounds)
    return [row("result_lag_file_s", "s", samples, note="median over 20 tests a round")]


SECONDS = """import time
import pytest

@pytest.mark.parametrize("i", range(48))
def test_it(i):
    time.sleep(1.0)
"""


@contextlib.contextmanager
def on_s3(lab: Lab) -> Iterator[tuple[S3Server, Lab]]:
    """A store behind S3's HTTP API on loopback, and the lab whose runs use it."""
    with S3Server() as server:
        server.make_bucket("bench")
        env = {**lab.env, **server.env, "GPU_CLUSTER_STORE": "s3://bench/store"}
        yield server, replace(lab, env=env)


def lag_s3(lab: Lab, rounds: int) -> list[Row]:
    """How late a result is seen, store behind S3's HTTP API on loopback; requests of client and
    cluster together.
    """
    with (
        on_s3(lab) as (server, there),
        there.cluster_of(there.project("lag_s3", LAG)) as project,
    ):
        before, began = len(server.answers()), time.monotonic()
        samples, runs = lag_rounds(there, project, rounds)
        busy, busy_s = server.answers()[before:], time.monotonic() - began
        before = len(server.answers())
        time.sleep(IDLE_WATCH_S)
        idle = server.answers()[before:]
    many = f"over {len(runs) + 1} sessions in a row"
    idle_name, writes_name = "store_requests_per_minute_idle", "store_writes_per_minute_idle"
    return [
        row("result_lag_s3_s", "s", samples, note="median over 20 tests a round"),
        requests_row("store_requests_per_minute_busy", busy, busy_s, note=many),
        requests_row(idle_name, idle, IDLE_WATCH_S, note="a warm cluster, no session"),
        row(
            writes_name,
            "1/min",
            [traffic.writes(idle) / IDLE_WATCH_S * 60],
            note="of these, PUT and LIST",
        ),
    ]


def requests_row(name: str, asked: Sequence[Answer], seconds: float, *, note: str) -> Row:
    """Requests a minute, by kind in the note."""
    kinds = traffic.by_kind(asked)
    by_kind = ", ".join(f"{kind} {n / seconds * 60:.0f}" for kind, n in sorted(kinds.items()))
    return row(name, "1/min", [sum(kinds.values()) / seconds * 60], note=f"{note}: {by_kind}")


def store_traffic(lab: Lab, rounds: int) -> list[Row]:
    """What a warm session asks of a store, and how many requests lead to its first result when each
    takes 50 ms.
    """
    trips, sessions = list[float](), list[float]()
    with on_s3(lab) as (server, there), pytest.MonkeyPatch.context() as patch:
        for name, value in server.env.items():
            patch.setenv(name, value)
        store = Store.open("s3://bench/store", base=lab.scratch)
        short, seconds = there.project("one", trivial(1)), there.project("seconds", SECONDS)
        with there.cluster_of(short), there.cluster_of(seconds):
            for project in (short, short, seconds):  # by the second, files are old enough to trust
                there.pytest(project, "-q", "--gpu-cluster")
            for _ in range(rounds):
                before = len(server.answers())
                there.pytest(seconds, "-q", "--gpu-cluster")
                sessions.append(len(server.answers()) - before)
                there.pytest(short, "-q", "--gpu-cluster")  # the node has another project's tree
                server.throttle(get_s=FAR_S, put_s=FAR_S, other_s=FAR_S)
                before = len(server.answers())
                there.pytest(short, "-q", "--gpu-cluster")
                server.throttle()
                asked = server.answers()[before:]
                result = traffic.result_key(store, session_ids(store)[-1])
                trips.append(traffic.round_trips(asked, result))
    return [
        row(
            "store_round_trips_first_result",
            "trips",
            trips,
            note="counted, 50 ms on every request; one test, tree unchanged",
        ),
        row(
            "store_requests_session",
            "requests",
            sessions,
            note="48 tests of 1 s on two workers, warm; client and cluster together",
        ),
    ]


IMPORT = """import time, pytest, _pytest.config.argparsing
began = time.perf_counter()
import {module}
print((time.perf_counter() - began) * 1e3)
"""


def plugin_import(lab: Lab, rounds: int) -> list[Row]:
    """What every pytest run of an environment with this plugin pays, with or without the flag."""

    def milliseconds(module: str) -> float:
        command = [sys.executable, "-c", IMPORT.format(module=module)]
        done = subprocess.run(
            command, env=lab.env, text=True, capture_output=True, timeout=60, check=True
        )
        return float(done.stdout)

    milliseconds("pytest_gpu_cluster.plugin"), milliseconds("xdist.plugin")
    ours, xdist = [], []
    for _ in range(max(rounds, 5) * 2):
        ours.append(milliseconds("pytest_gpu_cluster.plugin"))
        xdist.append(milliseconds("xdist.plugin"))
    return [row("plugin_import_ms", "ms", ours, baseline=xdist, note="baseline: xdist.plugin")]


def memory(lab: Lab, rounds: int) -> list[Row]:
    """Peak resident memory of client and agent in a session of 20,000 tests."""
    with lab.cluster_of(lab.project("memory", trivial(MANY))) as project:
        plain = lab.pytest(project, "-q")
        ours = lab.pytest(project, "-q", "--gpu-cluster")
    return [
        row(
            "client_peak_mib_20000",
            "MiB",
            [ours.peak_mib],
            baseline=[plain.peak_mib],
            note="baseline: plain pytest, tests included",
        ),
        row(
            "agent_peak_mib_20000",
            "MiB",
            [ours.agent_peak_mib],
            note="Ray and torch, shared with the fork server, included",
        ),
    ]


def machine(lab: Lab, rounds: int) -> list[Row]:
    """Where all of this was measured."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("pytest", "ray", "pytest-xdist"))
    note = (
        f"{platform.machine()}, Python {platform.python_version()}, {versions};"
        f" load {os.getloadavg()[0]:.1f}"
    )
    return [
        row("machine_cores", "cores", [float(os.cpu_count() or 0)], note=f"{note} when it began")
    ]


BUDGETS = {
    "warm_first_result_over_plain_s": 1.0,
    "cold_first_result_over_ray_s": 2.0,
    "trivial_1000_vs_xdist": 1.0,
    "heavy_tail_vs_bound": 1.05,
    "masking_share_1000": 0.05,
    "tree_unchanged_s": 0.5,
    "tree_one_changed_blobs": 1.0,
    "warm_tree_5000_over_plain_s": 0.3,
    "warm_tree_50000_over_plain_s": 1.0,
    "result_lag_file_s": 0.3,
    "result_lag_s3_s": 1.0,
    "store_requests_per_minute_idle": 75.0,
    "store_writes_per_minute_idle": 5.0,
    "store_round_trips_first_result": 8.0,
    "store_requests_session": 208.0,  # half of what it was
    "plugin_import_ms": 10.0,
}

# Of each figure, what it is to somebody who has read no code.
WORDS = {
    "machine_cores": "the machine",
    "warm_first_result_over_plain_s": "first result later than with plain pytest, cluster warm",
    "torch_warm_vs_plain": "one test that imports torch, cluster warm, over plain pytest",
    "cold_first_result_over_ray_s": "first result later than Ray's own start, no cluster there",
    "ray_submit_first_result_s": "first result of a new job on a Ray that is there",
    "ray_warm_first_result_s": "first result later than with plain pytest, that job warm",
    "trivial_1000_vs_xdist": "1,000 trivial tests, over pytest-xdist",
    "event_bytes_per_test": "size of a test in the record",
    "masking_share_1000": "the part of a run of 1,000 tests that masking takes",
    "heavy_tail_vs_bound": "tests of very different length, over the best possible plan",
    "tree_unchanged_s": "sending an unchanged tree",
    "tree_one_changed_blobs": "files sent when one has changed",
    "tree_50000_client_s": "the same with 50,000 files",
    "tree_5000_node_s": "having an unchanged tree ready on the node",
    "tree_50000_node_s": "the same with 50,000 files",
    "warm_tree_5000_over_plain_s": "a run of one test in 5,000 files, over plain pytest",
    "warm_tree_50000_over_plain_s": "the same with 50,000 files",
    "result_lag_file_s": "from a test's end to its line here",
    "result_lag_s3_s": "the same, with a store on S3",
    "store_requests_per_minute_busy": "requests to S3 while tests run",
    "store_requests_per_minute_idle": "requests to S3 while a cluster waits",
    "store_writes_per_minute_idle": "the dear ones of these",
    "store_round_trips_first_result": "requests to S3 in a row before the first result",
    "store_requests_session": "requests to S3 of a session of 24 s",
    "plugin_import_ms": "what a plain `pytest` pays for the installed plugin",
    "client_peak_mib_20000": "memory here, 20,000 tests",
    "agent_peak_mib_20000": "memory on the cluster, 20,000 tests",
}

# What is measured together, and the rows it gives.
FIGURES: dict[Callable[[Lab, int], list[Row]], tuple[str, ...]] = {
    machine: ("machine_cores",),
    warm: ("warm_first_result_over_plain_s",),
    torch_test: ("torch_warm_vs_plain",),
    cold: ("cold_first_result_over_ray_s",),
    given_ray: ("ray_submit_first_result_s", "ray_warm_first_result_s"),
    thousand: ("trivial_1000_vs_xdist", "event_bytes_per_test"),
    masking: ("masking_share_1000",),
    heavy_tail: ("heavy_tail_vs_bound",),
    tree: ("tree_unchanged_s", "tree_one_changed_blobs"),
    tree_halves: ("tree_50000_client_s", "tree_5000_node_s", "tree_50000_node_s"),
    warm_trees: ("warm_tree_5000_over_plain_s", "warm_tree_50000_over_plain_s"),
    lag_file: ("result_lag_file_s",),
    lag_s3: (
        "result_lag_s3_s",
        "store_requests_per_minute_busy",
        "store_requests_per_minute_idle",
        "store_writes_per_minute_idle",
    ),
    store_traffic: ("store_round_trips_first_result", "store_requests_session"),
    plugin_import: ("plugin_import_ms",),
    memory: ("client_peak_mib_20000", "agent_peak_mib_20000"),
}
