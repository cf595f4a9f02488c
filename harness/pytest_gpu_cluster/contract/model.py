"""The nouns that pass between modules: frozen, keyword-only, units in the names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import quote

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
    # The values of [tool.gpu-cluster.<provider>] by provider and key; only what is set.
    provider_settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """What went wrong in one phase of a test, or with the machine below it. No secret in its texts."""

    when: Literal["collect", "setup", "call", "teardown"]
    failure_class: str  # test, crash, timeout, infrastructure, limit …
    message: str  # one line
    text: str  # traceback
    line: int = 0  # 1-based, in the test's own file; 0 where it went wrong elsewhere
    subtest: str = ""  # which of the test's subtests


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One test, or one file that could not be collected, as it ended."""

    nodeid: str
    file: str  # relative to the repository; "" where nothing is known
    line: int  # 1-based; 0 where nothing is known
    classname: str
    name: str
    outcome: Literal["passed", "failed", "error", "skipped", "xfailed", "xpassed"]
    duration_s: float = 0.0
    problems: tuple[Problem, ...] = ()
    reason: str = ""  # of a skip or an expected failure
    output: str = ""  # captured, of a test with a problem
    properties: tuple[tuple[str, str], ...] = ()
    reruns: int = 0  # it failed so often before this outcome
    attempts: int = 1  # on different machines


@dataclass(frozen=True, kw_only=True)
class Delta:
    """What is different from the last session of a branch."""

    branch: str
    session: str
    commit: str = ""
    newly_failing: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    slower: tuple[tuple[str, float, float], ...] = ()  # node id, seconds before, seconds now
    flaky: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        return not (self.newly_failing or self.fixed or self.removed or self.slower or self.flaky)


SUITE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}"  # it becomes a file's name, a key at the host, a part of a key in the store
CLIENT_LOST = "the client was lost"  # why a session was stopped, where nobody was left to want it
NOT_TESTS = (
    "infrastructure",
    "environment",
    "capacity",
    "limit",
    "teardown",
)  # verdicts that are never the tests' fault


@dataclass(frozen=True, kw_only=True)
class Report:
    """A session as it is told to people: at its start, on the way and at its end. No secret in any text."""

    session: str
    suite: str
    verdict: str  # running, passed, failed, cancelled, request, or one of NOT_TESTS
    message: str = ""  # why, where it was not the tests
    remedy: str = ""
    exit_code: int | None = None
    link: str = ""  # what others can open; "" when there is nothing
    own_page: bool = False  # the link is this session's page, which has an anchor for each test
    record: str = ""  # where the store has it
    started: float = 0.0  # unix seconds
    duration_s: float = 0.0
    collected: int | None = None  # None until the selection is known
    deselected: int = 0
    results: tuple[Result, ...] = ()
    gpus: tuple[str, ...] = ()  # names, one for each
    simulated: bool = False
    cluster: str = ""
    provider: str = ""
    environment: str = ""  # digest
    price_usd: float | None = None  # None: not known, which is not 0
    branch: str = ""
    commit: str = ""
    selection: tuple[str, ...] = ()  # the arguments of pytest
    delta: Delta | None = None
    troubles: tuple[str, ...] = ()  # what could not be reported, and the remedy

    @property
    def counts(self) -> dict[str, int]:
        """How many tests came to each outcome; outcomes that did not occur are absent."""
        found: dict[str, int] = {}
        for result in self.results:
            found[result.outcome] = found.get(result.outcome, 0) + 1
        order = ("failed", "error", "passed", "skipped", "xfailed", "xpassed")
        return {outcome: found[outcome] for outcome in order if outcome in found}

    def link_to(self, result: Result) -> str:
        """Where to read about one test; "" when there is no link."""
        return (
            f"{self.link}#{quote(result.nodeid, safe='', errors='surrogatepass')}"
            if self.own_page
            else self.link
        )

    @property
    def bad(self) -> tuple[Result, ...]:
        """Results with a problem: the tests' own first, then what machines did to them."""
        found = [result for result in self.results if result.problems]
        return tuple(
            sorted(found, key=lambda result: result.problems[0].failure_class in NOT_TESTS)
        )
