"""The Bitbucket pipe: what its entrypoint runs, and its image, built and run where that can be done
without a daemon.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# -- the entrypoint, with a stand-in for the programs it runs --------------------------------------

STAND_IN = f"""#!{sys.executable}
import json, os, pathlib, sys
token = os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE")
call = {{
    "argv": [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]],
    "cwd": os.getcwd(),
    "env": dict(os.environ),
    "token": pathlib.Path(token).read_text() if token else None,
    "mode": os.stat(token).st_mode & 0o777 if token else None,
}}
with open(os.environ["RECORD"], "a") as file:
    file.write(json.dumps(call) + "\\n")
command = call["argv"][-1].strip("-").upper()
sys.exit(int(os.environ.get("EXIT_" + command, os.environ.get("EXIT", "0"))))
"""


class Pipe:
    """The entrypoint in a clone of its own; `pytest` and `gpu-cluster` only write down how they
    were called.
    """

    def __init__(self, root: Path, script: Path) -> None:
        self.script, self.clone, self.record = script, root / "clone", root / "record"
        self.clone.mkdir()
        (root / "bin").mkdir()
        for name in ("pytest", "gpu-cluster"):
            (root / "bin" / name).write_text(STAND_IN)
            (root / "bin" / name).chmod(0o755)
        (root / "tmp").mkdir()
        self.environ = {
            "PATH": f"{root / 'bin'}:/usr/bin:/bin",
            "TMPDIR": str(root / "tmp"),
            "RECORD": str(self.record),
            "BITBUCKET_CLONE_DIR": str(self.clone),
            "BITBUCKET_BUILD_NUMBER": "7",
        }

    def run(self, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(self.script)]
        return subprocess.run(
            command,
            env=self.environ | variables,
            cwd="/",
            text=True,
            capture_output=True,
            timeout=30,
            check=False,
        )

    @property
    def calls(self) -> list[dict[str, Any]]:
        return (
            [json.loads(line) for line in self.record.read_text().splitlines()]
            if self.record.exists()
            else []
        )


@pytest.fixture
def pipe(tmp_path: Path, repository: Path) -> Pipe:
    return Pipe(tmp_path, repository / "ci" / "pipe" / "pipe.py")


@pytest.mark.parametrize(
    ("variables", "arguments"),
    [
        ({}, []),
        (
            {"ARGS": "tests -m 'gpu and not slow' $(touch x) *"},
            ["tests", "-m", "gpu and not slow", "$(touch", "x)", "*"],
        ),
        (
            {"ARGS_COUNT": "3", "ARGS_0": "-k", "ARGS_1": "a or b", "ARGS_2": "it's"},
            ["-k", "a or b", "it's"],
        ),
        ({"PROFILE": "ci", "ARGS": "-x"}, ["--gpu-profile", "ci", "-x"]),
    ],
    ids=["nothing", "text", "list", "profile"],
)
def test_the_pipe_runs_pytest_in_the_clone(
    pipe: Pipe, variables: dict[str, str], arguments: list[str]
) -> None:
    """A list keeps each item whole, a text is split as a shell would, and neither is ever run by
    one.
    """
    ran = pipe.run(**variables)

    (call,) = pipe.calls
    assert call["argv"] == ["pytest", "--gpu-cluster", *arguments]
    assert call["cwd"] == str(pipe.clone)
    assert (ran.returncode, ran.stdout, list(pipe.clone.iterdir())) == (0, "", [])


@pytest.mark.parametrize("code", [0, 1, 5, 10, 11, 12, 13, 14])
def test_the_pipe_ends_with_pytests_own_exit_code(pipe: Pipe, code: int) -> None:
    """10 to 14 are all that says that it was not the tests."""
    assert pipe.run(EXIT=str(code)).returncode == code


def test_the_pipe_hands_the_role_over_in_a_private_file(pipe: Pipe) -> None:
    """The store's client reads the token from a file, as it is: a line break would be part of it.

    Nobody else may read it, it is not in the tree that is sent, and a log shows names alone.
    """
    ran = pipe.run(
        AWS_ROLE_ARN="arn:aws:iam::1:role/r",
        AWS_REGION="eu-central-1",
        BITBUCKET_STEP_OIDC_TOKEN="head.body.sign",
        BITBUCKET_TOKEN="very-secret",
        STORE="s3://bucket/prefix",
        DEBUG="true",
    )

    (call,) = pipe.calls
    assert (call["token"], call["mode"]) == ("head.body.sign", 0o600)
    assert call["env"]["AWS_ROLE_SESSION_NAME"] == "bitbucket-7"
    assert call["env"]["GPU_CLUSTER_STORE"] == "s3://bucket/prefix"
    assert call["env"]["BITBUCKET_TOKEN"] == "very-secret"
    assert list(pipe.clone.iterdir()) == []
    assert "pipe: pytest --gpu-cluster" in ran.stderr
    assert "BITBUCKET_TOKEN" in ran.stderr
    assert "very-secret" not in ran.stderr + ran.stdout
    assert "head.body" not in ran.stderr + ran.stdout


@pytest.mark.parametrize(
    ("swept", "reported", "code"),
    [("0", "0", 0), ("14", "0", 14), ("0", "10", 10), ("14", "10", 14)],
)
def test_finish_sweeps_and_reports_whatever_the_first_says(
    pipe: Pipe, swept: str, reported: str, code: int
) -> None:
    """A cluster that would not end must not keep the report back, and is not hidden by it."""
    ran = pipe.run(COMMAND="finish", EXIT_SWEEP=swept, EXIT_PUBLISH=reported)

    assert [call["argv"] for call in pipe.calls] == [
        ["gpu-cluster", "sweep"],
        ["gpu-cluster", "report", "--publish"],
    ]
    assert ran.returncode == code


ROLE = {"AWS_ROLE_ARN": "arn:aws:iam::1:role/r"}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"ARGS": "-k 'a"}, ("ARGS is", "No closing quotation", "close the quotes")),
        (
            {"ARGS": "-x", "ARGS_COUNT": "1", "ARGS_0": "-x"},
            ("a text and as a list", "give one of them"),
        ),
        ({"ARGS_COUNT": "many"}, ("ARGS_COUNT is 'many'", "as a list under `variables`")),
        (
            {"ARGS_COUNT": "2", "ARGS_0": "-x"},
            ("there is no ARGS_1", "as a list under `variables`"),
        ),
        ({"PROFILE": "ci -x"}, ("PROFILE is 'ci -x'", "arguments go into ARGS")),
        ({"PROFILE": "--pdb"}, ("PROFILE is '--pdb'", "give the NAME of a table")),
        ({"DEBUG": "yes"}, ("DEBUG is 'yes'", "give false or true")),
        ({"COMMAND": "clean"}, ("COMMAND is 'clean'", "give test or finish")),
        (
            {"BITBUCKET_CLONE_DIR": ""},
            ("BITBUCKET_CLONE_DIR is", "as a pipe of Bitbucket Pipelines"),
        ),
        (
            {"BITBUCKET_CLONE_DIR": "/absent"},
            ("BITBUCKET_CLONE_DIR is '/absent'", "mount the clone"),
        ),
        (ROLE, ("the step has no OIDC token", "add `oidc: true`")),
        (ROLE | {"BITBUCKET_STEP_OIDC_TOKEN": "a.b.c"}, ("AWS_REGION is not", "set AWS_REGION")),
    ],
)
def test_a_wrong_variable_of_the_pipe_is_refused_with_the_remedy(
    pipe: Pipe, variables: dict[str, str], words: tuple[str, ...]
) -> None:
    """With the code that pytest has for wrong arguments: 1 would say that a test failed."""
    ran = pipe.run(**variables)

    assert (ran.returncode, ran.stdout, pipe.calls) == (4, "", [])
    assert "\n  remedy: " in ran.stderr
    assert "Traceback" not in ran.stderr
    for word in words:
        assert word in ran.stderr
