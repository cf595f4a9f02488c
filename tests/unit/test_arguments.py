"""What the pytest on the cluster is certain to refuse costs no cluster; what it may know passes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_gpu_cluster.contract.errors import RequestError
from pytest_gpu_cluster.contract.settings import RunRequest, SentTree, Settings
from pytest_gpu_cluster.host.arguments import ARGUMENTS, Arguments, read, refuse_wrong

LOCAL = Settings()
OTHER = Settings(provider_settings={"local": {"python": "/opt/python"}})
ASKED = "def pytest_logger_config(logger_config):\n    logger_config.add('foo')\n"
LATE = "def pytest_collection_modifyitems(items):\n    items.reverse()\n"
OPTION = "def pytest_addoption(parser):\n    parser.addoption('--' + 'mode')\n"
BROUGHT = "from shared.conftest import *\n"
WRITES = "def pytest_sessionstart():\n    open('made.py', 'w').close()\n"


@pytest.mark.parametrize(
    ("words", "unknown", "paths"),
    [
        (["a.py", "-x", "b"], [], ["a.py", "b"]),
        (["a.py", "--mode", "fast", "-x", "b"], ["--mode"], ["a.py", "b"]),
        (["--mode=fast", "b"], ["--mode=fast"], ["b"]),
        (["--mode", "fast"], ["--mode"], []),
        (["-k", "a", "--mode", "--maxfail", "2", "b"], ["--mode"], ["b"]),
    ],
)
def test_a_word_after_an_unknown_option_may_be_its_value(
    pytester: pytest.Pytester, words: list[str], unknown: list[str], paths: list[str]
) -> None:
    """Only what can be nothing but a path may be refused for not existing."""
    parser = pytester.parseconfig()._parser

    arguments = read(parser, words)

    assert arguments == Arguments(words=tuple(words), unknown=tuple(unknown), paths=tuple(paths))


@pytest.mark.parametrize(
    ("words", "conftest", "settings", "refusal"),
    [
        (["absent.py"], "", LOCAL, "file or directory not found: absent.py"),
        (["absent.py::test_a[x]"], "", LOCAL, "file or directory not found: absent.py::test_a[x]"),
        (["tests/absent.py"], OPTION, LOCAL, "file or directory not found: tests/absent.py"),
        (["made.py"], WRITES, LOCAL, ""),
        (["/opt/tests/in_the_image.py"], "", LOCAL, ""),
        (["tests", "-k", "nothing"], "", LOCAL, ""),
        (["--pyargs", "acme.tests"], "", LOCAL, ""),
        (["--mode", "fast"], "", LOCAL, "unrecognized arguments: --mode"),
        (["--mode", "fast"], OPTION, LOCAL, ""),
        (["--mode", "fast"], BROUGHT, LOCAL, ""),
        (["--mode", "fast"], ASKED, LOCAL, ""),
        (["--mode", "fast"], LATE, LOCAL, "unrecognized arguments: --mode"),
        (["--mode", "fast"], "", OTHER, ""),
    ],
)
def test_only_what_is_certain_is_refused(
    pytester: pytest.Pytester, words: list[str], conftest: str, settings: Settings, refusal: str
) -> None:
    """A typo is cheap; an option that only the cluster's conftest or plugins know still works."""
    config = pytester.parseconfig(*(["--pyargs"] if "--pyargs" in words else []))
    pytester.mkdir("tests").joinpath("conftest.py").write_text(conftest)
    config.stash[ARGUMENTS] = read(config._parser, words)
    request = RunRequest(
        settings=settings,
        project=pytester.path,
        root=pytester.path,
        tree=SentTree(top=pytester.path),
        invocation_dir=pytester.path,
        pytest_args=(),
        passed_env={},
    )

    if refusal:
        with pytest.raises(RequestError) as caught:
            refuse_wrong(config, request)
        assert caught.value.what == refusal
    else:
        refuse_wrong(config, request)
        refuse_wrong(config, replace(request, tree=SentTree(top=pytester.path.parent)))
