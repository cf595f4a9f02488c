"""The parts of a request that hold secrets: masked in the record, handed over beside it.

A token on the command line, or in the cache's ids of tests, has to reach the cluster as it is, and
no reader of the store.
"""

from __future__ import annotations

import json

from pytest_gpu_cluster.contract.fields import JsonObject
from pytest_gpu_cluster.contract.masking import Masker
from pytest_gpu_cluster.contract.request import SessionRequest
from pytest_gpu_cluster.contract.secret_cuts import MASK
from pytest_gpu_cluster.contract.secret_values import without_option_values

# Among the passed variables; no test gets it.
WITHHELD = "GPU_CLUSTER_INTERNAL_WITHHELD"
# Keys of a request whose texts are the user's. The others are of this package, or of the CI host.
_KEYS = (
    *("args", "cache", "mtimes", "outputs", "sys_path", "inipath"),
    *("origin", "root_name", "rootdir", "cwd"),
)


def stored_request(request: SessionRequest, mask: Masker) -> SessionRequest:
    """Return a request as the store may have it."""
    body = request.to_json()
    return SessionRequest.from_json(body | _masked(body, mask))


def withheld(request: SessionRequest, mask: Masker) -> dict[str, str]:
    """Return what the store does not have of a request, as a variable; nothing where it has all."""
    body = request.to_json()
    masked = _masked(body, mask)
    values = {key: body[key] for key in masked if masked[key] != body[key]}
    return {WITHHELD: json.dumps(values)} if values else {}


def take_withheld(request: SessionRequest, passed: dict[str, str]) -> SessionRequest:
    """Return the whole request, of the stored one and of the variables; take it out of these."""
    values = passed.pop(WITHHELD, "")
    if not values:
        return request
    return SessionRequest.from_json(request.to_json() | json.loads(values))


def _masked(body: JsonObject, mask: Masker) -> JsonObject:
    texts = {key: body[key] for key in _KEYS if key in body}
    args = [str(arg) for arg in body["args"]] if isinstance(body["args"], list) else []
    return mask.json(texts | {"args": [*without_option_values(args, MASK)]})
