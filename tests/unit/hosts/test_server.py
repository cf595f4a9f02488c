"""The server below all fake hosts: what it records, its faults, its end."""

from __future__ import annotations

import http.client
import json
import threading
import time
from urllib.parse import urlsplit

import pytest

from tests.hosts import FakeBitbucket, cut, garbage, html, slow, status, trickle
from tests.hosts.server import Host
from tests.unit.hosts.rig import BUILD, COMMENTS, REPORT, a_report, a_status, ask, through


def unanswered(host: Host) -> None:
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        ask(host, "GET", COMMENTS)


def test_closing_leaves_no_thread_and_no_port_behind() -> None:
    """A suite makes hundreds of hosts.

    What each left behind would add up, and slow answers must not hold up the end of a test.
    """
    before = threading.active_count()
    host = FakeBitbucket().start()
    host.fault((None, ""), slow(30))
    waiting = threading.Thread(target=unanswered, args=(host,), daemon=True)
    idle = http.client.HTTPConnection("127.0.0.1", urlsplit(host.url).port)
    idle.connect()
    waiting.start()
    while host._faults[0][2]:  # until the request has met its fault: both connections are open
        time.sleep(0.001)
    port, started = urlsplit(host.url).port, time.monotonic()

    host.close()
    host.close()

    assert time.monotonic() - started < 2
    waiting.join(5)
    idle.close()
    assert threading.active_count() == before
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection("127.0.0.1", port, timeout=1).connect()


def test_a_request_is_recorded_as_it_came_and_as_it_was_answered(bitbucket: FakeBitbucket) -> None:
    """Tests of what is sent, and in which order, read this."""
    ask(bitbucket, "POST", BUILD, a_status())
    through(bitbucket, "GET", f"{REPORT}?pagelen=5")

    first, second = bitbucket.requests
    assert (first.method, first.path, first.status, first.via, first.body) == (
        "POST",
        BUILD,
        201,
        "direct",
        a_status(),
    )
    assert first.headers["authorization"] == f"Bearer {bitbucket.token}"
    assert (second.path, second.status, second.via, second.body) == (
        f"{REPORT}?pagelen=5",
        404,
        "proxy",
        "",
    )
    assert bitbucket.seen("POST", "statuses") == [first]
    assert bitbucket.refused == []


def test_each_fault_meets_one_request_in_order(bitbucket: FakeBitbucket) -> None:
    """A retry is tested with the second answer, so a fault may not stay.

    A request that no fault is meant for meets none.
    """
    bitbucket.fault(
        ("GET", r"/comments"), status(429, retry_after=2), status(503), html(502), garbage()
    )

    answers = [ask(bitbucket, "GET", COMMENTS) for _ in range(5)]

    assert [answer.status for answer in answers] == [429, 503, 502, 200, 200]
    assert answers[0].headers["retry-after"] == "2"
    assert answers[0].body["error"]["message"] == "Rate limit for this resource has been exceeded"
    assert "<h1>" in answers[2].body
    assert answers[3].headers["content-type"] == "application/json"
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(answers[3].body)
    assert answers[4].body["values"] == []
    assert bitbucket.refused == []


def test_an_answer_may_be_late_or_slow_or_cut(bitbucket: FakeBitbucket) -> None:
    """The three ways in which a network hurts.

    Each has to be bounded by a client of its own accord.
    """
    ask(bitbucket, "PUT", REPORT, a_report())
    bitbucket.fault((None, "."), slow(0.1), trickle(0.001), cut(5))

    started = time.monotonic()
    late = ask(bitbucket, "GET", REPORT)
    between = time.monotonic()
    trickled = ask(bitbucket, "GET", REPORT)
    ended = time.monotonic()

    assert late.body == trickled.body
    assert between - started >= 0.1
    assert ended - between >= 0.001 * len(json.dumps(trickled.body))
    with pytest.raises(http.client.IncompleteRead):
        ask(bitbucket, "GET", REPORT)


@pytest.mark.parametrize("served", [False, True])
def test_a_connection_cut_without_an_answer_may_have_been_served(
    bitbucket: FakeBitbucket, served: bool
) -> None:
    """A client that repeats a POST whose answer was lost makes two comments.

    The test needs both kinds of loss.
    """
    bitbucket.fault(("POST", "/comments"), cut(served=served))

    with pytest.raises(http.client.RemoteDisconnected):
        ask(bitbucket, "POST", COMMENTS, {"content": {"raw": "hello"}})

    assert len(bitbucket.comments) == served
    assert [request.status for request in bitbucket.requests] == [0]


def test_a_mistake_in_the_request_is_a_mistake_even_where_a_fault_waits(
    bitbucket: FakeBitbucket,
) -> None:
    """A token sent to the proxy is sent, whatever the proxy answers."""
    bitbucket.fault((None, "."), status(503))

    through(bitbucket, "PUT", REPORT, a_report(), Authorization="Bearer secret")

    assert "credentials sent to the proxy" in bitbucket.refused[0]


def test_a_failure_of_the_fake_is_seen(bitbucket: FakeBitbucket) -> None:
    """A bug here would otherwise look like a 500 that a client is right to bear."""
    bitbucket.commits = 3  # type: ignore[assignment]  # so that it breaks

    answer = ask(bitbucket, "GET", REPORT)

    assert answer.status == 500
    assert "the fake itself failed" in bitbucket.refused[0]
