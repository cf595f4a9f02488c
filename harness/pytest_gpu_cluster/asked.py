"""What a session asks for, made of its settings: its request, its tree, and its cluster."""

from __future__ import annotations

import os
import time

from pytest_gpu_cluster.bundle.minimal_git import repository_of
from pytest_gpu_cluster.bundle.repository import GitQuery
from pytest_gpu_cluster.bundle.ship import Tree, ship, tree_name
from pytest_gpu_cluster.contract.masking import PassedValues
from pytest_gpu_cluster.contract.request import (
    GitFacts,
    Limits,
    PytestFacts,
    ReportFacts,
    SessionRequest,
)
from pytest_gpu_cluster.contract.selection import Distribution
from pytest_gpu_cluster.contract.settings import RunRequest, SentTree, Settings
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.providers import ClusterSpec

AGENT = "pytest_gpu_cluster.agent.main:main"  # in the code that is shipped with the session
# A cluster outlives the deadline of its first session by this and idle-minutes.
CLUSTER_MARGIN_S = 600.0


def cluster_spec(settings: Settings, *, token: str, pytest_version: str) -> ClusterSpec:
    """Return the cluster that the settings want."""
    idle_s = settings.limits.idle_minutes * 60
    return ClusterSpec(
        token=token,
        nodes=settings.nodes,
        gpus_per_node=settings.gpus_per_node,
        pytest_version=pytest_version,
        idle_s=idle_s,
        deadline_s=settings.limits.max_minutes * 60 + idle_s + CLUSTER_MARGIN_S,
    )


def session_request(
    session: str, asked: RunRequest, local: PytestFacts, report: ReportFacts
) -> SessionRequest:
    """Return the request before anything is done: without tree, code and shape."""
    settings, tree = asked.settings, asked.tree
    return SessionRequest(
        session=session,
        asked_at=time.time(),
        provider=settings.provider,
        agent=AGENT,
        root_name=tree_name(tree.top, asked.invocation_dir),
        origin=str(tree.top),
        rootdir=os.path.relpath(asked.root, tree.top),
        cwd=os.path.relpath(asked.invocation_dir, tree.top),
        args=asked.pytest_args,
        passed=tuple(sorted(asked.passed_env)),
        secret_env=settings.secret_env,
        limits=limits(settings),
        distribute=Distribution(settings.distribute),
        outputs=(*tree.files.outputs, *asked.option_outputs),
        **vars(local),
        **vars(report),
    )


def passed_values(asked: RunRequest) -> PassedValues:
    """Return what the tests are given, in which secrets may be."""
    return PassedValues(
        env=asked.passed_env, args=asked.pytest_args, secret_env=asked.settings.secret_env
    )


def limits(settings: Settings) -> Limits:
    """Return the limits that the agent keeps."""
    return Limits(
        max_s=settings.limits.max_minutes * 60,
        idle_s=settings.limits.idle_minutes * 60,
        test_timeout_s=settings.limits.test_timeout_s,
        infra_retries=settings.limits.infra_retries,
        default_gpus=settings.default_gpus,
    )


def ship_tree(
    store: Store, sent: SentTree, settings: Settings, branch: str
) -> tuple[Tree, GitFacts]:
    """Put the working tree into the store. Return it, and what git says of it.

    `branch` is for a tree that has none checked out. Raises RequestError, StoreError.
    """
    with GitQuery(sent.top / sent.start) as git:
        tree = ship(
            store,
            sent.top,
            start=sent.start,
            include=sent.files.include,
            exclude=sent.files.exclude,
            allow_files=sent.files.allow_files,
            extra=repository_of(sent) if settings.git else {},
        )
        return tree, git.facts(branch)
