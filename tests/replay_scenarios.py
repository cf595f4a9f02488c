"""Small projects in which a replayed run must equal a plain one: exit code, stdout, JUnit, cache.

Each name begins with the number of the behaviour that it stands for.
"""

from __future__ import annotations

from tests.replay_files import CONFTEST, ERRORS, EXIT, MIXED_FILES, PASS, XML
from tests.replay_rig import Scenario
from tests.replay_terminal import TERMINAL

__all__ = ["CONFTEST", "MIXED_FILES", "PASS", "SCENARIOS"]

SCENARIOS: dict[str, Scenario] = {
    **TERMINAL,
    "b01_all_pass": Scenario(files=PASS, args=XML),
    "b01_failure": Scenario(files=MIXED_FILES, args=XML),
    "b02_exitfirst": Scenario(files=MIXED_FILES, args=("-x", *XML)),
    "b03_maxfail": Scenario(files=MIXED_FILES, args=("--maxfail=2", *XML)),
    "b04_collection_error": Scenario(files=ERRORS, args=XML),
    "b05_continue_on_collection_errors": Scenario(
        files=ERRORS, args=("--continue-on-collection-errors", *XML)
    ),
    "b06_exitfirst_collection_error": Scenario(files=ERRORS, args=("-x",)),
    "b06_exitfirst_last_file_broken": Scenario(
        files={**PASS, "test_zz.py": "import nowhere\n"}, args=("-x",)
    ),
    # In each a conftest.py might make it right, so that the cluster has to decide.
    "b07_bad_path": Scenario(
        files={**PASS, "conftest.py": "# makes nowhere.py, perhaps\n"}, args=("nowhere.py",)
    ),
    "b07_bad_nodeid": Scenario(files=PASS, args=("test_pass.py::test_three",)),
    "b08_no_tests": Scenario(files={"test_none.py": ""}),
    "b08_all_deselected": Scenario(files=PASS, args=("-k", "nothing")),
    "b09_exit_in_test": Scenario(files={"test_exit.py": EXIT}, args=XML),
    "b09_exit_in_fixture": Scenario(
        files={
            "test_e.py": (
                "import pytest\n"
                "@pytest.fixture\n"
                "def f(): pytest.exit('stop here')\n"
                "def test(f): pass\n"
            )
        }
    ),
    "b09_exit_at_import": Scenario(
        files={**PASS, "test_e.py": "import pytest\npytest.exit('at import', 2)\n"}
    ),
    "b10_keyboard_interrupt": Scenario(
        files={
            "test_k.py": (
                "def test_a(): pass\ndef test_b(): raise KeyboardInterrupt\ndef test_c(): pass\n"
            )
        },
        args=XML,
    ),
    "b11_sys_exit_in_test": Scenario(
        files={"test_s.py": "import sys\ndef test_s(): sys.exit(3)\n"}, args=XML
    ),
    "b14_unknown_option": Scenario(
        files={**PASS, "conftest.py": "# pytest_addoption\n"},
        args=("--no-such-option",),
        differs=("out", "cache"),
    ),
    "b14_usage_error_in_conftest": Scenario(
        files={
            **PASS,
            "conftest.py": (
                "import pytest\n"
                "def pytest_configure(config): raise pytest.UsageError('not like this')\n"
            ),
        },
        differs=("out", "cache"),
    ),
    "b15_max_warnings": Scenario(
        files={
            "test_w.py": "import warnings\ndef test_w(): warnings.warn('a'); warnings.warn('b')\n"
        },
        args=("--max-warnings=1",),
    ),
    "b12_internal_error_in_hook": Scenario(
        files={
            **PASS,
            "conftest.py": (
                "def pytest_runtest_logreport(report):\n"
                "  if report.when == 'call': raise RuntimeError('hook broke')\n"
            ),
        },
        args=XML,
        differs=("out", "junit"),
    ),
    "b41_marks_deselect_ignore": Scenario(
        files={**MIXED_FILES, "pytest.ini": "[pytest]\nmarkers = slow\ntestpaths = sub .\n"},
        args=("-m", "not slow", "--deselect", "test_mixed.py::test_fails", "--ignore=sub"),
    ),
    "b41_testpaths": Scenario(files={**MIXED_FILES, "pytest.ini": "[pytest]\ntestpaths = sub\n"}),
    "b41_odd_nodeid": Scenario(
        files=MIXED_FILES, args=("test_mixed.py::test_param[a::b/c@d]", "-v")
    ),
    "b42_last_failed": Scenario(files=MIXED_FILES, before=((),), args=("--lf",)),
    "b42_failed_first": Scenario(files=MIXED_FILES, before=((),), args=("--ff", "-v")),
    "b42_new_first": Scenario(
        files=PASS,
        before=((),),
        change={"test_aaa.py": "def test(): pass\n", "test_zz.py": "def test(): pass\n"},
        args=("--nf", "-v"),
    ),
    "b42_lfnf_none": Scenario(files=PASS, before=((),), args=("--lf", "--lfnf=none")),
    "b42_stepwise": Scenario(files=MIXED_FILES, args=("--sw",)),
    "b42_stepwise_again": Scenario(files=MIXED_FILES, before=(("--sw",),), args=("--sw", "-v")),
    "b42_stepwise_skip": Scenario(files=MIXED_FILES, before=(("--sw",),), args=("--sw-skip",)),
    "b42_stepwise_reset": Scenario(
        files=MIXED_FILES, before=(("--sw",),), args=("--sw", "--sw-reset")
    ),
    "b43_fixed_collection_error": Scenario(
        files=ERRORS,
        before=((),),
        change={"test_broken.py": "def test_now(): pass\n"},
        args=("--lf",),
    ),
    "b44_cache_clear": Scenario(files=MIXED_FILES, before=((),), args=("--cache-clear", "--lf")),
    "b47_conftest_options": Scenario(
        files={
            **PASS,
            "conftest.py": CONFTEST,
            "pytest.ini": "[pytest]\nflavour = vanilla\naddopts = --strict-config\n",
        },
        args=("--dev", "cuda:0"),
    ),
    "b47_strict_config_unknown": Scenario(
        files={**PASS, "pytest.ini": "[pytest]\nflavour = vanilla\naddopts = --strict-config\n"}
    ),
    "b50_filter_names_a_missing_module": Scenario(
        files={
            **PASS,
            "pytest.ini": (
                "[pytest]\nfilterwarnings =\n    error\n    ignore::json.JSONDecodeError\n"
            ),
        }
    ),
    "b54_xunit1": Scenario(
        files={
            "test_x.py": "import pathlib, enum\nclass E(enum.Enum): A = 1\n"
            "def test_x(record_property, record_xml_attribute, record_testsuite_property,"
            " caplog):\n"
            "  record_property('p', pathlib.Path('/x')); record_property('e', E.A)\n"
            "  record_property('t', (1, 'a'))\n"
            "  record_xml_attribute('assertions', 3); record_testsuite_property('ARCH', 'PPC')\n"
            "  import logging; logging.warning('logged'); print('out')\n"
            "def test_y(): assert 0\n"
        },
        args=("-o", "junit_family=xunit1", "-o", "junit_logging=all", *XML),
    ),
    "b54_xunit2": Scenario(
        files=MIXED_FILES,
        args=("-o", "junit_family=xunit2", "-o", "junit_logging=system-out", *XML),
    ),
    "b54_legacy": Scenario(
        files=MIXED_FILES,
        args=("-o", "junit_family=legacy", "-o", "junit_log_passing_tests=false", *XML),
    ),
    "b57_reruns": Scenario(
        files={
            "test_f.py": (
                "n = []\n"
                "def test_f():\n"
                "  n.append(1)\n"
                "  assert len(n) > 2\n"
                "def test_g(): assert 0\n"
            )
        },
        args=("--reruns=2", "-v", "-rR", *XML),
    ),
    "b69_setup_show": Scenario(
        files={
            "test_f.py": (
                "import pytest\n"
                "@pytest.fixture(scope='module')\n"
                "def m(): yield 1\n"
                "@pytest.fixture(params=[1,2])\n"
                "def p(request): yield 2\n"
                "def test_a(m, p): pass\n"
                "def test_b(m): assert 0\n"
            )
        },
        args=("--setup-show",),
    ),
    "b69_setup_plan": Scenario(
        files={
            "test_f.py": (
                "import pytest\n@pytest.fixture\ndef m(): yield 1\ndef test_a(m): assert 0\n"
            )
        },
        args=("--setup-plan",),
    ),
    "b69_setup_only": Scenario(
        files={
            "test_f.py": (
                "import pytest\n@pytest.fixture\ndef m(): yield 1\ndef test_a(m): assert 0\n"
            )
        },
        args=("--setup-only",),
    ),
    "b69_no_capture": Scenario(
        files={
            "conftest.py": "def pytest_sessionfinish(session): print('finish')\n",
            "test_f.py": (
                "import pytest\n"
                "@pytest.fixture\n"
                "def m():\n"
                "  print('up')\n"
                "  yield 1\n"
                "  print('down')\n"
                "def test_a(m): print('a')\n"
                "def test_b(m): print('b'); assert 0\n"
            ),
        },
        args=("-s",),
    ),
    "b69_live_log": Scenario(
        files={
            "test_f.py": (
                "import logging, pytest\n"
                "@pytest.fixture\n"
                "def m():\n"
                "  logging.info('up')\n"
                "  yield 1\n"
                "  logging.info('down')\n"
                "def test_a(m): logging.warning('a')\n"
                "def test_b(m): logging.info('b'); assert 0\n"
            )
        },
        args=("-v", "--log-cli-level=INFO", "--log-file=mine.log"),
    ),
    "b71_scopes": Scenario(
        files={
            "conftest.py": (
                "import pytest\n"
                "@pytest.fixture(scope='session')\n"
                "def s():\n"
                "  print('session up')\n"
                "  yield\n"
                "  print('session down')\n"
            ),
            "test_a.py": (
                "import pytest\n"
                "@pytest.fixture(scope='module')\n"
                "def m(s):\n"
                "  yield\n"
                "  raise ValueError('module teardown')\n"
                "def test_1(m): pass\n"
                "def test_2(m): pass\n"
            ),
            "test_b.py": "def test_1(s): pass\ndef test_2(s): pass\n",
        },
        args=("-v", "-rA", *XML),
    ),
    "b72_session_params": Scenario(
        files={
            "test_a.py": (
                "import pytest\n"
                "@pytest.fixture(scope='session', params=['x', 'y'])\n"
                "def s(request):\n"
                "  print('up', request.param)\n"
                "  yield request.param\n"
                "def test_1(s): pass\n"
                "def test_2(s): pass\n"
            )
        },
        args=("-v", "-rP"),
    ),
    "b73_package_fixtures": Scenario(
        files={
            "a/__init__.py": "",
            "a/conftest.py": (
                "import pytest\n"
                "@pytest.fixture(scope='package')\n"
                "def pk():\n"
                "  print('pk up')\n"
                "  yield 1\n"
            ),
            "a/test_1.py": "def test_1(pk): pass\n",
            "a/b/__init__.py": "",
            "a/b/conftest.py": "import pytest\n@pytest.fixture\ndef pk2(pk): return pk + 1\n",
            "a/b/test_2.py": "def test_2(pk2): assert pk2 == 2\n",
            "a/test_3.py": "def test_3(pk): pass\n",
        },
        args=("-v", "-rP"),
    ),
    "b51_addopts_n": Scenario(files={**PASS, "pytest.ini": "[pytest]\naddopts = -n0\n"}),
    "b52_addopts_env": Scenario(files=MIXED_FILES, env={"PYTEST_ADDOPTS": "-q -k param"}),
}
