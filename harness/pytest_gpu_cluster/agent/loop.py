"""The agent of a session: collects once, hands tests to slots, commits each outcome once, leaves the cluster clean.

One loop over one queue. Whatever happens (a worker's message, a token granted, a node lost, a limit) arrives there as
`(worker, messages)`; the loop is the only writer of the session's journal and the only one to decide where a test runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_gpu_cluster.agent import plan
from pytest_gpu_cluster.agent.crash import crash_text, with_last_words
from pytest_gpu_cluster.agent.outcomes import Outcomes
from pytest_gpu_cluster.agent.plan import Backlog, Case, Demand
from pytest_gpu_cluster.agent.ray_cluster import Cluster
from pytest_gpu_cluster.contract.codec import decode_line, encode_line, map_strings
from pytest_gpu_cluster.contract.errors import HarnessError
from pytest_gpu_cluster.contract.journal import JournalWriter
from pytest_gpu_cluster.contract.masking import masker, secrets_of
from pytest_gpu_cluster.contract.model import STORE_CREDENTIALS
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.node.lease import Lease, ask

STOP_GRACE_S = 5.0  # between asking a running test to stop and killing it
START_LIMIT_S = 300.0  # for a worker to get from fork to its first word
WORD = re.compile(
    r"[a-z_$]{1,24}"
)  # what events are built of; a secret that is the same word is none
STREAMS = {1: "out", 2: "err"}
WORKER = "pytest_gpu_cluster.worker.main:main"


class Worker:
    """A test process in its slot, and what it was given."""

    def __init__(self, name: str, demand: Demand, taken: dict[str, float], home: str) -> None:
        self.name, self.demand, self.taken, self.home = name, demand, taken, home
        self.transport: Any = None  # Lease, or the same verbs through the slot's token
        self.token: Any = None
        self.queue: deque[Case] = deque()
        self.ready = False
        self.finishing = False
        self.since = time.monotonic()  # of the current test, or of being idle
        self.running: Case | None = None
        self.told = False  # the journal knows that it runs
        self.when = "setup"
        self.stopped_at: float | None = None
        self.timed_out: float | None = None
        self.lost = ""  # why its token is gone
        self.refusal = ""  # why its pytest did not start
        self.done: dict[str, Any] = {}

    def send(self, message: dict[str, Any]) -> None:
        self.transport.send(encode_line(message))


class Agent:
    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.spec, self.request = spec, spec["request"]
        self.limits = self.request["limits"]
        os.environ.update(spec["credentials"])  # of the store; no test process gets them
        self.store = Store.open(spec["store"], base=Path("/"))
        self.prefix = f"sessions/{spec['session']}"
        self.scratch = Path(spec["scratch"])
        self.secrets = secrets_of(spec["env"])
        mask = masker(spec["env"])
        self.mask = lambda text: text if WORD.fullmatch(text) else mask(text)
        self.journal = JournalWriter(
            self.store, f"{self.prefix}/events", "agent", spool=self.scratch / "spool"
        )
        self.events: queue.SimpleQueue[tuple[Worker | None, list[dict[str, Any]]]] = (
            queue.SimpleQueue()
        )
        self.began = time.monotonic()
        self.root = self.scratch / "tree" / self.request["root_name"]
        self.cluster = Cluster(
            spec,
            self.events,
            {str(self.root): self.request["tree"], spec["code"]: self.request["code"]},
        )
        self.selector: Lease | None = None
        self.select_done: dict[str, Any] | None = None
        self.options: dict[str, Any] = {}
        self.pending = Backlog()
        self.tests: list[Case] = []
        self.collected = False
        self.crashed_files: dict[str, str] = {}
        self.collecting = ""
        self.workers: list[Worker] = []
        self.numbered = 0
        self.outcomes = Outcomes(self.write)
        self.coverage: list[str] = []  # keys in the store
        self.stop: dict[str, Any] | None = None  # why no further test starts
        self.control_read = 0.0
        self.single = False  # one slot: tests keep their order, and the worker may know them all
        self.unstarted = 0
        self.told = False  # the selecting process knows that the session ends
        self.clean, self.why = False, ""
        self.unfit = ""  # what was lost on the way: the next session needs a whole cluster
        raw = self.store.get("history/durations.json")
        self.history: dict[str, Any] = json.loads(raw) if raw else {}

    # -- processes -----------------------------------------------------------------------------------------------------

    def environment(self, visible: str) -> dict[str, str]:
        """What a test process sees: the node's plain variables, the passed ones, and exactly its devices."""
        hidden = (
            "RAY_",
            "GPU_CLUSTER_",
            "OMP_",
            *STORE_CREDENTIALS,
            "PYTHON",
        )  # importing Ray sets PYTHONBREAKPOINT
        kept = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
        temporary = self.scratch / "tmp"
        temporary.mkdir(exist_ok=True)
        return {
            **kept,
            **self.spec["env"],
            "CUDA_VISIBLE_DEVICES": visible,
            "TMPDIR": str(temporary),
        }

    def worker_spec(
        self, role: str, name: str, gpus: list[dict[str, Any]], *, drives: bool = False
    ) -> dict[str, Any]:
        visible = ",".join(device["id"] for device in gpus)
        ray = {"address": self.cluster.address, "token": self.spec["ray_token"]} if drives else None
        return {
            "role": role,
            "root": str(self.root),
            "origin": self.request["origin"],
            "cwd": str(self.root / self.request["cwd"]),
            "args": self.request["args"],
            "env": self.environment(visible),
            "worker": name,
            "workers": self.width(),
            "testrun": self.spec["session"],
            "scratch": str(self.scratch / name),
            "cache": self.request["cache"],
            "color": self.request["color"],
            "columns": self.request["columns"],
            "gpus": gpus,
            "ray": ray,
            "cluster": {
                "id": self.spec["cluster"],
                "session": self.spec["session"],
                "nodes": self.spec["nodes"],
                "store": self.spec["store"],
                "prefix": self.prefix,
            },
            "seed": self.options.get("randomly_seed") or self.request.get("seed"),
            "crashed_files": self.crashed_files,
            "sys_path": self.request.get("sys_path", []),
            "plugins": self.request.get("plugins", []),
            "quarantined": self.request.get("quarantined", []),
        }

    def width(self) -> int:
        """How many tests of the default demand run at once."""
        nodes = self.cluster.capacity()
        return max(1, plan.slots(Demand(gpus=self.default_gpus()), nodes, os.cpu_count() or 1))

    def default_gpus(self) -> float:
        asked = self.limits["default_gpus"]
        return (
            float(asked)
            if asked is not None
            else min(1.0, max(self.cluster.capacity().values(), default=0.0))
        )

    def start_selection(self) -> None:
        specification = self.worker_spec("select", "main", list(self.spec["gpus"]))
        lease = Lease(
            self.spec["node"], code=self.spec["code"], entry=WORKER, specification=specification
        )
        self.selector = lease
        self.listen(None, lease, "select")

    def listen(self, worker: Worker | None, transport: Any, role: str) -> None:
        """Bring what the process says into the queue until it has ended."""

        def pump() -> None:
            ended, root = False, json.dumps(str(self.root))[1:-1].encode()
            while not ended:
                messages = [
                    decode_line(line) | {"from": role, "paths": root in line}
                    for line in transport.receive(5.0)
                ]
                if messages:
                    ended = messages[-1]["kind"] == "exit"
                    self.events.put((worker, messages))

        threading.Thread(target=pump, name=f"listen-{role}", daemon=True).start()

    def open_worker(self, demand: Demand, taken: dict[str, float]) -> None:
        """Reserve in Ray's books and start a test process there; it reports itself when it is up."""
        worker = Worker(f"gw{self.numbered}", demand, taken, next(iter(taken)))
        self.numbered += 1
        self.workers.append(worker)

        def start() -> None:
            try:
                worker.token, gpus = self.cluster.reserve(worker.home, demand)
                specification = self.worker_spec("run", worker.name, gpus, drives=demand.drives)
                worker.transport = self.cluster.transport(
                    worker.token, self.spec["code"], WORKER, specification
                )
                self.listen(worker, worker.transport, "run")
                self.cluster.watch(
                    worker.token,
                    lambda why: self.events.put((worker, [{"kind": "token_lost", "why": why}])),
                )
            except Exception as problem:
                why = f"{type(problem).__name__}: {problem}".splitlines()[0]
                self.events.put(
                    (worker, [{"kind": "exit", "status": None, "ordered": False, "why": why}])
                )

        threading.Thread(target=start, name=f"start-{worker.name}", daemon=True).start()

    # -- what arrives --------------------------------------------------------------------------------------------------

    def hear_selection(self, message: dict[str, Any]) -> None:
        kind = message["kind"]
        if kind == "collecting":
            self.collecting = message["path"]
        elif kind == "raw":
            self.write(
                "output",
                text=message["text"],
                via=STREAMS[message["fd"]],
                fd=message["fd"],
                worker="main",
            )
        elif kind == "collected":
            self.options = message.get("options", {})
            self.outcomes.wanted = self.options.get("wants_reports", True)
            self.forward(message)
            self.take_items(message)
        elif kind == "done":
            self.select_done = message
        elif kind == "exit":
            self.selection_ended(message)
        elif kind not in ("ready", "capture_fds"):
            self.forward(message)

    def take_items(self, message: Mapping[str, Any]) -> None:
        """The selection is final: give each test its demand and place in the order, refuse what can never run."""
        self.collected = True
        seen: Counter[tuple[str, ...]] = Counter()
        refused: list[tuple[Case, str]] = []
        runnable: list[Case] = []
        nodes = self.cluster.capacity()
        for index, item in enumerate(message["items"]):
            nodeid, outside = item["nodeid"], item["outside"] or ()
            seen[nodeid, *outside] += 1
            try:
                demand = plan.demand_of(item, self.default_gpus())
                problem = plan.impossible(demand, nodes) or self.too_little_memory(item)
            except ValueError as wrong:
                demand, problem = Demand(), str(wrong)
            test = Case(
                index=index,
                nodeid=nodeid,
                occurrence=seen[nodeid, *outside] - 1,
                location=item["location"],
                outside=outside,
                demand=demand,
                expected_s=plan.expected(self.history, nodeid),
            )
            self.tests.append(test)
            if problem:
                refused.append((test, problem))
            else:
                runnable.append(test)
        if not message.get("run", True):
            return
        class_ = (
            "test" if len(refused) < len(self.tests) else "request"
        )  # nothing that was asked for can be done
        for test, problem in refused:
            self.fail(
                test,
                f"demand: {problem}; ask for less, or raise nodes or gpus-per-node in [tool.gpu-cluster]",
                class_,
                when="setup",
            )
        kinds = {test.demand for test in runnable}
        several = len(kinds) > 1 or any(
            plan.slots(demand, nodes, os.cpu_count() or 1) > 1 for demand in kinds
        )
        runnable = plan.order(runnable, several=several)
        self.single = not several
        if self.stop is None:
            self.pending = Backlog(runnable)
        else:  # the end came before the selection did
            self.give_up(runnable)

    def too_little_memory(self, item: Mapping[str, Any]) -> str | None:
        """Why no device here has the memory that a mark asks for; of simulated ones nothing is known."""
        wanted = (item.get("gpu") or {}).get("memory_gib")
        known = [device["memory_gib"] for device in self.spec["gpus"] if not device["simulated"]]
        if wanted is None or not known or max(known) >= wanted:
            return None
        return f"the test asks for GPUs of {wanted:g} GiB; the largest has {max(known):g} GiB"

    def selection_ended(self, message: Mapping[str, Any]) -> None:
        """The selecting process has gone: at its end, or by a crash while it imported a file."""
        self.selector = None
        if self.select_done is not None:
            return
        if (
            self.collected
            or not self.collecting
            or self.collecting in self.crashed_files
            or self.stop
        ):
            self.select_done = {"exitstatus": None}
            text = crash_text(
                message,
                "while the session was being finished"
                if self.collected
                else "before any file was collected",
            )
            self.write("internal_error", text=with_last_words(text, message))
            self.finish_because("crash", text)
            return
        text = crash_text(message, f"while {self.collecting} was imported")
        self.crashed_files[self.collecting] = with_last_words(text, message)
        self.write("selection_restarted", path=self.collecting)
        self.start_selection()

    def hear_worker(self, worker: Worker, message: dict[str, Any]) -> None:
        kind = message["kind"]
        if kind == "ready":
            worker.ready, worker.since = True, time.monotonic()
        elif kind == "started":
            worker.running, worker.told = worker.queue[0], False
            worker.since, worker.when = time.monotonic(), "setup"
        elif kind == "phase":
            worker.when = message["when"]
        elif kind == "finished":
            self.commit(worker, message)
        elif kind in ("late", "warning", "internal_error", "interrupted"):
            self.hear_of_session(worker, message)
        elif kind == "output":
            self.tell_start(worker)
            self.write(**{**message, "worker": worker.name})
        elif kind == "raw":
            if self.options.get("capture") == "no":
                self.tell_start(worker)
                self.write(
                    "output",
                    text=message["text"],
                    via=STREAMS[message["fd"]],
                    fd=message["fd"],
                    worker=worker.name,
                )
        elif kind == "usage_error":
            worker.refusal = message["text"]
        elif kind == "done":
            worker.done = message
        elif kind == "token_lost":
            worker.lost = message["why"]
            worker.transport.kill()
        elif kind == "exit":
            self.worker_ended(worker, message)

    def hear_of_session(self, worker: Worker, message: dict[str, Any]) -> None:
        """What ends or concerns the whole session: pytest.exit, Ctrl-C in a test, an internal error; a late teardown error."""
        if message["kind"] == "late":
            self.outcomes.count(message["records"])
            self.keep_maxfail()
        if self.stop is None or message["kind"] in ("late", "warning"):
            self.write(**{**message, "worker": worker.name})
        if message["kind"] in ("internal_error", "interrupted"):
            worker.queue.clear()
            worker.running = None
            self.finish_because(None, message.get("text", message["kind"]))

    def commit(self, worker: Worker, message: dict[str, Any]) -> None:
        """One outcome of one attempt, once."""
        test = worker.queue.popleft()
        worker.running = None
        worker.since = time.monotonic()
        if self.stop is None or not self.stop["quiet"]:
            self.outcomes.commit(test, message, worker=worker.name)
            self.keep_maxfail()

    def fail(
        self,
        test: Case,
        text: str,
        class_: str,
        *,
        when: str,
        duration_s: float = 0.0,
        worker: str = "",
    ) -> None:
        self.outcomes.fail(test, text, class_, when=when, duration_s=duration_s, worker=worker)
        self.keep_maxfail()

    def keep_maxfail(self) -> None:
        """`-x` and `--maxfail`, as plain pytest counts."""
        limit = self.options.get("maxfail") or 0
        if limit and self.outcomes.failures >= limit:
            self.finish_because(None, f"stopping after {self.outcomes.failures} failures")

    def worker_ended(self, worker: Worker, message: Mapping[str, Any]) -> None:
        """A test process is gone: as told, by its own crash, or because its node was lost."""
        self.workers.remove(worker)
        self.bring_home(worker)
        status, lost = message["status"], worker.lost or message.get("why", "")
        infrastructure = status is None or bool(lost)
        demands = [*self.pending.demands(), *(other.demand for other in self.workers)]
        whole = not infrastructure and not any(
            demand.drives for demand in demands
        )  # what a driving test is to find free
        self.cluster.release(worker.token, worker.taken, whole=whole)
        victim = worker.running or (
            worker.queue[0] if worker.queue and not infrastructure and worker.ready else None
        )
        left = [test for test in worker.queue if test is not victim]
        if not worker.ready and not worker.finishing and self.stop is None:
            self.not_started(worker, message, lost)
            return
        if worker.timed_out is not None and victim is not None:
            text = f"timeout: {victim.nodeid} outlived its limit of {self.limits['test_timeout_s']:g} s in {worker.when}"
            self.fail(
                victim,
                with_last_words(text, message),
                "timeout",
                when=worker.when,
                duration_s=worker.timed_out,
                worker=worker.name,
            )
        elif infrastructure and self.stop is None:
            self.retry(
                worker,
                [*([victim] if victim else []), *left],
                lost or "its process was lost with its node",
            )
            left = []
        elif victim is not None and worker.stopped_at is None:
            running_s = time.monotonic() - worker.since
            where = f"in {worker.when} of {victim.nodeid}"
            self.write(
                "worker_lost",
                worker=worker.name,
                failure_class="crash",
                status=status,
                message=crash_text(message, where),
            )
            when = worker.when if worker.running else "setup"
            self.fail(
                victim,
                with_last_words(crash_text(message, where), message),
                "crash",
                when=when,
                duration_s=running_s,
                worker=worker.name,
            )
        if self.stop is None:
            self.pending.put_back(left)

    def not_started(self, worker: Worker, message: Mapping[str, Any], lost: str) -> None:
        """A slot or a test process that never came up: tried again a few times when machines may be the reason, else the end."""
        self.unstarted += 1
        if message["status"] is None or lost:
            why = lost or "its node went down"
            self.write(
                "worker_lost",
                worker=worker.name,
                failure_class="infrastructure",
                status=None,
                message=why,
            )
            self.unfit = self.unfit or why
            if self.unstarted > self.limits["infra_retries"]:
                self.finish_because("infrastructure", f"no test process could be started: {why}")
        elif self.collected:  # before that the selection fails in the same way, and says so itself
            text = worker.refusal or crash_text(message, "before its first test")
            said = with_last_words(f"a test process did not start: {text}", message)
            self.write("internal_error", text=said, worker=worker.name)
            self.finish_because(None, text)

    def bring_home(self, worker: Worker) -> None:
        """What the worker's tests left in `artifacts`, and its coverage data, go to the store before its slot is given back."""
        scratch = self.scratch / worker.name
        sources = {f"{self.prefix}/artifacts": str(scratch / "artifacts")}
        if coverage := worker.done.get("coverage"):
            sources[f"{self.prefix}/coverage/{worker.name}"] = coverage
            self.coverage.append(f"{self.prefix}/coverage/{worker.name}")
        with contextlib.suppress(
            Exception
        ):  # a node that is gone takes its files with it; results do not depend on them
            self.cluster.upload(worker.token, sources)

    def retry(self, worker: Worker, tests: list[Case], why: str) -> None:
        """Run lost tests again, elsewhere if there is an elsewhere; the one that was running spends an attempt."""
        self.write(
            "worker_lost",
            worker=worker.name,
            failure_class="infrastructure",
            status=None,
            message=why,
        )
        self.unfit = self.unfit or why
        for test in tests:
            test.avoid.add(worker.home)
            if test is worker.running:
                test.attempt += 1
            if test.attempt > self.limits["infra_retries"]:
                self.fail(
                    test,
                    f"infrastructure: {why} ({test.attempt} attempts)",
                    "infrastructure",
                    when="setup",
                )
            else:
                self.write("retry", nodeid=test.nodeid, attempt=test.attempt, message=why)
                self.pending.put_back([test])

    def open_early(self) -> None:
        """Reserve and start processes while the selection still runs: one, and more if the last runs took long."""
        demand = Demand(gpus=self.default_gpus())
        known_s = sum(plan.expected(self.history, nodeid) or 0.0 for nodeid in self.history)
        for _ in range(min(self.width(), 1 + int(known_s / plan.START_S))):
            if (taken := self.cluster.place(demand)) is not None:
                self.open_worker(demand, taken)

    def close_early(self, worker: Worker) -> None:
        """End a process that is still starting, and for which there is nothing to do."""
        if not worker.ready and not worker.finishing and worker.transport is not None:
            worker.finishing, worker.done = True, {"exitstatus": None}
            worker.transport.kill()

    # -- deciding ------------------------------------------------------------------------------------------------------

    def admit(self) -> None:
        """Open slots for what waits, the biggest demand first; hand tests to workers; close what nobody needs."""
        demands = self.pending.demands()
        blocked = False
        for demand in demands if self.cluster.ready else []:
            mine = [w for w in self.workers if w.demand == demand and not w.finishing]
            busy = sum(bool(worker.queue) for worker in mine)
            wanted = min(
                self.pending.waiting(demand) + busy,
                plan.slots(demand, self.cluster.capacity(), os.cpu_count() or 1),
            )
            while not blocked and len(mine) < wanted and (not mine or self.worth(demand, mine)):
                taken = self.cluster.place(demand, avoid=self.pending.front(demand, 1)[0].avoid)
                if taken is not None and demand.drives:
                    self.cluster.drop_standby()
                if taken is None:
                    blocked = not mine  # drain for it: nothing smaller starts before it has run
                    break
                self.open_worker(demand, taken)
                mine.append(self.workers[-1])
        for worker in list(self.workers):
            if not self.pending.waiting(worker.demand):
                self.close_early(worker)
            self.feed(worker, draining=blocked and worker.demand != demands[0])

    def worth(self, demand: Demand, mine: list[Worker]) -> bool:
        """Whether one more worker pays: for tests known to be short it may not, unless one of them turns out to be long."""
        late = any(
            worker.running and time.monotonic() - worker.since > plan.START_S for worker in mine
        )
        return late or self.pending.worth(demand) >= len(mine)

    def feed(self, worker: Worker, *, draining: bool) -> None:
        if not worker.ready or worker.finishing or worker.transport is None:
            return
        waiting = self.pending.waiting(worker.demand)
        if not waiting or draining:
            if not worker.queue:
                worker.finishing = True
                worker.send({"finish": {}})
            return
        mean_s = self.outcomes.mean_s
        sharers = sum(w.demand == worker.demand for w in self.workers)
        alone = self.single
        if not alone and plan.enough(worker.queue, mean_s=mean_s):
            return
        front = self.pending.front(worker.demand, plan.CHUNK_TESTS)
        count = (
            waiting if alone else plan.batch(front, waiting=waiting, mean_s=mean_s, sharers=sharers)
        )
        chosen = self.pending.take(worker.demand, count, home=worker.home)
        if not worker.queue:
            worker.since = time.monotonic()
        worker.queue.extend(chosen)
        told = [
            {
                "nodeid": t.nodeid,
                "occurrence": t.occurrence,
                "outside": t.outside,
                "attempt": t.attempt,
            }
            for t in chosen
        ]
        worker.send({"run": told, "last": alone})

    def check_limits(self) -> None:
        """Time is kept here, outside the processes that may hang."""
        now = time.monotonic()
        for worker in self.workers:
            if (
                not worker.ready
                and worker.transport is not None
                and now - worker.since > START_LIMIT_S
            ):
                worker.lost = f"it was not ready after {START_LIMIT_S:.0f} s"
                worker.transport.kill()
            elif (
                worker.stopped_at is not None
                and now - worker.stopped_at > STOP_GRACE_S
                and worker.transport is not None
            ):
                worker.transport.kill()
            elif (
                worker.timed_out is None
                and worker.queue
                and worker.ready
                and now - worker.since > self.limits["test_timeout_s"]
            ):
                worker.timed_out = now - worker.since
                worker.running = worker.running or worker.queue[0]
                threading.Thread(target=self.end_with_stacks, args=(worker,), daemon=True).start()
        if self.stop is None and now - self.began > self.limits["max_s"]:
            self.finish_because(
                "limit", f"the session's limit of {self.limits['max_s'] / 60:g} minutes was reached"
            )
        if now - self.control_read > (0.25 if self.store.is_local else 2.0):
            self.control_read = now
            with contextlib.suppress(HarnessError):
                if (raw := self.store.get(f"{self.prefix}/control/stop")) is not None:
                    self.finish_because(None, json.loads(raw)["why"])

    @staticmethod
    def end_with_stacks(worker: Worker) -> None:
        worker.transport.stacks()
        time.sleep(0.3)
        worker.transport.kill()

    def finish_because(self, class_: str | None, why: str) -> None:
        """No further test starts; running ones are asked to stop and then made to."""
        if self.stop is not None:
            return
        self.stop = {"class": class_, "why": why, "quiet": class_ is None}
        self.outcomes.class_ = (
            class_ if class_ in ("limit", "infrastructure") else self.outcomes.class_
        )
        left, self.pending = list(self.pending), Backlog()
        for worker in list(self.workers):
            left += [test for test in worker.queue if test is not worker.running]
            running = [worker.running] if worker.running else []
            left += running if class_ is not None else []
            worker.stopped_at = time.monotonic()
            if worker.transport is not None:
                worker.send({"stop": {}})
                if worker.running is not None:
                    worker.transport.signal(signal.SIGINT)
                worker.send({"finish": {}})
            worker.finishing = True
        self.give_up(left)

    def give_up(self, tests: list[Case]) -> None:
        """Tests that will not run: errors by name when machines or limits are the reason, else just not run."""
        assert self.stop is not None
        class_, why = self.stop["class"], self.stop["why"]
        for test in tests if class_ is not None and class_ != "crash" else ():
            self.fail(test, f"{class_}: {why}", class_, when="setup")

    # -- the session ---------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """The whole session; returns the exit code of this process (0: the cluster is clean)."""
        self.prepare()
        self.start_selection()
        self.cluster.connect()
        self.cluster.start_spare(self.spec["code"], WORKER)
        eager = False
        while not self.over():
            with contextlib.suppress(queue.Empty):
                self.handle(*self.events.get(timeout=0.05))
                while True:
                    self.handle(*self.events.get_nowait())
            if not eager and self.cluster.ready and not self.collected and self.stop is None:
                eager = True
                self.open_early()
            if self.collected and self.stop is None:
                if (
                    not self.journal.stalled
                ):  # else results could be lost: what runs may end, nothing new starts
                    self.admit()
            elif self.stop is None and self.select_done is not None:
                self.finish_because(None, "nothing to run")
            self.check_limits()
        return self.finish()

    def prepare(self) -> None:
        said = ask(
            self.spec["node"], {"op": "unpack", "trees": {str(self.root): self.request["tree"]}}
        )
        if "error" in said:
            raise RuntimeError(said["error"])
        self.write(
            "node",
            node="head",
            cluster=self.spec["cluster"],
            host=socket.gethostname(),
            gpus=self.spec["gpus"],
            driver=self.spec["driver"],
            simulated=any(device["simulated"] for device in self.spec["gpus"]),
        )

    def handle(self, worker: Worker | None, messages: list[dict[str, Any]]) -> None:
        for message in messages:
            if message["kind"] == "cluster":
                self.cluster_changed(message)
            elif worker is None:
                self.hear_selection(message)
            else:
                self.hear_worker(worker, message)
        if worker is not None:
            self.tell_start(worker)

    def tell_start(self, worker: Worker) -> None:
        """A start is said of a test that did not end in the same moment, and before anything that it says."""
        if worker.running is not None and not worker.told:
            worker.told = True
            self.write(
                "test_started",
                nodeid=worker.running.nodeid,
                worker=worker.name,
                attempt=worker.running.attempt,
            )

    def cluster_changed(self, message: Mapping[str, Any]) -> None:
        for node in message.get("joined", []):
            self.write("node", **node)
        if message.get("seconds") is not None:
            self.write(
                "phase",
                name="ray",
                detail=f"connected to {self.spec['nodes']} node(s)",
                seconds=message["seconds"],
            )
        for lost in message.get("lost", []):
            self.unfit = f"node {lost[:12]} left the cluster"
            self.write("node_lost", node=lost, message=f"node {lost[:12]} left the cluster")
        if message.get("error"):
            self.finish_because("infrastructure", message["error"])

    def over(self) -> bool:
        """Whether nothing runs and nothing waits, so that the session's end can be told to the user's conftests."""
        waiting = self.pending or any(not worker.done for worker in self.workers)
        if waiting or (not self.collected and self.stop is None):
            return False
        if self.selector is None or self.select_done is not None:
            return (
                not self.workers
            )  # their processes may take a moment to end, and their files to be brought home
        if not self.told:
            self.told = True
            for start in range(0, len(self.outcomes.feedback), 200):
                self.selector.send(
                    encode_line({"reports": self.outcomes.feedback[start : start + 200]})
                )
            why = self.stop["why"] if self.stop else ""
            failed = why if why.startswith("stopping after") else ""
            self.selector.send(
                encode_line(
                    {
                        "finish": {
                            "shouldfail": failed,
                            "shouldstop": "" if failed else why,
                            "testsfailed": self.outcomes.failures,
                        }
                    }
                )
            )
        return False

    def finish(self) -> int:
        done = self.select_done or {}
        seconds = self.outcomes.seconds
        measured = {t.nodeid: seconds[t.index] for t in self.tests if t.index in seconds}
        with contextlib.suppress(HarnessError):
            if measured:
                self.store.put(
                    "history/durations.json",
                    json.dumps(plan.merged(self.history, measured)).encode(),
                )
        if done.get("coverage"):
            ask(
                self.spec["node"],
                {"op": "upload", "sources": {f"{self.prefix}/coverage/main": done["coverage"]}},
            )
            self.coverage.append(f"{self.prefix}/coverage/main")
        ended = {name: done.get(name) for name in ("exitstatus", "shouldfail", "shouldstop")}
        why = self.stop["why"] if self.stop else ""
        self.write(
            "session_finished",
            **ended,
            failure_class=self.outcomes.class_,
            message=why,
            coverage=self.coverage,
            fit=not self.unfit,
        )
        self.journal.close()  # the client need not wait for what follows
        if self.unfit:
            self.why = self.unfit
            return 0
        warm = self.limits["idle_s"] > 0
        self.clean, self.why = self.cluster.leave(standby_gpus=self.default_gpus() if warm else 0.0)
        return 0

    def write(self, kind: str, **data: Any) -> None:
        data.pop("from", None)
        if kind != "test_finished":
            data.pop("paths", None)
        if self.secrets:  # of the passed variables: what a test prints of them is in no store
            data = map_strings(data, self.mask)
        self.journal.append(kind, **data)

    def forward(self, message: dict[str, Any]) -> None:
        self.write(**message)


def main(specification: dict[str, Any], channel: socket.socket) -> int:
    """Entry of the forked process. Tells the keeper at the end whether the cluster may be lent again."""
    agent = Agent(specification)
    try:
        code = agent.run()
    except BaseException as problem:
        failed = f"the agent failed: {type(problem).__name__}: {problem}"
        with contextlib.suppress(
            HarnessError, ValueError
        ):  # ValueError: the journal was closed, so its end is written already
            agent.write("internal_error", text=failed, worker="agent")
            agent.write(
                "session_finished",
                exitstatus=None,
                shouldfail=None,
                shouldstop=None,
                failure_class="infrastructure",
                message=failed,
            )
            agent.journal.close()
        raise
    channel.sendall(
        json.dumps({"kind": "finished", "clean": agent.clean, "why": agent.why}).encode() + b"\n"
    )
    return code
