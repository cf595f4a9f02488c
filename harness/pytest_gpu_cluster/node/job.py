"""The first lines of a job on a Ray that is there, which any Python that Ray runs on can read.

`python -m pytest_gpu_cluster.node.job SPEC`, with a DriverSpec as JSON: says what the environment
lacks, or becomes the driver.
"""

from __future__ import annotations

import os
import sys

LEAST_PYTHON = (3, 11)
LEAST_RAY = (2, 60)
ENVIRONMENT = 11  # the exit code of that failure class


def lacking() -> str:
    """Return what this environment lacks; "" where a driver can run."""
    if sys.version_info[:2] < LEAST_PYTHON:
        return f"its Python is {sys.version.split()[0]}, and 3.11 or later is needed"
    try:
        import ray
    except ImportError:
        return f"{sys.executable} has no Ray"
    try:
        version = tuple(int(part) for part in ray.__version__.split(".")[:2])
    except ValueError:
        return ""  # a build of somebody's own
    if version < LEAST_RAY:
        return f"its Ray is {ray.__version__}, and 2.60 or later is needed"
    return ""


def main() -> int:
    """Run the driver; return its exit code."""
    problem = lacking()
    if problem:
        print(f"gpu-cluster: the environment of this Ray cannot run tests: {problem}")
        return ENVIRONMENT
    from pytest_gpu_cluster.node import driver

    return driver.main(sys.argv[1])


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # Ray's own end takes a second, and has nothing left to do
