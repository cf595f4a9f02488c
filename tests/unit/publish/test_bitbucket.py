"""Bitbucket: report, status and comment, against a host that refuses what the real one refuses."""

from __future__ import annotations

import base64

import pytest

from pytest_gpu_cluster.report import render
from tests.hosts import FakeBitbucket
from tests.unit.publish.rig import (
    CLOSED,
    COMMIT,
    DIFFERENT,
    KINDS,
    MACHINES_FAULT,
    PAGE,
    REPORT,
    SESSION,
    VERDICTS,
    as_ended,
    on_the_way,
    report,
    step,
)

BITBUCKET_STATES = {
    "running": ("INPROGRESS", "PENDING"),
    "passed": ("SUCCESSFUL", "PASSED"),
    "cancelled": ("STOPPED", "FAILED"),
}


@pytest.mark.parametrize("verdict", VERDICTS)
def test_bitbucket_has_a_state_for_each_verdict(bitbucket: FakeBitbucket, verdict: str) -> None:
    """Merge checks look at these words.

    A cancelled run is neither good nor bad, and a lost machine is not good.
    """
    ci_step, final = step(bitbucket.environ()), as_ended(verdict)

    troubles = (ci_step.start if verdict == "running" else ci_step.finish)(final)[1]

    state, result = BITBUCKET_STATES.get(verdict, ("FAILED", "FAILED"))
    commit_status, shown = bitbucket.statuses[COMMIT, "gpu-cluster"], bitbucket.reports[REPORT]
    assert (commit_status["state"], commit_status["url"], commit_status["refname"]) == (
        state,
        PAGE,
        "feature/tiles",
    )
    assert (shown["result"], shown["link"], shown["report_type"]) == (result, PAGE, "TEST")
    assert commit_status["description"] == render.headline(final)
    assert render.headline(final) in shown["details"]
    assert (troubles, bitbucket.refused) == ([], [])


def test_whose_fault_it_was_is_in_bitbuckets_words(bitbucket: FakeBitbucket) -> None:
    """Its states know no difference between a failed test and a lost machine.

    The reader should, at once.
    """
    step(bitbucket.environ()).finish(as_ended("infrastructure"))

    commit_status, shown = bitbucket.statuses[COMMIT, "gpu-cluster"], bitbucket.reports[REPORT]
    assert commit_status["description"] == f"not your tests (infrastructure): {MACHINES_FAULT}"
    assert "Remedy: run it again" in shown["details"]


def test_without_any_credential_bitbucket_gets_a_report_through_the_proxy_and_nothing_else(
    bitbucket: FakeBitbucket,
) -> None:
    """Zero configuration: the proxy of Pipelines takes reports and annotations alone."""
    ci_step = step(bitbucket.environ(token=False))

    started, finished = ci_step.start(), ci_step.finish(as_ended("failed"))

    assert (started, finished) == ((["Code Insights report"], []),) * 2
    assert {request.via for request in bitbucket.requests} == {"proxy"}
    assert [request.body["result"] for request in bitbucket.seen("PUT")] == ["PENDING", "FAILED"]
    assert [annotation["summary"] for annotation in bitbucket.annotations(*REPORT)] == [
        "test_breaks: assert 1 == 2"
    ]
    assert (bitbucket.statuses, bitbucket.comments, bitbucket.refused) == ({}, [], [])


@pytest.mark.parametrize("email", [False, True], ids=["access token", "API token and e-mail"])
def test_with_a_token_bitbucket_gets_a_status_and_a_comment_too(email: bool) -> None:
    """The report stays on the proxy's way.

    The token goes to the API alone, in the form that its kind wants.
    """
    with FakeBitbucket(api_token="ATATT-of-a-user") as host:
        updated, troubles = step(host.environ(email=email)).finish()

        user = base64.b64encode(b"ci@acme.example:ATATT-of-a-user").decode()
        assert {request.headers.get("authorization") for request in host.seen(path="/reports")} == {
            None
        }
        assert {
            request.headers["authorization"] for request in host.requests if request.via == "direct"
        } == {f"Basic {user}" if email else f"Bearer {host.token}"}
        assert updated == list(KINDS["bitbucket"].targets)
        assert (troubles, host.refused, len(host.comments)) == ([], [], 1)


def test_without_a_proxy_the_token_is_used_for_the_report(bitbucket: FakeBitbucket) -> None:
    """A runner of one's own may have no proxy."""
    environ = bitbucket.environ() | {"BITBUCKET_PIPELINES_PROXY": CLOSED}

    updated, troubles = step(environ).finish(as_ended("failed"))

    assert "Code Insights report" in updated
    assert {request.via for request in bitbucket.seen(path="/reports")} == {"direct"}
    assert len(bitbucket.annotations(*REPORT)) == 1
    assert (troubles, bitbucket.refused) == ([], [])


def test_with_neither_proxy_nor_token_the_remedy_names_both(bitbucket: FakeBitbucket) -> None:
    """Nothing can be sent, and a trouble names it rather than hiding it."""
    updated, troubles = step(
        {**bitbucket.environ(token=False), "BITBUCKET_PIPELINES_PROXY": CLOSED}
    ).finish()

    assert updated == []
    assert len(troubles) == 1
    assert f"no proxy answers at {CLOSED}" in troubles[0]
    assert "remedy: run this in a Pipelines step, or set BITBUCKET_TOKEN" in troubles[0]


def test_neither_a_proxy_nor_an_exception_of_the_environment_changes_the_way_of_the_report(
    bitbucket: FakeBitbucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NO_PROXY often names the whole world, HTTP_PROXY a company's proxy.

    Neither knows of the one in the step.
    """
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1,.bitbucket.org")
    monkeypatch.setenv("HTTP_PROXY", CLOSED)

    updated, troubles = step(bitbucket.environ()).finish()

    assert (updated, troubles) == (list(KINDS["bitbucket"].targets), [])
    assert bitbucket.seen("PUT", "/reports/")[0].via == "proxy"


def test_a_build_of_a_branch_has_no_refname_and_no_comment(bitbucket: FakeBitbucket) -> None:
    """The name ties a status to a pull request; without one there is nothing to tie it to."""
    updated, _ = step(bitbucket.environ(pull_request=False)).finish()

    assert updated == ["Code Insights report", "commit status"]
    assert "refname" not in bitbucket.statuses[COMMIT, "gpu-cluster"]


def test_without_a_link_bitbucket_gets_no_status(bitbucket: FakeBitbucket) -> None:
    """It takes none without an address; the report and the comment need none."""
    updated, troubles = step(bitbucket.environ()).finish(
        as_ended("failed", link="", own_page=False)
    )

    assert (updated, troubles, bitbucket.refused) == (
        ["Code Insights report", "pull request comment"],
        [],
        [],
    )
    assert f"gpu-cluster logs {SESSION}" in bitbucket.annotations(*REPORT)[0]["details"]


def test_braces_in_a_link_stay_what_they_are(bitbucket: FakeBitbucket) -> None:
    """Bitbucket would put the repository's name in the place of `{repository.full_name}`."""
    step(bitbucket.environ()).finish(
        report(link="https://gpu.example.com/{repository.full_name}/1")
    )

    assert (
        bitbucket.statuses[COMMIT, "gpu-cluster"]["url"]
        == "https://gpu.example.com/%7Brepository.full_name%7D/1"
    )
    assert bitbucket.refused == []


def test_on_the_way_only_the_report_of_bitbucket_changes(bitbucket: FakeBitbucket) -> None:
    """A status for each half minute would use up the hourly allowance of requests."""
    ci_step = step(bitbucket.environ())

    ci_step.sender.deliver(ci_step.publisher.progressed(on_the_way(9)), within_s=10)

    assert bitbucket.statuses == {}
    assert bitbucket.reports[REPORT]["result"] == "PENDING"
    assert bitbucket.reports[REPORT]["details"] == "running: 2 of 9 tests, 1 failed, 1 passed"
    assert bitbucket.annotations(*REPORT) == []


def test_figures_of_a_report_have_the_units_of_bitbucket(bitbucket: FakeBitbucket) -> None:
    """A duration is in milliseconds, at most ten figures are shown.

    Unknown cost is not zero.
    """
    everything = as_ended("failed", price_usd=1.5, delta=DIFFERENT)

    step(bitbucket.environ()).finish(everything)

    shown = {entry["title"]: entry["value"] for entry in bitbucket.reports[REPORT]["data"]}
    assert len(shown) <= 10
    assert shown["Session"] == {"text": SESSION, "href": PAGE}
    assert (shown["Duration"], shown["Failed"], shown["Passed"], shown["Cost"]) == (
        83_400,
        1,
        1,
        "1.50 USD",
    )
    assert shown["GPUs"] == "2 x NVIDIA L4"
    assert bitbucket.refused == []


def test_simulated_gpus_are_called_that(bitbucket: FakeBitbucket) -> None:
    """Nobody should merge a kernel because numbers without a GPU were green."""
    step(bitbucket.environ()).finish(report(simulated=True))

    assert "SIMULATED" in bitbucket.reports[REPORT]["details"]
    assert "SIMULATED" in KINDS["bitbucket"].comments(bitbucket)[0]
