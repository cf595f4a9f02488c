"""The settings of a project, and one request to run its tests: frozen, units in the names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields
from pathlib import Path
from typing import Literal

from pytest_gpu_cluster.contract.frozen import dataclass

# Set for tests; they look like settings, and are none.
GIT_VARIABLES = ("GPU_CLUSTER_GIT_COMMIT", "GPU_CLUSTER_GIT_BRANCH", "GPU_CLUSTER_GIT_DIRTY")


@dataclass(frozen=True, kw_only=True)
class LimitSettings:
    """The limits of a session: times, and how often a test whose machine was lost runs again."""

    test_timeout_s: float = 600.0
    max_minutes: float = 60.0
    idle_minutes: float = 5.0
    infra_retries: int = 2


@dataclass(frozen=True, kw_only=True)
class FileSettings:
    """The globs that decide which files are shipped, and which come home."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    allow_files: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """The name of a report, and the places to which it goes."""

    publish: bool = True
    suite: str = "gpu-cluster"
    public_url: str = ""
    comment: Literal["always", "changes", "failures", "off"] = "always"
    check_run: bool = False
    results_dir: str = ""  # "": test-results with CI set, else none
    junit_strict: bool = False


# The groups of the keys: the fields of each class are the keys of its group.
GROUPS = {"limits": LimitSettings, "files": FileSettings, "reports": ReportSettings}
GROUP_OF = {each.name: name for name, group in GROUPS.items() for each in fields(group)}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`[tool.gpu-cluster]` after profile, environment variables and defaults, all validated.

    The key of a value is its field's name, also where the field is one of a group.
    """

    provider: str = "local"
    store: str = ".gpu-cluster"
    nodes: int = 1
    gpus_per_node: int | Literal["auto"] = "auto"
    simulated_gpus: int = 2
    default_gpus: float | None = None  # None: 1, or none where the cluster has none
    distribute: Literal["auto", "test", "class", "module", "file", "group"] = "auto"
    limits: LimitSettings = LimitSettings()
    require_gpu: bool = False
    pass_env: tuple[str, ...] = ("PYTEST_*", "CI", "GPU_TESTS_*")
    secret_env: tuple[str, ...] = ()
    tree: Literal["project", "git"] = "project"
    files: FileSettings = FileSettings()
    git: bool = False
    keep_sessions: int = 20
    reports: ReportSettings = ReportSettings()
    # The values of [tool.gpu-cluster.<provider>] by provider and key; only what is set.
    provider_settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SentTree:
    """The directory that is sent, and what of it."""

    top: Path  # absolute; pytest's rootdir, or a directory above it
    start: str = ""  # the directory below `top` whose files are sent; others where `files` says so
    files: FileSettings = FileSettings()  # relative to `top`


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """One session as it was asked for.

    `passed_env` holds values and therefore never enters a repr or the record.
    """

    settings: Settings
    project: Path  # absolute; relative paths of the settings begin here
    root: Path  # pytest's rootdir, absolute
    tree: SentTree
    invocation_dir: Path  # absolute; where pytest was started
    pytest_args: tuple[str, ...]  # as typed, without this plugin's own options
    passed_env: dict[str, str] = field(repr=False)
    ci: bool = False
    newest_first: bool = False  # pytest's --nf
    settings_note: str = ""  # says which [tool.gpu-cluster] was not read
    command: str = "gpu-cluster"  # the beginning of a command about this project, to be pasted
    # Globs of what known plugins write by their options, relative to the tree's top
    option_outputs: tuple[str, ...] = ()
