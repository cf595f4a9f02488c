"""Two endpoints of one host: the proxy and the API."""

from __future__ import annotations

from tests.hosts import status
from tests.unit.publish.rig import KINDS, as_ended, step


def test_what_the_proxy_does_not_let_pass_goes_with_the_token() -> None:
    """Nobody has promised what else the proxy refuses; whoever has set a token has a second way."""
    with KINDS["bitbucket"].make() as host:
        host.fault(("PUT", "/reports/"), status(403))
        updated, troubles = step(host.environ(), check_run=True).finish(as_ended("failed"))

        assert (updated, troubles) == (list(KINDS["bitbucket"].targets), [])
        assert [each.via for each in host.seen("PUT", "/reports/")] == ["proxy", "direct"]


def test_without_a_token_a_refusal_of_the_proxy_is_said_with_the_way_around_it() -> None:
    """A remedy that speaks of the scopes of a token that is not there helps nobody."""
    with KINDS["bitbucket"].make() as host:
        host.fault(("PUT", "/reports/"), status(403))
        updated, (trouble,) = step(host.environ(token=False)).finish(as_ended("failed"))

        assert updated == []
        assert "403" in trouble
        assert "remedy: the Pipelines proxy refused it; set BITBUCKET_TOKEN" in trouble
