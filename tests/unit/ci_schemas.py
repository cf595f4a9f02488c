"""Schemas of the files of `ci/`, written for this project from the hosts' documentation.

They are as narrow as the files need; a key that is not in them is looked up before it is added.
"""

from __future__ import annotations

from pathlib import Path

from tests.unit.ci_files import (
    ACTION,
    BITBUCKET,
    BITBUCKET_LOCAL,
    CI,
    GITLAB,
    GITLAB_LOCAL,
    PIPE,
    ROOT,
    WORKFLOW,
    WORKFLOW_LOCAL,
    Json,
)

TEXT: Json = {"type": "string", "minLength": 1}
ANY_TEXT: Json = {"type": "string"}
FLAG: Json = {"type": "boolean"}
TEXTS: Json = {"type": "array", "items": TEXT, "minItems": 1}


def closed(needed: str = "", /, **properties: Json) -> Json:
    """An object with these keys (`_` for a dash) and no others."""
    named = {name.replace("_", "-"): schema for name, schema in properties.items()}
    return {
        "type": "object",
        "properties": named,
        "required": needed.split(),
        "additionalProperties": False,
    }


def mapping(of: Json, names: str = ".") -> Json:
    return {
        "type": "object",
        "patternProperties": {names: of},
        "additionalProperties": False,
        "minProperties": 1,
    }


def listed(of: Json) -> Json:
    return {"type": "array", "items": of, "minItems": 1}


def minutes(most: int) -> Json:
    return {"type": "integer", "minimum": 1, "maximum": most}


# Bitbucket: support.atlassian.com/bitbucket-cloud/docs/step-options, …/use-artifacts-in-steps;
# `final:` as in the blog article that introduced it: the last entry, without trigger, deployment
# and fail-fast.
UPLOAD = closed(
    "name paths",
    name=TEXT,
    type={"enum": ["shared", "scoped", "test-reports"]},
    paths=TEXTS,
    ignore_paths=TEXTS,
    depth={"type": "integer", "minimum": 1},
    capture_on={"enum": ["success", "failed", "always"]},
)
SCRIPT = listed(
    {"oneOf": [TEXT, closed("pipe", pipe=TEXT, variables=mapping({"oneOf": [ANY_TEXT, TEXTS]}))]}
)
FINAL_KEYS: Json = {
    "name": TEXT,
    "image": TEXT,
    "size": {"enum": ["1x", "2x", "4x", "8x", "16x", "32x"]},
    "max_time": minutes(720),
    "oidc": FLAG,
    "caches": TEXTS,
    "services": {**TEXTS, "maxItems": 5},
    "runs_on": {"oneOf": [TEXT, TEXTS]},
    "script": SCRIPT,
    "after_script": SCRIPT,
    "artifacts": {"oneOf": [TEXTS, closed("upload", upload=listed(UPLOAD))]},
}
STEP = closed(
    "script",
    **FINAL_KEYS,
    trigger={"enum": ["automatic", "manual"]},
    deployment=TEXT,
    fail_fast=FLAG,
)
FINAL = closed("script", **FINAL_KEYS)
STEP_ITEM, FINAL_ITEM = closed("step", step=STEP), closed("final", final=FINAL)
PARALLEL_ITEM = closed(
    "parallel",
    parallel={
        "oneOf": [listed(STEP_ITEM), closed("steps", steps=listed(STEP_ITEM), fail_fast=FLAG)]
    },
)
ENTRIES = listed({"oneOf": [STEP_ITEM, PARALLEL_ITEM, FINAL_ITEM]})
BITBUCKET_SCHEMA = closed(
    "pipelines",
    image=TEXT,
    definitions=closed(steps=listed(STEP_ITEM), caches=mapping(TEXT)),
    pipelines=closed(
        default=ENTRIES,
        **dict.fromkeys(("branches", "pull_requests", "custom", "tags"), mapping(ENTRIES)),
    ),
)
PIPE_SCHEMA = closed(
    "name image description repository maintainer",
    name=TEXT,
    image={"type": "string", "pattern": r"^\S+:\S+$"},
    description=TEXT,
    repository={"type": "string", "pattern": "^https://"},
    maintainer=closed("name", name=TEXT, website=TEXT, email=TEXT),
    tags=TEXTS,
    variables=listed(
        closed("name", name={"type": "string", "pattern": "^[A-Z][A-Z0-9_]*$"}, default=ANY_TEXT)
    ),
)

# GitHub: docs.github.com/actions/reference, metadata syntax and workflow syntax. In an action each
# `run` names its shell.
USES: Json = {"type": "string", "pattern": r"^[\w.-]+/[\w./-]+@[\w.-]+$"}
WITH = mapping({"type": ["string", "number", "boolean"]}, r"^[\w-]+$")
ENV = mapping(ANY_TEXT, "^[A-Z][A-Z0-9_]*$")
COMMON: Json = {"id": TEXT, "name": TEXT, "if": TEXT, "env": ENV, "continue_on_error": FLAG}
RUN = closed(
    "run shell",
    **COMMON,
    run=TEXT,
    shell={"enum": ["bash", "sh", "python"]},
    working_directory=TEXT,
)
USE = closed("uses", **COMMON, uses=USES, **{"with": WITH})
ACTION_SCHEMA = closed(
    "name description runs",
    name=TEXT,
    description=TEXT,
    author=TEXT,
    inputs=mapping(
        closed("description", description=TEXT, required=FLAG, default=ANY_TEXT), "^[a-z][a-z-]*$"
    ),
    outputs=mapping(closed("description value", description=TEXT, value=TEXT), "^[a-z][a-z-]*$"),
    runs=closed("using steps", using={"const": "composite"}, steps=listed({"oneOf": [RUN, USE]})),
)
ACCESS: Json = {"enum": ["read", "write", "none"]}
PERMISSIONS = closed(
    contents=ACCESS,
    statuses=ACCESS,
    checks=ACCESS,
    issues=ACCESS,
    pull_requests=ACCESS,
    id_token={"enum": ["write", "none"]},
)
JOB = closed(
    "runs-on timeout-minutes steps",
    runs_on=TEXT,
    timeout_minutes=minutes(360),
    env=ENV,
    permissions=PERMISSIONS,
    name=TEXT,
    needs=TEXTS,
    steps=listed({"oneOf": [closed("run", **COMMON, run=TEXT, shell=TEXT), USE]}),
    **{"if": TEXT},
)
WORKFLOW_SCHEMA = closed(
    "name on permissions jobs",
    name=TEXT,
    permissions=PERMISSIONS,
    jobs=mapping(JOB, r"^[\w-]+$"),
    concurrency=closed("group", group=TEXT, cancel_in_progress={"type": ["boolean", "string"]}),
    on={
        "type": "object",
        "properties": {"pull_request": {"type": "null"}, "push": closed(branches=TEXTS)},
        "additionalProperties": False,
    },
)

# GitLab: docs.gitlab.com/ci/yaml and …/ci/yaml/artifacts_reports: `annotations` is one path. It
# takes underscores.
DURATION: Json = {"type": "string", "pattern": r"^\d+ ?(s|m|h|days?)$"}
GITLAB_JOB: Json = {
    "type": "object",
    "required": ["script"],
    "additionalProperties": False,
    "properties": {
        "image": TEXT,
        "stage": TEXT,
        "timeout": DURATION,
        "interruptible": FLAG,
        "variables": ENV,
        "tags": TEXTS,
        "extends": TEXT,
        "id_tokens": mapping(closed("aud", aud={"oneOf": [TEXT, TEXTS]}), "^[A-Z][A-Z0-9_]*$"),
        "before_script": listed(TEXT),
        "script": listed(TEXT),
        "after_script": listed(TEXT),
        "artifacts": {
            "type": "object",
            "required": ["reports"],
            "additionalProperties": False,
            "properties": {
                "when": {"enum": ["on_success", "on_failure", "always"]},
                "expire_in": DURATION,
                "paths": TEXTS,
                "reports": closed(junit={"oneOf": [TEXT, TEXTS]}, annotations=TEXT),
            },
        },
    },
}
GITLAB_SCHEMA = mapping(GITLAB_JOB, r"^\.?[a-z][\w-]*$")

# AWS: docs.aws.amazon.com/IAM, policy grammar.
ONE_OR_MORE: Json = {"oneOf": [TEXT, TEXTS]}
STATEMENT = closed(
    "Effect Action",
    Sid={"type": "string", "pattern": "^[A-Za-z0-9]+$"},
    Effect={"const": "Allow"},
    Action=ONE_OR_MORE,
    Resource={"oneOf": [{"type": "string", "pattern": "^arn:aws:s3:::"}, TEXTS]},
    Principal=closed(
        "Federated",
        Federated={"type": "string", "pattern": "^arn:aws:iam::ACCOUNT_ID:oidc-provider/"},
    ),
    Condition=closed(
        StringEquals=mapping(ONE_OR_MORE, ":(aud|sub)$"),
        StringLike=mapping(ONE_OR_MORE, ":(aud|sub)$"),
    ),
)
POLICY_SCHEMA = closed(
    "Version Statement", Version={"const": "2012-10-17"}, Statement=listed(STATEMENT)
)

SCHEMAS: list[tuple[Path, Json]] = [
    (BITBUCKET, BITBUCKET_SCHEMA),
    (BITBUCKET_LOCAL, BITBUCKET_SCHEMA),
    (ROOT / "bitbucket-pipelines.yml", BITBUCKET_SCHEMA),
    (PIPE, PIPE_SCHEMA),
    (ACTION, ACTION_SCHEMA),
    (WORKFLOW, WORKFLOW_SCHEMA),
    (WORKFLOW_LOCAL, WORKFLOW_SCHEMA),
    (GITLAB, GITLAB_SCHEMA),
    (GITLAB_LOCAL, GITLAB_SCHEMA),
    *((path, POLICY_SCHEMA) for path in sorted(CI.glob("iam/*.json"))),
]
