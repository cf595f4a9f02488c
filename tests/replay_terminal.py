"""Small projects whose terminal output must be that of a plain run: the behaviours b19 to b40."""

from __future__ import annotations

from tests.replay_files import CONFTEST, MIXED_FILES, PASS, XML
from tests.replay_rig import Scenario

TERMINAL: dict[str, Scenario] = {
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
            "test_w.py": (
                "import warnings\n"
                "warnings.warn('at import')\n"
                "class TestX:\n"
                "  def __init__(self): pass\n"
                "def test(): pass\n"
            ),
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
            "test_s.py": (
                "def test_s(subtests):\n"
                "  for i in range(3):\n"
                "    with subtests.test('m', i=i, k='abc'): assert i != 1\n"
                "def test_ok(subtests):\n"
                "  with subtests.test(): pass\n"
            )
        },
        args=("-v", *XML),
    ),
    "b39_strange_output": Scenario(
        files={
            "test_o.py": (
                "import sys\n"
                "def test_o():\n"
                "  print('x\\x00y\\x1b[31mred\\x1b[0m \\u2603' * 100)\n"
                "  sys.stdout.buffer.write(b'\\xff\\xfe')\n"
                "  assert 0, 'bad \\udc80 surrogate'\n"
            )
        },
        args=("--tb=line", *XML),
        env={"PYTHONIOENCODING": "utf-8:backslashreplace"},
    ),
    "b40_keep_duplicates": Scenario(
        files=PASS, args=("--keep-duplicates", "test_pass.py", "test_pass.py", "-v", *XML)
    ),
    "b31_durations": Scenario(files=PASS, args=("--durations=0", "-vv"), differs=("out",)),
}
