"""Links that work on another machine."""

from __future__ import annotations

import pytest

from pytest_gpu_cluster.publish import detect
from pytest_gpu_cluster.publish.links import link, reachable
from tests.unit.publish.rig import BITBUCKET, BITBUCKET_STEP, PAGE, PUBLIC, SESSION


@pytest.mark.parametrize(
    ("url", "works"),
    [
        ("https://gpu.example.com/sessions/1", True),
        ("http://10.20.0.7:8080/x", True),
        ("http://[2001:db8::1]/x", True),
        ("HTTPS://CI.EXAMPLE.COM/", True),
        ("file:///builds/x.html", False),
        ("/builds/x.html", False),
        ("s3://bucket/x", False),
        ("http://localhost:8265/", False),
        ("http://LOCALHOST/", False),
        ("http://ray.localhost/", False),
        ("http://localhost./", False),
        ("http://127.0.0.1:8265/", False),
        ("http://127.8.9.1/", False),
        ("http://[::1]:8265/", False),
        ("http://0.0.0.0:8265/", False),
        ("http://[::]/", False),
        ("http://169.254.169.254/", False),
        ("http://buildbox:8080/x", False),
        ("http://buildbox./x", False),
        ("https:///x", False),
        ("http://[/", False),
        ("", False),
    ],
)
def test_a_link_works_on_another_machine(url: str, works: bool) -> None:
    """Bitbucket answers a whole status with 400 for a bare host name.

    A link to the runner itself helps no reviewer.
    """
    assert reachable(url) is works


@pytest.mark.parametrize(
    ("public_url", "expected"),
    [
        (PUBLIC, (PAGE, True)),
        (f"{PUBLIC}/", (PAGE, True)),
        ("", (BITBUCKET_STEP, False)),
        ("http://localhost:8000", (BITBUCKET_STEP, False)),
        ("file:///builds", (BITBUCKET_STEP, False)),
    ],
)
def test_the_link_is_the_sessions_page_where_others_can_open_it_and_else_the_step(
    public_url: str, expected: tuple[str, bool]
) -> None:
    """Braces of a UUID are percent-encoded: Bitbucket would put a value in their place."""
    assert link(public_url, SESSION, detect(BITBUCKET)) == expected


def test_there_is_no_link_where_nobody_could_follow_it() -> None:
    """A laptop has no step, and a Jenkins at a bare host name none that helps."""
    jenkins = detect({"CI": "true", "BUILD_URL": "http://jenkins:8080/job/9"})

    assert link("", SESSION, None) == link("", SESSION, jenkins) == ("", False)
    assert link(PUBLIC, SESSION, None) == (PAGE, True)
