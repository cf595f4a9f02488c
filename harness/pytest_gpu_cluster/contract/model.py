"""The nouns that pass between modules: frozen, keyword-only, units in the names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

# Variables that open the store, by how their names begin: keeper and agent have them, Ray and test processes do not.
STORE_CREDENTIALS = ("AWS_", "AZURE_", "GOOGLE_")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`[tool.gpu-cluster]` after profile, environment variables and defaults; every value validated."""

    provider: str = "local"
    store: str = ".gpu-cluster"
    nodes: int = 1
    gpus_per_node: int | Literal["auto"] = "auto"
    simulated_gpus: int = 2
    default_gpus: float | None = None  # None: 1, or none where the cluster has none
    isolation: Literal["worker"] = "worker"
    test_timeout_s: float = 600.0
    max_minutes: float = 60.0
    idle_minutes: float = 5.0
    infra_retries: int = 2
    require_gpu: bool = False
    pass_env: tuple[str, ...] = ("PYTEST_*", "CI", "GPU_TESTS_*")
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    allow_files: tuple[str, ...] = ()
    keep_sessions: int = 20
    publish: bool = True
    suite: str = "gpu-cluster"
    public_url: str = ""
    comment: Literal["always", "changes", "failures", "off"] = "always"
    check_run: bool = False
    results_dir: str = ""  # "": test-results with CI set, else none
    junit_strict: bool = False
    local_python: str = ""  # "": the interpreter that runs pytest


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """One session as it was asked for. `passed_env` holds values and therefore never enters a repr or the record."""

    settings: Settings
    root: Path  # pytest's rootdir, absolute: the tree that is shipped
    invocation_dir: Path  # absolute; where pytest was started
    pytest_args: tuple[str, ...]  # as typed, without this plugin's own options
    passed_env: dict[str, str] = field(repr=False)
    ci: bool = False


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A working tree in the store. `digest` names `trees/<digest>.json`."""

    digest: str
    files: int
    bytes: int
    sent_blobs: int
    sent_bytes: int


@dataclass(frozen=True, kw_only=True)
class CI:
    """The pipeline step that this runs in, as its host describes it; no secret. It is part of a session's record."""

    host: Literal["bitbucket", "github", "gitlab", "other"]
    api: str = ""  # base URL of the REST API, without a slash at the end
    repository: str = ""  # as the API names it: workspace/slug, owner/name, a project's id
    commit: str = ""  # the one that reviewers look at: the head of a pull request, not its merge with the target
    branch: str = ""
    target: str = ""  # the branch that a pull request is for
    pull_request: str = ""
    build: str = ""  # one run of a pipeline: all its steps have it in common
    step_url: str = ""
    directory: str = ""  # where the repository is checked out
    pipeline: str = ""  # the host's own number of it, where its API wants one
    fork: bool = False  # the token can only read


SUITE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}"  # it becomes a file's name, a key at the host, a part of a key in the store
CLIENT_LOST = "the client was lost"  # why a session was stopped, where nobody was left to want it
