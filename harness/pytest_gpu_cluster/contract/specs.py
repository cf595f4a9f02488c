"""Specifications of processes: one noun for each of keeper, agent and test process.

Secrets (the Ray token, credentials, values of passed variables) are in no `repr`.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pytest_gpu_cluster.contract.fields import Noun
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.gpus import Gpu
from pytest_gpu_cluster.contract.masking import PassedValues
from pytest_gpu_cluster.contract.ray_place import RayPlace
from pytest_gpu_cluster.contract.request import PytestFacts, SessionRequest
from pytest_gpu_cluster.contract.selection import Distribution
from pytest_gpu_cluster.contract.trees import tree_directory
from pytest_gpu_cluster.contract.waits import Waits


@dataclass(frozen=True, kw_only=True)
class BootSpec(Noun):
    """A cluster, as every keeper of it is told; a boot script carries it to the machines.

    It has no secret: user data and metadata of machines and jobs can be read by others.
    """

    cluster: str  # id
    store: str  # URL
    code: str  # digest of the tree of this package's code, which the keeper runs
    nodes: int
    gpus_per_node: int | Literal["auto"]
    # How many GPUs a keeper may simulate where NVML finds none. On a rented machine it is 0:
    # there a node without the GPUs that were ordered is a failure.
    simulated_gpus: int
    require_gpu: bool = False  # a node without a real GPU is a failure
    idle_s: float  # the cluster closes after so long without a session
    deadline_s: float  # and after so long in any case
    waits: Waits
    # Values of passed variables come through the store, sealed to a key that the head's keeper
    # makes; else in a file of the head.
    sealed: bool = False


@dataclass(frozen=True, kw_only=True)
class ClusterSecrets(Noun):
    """The secrets of a cluster, as old as it is; they reach its nodes on private ways only."""

    ray_token: str = field(repr=False)
    keeper_secret: str = field(repr=False)  # of all keepers: the keys of sessions come from it

    @classmethod
    def new(cls) -> ClusterSecrets:
        return cls(ray_token=secrets.token_hex(24), keeper_secret=secrets.token_hex(32))


@dataclass(frozen=True, kw_only=True)
class KeeperSpec(Noun):
    """A node, as its keeper is told."""

    boot: BootSpec
    secrets: ClusterSecrets
    # Of the node. Its name is the node's in the cluster; the path of what it lies in, and so of the
    # places of a session, is the same on all nodes.
    directory: Path
    ray_directory: Path  # Ray's temporary directory, short
    head: bool
    ip: str
    # Variables that open the store. In the environment that a process begins with, all could read
    # them for as long as it lives.
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)
    # The name of the user that tests run as; "": the keeper's. Another one needs a keeper of root,
    # and a way for that user to `directory` and to the interpreter, but none to `ray_directory`.
    test_user: str = ""
    # A Ray that is there, for a keeper that starts none. It ends when its guard's stdin does, which
    # is held by the node actor.
    ray: RayPlace | None = None


@dataclass(frozen=True, kw_only=True)
class DriverSpec(Noun):
    """The entrypoint of a job on a Ray that is there. All tenants of that Ray can read it."""

    boot: BootSpec
    bundle: Mapping[str, float]  # what each node gives, as Ray names it: GPU, CPU, memory, …
    labels: Mapping[str, str] = field(default_factory=dict)  # of Ray, that each node has to have
    wait_s: float  # for the bundles; then there is no capacity
    pytest: str  # version of the client's


# Of a session, in the node's directory: TMPDIR of its tests. Short, for below it a test may have
# sockets, whose paths hold 107 bytes: those of a Ray of its own are 68 longer than this.
TEMPORARY = "t"
SPOOL = "spool"  # of the agent's journal, in the session's directory


@dataclass(frozen=True, kw_only=True)
class AgentSpec(Noun):
    """A session, as its agent is told by the keeper of the head node.

    Paths are absolute, on the node.
    """

    session: str
    cluster: str  # id
    store: str  # URL
    node: Path  # the node's directory, with the sockets of keeper and fork server
    scratch: Path  # of the session
    code: Path  # this package, as it came with the session
    request: SessionRequest
    env: Mapping[str, str] = field(repr=False)  # values of the passed variables
    credentials: Mapping[str, str] = field(repr=False)  # variables that open the store
    ray_token: str = field(repr=False)
    keeper_key: str = field(repr=False)  # of this session's requests to keepers
    join_s: float  # for all nodes to be in Ray
    test_user: str  # that tests run as; "": as this process does
    nodes: int
    gpus: tuple[Gpu, ...]  # of the head node
    host: str
    driver: str | None

    @property
    def passed(self) -> PassedValues:
        """What the tests were given, in which secrets may be."""
        return PassedValues(
            env=self.env, args=self.request.args, secret_env=self.request.secret_env
        )

    @property
    def tree_root(self) -> Path:
        """The place of the shipped tree on every node."""
        return tree_directory(self.scratch, self.request.root_name)


class Role(StrEnum):
    """The two kinds of test process."""

    SELECT = "select"  # collects once, with the user's full arguments
    RUN = "run"  # runs the tests that it is given


@dataclass(frozen=True, kw_only=True)
class RayAccess(Noun):
    """How a test that drives the cluster finds it."""

    address: str
    token: str = field(repr=False)
    logs: str  # Ray's directory of logs, where tasks print


@dataclass(frozen=True, kw_only=True)
class ClusterFacts(Noun):
    """The attributes of the fixture `cluster`."""

    id: str
    session: str
    nodes: int
    store: str  # URL
    prefix: str  # of this session's keys in it
    commit: str = ""  # of the tree that was sent, as git names it
    branch: str = ""
    dirty: bool = False  # a tracked file differed from the commit


@dataclass(frozen=True, kw_only=True)
class TreePlaces(Noun):
    """The places of the shipped tree, absolute."""

    root: str  # on the node
    origin: str  # the same on the client
    rootdir: str  # of pytest, on the node: the tree or a directory of it
    cwd: str  # on the node; it may lie beside the tree


@dataclass(frozen=True, kw_only=True)
class WorkerSpec(Noun):
    """A pytest session, as its process is told before pytest starts.

    Paths are absolute, on the node.
    """

    role: Role
    tree: TreePlaces
    client: PytestFacts
    args: tuple[str, ...]  # of pytest, as typed
    distribute: Distribution = Distribution.AUTO
    env: Mapping[str, str] = field(repr=False)  # variables beside those of its node
    # Of the selecting process: the part of it in which secrets may be
    passed: PassedValues = PassedValues()
    worker: str  # gw0, gw1, …; main for the selecting one
    workers: int  # how many tests of the default demand run at once
    testrun: str  # the same in every process of a session
    scratch: str  # a directory of this process
    gpus: tuple[Gpu, ...]  # that this process may use
    ray: RayAccess | None  # for tests that drive the cluster
    cluster: ClusterFacts
    # Files whose import killed an earlier process, and what to say of them
    crashed_files: Mapping[str, str]
    quarantined: tuple[tuple[str, str, str], ...]  # package, class and name of tests to skip
