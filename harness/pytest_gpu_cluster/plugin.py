"""The pytest plugin: options, marks and fixtures; with --gpu-cluster also the run.

Without --gpu-cluster nothing else happens, and nothing else is imported.
"""

from __future__ import annotations

import os

import pytest

from pytest_gpu_cluster import options
from pytest_gpu_cluster.contract.errors import HarnessError
from pytest_gpu_cluster.fixtures import (  # noqa: F401 - fixtures
    MARKERS,
    artifacts,
    cluster,
    device,
    gpus,
    testrun_uid,
    worker_id,
)


def pytest_addoption(parser: pytest.Parser) -> None:
    options.add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> None:
    if early_config.known_args_namespace.gpu_cluster:
        from pytest_gpu_cluster.host import isolation

        isolation.ignore_user_code(early_config, parser, args)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Print the launch plan for --gpu-plan, in the place of a run."""
    if not config.getoption("gpu_plan"):
        return None
    from pytest_gpu_cluster.host.pytest_host import plan_lines

    try:
        lines = plan_lines(options.build_request(config, os.environ))
    except HarnessError as problem:
        raise pytest.UsageError(str(problem)) from problem
    print(*lines, sep="\n")
    return 0


def pytest_configure(config: pytest.Config) -> None:
    for line in MARKERS:
        config.addinivalue_line("markers", line)
    if (profile := config.getoption("gpu_profile")) and not config.getoption("gpu_cluster"):
        try:  # a typo would wait for the first run with a cluster
            pyproject = config.rootpath / "pyproject.toml"
            options.read_settings(pyproject, profile=profile, environ=os.environ)
        except HarnessError as problem:
            raise pytest.UsageError(str(problem)) from problem
    if config.getoption("gpu_cluster"):
        from pytest_gpu_cluster.host import isolation, pytest_host

        isolation.configure(config)
        try:
            request = options.build_request(config, os.environ)
            host = pytest_host.PytestHost(config, request)
        except HarnessError as problem:
            pytest_host.report_refusal(options.results_root(config), os.environ, problem)
            raise pytest.UsageError(str(problem)) from problem
        config.pluginmanager.register(host, "gpu_cluster_host")
