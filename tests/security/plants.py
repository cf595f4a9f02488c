"""Secrets for a project of tests: a variable for each, its value, and the way in which it leaks.

A value has no meaning, so that it is nowhere by chance; only the code that reads the variables is
sent, never a value.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass

BODY = "pz\"q7w'{0}kx\\n9 & {1}"  # quotes, a backslash, a blank


def made_up(name: str, length: int = 24) -> str:
    """Return letters and digits that belong to a name."""
    digest = hashlib.sha256(name.encode()).digest() * 8
    text = base64.b64encode(digest).decode()
    return re.sub("[+/=]", "", text)[:length]


@dataclass(frozen=True)
class Plant:
    """One secret: where it is, and what a test does with it."""

    name: str  # of the variable
    value: str
    way: str  # a function of `ways.py`, or a place that the project's code has for it
    part: str = ""  # the part of the value that opens something; "": all of it

    @property
    def needles(self) -> list[str]:
        """Expressions, each of which would be a leak: the secret, or a piece that narrows it."""
        runs = [run for run in re.findall("[A-Za-z0-9]+", self.part or self.value) if len(run) >= 4]
        found = []
        for run in runs:
            size = 8 if len(run) >= 16 else len(run)
            pieces = {run[start : start + size] for start in range(len(run) - size + 1)}
            found += [rf"(?<![A-Za-z0-9.]){run}(?![A-Za-z0-9])"] if size < 8 else sorted(pieces)
        raw = (self.part or self.value).encode()
        if len(raw) >= 16:
            encoded = [base64.b64encode(b"x" * n + raw).decode()[4:-4] for n in range(3)]
            found += [re.escape(text[:12]) for text in encoded] + [raw.hex()[:16]]
        return found


def plain(way: str, suffix: str = "TOKEN") -> Plant:
    name = f"P_{way.upper()}_{suffix}"
    return Plant(name, made_up(name), way)


def hard(way: str) -> Plant:
    name = f"P_HARD_{way.upper()}_SECRET"
    return Plant(name, BODY.format(made_up(name, 16), made_up(f"{name}2", 16)), way)


WAYS = (
    *("print", "stderr", "log", "fail_assert", "fail_compare", "fail_raise", "fail_chained"),
    *("repr", "json_twice", "bytes", "url", "basic", "base64_lines", "hex", "warn", "pprint"),
    *("fail_pprint", "fail_abridged", "fail_long_repr", "skip", "xfail", "fail_plain"),
    *("os_write", "dunder_stdout", "child", "section", "keyword", "chunked_log"),
)
PLACES = (
    *("id", "id_twin", "id_class", "property", "property_name", "suite_property", "xml_attribute"),
    *("artifact", "artifact_name", "artifact_folder", "output", "output_name", "setup", "teardown"),
    *("module", "collection", "deselected", "header", "summary", "crash", "subtest", "cached"),
)
PLANTS = (
    *(plain(way) for way in (*WAYS, *PLACES)),
    *(hard(way) for way in ("print", "repr", "json_twice", "bytes", "pprint", "fail_compare")),
    # Names that no pattern had.
    *(plain("print", suffix) for suffix in ("CREDS", "CREDENTIALS", "COOKIE", "JWT", "PASSCODE")),
    *(plain("fail_assert", suffix) for suffix in ("SESSION", "CERT", "AUTH", "PEPPER")),
    Plant(
        "P_WEBHOOK_URL",
        f"https://hooks.example.com/services/T01/{made_up('hook')}",
        "print",
        made_up("hook"),
    ),
    Plant(
        "P_CONNECTION_STRING",
        f"Server=db;Password={made_up('conn')};X=1",
        "fail_raise",
        made_up("conn"),
    ),
    Plant(
        "P_DATABASE_URL",
        f"postgres://app:{made_up('dburl')}@db.example.com/app",
        "print",
        made_up("dburl"),
    ),
    Plant(
        "P_SENTRY_DSN", f"https://{made_up('dsn')}@o1.ingest.example/42", "print", made_up("dsn")
    ),
    # Words, short values, repeats, a path, several lines.
    Plant("P_WORD_PASSWORD", "wintergrue", "print"),
    Plant("P_SHORT_PASSWORD", "hunt3r2", "fail_assert"),
    Plant("P_REPEAT_TOKEN", "zqzqzqzqzq", "print"),
    Plant("P_PIN", "483921", "print"),
    Plant("P_PATH_KEY", f"/vlt/{made_up('path')}", "fail_raise"),
    Plant("P_LINES_KEY", "\n".join(made_up(f"line{n}", 20) for n in range(4)), "fail_assert"),
    Plant("ANY_CHOICE", "quagmyre", "print"),
    Plant("ANY_SHORT", "kq7v", "fail_assert"),
    Plant("ANY_REPEAT", "vvvvvv", "print"),
    Plant("ANY_NAME", made_up("any"), "fail_long_repr"),
)
ENVIRON = {each.name: each.value for each in PLANTS}
OPTIONS = (
    Plant("--api-token", made_up("--api-token"), "print"),
    Plant("--db-password", "flumm0x", "print"),
)

WAYS_MODULE = """
import base64, json, logging, os, pprint, subprocess, sys, urllib.parse, warnings
import pytest

class Wide:
    def __init__(self, value): self.value = value
    def __repr__(self): return f"<Wide {self.value} {'.' * 300} {self.value}>"

def w_print(v): print("it is", v)
def w_stderr(v): print("it is", v, file=sys.stderr)
def w_log(v): logging.getLogger("app").warning("connected with %s", v)
def w_fail_assert(v): assert v == "", v
def w_fail_compare(v): assert {"token": v, "x": 1} == {"token": "other", "x": 2}
def w_fail_raise(v): raise RuntimeError(f"no access with {v}")
def w_fail_chained(v):
    try: raise KeyError(v)
    except KeyError as problem: raise ValueError(f"bad {v!r}") from problem
def w_repr(v): print(repr(repr({"k": [v]})))
def w_json_twice(v): print(json.dumps({"body": json.dumps({"k": v})}))
def w_bytes(v): print([v.encode()])
def w_url(v): print("https://x.example/?q=" + urllib.parse.quote(v, safe=""))
def w_basic(v): print("Authorization: Basic " + base64.b64encode(f"me:{v}".encode()).decode())
def w_base64_lines(v): print(base64.encodebytes(("x" * 50 + v + "y" * 60).encode()).decode())
def w_hex(v): print(v.encode().hex())
def w_warn(v): warnings.warn("old token " + v)
def w_pprint(v): pprint.pprint({"a": "word " * 13 + v + " word" * 20})
def w_fail_pprint(v): assert ["word " * 13 + v + " word" * 20] == ["word " * 40]
def w_fail_abridged(v): assert {"k": v, "filler": "y" * 400, "z": v} == 1
def w_fail_long_repr(v): assert Wide(v) is None
def w_skip(v): pytest.skip("no " + v)
def w_xfail(v): pytest.xfail("no " + v)
def w_fail_plain(v): pytest.fail("no " + v, pytrace=False)
def w_os_write(v): os.write(1, f"it is {v}\\n".encode())
def w_dunder_stdout(v): print("it is", v, file=sys.__stdout__, flush=True)
def w_child(v): subprocess.run(["echo", v], check=True)
def w_section(v): pass
def w_keyword(v): pass
def w_chunked_log(v): [logging.getLogger("app").error("%d %s", n, v) for n in range(300)]
"""

CONFTEST = """
import os, pytest
E = os.environ

def pytest_addoption(parser):
    parser.addoption("--api-token")
    parser.addoption("--db-password")

def pytest_report_header(): return "header " + E["P_HEADER_TOKEN"]

def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line("summary " + E["P_SUMMARY_TOKEN"])

def pytest_collection_modifyitems(config, items):
    out = [item for item in items if E["P_DESELECTED_TOKEN"] in item.nodeid]
    items[:] = [item for item in items if item not in out]
    config.hook.pytest_deselected(items=out)
    for item in items:
        item.extra_keyword_matches.add(E["P_KEYWORD_TOKEN"])

@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    report.sections.append(("extra", E["P_SECTION_TOKEN"]))
    report.user_properties.append(("every", E["P_KEYWORD_TOKEN"]))
    return report
"""

TESTS = """
import os, pytest, ways
E = os.environ
WAYS = {name: way for name, way in (line.split("=") for line in E["PLANTED"].split())}
print("imported with", E["P_MODULE_TOKEN"])

@pytest.mark.parametrize("name", WAYS)
def test_way(name):
    getattr(ways, "w_" + WAYS[name])(E[name])

@pytest.mark.parametrize("value", [E["P_ID_TOKEN"], E["P_ID_TWIN_TOKEN"]])
def test_id(value): assert value == E["P_ID_TOKEN"]

@pytest.mark.parametrize("value", [E["P_ID_CLASS_TOKEN"]])
class TestClass:
    def test_in_class(self, value): assert 0

@pytest.mark.parametrize("value", [E["P_DESELECTED_TOKEN"]])
def test_left_out(value): pass

def test_properties(record_property, record_xml_attribute, record_testsuite_property):
    record_property("value", E["P_PROPERTY_TOKEN"])
    record_property(E["P_PROPERTY_NAME_TOKEN"], "name")
    record_testsuite_property("suite", E["P_SUITE_PROPERTY_TOKEN"])
    record_xml_attribute("attribute", E["P_XML_ATTRIBUTE_TOKEN"])

def test_files(artifacts):
    (artifacts / "good.txt").write_text("harmless")
    (artifacts / "log.txt").write_text("x\\n" + E["P_ARTIFACT_TOKEN"])
    (artifacts / (E["P_ARTIFACT_NAME_TOKEN"] + ".txt")).write_text("x")
    folder = artifacts / E["P_ARTIFACT_FOLDER_TOKEN"]
    folder.mkdir()
    (folder / "a.txt").write_text("x")
    os.makedirs("results", exist_ok=True)
    open("results/good.txt", "w").write("harmless")
    open("results/bad.txt", "w").write("it is " + E["P_OUTPUT_TOKEN"])
    open(f"results/{E['P_OUTPUT_NAME_TOKEN']}.txt", "w").write("x")

@pytest.fixture
def breaks(): raise RuntimeError("setup " + E["P_SETUP_TOKEN"])
@pytest.fixture
def breaks_later():
    yield
    raise RuntimeError("teardown " + E["P_TEARDOWN_TOKEN"])
def test_setup(breaks): pass
def test_teardown(breaks_later): pass

def test_subtests(subtests):
    with subtests.test(E["P_SUBTEST_TOKEN"], i=E["P_SUBTEST_TOKEN"]):
        assert 0

def test_options(request):
    for option in ("--api-token", "--db-password"):
        print(option, request.config.getoption(option))
    assert request.config.getoption("--api-token") == ""

def test_crash():
    os.write(2, E["P_CRASH_TOKEN"].encode())
    os.abort()
"""
BROKEN = 'import os\nraise RuntimeError("at import " + os.environ["P_COLLECTION_TOKEN"])\n'
