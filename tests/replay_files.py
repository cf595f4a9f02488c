"""Files of small projects, which several scenarios have in common."""

from __future__ import annotations

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
EXIT = (
    "import pytest\n"
    "def test_before(): pass\n"
    "def test_exit(): pytest.exit('bye', 7)\n"
    "def test_after(): pass\n"
)
CONFTEST = """
import pytest
def pytest_addoption(parser):
    parser.addoption("--dev", default="cpu")
    parser.addini("flavour", "of the month", default="plain")
def pytest_report_header(config):
    return ["device: " + config.getoption("--dev"), "flavour: " + config.getini("flavour")]
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
