"""The first thing that Ray's processes run for a test. Nothing else of this package is imported."""

from __future__ import annotations

import json
import os

CWD = "GPU_CLUSTER_INTERNAL_CWD"  # the test's directory
VARIABLES = "GPU_CLUSTER_INTERNAL_VARIABLES"  # a file of its environment: Ray logs what it is given
NODE = "GPU_CLUSTER_INTERNAL_NODE"  # the node's directory, in which Ray starts its processes


def enter_tree() -> None:
    """Enter the test's directory, unless the user gave another, and take its environment."""
    cwd, path = os.environ.pop(CWD, ""), os.environ.pop(VARIABLES, "")
    if os.path.isfile(path):  # it is on the test's machine
        with open(path) as file:
            values: dict[str, str] = json.load(file)
        for name, value in values.items():
            os.environ.setdefault(name, value)
    if os.getcwd() == os.environ.get(NODE) and os.path.isdir(cwd):
        os.chdir(cwd)
