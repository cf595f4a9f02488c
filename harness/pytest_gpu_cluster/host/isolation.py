"""Keeps a local pytest from needing the user's code: no conftest, none of its options and settings, nothing distributed."""

from __future__ import annotations

import random

import pytest


def thin_client(early_config: pytest.Config, parser: pytest.Parser, args: list[str]) -> None:
    """Let pytest start here without the user's conftests, the options and the settings that they define."""
    known = early_config.known_args_namespace
    known.noconftest = True
    if getattr(known, "randomly_seed", None) == "default":  # shown in the header here, used there
        args.insert(0, f"--randomly-seed={random.getrandbits(32)}")
    _, unknown = parser.parse_known_and_unknown_args(args)
    for arg in unknown:
        if arg in args:
            args.remove(arg)
    for key in sorted(
        early_config._get_unknown_ini_keys()
    ):  # private; judged by the remote pytest, which knows them
        parser.addini(key, "known to the remote pytest, if at all", default="")


def configure(config: pytest.Config) -> None:
    """In pytest_configure: nothing is distributed or measured on this side."""
    option = config.option
    for name, shown in (
        ("showfixtures", "--fixtures"),
        ("show_fixtures_per_test", "--fixtures-per-test"),
    ):
        if getattr(option, name, False):
            raise pytest.UsageError(
                f"{shown} reads code that only the cluster imports: run it without --gpu-cluster"
            )
    if hasattr(option, "dist"):
        option.numprocesses, option.dist, option.tx = None, "no", []
