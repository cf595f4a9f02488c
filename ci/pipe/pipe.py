"""The pipe: `pytest --gpu-cluster` in the clone, with what the step gives as variables.
ci/README.md lists them.

The process becomes pytest, so its exit code is the step's and signals reach it. A variable that is
wrong is refused with exit code 4, as pytest refuses arguments: nothing was started.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

COMMANDS = ("test", "finish")


def main() -> NoReturn:
    environ = dict(os.environ)
    clone = Path(environ.get("BITBUCKET_CLONE_DIR", ""))
    if not clone.is_absolute() or not clone.is_dir():
        refuse(
            f"BITBUCKET_CLONE_DIR is {str(clone)!r}",
            "run this image as a pipe of Bitbucket Pipelines, or mount the clone and set it",
        )
    os.chdir(clone)
    debug = one_of(environ, "DEBUG", ("false", "true")) == "true"
    command = one_of(environ, "COMMAND", COMMANDS)
    if store := environ.get("STORE", ""):
        environ["GPU_CLUSTER_STORE"] = store
    argv = pytest_command(environ)
    take_role(environ)
    if debug:
        shown = shlex.join(argv) if command == "test" else command
        names = " ".join(sorted(name for name, value in environ.items() if value))
        print(
            f"pipe: {shown} in {clone}; set: {names}",
            file=sys.stderr,
            flush=True,
        )
    if command == "finish":
        sys.exit(finish(environ))
    os.execvpe(argv[0], argv, environ)


def pytest_command(environ: Mapping[str, str]) -> list[str]:
    """The command line of pytest. ARGS is a list, or a text with quotes as in a shell."""
    profile = environ.get("PROFILE", "")
    if profile and not re.fullmatch(r"[\w.][\w.-]*", profile):
        refuse(
            f"PROFILE is {profile!r}",
            "give the NAME of a table [tool.gpu-cluster.profile.NAME]; arguments go into ARGS",
        )
    return [
        "pytest",
        "--gpu-cluster",
        *(["--gpu-profile", profile] if profile else []),
        *arguments(environ),
    ]


def arguments(environ: Mapping[str, str]) -> list[str]:
    """A list arrives as ARGS_COUNT and ARGS_0, ARGS_1 …: an item is an argument as it stands."""
    text, count = environ.get("ARGS", ""), environ.get("ARGS_COUNT", "")
    if text and count:
        refuse("ARGS is given as a text and as a list (ARGS_COUNT)", "give one of them")
    if count:
        remedy = "write ARGS as a list under `variables`; the pipeline numbers its items"
        if not count.isdecimal():
            refuse(f"ARGS_COUNT is {count!r}", remedy)
        names = [f"ARGS_{i}" for i in range(int(count))]
        if absent := [name for name in names if name not in environ]:
            refuse(f"ARGS_COUNT is {count}, and there is no {absent[0]}", remedy)
        return [environ[name] for name in names]
    try:
        return shlex.split(text)
    except ValueError as error:
        refuse(
            f"ARGS is {text!r}: {error}",
            "close the quotes, or write ARGS as a list, an argument an item",
        )


def take_role(environ: dict[str, str]) -> None:
    """With AWS_ROLE_ARN: the step's OIDC token in a file of this user alone, where the store's
    client looks for it.
    """
    if not environ.get("AWS_ROLE_ARN") or environ.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        return
    token = environ.get("BITBUCKET_STEP_OIDC_TOKEN", "")
    if not token:
        refuse(
            "AWS_ROLE_ARN is set, and the step has no OIDC token",
            "add `oidc: true` to the step, or remove AWS_ROLE_ARN",
        )
    if not (environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")):
        refuse(
            "AWS_ROLE_ARN is set, and AWS_REGION is not",
            "set AWS_REGION to the region of the store's bucket",
        )
    descriptor, path = tempfile.mkstemp(prefix="oidc-")  # 0600, outside of the clone
    with os.fdopen(descriptor, "w") as file:
        file.write(token)
    environ["AWS_WEB_IDENTITY_TOKEN_FILE"] = path
    environ.setdefault(
        "AWS_ROLE_SESSION_NAME", f"bitbucket-{environ.get('BITBUCKET_BUILD_NUMBER', 'pipe')}"
    )


def finish(environ: Mapping[str, str]) -> int:
    """For a `final:` step: both commands, whatever the first one says; the first failure's exit
    code.
    """
    profile = ["--gpu-profile", environ["PROFILE"]] if environ.get("PROFILE") else []
    codes = [
        subprocess.run(command, env=environ, check=False).returncode
        for command in (
            ["gpu-cluster", "sweep", *profile],
            ["gpu-cluster", "report", "--publish", *profile],
        )
    ]
    return next((code for code in codes if code), 0)


def one_of(environ: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> str:
    """The variable's value, or the first of `allowed` where it is not set."""
    value = environ.get(name, "") or allowed[0]
    if value not in allowed:
        refuse(
            f"{name} is {value!r}", f"give {' or '.join(allowed)}, or leave it out for {allowed[0]}"
        )
    return value


def refuse(what: str, remedy: str) -> NoReturn:
    print(f"pipe: {what}\n  remedy: {remedy}", file=sys.stderr)
    sys.exit(4)


if __name__ == "__main__":
    main()
