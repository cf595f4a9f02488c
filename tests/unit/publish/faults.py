"""Targets of the three hosts, and the publishing of a failed session to a host with faults."""

from __future__ import annotations

import dataclasses
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from pytest_gpu_cluster.publish import bitbucket, github, gitlab
from tests.hosts import Fault
from tests.unit.publish.rig import KINDS, as_ended, step

Case = TypeVar("Case")
Outcome = TypeVar("Outcome")
NAMES = {
    "bitbucket": bitbucket.Bitbucket.name,
    "github": github.GitHub.name,
    "gitlab": gitlab.GitLab.name,
}
WORDS = "the host's own words"
NOBODY = "http://127.0.0.1:9"  # nothing listens there
AGAIN = "the verdict stands; send the report again with: gpu-cluster report --publish"


@dataclass(frozen=True)
class Place:
    """One target of one host, and the request that brings it up to date."""

    kind: str
    target: str
    method: str
    path: str

    def __str__(self) -> str:
        return f"{self.kind}, {self.target}"

    @property
    def request(self) -> tuple[str, str]:
        return self.method, self.path

    @property
    def read(self) -> Place:
        """The request before it, that looks for what is there."""
        return dataclasses.replace(self, method="GET", path=self.path.removesuffix("$"))

    @property
    def others(self) -> list[str]:
        return [target for target in KINDS[self.kind].targets if target != self.target]


PLACES = [
    Place("bitbucket", "Code Insights report", "PUT", "/reports/"),
    Place("bitbucket", "commit status", "POST", "/statuses/build$"),
    Place("bitbucket", "pull request comment", "POST", "/comments$"),
    Place("github", "commit status", "POST", "/statuses/"),
    Place("github", "check run", "POST", "/check-runs$"),
    Place("github", "pull request comment", "POST", "/comments$"),
    Place("gitlab", "commit status", "POST", "/statuses/"),
    Place("gitlab", "merge request note", "POST", "/notes$"),
]
COMMENTS = [place for place in PLACES if place.target == KINDS[place.kind].comment]
(CHECK_RUN,) = [place for place in PLACES if place.target == "check run"]
REPEATABLE = [place for place in PLACES if place not in (*COMMENTS, CHECK_RUN)]
each_place = pytest.mark.parametrize("place", PLACES, ids=str)


@dataclass(frozen=True)
class Published:
    """The result of `deliver`, its duration, and the state of the host after it."""

    targets: list[str]
    troubles: list[str]
    took_s: float
    requests: int  # requests of the place
    comments: list[str]
    refused: list[str]

    def complete_at(self, place: Place) -> bool:
        """All targets were updated, once."""
        everything = (self.targets, self.troubles, self.refused) == (
            list(KINDS[place.kind].targets),
            [],
            [],
        )
        return everything and len(self.comments) == 1

    @property
    def trouble(self) -> str:
        (only,) = self.troubles
        return only


def publish(
    place: Place,
    directory: Path,
    *faults: Fault,
    within_s: float = 12,
    make: Callable[[], Any] | None = None,
) -> Published:
    """Publish a failed session to a host that meets the requests of this place with `faults`."""
    of = KINDS[place.kind]
    with (make or of.make)() as host:
        host.fault(place.request, *faults)
        environ = of.environ(host, Path(tempfile.mkdtemp(dir=directory)))
        # With both endpoints open a refusal at one would only lead to the other.
        if place.target == "Code Insights report":
            environ["BITBUCKET_PIPELINES_PROXY"] = NOBODY
        ci_step = step(environ, check_run=True)
        began = time.monotonic()
        targets, troubles = ci_step.finish(as_ended("failed"), within_s=within_s)
        took_s = time.monotonic() - began
        return Published(
            targets,
            troubles,
            took_s,
            len(host.seen(*place.request)),
            of.comments(host),
            host.refused,
        )


def at_once(run: Callable[[Case], Outcome], cases: Sequence[Case]) -> list[tuple[Case, Outcome]]:
    """Cases that mostly wait, side by side; each with its outcome."""
    with ThreadPoolExecutor(len(cases)) as pool:
        return list(zip(cases, pool.map(run, cases), strict=True))


def tags(text: str) -> list[str]:
    return re.findall(r"</?[a-zA-Z!][^>]*>", text)
