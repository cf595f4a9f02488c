"""Suites of which sessions are made that CI hosts get, by the kind of their end."""

from __future__ import annotations

from dataclasses import dataclass

COMMIT = "c0ffee" + "0" * 34


GREEN = "def test_a(): pass\n\ndef test_b(): pass\n"


FAILURES = """
import pytest

def test_passes():
    pass

def test_fails():
    print("loss is", 0.5)
    assert {"loss": 0.5} == {"loss": 0.25}

@pytest.fixture
def broken():
    yield
    raise RuntimeError("the fixture leaves something behind")

def test_fails_twice(broken):
    assert 0, "first"

def test_setup(nowhere):
    pass

@pytest.mark.skip(reason="needs two nodes")
def test_skipped():
    pass
"""


MANY = """
import pytest

@pytest.mark.parametrize("i", range(3000))
def test_many(i):
    pytest.fail(f"number {i} is too big", pytrace=False)
"""


ODD = """
import pytest

@pytest.mark.parametrize("text", ["zażółć \U0001f600", "\\x00\\x1b[31m", "a|b`c`<b>", \
"::error::no", "@everyone [x](http://evil.example)"])
def test_odd(text):
    print(text)
    assert text == "", text
"""


SECRETS = """
import os, pytest

def test_leaks(record_property):
    secret = os.environ["GPU_TESTS_API_TOKEN"]
    record_property("secret", secret)
    print(secret)
    assert secret == "", secret

def test_skips():
    pytest.skip("because of " + os.environ["GPU_TESTS_API_TOKEN"])
"""


SLOW = "import time\n\ndef test_quick(): pass\n\ndef test_slow():\n    time.sleep(60)\n"


SECRET = "q7!Zk-very-secret-91"


REFUSING = """
from pytest_gpu_cluster.contract import errors
from pytest_gpu_cluster.providers.local import LocalProvider

class Capacity(LocalProvider):
    name = "refusing:Capacity"
    def launch(self, plan, boot, tell):
        raise errors.CapacityError(
            "EC2 refused 1 x g6.xlarge in us-east-1a and us-east-1b: InsufficientInstanceCapacity",
            remedy="add instance types, or raise capacity-wait-s",
        )

class Environment(LocalProvider):
    name = "refusing:Environment"
    def launch(self, plan, boot, tell):
        raise errors.EnvironmentBuildError(
            "pip could not install torch==9.9: no such version",
            remedy="correct [tool.gpu-cluster.environment]",
        )

class Infrastructure(LocalProvider):
    name = "refusing:Infrastructure"
    def launch(self, plan, boot, tell):
        raise errors.InfrastructureError(
            "the head node left before Ray had started", remedy="run again"
        )
"""


@dataclass(frozen=True)
class Scene:
    """A session to be told of."""

    tests: str
    provider: str = ""
    exitstatus: int = 1
    kill: bool = False
    fork: bool = False
    args: tuple[str, ...] = ()


SCENES = {
    "green": Scene(GREEN, exitstatus=0),
    "failures": Scene(FAILURES),
    "infrastructure": Scene(GREEN, provider="refusing:Infrastructure", exitstatus=10),
    "environment": Scene(GREEN, provider="refusing:Environment", exitstatus=11),
    "capacity": Scene(GREEN, provider="refusing:Capacity", exitstatus=12),
    "cancelled": Scene(SLOW, kill=True, exitstatus=2),
    "3000_failures": Scene(
        MANY, args=("--no-summary",)
    ),  # pytest's own takes time by the square of their number
    "unicode": Scene(ODD),
    "secrets": Scene(SECRETS),
    "fork": Scene(FAILURES, fork=True),
}
