"""Links in reports: only those that work on another machine."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from pytest_gpu_cluster.contract.request import CI

URL_CHARS = re.compile(r"[A-Za-z0-9._~:/?#@!$&'()*+,;=%\[\]-]{1,2000}")


def link(public_url: str, session: str, ci: CI | None) -> tuple[str, bool]:
    """Return the link of a session, and True if it is the session's own page.

    The own page is below `public_url`; without one the link is that of the pipeline step.
    ("", False): there is neither.
    """
    page = f"{public_url.rstrip('/')}/{session}" if public_url else ""
    if reachable(page):
        return page, True
    step = ci.step_url if ci is not None else ""
    return (step, False) if reachable(step) else ("", False)


def reachable(url: str) -> bool:
    """Return True if other machines can open the link.

    Not a file, not this machine, and a host with a dot in its name. A character that no URL has
    would end the link in a text.

    >>> reachable("https://ci.example.com/x")
    True
    >>> reachable("https://ci.example.com/x>) @everybody")
    False
    >>> [reachable(url) for url in ("http://localhost:8/", "http://127.0.0.1/", "http://box/")]
    [False, False, False]
    """
    if not URL_CHARS.fullmatch(url):
        return False
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
    except ValueError:
        return False
    if parts.scheme not in ("http", "https") or parts.username or parts.password:
        return False
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return _is_public_name(host)
    address = getattr(address, "ipv4_mapped", None) or address
    return not (address.is_loopback or address.is_unspecified or address.is_link_local)


def _is_public_name(host: str) -> bool:
    local = host.endswith((".localhost", ".localdomain"))
    is_number = host.rpartition(".")[2].isdecimal()  # 127.1 is an address too
    return "." in host and not local and not is_number
