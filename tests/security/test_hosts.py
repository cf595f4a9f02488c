"""A token goes to the repository of this process, whatever a record in the store says."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_gpu_cluster.contract.request import CI
from pytest_gpu_cluster.publish.exchange import Endpoint, PublishError, Request
from pytest_gpu_cluster.publish.http import Transport, plain_url
from pytest_gpu_cluster.publish.recorded import checked_step
from tests.hosts import FakeGitHub
from tests.hosts.exchange import Fault
from tests.security.hostile import EVIL, KINDS, PLACES, SESSION, Forger, bent
from tests.unit.publish.test_outside_host import ACME, BUILD, install

BASE = "https://api.example.com/2.0"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the machine that these tests run on is none of theirs."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(params=KINDS)
def forger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Forger]:
    kind = KINDS[request.param]
    with kind.make() as host:
        yield Forger(kind, host, tmp_path)


@pytest.fixture
def other() -> Iterator[FakeGitHub]:
    """A host that nothing has to do with: whatever comes there was sent astray."""
    with FakeGitHub() as host:
        yield host


# -- records ---------------------------------------------------------------------------------------


def test_a_true_record_is_published_to_its_repository(forger: Forger) -> None:
    """Beside the hostile ones: where nothing is published, nothing could go astray."""
    forger.forge({})

    report, closing = forger.publish()

    assert report.verdict == "failed"
    assert closing.troubles == ()
    assert [line.partition(": ")[2] for line in closing.lines if line.startswith("told ")] == [
        ", ".join(forger.kind.targets)
    ]
    assert forger.host.refused == []
    assert forger.kind.strays(forger.host.requests) == []
    assert forger.kind.forged(forger.host.requests) == []


def test_a_token_goes_only_to_the_true_repository_whatever_a_record_says(forger: Forger) -> None:
    """A stranger's pull request may write records.

    The token of the step that reports them is the project's.
    """
    records = forger.values()
    assert len(records) >= 200

    wrong = []
    for field, value in records:
        before = len(forger.host.requests)
        forger.forge({field: value})
        forger.publish()
        sent = forger.host.requests[before:]
        faults = forger.kind.strays(sent) + forger.kind.forged(sent)
        wrong += [f"{field} {value[:60]!r}: {fault}" for fault in faults]

    assert wrong == []
    assert forger.host.refused == []


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("value", ["../../evil", "evil/repo", "b" * 40, "8"])
def test_what_a_record_bends_is_named_with_its_value_and_a_remedy(
    forger: Forger, name: str, value: str
) -> None:
    """A status that is missing without a word looks like a fault of the host."""
    forger.forge({name: value})

    _, closing = forger.publish()

    (trouble,) = [each for each in closing.troubles if f"the {name.replace('_', ' ')} " in each]
    assert f"'{value}', which is not used: " in trouble
    assert "\n  remedy: " in trouble
    assert set(closing.troubles) <= set(closing.lines)


def test_a_record_of_another_host_takes_no_token_of_that_host_along(
    other: FakeGitHub, tmp_path: Path
) -> None:
    """A step at Bitbucket that mirrors to GitHub has tokens of both."""
    kind = KINDS["bitbucket"]
    with kind.make() as host:
        forger = Forger(kind, host, tmp_path)
        forger.forge({"host": "github", "repository": "evil/repo"})
        extra = {"GITHUB_TOKEN": other.token, "GITHUB_API_URL": other.url}

        _, closing = forger.publish(forger.environ | extra)

        assert (other.requests, host.requests) == ([], [])
        assert "the host 'github', which is not used: this step is one of bitbucket" in "".join(
            closing.troubles
        )


def test_outside_of_a_step_a_record_alone_does_not_say_where_a_token_goes(forger: Forger) -> None:
    """A maintainer's laptop has a token for many repositories."""
    forger.forge({})
    variable = forger.kind.repository_variable

    _, closing = forger.publish(forger.outside)

    assert forger.host.requests == []
    assert f"\n  remedy: set {variable}=" in "".join(closing.troubles)
    _, closing = forger.publish({**forger.outside, variable: forger.true_value("repository")})
    assert closing.troubles == ()
    assert forger.host.requests
    assert forger.kind.strays(forger.host.requests) == []


@pytest.mark.parametrize(
    "delta",
    [
        *(7, [], "text", {"branch": 1, "session": []}, {"branch": "main"}),
        {"branch": "main", "session": "s", "slower": [["a", 1]], "fixed": [{}]},
        {"branch": "main", "session": "s", "newly_failing": "text"},
    ],
    ids=str,
)
def test_a_summary_that_is_none_is_no_difference(forger: Forger, delta: object) -> None:
    """The record's own summary is written last, by whoever may write."""
    forger.forge({})
    forger.record.put_summary(json.dumps({"delta": delta, "not_reported": ["again"]}))

    report, closing = forger.publish()

    assert report.delta is None
    assert closing.troubles == ()


@pytest.mark.parametrize("build", ["../7", "7?x", "7", "8"])
def test_a_host_of_another_distribution_is_told_of_its_own_build_alone(
    build: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its author writes paths as in the documentation, and thinks of no forged record."""
    install(tmp_path, ACME)
    monkeypatch.syspath_prepend(tmp_path)
    recorded = CI(host="acme", build=build)

    in_its_step, _ = checked_step(recorded, BUILD)
    in_another, (other,) = checked_step(recorded, BUILD | {"ACME_BUILD": "9"})
    on_a_laptop, (trouble,) = checked_step(recorded, {})

    sys.modules.pop("acme_ci", None)
    assert (in_its_step.build, in_another.build, on_a_laptop.build) == (
        "7" if build == "7" else "",
        "",
        "",
    )
    assert "the build " in other
    assert "outside of a step nothing says where its token may go" in trouble


# -- addresses -------------------------------------------------------------------------------------


def test_no_token_follows_a_redirect_or_the_api_of_a_record(
    forger: Forger, other: FakeGitHub
) -> None:
    """Where a token goes is for this process's environment alone to say."""
    forger.forge({"api": other.url})
    forger.host.fault((None, "."), *[Fault(code=307, headers={"Location": other.url})] * 20)

    _, closing = forger.publish()

    assert forger.host.requests
    assert other.requests == []
    assert len([each for each in closing.troubles if "307" in each]) == len(forger.kind.targets)


def test_what_reads_as_another_address_is_not_sent(other: FakeGitHub) -> None:
    """The last door, for hosts of other distributions too: whatever put the path together."""
    transport = Transport({"token": Endpoint(base=f"{other.url}/api", headers={"X": "secret"})})
    paths = [f"/builds/{value}/status" for value in bent("acme")]

    for path in paths:
        with pytest.raises(PublishError):  # what is sent gets a 404
            transport(Request(method="GET", path=path))

    sent = [request.path.removeprefix("/api") for request in other.requests]
    assert 0 < len(sent) < len(paths)
    assert set(sent) <= set(paths)
    assert not [path for path in sent if ".." in path or "//" in path or "%" in path]


PARTS = st.sampled_from(
    ["a", "..", ".", "/", "//", "%2e", "%2F", "%25", "%", "?", "#", "@", ":", "\\", " ", "\n", "é"]
)


@given(st.lists(PARTS | st.characters(), max_size=12).map("".join))
@example("/a/../b")
@example("/a?b#c")
@example("/%2e%2E/b")
def test_what_passes_the_door_is_sent_as_it_is_written(path: str) -> None:
    """The HTTP library takes dots away, encodes, and cuts at a hash sign."""
    try:
        url = plain_url(BASE, path)
    except PublishError:
        return

    assert requests.Request("GET", url).prepare().url == url
    assert url.startswith(f"{BASE}/")


@pytest.mark.parametrize(
    "base",
    [
        *("", "file:///etc", "api.example.com", "https://", "https://user:pw@api.example.com"),
        *("https://api.example.com/../x", "https://api.example.com?x=", "https://a.example#"),
        *("https://api.example.com\n", "https://[::1]]", "https://exämple.com", "ftp://a.example"),
    ],
)
def test_an_api_that_is_no_plain_address_gets_no_token(base: str) -> None:
    """A variable with a typing error, such as GITHUB_API_URL of an own server."""
    with pytest.raises(PublishError, match="it is no plain address"):
        plain_url(base, "/repos")


# -- links -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [*bent(f"{EVIL}/sessions"), f"{EVIL}/x>) @all [y](z"])
def test_a_link_of_a_record_is_one_that_a_browser_opens_and_no_text(
    value: str, tmp_path: Path
) -> None:
    """`gpu-cluster report` shows it, and writes it into the JUnit file."""
    kind = KINDS["github"]
    with kind.make() as host:
        forger = Forger(kind, host, tmp_path)
        forger.forge({"public_url": value, "step_url": value})

        report, _ = forger.read()

    pattern = r"https?://[\w.-]+(:\d+)?/[A-Za-z0-9._~:/?#@!$&'()*+,;=%-]*"
    assert re.fullmatch(rf"({pattern})?", report.context.link)
    assert report.session == SESSION
