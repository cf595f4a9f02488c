"""What `ci/` offers to be copied: valid for its host, and true of this product."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jsonschema  # type: ignore[import-untyped, unused-ignore]  # no types; comes with Ray
import pytest
import yaml  # type: ignore[import-untyped, unused-ignore]  # the same

from pytest_gpu_cluster import options
from pytest_gpu_cluster.settings_schema import KeyTable
from tests.unit.ci_files import (
    ACTION,
    BITBUCKET,
    BITBUCKET_LOCAL,
    CI,
    GITLAB,
    GITLAB_LOCAL,
    PIPE,
    README,
    ROOT,
    WORKFLOW,
    WORKFLOW_LOCAL,
    Json,
    Loader,
    load,
    texts,
)
from tests.unit.ci_schemas import (
    ACTION_SCHEMA,
    BITBUCKET_SCHEMA,
    ENTRIES,
    GITLAB_SCHEMA,
    POLICY_SCHEMA,
    SCHEMAS,
    WORKFLOW_SCHEMA,
)

VARIABLES = KeyTable().variables
FROM = "git+https://HOST/OWNER/pytest-gpu-cluster@TAG"


@pytest.mark.parametrize(
    ("path", "schema"),
    SCHEMAS,
    ids=lambda each: str(each.relative_to(ROOT)) if isinstance(each, Path) else "",
)
def test_a_file_is_valid_for_its_host(path: Path, schema: Json) -> None:
    """A key that the host does not know fails the pipeline of whoever copies the file."""
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


# -- what the scripts say --------------------------------------------------------------------------


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
    """Return each text that a shell or Python is given, by its place, with its interpreter.

    A text is whole, as the host puts the lines together.
    """
    document = load(path)
    match path:
        case _ if path.name in ("bitbucket-pipelines.yml", BITBUCKET_LOCAL.name):
            keys = ("script", "after-script")
            found = {
                f"{step['name']}: {key}": ("sh", "\n".join(step[key]))
                for step in entries(document)
                for key in keys
                if key in step
            }
        case _ if path in (GITLAB, GITLAB_LOCAL):
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


LOCAL = [BITBUCKET_LOCAL, GITLAB_LOCAL, WORKFLOW_LOCAL]
COPIED = [BITBUCKET, GITLAB, ACTION, WORKFLOW, *LOCAL]
SCRIPTS = [
    pytest.param(interpreter, text, id=f"{path.name}: {where}")
    for path in (*COPIED, ROOT / "bitbucket-pipelines.yml")
    for where, (interpreter, text) in scripts(path).items()
]
SHELLS = [param for param in SCRIPTS if param.values[0] != "python"]


@pytest.mark.parametrize(("interpreter", "text"), SCRIPTS)
def test_a_script_is_a_program(interpreter: str, text: str) -> None:
    """A quote that is not closed shows only when the pipeline runs."""
    if interpreter == "python":
        compile(text, "run", "exec")
    else:
        subprocess.run([interpreter, "-n", "-c", text], check=True, capture_output=True, timeout=10)


def commands(text: str) -> Iterator[list[str]]:
    """Yield the calls of a shell text, word by word, without assignments and builtins."""
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
                    "requirements.txt",
                    f"pytest-gpu-cluster @ {FROM}",
                    f"pytest-gpu-cluster[local] @ {FROM}",
                    "${PACKAGE:-$GITHUB_ACTION_PATH/../..${EXTRAS:+[$EXTRAS]}}",
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


def test_nothing_tells_to_install_from_an_index() -> None:
    """It is published nowhere: the bare name would fetch whatever somebody else puts there."""
    told = subprocess.run(
        ["git", "grep", "-nE", r"pip3? install.*pytest-gpu-cluster(\[[a-z]+\])?['\"]?( |$)"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
    ).stdout.splitlines()

    assert [line for line in told if " @ git+" not in line] == []


@pytest.mark.parametrize("path", LOCAL, ids=lambda path: path.name)
def test_a_file_for_the_runner_itself_needs_no_account(path: Path) -> None:
    """It is what a team tries first, and it has to work with nothing set."""
    text = path.read_text("utf-8")

    assert "AWS" not in text
    assert "GPU_CLUSTER_STORE" not in text
    assert "[local]" in text or "extras: local" in text
    assert (
        "git+https://HOST/OWNER" in text or "uses: OWNER/pytest-gpu-cluster/ci/github@TAG" in text
    )


@pytest.mark.parametrize("path", [BITBUCKET, GITLAB, WORKFLOW, *LOCAL], ids=lambda path: path.name)
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


# -- secrets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("interpreter", "text"), SCRIPTS)
def test_a_script_never_prints_a_secret_nor_takes_an_expression(
    interpreter: str, text: str
) -> None:
    """`${{ … }}` in a script is pasted into the program before it runs.

    Whatever a branch's name or an input holds becomes program text. A token goes into a file of
    this user alone, and no line of a script is shown with its values (`set -x`).
    """
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


@pytest.mark.parametrize("path", [WORKFLOW, WORKFLOW_LOCAL], ids=lambda path: path.name)
def test_the_workflow_uses_the_action_with_inputs_that_it_has(path: Path) -> None:
    """GitHub only warns of an input that does not exist."""
    (step,) = [
        step
        for step in load(path)["jobs"]["gpu-tests"]["steps"]
        if "/ci/github@" in step.get("uses", "")
    ]

    assert set(step["with"]) <= set(load(ACTION)["inputs"])
    rents = {"id-token": "write"} if path == WORKFLOW else {}
    assert load(path)["permissions"] == {
        "contents": "read",
        "statuses": "write",
        "pull-requests": "write",
        **rents,
    }


def run_action(tmp_path: Path, **env: str) -> tuple[int, list[str], str]:
    """Run the action's own test step with a `pytest` that writes down its arguments.

    Returns exit code, arguments and output.
    """
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
    """An input may come from a branch's name or a form.

    The exit code stays pytest's: 12 is a machine, not a test.
    """
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


# -- at the end ------------------------------------------------------------------------------------


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
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n'
        f'[ "$1" = report ] && exit {reported}\nexit {swept}\n'
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
    [
        *((path, 60) for path in (BITBUCKET, BITBUCKET_LOCAL, WORKFLOW, WORKFLOW_LOCAL)),
        *((path, 50) for path in (GITLAB, GITLAB_LOCAL)),
    ],
    ids=lambda each: getattr(each, "name", ""),
)
def test_the_session_ends_before_the_host_ends_the_step(path: Path, limit: int) -> None:
    """A host kills without a report; our own limit closes the cluster and says so."""
    (given,) = set(re.findall(r"GPU_CLUSTER_MAX_MINUTES\W+(\d+)", path.read_text("utf-8")))

    assert int(given) <= limit - 5
    assert re.search(
        rf"(max-time|RUNNER_SCRIPT_TIMEOUT|timeout-minutes): {limit}", path.read_text("utf-8")
    )


# -- the README ------------------------------------------------------------------------------------


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
