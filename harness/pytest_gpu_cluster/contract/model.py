"""The nouns that pass between modules: frozen, keyword-only, units in the names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

# Variables that open the store, by how their names begin: keeper and agent have them, Ray and test
# processes do not.
STORE_CREDENTIALS = ("AWS_", "AZURE_", "GOOGLE_")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`[tool.gpu-cluster]` after profile, environment variables and defaults; every value
    validated.
    """

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
    # The values of [tool.gpu-cluster.<provider>] by provider and key; only what is set.
    provider_settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """One session as it was asked for.

    `passed_env` holds values and therefore never enters a repr or the record.
    """

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


# It becomes a file's name, a key at the host, a part of a key in the store
SUITE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}"
