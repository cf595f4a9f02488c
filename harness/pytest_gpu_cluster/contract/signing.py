"""Signed requests to a keeper: who does not have the key of the session cannot make one.

Keepers share a secret. Each derives the key of a session from it, which the head's gives to the
agent of that session and to nobody else. The key itself never travels with a request.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping

from pytest_gpu_cluster.contract.fields import JsonObject, Noun
from pytest_gpu_cluster.contract.frozen import dataclass


@dataclass(frozen=True, kw_only=True)
class SignedRequest(Noun):
    """A request, the session that makes it, and the proof of that."""

    session: str
    request: str  # JSON, in the very characters that are signed
    signature: str  # HMAC-SHA256 by the session's key, in hex


def session_key(secret: str, session: str) -> str:
    """Return the key of a session's requests."""
    return _signature(secret, session)


def signed(request: Mapping[str, object], *, session: str, key: str) -> str:
    """Return a request as one line of JSON, without its end."""
    text = json.dumps(request)
    noun = SignedRequest(session=session, request=text, signature=_signature(key, text))
    return json.dumps(noun.to_json())


def verified(line: bytes, *, secret: str) -> tuple[str, JsonObject]:
    """Return the session that has signed a line, and its request.

    Raises ValueError for a line that is no signed request.
    """
    try:
        noun = SignedRequest.from_json(json.loads(line))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    expected = _signature(session_key(secret, noun.session), noun.request)
    if not hmac.compare_digest(expected.encode(), noun.signature.encode(errors="replace")):
        raise ValueError("its signature is not that of its session")
    request = json.loads(noun.request)
    if not isinstance(request, dict):
        raise ValueError("it is no JSON object")
    return noun.session, request


def _signature(key: str, text: str) -> str:
    return hmac.digest(key.encode(), text.encode(errors="surrogatepass"), "sha256").hex()
