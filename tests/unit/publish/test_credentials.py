"""Credentials: none in any text, and those that cannot be used are refused with a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_gpu_cluster.publish.exchange import Endpoint
from pytest_gpu_cluster.publish.http import Transport
from tests.hosts import FakeBitbucket
from tests.unit.publish.rig import KINDS, as_ended, report, step


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_is_in_no_text(kind: str, tmp_path: Path) -> None:
    """Troubles are printed, put into comments and kept in the store.

    A endpoint may be in a traceback.
    """
    of = KINDS[kind]
    with of.make() as host:
        environ = of.environ(host, tmp_path)
        token = next(
            environ[name]
            for name in ("BITBUCKET_TOKEN", "GITHUB_TOKEN", "GITLAB_TOKEN")
            if name in environ
        )
        environ = {
            name: "wrong-and-secret" if value == token else value for name, value in environ.items()
        }
        ci_step = step(environ, check_run=True)

        updated, troubles = ci_step.finish()

        assert len(troubles) == len(of.targets) - len(updated) >= 2
        assert all("401" in trouble for trouble in troubles)
        texts = [
            *updated,
            *troubles,
            *ci_step.publisher.troubles,
            repr(ci_step.publisher.endpoints),
            repr(ci_step.ci),
        ]
        texts += [
            text
            for _, text, _ in ci_step.publisher.files(report(troubles=tuple(troubles)), tmp_path)
        ]
        assert not [text for text in texts if "wrong-and-secret" in text]


def test_a_door_shows_no_header() -> None:
    """It holds the credential."""
    endpoint = Endpoint(base="https://api.example.com", headers={"Authorization": "Bearer secret"})

    assert repr(endpoint) == "Endpoint(base='https://api.example.com', proxies=())"
    assert "secret" not in repr(vars(Transport({"token": endpoint})))


@pytest.mark.parametrize(
    "broken", [f"first-half{mark}second-half" for mark in ("\n", "\r", "\u2019")], ids=ascii
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_token_that_cannot_be_a_header_is_not_repeated_in_the_refusal(
    kind: str, broken: str, tmp_path: Path
) -> None:
    """Pasted with a line break inside.

    The HTTP library says that the header is invalid, and shows it.
    """
    of = KINDS[kind]
    with of.make() as host:
        environ = of.environ(host, tmp_path)
        name = next(
            name for name in ("BITBUCKET_TOKEN", "GITHUB_TOKEN", "GITLAB_TOKEN") if name in environ
        )
        ci_step = step({**environ, name: broken})

        _, troubles = ci_step.finish(within_s=3)

        text = "\n".join([*ci_step.publisher.troubles, *troubles])
        assert name in text
        assert "half" not in text


@pytest.mark.parametrize(
    ("credentials", "phrase"),
    [
        pytest.param(
            {"BITBUCKET_APP_PASSWORD": "ATBBsecret", "BITBUCKET_USERNAME": "ann"},
            "BITBUCKET_APP_PASSWORD is set",
            id="by name",
        ),
        pytest.param(
            {"BITBUCKET_TOKEN": "ATBBsecret"}, "BITBUCKET_TOKEN is an app password", id="by form"
        ),
        pytest.param(
            {"BITBUCKET_TOKEN": "ATBBsecret", "BITBUCKET_EMAIL": "ann@acme.example"},
            "is an app password",
            id="with e-mail",
        ),
        pytest.param(
            {"BITBUCKET_TOKEN": "secret", "BITBUCKET_EMAIL": "ann"},
            "BITBUCKET_EMAIL is a user name",
            id="by user",
        ),
    ],
)
def test_an_app_password_is_refused_with_what_to_use_instead(
    bitbucket: FakeBitbucket, credentials: dict[str, str], phrase: str
) -> None:
    """They were removed on 2026-07-28.

    Tutorials still tell of them, and the API's answer says nothing of why.
    """
    ci_step = step({**bitbucket.environ(token=False), **credentials})

    updated, troubles = ci_step.finish(as_ended("failed"))

    (trouble,) = ci_step.publisher.troubles
    assert phrase in trouble
    assert "removed from Bitbucket on 2026-07-28; create a repository access token" in trouble
    assert "secret" not in trouble
    assert (updated, troubles) == (["Code Insights report"], [])
    assert {request.via for request in bitbucket.requests} == {"proxy"}
    assert not [request for request in bitbucket.requests if "authorization" in request.headers]


def test_an_app_password_beside_a_token_is_passed_over(bitbucket: FakeBitbucket) -> None:
    """Somebody who has moved on and not cleared up is not stopped."""
    ci_step = step({**bitbucket.environ(), "BITBUCKET_APP_PASSWORD": "ATBBsecret"})

    updated, _ = ci_step.finish()

    assert (updated, ci_step.publisher.troubles, bitbucket.refused) == (
        list(KINDS["bitbucket"].targets),
        [],
        [],
    )


def test_an_api_token_without_its_owners_e_mail_is_asked_for_it(bitbucket: FakeBitbucket) -> None:
    """As a Bearer it is refused with words that do not say what is missing."""
    ci_step = step({**bitbucket.environ(token=False), "BITBUCKET_TOKEN": "ATATTsecret"})

    assert [
        "BITBUCKET_EMAIL" in trouble and "secret" not in trouble
        for trouble in ci_step.publisher.troubles
    ] == [True]
    assert "token" not in ci_step.publisher.endpoints


@pytest.mark.parametrize("kind", KINDS)
def test_a_login_in_netrc_does_not_replace_the_token(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner's netrc is for git.

    A library that prefers it sends a developer's password to the API.
    """
    of, home = KINDS[kind], tmp_path / "home"
    home.mkdir()
    (home / ".netrc").write_text(
        "machine 127.0.0.1 login ann password of-netrc\n"
        "machine api.bitbucket.org login ann password of-netrc\n"
    )
    (home / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("NETRC", raising=False)
    with of.make() as host:
        updated, troubles = step(of.environ(host, tmp_path), check_run=True).finish()

        assert (updated, troubles, host.refused) == (list(of.targets), [], [])
        assert not [
            request
            for request in host.requests
            if request.headers.get("authorization", "").startswith("Basic")
        ]
        assert all(
            "authorization" in request.headers or "private-token" in request.headers
            for request in host.requests
            if request.via == "direct"
        )
