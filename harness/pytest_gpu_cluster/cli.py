"""`gpu-cluster`: sessions and clusters of a store, and how to end them.

    gpu-cluster ls               sessions and clusters
    gpu-cluster logs [SESSION]   what happened in a session, a line per event
    gpu-cluster report [SESSION] a session's result, also when its client was killed
    gpu-cluster artifacts [SESSION] [DIR]   the files of a session's record, into a directory
    gpu-cluster down [CLUSTER …] close clusters of this store (all of them when none is named)
    gpu-cluster sweep            clean up clusters and records whose pytest is gone
    gpu-cluster doctor           check settings, store, environment and GPUs; starts nothing

Each takes --json. The store is that of the nearest pyproject.toml upwards with [tool.gpu-cluster],
or GPU_CLUSTER_STORE; `gpu-cluster -C DIR …` looks from another directory.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from pytest_gpu_cluster import __version__, options
from pytest_gpu_cluster.cli_lines import (
    cluster_line,
    for_runner,
    log_line,
    printable,
    session_line,
    session_row,
)
from pytest_gpu_cluster.clusters.sweep import sweep as sweep_all
from pytest_gpu_cluster.contract.cluster_record import (
    Announcement,
    ClusterDescription,
    ClusterRecord,
    cluster_ids,
)
from pytest_gpu_cluster.contract.cluster_record import clusters as recorded_clusters
from pytest_gpu_cluster.contract.errors import HarnessError, RequestError
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.record import SessionRecord, session_ids
from pytest_gpu_cluster.contract.settings import Settings
from pytest_gpu_cluster.contract.store import Store, local_path
from pytest_gpu_cluster.outputs import files_line
from pytest_gpu_cluster.project import PYPROJECT, find_project
from pytest_gpu_cluster.providers import ClusterRef, load_provider, load_recorded

LISTED = 20  # sessions of `ls`


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a command says: one JSON document for --json, a text without, and the exit code."""

    document: object
    text: str
    exit_code: int = 0


@dataclass(frozen=True, kw_only=True)
class Project:
    """Where the command was given: the project, its settings and its store."""

    root: Path
    settings: Settings
    store: Store


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(
        prog="gpu-cluster", description="Sessions and clusters of pytest --gpu-cluster."
    )
    top.add_argument(
        "-C",
        dest="start",
        metavar="DIR",
        default=Path.cwd(),
        type=_directory,
        help="look for the project from DIR upwards, not from the working directory",
    )
    version = f"pytest-gpu-cluster {__version__}"
    top.add_argument("--version", action="version", version=version)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    each = {
        name: commands.add_parser(name, help=text, description=text)
        for name, (text, _) in COMMANDS.items()
    }
    each["logs"].add_argument(
        "session",
        nargs="?",
        default="last",
        help="a session's id, its beginning, or 'last'; none: the last",
    )
    each["report"].add_argument(
        "session",
        nargs="?",
        help="a session's id, its beginning, or 'last';"
        " none: in CI those of this build, elsewhere the last",
    )
    each["report"].add_argument(
        "--junitxml",
        metavar="FILE",
        help="write the JUnit file there (of the last session, if there are several)",
    )
    each["report"].add_argument(
        "--publish", action="store_true", help="tell the CI host, unless it has been told already"
    )
    each["artifacts"].add_argument(
        "session", nargs="?", default="last", help="a session's id, its beginning, or 'last'"
    )
    each["artifacts"].add_argument(
        "directory",
        nargs="?",
        metavar="DIR",
        help="an empty or new directory; none: gpu-cluster-<session> here,"
        " and with --json nothing is fetched",
    )
    each["down"].add_argument(
        "cluster", nargs="*", help="cluster ids as ls shows them; none: every cluster of the store"
    )
    for command in each.values():
        command.add_argument(
            "--json", action="store_true", help="one JSON document instead of text"
        )
        command.add_argument(
            "--gpu-profile", metavar="NAME", help="the profile that pytest was given"
        )
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    chosen = parser().parse_args(arguments)
    try:
        answer = COMMANDS[chosen.command][1](chosen)
    except HarnessError as problem:
        print(for_runner(printable(f"gpu-cluster: {problem}"), os.environ), file=sys.stderr)
        return problem.exit_code
    try:
        # GitHub's runner obeys `##[` wherever it stands in a line.
        document = json.dumps(answer.document, indent=2).replace("##[", "#\\u0023[")
        text = document if chosen.json else for_runner(printable(answer.text), os.environ)
        encoding = sys.stdout.encoding or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:  # a reader such as head has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return answer.exit_code


class NoStoreError(RequestError):
    """Nothing has run here yet."""


def _directory(text: str) -> Path:
    path = Path(os.path.normpath(Path.cwd() / text))
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is no directory")
    return path


def project(chosen: argparse.Namespace) -> Project:
    """Return the project that the command was given in. Raises RequestError, StoreError."""
    root = find_project(chosen.start).root
    settings = options.read_settings(
        root / PYPROJECT, profile=chosen.gpu_profile, environ=os.environ
    )
    store = local_path(settings.store, base=root)
    if store is not None and not store.exists():
        raise NoStoreError(
            f"there is no store at {store}",
            remedy="run pytest --gpu-cluster once, name the project with gpu-cluster -C DIR,"
            " or set GPU_CLUSTER_STORE",
        )
    return Project(root=root, settings=settings, store=Store.open(settings.store, base=root))


def find_session(sessions: list[str], pattern: str) -> str:
    """Return the session of this id, or of its beginning, or the last one. Raises RequestError."""
    if pattern == "last" and not sessions:
        raise RequestError("there is no session yet", remedy="run pytest --gpu-cluster once")
    matches = [name for name in sessions if pattern and name.startswith(pattern)]
    if pattern == "last":
        matches = sessions[-1:]
    if len(matches) != 1:
        raise RequestError(
            f"{len(matches)} sessions match {pattern!r}", remedy="take an id from: gpu-cluster ls"
        )
    return matches[0]


# -- the commands ----------------------------------------------------------------------------------


def list_all(chosen: argparse.Namespace) -> Answer:
    place = project(chosen)
    store = place.store
    newest = reversed(session_ids(store)[-LISTED:])
    sessions = [session_row(SessionRecord(store, name)) for name in newest]
    rows = [
        _cluster_row(place.settings, cluster, state) for cluster, state in recorded_clusters(store)
    ]
    served = {row["session"] for row in rows if row["state"] not in ("gone", "unknown")}
    lines = [session_line(session, running=session["session"] in served) for session in sessions]
    cluster_lines = [*map(cluster_line, rows)] or ["no cluster"]
    text = "\n".join([*(lines or ["no session"]), *cluster_lines])
    return Answer(document={"store": store.url, "sessions": sessions, "clusters": rows}, text=text)


def _cluster_row(
    settings: Settings, cluster: ClusterDescription, state: Announcement
) -> dict[str, object]:
    row: dict[str, object] = {
        "cluster": cluster.id,
        "provider": cluster.provider,
        "state": state.state,
        "session": state.session,
        "idle_left_s": state.idle_left_s,
        "nodes": cluster.shape.nodes,
        "problem": "",
    }
    try:
        provider = load_recorded(cluster.provider, settings, os.environ)
        ref = ClusterRef(provider=cluster.provider, id=cluster.id, where=cluster.where)
        seen = provider.state(ref)
    except HarnessError as problem:  # the others are listed all the same
        return {**row, "state": "unknown", "problem": str(problem)}
    if seen.state in ("running", "starting"):
        return row
    return {**row, "state": seen.state, "problem": seen.reason if seen.state == "unknown" else ""}


def logs(chosen: argparse.Namespace) -> Answer:
    store = project(chosen).store
    session = find_session(session_ids(store), chosen.session)
    record = SessionRecord(store, session)
    entries = record.journal().poll()
    lines = [*map(log_line, entries), files_line(record)]
    return Answer(document=entries, text="\n".join(filter(None, lines)))


def report(chosen: argparse.Namespace) -> Answer:
    from pytest_gpu_cluster.report_command import report_sessions

    try:
        place = project(chosen)
    except NoStoreError:
        if chosen.session is not None or not chosen.publish:
            raise
        return Answer(document=[], text="nothing to report")
    sessions = session_ids(place.store)
    session = None if chosen.session is None else find_session(sessions, chosen.session)
    reports = report_sessions(
        place.root,
        place.settings,
        place.store,
        session=session,
        publish_it=chosen.publish,
        junitxml=chosen.junitxml,
    )
    text = "\n".join(text for _, text in reports) or "nothing to report"
    return Answer(document=[document for document, _ in reports], text=text)


def artifacts(chosen: argparse.Namespace) -> Answer:
    from pytest_gpu_cluster.artifacts_command import fetch_artifacts

    store = project(chosen).store
    session = find_session(session_ids(store), chosen.session)
    document, text = fetch_artifacts(
        SessionRecord(store, session), chosen.directory, only_list=chosen.json
    )
    return Answer(document=document, text=text, exit_code=1 if document["not_written"] else 0)


def down(chosen: argparse.Namespace) -> Answer:
    place = project(chosen)
    store = place.store
    # A cluster of another version is closed by the provider of the settings.
    ours = place.settings.provider
    refs = {name: ClusterRef(provider=ours, id=name) for name in cluster_ids(store)}
    for cluster, _ in recorded_clusters(store):
        refs[cluster.id] = ClusterRef(provider=cluster.provider, id=cluster.id, where=cluster.where)
    if unknown := [name for name in chosen.cluster if name not in refs]:
        raise RequestError(
            f"no cluster {', '.join(unknown)} in {store.url}",
            remedy="take an id from: gpu-cluster ls",
        )
    closed, lines, exit_code = [], [], 0
    for name in chosen.cluster or refs:
        try:
            provider = load_recorded(refs[name].provider, place.settings, os.environ)
            provider.close(refs[name])
            ClusterRecord(store, name).delete()
        except HarnessError as problem:  # the others are to be closed all the same
            lines.append(f"cluster {name} NOT closed: {problem}")
            exit_code = exit_code or problem.exit_code
            continue
        closed.append(name)
        lines.append(f"cluster {name} closed")
    return Answer(
        document={"closed": closed}, text="\n".join(lines) or "no cluster", exit_code=exit_code
    )


def sweep(chosen: argparse.Namespace) -> Answer:
    settings, store = Settings(), None
    try:
        place = project(chosen)
        settings, store = place.settings, place.store
    except NoStoreError:
        pass  # without a store, what the provider owns can still be swept
    lines = sweep_all(store, load_provider(settings.provider, settings, os.environ))
    return Answer(document={"done": lines}, text="\n".join(lines) or "nothing to sweep")


def doctor(chosen: argparse.Namespace) -> Answer:
    from pytest_gpu_cluster.doctor import examine

    checks = list(examine(find_project(chosen.start), chosen.gpu_profile, os.environ))
    passed = all(check.ok for check in checks)
    return Answer(
        document=[vars(check) for check in checks],
        text="\n".join(map(str, checks)),
        exit_code=0 if passed else 4,
    )


COMMANDS: dict[str, tuple[str, Callable[[argparse.Namespace], Answer]]] = {
    "ls": ("List the sessions and the clusters of the store.", list_all),
    "logs": ("Show what happened in a session, a line per event.", logs),
    "report": (
        "Show a session's result; --publish sends it to the CI host, also after pytest was killed.",
        report,
    ),
    "artifacts": (
        "Fetch the artifacts of a session, and what its tests wrote into the tree.",
        artifacts,
    ),
    "down": ("Shut clusters down, even if tests are running on them.", down),
    "sweep": ("Clean up clusters and records whose pytest is gone.", sweep),
    "doctor": ("Check settings, store, environment and GPUs; starts nothing.", doctor),
}


if __name__ == "__main__":
    sys.exit(main())
