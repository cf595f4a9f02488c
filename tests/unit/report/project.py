"""The project of the real run whose events the tests report, and the secrets that it prints."""

from __future__ import annotations

import base64

from tests.replay_scenarios import MIXED_FILES

TOKEN = "q7-Zk_very.secret/91+a=="
SPLIT = "Vb3xE8wLr5Tn2Yc6Gd9Hk4Mp7Qs1Uz0J"
BODY = base64.b64encode(bytes((i * 167 + i * i * 29) % 256 for i in range(600))).decode()
PEM_LINES = [BODY[start : start + 64] for start in range(0, len(BODY), 64)]
PEM = "\n".join(
    [f"-----BEGIN {'PRIVATE'} KEY-----", *PEM_LINES, f"-----END {'PRIVATE'} KEY-----", ""]
)
ANOTHER = base64.b64encode(bytes((i * 91 + i * i * 13 + 5) % 256 for i in range(600))).decode()
ENVIRON = {"SERVICE_TOKEN": TOKEN, "SPLIT_TOKEN": SPLIT, "SIGNING_PRIVATE_KEY": PEM}
SUBTESTS = """
def test_subtests(subtests):
    for i in range(3):
        with subtests.test("m", i=i):
            assert i != 1
    with subtests.test("another"):
        raise ValueError("in another")

def test_good_subtests(subtests):
    with subtests.test():
        pass

def test_like_subtests(subtests):
    for i in range(2):
        with subtests.test("same"):
            assert 0
"""
ASIDE = """
import pytest

def test_skips_one(subtests):
    with subtests.test("here"):
        pass
    with subtests.test("not here"):
        pytest.skip("not in this subtest")

def test_expects_one(subtests):
    with subtests.test("here"):
        pass
    with subtests.test("known"):
        pytest.xfail("known in this subtest")

def test_fails_itself(subtests):
    with subtests.test("m"):
        assert 0
    pytest.fail("contains multitudes", pytrace=False)
"""
IDS = """
import pytest

class TestIds:
    @staticmethod
    def check(value):
        assert "/" not in value

    @pytest.mark.parametrize(
        "value",
        [
            *("a::b", "c/d", '"q"', "it's", "zażółć ☃ 🙂", "<&>]]>", "a[b]c", "x.py::TestY::z"),
            *("", "a b", "a\\nb", "\\x1b[31m\\x00", "c\\\\d/"),
        ],
    )
    def test_id(self, value):
        self.check(value)
"""
MORE = """
import os, unittest, pytest

@pytest.fixture
def breaks_later():
    yield
    raise RuntimeError("later")

def test_skips_then_breaks(breaks_later): pytest.skip("skipped first")

def test_expected_in_words(): pytest.xfail("said inside")

def test_property(record_property):
    record_property("loss", 0.25)
    record_property("pfad", "/data/ü<&>")

class TestOuter:
    class TestInner:
        @pytest.mark.filterwarnings("ignore")
        @pytest.mark.parametrize("n", [1, 2])
        def test_deep(self, n): assert n == 1

class TestCase(unittest.TestCase):
    def test_it(self): self.assertEqual(1, 2)
    @unittest.expectedFailure
    def test_expected(self): self.fail("known")
    @unittest.skip("by unittest")
    def test_skipped(self): pass

def test_long():
    print("a line of output, which is not short\\n" * 2000)
    raise ValueError("the cause" + " and more" * 400)

async def test_async(): pass
"""
LEAKS = """
import logging, os, sys, pytest

TOKEN, KEY = (os.environ[name] for name in ("SERVICE_TOKEN", "SIGNING_PRIVATE_KEY"))

@pytest.mark.parametrize("value", [TOKEN, KEY])
def test_in_an_id(value): assert 0

def test_in_a_property(record_property):
    record_property("token", TOKEN)
    record_property("key", KEY)

def test_in_output():
    print(TOKEN)
    print(KEY, file=sys.stderr)
    logging.warning("with %s", TOKEN)
    assert 0

def test_in_a_traceback():
    value = TOKEN
    assert value == "x", f"{value} is not x, nor is {KEY}"

def test_in_a_skip(): pytest.skip(f"because of {TOKEN}")

def test_in_a_reason(): pytest.xfail(f"because of {TOKEN}")

def test_in_a_subtest(subtests):
    with subtests.test(TOKEN, key=TOKEN):
        assert 0
"""
SPLITS = """
import os

def test_where_output_is_cut():
    print("x" * 4989 + os.environ["SPLIT_TOKEN"] + "y" * 20_000)
    assert 0
"""
ABRIDGED = """
import os, pytest

@pytest.fixture
def key(): return os.environ["SIGNING_PRIVATE_KEY"]

def test_key(key): assert not key
"""
FILES = {
    **MIXED_FILES,
    "pytest.ini": "[pytest]\n"
    "disable_test_id_escaping_and_forfeit_all_rights_to_community_support = true\n",
    "test_subtests.py": SUBTESTS,
    "test_aside.py": ASIDE,
    "test_broken.py": "import nowhere\n",
    "pkg/test_whole.py": "import pytest\n"
    "pytest.skip('nothing of this here', allow_module_level=True)\n",
    "test_more.py": MORE,
    "test_ids.py": IDS,
    "test_crash.py": "import os\ndef test_before(): pass\n"
    "def test_dies():\n  print('last words')\n  os._exit(3)\ndef test_after(): pass\n",
    "test_flaky.py": "import pytest\nruns = []\n"
    "@pytest.mark.flaky(reruns=2)\ndef test_flaky():\n  runs.append(1)\n  assert len(runs) > 2\n"
    "@pytest.mark.flaky(reruns=1)\ndef test_hopeless(): assert 0\n",
    "lib/__init__.py": "",
    "lib/test_same.py": "\n\ndef check(): assert 0\n",
    "test_same.py": "from lib.test_same import check\n\n\n\n\n"
    "def test_same():\n  print(__file__)\n  check()\n",
    "test_leaks.py": LEAKS,
    "test_splits.py": SPLITS,
    "test_abridged.py": ABRIDGED,
}
