"""Who wants to know: the CI host that this runs on, and one publisher for each.

`detect(env)` says where we are. A publisher turns a `Report` into exchanges with the host's API, one for each surface, into
files that the host collects, and into lines that it reads from the output. None of them decides about a verdict.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import ipaddress
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, urlsplit

from pytest_gpu_cluster.contract.model import CI, RunRequest, Settings
from pytest_gpu_cluster.report.model import Report

if TYPE_CHECKING:
    from pytest_gpu_cluster.publish.http import Door, Exchange, PublishError

REGISTRY = {
    "bitbucket": "pytest_gpu_cluster.publish.bitbucket:Bitbucket",
    "github": "pytest_gpu_cluster.publish.github:GitHub",
    "gitlab": "pytest_gpu_cluster.publish.gitlab:GitLab",
}
# Of hosts without a publisher: what they call the page of a build, its commit and its branch. First that is set.
BUILD_URLS = (
    "BUILD_URL",
    "CIRCLE_BUILD_URL",
    "BUILDKITE_BUILD_URL",
    "DRONE_BUILD_LINK",
    "CIRRUS_TASK_URL",
)
COMMITS = (
    "GIT_COMMIT",
    "CIRCLE_SHA1",
    "BUILDKITE_COMMIT",
    "DRONE_COMMIT_SHA",
    "BUILD_SOURCEVERSION",
)
BRANCHES = (
    "GIT_BRANCH",
    "CIRCLE_BRANCH",
    "BUILDKITE_BRANCH",
    "DRONE_BRANCH",
    "BUILD_SOURCEBRANCHNAME",
)

APIS = {
    "bitbucket": ("BITBUCKET_API_URL", "https://api.bitbucket.org/2.0"),
    "github": ("GITHUB_API_URL", "https://api.github.com"),
    "gitlab": ("CI_API_V4_URL", "https://gitlab.com/api/v4"),
}

Surface = tuple[
    str, "Exchange"
]  # what it is called in the summary, and how it is brought up to date


class Publisher(Protocol):
    """What a host shows of a report."""

    name: str
    troubles: Sequence[str]  # known before anything is sent: a credential that cannot be used
    notes: Sequence[str]  # what is left out without anything being wrong
    doors: Mapping[str, Door]

    def started(self, report: Report) -> list[Surface]: ...

    def progressed(self, report: Report) -> list[Surface]: ...

    def finished(self, report: Report) -> list[Surface]: ...

    def remedy(self, surface: str, problem: PublishError) -> str:
        """What to do about a surface that was refused."""
        ...

    def files(self, report: Report, directory: Path | None) -> list[tuple[Path, str, bool]]:
        """Path, text, and whether it is appended to what is there; `directory` is where results go, if anywhere."""
        ...

    def opening(self) -> list[str]:
        """Lines for the output before anything that a test can write."""
        ...

    def closing(self, report: Report) -> list[str]:
        """Lines for the output after everything else."""
        ...


def publisher(ci: CI, settings: Settings, environ: Mapping[str, str]) -> Publisher | None:
    """The one for this host; None where there is nobody to tell."""
    target = REGISTRY.get(ci.host)
    if target is None or not settings.publish:
        return None
    module, _, name = target.partition(":")
    made: Publisher = getattr(importlib.import_module(module), name)(ci, settings, environ)
    return made


def detect(
    environ: Mapping[str, str],
    read: Callable[[str], str] = lambda path: Path(path).read_text("utf-8"),
) -> CI | None:
    """Where this runs, from its environment alone (and the file in which GitHub describes the event); None on a laptop.

    >>> detect({"CI": "true", "BITBUCKET_BUILD_NUMBER": "7", "BITBUCKET_REPO_FULL_NAME": "acme/aerial"}).repository
    'acme/aerial'
    """
    if environ.get("BITBUCKET_BUILD_NUMBER"):
        return _bitbucket(environ)
    if environ.get("GITHUB_ACTIONS") == "true":
        return _github(environ, read)
    if environ.get("GITLAB_CI"):
        return _gitlab(environ)
    if environ.get("CI", "").lower() in ("", "false", "0"):
        return None
    url, commit, branch = (
        next((environ[name] for name in names if environ.get(name)), "")
        for names in (BUILD_URLS, COMMITS, BRANCHES)
    )
    return CI(
        host="other", commit=commit, branch=branch.removeprefix("origin/"), step_url=url, build=url
    )


def api(host: str, environ: Mapping[str, str]) -> str:
    """The base URL that a host's token is sent to: this process's own, never one that a record names."""
    variable, usual = APIS.get(host, ("", ""))
    return (environ.get(variable) or usual).rstrip("/")


def _below(environ: Mapping[str, str], prefix: str) -> Callable[[str], str]:
    return lambda name: environ.get(prefix + name, "")


def _bitbucket(environ: Mapping[str, str]) -> CI:
    get = _below(environ, "BITBUCKET_")
    repository = get("REPO_FULL_NAME") or f"{get('WORKSPACE')}/{get('REPO_SLUG')}"
    step = f"/steps/{quote(get('STEP_UUID'), safe='')}" if get("STEP_UUID") else ""
    return CI(
        host="bitbucket",
        api=api("bitbucket", environ),
        repository=repository,
        commit=get("COMMIT"),
        branch=get("BRANCH"),
        target=get("PR_DESTINATION_BRANCH"),
        pull_request=get("PR_ID"),
        build=f"{repository}/{get('BUILD_NUMBER')}",
        step_url=f"https://bitbucket.org/{repository}/pipelines/results/{get('BUILD_NUMBER')}{step}",
        directory=get("CLONE_DIR"),
    )


def _github(environ: Mapping[str, str], read: Callable[[str], str]) -> CI:
    get = _below(environ, "GITHUB_")
    event: Any = {}
    with contextlib.suppress(
        OSError, ValueError
    ):  # without it, it is a push as far as anybody can tell
        event = json.loads(read(get("EVENT_PATH"))) if get("EVENT_PATH") else {}
    pull = _object(event, "pull_request")
    head = _object(pull, "head")
    theirs = _object(head, "repo").get("full_name", "")
    theirs_alone = (
        get("EVENT_NAME") == "pull_request" and bool(pull) and theirs != get("REPOSITORY")
    )
    server = get("SERVER_URL") or "https://github.com"
    attempt = f"/attempts/{get('RUN_ATTEMPT')}" if get("RUN_ATTEMPT") else ""
    return CI(
        host="github",
        api=api("github", environ),
        repository=get("REPOSITORY"),
        commit=head.get("sha")
        or get("SHA"),  # GITHUB_SHA is the merge with the target, which no reviewer looks at
        branch=get("HEAD_REF") or get("REF_NAME"),
        target=_object(pull, "base").get("ref", ""),
        pull_request=str(pull.get("number", "")),
        build=f"{get('REPOSITORY')}/{get('RUN_ID')}",
        step_url=f"{server}/{get('REPOSITORY')}/actions/runs/{get('RUN_ID')}{attempt}",
        directory=get("WORKSPACE"),
        fork=theirs_alone
        or (get("ACTOR") == "dependabot[bot]" and get("EVENT_NAME") in ("pull_request", "push")),
    )


def _object(of: Any, name: str) -> dict[str, Any]:
    found = of.get(name) if isinstance(of, dict) else None
    return found if isinstance(found, dict) else {}


def _gitlab(environ: Mapping[str, str]) -> CI:
    get = _below(environ, "CI_")
    projects = {
        get("MERGE_REQUEST_SOURCE_PROJECT_ID"),
        get("MERGE_REQUEST_PROJECT_ID"),
    }  # a fork's own pipeline has its id as the source
    return CI(
        host="gitlab",
        api=api("gitlab", environ),
        repository=get("PROJECT_ID"),
        commit=get("MERGE_REQUEST_SOURCE_BRANCH_SHA")
        or get("COMMIT_SHA"),  # the former where the pipeline runs on a merge result
        branch=get("MERGE_REQUEST_SOURCE_BRANCH_NAME") or get("COMMIT_REF_NAME"),
        target=get("MERGE_REQUEST_TARGET_BRANCH_NAME"),
        pull_request=get("MERGE_REQUEST_IID"),
        build=f"{get('PROJECT_ID')}/{get('PIPELINE_ID')}",
        step_url=get("JOB_URL"),
        directory=get("PROJECT_DIR"),
        pipeline=get("PIPELINE_ID"),
        fork=bool(projects - {"", get("PROJECT_ID")}),
    )


def link(public_url: str, session: str, ci: CI | None) -> tuple[str, bool]:
    """What others can open, and whether it is the session's own page: below `public_url`, else the step. ("", False) for neither."""
    page = f"{public_url.rstrip('/')}/{session}" if public_url else ""
    if reachable(page):
        return page, True
    step = ci.step_url if ci is not None else ""
    return (step, False) if reachable(step) else ("", False)


def reachable(url: str) -> bool:
    """Whether a link makes sense on another machine: not a file, not this machine, a host with a dot in its name.

    >>> [reachable(url) for url in ("https://ci.example.com/x", "http://localhost:8/x", "http://127.0.0.1/", "file:///x", "http://box/")]
    [True, False, False, False, False]
    """
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
    except ValueError:
        return False
    if parts.scheme not in ("http", "https") or parts.username or parts.password:
        return False
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        local = (
            host.endswith((".localhost", ".localdomain")) or host.rpartition(".")[2].isdecimal()
        )  # 127.1 is an address too
        return "." in host and not local
    address = getattr(address, "ipv4_mapped", None) or address
    return not (address.is_loopback or address.is_unspecified or address.is_link_local)


def quarantined(environ: Mapping[str, str]) -> list[list[str]]:
    """Tests that Bitbucket's users have put aside: [package, class, name] each. The file is the host's; a bad one puts nothing aside."""
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        said = json.loads(
            Path(environ.get("BITBUCKET_TEST_METADATA_FILE_PATH", "")).read_text("utf-8")
        )
        tests = said.get("quarantinedTests") or []
        return [
            [str(test.get(key) or "") for key in ("package", "class", "name")]
            for test in tests
            if test.get("name")
        ]
    return []


def facts(
    request: RunRequest, ci: CI | None, environ: Mapping[str, str], *, quiet: bool
) -> dict[str, Any]:
    """What a session's record holds for a report that another process makes of it, and the tests that the host has put aside."""
    return {
        "ci": dataclasses.asdict(ci) if ci is not None else None,
        "suite": request.settings.suite,
        "public_url": request.settings.public_url,
        "prefix": place_in_repository(request.root, ci),
        "quarantined": quarantined(environ),
        "quiet": quiet or not request.settings.publish,  # nobody wants to be told of it
    }


def place_in_repository(root: Path, ci: CI | None) -> str:
    """The tree's place in its repository: reviewers see paths from there."""
    checkout = Path(ci.directory) if ci is not None and ci.directory else None
    if checkout is None or not root.is_relative_to(checkout):
        checkout = next(
            (above for above in (root, *root.parents) if (above / ".git").exists()), root
        )
    return "" if root == checkout else root.relative_to(checkout).as_posix()
