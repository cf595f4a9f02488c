"""A host that answers nonsense: a trouble, and nothing else is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hosts import Fault, garbage
from tests.unit.publish.faults import AGAIN, CHECK_RUN, COMMENTS, NAMES, Place, each_place, publish
from tests.unit.publish.rig import KINDS

READS = [place.read for place in (*COMMENTS, CHECK_RUN)]


@each_place
def test_garbage_where_an_answer_should_be_takes_nothing_with_it(
    place: Place, tmp_path: Path
) -> None:
    """Its status is a success: where no more is needed of it, it was one."""
    result = publish(place, tmp_path, garbage())

    assert set(result.targets) >= set(place.others)
    assert len(result.targets) + len(result.troubles) == len(KINDS[place.kind].targets)


@pytest.mark.parametrize("place", READS, ids=str)
def test_garbage_where_a_list_should_be_is_shown(place: Place, tmp_path: Path) -> None:
    """Nothing is written blindly; and whoever looks into it needs to see what came."""
    result = publish(place, tmp_path, garbage())

    assert result.targets == place.others
    assert (
        f"{NAMES[place.kind]}: the {place.target} was not taken: "
        "it answered 200 with something that is no JSON: " in result.trouble
    )
    assert "whatever this is" in result.trouble
    assert AGAIN in result.trouble


@pytest.mark.parametrize(
    "body",
    [
        "null",
        "[]",
        "{}",
        "[null]",
        '"text"',
        "3",
        '{"values": null}',
        '{"check_runs": null}',
        '{"check_runs": [3]}',
    ],
)
@pytest.mark.parametrize("place", READS, ids=str)
def test_json_of_another_shape_takes_nothing_with_it(
    place: Place, body: str, tmp_path: Path
) -> None:
    """An API changes, or a company's gateway answers for it.

    Nothing at all, or a trouble that says what to do.
    """
    result = publish(
        place,
        tmp_path,
        Fault(code=200, body=body, headers={"Content-Type": "application/json"}, served=False),
    )

    assert [target for target in result.targets if target != place.target] == place.others
    for trouble in result.troubles:
        assert trouble.startswith(f"{NAMES[place.kind]}: the {place.target} ")
        assert "remedy: " in trouble
