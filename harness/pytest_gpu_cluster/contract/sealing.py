"""Values of passed variables on their way through a store that others may read.

The head's keeper makes a key pair as it starts; its private half never leaves that process. A
client seals the values of a session to the public half, which is in the cluster's record. Who may
write to the store can put another key there: whoever may do that may run code on the cluster, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from typing import cast

from pytest_gpu_cluster.contract.bounded import parse_json
from pytest_gpu_cluster.contract.errors import EnvironmentBuildError, InfrastructureError
from pytest_gpu_cluster.contract.fields import value_of


class KeyPair:
    """The keys of a cluster, as old as its head's keeper."""

    def __init__(self) -> None:
        check_sealing()
        from nacl.public import PrivateKey

        self._private = PrivateKey.generate()

    @property
    def public(self) -> str:
        """The public half, in hexadecimal digits."""
        return bytes(self._private.public_key).hex()

    def open(self, sealed: bytes, session: str) -> dict[str, str]:
        """Return the values that were sealed for a session.

        Raises InfrastructureError for what was sealed to another key or for another session.
        """
        from nacl.exceptions import CryptoError
        from nacl.public import SealedBox

        try:
            content = parse_json(SealedBox(self._private).decrypt(sealed))
            body = cast(dict[str, dict[str, str]], value_of(dict[str, dict[str, str]], content))
            return body[session]
        except (CryptoError, ValueError, KeyError):  # whose text may have a value in it
            raise InfrastructureError(
                f"the sealed values of passed variables of session {session} cannot be opened",
                remedy="run again; if it stays so, somebody else writes to the store",
            ) from None


def seal(public: str, session: str, values: Mapping[str, str]) -> bytes:
    """Seal the values of a session to the public half of a key pair.

    Raises InfrastructureError for what is no key.
    """
    check_sealing()
    from nacl.public import PublicKey, SealedBox

    try:
        key = PublicKey(bytes.fromhex(public))
    except (ValueError, TypeError) as problem:
        raise InfrastructureError(
            "the key in the cluster's record is none",
            remedy="run again; if it stays so, somebody else writes to the store",
        ) from problem
    return SealedBox(key).encrypt(json.dumps({session: dict(values)}).encode())


def check_sealing() -> None:
    """Raise EnvironmentBuildError where PyNaCl is not installed."""
    if find_spec("nacl") is None:
        raise EnvironmentBuildError(
            "PyNaCl is not installed, which seals the values of passed variables",
            remedy="pip install pynacl, here and on the nodes of the cluster",
        )
