"""Stores on the S3 server of a test."""

from __future__ import annotations

from pathlib import Path

from pytest_gpu_cluster.contract.store import Store


def open_s3(
    prefix: str = "p", *, bucket: str = "bucket", patience_s: float = 1.0, timeout_s: float = 5.0
) -> Store:
    return Store.open(
        f"s3://{bucket}/{prefix}",
        base=Path("/"),
        request_timeout_s=timeout_s,
        patience_s=patience_s,
    )
