"""The order of tests, and which of them stay together, on two workers."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.behaviours.bench import Bench
from tests.behaviours.outcome import Outcome
from tests.replay_rig import Scenario


def notices(outcome: Outcome) -> list[str]:
    """Return what was said about the order and the places of tests."""
    return re.findall(r"^gpu-cluster: (?:order|distribute|xdist) +(.*)$", outcome.raw, re.MULTILINE)


# The longest test is the last one: handed out first, it would end the run before the others.
TIMED = """
import time
def test_1(): pass
def test_2(): time.sleep(0.05); assert 0, "two is broken"
def test_3(): pass
def test_4(): time.sleep(0.1)
def test_5(): time.sleep(0.15); assert 0, "five is broken"
def test_6(): time.sleep(0.2)
"""


def test_b80_stepwise_never_skips_what_has_not_passed(bench: Bench) -> None:
    """With the longest first it called a broken test passed, and the run was green."""
    mended = TIMED.replace(' assert 0, "five is broken"', " pass")
    scenario = Scenario(
        files={"test_sw.py": TIMED},
        before=((), ("--sw",)),
        change={"test_sw.py": mended},
        args=("--sw", "-v"),
    )

    ours = bench.same(scenario, workers=2)

    assert ours.code == 2
    assert "test_sw.py::test_2 FAILED" in ours.out
    assert notices(ours) == ["one test at a time, as collected, for --stepwise"]


@pytest.mark.parametrize(
    ("args", "said"), [(("-x",), "-x"), (("--maxfail=2",), "--maxfail=2")], ids=["x", "maxfail"]
)
def test_b80_a_limit_on_failures_stops_where_plain_does(
    bench: Bench, args: tuple[str, ...], said: str
) -> None:
    """The failure that is named has to be the first one, and nothing after it has run."""
    scenario = Scenario(files={"test_x.py": TIMED}, before=((),), args=(*args, "-v"))

    ours = bench.same(scenario, workers=2)

    assert notices(ours) == [
        f'one test at a time, as collected, for {said}; distribute = "test" runs them side by side'
    ]


NOTED = """
import os, time
def note(n):
    with open(os.environ["PYTEST_NOTES"], "a") as file: file.write(f"{n} ")
def test_1(): note(1)
def test_2(): note(2); assert 0
def test_3(): note(3); time.sleep(1)
def test_4(): note(4); assert 0
def test_5(): note(5); time.sleep(1)
"""


@pytest.mark.parametrize(
    ("option", "noted"), [("-x", "1 2 "), ("--sw", "1 2 "), ("--sw-skip", "1 2 3 4 ")]
)
def test_b80_nothing_runs_after_the_last_failure(bench: Bench, option: str, noted: str) -> None:
    """It would run unseen: on rented GPUs, and with effects that nobody expects."""
    notes = bench.beside("notes80")
    notes.unlink(missing_ok=True)

    bench.ours(
        Scenario(files={"test_n.py": NOTED}, args=(option,)), workers=2, PYTEST_NOTES=str(notes)
    )

    assert notes.read_text() == noted


DEMANDS = """
import pytest
class TestA:
    state = []
    def test_1(self): self.state.append(1)
    @pytest.mark.gpu(count=0)
    def test_2(self): pass
"""


def test_b82_tests_of_several_demands_are_said_to_run_apart(bench: Bench) -> None:
    """A process has the devices of its tests, so a class cannot stay together."""
    ours = bench.ours(Scenario(files={"test_d.py": DEMANDS}), workers=2)

    assert ours.code == 0
    assert notices(ours) == [
        "test_d.py::TestA: tests that ask for different devices run in different processes"
    ]


def test_b80_who_distributes_by_name_has_all_workers(bench: Bench) -> None:
    """A setting of the user's own says that the tests may run apart; the order stays."""
    scenario = Scenario(files={"test_x.py": TIMED}, args=("-x",))

    ours = bench.ours(scenario, workers=2, GPU_CLUSTER_DISTRIBUTE="test")

    assert ours.code == 1
    assert notices(ours) == ["handed out as collected, for -x"]


STATE = """
import time
done = []
def test_c(): assert done == ["a", "b"]
def test_a(): time.sleep(0.1); done.append("a")
def test_b(): done.append("b")
"""
SORTING = "def pytest_collection_modifyitems(items): items.sort(key=lambda item: item.name)\n"


def test_b80_a_hook_that_sorts_tests_is_obeyed(bench: Bench) -> None:
    """Who sorts tests may have them build on each other."""
    files = {"conftest.py": SORTING, "test_s.py": STATE}

    ours = bench.same(Scenario(files=files, before=((),), args=("-v",)), workers=2)

    assert ours.code == 0
    assert "a plugin or conftest.py that sorts the tests" in notices(ours)[0]


@pytest.mark.parametrize(
    "marks", [("third", "first", "second"), (3, 1, 2)], ids=["words", "numbers"]
)
def test_b80_pytest_order_is_obeyed(bench: Bench, marks: tuple[object, ...]) -> None:
    """A suite with an order has it because its tests build on each other."""
    source = "import pytest\n" + STATE
    for name, mark in zip("cab", marks, strict=True):
        source = source.replace(
            f"def test_{name}", f"@pytest.mark.order({mark!r})\ndef test_{name}"
        )

    ours = bench.same(Scenario(files={"test_o.py": source}, args=("-v",)), workers=2)

    assert ours.code == 0
    assert "pytest-order" in notices(ours)[0]


def test_b80_tests_of_several_demands_keep_one_order(bench: Bench) -> None:
    """Each demand has a process of its own, and the order binds all of them."""
    source = "import pytest, time\n" + "".join(
        f"@pytest.mark.gpu(count={number % 3})\n"
        f"def test_{number}(): time.sleep({(7 - number) / 50})\n"
        for number in range(7)
    )
    scenario = Scenario(
        files={"test_d.py": source + "def test_end(): assert 0\n"}, before=((),), args=("-x", "-v")
    )

    assert bench.same(scenario, workers=2).code == 1


FIRST = """
import time
def test_a(): time.sleep(0.5)
def test_b(): time.sleep(0.3)
def test_c(): assert 0
"""


def test_b81_what_failed_starts_first(bench: Bench) -> None:
    """`--ff` promises it, however long the other tests are."""
    scenario = Scenario(files={"test_f.py": FIRST}, before=((),), args=("--ff", "-v"))

    ours = bench.ours(scenario, workers=2)

    assert ours.statuses[0].startswith("test_f.py::test_c FAILED")
    assert notices(ours) == ["handed out as collected, for --failed-first"]


CLASSES = """
import os, time, pytest
class TestSteps:
    state = []
    @pytest.mark.parametrize("n", range(4))
    def test_step(self, n):
        time.sleep(0.05)
        assert self.state == list(range(n))
        self.state.append(n)
class TestOther(TestSteps):
    state = []
@pytest.fixture(scope="module")
def model():
    made.append(os.getpid())
    return made
made = []
@pytest.mark.parametrize("n", range(4))
def test_uses(model, n):
    time.sleep(0.05)
    assert len(model) == 1
    model.append(n)
    del model[1:]
def test_last(model):
    assert model is made
"""


def test_b82_what_shares_state_stays_together(bench: Bench) -> None:
    """A suite that passes plainly passes here, cold and with a history."""
    files = {"test_c.py": CLASSES, "test_d.py": CLASSES}

    for before in ((), ((),)):
        assert bench.alike(Scenario(files=files, before=before)).code == 0


def test_b82_a_long_class_is_taken_apart_by_its_history(bench: Bench) -> None:
    """A class that is only a drawer of long tests must not keep one device busy and one idle."""
    source = (
        "import os, time, pytest\nclass TestLong:\n"
        '    @pytest.mark.parametrize("n", range(5))\n'
        "    def test_it(self, n, worker_id): time.sleep(1)\n"
    )
    scenario = Scenario(files={"test_l.py": source}, before=((),))

    ours = bench.ours(scenario, workers=2)

    assert ours.code == 0
    said = "test_l.py::TestLong takes 5 s in one process, and is taken apart"
    assert notices(ours) == [f'{said}; distribute = "file" keeps it whole']


PLACES = """
import os, time, pytest
@pytest.fixture(autouse=True)
def note(request, worker_id):
    yield
    with open(os.environ["PYTEST_NOTES"], "a") as file:
        file.write(f"{request.path.name} {request.node.name} {worker_id}\\n")
def test_0(): time.sleep(0.2)
@pytest.mark.xdist_group("pair")
def test_1(): time.sleep(0.2)
def test_2(): time.sleep(0.2)
@pytest.mark.xdist_group(name="pair")
def test_3(): time.sleep(0.2)
def test_4(): time.sleep(0.2)
"""


def places(
    bench: Bench, scenario: Scenario, *, distribute: str = "auto"
) -> tuple[Outcome, list[list[str]]]:
    """Run on two workers; return the outcome, and file, name and worker of each test."""
    notes = bench.beside("places")
    notes.unlink(missing_ok=True)
    ours = bench.ours(
        scenario, workers=2, PYTEST_NOTES=str(notes), GPU_CLUSTER_DISTRIBUTE=distribute
    )
    assert ours.code == 0, ours.out
    return ours, [line.split() for line in notes.read_text().splitlines()]


@pytest.mark.parametrize(
    ("args", "setting"),
    [(("--dist", "loadfile"), "auto"), ((), "file")],
    ids=["dist", "setting"],
)
def test_b83_a_file_stays_in_one_process(bench: Bench, args: tuple[str, ...], setting: str) -> None:
    """`--dist loadfile` means what it means in pytest-xdist."""
    scenario = Scenario(files={"test_p.py": PLACES, "test_q.py": PLACES}, args=args)

    _, found = places(bench, scenario, distribute=setting)

    files = {(file, worker) for file, _, worker in found}
    assert len(files) == len({worker for _, worker in files}) == 2


def test_b83_a_group_stays_in_one_process(bench: Bench) -> None:
    """The mark means it in pytest-xdist, and is known under --strict-markers without it."""
    scenario = Scenario(files={"test_p.py": PLACES}, args=("-n", "3", "--strict-markers"))

    ours, found = places(bench, scenario)

    workers = {name: worker for _, name, worker in found}
    assert workers["test_1"] == workers["test_3"]
    assert notices(ours) == ["-n 3: no effect here: the number of processes follows the devices"]


DEPENDENT = """
import time, pytest
@pytest.mark.dependency
def test_a(): time.sleep(0.2)
@pytest.mark.dependency(depends=["test_a"])
def test_b(): time.sleep(0.2)
@pytest.mark.dependency(depends=["test_b"])
def test_c(): time.sleep(0.2)
"""


def test_b83_pytest_dependency_finds_what_a_test_depends_on(bench: Bench) -> None:
    """It knows only the outcomes of its own process, and would skip what it does not know."""
    scenario = Scenario(files={"test_p.py": DEPENDENT, "test_q.py": DEPENDENT}, before=((),))

    assert bench.alike(scenario).code == 0


HEAD = """
import time, pytest
@pytest.fixture(scope="module")
def shared():
    return []
"""
STEPS = {
    "pass": "def test_{n}({s}): time.sleep({t})\n",
    "fail": "def test_{n}({s}): time.sleep({t}); assert 0\n",
    "skip": "@pytest.mark.skip\ndef test_{n}({s}): pass\n",
    "error": "def test_{n}({s}{c}nowhere): pass\n",
}


@st.composite
def suites(draw: st.DrawFn) -> dict[str, str]:
    """Files with failures here and there, whose other tests build on those before them."""
    kinds, seconds = st.sampled_from([*STEPS]), st.sampled_from([0, 0.02, 0.1])
    files: dict[str, str] = {}
    for name in draw(st.sampled_from(["a", "ab", "abc"])):
        parts = [HEAD]
        for number in range(draw(st.integers(0, 3))):
            text = STEPS[draw(kinds)]
            parts.append(text.format(n=f"f{number}", s="", c="", t=draw(seconds)))
        count = draw(st.integers(0, 3))
        broken = draw(st.integers(0, 5))  # the number of a step that fails; more of them: none
        for number in range(count):
            wrong = " + 1" if number == broken else ""
            parts.append(
                f"def test_m{number}(shared):\n    time.sleep({draw(seconds)})\n"
                f"    shared.append(1)\n    assert len(shared) == {number + 1}{wrong}\n"
            )
        steps = draw(st.integers(0, 3))
        parts.append("class TestSteps:\n    done = []\n")
        for number in range(steps):
            parts.append(
                f"    def test_s{number}(self):\n        time.sleep({draw(seconds)})\n"
                f"        self.done.append(1)\n        assert len(self.done) == {number + 1}\n"
            )
        files[f"test_{name}.py"] = "".join(parts)
    return files


OPTIONS = [
    (),
    ("-x",),
    ("--maxfail=2",),
    ("--lf",),
    ("--ff",),
    ("--nf",),
    ("--sw",),
    ("--sw-skip",),
]


@pytest.mark.parametrize("examples", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_b84_any_suite_ends_as_in_plain_pytest(bench: Bench, examples: int) -> None:
    """Twice in a row, since what a run remembers decides what the next one runs."""

    @settings(max_examples=examples, deadline=None)
    @given(files=suites(), first=st.sampled_from(OPTIONS), second=st.sampled_from(OPTIONS))
    def agrees(files: dict[str, str], first: tuple[str, ...], second: tuple[str, ...]) -> None:
        scenario = Scenario(files=files, before=(first,), args=second)

        plain, ours = bench.plain(scenario, "-v"), bench.ours(scenario, "-v", workers=2)

        assert (ours.code, ours.lines, ours.counts) == (plain.code, plain.lines, plain.counts)
        assert ours.cache == plain.cache

    agrees()
