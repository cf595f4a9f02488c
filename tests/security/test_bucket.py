"""Names in a bucket that several teams write to."""

from __future__ import annotations

import boto3
import pytest

from gpu_tests.s3_server import S3Server
from pytest_gpu_cluster.contract.cluster_record import ClusterRecord, cluster_ids
from pytest_gpu_cluster.contract.errors import StoreError
from pytest_gpu_cluster.contract.record import SessionRecord, session_ids
from pytest_gpu_cluster.contract.store import Store
from tests.s3_stores import open_s3
from tests.unit.conftest import running_s3, s3  # noqa: F401 - fixtures

FOREIGN = ("a b/x", "%2e%2e/x", "é/x", "object", "-rf/x", "#1/x", "~/x", f"{'a' * 81}/x")


@pytest.fixture
def store(s3: S3Server) -> Store:  # noqa: F811
    return open_s3("team")


def test_a_name_that_is_no_id_is_passed_over(store: Store) -> None:
    """Whatever somebody puts beside the sessions, those are listed."""
    for folder in ("sessions", "clusters", "clusters/c1/inbox", "sessions/s1/events"):
        for name in FOREIGN:
            store.put(f"{folder}/{name}", b"")
    store.put("sessions/s1/result.json", b"{}")
    store.put("clusters/c1/inbox/00000001", b'{"session": "../s", "nonce": ""}')
    store.put("clusters/c1/inbox/00000002", b"no offer")
    ClusterRecord(store, "c1").offer("s1")

    assert session_ids(store) == ["s1"]
    assert cluster_ids(store) == ["c1"]
    assert [*ClusterRecord(store, "c1").offers()] == [(3, "s1")]
    assert SessionRecord(store, "s1").reader().poll() == []


@pytest.mark.parametrize("name", ["..", ".", ""])
def test_a_key_that_climbs_is_named(s3: S3Server, name: str) -> None:  # noqa: F811
    """The client of the bucket cannot list beside it: then it must say which one to remove."""
    store = open_s3("climb")
    bucket = boto3.client("s3", endpoint_url=s3.endpoint)
    key = f"climb/sessions/{name}/x"
    bucket.put_object(Bucket="bucket", Key=key, Body=b"")

    with pytest.raises(StoreError) as caught:
        session_ids(store)
    bucket.delete_object(Bucket="bucket", Key=key)

    assert f'"climb/sessions/{name}/' in caught.value.what
    assert "remove it" in caught.value.remedy
    assert session_ids(store) == []
