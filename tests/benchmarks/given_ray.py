"""Figures of the provider `ray`: a job on a Ray cluster that is there, beside a bare job on it.

The Ray is one node of this machine with two simulated GPUs.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import requests

from tests.benchmarks.drive import BenchError, Lab
from tests.rigs.ray_cluster import RayRig, ray_rig

SETTINGS = 'provider = "ray"\ngpus-per-node = 1\nidle-minutes = 3'
BARE_LIMIT_S = 120.0


@contextmanager
def ray_lab(lab: Lab) -> Iterator[tuple[Lab, RayRig]]:
    """Give a Ray, and a lab whose processes find it."""
    with ray_rig(Path(f"/tmp/gpu-bench-{os.getpid()}"), nodes=1) as rig:
        env = {"RAY_API_SERVER_ADDRESS": rig.address, "RAY_AUTH_TOKEN": rig.token}
        yield replace(lab, env={**lab.env, **env}), rig


def bare_job_s(rig: RayRig) -> float:
    """Return the seconds of a job that does nothing, from its submission to its end.

    Raises BenchError where it fails.
    """
    name = f"bare-{secrets.token_hex(3)}"
    headers = {"Authorization": f"Bearer {rig.token}"}
    body = {"entrypoint": "python -c pass", "submission_id": name}
    began = time.monotonic()
    sent = requests.post(f"{rig.address}/api/jobs/", json=body, headers=headers, timeout=30)
    sent.raise_for_status()
    while time.monotonic() - began < BARE_LIMIT_S:
        status = rig.get(f"/api/jobs/{name}").json()["status"]
        if status == "SUCCEEDED":
            return time.monotonic() - began
        if status in ("FAILED", "STOPPED"):
            break
        time.sleep(0.02)
    raise BenchError(f"a bare job on Ray ended as {status}")
