"""Ids of tests that hold a secret: nobody reads it, and no test is taken for another."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from pytest_gpu_cluster.agent.masking import JournalMask
from pytest_gpu_cluster.contract.events import Collected, CollectorFinished, TestStarted
from pytest_gpu_cluster.contract.masked_ids import MaskedFailures, MaskedIds, real_id
from pytest_gpu_cluster.contract.masking import Masker, masker
from pytest_gpu_cluster.contract.records import ItemRow, ReportData

ALICE, BOB = "q7Zk-alice-token", "q7Zk-bobby-token"


def mask_of_two() -> Masker:
    return masker({"ALICE_TOKEN": ALICE, "BOB_TOKEN": BOB})


def item(nodeid: str, place: str) -> ItemRow:
    name = nodeid.rpartition("::")[2]
    location: list[str | int | None] = ["t.py", 1, place]
    return ItemRow(
        nodeid=nodeid, name=name, parent=0, location=location, outside=None, gpu=None, ray=None
    )


def test_tests_that_differ_in_a_secret_stay_two_tests() -> None:
    """JUnit readers, --lf and the history know a test by its id, and drop the second of a name."""
    mask = JournalMask(mask_of_two())
    ids = [f"t.py::TestIt::test_x[{value}]" for value in (ALICE, BOB)]
    names = [nodeid.rpartition("::")[2] for nodeid in ids]
    report: ReportData = {"nodeid": "t.py::TestIt", "outcome": "passed", "longrepr": None}
    kids = tuple((True, nodeid, name) for nodeid, name in zip(ids, names, strict=True))
    rows = [item(nodeid, f"TestIt.{name}") for nodeid, name in zip(ids, names, strict=True)]

    mask(CollectorFinished(report=report, kids=kids))
    masked = Collected.from_json(mask(Collected(items=rows[::-1], collectors=[], parts=[])))
    second = mask(TestStarted(nodeid=ids[1], worker="gw0", attempt=0))

    assert [row["nodeid"] for row in masked.items] == [
        "t.py::TestIt::test_x[***-2]",
        "t.py::TestIt::test_x[***]",
    ]
    assert masked.items[0]["location"] == ["t.py", 1, "TestIt.test_x[***-2]"]
    assert second["nodeid"] == "t.py::TestIt::test_x[***-2]"
    assert mask.by_masked_id({ids[1]: 2.0}) == {"t.py::TestIt::test_x[***-2]": 2.0}
    assert mask.by_real_id({"t.py::TestIt::test_x[***-2]": 2.0})[ids[1]] == 2.0


@given(st.lists(st.sampled_from([ALICE, BOB, "plain", f"{ALICE}-{BOB}", "***"]), unique=True))
def test_masked_ids_are_as_many_as_real_ones(values: Sequence[str]) -> None:
    """Whatever the secrets are, no result is taken for another's."""
    ids = MaskedIds(mask_of_two())
    nodeids = [f"d/t.py::test_x[{value}]" for value in values]
    for nodeid in nodeids:
        ids.add(nodeid, nodeid.rpartition("::")[2])

    shown = [ids.of(nodeid) for nodeid in nodeids]

    assert len(set(shown)) == len(values)
    assert not [nodeid for nodeid in shown if ALICE in nodeid or BOB in nodeid]


def test_a_failure_is_remembered_by_its_masked_id_and_found_by_the_real_one() -> None:
    """--lf that finds nothing would call a broken test mended."""
    failures = MaskedFailures({"t.py::a": True, "t.py::test_x[***-2]": True}, mask_of_two())
    tests = [(f"t.py::test_x[{value}]", f"test_x[{value}]") for value in (ALICE, BOB)]

    assert [nodeid in failures for nodeid, _ in tests] == [True, True]
    assert ("t.py::a" in failures, "t.py::b" in failures) == (True, False)
    assert real_id("t.py::test_x[***-2]", tests, mask_of_two()) == tests[1][0]
    assert real_id("t.py::gone", tests, mask_of_two()) == "t.py::gone"
