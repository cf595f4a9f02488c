"""What each test came to: committed once, written to the journal, counted as plain pytest counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pytest_gpu_cluster.agent.plan import Case
from pytest_gpu_cluster.contract.codec import crash_records

OWN = ("crash", "timeout", "test")  # failure classes that are the tests' own


class Outcomes:
    """`write(kind, **data)` appends to the journal, whose order is the order of commits."""

    def __init__(self, write: Callable[..., None]) -> None:
        self._write = write
        self.seconds: dict[int, float] = {}  # of the committed, by place in the collection
        self.failures = 0  # failed reports
        self.class_: str | None = None  # of the first failure that is not the tests' own
        self.wanted = (
            True  # the session that the user's conftests see asks for every report, at its end
        )
        self.feedback: list[Sequence[Mapping[str, Any]]] = []
        self._total_s = 0.0

    @property
    def mean_s(self) -> float | None:
        """Seconds per test so far; None before the first."""
        return self._total_s / len(self.seconds) if self.seconds else None

    def commit(self, test: Case, message: Mapping[str, Any], *, worker: str) -> None:
        """What the test's own process reported; nothing when the test has an outcome already."""
        if test.index not in self.seconds:
            self._total_s += message["duration_s"]
            self._add(
                test,
                message["records"],
                message["duration_s"],
                worker,
                None,
                paths=message["paths"],
            )
            self.count(message["records"])

    def fail(
        self,
        test: Case,
        text: str,
        class_: str,
        *,
        when: str,
        duration_s: float = 0.0,
        worker: str = "",
    ) -> None:
        """An outcome that no process could report itself."""
        if test.index in self.seconds:
            return
        records = crash_records(
            test.nodeid, test.location, when=when, text=text, duration_s=duration_s
        )
        self._add(test, records, duration_s, worker, class_, paths=True)
        if class_ in OWN:
            self.count(records)
        else:
            self.class_ = self.class_ or class_

    def count(self, records: Sequence[Mapping[str, Any]]) -> None:
        for record in records:
            self.failures += (
                record.get("kind") == "report" and record["report"]["outcome"] == "failed"
            )

    def _add(
        self,
        test: Case,
        records: Sequence[Mapping[str, Any]],
        duration_s: float,
        worker: str,
        class_: str | None,
        *,
        paths: bool,
    ) -> None:
        """`paths` says whether the records may name files of the cluster's tree."""
        self.seconds[test.index] = duration_s
        self._write(
            "test_finished",
            nodeid=test.nodeid,
            index=test.index,
            attempt=test.attempt,
            worker=worker,
            records=records,
            duration_s=duration_s,
            paths=paths,
            failure_class=class_,
        )
        if self.wanted:
            self.feedback.append(records)
