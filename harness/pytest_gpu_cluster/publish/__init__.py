"""CI hosts: their detection, and a publisher for each that shows reports there.

`detect(environ)` returns the pipeline step that this process runs in. A `Publisher` turns a
`Report` into targets at the host's API, into files that the host collects, and into lines that it
reads from the output. Publishing never changes a verdict.

A CI host is one module with one subclass of `Publisher`. A host of this package has one line in
`HOSTS`; a host of another distribution has an entry point instead, whose name is the host's:

    [project.entry-points."pytest_gpu_cluster.ci_hosts"]
    azure = "acme_ci.azure:Azure"
"""

from __future__ import annotations

import dataclasses
import importlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from pytest_gpu_cluster.contract.request import CI, ReportFacts
from pytest_gpu_cluster.contract.settings import RunRequest, Settings
from pytest_gpu_cluster.report.model import Report

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from pytest_gpu_cluster.publish.exchange import Endpoint, Exchange, PublishError

# By name: a variable that the host sets in every step, and its class. A module is imported only
# where its variable is set, so that a run on a laptop pays for no host.
HOSTS = {
    "bitbucket": ("BITBUCKET_BUILD_NUMBER", "pytest_gpu_cluster.publish.bitbucket:Bitbucket"),
    "github": ("GITHUB_ACTIONS", "pytest_gpu_cluster.publish.github:GitHub"),
    "gitlab": ("GITLAB_CI", "pytest_gpu_cluster.publish.gitlab:GitLab"),
}
ENTRY_POINTS = "pytest_gpu_cluster.ci_hosts"
OTHER = "other"  # the name of every host that nothing recognises; it has no publisher
# A branch as git allows it, without characters that turn or hide what stands around them.
BRANCH = (
    r"(?![-/])(?!.*(?:\.\.|@\{|//|/\.|\.lock(?:/|$)))"
    r"[^\x00-\x20\x7f-\x9f~^:?*\[\\\u2028-\u202e\u2066-\u2069\ud800-\udfff]{1,250}(?<![/.])"
)
NUMBER = r"[1-9][0-9]{0,18}"
NAME = r"(?!\.{1,2}(?![A-Za-z0-9_.-]))[A-Za-z0-9_.-]{1,100}"  # a part of a path; no dots alone
SEND_AGAIN = "the verdict stands; send the report again with: gpu-cluster report --publish"

ReadText = Callable[[str], str]  # a path to the text of that file; raises OSError, ValueError


class Target(NamedTuple):
    """One place at the host that shows a report, and the exchange that updates it."""

    name: str  # as messages call it: "commit status"
    exchange: Exchange


class HostFile(NamedTuple):
    """A file that the host collects; `append` keeps the present content of the file."""

    path: Path
    text: str
    append: bool


class Publisher:
    """Base of all CI hosts. Each method has a default that shows nothing; a host overrides some.

    `detect` and the constructor read the environment and never raise. Methods that return targets
    send nothing: a target's exchange does, when it is driven.
    """

    name: ClassVar[str]  # as messages call the host
    api_variable: ClassVar[str] = ""  # environment variable with the base URL of the API
    api_default: ClassVar[str] = ""
    repository_variable: ClassVar[str] = ""  # names the repository in every step of the host
    # The values of a step that enter requests, each with a regex of all that it can be.
    grammar: ClassVar[Mapping[str, str]] = {
        "repository": rf"{NAME}(/{NAME})*",
        "commit": r"[0-9a-f]{40}|[0-9a-f]{64}",
        "branch": BRANCH,
        "target": BRANCH,
        "pull_request": NUMBER,
        "build": rf"{NAME}(/{NAME})*",
        "pipeline": NUMBER,
    }

    def __init__(self, ci: CI, settings: Settings, environ: Mapping[str, str]) -> None:
        self.ci, self.settings = ci, settings
        self.endpoints: dict[str, Endpoint] = {}
        self.troubles: list[str] = []  # before any request: a credential that cannot be used
        self.notes: list[str] = []  # omissions that are no fault, such as a missing token

    @property
    def has_commit(self) -> bool:
        """False where no commit can be told: its repository or itself is unknown or was refused."""
        return bool(self.ci.repository and self.ci.commit)

    @property
    def has_pull_request(self) -> bool:
        return bool(self.ci.repository and self.ci.pull_request)

    @classmethod
    def detect(cls, environ: Mapping[str, str], read: ReadText) -> CI | None:
        """Return the step that `environ` describes, or None on any other host."""
        raise NotImplementedError

    @classmethod
    def api(cls, environ: Mapping[str, str]) -> str:
        """Return the base URL that this host's token is sent to, without a slash at the end."""
        return (environ.get(cls.api_variable) or cls.api_default).rstrip("/")

    @classmethod
    def page(cls, ci: CI, environ: Mapping[str, str]) -> str:
        """Return the URL, with a slash at its end, below which a step of `ci` has its page.

        "": nothing tells.
        """
        return ""

    @classmethod
    def quarantined(cls, environ: Mapping[str, str], read: ReadText) -> list[tuple[str, str, str]]:
        """Return the tests that the host's users have quarantined: [package, class, name] each."""
        return []

    def started(self, report: Report) -> list[Target]:
        """Return the targets to update when a session starts."""
        return []

    def progressed(self, report: Report) -> list[Target]:
        """Return the targets to update while a session runs, twice a minute at most."""
        return []

    def finished(self, report: Report) -> list[Target]:
        """Return the targets to update with the final report."""
        return []

    def remedy(self, target: str, problem: PublishError) -> str:
        """Return an instruction for the reader after the target of this name was refused."""
        return problem.remedy or SEND_AGAIN

    def files(self, report: Report, directory: Path | None) -> list[HostFile]:
        """Return the files to write. `directory` holds the results; None: nobody wants results."""
        return []

    def opening(self) -> list[str]:
        """Return lines for the output before anything that a test can write."""
        return []

    def closing(self, report: Report) -> list[str]:
        """Return lines for the output after everything else."""
        return []


def read_text(path: str) -> str:
    return Path(path).read_text("utf-8")


def detect(environ: Mapping[str, str], read: ReadText = read_text) -> CI | None:
    """Return the pipeline step that `environ` describes, or None outside of CI.

    Distributions are searched for further hosts only where `CI` is set and no host of this package
    recognises the environment.

    >>> environ = {"CI": "true", "BITBUCKET_BUILD_NUMBER": "7", "BITBUCKET_REPO_FULL_NAME": "a/b"}
    >>> detect(environ).repository
    'a/b'
    """
    for variable, target in HOSTS.values():
        if environ.get(variable) and (ci := _load(target).detect(environ, read)) is not None:
            return ci
    if environ.get("CI", "").lower() in ("", "false", "0"):
        return None
    for entry in _entry_points():
        try:
            ci = _load_entry(entry).detect(environ, read)
        except Exception as problem:  # noqa: BLE001
            # An installed host must not break runs on other hosts.
            reason = f"{type(problem).__name__}: {problem}"
            warnings.warn(f"the CI host {entry.value} is skipped: {reason}", stacklevel=2)
            continue
        if ci is not None:
            return dataclasses.replace(ci, host=entry.name)
    from pytest_gpu_cluster.publish import other

    return other.detect(environ)


def publisher(ci: CI, settings: Settings, environ: Mapping[str, str]) -> Publisher | None:
    """Return the publisher of this step's host.

    None: the host has no publisher, or the settings switch publishing off.
    """
    host = host_class(ci.host) if settings.reports.publish else None
    return host(ci, settings, environ) if host is not None else None


def api(host: str, environ: Mapping[str, str]) -> str:
    """Return the base URL that a host's token is sent to; "" for an unknown host.

    The URL comes from this process's environment, never from a record that somebody else wrote.
    """
    publisher_class = host_class(host)
    return publisher_class.api(environ) if publisher_class is not None else ""


def facts(
    request: RunRequest, ci: CI | None, environ: Mapping[str, str], *, quiet: bool
) -> ReportFacts:
    """Return the part of a session's record from which another process can make its report.

    `quarantined` lists the tests that the host has quarantined. `quiet`: the session is to be
    reported to nobody.
    """
    host = host_class(ci.host) if ci is not None else None
    return ReportFacts(
        ci=ci,
        suite=request.settings.reports.suite,
        public_url=request.settings.reports.public_url,
        prefix=_path_in_repository(request.root, ci),
        quarantined=tuple(host.quarantined(environ, read_text)) if host is not None else (),
        quiet=quiet or not request.settings.reports.publish,
    )


def _path_in_repository(root: Path, ci: CI | None) -> str:
    """Return the path of the tree from the root of its repository, as reviewers see it."""
    checkout = Path(ci.directory) if ci is not None and ci.directory else None
    if checkout is None or not root.is_relative_to(checkout):
        parents = (root, *root.parents)
        checkout = next((path for path in parents if (path / ".git").exists()), root)
    return "" if root == checkout else root.relative_to(checkout).as_posix()


def host_class(name: str) -> type[Publisher] | None:
    """Return the class of the host of this name; None for one that is not installed."""
    if name in HOSTS:
        return _load(HOSTS[name][1])
    entries = _entry_points() if name != OTHER else ()
    return next((_load_entry(entry) for entry in entries if entry.name == name), None)


def _load(target: str) -> type[Publisher]:
    module, _, name = target.partition(":")
    loaded: type[Publisher] = getattr(importlib.import_module(module), name)
    return loaded


def _entry_points() -> Iterable[EntryPoint]:
    from importlib.metadata import entry_points  # slow: it reads every installed distribution

    return entry_points(group=ENTRY_POINTS)


def _load_entry(entry: EntryPoint) -> type[Publisher]:
    loaded: type[Publisher] = entry.load()
    return loaded
