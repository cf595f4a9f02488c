"""Records that somebody has bent, and CI hosts that remember where a token came to."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_gpu_cluster.contract.events import Event
from pytest_gpu_cluster.contract.failures import Closer
from pytest_gpu_cluster.contract.fields import JsonObject
from pytest_gpu_cluster.contract.record import Ending, SessionRecord
from pytest_gpu_cluster.contract.settings import ReportSettings, Settings
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.publish import detect
from pytest_gpu_cluster.report.model import Report
from pytest_gpu_cluster.report.sinks import Closing
from pytest_gpu_cluster.report_command import report_session
from tests.hosts import FakeBitbucket, FakeGitHub, FakeGitLab
from tests.hosts.exchange import Recorded
from tests.unit.report.events import request, session

COMMIT = "a" * 40
SESSION = "20260101-120000-abcd"
EVIL = "https://evil.example"
SETTINGS = Settings(reports=ReportSettings(check_run=True))
PLACES = ("repository", "commit", "pull_request")  # they are in the paths of all three hosts
# What else could enter a request; the last two are the record's own, not its step's.
OTHERS = (
    *("host", "api", "branch", "target", "build", "step_url", "directory", "pipeline"),
    *("suite", "public_url"),
)


@dataclass(frozen=True)
class Kind:
    """One of the three hosts: where its token may come to, and which pages it may be shown."""

    make: Callable[[], Any]
    environ: Callable[[Any, Path], dict[str, str]]
    paths: str  # regex of the paths of the true repository, with their query
    page: str  # regex of the step's page
    targets: tuple[str, ...]
    repository_variable: str
    step_variables: tuple[str, ...]  # without them the process is in no step

    def strays(self, requests: list[Recorded]) -> list[str]:
        """Return the requests with a credential that went anywhere else."""
        return [
            f"{each.method} {each.path[:120]!r} via {each.via}"
            for each in requests
            if {"authorization", "private-token"} & each.headers.keys() or each.via == "proxy"
            if not re.fullmatch(self.paths, each.path)
        ]

    def forged(self, requests: list[Recorded]) -> list[str]:
        """Return the values of bodies that no true record of this step would have put there."""
        pairs = [pair for each in requests for pair in leaves(each.body)]
        allowed = {
            **dict.fromkeys(("url", "target_url", "details_url", "link", "href"), self.page),
            "ref": "feature/tiles",
            "refname": "feature/tiles",
            "head_sha": COMMIT,
            "pipeline_id": "5512",
        }
        return [
            f"{name} {value[:120]!r}"
            for name, value in pairs
            if name in allowed and not re.fullmatch(allowed[name], value)
        ]


# A record may name any suite, but nothing else in its place.
SUITE = r"(gpu-cluster(-|%3A%20))?[A-Za-z0-9][A-Za-z0-9._-]{0,79}"
_BITBUCKET_COMMIT = rf"commit/{COMMIT}/(statuses/build|reports/{SUITE}(/annotations)?)"
KINDS = {
    "bitbucket": Kind(
        make=FakeBitbucket,
        environ=lambda host, _: dict(host.environ()),
        paths=r"/2\.0/repositories/acme/aerial/"
        rf"({_BITBUCKET_COMMIT}|pullrequests/7/comments(/\d+)?)"
        r"(\?pagelen=100&page=\d+)?",
        page=r"https://bitbucket\.org/acme/aerial/pipelines/results/\d+/steps/%7B[0-9a-f-]+%7D",
        targets=("Code Insights report", "commit status", "pull request comment"),
        repository_variable="BITBUCKET_REPO_FULL_NAME",
        step_variables=("CI", "BITBUCKET_BUILD_NUMBER"),
    ),
    "github": Kind(
        make=FakeGitHub,
        environ=lambda host, path: dict(host.environ(path)),
        paths=rf"/repos/acme/aerial/(statuses/{COMMIT}|check-runs(/\d+)?"
        rf"|commits/{COMMIT}/check-runs\?check_name={SUITE}&filter=latest"
        r"|issues/(7/comments(\?per_page=100&page=\d+)?|comments/\d+))",
        page=r"https://github\.com/acme/aerial/actions/runs/\d+/attempts/\d+",
        targets=("commit status", "check run", "pull request comment"),
        repository_variable="GITHUB_REPOSITORY",
        step_variables=("CI", "GITHUB_ACTIONS"),
    ),
    "gitlab": Kind(
        make=FakeGitLab,
        environ=lambda host, path: dict(host.environ(path)),
        paths=rf"/api/v4/projects/42/(statuses/{COMMIT}|merge_requests/7/notes(/\d+)?)"
        r"(\?per_page=100&page=\d+)?",
        page=r"https://gitlab\.example\.com/acme/aerial/-/jobs/\d+",
        targets=("commit status", "merge request note"),
        repository_variable="CI_PROJECT_ID",
        step_variables=("CI", "GITLAB_CI"),
    ),
}


def leaves(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield each text and number of a JSON value, with the key that it stands at."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item, name)
    elif isinstance(value, str | int):
        yield name, str(value)


def bent(true: str) -> list[str]:
    """Return what might stand in the place of a true value."""
    return [
        # another place by the shape of the path
        *("..", "../../..", "../../../evil/repo", f"{true}/../../evil/repo", "acme/..", "./acme"),
        *("%2e%2e/%2e%2e/evil", f"{true}%2f..%2f..", "%252e%252e", "..%00", "acme%2F..%2Fevil"),
        *("/", f"/{true}", f"{true}/", f"{true}//evil", "\\..\\..\\evil", "．．/．．/evil"),
        # the end of the path, or another host
        *(f"{true}?admin=1", f"{true}#", f"{true}#/../evil", f"{true}?", f"{true};v=1"),
        *(f"{EVIL}/{true}", f"//evil.example/{true}", f"{true}@evil.example", "@evil.example:80"),
        # another line, or no text
        *(f"{true}\r\nX-Evil: 1", f"{true}\nHost: evil.example", f"{true}\x00", f"{true}\x1b[31m"),
        *(f"{true} ", f"\t{true}", f"{true}\u202e", f"{true}\ud800", f"{true}\u2028evil"),
        # well formed, and somebody else's
        *("evil/repo", "b" * 40, "8", "43", "main", "nightly", "bitbucket", "github", "gitlab"),
        *(f"{true}x", "x" * 5_000, "0", "-1", "{workspace}/{repo_slug}", "javascript:alert(1)"),
        *(f"{EVIL}/acme/aerial/actions/runs/1", "https://github.com/evil/repo/actions/runs/1"),
        *("https://bitbucket.org/evil/repo/pipelines/results/1", "file:///etc/passwd"),
    ]


class Forger:
    """A session in a store whose request is rewritten again and again."""

    def __init__(self, kind: Kind, host: Any, home: Path, *events: Event) -> None:
        self.kind, self.host, self.home = kind, host, home
        self.environ = kind.environ(host, home)
        self.record = SessionRecord(Store.open(str(home / "store"), base=home), SESSION)
        step = detect(self.environ)
        assert step is not None
        self.true = dataclasses.replace(
            request(), session=SESSION, ci=step, suite="gpu-cluster", quiet=False
        )
        journal = self.record.writer("agent")
        for event in events or session("tests/test_a.py::test_a", "tests/test_a.py::test_b"):
            journal.append(event)
        journal.close()
        self.record.close(Ending(exit_code=1), by=Closer.CLIENT)

    def values(self) -> list[tuple[str, str]]:
        """Return fields with bent values: all for places, for the others every fifth of them."""
        places = [(name, value) for name in PLACES for value in bent(self.true_value(name))]
        others = [(name, value) for name in OTHERS for value in bent(self.true_value(name))]
        start = list(KINDS.values()).index(self.kind)  # each host gets others
        chosen = [*places, *others[start::5]]
        return [(name, value) for name, value in chosen if value != self.true_value(name)]

    def true_value(self, name: str) -> str:
        owner = self.true if name in ("suite", "public_url") else self.true.ci
        return str(getattr(owner, name))

    def forge(self, changes: Mapping[str, str]) -> None:
        """Put the true request into the store with these values, as whoever may write there."""
        document: JsonObject = self.true.to_json()
        step = document["ci"]
        assert isinstance(step, dict)
        for field, value in changes.items():
            owner = step if field in step or field not in ("suite", "public_url") else document
            owner[field] = value
        text = json.dumps(document)
        self.record.store.put(f"{self.record.prefix}/request.json", text.encode())

    def publish(self, environ: Mapping[str, str] | None = None) -> tuple[Report, Closing]:
        return self._report(self.environ if environ is None else environ, publish_it=True)

    def read(self) -> tuple[Report, Closing]:
        """Return the report as `gpu-cluster report` shows it on a laptop; nothing is sent."""
        return self._report({}, publish_it=False)

    def _report(self, environ: Mapping[str, str], *, publish_it: bool) -> tuple[Report, Closing]:
        return report_session(
            self.record,
            settings=SETTINGS,
            environ=environ,
            root=self.home,
            publish_it=publish_it,
            echo=lambda _: None,
        )

    @property
    def outside(self) -> dict[str, str]:
        """The same environment without what makes it a step: somebody's laptop with a token."""
        gone = (*self.kind.step_variables, self.kind.repository_variable)
        return {name: value for name, value in self.environ.items() if name not in gone}
