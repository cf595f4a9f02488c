"""The waits of client and cluster: defaults for users, shorter ones for our own tests."""

from __future__ import annotations

from dataclasses import fields

import pytest

from pytest_gpu_cluster.contract.waits import VARIABLE, Waits
from pytest_gpu_cluster.options import _INTERNAL


def test_without_the_variable_the_defaults_hold() -> None:
    """A user gets the waits that the documentation and the figures speak of."""
    assert Waits.from_environ({}) == Waits()
    assert Waits.from_environ({VARIABLE: ""}) == Waits()


def test_the_variable_changes_what_it_names() -> None:
    """A test shortens one wait and leaves the others as users have them."""
    waits = Waits.from_environ({VARIABLE: "grace_s=6, store_patience_s=2.5"})

    assert waits == Waits(grace_s=6, store_patience_s=2.5)


@pytest.mark.parametrize("text", ["grace=6", "grace_s", "grace_s=soon"])
def test_a_wrong_variable_is_refused(text: str) -> None:
    """A test with a typo would wait as long as before, and nobody would see why."""
    with pytest.raises(ValueError, match=r"grace|float"):
        Waits.from_environ({VARIABLE: text})


def test_a_cluster_reads_what_its_client_wrote() -> None:
    """The two must agree on how long a silence may last."""
    waits = Waits(heartbeat_s=1, grace_s=4)

    assert Waits.from_json(waits.to_json()) == waits


def test_the_default_waits_leave_room_for_each_other() -> None:
    """Whoever gives up first must leave the other the time to notice it and to end in order."""
    waits = Waits()

    assert 2 * waits.heartbeat_s < waits.grace_s < waits.lost_s
    assert all(getattr(waits, field.name) > 0 for field in fields(waits))


def test_the_variable_is_no_setting() -> None:
    """Names that begin like this one are left out of the settings, and never reach a test."""
    assert VARIABLE.startswith(_INTERNAL)
