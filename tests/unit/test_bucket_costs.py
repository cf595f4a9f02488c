"""What `gpu-cluster doctor` says of a bucket, asked of a real S3 over HTTP."""

from __future__ import annotations

import json
import os
from typing import Any

import boto3
import pytest

from gpu_tests.s3_server import S3Server
from pytest_gpu_cluster.bucket_costs import RULE, bucket_warnings, expired_by
from pytest_gpu_cluster.contract.record import DURATIONS, branch_key
from pytest_gpu_cluster.contract.trees import blob_key, tree_key
from tests.conftest import ROOT

NAMED = (tree_key("a" * 64), blob_key("b" * 64), DURATIONS, branch_key("main", "gpu-cluster"))


def advised(prefix: str) -> dict[str, Any]:
    """Return the lifecycle configuration that users copy."""
    text = (ROOT / RULE).read_text().replace("PREFIX", prefix)
    configuration: dict[str, Any] = json.loads(text)
    return configuration


@pytest.fixture
def bucket(s3: S3Server, request: pytest.FixtureRequest) -> str:
    """A bucket of the test's own."""
    name = f"b{abs(hash(request.node.name)):x}"
    s3.make_bucket(name)
    return name


def test_the_advised_rule_takes_nothing_that_a_kept_tree_names() -> None:
    """A blob is put once and named for years: by its age it would go while a tree needs it."""
    expiring = [rule for rule in advised("team/a")["Rules"] if "Expiration" in rule]
    prefixes = [rule["Filter"]["Prefix"] for rule in expiring]

    assert prefixes == ["team/a/sessions/", "team/a/clusters/"]
    for key in NAMED:
        assert not any(f"team/a/{key}".startswith(prefix) for prefix in prefixes)
    assert [expired_by(rule, "team/a") for rule in expiring] == [[], []]


def test_a_dear_bucket_is_warned_of_until_it_is_mended(s3: S3Server, bucket: str) -> None:
    """Nobody sees on the bill that it is the heartbeats."""
    client = boto3.client("s3", endpoint_url=s3.endpoint)
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    by_kms = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": "key"}
    encryption: dict[str, Any] = {"Rules": [{"ApplyServerSideEncryptionByDefault": by_kms}]}
    client.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration=encryption)
    dear = bucket_warnings(f"s3://{bucket}/team", os.environ)
    encryption["Rules"][0]["BucketKeyEnabled"] = True
    client.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration=encryption)
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=advised("team"))

    assert [cost.text.partition(":")[0] for cost in dear] == [
        "the bucket is versioned",
        "every object is encrypted by a request of its own to KMS, which costs as much",
        "no lifecycle rule removes old records",
    ]
    assert bucket_warnings(f"s3://{bucket}/team", os.environ) == []


@pytest.mark.parametrize("place", ["", "team/", "team/blobs/", "team/blobs/0"])
def test_a_rule_that_takes_what_trees_name_is_warned_of(
    s3: S3Server, bucket: str, place: str
) -> None:
    """The obvious rule, all that is older than a month, breaks a run each month."""
    client = boto3.client("s3", endpoint_url=s3.endpoint)
    rule = {"ID": "old", "Status": "Enabled", "Filter": {"Prefix": place}}
    client.put_bucket_lifecycle_configuration(
        Bucket=bucket, LifecycleConfiguration={"Rules": [{**rule, "Expiration": {"Days": 30}}]}
    )

    (cost,) = bucket_warnings(f"s3://{bucket}/team", os.environ)

    assert cost.text.startswith("lifecycle rule 'old' expires blobs/")


def test_what_may_not_be_read_is_said_and_stops_nothing(s3: S3Server, bucket: str) -> None:
    """A pipeline's role has no right to ask about the bucket, and needs none."""
    s3.fault("403", path=bucket)
    (cost,) = bucket_warnings(f"s3://{bucket}/team", os.environ)
    s3.heal()

    assert "were not read" in cost.text
    assert "s3:GetBucketVersioning" in cost.remedy
