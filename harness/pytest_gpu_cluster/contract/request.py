"""The request of a session, as its record has it: what was asked, where, and within which limits.

No secret is in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import ClassVar, Literal

from pytest_gpu_cluster.contract.fields import FieldError, JsonValue, Noun, shown
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.ids import is_below
from pytest_gpu_cluster.contract.selection import Distribution
from pytest_gpu_cluster.contract.settings import GIT_VARIABLES

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class CI(Noun):
    """The pipeline step that a session runs in, as its host describes it; no secret."""

    host: str  # bitbucket, github, gitlab, other, or one from outside this package
    api: str = ""  # base URL of the REST API, without a slash at the end
    repository: str = ""  # as the API names it: workspace/slug, owner/name, a project's id
    # The one that reviewers look at: the head of a pull request, not its merge with the target
    commit: str = ""
    branch: str = ""
    target: str = ""  # the branch that a pull request is for
    pull_request: str = ""
    build: str = ""  # one run of a pipeline: all its steps have it in common
    step_url: str = ""
    directory: str = ""  # where the repository is checked out
    pipeline: str = ""  # the host's own number of it, where its API wants one
    fork: bool = False  # the token can only read


@dataclass(frozen=True, kw_only=True)
class GitFacts(Noun):
    """What git says of the working tree that is sent; empty outside of a repository."""

    commit: str = ""
    branch: str = ""  # of the CI host where none is checked out; "" where nobody knows it
    dirty: bool = False  # a tracked file differs from the commit

    def variables(self) -> dict[str, str]:
        """Return the environment variables of a test; none outside of a repository."""
        if not self.commit:
            return {}
        values = (self.commit, self.branch, str(self.dirty).lower())
        return dict(zip(GIT_VARIABLES, values, strict=True))


@dataclass(frozen=True, kw_only=True)
class Limits(Noun):
    """What a session may use.

    `default_gpus` is the demand of an unmarked test; None: 1, or none where there are none.
    """

    max_s: float
    idle_s: float  # the cluster stays warm for so long
    test_timeout_s: float
    infra_retries: int
    default_gpus: float | None
    grace_s: float = 0.0  # of silence, where the provider asks for more than is usual


@dataclass(frozen=True, kw_only=True)
class Shape(Noun):
    """What makes clusters interchangeable: one whose shape is equal may stand in for another."""

    owner: str  # who may reuse it
    environment: str  # digest of what is installed on the nodes; "": the nodes will say it
    nodes: int
    gpus_per_node: int | Literal["auto"]
    facts: Mapping[str, str] = field(default_factory=dict)  # of the provider, by its own names


@dataclass(frozen=True, kw_only=True)
class PytestFacts(Noun):
    """The local pytest, for the remote one to follow."""

    plugins: tuple[str, ...] = ()  # by their names; they answer for themselves here
    program: str = ""  # the name of the file that was run: pytest, or __main__.py
    sys_path: tuple[str, ...] = ()  # directories of the tree that only the local sys.path has
    color: str = "no"  # pytest's --color
    inipath: str = ""  # the file of pytest's settings; "": there is none
    columns: int = 80
    seed: int | str | None = None  # of pytest-randomly
    cache: Mapping[str, JsonValue] = field(default_factory=dict)  # of pytest's cache, by key
    # Of files in the tree, in nanoseconds since 1970; with --nf alone
    mtimes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ReportFacts:
    """The facts that another process needs to make the report of a session.

    Beside them: the tests that the CI host has quarantined.
    """

    ci: CI | None = None
    suite: str = ""
    public_url: str = ""
    prefix: str = ""  # leads from the repository to pytest's rootdir
    quarantined: tuple[tuple[str, str, str], ...] = ()  # package, class, name
    quiet: bool = False  # nobody wants to be told of it


@dataclass(frozen=True, kw_only=True)
class SessionRequest(PytestFacts, ReportFacts, Noun):
    """What a session was asked for. Passed variables are in it by name alone."""

    sparse: ClassVar[bool] = (
        True  # a key appears with its value: `tree` when the tree is in the store
    )

    v: int = VERSION
    session: str
    asked_at: float  # unix seconds
    provider: str
    agent: str  # entry of the agent in the shipped code, "module:function"
    # The tree's place below a directory of the node, so that its place relative to `cwd` is kept
    root_name: str
    origin: str  # the tree's place on the client
    rootdir: str = "."  # of pytest, relative to the tree
    cwd: str  # relative to the tree
    args: tuple[str, ...]  # of pytest, as typed, without this plugin's own options
    passed: tuple[str, ...]
    secret_env: tuple[str, ...] = ()  # globs of those that are masked whatever their values are
    limits: Limits
    distribute: Distribution = Distribution.AUTO
    git: GitFacts = GitFacts()
    outputs: tuple[str, ...] = ()  # globs of what the tests write and is to come home
    # Known once the tree is in the store.
    tree: str = ""  # digest
    code: str = ""  # digest
    shape: Shape | None = None

    def __post_init__(self) -> None:
        if not is_below(self.root_name):
            raise FieldError(f"SessionRequest.root_name: {shown(self.root_name)} leads out")
