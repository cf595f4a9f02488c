"""CI hosts without a publisher: the commit, the branch and the page of the build are recorded."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_gpu_cluster.contract.request import CI
from pytest_gpu_cluster.publish import OTHER

# The names that hosts give to one value. The first that is set counts.
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


def detect(environ: Mapping[str, str]) -> CI:
    """Return the step as far as the usual variables of CI hosts describe it."""
    url, commit, branch = (
        next((environ[name] for name in names if environ.get(name)), "")
        for names in (BUILD_URLS, COMMITS, BRANCHES)
    )
    return CI(
        host=OTHER, commit=commit, branch=branch.removeprefix("origin/"), step_url=url, build=url
    )
