"""A CI host that refuses, is slow, or answers nonsense.

The run goes on, the rest is told, and a trouble names the failure.
"""

from __future__ import annotations

import dataclasses
import gzip
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import pytest

from pytest_gpu_cluster.publish import bitbucket, github, gitlab
from pytest_gpu_cluster.publish.exchange import Endpoint, PublishError, Request, Response
from pytest_gpu_cluster.publish.http import Transport, refusal, retry_after_s
from pytest_gpu_cluster.publish.refusals import refusal_text
from tests.hosts import (
    FakeBitbucket,
    Fault,
    cut,
    garbage,
    html,
    secondary_limit,
    slow,
    status,
    trickle,
)
from tests.hosts.server import Answer
from tests.hosts.server import Request as HostRequest
from tests.unit.test_publish import KINDS, as_ended, step

Case = TypeVar("Case")
Outcome = TypeVar("Outcome")

NAMES = {
    "bitbucket": bitbucket.Bitbucket.name,
    "github": github.GitHub.name,
    "gitlab": gitlab.GitLab.name,
}
WORDS = "the host's own words"
NOBODY = "http://127.0.0.1:9"  # nothing listens there
AGAIN = "the verdict stands; send the report again with: gpu-cluster report --publish"


@dataclass(frozen=True)
class Place:
    """One surface of one host, and the request that brings it up to date."""

    kind: str
    surface: str
    method: str
    path: str

    def __str__(self) -> str:
        return f"{self.kind}, {self.surface}"

    @property
    def request(self) -> tuple[str, str]:
        return self.method, self.path

    @property
    def read(self) -> Place:
        """The request before it, that looks for what is there."""
        return dataclasses.replace(self, method="GET", path=self.path.removesuffix("$"))

    @property
    def others(self) -> list[str]:
        return [surface for surface in KINDS[self.kind].surfaces if surface != self.surface]


PLACES = [
    Place("bitbucket", "Code Insights report", "PUT", "/reports/"),
    Place("bitbucket", "commit status", "POST", "/statuses/build$"),
    Place("bitbucket", "pull request comment", "POST", "/comments$"),
    Place("github", "commit status", "POST", "/statuses/"),
    Place("github", "check run", "POST", "/check-runs$"),
    Place("github", "pull request comment", "POST", "/comments$"),
    Place("gitlab", "commit status", "POST", "/statuses/"),
    Place("gitlab", "merge request note", "POST", "/notes$"),
]
COMMENTS = [place for place in PLACES if place.surface == KINDS[place.kind].comment]
(CHECK_RUN,) = [place for place in PLACES if place.surface == "check run"]
REPEATABLE = [place for place in PLACES if place not in (*COMMENTS, CHECK_RUN)]
each_place = pytest.mark.parametrize("place", PLACES, ids=str)


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the machine that these tests run on is none of theirs."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@dataclass(frozen=True)
class Published:
    """The result of `deliver`, its duration, and the state of the host after it."""

    surfaces: list[str]
    troubles: list[str]
    took_s: float
    requests: int  # requests of the place
    comments: list[str]
    refused: list[str]

    def complete_at(self, place: Place) -> bool:
        """Everything was told, once."""
        everything = (self.surfaces, self.troubles, self.refused) == (
            list(KINDS[place.kind].surfaces),
            [],
            [],
        )
        return everything and len(self.comments) == 1

    @property
    def trouble(self) -> str:
        (only,) = self.troubles
        return only


def publish(
    place: Place,
    directory: Path,
    *faults: Fault,
    within_s: float = 12,
    make: Callable[[], Any] | None = None,
) -> Published:
    """Publish a failed session to a host that meets the requests of this place with `faults`."""
    of = KINDS[place.kind]
    with (make or of.make)() as host:
        host.fault(place.request, *faults)
        environ = of.environ(host, Path(tempfile.mkdtemp(dir=directory)))
        if (
            place.surface == "Code Insights report"
        ):  # with both doors open a refusal at one would only lead to the other
            environ["BITBUCKET_PIPELINES_PROXY"] = NOBODY
        ci_step = step(environ, check_run=True)
        began = time.monotonic()
        surfaces, troubles = ci_step.finish(as_ended("failed"), within_s=within_s)
        took_s = time.monotonic() - began
        return Published(
            surfaces,
            troubles,
            took_s,
            len(host.seen(*place.request)),
            of.comments(host),
            host.refused,
        )


def at_once(run: Callable[[Case], Outcome], cases: Sequence[Case]) -> list[tuple[Case, Outcome]]:
    """Cases that mostly wait, side by side; each with what came of it."""
    with ThreadPoolExecutor(len(cases)) as pool:
        return list(zip(cases, pool.map(run, cases), strict=True))


def tags(text: str) -> list[str]:
    return re.findall(r"</?[a-zA-Z!][^>]*>", text)


# Refused: said at once, with what to do.


def remedy(place: Place, code: int) -> str:
    """The part of a remedy that has to be there."""
    match place.kind, code:
        case "bitbucket", 401:
            return "create a new repository access token"
        case "bitbucket", 403:
            return "the scope pullrequest:write" if place in COMMENTS else "the scope repository"
        case "bitbucket", 404:
            return (
                "is there a pull request 7 in acme/aerial"
                if place in COMMENTS
                else "does acme/aerial have the commit"
            )
        case "github", 401:
            return "pass ${{ github.token }} to the step"
        case "github", 403 | 404:
            right = {"commit status": "statuses: write", "check run": "checks: write"}.get(
                place.surface, "pull-requests: write"
            )
            return f"add `{right}` to the job's `permissions`"
        case "gitlab", 401 | 403 | 404:
            return "a project access token with the scope api"
    return AGAIN


@each_place
@pytest.mark.parametrize("code", [400, 401, 403, 404, 409, 422])
def test_a_refusal_is_said_with_its_remedy_and_hinders_no_other_surface(
    place: Place, code: int, tmp_path: Path
) -> None:
    """A token without one scope still sets the status.

    And the reader needs the host's words, not only ours.
    """
    with KINDS[place.kind].make() as host:
        body = host.error(code, WORDS).body

    result = publish(place, tmp_path, Fault(code=code, body=body, served=False))

    assert result.surfaces == place.others
    assert result.trouble.startswith(
        f"{NAMES[place.kind]}: the {place.surface} was not taken: {code}: {WORDS}\n  remedy: "
    )
    assert remedy(place, code) in result.trouble
    assert (result.requests, result.refused) == (1, [])


@pytest.mark.parametrize("place", [place for place in PLACES if place.kind == "bitbucket"], ids=str)
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            {
                "type": "error",
                "error": {"message": "key: too long", "fields": {"key": ["at most 40"]}},
            },
            "400: key: too long; key: at most 40",
        ),
        ({"error": {"fields": {"url": ["Enter a valid URL."]}}}, "400: url: Enter a valid URL."),
        (
            {"code": 400, "message": "Bulk upload supports a maximum of /100 annotations."},
            "400: Bulk upload supports a maximum of /100",
        ),
        (
            {
                "key": "report-service.general.bad-request",
                "message": "The summary field is long.",
                "arguments": {},
            },
            "400: The summary field",
        ),
    ],
    ids=["form", "form without a message", "bulk", "insights"],
)
def test_each_of_bitbuckets_shapes_of_an_error_is_understood(
    place: Place, body: Any, words: str, tmp_path: Path
) -> None:
    """Three services behind one address answer, each in its way."""
    result = publish(place, tmp_path, Fault(code=400, body=body, served=False))

    assert words in result.trouble
    assert not re.search(r"[{}\[\]]", result.trouble)


@each_place
@pytest.mark.parametrize("code", [400, 403])
def test_of_an_error_page_only_the_words_are_shown(place: Place, code: int, tmp_path: Path) -> None:
    """A load balancer in front of the host answers people."""
    result = publish(place, tmp_path, html(code))

    assert f"{code}: " in result.trouble
    assert f"({code})" in result.trouble
    assert "remedy: " in result.trouble
    assert tags(result.trouble) == []
    assert result.surfaces == place.others


@each_place
def test_where_there_is_nothing_to_read_that_is_said(place: Place, tmp_path: Path) -> None:
    """An empty answer is still an answer."""
    result = publish(place, tmp_path, Fault(code=400, body="", served=False))

    assert "400: no reason was given" in result.trouble


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("kind", KINDS)
def test_a_redirect_is_a_trouble_and_its_target_never_sees_the_token(
    kind: str, code: int, tmp_path: Path
) -> None:
    """An attacker who can make the host redirect must not get the credential.

    A POST that became a GET told nobody.
    """
    with FakeBitbucket() as elsewhere:
        target = {"Location": f"{elsewhere.url}/2.0/taken"}
        places = [place for place in PLACES if place.kind == kind]

        results = [
            publish(place, tmp_path, Fault(code=code, headers=target, body="", served=False))
            for place in places
        ]

        assert elsewhere.requests == []
    assert [result.surfaces for result in results] == [place.others for place in places]
    assert all(f"{code}: " in result.trouble and "remedy: " in result.trouble for result in results)


def test_a_surface_that_cannot_be_read_first_is_a_trouble_of_its_own(tmp_path: Path) -> None:
    """Listing comments wants another scope than writing one; nothing is written blindly."""
    results = [publish(place.read, tmp_path, status(403)) for place in COMMENTS]

    assert [result.surfaces for result in results] == [place.others for place in COMMENTS]
    assert all(
        "403: Forbidden" in result.trouble and "remedy: " in result.trouble for result in results
    )
    assert [result.comments for result in results] == [[], [], []]


def test_annotations_that_are_refused_are_said_and_the_verdict_is_there() -> None:
    """The report itself was taken before them."""
    with FakeBitbucket() as host:
        host.fault(
            ("POST", "/annotations"),
            Fault(code=400, body={"code": 400, "message": WORDS}, served=False),
        )

        updated, troubles = step(host.environ(token=False)).finish(as_ended("failed"))

        assert updated == []
        assert [f"400: {WORDS}" in trouble for trouble in troubles] == [True]
        assert [body["result"] for body in host.reports.values()] == ["FAILED"]


@pytest.mark.parametrize(
    "fault",
    [
        status(403),
        garbage(),
        Fault(code=200, body=[], served=False),
        Fault(code=200, body={"values": None}, served=False),
    ],
    ids=["refused", "garbage", "a list", "null"],
)
def test_old_annotations_that_cannot_be_listed_do_not_cost_the_new_ones(fault: Fault) -> None:
    """Nobody promises that the proxy lets them be read."""
    with FakeBitbucket() as host:
        host.fault(("GET", "/annotations"), fault)

        updated, troubles = step(host.environ(token=False)).finish(as_ended("failed"))

        assert (updated, troubles, host.refused) == (["Code Insights report"], [], [])
        assert len(host.annotations(host.commit, "gpu-cluster")) == 1


# Busy or broken for a while: tried again.


def test_a_host_that_is_busy_or_broken_for_a_moment_is_asked_again(tmp_path: Path) -> None:
    """It happens in every long week, and a second try half a second later is all it takes."""
    cases = [
        (place, fault)
        for place in PLACES
        for fault in (status(429), status(500), html(502), status(503))
    ]

    results = at_once(lambda case: publish(case[0], tmp_path, case[1]), cases)

    assert [
        (case, result)
        for case, result in results
        if not (result.complete_at(case[0]) and result.requests == 2)
    ] == []
    assert [
        case for case, result in results if case[1].code in (429, 503) and result.took_s < 0.5
    ] == []


def test_a_host_that_says_when_is_asked_then(tmp_path: Path) -> None:
    """Sooner is one more request against the same limit.

    A date has no fractions: three seconds ahead is more than two.
    """
    at_a_time = Fault(
        code=429, headers={"Retry-After": formatdate(time.time() + 3, usegmt=True)}, served=False
    )
    waits = [(status(429, retry_after=1), 1.0), (status(503, retry_after=1), 1.0), (at_a_time, 1.5)]
    cases = [(place, *wait) for place in PLACES for wait in waits]
    cases += [(place, secondary_limit(1), 1.0) for place in PLACES if place.kind == "github"]

    results = at_once(lambda case: publish(case[0], tmp_path, case[1]), cases)

    assert [
        (case, result)
        for case, result in results
        if not (
            result.complete_at(case[0]) and result.requests == 2 and case[2] < result.took_s < 5
        )
    ] == []


@each_place
@pytest.mark.parametrize(
    "fault", [status(429, retry_after=600), status(503, retry_after=600)], ids=["429", "503"]
)
def test_a_host_that_wants_to_be_left_alone_for_long_is_not_waited_for(
    place: Place, fault: Fault, tmp_path: Path
) -> None:
    """A runner is paid by the minute."""
    result = publish(place, tmp_path, fault)

    assert result.took_s < 2
    assert (result.surfaces, result.requests) == (place.others, 1)
    assert f"{fault.code}: " in result.trouble
    assert AGAIN in result.trouble


def test_how_long_a_host_wants_to_be_left_alone_is_said(tmp_path: Path) -> None:
    """That is when it is worth sending the report again."""
    results = [publish(place, tmp_path, status(429, retry_after=600)) for place in COMMENTS]

    assert ["600 s" in result.trouble for result in results] == [True] * 3


def test_githubs_other_limit_is_not_taken_for_a_missing_permission(tmp_path: Path) -> None:
    """It is a 403 as well.

    A reader who edits the workflow's permissions for it is led astray.
    """
    results = [
        publish(place, tmp_path, secondary_limit(600)) for place in PLACES if place.kind == "github"
    ]

    assert all(
        "secondary rate limit" in result.trouble and AGAIN in result.trouble for result in results
    )
    assert not [result for result in results if "permissions" in result.trouble]


def test_a_host_that_stays_broken_is_given_up_within_the_time(tmp_path: Path) -> None:
    """Tries are bounded by the clock, whatever their number."""
    for place, result in at_once(
        lambda place: publish(place, tmp_path, *[status(503)] * 50, within_s=3), PLACES
    ):
        assert result.took_s < 4, place
        assert "503: Service Unavailable" in result.trouble, place
        assert AGAIN in result.trouble, place
        assert 2 <= result.requests <= 4, place
        assert result.surfaces == place.others, place


@pytest.mark.parametrize("kind", KINDS)
def test_a_host_that_is_not_there_is_said_to_be_not_there(kind: str, tmp_path: Path) -> None:
    """The reason is the innermost one.

    What libraries wrap around it repeats the address three times.
    """
    of = KINDS[kind]
    with of.make() as host:
        ci_step = step(of.environ(host, tmp_path), check_run=True)

    updated, troubles = ci_step.finish(within_s=1)

    assert updated == []
    assert "no answer: ConnectionRefusedError" in troubles[0]
    assert all(
        trouble.startswith(f"{NAMES[kind]}: the ") and "remedy: " in trouble for trouble in troubles
    )
    assert [
        surface for surface in of.surfaces if f"the {surface} " not in "\n".join(troubles)
    ] == []


# Cut: repeated where that does no harm.

CUTS = (
    cut(),
    cut(served=True),
    cut(1),
    cut(10),
)  # without an answer, done or not; and in the middle of one


def test_a_request_that_may_be_repeated_is_repeated_when_its_answer_is_lost(tmp_path: Path) -> None:
    """The same report twice is one report."""
    cases = [(place, fault) for place in REPEATABLE for fault in CUTS]

    results = at_once(lambda case: publish(case[0], tmp_path, case[1]), cases)

    assert [
        (case, result)
        for case, result in results
        if not (result.complete_at(case[0]) and result.requests == 2)
    ] == []


def test_a_comment_whose_answer_was_lost_is_not_posted_twice(tmp_path: Path) -> None:
    """It is looked for before it is sent again.

    Two comments would both have to be deleted by hand.
    """
    cases = [(place, fault) for place in COMMENTS for fault in CUTS]

    results = at_once(lambda case: publish(case[0], tmp_path, case[1]), cases)

    assert [
        (case, result)
        for case, result in results
        if not (result.complete_at(case[0]) and result.requests == 2 - case[1].served)
    ] == []


def test_a_comment_is_sent_again_only_once(tmp_path: Path) -> None:
    """After that nobody knows, and it is said."""
    cases = [
        (place, twice)
        for place in COMMENTS
        for twice in ((cut(), cut()), (cut(), cut(served=True)))
    ]

    for (place, twice), result in at_once(lambda case: publish(case[0], tmp_path, *case[1]), cases):
        assert (result.surfaces, result.requests) == (place.others, 2), (place, twice)
        assert (
            f"{NAMES[place.kind]}: the {place.surface} was not taken: no answer: " in result.trouble
        )
        assert "remedy: " in result.trouble
        assert len(result.comments) <= 1, (place, twice)


@pytest.mark.parametrize("fault", CUTS[1:], ids=["nothing", "one byte", "ten bytes"])
def test_a_check_run_whose_answer_was_lost_is_not_made_twice(fault: Fault, tmp_path: Path) -> None:
    """Each is a line of its own below the pull request, for ever."""
    result = publish(CHECK_RUN, tmp_path, fault)

    assert result.requests == 1
    assert (
        result.complete_at(CHECK_RUN)
        or "GitHub: the check run was not taken: no answer: " in result.trouble
    )


class ForgetfulBitbucket(FakeBitbucket):
    """Posts a comment, and its gateway says once that it did not."""

    forgets = 1

    def _post_comment(self, request: HostRequest) -> Answer:
        answer = super()._post_comment(request)
        self.forgets -= 1
        return answer if self.forgets < 0 else Answer(504, "<html><h1>Gateway Time-out</h1></html>")


def test_a_comment_that_a_gateway_gave_up_on_is_looked_for_before_it_is_sent_again(
    tmp_path: Path,
) -> None:
    """500, 502 and 504 do not say that nothing was done."""
    place = COMMENTS[0]

    result = publish(place, tmp_path, make=ForgetfulBitbucket)

    assert result.complete_at(place)


# Slow: bounded.


def test_an_answer_that_does_not_come_holds_nobody_up(tmp_path: Path) -> None:
    """Late, or a byte at a time, in which no single read ever times out."""
    cases = [(place, fault) for place in PLACES for fault in (slow(30), trickle(0.1))]

    for (place, fault), result in at_once(
        lambda case: publish(case[0], tmp_path, case[1], within_s=2), cases
    ):
        text = "\n".join(result.troubles)
        assert result.took_s < 4, (place, fault)
        assert place.surface not in result.surfaces, (place, fault)
        assert f"{NAMES[place.kind]}: the {place.surface} " in text, (place, fault)
        assert re.search("given up|no answer|no time left", text), (place, fault)
        assert all("\n  remedy: " in trouble for trouble in result.troubles), (place, fault)


@pytest.mark.parametrize("kind", KINDS)
def test_what_there_was_no_time_left_for_is_named_too(kind: str, tmp_path: Path) -> None:
    """A reader who waits for the commit status has to learn that it will not come.

    It is not enough that the report before it did not.
    """
    first = next(place for place in PLACES if place.kind == kind)

    result = publish(first, tmp_path, slow(30), within_s=1)

    text = "\n".join(result.troubles)
    assert [
        surface
        for surface in KINDS[kind].surfaces
        if surface not in result.surfaces and f"the {surface} " not in text
    ] == []


def test_an_answer_that_comes_late_but_in_time_is_taken(tmp_path: Path) -> None:
    """Hosts under load answer in seconds."""
    results = at_once(lambda place: publish(place, tmp_path, slow(1)), PLACES)

    assert [
        (place, result)
        for place, result in results
        if not (result.complete_at(place) and result.requests == 1)
    ] == []


# Nonsense.


READS = [place.read for place in (*COMMENTS, CHECK_RUN)]


@each_place
def test_garbage_where_an_answer_should_be_takes_nothing_with_it(
    place: Place, tmp_path: Path
) -> None:
    """It said that it was a success: where no more is needed of it, it was one."""
    result = publish(place, tmp_path, garbage())

    assert set(result.surfaces) >= set(place.others)
    assert len(result.surfaces) + len(result.troubles) == len(KINDS[place.kind].surfaces)


@pytest.mark.parametrize("place", READS, ids=str)
def test_garbage_where_a_list_should_be_is_shown(place: Place, tmp_path: Path) -> None:
    """Nothing is written blindly; and whoever looks into it needs to see what came."""
    result = publish(place, tmp_path, garbage())

    assert result.surfaces == place.others
    assert (
        f"{NAMES[place.kind]}: the {place.surface} was not taken: "
        "it answered 200 with something that is no JSON: " in result.trouble
    )
    assert "whatever this is" in result.trouble
    assert AGAIN in result.trouble


@pytest.mark.parametrize(
    "body",
    [
        "null",
        "[]",
        "{}",
        "[null]",
        '"text"',
        "3",
        '{"values": null}',
        '{"check_runs": null}',
        '{"check_runs": [3]}',
    ],
)
@pytest.mark.parametrize("place", READS, ids=str)
def test_json_of_another_shape_takes_nothing_with_it(
    place: Place, body: str, tmp_path: Path
) -> None:
    """An API changes, or a company's gateway answers for it.

    Nothing at all, or a trouble that says what to do.
    """
    result = publish(
        place,
        tmp_path,
        Fault(code=200, body=body, headers={"Content-Type": "application/json"}, served=False),
    )

    assert [surface for surface in result.surfaces if surface != place.surface] == place.others
    for trouble in result.troubles:
        assert trouble.startswith(f"{NAMES[place.kind]}: the {place.surface} ")
        assert "remedy: " in trouble


# Answers as real hosts send them.


class _Page(BaseHTTPRequestHandler):
    """Compressed, in pieces; and too long."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        text = b'{"words": "' + b"a" * (20 << 20 if self.path == "/long" else 100_000) + b'"}'
        content = gzip.compress(text) if self.path != "/plain" else text
        self.send_response(200)
        if self.path != "/plain":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for start in range(0, len(content), 1000):
            piece = content[start : start + 1000]
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def transport() -> Iterator[Transport]:
    """For `_Page`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    serving.start()
    yield Transport({"token": Endpoint(base=f"http://127.0.0.1:{server.server_port}")})
    server.shutdown()
    serving.join()
    server.server_close()


@pytest.mark.parametrize("path", ["/plain", "/packed"])
def test_an_answer_in_pieces_is_put_together_and_unpacked(transport: Transport, path: str) -> None:
    """The fakes send plain answers with their length.

    Real hosts compress, and know no length beforehand.
    """
    answer = transport(Request(method="GET", path=path))

    assert answer.json() == {"words": "a" * 100_000}


def test_an_answer_without_an_end_is_not_kept_in_memory(transport: Transport) -> None:
    """A few kilobytes may unpack to gigabytes."""
    with pytest.raises(PublishError, match="the answer is too long"):
        transport(Request(method="GET", path="/long", repeatable=False))


def test_a_door_that_does_not_exist_is_said(transport: Transport) -> None:
    """A publisher without a token has only the proxy's."""
    with pytest.raises(PublishError, match="there is no credential for it"):
        transport(Request(method="GET", path="/plain", endpoint="proxy"))


# What a refusal says.


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            '{"type":"error","error":{"message":"No","detail":"The scope is missing."}}',
            "No; The scope is missing.",
        ),
        (
            '{"type":"error","error":{"message":"No","fields":{"url":["a","b"],"key":["c"]}}}',
            "No; url: a, b; key: c",
        ),
        (
            '{"code":400,"message":"Bulk upload supports a maximum of /100."}',
            "Bulk upload supports a maximum of /100.",
        ),
        (
            '{"key":"report-service.general.bad-request","message":"Too long.","arguments":{}}',
            "Too long.",
        ),
        (
            '{"message":"Bad credentials","documentation_url":"https://docs.github.com/rest","status":"401"}',
            "Bad credentials",
        ),
        ('{"message":"401 Unauthorized"}', "401 Unauthorized"),
        ('{"error":"pipeline_id is missing"}', "pipeline_id is missing"),
        ('{"message":{"target_url":["is blocked"]}}', "target_url: is blocked"),
        (
            '{"error":"invalid_token","error_description":"Token is expired."}',
            "invalid_token; Token is expired.",
        ),
        ('{"message":"<h1>Bad <b>Request</b></h1>"}', "Bad Request"),
        (
            (
                "<html><head><style>p {color: red}</style><script>x()</script></head>"
                "<body><h1>Bad\n Gateway</h1></body></html>"
            ),
            "Bad Gateway",
        ),
        ("Retry later\n", "Retry later"),
        ("", "no reason was given"),
        ("<html></html>", "no reason was given"),
        ("\x1b[31mred\x1b[0m \x07", "red"),
    ],
)
def test_a_refusal_is_shown_in_the_hosts_words_alone(body: str, expected: str) -> None:
    """One line that a person can search for: no braces of JSON, no tags, no control characters."""
    assert refusal_text(body) == expected


@pytest.mark.parametrize(
    "body",
    [
        "null",
        "[]",
        "3",
        "{}",
        '{"error": null}',
        '{"error": []}',
        '{"error": {"fields": 3}}',
        "[[[",
        "{" * 5000,
    ],
)
def test_whatever_a_refusal_is_it_is_shown_in_a_line(body: str) -> None:
    """A body that cannot be understood is shown as it is, cut."""
    text = refusal_text(body)

    assert text
    assert "\n" not in text
    assert len(text) <= 301


def test_a_long_refusal_is_cut() -> None:
    """A page of a proxy has a hundred lines of style."""
    assert refusal_text("x" * 5000) == "x" * 300 + "…"


def test_a_refusal_keeps_its_status_and_its_body() -> None:
    """A publisher decides by them: what an older GitLab says twice is none."""
    problem = refusal(Response(status=400, text='{"message":"Cannot transition status via :run"}'))

    assert str(problem) == "400: Cannot transition status via :run"
    assert (problem.status, problem.body) == (
        400,
        '{"message":"Cannot transition status via :run"}',
    )


@pytest.mark.parametrize(
    ("code", "header", "seconds"),
    [
        (429, "3", 3.0),
        (429, "0", 0.0),
        (403, "60", 60.0),
        (503, "7", 7.0),
        (429, "Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        (429, "", None),
        (429, "soon", None),
        (429, "-1", None),
        (429, "²", None),
        (429, "Mon, 99 Foo 2026 99:99:99 GMT", None),
        (404, "3", None),
        (200, "3", None),
    ],
)
def test_how_long_a_host_asks_to_wait(code: int, header: str, seconds: float | None) -> None:
    """In seconds or as a date; what is neither is not a wish."""
    assert (
        retry_after_s(
            Response(status=code, text="", headers={"retry-after": header} if header else {})
        )
        == seconds
    )


def test_a_date_to_wait_for_is_counted_from_now() -> None:
    """To the second, as dates have no more."""
    seconds = retry_after_s(
        Response(
            status=429, text="", headers={"retry-after": formatdate(time.time() + 30, usegmt=True)}
        )
    )

    assert seconds is not None
    assert 28 <= seconds <= 30


# Two doors.


def test_what_the_proxy_does_not_let_pass_goes_with_the_token() -> None:
    """Nobody has promised what else the proxy refuses; whoever has set a token has a second way."""
    with KINDS["bitbucket"].make() as host:
        host.fault(("PUT", "/reports/"), status(403))
        updated, troubles = step(host.environ(), check_run=True).finish(as_ended("failed"))

        assert (updated, troubles) == (list(KINDS["bitbucket"].surfaces), [])
        assert [each.via for each in host.seen("PUT", "/reports/")] == ["proxy", "direct"]


def test_without_a_token_a_refusal_of_the_proxy_is_said_with_the_way_around_it() -> None:
    """A remedy that speaks of the scopes of a token that is not there helps nobody."""
    with KINDS["bitbucket"].make() as host:
        host.fault(("PUT", "/reports/"), status(403))
        updated, (trouble,) = step(host.environ(token=False)).finish(as_ended("failed"))

        assert updated == []
        assert "403" in trouble
        assert "remedy: the Pipelines proxy refused it; set BITBUCKET_TOKEN" in trouble
