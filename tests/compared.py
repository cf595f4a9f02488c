"""Two runs of one suite, with pytest and with pytest --gpu-cluster, as values that are compared."""

from __future__ import annotations

import re
import subprocess
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

DOWN = "import sys; from pytest_gpu_cluster.cli import main; sys.exit(main(['down']))"

Case = tuple[str, str, str]  # classname, name, outcome
# By classname and name: the outcome of the plain run, and that of the other.
Exceptions = Mapping[tuple[str, str], tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run of one suite."""

    exit_code: int
    cases: Counter[Case]
    counts: str  # the last line: subtests are counted there and not in JUnit
    seconds: float
    tail: str


def read_cases(junit: Path) -> Counter[Case]:
    """Count every testcase of a JUnit file with its outcome: passed, failure, error or skipped.

    Without a file there are no cases.
    """
    cases: Counter[Case] = Counter()
    if junit.exists():
        for case in ET.parse(junit).getroot().iter("testcase"):
            kinds = sorted({child.tag for child in case} & {"failure", "error", "skipped"})
            cases[case.get("classname", ""), case.get("name", ""), "+".join(kinds) or "passed"] += 1
    return cases


def read_counts(stdout: str) -> str:
    """Return pytest's last line without its seconds; empty when there is none.

    Example: `695 passed, 1 skipped, 19866 subtests passed`.

    >>> read_counts("..s\\n===== 2 passed, 1 skipped in 0.10s =====\\n")
    '2 passed, 1 skipped'
    """
    matches = re.findall(r"^(?:=+ )?(\d+ [a-z]+.*?|no tests ran) in [\d.]+s", stdout, re.MULTILINE)
    return str(matches[-1]) if matches else ""


def expected(plain: Outcome, exceptions: Exceptions) -> Outcome:
    """Return what a run on the cluster is to be, where some tests are known to end differently.

    Raises ValueError for an exception that the plain run does not have.
    """
    cases, counts = plain.cases.copy(), plain.counts
    for (classname, name), (before, after) in exceptions.items():
        if not cases[classname, name, before]:
            raise ValueError(f"{classname}::{name} has not {before} in the plain run")
        cases[classname, name, before] -= 1
        cases[classname, name, after] += 1
        counts = _moved(_moved(counts, before, -1), after, 1)
    return replace(plain, cases=+cases, counts=counts)


def _moved(counts: str, word: str, by: int) -> str:
    return re.sub(rf"(\d+) {word}\b", lambda found: f"{int(found[1]) + by} {word}", counts)


def differences(plain: Outcome, remote: Outcome) -> list[str]:
    """Return the differences of the two runs, one line each."""
    lines = []
    if plain.exit_code != remote.exit_code:
        lines.append(
            f"exit code {plain.exit_code} became {remote.exit_code}; it said:\n{remote.tail}"
        )
    if plain.counts != remote.counts:
        lines.append(f"last line {plain.counts!r} became {remote.counts!r}")
    for sign, cases in (
        ("only plain", plain.cases - remote.cases),
        ("only remote", remote.cases - plain.cases),
    ):
        lines += [f"{sign}: {count} x {'::'.join(case)}" for case, count in sorted(cases.items())]
    return lines


def end_cluster(python: Path, environ: Mapping[str, str]) -> None:
    """End the clusters of the store that `environ` names."""
    subprocess.run(
        [str(python), "-c", DOWN],
        env=environ,
        stdout=subprocess.DEVNULL,
        check=False,
    )
