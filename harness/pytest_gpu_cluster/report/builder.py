"""Events of a session, in any order that its journal gives them -> `Report`. The same live and from the store."""

from __future__ import annotations

import io
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from _pytest._io import TerminalWriter
from _pytest.junitxml import mangle_test_address

from pytest_gpu_cluster.contract.codec import Event, PathMap, from_wire
from pytest_gpu_cluster.contract.errors import EXIT_CODES
from pytest_gpu_cluster.contract.model import CLIENT_LOST, NOT_TESTS, Problem, Report, Result

OUTPUT_CHARS = 10_000  # of each captured section: half from its beginning, half from its end
TEXT_CHARS = 100_000  # of one failure
BY_EXIT_CODE = {code: failure_class for failure_class, code in EXIT_CODES.items()}
SUBTESTS = re.compile(
    r"contains \d+ failed subtests?"
)  # each of them is a problem of its own already
LOST = f"{CLIENT_LOST} before this test had a result"


class Tally:
    """`request` is the session's `request.json`; `mask` takes secrets out of a text; `prefix` leads from the repository to the tree."""

    def __init__(
        self, request: Mapping[str, Any], *, mask: Callable[[str], str], prefix: str = ""
    ) -> None:
        self._request, self._mask, self._prefix = request, mask, prefix
        self._map = PathMap([])
        self._items: list[Mapping[str, Any]] = []
        self._results: dict[int, Result] = {}  # by place in the collection
        self._collect: dict[
            str, Result
        ] = {}  # files that could not be collected, or were skipped as a whole
        self._place: dict[str, int] = {}  # the last one of a node id
        self._gpus: list[str] = []
        self._times: list[float] = []
        self.simulated = False
        self.collected: int | None = None
        self.deselected = 0
        self.cluster = ""
        self.ended: Event | None = None
        self.broken = ""  # why the remote session ended by something else than its tests
        self.cancelled = False

    def hear(self, event: Event) -> None:
        """Take in one event; kinds that say nothing of a result are passed over."""
        if event.t:
            self._times = [min([event.t, *self._times[:1]]), max([event.t, *self._times[1:]])]
        match event.kind:
            case "hello":
                self._map = PathMap([(event["root"], self._request["origin"])])
            case "node":
                self._gpus += [device["name"] for device in event["gpus"]]
                self.simulated = self.simulated or event["simulated"]
                self.cluster = event.get("cluster") or self.cluster
            case "selection_restarted":
                self._collect.clear()
                self.deselected = 0
            case "collectreport":
                self._hear_collection(event["report"])
            case "deselected":
                self.deselected += len(event["nodeids"])
            case "collected":
                self._items = event["items"]
                self._place = {row["nodeid"]: index for index, row in enumerate(self._items)}
                self.collected = len(self._items)
            case "test_finished":
                self._hear_test(event)
            case "late":
                self._hear_late(event)
            case "internal_error" | "usage_error" | "interrupted":
                self.broken = self.broken or _telling(
                    self._clean(str(event.get("text", ""))), usage=event.kind == "usage_error"
                )
                stopped = event.get("shouldfail") or event.get("shouldstop") or event.get("exit")
                self.cancelled = self.cancelled or (event.kind == "interrupted" and not stopped)
            case "session_finished" if self.ended is None or event.writer == "agent":
                self.ended = event

    def report(
        self,
        *,
        suite: str,
        verdict: str | None = None,
        exit_code: int | None = None,
        failure_class: str | None = None,
        message: str = "",
        remedy: str = "",
        cancelled: bool = False,
        **facts: Any,
    ) -> Report:
        """The session as it stands. With neither `verdict` nor `exit_code` it is final, but nobody was there to say how it ended."""
        if verdict is None and exit_code is None:
            exit_code, failure_class, message = self._end_of_lost(failure_class, message)
        results = [
            *self._collect.values(),
            *(self._results[index] for index in sorted(self._results)),
        ]
        if verdict is None and failure_class is not None and not cancelled:
            why = self._clean(message) or LOST
            results += [
                self._missing(row, failure_class, why)
                for index, row in enumerate(self._items)
                if index not in self._results
            ]
        own = any(
            problem.failure_class not in NOT_TESTS
            for result in results
            for problem in result.problems
        )
        if verdict is None:
            if cancelled or self.cancelled:
                verdict = "cancelled"
            elif exit_code is None:
                verdict = "failed" if own else str(failure_class)
            else:
                verdict = "passed" if exit_code == 0 else BY_EXIT_CODE.get(exit_code, "failed")
        return Report(
            session=self._request["session"],
            suite=suite,
            verdict=verdict,
            message=self._clean(message) or self._why(exit_code),
            remedy=self._clean(remedy),
            exit_code=exit_code,
            started=self._request["asked_at"],
            duration_s=self._times[1] - self._times[0] if self._times else 0.0,
            collected=self.collected,
            deselected=self.deselected,
            results=tuple(results),
            gpus=tuple(self._gpus),
            simulated=self.simulated,
            cluster=self.cluster,
            provider=self._request.get("provider", ""),
            environment=self._request.get("shape", {}).get("environment", ""),
            selection=tuple(self._clean(arg) for arg in self._request.get("args", ())),
            **facts,
        )

    def _end_of_lost(
        self, failure_class: str | None, message: str
    ) -> tuple[int | None, str | None, str]:
        """Exit code, failure class and message of a session whose client did not live to say them."""
        ended = self.ended.data if self.ended is not None else {}
        code, class_, why = (
            ended.get("exitstatus"),
            ended.get("failure_class"),
            ended.get("message") or "",
        )
        missing = len(self._items) - len(self._results)
        if class_ in NOT_TESTS:
            return None, class_, why or message
        stopped = CLIENT_LOST in (why, ended.get("shouldstop"))
        if code is None or (missing and (code == 0 or stopped)):
            return (
                None,
                failure_class or "infrastructure",
                message or f"{CLIENT_LOST}; {missing} tests have no result",
            )
        return code, None, f"{CLIENT_LOST}; this is how the tests ended on the cluster"

    def _why(self, exit_code: int | None) -> str:
        """What there is to say of an end that no test explains."""
        if self.broken and exit_code != 0:
            return self.broken
        return "no tests were collected" if exit_code == 5 else ""

    # -- one test ------------------------------------------------------------------------------------------------------

    def _hear_test(self, event: Event) -> None:
        index = event.get("index")
        if index is None or index in self._results or index >= len(self._items):
            return
        blank = self._blank(self._items[index])
        reports = [record["report"] for record in event["records"] if record["kind"] == "report"]
        self._results[index] = self._with(
            blank,
            reports,
            event.get("failure_class") or "test",
            attempts=event.get("attempt", 0) + 1,
        )

    def _hear_late(self, event: Event) -> None:
        index = self._place.get(event["nodeid"])
        reports = [record["report"] for record in event["records"] if record["kind"] == "report"]
        if index in self._results:
            self._results[index] = self._with(
                self._results[index], reports, "test", attempts=self._results[index].attempts
            )

    def _hear_collection(self, report: Mapping[str, Any]) -> None:
        if report["outcome"] not in ("failed", "skipped"):
            return
        nodeid = str(report["nodeid"])
        name = self._clean(nodeid.removesuffix(".py").replace("/", ".")).strip(".") or "collection"
        blank = Result(
            nodeid=self._clean(nodeid),
            file=self._file(nodeid.partition("::")[0]),
            line=0,
            classname="",
            name=name,
            outcome="passed",
        )
        self._collect[nodeid] = self._with(
            blank, [{"when": "collect", "duration": 0.0, **report}], "test", attempts=1
        )

    def _blank(self, row: Mapping[str, Any]) -> Result:
        file, line, _ = row["location"]
        *above, name = mangle_test_address(row["nodeid"])
        return Result(
            nodeid=self._clean(row["nodeid"]),
            file=self._file(file),
            line=line + 1 if line is not None else 0,
            classname=self._clean(".".join(above)),
            name=self._clean(name),
            outcome="passed",
        )

    def _with(
        self, result: Result, reports: Iterable[Mapping[str, Any]], class_: str, *, attempts: int
    ) -> Result:
        """`result` after these reports."""
        problems, outcome, reason = list(result.problems), result.outcome, result.reason
        duration_s, reruns, properties = result.duration_s, result.reruns, result.properties
        sections: list[Any] = []
        for report in reports:
            duration_s += report.get("duration") or 0.0
            sections = from_wire(report.get("sections")) or sections
            pairs = [
                pair
                for pair in from_wire(report.get("user_properties") or ())
                if isinstance(pair, tuple | list) and len(pair) == 2
            ]
            properties = (
                tuple((self._clean(str(name)), self._clean(str(value))) for name, value in pairs)
                or properties
            )
            if report["outcome"] == "failed":
                if not (
                    any(p.subtest for p in problems)
                    and SUBTESTS.fullmatch(_text(report["longrepr"]).strip())
                ):
                    problems.append(self._problem(report, class_, result.file))
                outcome = "failed" if outcome == "failed" or report["when"] == "call" else "error"
            elif report["outcome"] == "rerun":
                reruns += 1
            elif "_subtest.context" in report:
                pass  # a part that was skipped or expected to fail does not decide about the whole
            elif "wasxfail" in report:
                outcome = "xfailed" if report["outcome"] == "skipped" else "xpassed"
                reason = self._clean(str(report["wasxfail"]))
            elif report["outcome"] == "skipped":
                outcome, reason = "skipped", self._skip_reason(report["longrepr"])
        output = self._output(sections) if problems else ""
        return replace(
            result,
            outcome=outcome,
            duration_s=duration_s,
            problems=tuple(problems),
            reason=reason,
            output=output or result.output,
            properties=properties,
            reruns=reruns,
            attempts=attempts,
        )

    def _missing(self, row: Mapping[str, Any], failure_class: str, why: str) -> Result:
        text = f"{failure_class}: {why}"
        problem = Problem(
            when="setup", failure_class=failure_class, message=text.partition("\n")[0], text=text
        )
        return replace(self._blank(row), outcome="error", problems=(problem,))

    # -- texts ---------------------------------------------------------------------------------------------------------

    def _problem(self, report: Mapping[str, Any], class_: str, file: str) -> Problem:
        longrepr = self._map(report["longrepr"])
        text = self._clean(_text(longrepr))
        crash = longrepr.get("reprcrash") if isinstance(longrepr, dict) else None
        said = self._clean(str(crash["message"])) if crash else _message(text)
        place = str(crash["path"]).removeprefix(f"{self._request['origin']}/") if crash else ""
        line = crash["lineno"] if crash and file and self._file(place) == file else 0
        subtest = from_wire(report["_subtest.context"]) if "_subtest.context" in report else None
        named = self._clean(_subtest(subtest)) if subtest else ""
        message = f"{f'{named}: ' if named else ''}{said.strip().partition(chr(10))[0] or 'failed'}"
        return Problem(
            when=report["when"],
            failure_class=class_,
            message=message,
            text=_cut(text, TEXT_CHARS),
            line=line,
            subtest=named,
        )

    def _skip_reason(self, longrepr: Any) -> str:
        plain = from_wire(longrepr)
        reason = (
            str(plain[2])
            if isinstance(plain, tuple | list) and len(plain) == 3
            else _text(longrepr)
        )
        return self._clean(reason.removeprefix("Skipped: "))

    def _output(self, sections: Iterable[Any]) -> str:
        """What the test printed, as its last report has it."""
        named = (
            (name, self._clean(str(text))) for name, text in sections if text
        )  # before a cut that may halve a secret
        return "".join(
            f"{f' {name} ':-^80}\n{_cut(text, OUTPUT_CHARS).rstrip()}\n" for name, text in named
        )

    def _file(self, path: str) -> str:
        joined = posixpath.normpath(posixpath.join(self._prefix, path))
        return (
            ""
            if not path or joined == "." or joined.startswith(("../", "/")) or joined == ".."
            else self._clean(joined)
        )

    def _clean(self, text: str) -> str:
        return self._mask(self._map.text(text))


def _text(longrepr: Any) -> str:
    """A failure as pytest prints it, without colours."""
    if isinstance(longrepr, dict) and "$repr" in longrepr:
        return str(longrepr["$repr"][0])
    if longrepr is None or isinstance(longrepr, str):
        return longrepr or ""
    if isinstance(longrepr, dict) and "reprcrash" not in longrepr:
        return str(from_wire(longrepr))
    data = {
        "nodeid": "",
        "location": ("", 0, ""),
        "keywords": {},
        "outcome": "failed",
        "when": "call",
        "longrepr": from_wire(longrepr),
    }
    report = pytest.TestReport._from_json(data)  # private, and what pytest-xdist calls
    out = io.StringIO()
    writer = TerminalWriter(out)
    writer.hasmarkup = False
    report.toterminal(writer)
    return out.getvalue().strip("\n")


def _message(text: str) -> str:
    """The line that says most: pytest marks it with an E."""
    lines = [line for line in text.splitlines() if line.strip()]
    marked = next((line[1:].strip() for line in lines if line.startswith("E ")), "")
    return marked or (lines[0].strip() if lines else "")


def _telling(text: str, *, usage: bool) -> str:
    """The line of an error that says most: of a traceback the last, of pytest's complaint about its arguments the one marked as error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marked = (
        [line for line in lines if re.search(r"(?i)\berror: (?!usage:)", line)] if usage else []
    )
    return (marked or lines[-1:] or [""])[0]


def _subtest(data: Mapping[str, Any]) -> str:
    """`[message] (key=value, …)`, as pytest names a subtest."""
    kwargs = ", ".join(f"{key}={value}" for key, value in (data.get("kwargs") or {}).items())
    message = f"[{data['msg']}]" if data.get("msg") else ""
    return (
        " ".join(part for part in (message, f"({kwargs})" if kwargs else "") if part) or "(subtest)"
    )


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"
