"""What `ci/` offers to be copied: valid for its host, and true of this product.

The schemas are written for this project from the hosts' documentation, as narrow as the files need; a key that is not in
them is looked up before it is added.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jsonschema  # type: ignore[import-untyped, unused-ignore]  # no types; comes with Ray
import pytest
import yaml  # type: ignore[import-untyped, unused-ignore]  # the same

from pytest_gpu_cluster import options
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.settings_schema import KeyTable

VARIABLES = KeyTable().variables
ROOT = Path(__file__).resolve().parents[2]
CI = ROOT / "ci"
BITBUCKET, GITLAB = CI / "bitbucket-pipelines.yml", CI / "gitlab" / "gpu-cluster.gitlab-ci.yml"
ACTION, WORKFLOW, PIPE = (
    CI / "github" / "action.yml",
    CI / "github" / "workflow.yml",
    CI / "pipe" / "pipe.yml",
)
Json = dict[str, Any]

# -- schemas ---------------------------------------------------------------------------------------------------------

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


# Bitbucket: support.atlassian.com/bitbucket-cloud/docs/step-options, …/use-artifacts-in-steps; `final:` as in the blog article
# that introduced it: the last entry, without trigger, deployment and fail-fast.
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

# GitHub: docs.github.com/actions/reference, metadata syntax and workflow syntax. In an action each `run` names its shell.
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

# GitLab: docs.gitlab.com/ci/yaml and …/ci/yaml/artifacts_reports: `annotations` is one path. It takes underscores.
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

TRUSTS = sorted(CI.glob("iam/trust-*.json"))
SCHEMAS: list[tuple[Path, Json]] = [
    (BITBUCKET, BITBUCKET_SCHEMA),
    (ROOT / "bitbucket-pipelines.yml", BITBUCKET_SCHEMA),
    (PIPE, PIPE_SCHEMA),
    (ACTION, ACTION_SCHEMA),
    (WORKFLOW, WORKFLOW_SCHEMA),
    (GITLAB, GITLAB_SCHEMA),
    *((path, POLICY_SCHEMA) for path in sorted(CI.glob("iam/*.json"))),
]


class Loader(yaml.SafeLoader):  # type: ignore[misc, unused-ignore]  # yaml has no types
    """YAML 1.2's booleans, as the hosts have them: to YAML 1.1 the workflow's key `on` is True."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(true|false)$"), list("tf"))


def load(path: Path) -> Any:
    text = path.read_text("utf-8")
    return json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader)


@pytest.mark.parametrize(
    ("path", "schema"),
    SCHEMAS,
    ids=lambda each: str(each.relative_to(ROOT)) if isinstance(each, Path) else "",
)
def test_a_file_is_valid_for_its_host(path: Path, schema: Json) -> None:
    """A key that the host does not know fails the pipeline of whoever copies the file, at its first line."""
    jsonschema.Draft202012Validator.check_schema(schema)

    jsonschema.Draft202012Validator(schema).validate(load(path))


@pytest.mark.parametrize(
    ("path", "schema", "words", "instead"),
    [
        (BITBUCKET, BITBUCKET_SCHEMA, "capture-on: always", "capture-on: allways"),
        (BITBUCKET, BITBUCKET_SCHEMA, "max-time: 10", "trigger: manual"),
        (ACTION, ACTION_SCHEMA, "      shell: bash\n", ""),
        (ACTION, ACTION_SCHEMA, "using: composite", "using: composit"),
        (WORKFLOW, WORKFLOW_SCHEMA, "statuses: write", "status: write"),
        (GITLAB, GITLAB_SCHEMA, "junit: ", "junits: "),
        (CI / "iam" / "trust-gitlab.json", POLICY_SCHEMA, "StringEquals", "StringEqual"),
    ],
)
def test_the_schemas_notice_a_slip(
    path: Path, schema: Json, words: str, instead: str, tmp_path: Path
) -> None:
    """A schema that lets everything pass shows nothing."""
    text = path.read_text("utf-8")
    assert words in text
    broken = tmp_path / path.name
    broken.write_text(text.replace(words, instead))

    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate(load(broken))


# -- what the scripts say --------------------------------------------------------------------------------------------


def texts(node: Any) -> Iterator[str]:
    """Every text of a document, the names of its keys too."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield str(key)
            yield from texts(value)
    elif isinstance(node, list):
        for item in node:
            yield from texts(item)
    else:
        yield str(node)


def entries(document: Json) -> Iterator[Json]:
    """The steps and final steps of every pipeline of Bitbucket."""
    for kind in document["pipelines"].values():
        for pipeline in [kind] if isinstance(kind, list) else kind.values():
            for entry in pipeline:
                yield from (
                    entry.values()
                    if "parallel" not in entry
                    else [item["step"] for item in entry["parallel"]]
                )


def scripts(path: Path) -> dict[str, tuple[str, str]]:
    """What a shell or Python is given, whole, as the host puts the lines together: where -> (interpreter, text)."""
    document = load(path)
    match path:
        case _ if path.name == "bitbucket-pipelines.yml":
            keys = ("script", "after-script")
            found = {
                f"{step['name']}: {key}": ("sh", "\n".join(step[key]))
                for step in entries(document)
                for key in keys
                if key in step
            }
        case _ if path == GITLAB:
            job = document[".gpu-cluster"]
            found = {
                "job": ("sh", "\n".join([*job["before_script"], *job["script"]])),
                "after_script": ("sh", "\n".join(job["after_script"])),
            }
        case _ if path == ACTION:
            found = {
                step["name"]: (step["shell"], step["run"])
                for step in document["runs"]["steps"]
                if "run" in step
            }
        case _:
            found = {
                step["name"]: ("bash", step["run"])
                for job in document["jobs"].values()
                for step in job["steps"]
                if "run" in step
            }
    return found


COPIED = [BITBUCKET, GITLAB, ACTION, WORKFLOW]
SCRIPTS = [
    pytest.param(interpreter, text, id=f"{path.name}: {where}")
    for path in (*COPIED, ROOT / "bitbucket-pipelines.yml")
    for where, (interpreter, text) in scripts(path).items()
]
SHELLS = [param for param in SCRIPTS if param.values[0] != "python"]
README = (CI / "README.md").read_text("utf-8")


@pytest.mark.parametrize(("interpreter", "text"), SCRIPTS)
def test_a_script_is_a_program(interpreter: str, text: str) -> None:
    """A quote that is not closed shows only when the pipeline runs."""
    if interpreter == "python":
        compile(text, "run", "exec")
    else:
        subprocess.run([interpreter, "-n", "-c", text], check=True, capture_output=True, timeout=10)


def commands(text: str) -> Iterator[list[str]]:
    """The calls of a shell text, word by word; assignments and what only the shell knows are left out."""
    for line in text.splitlines():
        for part in re.split(r"\|\||&&|;", line.strip("() ")):
            words = shlex.split(part, comments=True)
            if words and not re.match(r"(export|exit|true|test|printf|umask|make|\w+=)", words[0]):
                yield words


@pytest.mark.parametrize(("interpreter", "text"), SHELLS)
def test_a_command_that_is_called_exists(interpreter: str, text: str) -> None:
    """Of the package and with these options; `pip install` names it."""
    parser = pytest.Parser(_ispytest=True)
    options.add_options(parser)
    own = {name for group in parser._groups for option in group.options for name in option.names()}
    for path, *rest in commands(text):
        match [path.removeprefix(".venv/bin/"), *rest]:  # where make has put it
            case ["pytest", *arguments]:
                assert {argument for argument in arguments if argument.startswith("--gpu")} <= own
            case ["gpu-cluster", command, *arguments]:
                said = subprocess.run(
                    [sys.executable, "-m", "pytest_gpu_cluster.cli", command, "--help"],
                    cwd=ROOT,
                    text=True,
                    capture_output=True,
                    timeout=30,
                    check=False,
                )
                assert said.returncode == 0, said.stderr
                for argument in arguments:
                    assert not argument.startswith("--") or argument in said.stdout, (
                        f"gpu-cluster {command} has no {argument}"
                    )
            case ["pip", "install", *arguments] | ["python", "-m", "pip", "install", *arguments]:
                assert arguments[-1] in (
                    "pytest-gpu-cluster",
                    "${PACKAGE:-$GITHUB_ACTION_PATH/../..}",
                )
            case _:
                pytest.fail(f"{path} is a command that no test here knows")


@pytest.mark.parametrize(
    "path", [*COPIED, PIPE, CI / "README.md", CI / "pipe" / "pipe.py"], ids=lambda path: path.name
)
def test_every_variable_with_our_prefix_is_a_setting(path: Path) -> None:
    """The product refuses one that is not, so a slip here stops every run."""
    for name in re.findall(r"GPU_CLUSTER_[A-Z_]+[A-Z]", path.read_text("utf-8")):
        assert name in VARIABLES


def test_the_settings_that_pipelines_need_exist() -> None:
    """The files here and the documentation of the hosts lean on them."""
    needed = (
        "STORE",
        "PUBLIC_URL",
        "COMMENT",
        "SUITE",
        "CHECK_RUN",
        "RESULTS_DIR",
        "IDLE_MINUTES",
        "MAX_MINUTES",
    )

    assert {f"GPU_CLUSTER_{name}" for name in needed} <= set(VARIABLES)


@pytest.mark.parametrize("path", [BITBUCKET, GITLAB, WORKFLOW], ids=lambda path: path.name)
def test_results_are_taken_from_where_they_are_written(path: Path) -> None:
    """test-results/ is also the one name that Bitbucket finds by itself."""
    named = {
        word
        for text in texts(load(path))
        for word in re.findall(r"[\w./*-]*\.(?:xml|json)\b|[\w/-]+/gpu-cluster[\w.*-]*", text)
    }

    results = {
        "test-results/*.xml",
        "test-results/gpu-cluster.*",
        "test-results/gpu-cluster.xml",
        "test-results/gpu-cluster-annotations.json",
    }
    assert {word for word in named if "tmp" not in word and "/ci/" not in word} <= results
    assert any("test-results" in word for word in named)


# -- secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("interpreter", "text"), SCRIPTS)
def test_a_script_never_prints_a_secret_nor_takes_an_expression(
    interpreter: str, text: str
) -> None:
    """`${{ … }}` in a script is pasted into the program before it runs, whatever a branch's name or an input holds.
    A token goes into a file of this user alone, and no line of a script is shown with its values (`set -x`)."""
    assert "${{" not in text
    assert not re.search(r"\bset -\w*x|\bprintenv\b|\benv$|\beval\b", text, re.MULTILINE)
    for line in text.splitlines():
        if re.search(r"\$\{?\w*(TOKEN|SECRET|PASSWORD)\b(?!_FILE)", line):
            assert re.fullmatch(
                r'\(umask 077 && printf %s "\$\w+" > "\$AWS_WEB_IDENTITY_TOKEN_FILE"\)', line
            )


def test_the_action_hands_its_inputs_over_as_environment() -> None:
    """And names the token to the steps that publish only: pip has no use for it."""
    steps = {step.get("name"): step.get("env", {}) for step in load(ACTION)["runs"]["steps"]}

    assert {name for name, env in steps.items() if "GITHUB_TOKEN" in env} == {
        "Tests",
        "Close and report",
    }
    inputs = load(ACTION)["inputs"]
    used = {
        name
        for text in texts(load(ACTION)["runs"])
        for name in re.findall(r"\binputs\.([\w-]+)", text)
    }
    assert used == set(inputs)
    assert set(load(ACTION)["outputs"]) == {"session", "verdict", "link"}


def test_the_workflow_uses_the_action_with_inputs_that_it_has() -> None:
    """GitHub only warns of an input that does not exist."""
    (step,) = [
        step
        for step in load(WORKFLOW)["jobs"]["gpu-tests"]["steps"]
        if "/ci/github@" in step.get("uses", "")
    ]

    assert set(step["with"]) <= set(load(ACTION)["inputs"])
    assert load(WORKFLOW)["permissions"] == {
        "contents": "read",
        "id-token": "write",
        "statuses": "write",
        "pull-requests": "write",
    }


def run_action(tmp_path: Path, **env: str) -> tuple[int, list[str], str]:
    """The action's own test step with a `pytest` that writes down its arguments: exit code, arguments, output."""
    (tests,) = [step["run"] for step in load(ACTION)["runs"]["steps"] if step.get("id") == "tests"]
    stand_in = tmp_path / "pytest"
    stand_in.write_text(
        '#!/bin/sh\nfor word in "$@"; do echo "$word" >> "$RECORD"; done\nexit 12\n'
    )
    stand_in.chmod(0o755)
    full = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "RECORD": str(tmp_path / "record"),
        "ARGS": "",
        "PROFILE": "",
        **env,
    }
    ran = subprocess.run(
        [sys.executable, "-c", tests],
        env=full,
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=30,
        check=False,
    )
    record = tmp_path / "record"
    return ran.returncode, record.read_text().splitlines() if record.exists() else [], ran.stdout


def test_the_actions_arguments_are_split_and_never_run(tmp_path: Path) -> None:
    """An input may come from a branch's name or a form. The exit code stays pytest's: 12 is a machine, not a test."""
    code, argv, _ = run_action(
        tmp_path, ARGS="tests -k 'a or b' $(touch x); `touch y`", PROFILE="ci"
    )

    assert argv == [
        "--gpu-cluster",
        "--gpu-profile",
        "ci",
        "tests",
        "-k",
        "a or b",
        "$(touch",
        "x);",
        "`touch",
        "y`",
    ]
    assert code == 12
    assert not {"x", "y"} & set(os.listdir(tmp_path))


def test_the_action_refuses_a_quote_that_is_not_closed(tmp_path: Path) -> None:
    """Exit code 1 would say that a test failed."""
    code, argv, said = run_action(tmp_path, ARGS="-k 'a")

    assert (code, argv) == (4, [])
    assert said.startswith("::error title=args cannot be split::No closing quotation")


# -- at the end ------------------------------------------------------------------------------------------------------


def test_every_pipeline_of_bitbucket_ends_with_the_final_step() -> None:
    """It is the only thing that runs after a stopped pipeline, and is refused anywhere but last."""
    for kind in load(BITBUCKET)["pipelines"].values():
        for pipeline in kind.values():
            assert [next(iter(entry)) for entry in pipeline] == ["step", "final"]


@pytest.mark.parametrize(("swept", "reported", "code"), [(0, 0, 0), (14, 0, 14), (0, 10, 10)])
@pytest.mark.parametrize("path", [BITBUCKET, ACTION], ids=lambda path: path.name)
def test_a_failed_sweep_is_seen_and_does_not_keep_the_report_back(
    path: Path, swept: int, reported: int, code: int, tmp_path: Path
) -> None:
    """Run as the host does: by a shell that stops at the first failure."""
    interpreter, text = next(
        found for where, found in scripts(path).items() if where.startswith("Close and report")
    )
    (tmp_path / "gpu-cluster").write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n[ "$1" = report ] && exit {reported}\nexit {swept}\n'
    )
    (tmp_path / "pip").write_text("#!/bin/sh\n")
    for name in ("gpu-cluster", "pip"):
        (tmp_path / name).chmod(0o755)
    text = text.replace("/tmp/", f"{tmp_path}/")
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}

    ran = subprocess.run(
        [interpreter, "-e", "-c", text], env=env, capture_output=True, timeout=30, check=False
    )

    assert (tmp_path / "calls").read_text().splitlines() == ["sweep", "report --publish"]
    assert ran.returncode == code


@pytest.mark.parametrize(
    ("path", "limit"),
    [(BITBUCKET, 60), (GITLAB, 50), (WORKFLOW, 60)],
    ids=lambda each: getattr(each, "name", ""),
)
def test_the_session_ends_before_the_host_ends_the_step(path: Path, limit: int) -> None:
    """A host kills without a report; our own limit closes the cluster and says so."""
    (given,) = set(re.findall(r"GPU_CLUSTER_MAX_MINUTES\W+(\d+)", path.read_text("utf-8")))

    assert int(given) <= limit - 5
    assert re.search(
        rf"(max-time|RUNNER_SCRIPT_TIMEOUT|timeout-minutes): {limit}", path.read_text("utf-8")
    )


# -- AWS -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", TRUSTS, ids=lambda path: path.name)
def test_a_trust_policy_says_who_and_for_whom(path: Path) -> None:
    """Without `sub` every repository of the host could take the role; the audience is compared whole. Both are keys of
    the provider that the policy names."""
    (statement,) = load(path)["Statement"]
    issuer = statement["Principal"]["Federated"].partition("oidc-provider/")[2]

    assert statement["Action"] == "sts:AssumeRoleWithWebIdentity"
    assert list(statement["Condition"]["StringEquals"]) == [f"{issuer}:aud"]
    assert list(statement["Condition"]["StringLike"]) == [f"{issuer}:sub"]
    subjects = statement["Condition"]["StringLike"][f"{issuer}:sub"]
    for subject in [subjects] if isinstance(subjects, str) else subjects:
        assert re.match(
            r"(\{REPOSITORY_UUID\}|repo:OWNER(@OWNER_ID)?/REPOSITORY|project_path:GROUP/PROJECT:)",
            subject,
        )


def test_the_audiences_are_those_that_the_files_ask_for() -> None:
    """GitHub's is the default of the action that the workflow logs in with."""
    (gitlab,) = load(CI / "iam" / "trust-gitlab.json")["Statement"][0]["Condition"][
        "StringEquals"
    ].values()
    (github,) = load(CI / "iam" / "trust-github.json")["Statement"][0]["Condition"][
        "StringEquals"
    ].values()

    assert load(GITLAB)[".gpu-cluster"]["id_tokens"]["AWS_ID_TOKEN"]["aud"] == gitlab
    assert github == "sts.amazonaws.com"


def test_the_role_may_only_use_its_prefix() -> None:
    """What the store does: get, put (in parts too), list, delete."""
    actions = {
        action: s["Resource"]
        for s in load(CI / "iam" / "store-policy.json")["Statement"]
        for action in ([s["Action"]] if isinstance(s["Action"], str) else s["Action"])
    }

    assert actions.pop("s3:ListBucket") == "arn:aws:s3:::BUCKET"
    assert set(actions) == {
        "s3:GetObject",
        "s3:PutObject",
        "s3:DeleteObject",
        "s3:AbortMultipartUpload",
    }
    assert set(actions.values()) == {"arn:aws:s3:::BUCKET/PREFIX/*"}


TOKEN = "aGVhZA.eyJzdWIiOiAie3JlcG99OntzdGVwfSJ9.c2lnbg"


def test_the_line_that_decodes_a_token_shows_its_claims_alone() -> None:
    """The signature is what makes it a credential."""
    (line,) = re.findall(r"^python3 -c '(.*)'$", README, re.MULTILINE)

    said = subprocess.run(
        [sys.executable, "-c", line],
        env={"BITBUCKET_STEP_OIDC_TOKEN": TOKEN},
        text=True,
        capture_output=True,
        timeout=30,
        check=True,
    ).stdout

    assert said.strip() == """b'{"sub": "{repo}:{step}"}'"""


STS_ANSWER = """<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleWithWebIdentityResult><Credentials><SessionToken>borrowed</SessionToken><SecretAccessKey>k</SecretAccessKey>
<Expiration>2099-01-01T00:00:00Z</Expiration><AccessKeyId>AKIDBORROWED</AccessKeyId></Credentials>
</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"""


@pytest.fixture
def aws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[tuple[str, dict[str, list[str]], str]]]:
    """A token service and a bucket behind TLS (the store's client asks for a role over nothing else): the requests, as
    (path, query, access key). The environment leads there, and has no credentials."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate with")
    certificate = tls(tmp_path)
    seen: list[tuple[str, dict[str, list[str]], str]] = []

    class Answer(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            url = urlsplit(self.path)
            key = re.search(r"Credential=(\w+)/", self.headers.get("authorization", ""))
            seen.append((url.path, parse_qs(url.query), key[1] if key else ""))
            body = STS_ANSWER.encode() if "AssumeRole" in url.query else b""
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.send_header("etag", '"e"')
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = answer  # noqa: N815 - the names that http.server looks for

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    url = f"https://localhost:{server.server_port}"
    given = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ENDPOINT_URL_STS": url,
        "SSL_CERT_FILE": str(tmp_path / "ca.pem"),
        "AWS_REGION": "eu-central-1",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    yield seen
    server.shutdown()
    thread.join()
    server.server_close()


def tls(where: Path) -> Path:
    """A certificate for localhost with its key, and the authority that signed it beside it as ca.pem."""
    make = ("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    (where / "names").write_text("subjectAltName=DNS:localhost")
    for command in (
        (*make, "-x509", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority"),
        (*make, "-keyout", "key.pem", "-out", "request.pem", "-subj", "/CN=localhost"),
        (
            "openssl",
            "x509",
            "-req",
            "-in",
            "request.pem",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-extfile",
            "names",
            "-out",
            "signed.pem",
        ),
    ):
        subprocess.run(command, cwd=where, check=True, capture_output=True, timeout=30)
    both = where / "server.pem"
    both.write_text((where / "signed.pem").read_text() + (where / "key.pem").read_text())
    return both


@pytest.mark.parametrize(
    ("path", "token", "number", "name"),
    [
        (BITBUCKET, "BITBUCKET_STEP_OIDC_TOKEN", "BITBUCKET_BUILD_NUMBER", "bitbucket-7"),
        (GITLAB, "AWS_ID_TOKEN", "CI_JOB_ID", "gitlab-7"),
    ],
    ids=["bitbucket", "gitlab"],
)
def test_the_store_takes_the_role_with_the_token_that_the_script_wrote(
    path: Path,
    token: str,
    number: str,
    name: str,
    aws: list[tuple[str, dict[str, list[str]], str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The file's own lines, run by a shell, then the store: the token must arrive as it is, because a line break is
    sent along and AWS refuses it."""
    lines = next(
        text for text in texts(load(path)) if text.startswith("export AWS_WEB_IDENTITY_TOKEN_FILE")
    )
    script = lines.replace("/tmp/", f"{tmp_path}/") + '\nenv | grep "^AWS_[WR]"'
    env = {
        "PATH": "/usr/bin:/bin",
        token: TOKEN,
        number: "7",
        "AWS_ROLE_ARN": "arn:aws:iam::1:role/tests",
    }
    said = subprocess.run(
        ["sh", "-e", "-c", script], env=env, text=True, capture_output=True, timeout=30, check=True
    ).stdout
    for line in said.splitlines():
        monkeypatch.setenv(*line.split("=", 1))

    Store.open("s3://bucket/prefix", base=tmp_path).put("key", b"value")

    (_, asked, _), (put, _, key) = aws
    assert asked["WebIdentityToken"] == [TOKEN]
    assert asked["RoleArn"] == ["arn:aws:iam::1:role/tests"]
    assert asked["RoleSessionName"] == [name]
    assert (put, key) == ("/bucket/prefix/key", "AKIDBORROWED")
    assert Path(os.environ["AWS_WEB_IDENTITY_TOKEN_FILE"]).stat().st_mode & 0o777 == 0o600


# -- the README ------------------------------------------------------------------------------------------------------


def test_the_readme_has_every_file_and_no_other() -> None:
    """Its links lead to files that are there; each file is linked, or in a folder that is."""
    linked = {target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target}

    assert all((CI / target).exists() for target in linked)
    for path in CI.rglob("*"):
        if path.is_file() and path.name != "README.md" and "__pycache__" not in path.parts:
            assert {str(path.relative_to(CI)), str(path.parent.relative_to(CI))} & {
                target.rstrip("/") for target in linked
            }, path


def test_the_readmes_example_of_the_pipe_is_valid() -> None:
    """With variables that the pipe knows."""
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    pipeline = yaml.load(example, Loader)

    jsonschema.Draft202012Validator(ENTRIES).validate(pipeline)
    known = set(re.findall(r'"([A-Z_]+)"', (CI / "pipe" / "pipe.py").read_text("utf-8"))) | set(
        VARIABLES
    )
    given = {
        name
        for entry in pipeline
        for step in entry.values()
        for item in step["script"]
        for name in item["variables"]
    }
    assert given <= known | {"BITBUCKET_TOKEN"}
    assert (
        set(re.findall(r"^\| `(ARGS|PROFILE|STORE|COMMAND|DEBUG)`", README, re.MULTILINE)) <= known
    )
