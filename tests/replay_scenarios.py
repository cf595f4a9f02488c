"""Small projects in which a replayed run must equal a plain one: exit code, stdout, JUnit, cache files.

Each name begins with the number of the behaviour that it stands for.
"""

from __future__ import annotations

from tests.replay_rig import Scenario

MIXED = """
import warnings, pytest

@pytest.fixture
def broken_setup(): raise RuntimeError("in setup")

@pytest.fixture
def broken_teardown():
    yield
    print("tearing down")
    raise RuntimeError("in teardown")

def test_passes(): print("to stdout")
def test_fails():
    import sys
    print("to stderr", file=sys.stderr)
    assert {"a": [1, 2]} == {"a": [1, 3]}
def test_setup_error(broken_setup): pass
def test_teardown_error(broken_teardown): pass
def test_both(broken_teardown): assert 0
@pytest.mark.skip(reason="not now")
def test_skipped(): pass
def test_skips_itself(): pytest.skip("inside")
@pytest.mark.xfail(reason="known")
def test_xfails(): assert 0
@pytest.mark.xfail
def test_xpasses(): pass
@pytest.mark.xfail(strict=True)
def test_strict(): pass
def test_warns(): warnings.warn("look out")
@pytest.mark.parametrize("x", [1, "a::b/c@d", 2.5])
def test_param(x): warnings.warn("look out again", DeprecationWarning)
class TestClass:
    def test_method(self): pass
    def test_bad(self):
        try: {}["x"]
        except KeyError as e: raise ValueError("chained") from e
"""
MIXED_FILES = {
    "test_mixed.py": MIXED,
    "sub/test_other.py": "def test_one(): pass\ndef test_two(): assert 1 == 2\n",
}
PASS = {"test_pass.py": "def test_one(): pass\ndef test_two(): pass\n"}
ERRORS = {
    "test_broken.py": "import nowhere\n",
    "test_ok.py": "def test_ok(): pass\ndef test_ko(): assert 0\n",
}
EXIT = "import pytest\ndef test_before(): pass\ndef test_exit(): pytest.exit('bye', 7)\ndef test_after(): pass\n"
CONFTEST = """
import pytest
def pytest_addoption(parser):
    parser.addoption("--dev", default="cpu")
    parser.addini("flavour", "of the month", default="plain")
def pytest_report_header(config): return ["device: " + config.getoption("--dev"), "flavour: " + config.getini("flavour")]
def pytest_report_collectionfinish(config, items): return f"found {len(items)} things"
def pytest_report_teststatus(report, config):
    if report.when == "call" and report.passed: return "fine", "+", ("FINE", {"purple": True})
seen = []
def pytest_runtest_logreport(report):
    if report.when == "call": seen.append(report.outcome)
def pytest_terminal_summary(terminalreporter, exitstatus):
    terminalreporter.section("mine")
    terminalreporter.write_line(f"saw {seen} and {int(exitstatus)}")
    print("printed in the summary")
"""
MISSING = "import torch_that_is_not_there\n"
XML = ("--junitxml=junit.xml",)

SCENARIOS: dict[str, Scenario] = {
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
    "b07_bad_path": Scenario(files=PASS, args=("nowhere.py",)),
    "b07_bad_nodeid": Scenario(files=PASS, args=("test_pass.py::test_three",)),
    "b08_no_tests": Scenario(files={"test_none.py": ""}),
    "b08_all_deselected": Scenario(files=PASS, args=("-k", "nothing")),
    "b09_exit_in_test": Scenario(files={"test_exit.py": EXIT}, args=XML),
    "b09_exit_in_fixture": Scenario(
        files={
            "test_e.py": "import pytest\n@pytest.fixture\ndef f(): pytest.exit('stop here')\ndef test(f): pass\n"
        }
    ),
    "b09_exit_at_import": Scenario(
        files={**PASS, "test_e.py": "import pytest\npytest.exit('at import', 2)\n"}
    ),
    "b10_keyboard_interrupt": Scenario(
        files={
            "test_k.py": "def test_a(): pass\ndef test_b(): raise KeyboardInterrupt\ndef test_c(): pass\n"
        },
        args=XML,
    ),
    "b11_sys_exit_in_test": Scenario(
        files={"test_s.py": "import sys\ndef test_s(): sys.exit(3)\n"}, args=XML
    ),
    "b14_unknown_option": Scenario(
        files=PASS, args=("--no-such-option",), differs=("out", "cache")
    ),
    "b14_usage_error_in_conftest": Scenario(
        files={
            **PASS,
            "conftest.py": "import pytest\ndef pytest_configure(config): raise pytest.UsageError('not like this')\n",
        },
        differs=("out", "cache"),
    ),
    "b15_max_warnings": Scenario(
        files={
            "test_w.py": "import warnings\ndef test_w(): warnings.warn('a'); warnings.warn('b')\n"
        },
        args=("--max-warnings=1",),
    ),
    "b19_verbose": Scenario(files=MIXED_FILES, args=("-v",)),
    "b19_quiet": Scenario(files=MIXED_FILES, args=("-q",)),
    "b19_quieter": Scenario(files=MIXED_FILES, args=("-qq",)),
    "b19_everything": Scenario(files=MIXED_FILES, args=("-vv", "-rA")),
    "b20_deselected_verbose": Scenario(files=MIXED_FILES, args=("-v", "-k", "param or other")),
    "b21_count": Scenario(files=MIXED_FILES, args=("-o", "console_output_style=count")),
    "b21_classic": Scenario(files=MIXED_FILES, args=("-o", "console_output_style=classic")),
    "b21_times": Scenario(files=PASS, args=("-o", "console_output_style=times", "-v")),
    "b22_tb_long_locals": Scenario(files=MIXED_FILES, args=("--tb=long", "--showlocals")),
    "b22_tb_short": Scenario(files=MIXED_FILES, args=("--tb=short",)),
    "b22_tb_line": Scenario(files=MIXED_FILES, args=("--tb=line",)),
    "b22_tb_native": Scenario(files=MIXED_FILES, args=("--tb=native",)),
    "b22_tb_no": Scenario(files=MIXED_FILES, args=("--tb=no",)),
    "b23_reprs_in_colour": Scenario(
        files={
            "test_r.py": "import pytest\n"
            "def test_fixture(nowhere): pass\n"
            "def test_group(): raise ExceptionGroup('many', [ValueError(1), TypeError('t')])\n"
            "def test_diff(): assert 'a\\nb\\nc' == 'a\\nB\\nc'\n",
            "test_doc.txt": ">>> 1 + 1\n3\n",
            "test_broken.py": "def f(:\n",
        },
        args=("--color=yes", "--continue-on-collection-errors"),
    ),
    "b24_colour": Scenario(files=MIXED_FILES, args=("--color=yes", "-vv")),
    "b25_ci": Scenario(
        files={"test_d.py": "def test_d(): assert list(range(50)) == list(range(1, 51))\n"},
        env={"CI": "1"},
    ),
    "b27_no_fold_skipped": Scenario(files=MIXED_FILES, args=("-rs", "--no-fold-skipped")),
    "b27_folded": Scenario(files=MIXED_FILES, args=("-rs",)),
    "b29_show_capture": Scenario(files=MIXED_FILES, args=("--show-capture=stderr",)),
    "b30_warnings_are_errors": Scenario(files=MIXED_FILES, args=("-W", "error")),
    "b30_no_warnings": Scenario(files=MIXED_FILES, args=("-p", "no:warnings")),
    "b30_disable_warnings": Scenario(files=MIXED_FILES, args=("--disable-warnings",)),
    "b30_config_and_collection_warnings": Scenario(
        files={
            "pytest.ini": "[pytest]\nunknown_key = 1\n",
            "test_w.py": "import warnings\nwarnings.warn('at import')\nclass TestX:\n  def __init__(self): pass\ndef test(): pass\n",
        }
    ),
    "b33_conftest_texts": Scenario(files={**MIXED_FILES, "conftest.py": CONFTEST}, args=("-rA",)),
    "b32_custom_status_verbose": Scenario(
        files={**MIXED_FILES, "conftest.py": CONFTEST}, args=("-v", "--color=yes")
    ),
    "b34_collect_only": Scenario(
        files={
            **MIXED_FILES,
            "pkg/__init__.py": "",
            "pkg/test_p.py": "'''doc of module'''\ndef test_p():\n  'doc of test'\n",
        },
        args=("--collect-only",),
    ),
    "b34_collect_only_quiet": Scenario(files=MIXED_FILES, args=("--collect-only", "-q")),
    "b34_collect_only_quieter": Scenario(files=MIXED_FILES, args=("--collect-only", "-qq")),
    "b34_collect_only_docs": Scenario(
        files={
            "pkg/__init__.py": "",
            "pkg/test_p.py": "'''doc of module'''\ndef test_p():\n  'doc of test'\n",
        },
        args=("--collect-only", "-v"),
    ),
    "b35_no_header_no_summary": Scenario(
        files={**MIXED_FILES, "conftest.py": CONFTEST}, args=("--no-header", "--no-summary")
    ),
    "b35_no_terminal": Scenario(files=MIXED_FILES, args=("-p", "no:terminal")),
    "b37_subdirectory": Scenario(
        files={**MIXED_FILES, "pytest.ini": "[pytest]\n"}, cwd="sub", args=("-rA", "test_other.py")
    ),
    "b37_root_below_the_invocation": Scenario(
        files={"a/b/test_x.py": "def test_x(): assert 0\n"},
        args=("a/b/test_x.py", *XML),
        differs=("junit", "cache"),
    ),
    "b37_import_from_the_invocation_directory": Scenario(
        files={
            "lib/__init__.py": "x = 1\n",
            "tests/test_x.py": "from lib import x\ndef test_x(): assert x\n",
        }
    ),
    "b37_plugins_missing": Scenario(
        files=MIXED_FILES,
        args=(
            "-p",
            "no:logging",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:junitxml",
            "-p",
            "no:stepwise",
        ),
    ),
    "b37_config_file": Scenario(
        files={**MIXED_FILES, "conf/my.ini": "[pytest]\naddopts = -v\n"},
        args=("-c", "conf/my.ini", "--rootdir=.", "sub"),
    ),
    "b37_pyargs": Scenario(
        files={
            "pytest.ini": "[pytest]\n",
            "pkg/__init__.py": "",
            "pkg/test_p.py": "def test_p(): pass\n",
        },
        args=("--pyargs", "pkg.test_p"),
    ),
    "b38_subtests": Scenario(
        files={
            "test_s.py": "def test_s(subtests):\n  for i in range(3):\n    with subtests.test('m', i=i, k='abc'): assert i != 1\ndef test_ok(subtests):\n  with subtests.test(): pass\n"
        },
        args=("-v", *XML),
    ),
    "b39_strange_output": Scenario(
        files={
            "test_o.py": "import sys\ndef test_o():\n  print('x\\x00y\\x1b[31mred\\x1b[0m \\u2603' * 100)\n  sys.stdout.buffer.write(b'\\xff\\xfe')\n  assert 0, 'bad \\udc80 surrogate'\n"
        },
        args=("--tb=line", *XML),
        env={"PYTHONIOENCODING": "utf-8:backslashreplace"},
    ),
    "b40_keep_duplicates": Scenario(
        files=PASS, args=("--keep-duplicates", "test_pass.py", "test_pass.py", "-v", *XML)
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
            "pytest.ini": "[pytest]\nfilterwarnings =\n    error\n    ignore::json.JSONDecodeError\n",
        }
    ),
    "b54_xunit1": Scenario(
        files={
            "test_x.py": "import pathlib, enum\nclass E(enum.Enum): A = 1\n"
            "def test_x(record_property, record_xml_attribute, record_testsuite_property, caplog):\n"
            "  record_property('p', pathlib.Path('/x')); record_property('e', E.A); record_property('t', (1, 'a'))\n"
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
            "test_f.py": "n = []\ndef test_f():\n  n.append(1)\n  assert len(n) > 2\ndef test_g(): assert 0\n"
        },
        args=("--reruns=2", "-v", "-rR", *XML),
    ),
    "b69_setup_show": Scenario(
        files={
            "test_f.py": "import pytest\n@pytest.fixture(scope='module')\ndef m(): yield 1\n@pytest.fixture(params=[1,2])\ndef p(request): yield 2\ndef test_a(m, p): pass\ndef test_b(m): assert 0\n"
        },
        args=("--setup-show",),
    ),
    "b69_setup_plan": Scenario(
        files={
            "test_f.py": "import pytest\n@pytest.fixture\ndef m(): yield 1\ndef test_a(m): assert 0\n"
        },
        args=("--setup-plan",),
    ),
    "b69_setup_only": Scenario(
        files={
            "test_f.py": "import pytest\n@pytest.fixture\ndef m(): yield 1\ndef test_a(m): assert 0\n"
        },
        args=("--setup-only",),
    ),
    "b69_no_capture": Scenario(
        files={
            "conftest.py": "def pytest_sessionfinish(session): print('finish')\n",
            "test_f.py": "import pytest\n@pytest.fixture\ndef m():\n  print('up')\n  yield 1\n  print('down')\ndef test_a(m): print('a')\ndef test_b(m): print('b'); assert 0\n",
        },
        args=("-s",),
    ),
    "b69_live_log": Scenario(
        files={
            "test_f.py": "import logging, pytest\n@pytest.fixture\ndef m():\n  logging.info('up')\n  yield 1\n  logging.info('down')\ndef test_a(m): logging.warning('a')\ndef test_b(m): logging.info('b'); assert 0\n"
        },
        args=("-v", "--log-cli-level=INFO", "--log-file=mine.log"),
    ),
    "b71_scopes": Scenario(
        files={
            "conftest.py": "import pytest\n@pytest.fixture(scope='session')\ndef s():\n  print('session up')\n  yield\n  print('session down')\n",
            "test_a.py": "import pytest\n@pytest.fixture(scope='module')\ndef m(s):\n  yield\n  raise ValueError('module teardown')\ndef test_1(m): pass\ndef test_2(m): pass\n",
            "test_b.py": "def test_1(s): pass\ndef test_2(s): pass\n",
        },
        args=("-v", "-rA", *XML),
    ),
    "b72_session_params": Scenario(
        files={
            "test_a.py": "import pytest\n@pytest.fixture(scope='session', params=['x', 'y'])\ndef s(request):\n  print('up', request.param)\n  yield request.param\ndef test_1(s): pass\ndef test_2(s): pass\n"
        },
        args=("-v", "-rP"),
    ),
    "b73_package_fixtures": Scenario(
        files={
            "a/__init__.py": "",
            "a/conftest.py": "import pytest\n@pytest.fixture(scope='package')\ndef pk():\n  print('pk up')\n  yield 1\n",
            "a/test_1.py": "def test_1(pk): pass\n",
            "a/b/__init__.py": "",
            "a/b/conftest.py": "import pytest\n@pytest.fixture\ndef pk2(pk): return pk + 1\n",
            "a/b/test_2.py": "def test_2(pk2): assert pk2 == 2\n",
            "a/test_3.py": "def test_3(pk): pass\n",
        },
        args=("-v", "-rP"),
    ),
    "b31_durations": Scenario(files=PASS, args=("--durations=0", "-vv"), differs=("out",)),
    "b51_addopts_n": Scenario(files={**PASS, "pytest.ini": "[pytest]\naddopts = -n0\n"}),
    "b52_addopts_env": Scenario(files=MIXED_FILES, env={"PYTEST_ADDOPTS": "-q -k param"}),
    "b12_internal_error_in_hook": Scenario(
        files={
            **PASS,
            "conftest.py": "def pytest_runtest_logreport(report):\n  if report.when == 'call': raise RuntimeError('hook broke')\n",
        },
        args=XML,
        differs=("out", "junit"),
    ),
}
