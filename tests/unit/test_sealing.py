"""Values of variables that are sealed to the key of a cluster."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpu_cluster.contract.errors import InfrastructureError
from pytest_gpu_cluster.contract.sealing import KeyPair, seal

KEYS = KeyPair()
VALUES = st.dictionaries(st.text(), st.text(st.characters(codec="utf-8")))


@given(values=VALUES)
def test_what_is_sealed_is_opened_by_the_keys_owner_alone(values: dict[str, str]) -> None:
    """Any text: a value is handed to tests as it is."""
    sealed = seal(KEYS.public, "s1", values)

    assert KEYS.open(sealed, "s1") == values
    with pytest.raises(InfrastructureError, match="cannot be opened"):
        KeyPair().open(sealed, "s1")


def test_values_of_another_session_are_refused() -> None:
    """Who may write to the store could have a session of his run with another's values."""
    sealed = seal(KEYS.public, "s1", {"A_TOKEN": "q7Zk-very-secret"})

    with pytest.raises(InfrastructureError) as caught:
        KEYS.open(sealed, "s2")

    assert "of session s2 cannot be opened" in caught.value.what
    assert "q7Zk" not in str(caught.value)


@pytest.mark.parametrize("sealed", [b"", b"x" * 200, bytes(48)])
def test_what_was_never_sealed_is_refused(sealed: bytes) -> None:
    """The store may hold anything at that key."""
    with pytest.raises(InfrastructureError, match="cannot be opened"):
        KEYS.open(sealed, "s1")


@pytest.mark.parametrize("public", ["", "00", "no key", "é" * 64, "0" * 63])
def test_what_is_no_key_is_refused(public: str) -> None:
    """Likewise the key, which the client reads from the store."""
    with pytest.raises(InfrastructureError, match="is none"):
        seal(public, "s1", {})
