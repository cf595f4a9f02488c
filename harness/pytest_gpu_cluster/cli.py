"""`gpu-cluster`: what is there, what was said, and how to end it.

    gpu-cluster ls               sessions and clusters
    gpu-cluster logs SESSION     what happened in a session, a line per event
    gpu-cluster report [SESSION] what a session came to, also when its client was killed; --publish tells the CI host
    gpu-cluster down [CLUSTER …] close clusters of this store (all of them when none is named)
    gpu-cluster sweep            end what no client and no keeper holds any more
    gpu-cluster doctor           what would go wrong, before anything is spent

Each takes --json. The store is that of [tool.gpu-cluster] in the nearest pyproject.toml, or GPU_CLUSTER_STORE.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_gpu_cluster import clusters, options
from pytest_gpu_cluster.contract.errors import HarnessError, RequestError
from pytest_gpu_cluster.contract.gpus import by_nvml
from pytest_gpu_cluster.contract.journal import JournalReader
from pytest_gpu_cluster.contract.model import Settings
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.providers import ClusterRef, load_provider

RECENT = 300  # sessions that are looked through for those of a build …
RECENT_S = 86_400.0  # … and not older than this


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the command was given: the project, its settings and its store."""

    root: Path
    settings: Settings
    store: Store


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="gpu-cluster", description="Sessions and clusters of pytest --gpu-cluster."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    made = {
        "ls": add("ls", "List the sessions and the clusters of the store."),
        "logs": add("logs", "Say what happened in a session, a line per event."),
        "report": add(
            "report",
            "Say what a session came to, from its record alone; finish the report of a client that was killed.",
        ),
        "down": add("down", "Close clusters of the store, idle or busy."),
        "sweep": add("sweep", "End what no client and no keeper holds any more."),
        "doctor": add("doctor", "Say what would go wrong, before anything is spent."),
    }
    made["logs"].add_argument("session", help="a session's id, its beginning, or 'last'")
    made["report"].add_argument(
        "session",
        nargs="?",
        help="a session's id, its beginning, or 'last'; none: in CI those of this build, elsewhere the last",
    )
    made["report"].add_argument(
        "--junitxml",
        metavar="FILE",
        help="write the JUnit file there (of the last session, if there are several)",
    )
    made["report"].add_argument(
        "--publish", action="store_true", help="tell the CI host, unless it has been told already"
    )
    made["down"].add_argument(
        "cluster", nargs="*", help="cluster ids as ls shows them; none: every cluster of the store"
    )
    for each in made.values():
        each.add_argument("--json", action="store_true", help="one JSON document instead of text")
        each.add_argument("--gpu-profile", metavar="NAME", help="the profile that pytest was given")
    chosen = parser.parse_args(arguments)
    try:
        answer, text, code = COMMANDS[chosen.command](chosen)
    except HarnessError as problem:
        print(f"gpu-cluster: {problem}", file=sys.stderr)
        return problem.exit_code
    try:
        print(json.dumps(answer, indent=2) if chosen.json else text, flush=True)
    except BrokenPipeError:  # a reader such as head has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


class NoStoreError(RequestError):
    """Nothing has run here yet."""


def place(chosen: argparse.Namespace) -> Place:
    """The nearest pyproject.toml upwards decides; without one, this directory and the defaults."""
    here = Path.cwd()
    root = next((p for p in (here, *here.parents) if (p / "pyproject.toml").exists()), here)
    settings = options.read_settings(
        root / "pyproject.toml", profile=chosen.gpu_profile, environ=os.environ
    )
    if "://" not in settings.store and not (root / settings.store).exists():
        raise NoStoreError(
            f"there is no store at {root / settings.store}",
            remedy="run pytest --gpu-cluster once, or set GPU_CLUSTER_STORE",
        )
    return Place(root=root, settings=settings, store=Store.open(settings.store, base=root))


def session_ids(store: Store) -> list[str]:
    """Oldest first: an id begins with its time."""
    return sorted(store.names("sessions"))


def ls(chosen: argparse.Namespace) -> tuple[Any, str, int]:
    at = place(chosen)
    sessions = []
    for name in session_ids(at.store)[-20:]:
        result = at.store.get(f"sessions/{name}/result.json")
        sessions.append(
            {
                "session": name,
                "exitstatus": None,
                **(json.loads(result) if result else {"closed_by": None, "message": "not final"}),
            }
        )
    found = []
    for record, state in clusters.records(at.store):
        there = load_provider(record["provider"], at.settings, os.environ).state(
            ClusterRef(provider=record["provider"], id=record["id"])
        )
        found.append(
            {
                "cluster": record["id"],
                "provider": record["provider"],
                "state": state["state"] if there.state == "running" else "gone",
                "session": state["session"],
                "idle_left_s": state.get("idle_left_s"),
                "nodes": record["shape"]["nodes"],
            }
        )
    lines = [
        f"{s['session']}  exit {s['exitstatus']}  {s.get('failure_class') or ''}  {s['message']}".rstrip()
        for s in sessions
    ] or ["no session"]
    lines += [
        f"cluster {c['cluster']}  {c['provider']}  {c['state']}  {c['session'] or ''}".rstrip()
        for c in found
    ] or ["no cluster"]
    return {"store": at.store.url, "sessions": sessions, "clusters": found}, "\n".join(lines), 0


def logs(chosen: argparse.Namespace) -> tuple[Any, str, int]:
    at = place(chosen)
    known = session_ids(at.store)
    events = JournalReader(at.store, f"sessions/{one_of(known, chosen.session)}/events").poll()
    return events, "\n".join(line(event) for event in events), 0


def recent(known: list[str]) -> list[str]:
    """The newest, by the time that an id begins with."""
    since = time.strftime("%Y%m%d-%H%M%S", time.gmtime(time.time() - RECENT_S))
    return [session for session in known if session >= since][-RECENT:]


def one_of(known: list[str], wanted: str) -> str:
    """The session that `wanted` names. Raises RequestError."""
    match = (
        known[-1:]
        if wanted == "last"
        else [name for name in known if wanted and name.startswith(wanted)]
    )
    if len(match) != 1:
        raise RequestError(
            f"{len(match)} sessions match {wanted!r}", remedy="take an id from: gpu-cluster ls"
        )
    return match[0]


def report(chosen: argparse.Namespace) -> tuple[Any, str, int]:
    from pytest_gpu_cluster import publish, reporting

    try:
        at = place(chosen)
    except NoStoreError:
        if chosen.session is not None or not chosen.publish:
            raise
        return [], "nothing to report", 0
    known, ci = session_ids(at.store), publish.detect(os.environ)
    if chosen.session is not None:
        wanted = [one_of(known, chosen.session)]
    elif ci is not None and ci.build:
        wanted = reporting.of_build(at.store, recent(known), ci)
    else:
        wanted = known[-1:]
    before = {session: reporting.summary(at.store, session) for session in wanted}
    if chosen.publish and chosen.session is None:  # what has been told already is not told twice
        wanted = [
            session
            for session in wanted
            if not before[session] or before[session].get("not_reported")
        ]
    told = [report_one(at, session, chosen, again=bool(before[session])) for session in wanted]
    return [said for said, _ in told], "\n".join(text for _, text in told) or "nothing to report", 0


def report_one(
    at: Place, session: str, chosen: argparse.Namespace, *, again: bool
) -> tuple[dict[str, Any], str]:
    """The summary of one session for machines and for people."""
    from pytest_gpu_cluster import reporting
    from pytest_gpu_cluster.report import junit, render

    made = reporting.from_record(
        session,
        settings=at.settings,
        environ=os.environ,
        root=at.root,
        store=at.store,
        publish_it=chosen.publish,
    )
    lines: list[str] = []
    if chosen.publish and made.report.verdict != "running":
        lines = made.tell(again=again)
        if not again:
            made.close()
    if chosen.junitxml:
        path = Path(chosen.junitxml)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(junit.write(made.report, strict=at.settings.junit_strict))
        except OSError as problem:
            raise RequestError(
                f"{path} cannot be written: {problem.strerror}",
                remedy="give --junitxml another path",
            ) from problem
    text = "\n".join(
        [render.markdown(made.report, limit=1_000_000), *(f"gpu-cluster: {line}" for line in lines)]
    )
    return render.as_json(made.report), text


def line(event: dict[str, Any]) -> str:
    """An event for a reader: who, what, and the words that matter."""
    shown = (
        "name",
        "detail",
        "seconds",
        "nodeid",
        "when",
        "attempt",
        "worker",
        "failure_class",
        "status",
        "exitstatus",
        "message",
        "text",
    )
    said = " ".join(
        f"{key}={round(event[key], 3) if isinstance(event[key], float) else event[key]}"
        for key in shown
        if event.get(key) not in (None, "")
    )
    return f"{event['seq']:>6} {event['writer']:8} {event['kind']:18} {said}"


def down(chosen: argparse.Namespace) -> tuple[Any, str, int]:
    at = place(chosen)
    known = {record["id"]: record for record, _ in clusters.records(at.store)}
    if unknown := [name for name in chosen.cluster if name not in known]:
        raise RequestError(
            f"no cluster {', '.join(unknown)} in {at.store.url}",
            remedy="take an id from: gpu-cluster ls",
        )
    closed, lines, code = [], [], 0
    for name in chosen.cluster or known:
        ref = ClusterRef(provider=known[name]["provider"], id=name)
        try:
            load_provider(ref.provider, at.settings, os.environ).close(ref)
        except HarnessError as problem:  # the others are to be closed all the same
            lines.append(f"cluster {name} NOT closed: {problem}")
            code = code or problem.exit_code
            continue
        at.store.delete(list(at.store.list(f"clusters/{name}/")))
        closed.append(name)
        lines.append(f"cluster {name} closed")
    return {"closed": closed}, "\n".join(lines) or "no cluster", code


def sweep(chosen: argparse.Namespace) -> tuple[Any, str, int]:
    try:
        at: Place | None = place(chosen)
    except NoStoreError:
        at = None  # without a store, what the provider owns can still be swept
    settings = at.settings if at else Settings()
    done = clusters.sweep(
        at.store if at else None, load_provider(settings.provider, settings, os.environ)
    )
    return {"done": done}, "\n".join(done) or "nothing to sweep", 0


def doctor(chosen: argparse.Namespace) -> tuple[Any, str, int]:
    found = list(examine(chosen.gpu_profile))
    text = "\n".join(
        f"{'ok  ' if f['ok'] else 'FAIL'} {f['check']}: {f['said']}"
        + ("" if f["ok"] else f"\n     remedy: {f['remedy']}")
        for f in found
    )
    return found, text, 0 if all(f["ok"] for f in found) else 4


def examine(profile: str | None) -> Iterator[dict[str, Any]]:
    """Each check on its own, so that one failure hides no other."""
    import pytest

    here = Path.cwd()
    root = next((p for p in (here, *here.parents) if (p / "pyproject.toml").exists()), here)
    settings = Settings()

    def check(name: str, act: Callable[[], str]) -> dict[str, Any]:
        try:
            return {"check": name, "ok": True, "said": act(), "remedy": ""}
        except HarnessError as problem:
            return {"check": name, "ok": False, "said": problem.what, "remedy": problem.remedy}

    def read() -> str:
        nonlocal settings
        settings = options.read_settings(
            root / "pyproject.toml", profile=profile, environ=os.environ
        )
        return f"{root / 'pyproject.toml'}"

    def writable() -> str:
        store = Store.open(settings.store, base=root)
        store.check_writable()
        return store.url

    def installed() -> str:
        provider = load_provider(settings.provider, settings, os.environ)
        there = provider.environment(pytest_version=pytest.__version__)
        return f"{there.python}: ray {there.versions['ray']}, pytest {there.versions['pytest']}, torch {there.versions.get('torch', 'absent')}"

    def gpus() -> str:
        real, driver = by_nvml(os.environ)
        if settings.require_gpu and not real:
            raise RequestError(
                "require-gpu is set, and NVML finds no GPU",
                remedy="set require-gpu = false, or use a machine with a GPU",
            )
        return (
            f"{len(real)} x {real[0].name}, driver {driver}"
            if real
            else f"none; {settings.simulated_gpus} would be simulated"
        )

    def told() -> str:
        from pytest_gpu_cluster import publish

        ci = publish.detect(os.environ)
        if ci is None:
            return "none: nobody is told"
        made = publish.publisher(ci, settings, os.environ)
        if made is None:
            return f"{ci.host}: files in {settings.results_dir}"
        if made.troubles:
            raise RequestError(
                f"{made.name}: {made.troubles[0]}",
                remedy="correct that variable; the tests themselves do not need it",
            )
        return "; ".join([f"{made.name}, {ci.repository} at {ci.commit[:12]}", *made.notes])

    yield check("settings", read)
    yield check("store", writable)
    yield check("environment", installed)
    yield check("GPUs", gpus)
    yield check("CI host", told)


COMMANDS: dict[str, Callable[[argparse.Namespace], tuple[Any, str, int]]] = {
    "ls": ls,
    "logs": logs,
    "report": report,
    "down": down,
    "sweep": sweep,
    "doctor": doctor,
}


if __name__ == "__main__":
    sys.exit(main())
