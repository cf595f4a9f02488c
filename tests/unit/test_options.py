"""The request that a command line makes, and the one that is refused."""

from __future__ import annotations

import os

import pytest

from pytest_gpu_cluster.contract.errors import RequestError
from pytest_gpu_cluster.contract.settings import RunRequest
from pytest_gpu_cluster.options import (
    add_options,
    build_request,
    strip_own_options,
)


@pytest.mark.parametrize(
    ("typed", "forwarded"),
    [
        (["--gpu-cluster"], []),
        (["-x", "--gpu-cluster", "tests/a.py"], ["-x", "tests/a.py"]),
        (["--gpu-profile", "ci", "-k", "a"], ["-k", "a"]),
        (["--gpu-profile=ci", "--gpu-plan"], []),
        (["--gpu-cluster", "--", "--gpu-cluster"], ["--", "--gpu-cluster"]),
        (["-k", "gpu-cluster"], ["-k", "gpu-cluster"]),
    ],
)
def test_own_options_do_not_travel(typed: list[str], forwarded: list[str]) -> None:
    """The remote pytest would start a cluster of its own."""
    assert strip_own_options(typed) == tuple(forwarded)


class Host:
    """Registers the options as the plugin does."""

    def pytest_addoption(self, parser: pytest.Parser) -> None:
        add_options(parser)


def request_for(
    pytester: pytest.Pytester, *args: str, environ: dict[str, str] | None = None
) -> RunRequest:
    """Build a request from a real pytest configuration, with or without the plugin installed."""
    pytester.plugins = [Host()]
    config = pytester.parseconfig("-p", "no:gpu_cluster", *args)
    return build_request(config, environ or {})


def test_a_request_holds_what_was_typed_and_where(pytester: pytest.Pytester) -> None:
    """The remote pytest gets the user's own words, started in the same place of the same tree."""
    pytester.makepyprojecttoml(
        "[tool.pytest.ini_options]\n[tool.gpu-cluster.profile.ci]\nnodes = 2\n"
    )
    sub = pytester.mkdir("sub")
    pytester.chdir()
    os.chdir(sub)

    request = request_for(
        pytester, "--gpu-cluster", "--gpu-profile", "ci", "-k", "a or b", environ={"CI": "1"}
    )

    assert (request.root, request.invocation_dir) == (pytester.path, sub)
    assert request.pytest_args[:4] == ("-p", "no:gpu_cluster", "-k", "a or b")
    assert not [arg for arg in request.pytest_args if arg.startswith("--gpu")]
    assert request.settings.nodes == 2
    assert request.ci


def test_options_in_an_argument_file_are_ours_too(pytester: pytest.Pytester) -> None:
    """pytest reads `@file`; the file may hold `--gpu-cluster`, which must not travel."""
    pytester.path.joinpath("args").write_text("--gpu-cluster\n-x\n")

    assert request_for(pytester, "@args").pytest_args[:3] == ("-p", "no:gpu_cluster", "-x")


@pytest.mark.parametrize("option", ["--pdb", "--trace"])
@pytest.mark.parametrize("via", ["typed", "ini", "PYTEST_ADDOPTS"])
def test_a_debugger_is_refused_with_a_way_out(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, option: str, via: str
) -> None:
    """A prompt on a machine without a terminal would wait for ever, at the price of a GPU."""
    if via == "ini":
        pytester.makepyprojecttoml(f"[tool.pytest.ini_options]\naddopts = '{option}'\n")
    if via == "PYTEST_ADDOPTS":
        monkeypatch.setenv("PYTEST_ADDOPTS", option)

    with pytest.raises(RequestError) as caught:
        request_for(pytester, "--gpu-cluster", *([option] if via == "typed" else []))

    assert option in caught.value.what
    assert "without --gpu-cluster" in caught.value.remedy


def test_only_named_variables_cross_and_never_pytests_own(pytester: pytest.Pytester) -> None:
    """PYTEST_CURRENT_TEST and xdist's variables of *this* process would lie over there."""
    environ = {
        "CI": "1",
        "HOME": "/home/me",
        "PYTEST_ADDOPTS": "-x --gpu-cluster -k 'a b'",
        "PYTEST_CURRENT_TEST": "t",
        "PYTEST_PLUGINS": "p",
        "PYTEST_VERSION": "9",
        "PYTEST_XDIST_WORKER": "gw0",
    }

    passed = request_for(pytester, environ=environ).passed_env

    assert passed == {"CI": "1", "PYTEST_ADDOPTS": "-x -k 'a b'", "PYTEST_PLUGINS": "p"}


def test_the_shipped_workloads_hear_their_variables_without_a_setting(
    pytester: pytest.Pytester,
) -> None:
    """GPU_TESTS_MODE=gpu demands real GPUs; without it, simulated ones would pass for them."""
    request = request_for(pytester, environ={"GPU_TESTS_MODE": "gpu", "HF_TOKEN": "s3cr3t"})

    assert request.passed_env == {"GPU_TESTS_MODE": "gpu"}


def test_values_stay_out_of_a_repr(pytester: pytest.Pytester) -> None:
    """A request ends up in tracebacks and logs."""
    request = request_for(pytester, environ={"HF_TOKEN": "s3cr3t", "GPU_CLUSTER_PASS_ENV": "HF_*"})

    assert request.passed_env == {"HF_TOKEN": "s3cr3t"}
    assert "s3cr3t" not in repr(request)
