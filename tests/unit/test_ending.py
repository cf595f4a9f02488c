"""How a session ends: exit codes and classes follow from enums, never from words beside them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpu_cluster.contract.events import SessionFinished
from pytest_gpu_cluster.contract.failures import NOT_TESTS, FailureClass, KeeperStop, StopReason
from pytest_gpu_cluster.host.ending import RUN_AGAIN, Failure, decide, end_for_silence

FAILURES = st.none() | st.builds(
    Failure, failure_class=st.sampled_from(FailureClass), message=st.text(), remedy=st.text()
)


@pytest.mark.parametrize(
    ("status", "failure", "failed_tests", "expected"),
    [
        (0, None, False, 0),
        (1, None, True, 1),
        (1, FailureClass.INFRASTRUCTURE, False, 10),
        (1, FailureClass.INFRASTRUCTURE, True, 1),
        (5, FailureClass.ENVIRONMENT, False, 11),
        (0, FailureClass.CAPACITY, False, 12),
        (1, FailureClass.LIMIT, False, 13),
        (3, FailureClass.LIMIT, False, 3),
        (0, FailureClass.REQUEST, False, 4),
        (1, FailureClass.CRASH, True, 1),
        (2, FailureClass.INFRASTRUCTURE, False, 2),
    ],
)
def test_the_exit_code_is_pytests_unless_what_failed_was_no_test(
    status: int, failure: FailureClass | None, failed_tests: bool, expected: int
) -> None:
    """A pipeline branches on it: a red test must never look like a machine, nor the reverse."""
    cause = None if failure is None else Failure(failure_class=failure, message="x")

    ending = decide(
        status, failure=cause, teardown=None, failed_tests=failed_tests, interrupted=False
    )

    assert ending.exit_code == expected


@pytest.mark.parametrize(("status", "expected"), [(0, 14), (5, 14), (1, 1), (2, 2)])
def test_a_cluster_that_would_not_close_costs_the_green_alone(status: int, expected: int) -> None:
    """Results stand; but nobody looks at a green run, so the machine would burn on."""
    teardown = Failure(failure_class=FailureClass.TEARDOWN, message="x")

    ending = decide(
        status, failure=None, teardown=teardown, failed_tests=status == 1, interrupted=False
    )

    assert (ending.exit_code, ending.failure_class) == (expected, FailureClass.TEARDOWN)


@pytest.mark.parametrize("by_others", [None, FailureClass.INFRASTRUCTURE])
def test_an_end_for_the_silence_of_a_client_is_a_failure_to_that_client(
    by_others: FailureClass | None,
) -> None:
    """A colleague's `gpu-cluster report` stops it in order; here tests would just be missing."""
    stopped = SessionFinished(stop=StopReason.CLIENT_LOST, failure_class=by_others, message="x")
    cancelled = SessionFinished(stop=StopReason.CANCELLED)

    failure = Failure.of_event(end_for_silence(stopped))

    assert failure is not None
    assert (failure.failure_class, failure.remedy) == (FailureClass.INFRASTRUCTURE, RUN_AGAIN)
    assert end_for_silence(cancelled) == cancelled


@given(status=st.integers(0, 5), failure=FAILURES, teardown=FAILURES, failed=st.booleans())
def test_no_word_decides_how_a_session_ends(
    status: int, failure: Failure | None, teardown: Failure | None, failed: bool
) -> None:
    """A text that is edited, translated, or written by a test must change no exit code."""

    def ending(blank: bool) -> tuple[object, ...]:
        def worded(cause: Failure | None) -> Failure | None:
            if cause is None or not blank:
                return cause
            return Failure(failure_class=cause.failure_class, message="x", remedy="x")

        result = decide(
            status,
            failure=worded(failure),
            teardown=worded(teardown),
            failed_tests=failed,
            interrupted=False,
        )
        return result.exit_code, result.failure_class, result.cancelled

    assert ending(blank=True) == ending(blank=False)


@given(status=st.integers(0, 5), failure=FAILURES, failed=st.booleans())
def test_a_failure_is_never_green(status: int, failure: Failure | None, failed: bool) -> None:
    """Whatever went wrong with machines, exit code 0 says that every test has passed."""
    ending = decide(status, failure=failure, teardown=None, failed_tests=failed, interrupted=False)

    machines = failure is not None and failure.failure_class in NOT_TESTS
    assert not (ending.exit_code == 0 and machines and not failed)


def test_every_reason_to_stop_says_what_follows() -> None:
    """A reason without a class would make errors of tests without a turn, or hide lost ones."""
    assert {reason for reason in StopReason if not reason.discards} == {
        StopReason.CRASH,
        StopReason.LIMIT,
        StopReason.INFRASTRUCTURE,
        StopReason.CAPACITY,
    }
    assert [stop for stop in KeeperStop if stop.closes_record] == [KeeperStop.CLIENT_SILENT]
    assert KeeperStop.DEADLINE.failure_class is FailureClass.LIMIT


def test_the_reason_for_which_tests_stopped_early_is_told() -> None:
    """`1 failed; stopping after 1 failures` says why the others had no turn."""
    ending = decide(
        1,
        failure=None,
        teardown=None,
        failed_tests=True,
        interrupted=False,
        message="stopping after 1 failures",
    )

    assert (ending.exit_code, ending.message) == (1, "stopping after 1 failures")


TEXTS = {"message", "what", "remedy", "reason", "why", "tail", "detail"}
# Where a text of pytest's, of a vendor or of a person is read because there is nothing else.
ALLOWED = {
    "contract/store_errors.py": "obstore gives no codes, only words",
    "report/texts.py": "the lines of pytest's own failures",
}


def texts_that_decide(path: Path) -> list[str]:
    """Return the places that compare, search or match an attribute that holds words for people."""

    def is_text(node: ast.AST) -> bool:
        return isinstance(node, ast.Attribute) and node.attr in TEXTS

    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            constant = any(isinstance(side, ast.Constant) and side.value == "" for side in sides)
            if any(map(is_text, sides)) and not constant:
                found.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            asks = node.func.attr in ("startswith", "endswith", "find", "index", "count")
            matches = node.func.attr in ("match", "search", "fullmatch")
            if (asks and is_text(node.func.value)) or (matches and any(map(is_text, node.args))):
                found.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
    return found


def test_no_code_reads_the_words_for_people(repository: Path) -> None:
    """An agent's last words held "heartbeat" once: its record was closed under a living client."""
    package = repository / "harness" / "pytest_gpu_cluster"
    found = [
        place
        for path in sorted(package.rglob("*.py"))
        if path.relative_to(package).as_posix() not in ALLOWED
        for place in texts_that_decide(path)
    ]

    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "if ending.message.startswith('stopping'): pass",
        "if 'heartbeat' in stop.why: pass",
        "if problem.what == 'gone': pass",
        "re.search('deadline', event.message)",
    ],
)
def test_a_word_that_decides_is_found(tmp_path: Path, source: str) -> None:
    """A check that cannot fail is worth nothing."""
    path = tmp_path / "module.py"
    path.write_text(source)

    assert len(texts_that_decide(path)) == 1
