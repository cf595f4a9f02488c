"""What makes the requests to a bucket of S3 dear, or takes a kept tree's files away.

The bucket is asked through boto3 where that is installed: the store's own library knows objects
alone. Nothing here is needed to run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from pytest_gpu_cluster.contract.trees import BLOBS, TREES

RULE = "ci/s3/lifecycle.json"
# S3's words for what was never configured.
UNSET = ("NoSuchLifecycleConfiguration", "ServerSideEncryptionConfigurationNotFoundError")
# Objects that others name, for as long as those others stay.
LASTING = (BLOBS, TREES, "history/")


class Cost(NamedTuple):
    """What is dear or wrong, and what to do about it."""

    text: str
    remedy: str


def bucket_warnings(url: str, environ: Mapping[str, str]) -> list[Cost]:
    """Return what is dear or wrong with the bucket of a store `s3://bucket/prefix`; else [].

    Raises ImportError without boto3. What the role may not read is a warning too.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    parts = urlsplit(url)
    if parts.scheme != "s3":
        return []
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
    limits = Config(connect_timeout=5, read_timeout=10, retries={"max_attempts": 1})
    try:
        client = boto3.client("s3", region_name=region, config=limits)
        versioning, encryption, lifecycle = (
            _configured(ask, parts.netloc)
            for ask in (
                client.get_bucket_versioning,
                client.get_bucket_encryption,
                client.get_bucket_lifecycle_configuration,
            )
        )
    except (BotoCoreError, ClientError) as problem:
        return [
            Cost(
                f"versions, encryption and lifecycle of {parts.netloc} were not read: {problem}",
                "allow s3:GetBucketVersioning, s3:GetEncryptionConfiguration and"
                " s3:GetLifecycleConfiguration to whoever runs the doctor; no run needs them",
            )
        ]
    rules = [rule for rule in lifecycle.get("Rules", ()) if rule["Status"] == "Enabled"]
    return [*judged(versioning, encryption, rules, parts.path.strip("/"))]


def _configured(ask: Callable[..., Mapping[str, Any]], bucket: str) -> Mapping[str, Any]:
    """Return one part of a bucket's configuration; {} where it has none."""
    from botocore.exceptions import ClientError

    try:
        return ask(Bucket=bucket)
    except ClientError as problem:
        if problem.response["Error"]["Code"] in UNSET:
            return {}
        raise


def judged(
    versioning: Mapping[str, Any],
    encryption: Mapping[str, Any],
    rules: Sequence[Mapping[str, Any]],
    prefix: str,
) -> Iterator[Cost]:
    """Yield what is dear or wrong, from S3's own answers; of the lifecycle its enabled rules.

    `prefix` is that of the store in the bucket.
    """
    ends_versions = any("NoncurrentVersionExpiration" in rule for rule in rules)
    if versioning.get("Status") == "Enabled" and not ends_versions:
        yield Cost(
            "the bucket is versioned: a version of every heartbeat stays, 16 a minute of a run",
            f"suspend versioning, or remove old versions by a lifecycle rule: {RULE}",
        )
    for rule in encryption.get("ServerSideEncryptionConfiguration", {}).get("Rules", ()):
        default = rule.get("ApplyServerSideEncryptionByDefault", {})
        if default.get("SSEAlgorithm", "").startswith("aws:kms") and not rule.get(
            "BucketKeyEnabled"
        ):
            yield Cost(
                "every object is encrypted by a request of its own to KMS, which costs as much",
                "turn on the bucket key: aws s3api put-bucket-encryption, BucketKeyEnabled",
            )
    expiring = [rule for rule in rules if rule.get("Expiration", {}).keys() & {"Days", "Date"}]
    if not expiring:
        yield Cost("no lifecycle rule removes old records", f"put this one in place: {RULE}")
    for rule in expiring:
        if taken := expired_by(rule, prefix):
            yield Cost(
                f"lifecycle rule {rule.get('ID', '')!r} expires {', '.join(taken)}, which trees"
                " that are still used name: a run would fail once, and send them anew",
                f"let it expire sessions/ and clusters/ alone: {RULE}",
            )


def expired_by(rule: Mapping[str, Any], prefix: str) -> list[str]:
    """Return which folders of lasting objects lose some by a rule that expires objects."""
    chosen = rule.get("Filter", {})
    both = chosen.get("And", chosen)
    if "Tag" in both or "Tags" in both:  # the store's objects have none
        return []
    place = both.get("Prefix", rule.get("Prefix", ""))
    root = f"{prefix}/" if prefix else ""
    return [
        folder
        for folder in LASTING
        if f"{root}{folder}".startswith(place) or place.startswith(f"{root}{folder}")
    ]
