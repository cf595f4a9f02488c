"""Start a local pytest without the user's conftests and options, and without distribution."""

from __future__ import annotations

import random

import pytest

from pytest_gpu_cluster.host.arguments import ARGUMENTS, read

CODE = "reads code that only the cluster imports"
TESTMON = "watches the tests in the process that it selects them for"
# Options that need the tests themselves, or what is not sent, by their `dest`; and why.
UNSUPPORTED = {
    "showfixtures": ("--fixtures", CODE),
    "show_fixtures_per_test": ("--fixtures-per-test", CODE),
    "deadfixtures": ("--dead-fixtures", CODE),
    "showrepeated": ("--dup-fixtures", CODE),
    "generate_missing": ("--generate-missing", CODE),
    "testmon": ("--testmon", TESTMON),
    "testmon_noselect": ("--testmon-noselect", TESTMON),
    "testmon_forceselect": ("--testmon-forceselect", TESTMON),
    "picked": ("--picked", "asks git what has changed, and the cluster has no .git"),
    "benchmark_cprofile": ("--benchmark-cprofile", "profiles tests in their own process"),
}


def ignore_user_code(early_config: pytest.Config, parser: pytest.Parser, args: list[str]) -> None:
    """Load no conftest, and accept the options and settings that conftests would define.

    The pytest on the cluster judges them. Changes `args` in place.
    """
    namespace = early_config.known_args_namespace
    namespace.noconftest = True
    if getattr(namespace, "randomly_seed", None) == "default":
        # The header on this machine and the tests on the cluster need the same seed.
        args.insert(0, f"--randomly-seed={random.getrandbits(32)}")
    early_config.stash[ARGUMENTS] = arguments = read(parser, args)
    for arg in arguments.unknown:
        if arg in args:
            args.remove(arg)
    for key in sorted(early_config._get_unknown_ini_keys()):  # private
        parser.addini(key, "known to the remote pytest, if at all", default="")


def configure(config: pytest.Config) -> None:
    """Switch off distribution on this machine.

    Raises UsageError for an option that needs the tests themselves.
    """
    option = config.option
    for name, (flag, why) in UNSUPPORTED.items():
        if getattr(option, name, False):
            raise pytest.UsageError(f"{flag} {why}: run it without --gpu-cluster")
    if hasattr(option, "dist"):
        option.numprocesses, option.dist, option.tx = None, "no", []
