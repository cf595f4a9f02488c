"""The thin client: no module of the user, no plugin that only the cluster has, is needed on this
side.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.behaviours.bench import Bench
from tests.behaviours.listed import scenarios
from tests.replay_rig import Scenario
from tests.replay_scenarios import CONFTEST, MIXED_FILES, PASS

THERE_ONLY = """
import os
assert "PYTEST_XDIST_WORKER" in os.environ, "this conftest was imported on the client"
import pytest
@pytest.fixture
def there(): return os.environ["PYTEST_XDIST_WORKER"]
"""


def test_b46_a_conftest_that_cannot_be_imported_here_works(bench: Bench) -> None:
    """A CI runner has no torch; this conftest stands for one that needs it: only on the cluster
    does it import.
    """
    ours = bench.ours(
        Scenario(
            files={
                "conftest.py": THERE_ONLY,
                "test_t.py": "def test_t(there): assert there == 'gw0'\n",
            }
        )
    )

    assert ours.code == 0, ours.out + ours.err
    assert "1 passed" in ours.counts


def test_b46_a_conftest_that_fails_on_both_sides_fails_as_plain_does(bench: Bench) -> None:
    """A module that the cluster lacks too is the user's to mend, who reads of it as always."""
    files = {
        **PASS,
        "sub/conftest.py": "import torch_that_is_not_there\n",
        "sub/test_s.py": "def test(): pass\n",
    }

    assert bench.same(Scenario(files=files)).code


@scenarios(47)
def test_b47_options_and_settings_of_conftests_are_accepted(
    bench: Bench, scenario: Scenario
) -> None:
    """`--dev cuda:0` with a space, own ini keys, under --strict-config too, which pytest 9.0 does
    not hear in addopts.
    """
    accepted = "conftest.py" in scenario.files or pytest.version_tuple[:2] == (9, 0)
    assert bench.same(scenario, header=False).code == (0 if accepted else 4)


REFUSES_LATE = """
import os, time, pytest

@pytest.hookimpl(wrapper=True)
def pytest_collection():
    yield
    if not os.environ.get("CUDA_VISIBLE_DEVICES"):  # where tests are selected, and in plain pytest
        time.sleep(2)
    raise pytest.UsageError("no such flavour")
"""


def test_b47_a_selection_that_is_refused_after_a_worker_was_is_still_a_usage_error(
    bench: Bench,
) -> None:
    """A worker that refuses the same settings first must not turn them into an internal error."""
    test = "import pytest\n\n@pytest.mark.gpu\ndef test_g(): pass\n"
    files = {"conftest.py": REFUSES_LATE, "test_g.py": test}

    assert bench.same(Scenario(files=files)).code == 4


def test_b47_the_same_with_two_workers(bench: Bench) -> None:
    """Each worker gets the option."""
    test = (
        "def test_a(request): assert request.config.getoption('--dev') == 'cuda:0'\n"
        "def test_b(): pass\n"
    )
    scenario = Scenario(
        files={"conftest.py": CONFTEST, "test_d.py": test}, args=("--dev", "cuda:0")
    )
    plain, ours = bench.plain(scenario), bench.ours(scenario, workers=2)

    assert (ours.code, ours.junit) == (plain.code, plain.junit)


HERE_WITHOUT = """
import pytest
def pytest_addoption(parser): parser.addoption("--spot", action="store_true")
"""


def test_b48_addopts_may_name_options_that_only_the_cluster_knows(bench: Bench) -> None:
    """A plugin of the tree, loaded by the root conftest there, is not loaded here at all."""
    files = {**PASS, "conftest.py": HERE_WITHOUT, "pytest.ini": "[pytest]\naddopts = --spot -v\n"}

    assert bench.same(Scenario(files=files)).code == 0


def test_b49_required_plugins_that_are_missing_are_named(bench: Bench) -> None:
    """pytest asks for them before anything else: 4, with their names, and nothing is started."""
    scenario = Scenario(
        files={**PASS, "pytest.ini": "[pytest]\nrequired_plugins = pytest-nowhere\n"}
    )
    plain, ours = bench.plain(scenario), bench.ours(scenario, shipped=False)

    assert (ours.code, ours.out, ours.err) == (plain.code, plain.out, plain.err)
    assert ours.code == 4
    assert "Missing required plugins: pytest-nowhere" in ours.err


def test_b49_p_of_a_missing_plugin_is_named(bench: Bench) -> None:
    """The plugin has to be imported before any other can speak: plain pytest's traceback, whose
    first frames are the same.
    """
    scenario = Scenario(files=PASS, args=("-p", "plugin_that_is_not_there"))
    plain, ours = bench.plain(scenario), bench.ours(scenario, shipped=False)

    assert ours.code == plain.code != 0
    assert ours.err == plain.err
    assert "plugin_that_is_not_there" in ours.err


@scenarios(50)
def test_b50_a_warning_filter_may_name_a_module_of_the_cluster(
    bench: Bench, scenario: Scenario
) -> None:
    """It is imported where it is used; a class that is no warning is refused on this side already,
    in pytest's words.
    """
    plain, ours = bench.plain(scenario), bench.ours(scenario, shipped=False)

    assert (ours.code, ours.out, ours.err) == (plain.code, plain.out, plain.err)
    assert ours.code == 4


def test_b50_a_filter_that_cannot_be_imported_here_makes_no_noise(bench: Bench) -> None:
    """The cluster has the module in its tree; here it is gone with the tree."""
    files = {
        **PASS,
        "mylib.py": "class Odd(Warning): pass\n",
        "test_w.py": "import warnings, mylib\ndef test_w(): warnings.warn('odd', mylib.Odd)\n",
        "pytest.ini": (
            "[pytest]\npythonpath = .\nfilterwarnings =\n    error\n    ignore::mylib.Odd\n"
        ),
    }
    ours = bench.same(Scenario(files=files))

    assert "warning" not in ours.out


@scenarios(51)
def test_b51_xdist_in_addopts_is_ignored_on_both_sides(bench: Bench, scenario: Scenario) -> None:
    """-n0 changes nothing in plain pytest, so the two can be compared."""
    assert bench.same(scenario).code == 0


def test_b51_n_auto_in_addopts_does_not_start_xdist(bench: Bench) -> None:
    """Two schedulers, one below the other, would run each test as often as there are cores.

    One worker, as without -n.
    """
    plain = bench.plain(Scenario(files=PASS, args=("-v",)))
    ours = bench.ours(
        Scenario(
            files={**PASS, "pytest.ini": "[pytest]\naddopts = -n auto --dist=loadfile\n"},
            args=("-v",),
        )
    )

    assert ours.code == 0
    assert ours.statuses == plain.statuses
    assert "gw" not in ours.out


@scenarios(52)
def test_b52_pytest_addopts_crosses(bench: Bench, scenario: Scenario) -> None:
    """It is part of the command, though not of the command line."""
    assert "deselected" in bench.same(scenario).out


def test_b52_our_flag_in_addopts_does_not_start_a_cluster_in_the_cluster(bench: Bench) -> None:
    """Users who always want the cluster write it into the settings, which each worker reads."""
    plain = bench.plain(Scenario(files=PASS))
    files = {**PASS, "pytest.ini": "[pytest]\naddopts = --gpu-cluster\n"}
    ours = bench.ours(Scenario(files=files, env={"PYTEST_ADDOPTS": "--gpu-cluster"}))

    assert ours.code == 0
    assert ours.counts == plain.counts
    assert len({event["writer"] for event in bench.events(ours)}) == 1


SPY = """
import atexit, os, sys
def look():
    path = os.environ.get("PYTEST_SPY")
    if path and "pytest" in sys.modules and not os.environ.get("PYTEST_XDIST_WORKER"):
        ours = {"ray", "torch", "boto3", "conftest", "test_mixed", "test_other", "mylib"}
        open(path, "w").write(" ".join(sorted(ours & set(sys.modules))) + ".")
atexit.register(look)
"""


def test_b53_no_module_of_the_user_is_imported_here(bench: Bench, tmp_path: Path) -> None:
    """Nor Ray, torch or a vendor's SDK: what is imported at the end of the run was imported on the
    way.
    """
    (tmp_path / "sitecustomize.py").write_text(SPY)
    modules = tmp_path / "seen"
    files = {
        **MIXED_FILES,
        "conftest.py": "import mylib\n",
        "mylib.py": "",
        "pytest.ini": "[pytest]\npythonpath = .\n",
    }
    ours = bench.ours(
        Scenario(files=files),
        PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]),
        PYTEST_SPY=str(modules),
    )

    assert ours.code == 1, ours.out
    assert modules.read_text() == "."
