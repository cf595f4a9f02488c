"""Nouns of the contract: each arrives as it was sent, and a wrong one is named."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import (
    Literal,
    NotRequired,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_gpu_cluster.contract.events import EVENTS, Event, Message, Output, SessionFinished
from pytest_gpu_cluster.contract.failures import FailureClass
from pytest_gpu_cluster.contract.fields import FieldError, Noun, alias
from pytest_gpu_cluster.contract.messages import (
    MESSAGES,
    Finished,
    RunTests,
    StopRunning,
    TestOrder,
    decode,
    encode,
)
from pytest_gpu_cluster.contract.records import Location
from pytest_gpu_cluster.contract.request import SessionRequest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
PLAIN: Mapping[object, st.SearchStrategy[object]] = {
    str: st.text(max_size=5),
    int: st.integers(),
    bool: st.booleans(),
    float: st.floats(allow_nan=False, allow_infinity=False),
    object: JSON,
}


def values(hint: object) -> st.SearchStrategy[object]:
    """Return a strategy for the values of a field's type."""
    origin, args = get_origin(hint), get_args(hint)
    if hint == Location:
        return st.tuples(st.text(max_size=5), st.none() | st.integers(), st.just("t")).map(list)
    if hint in PLAIN:
        return PLAIN[hint]
    if hint is types.NoneType:
        return st.none()
    if origin is Literal:
        return st.sampled_from(args)
    if origin in (Union, types.UnionType):
        return st.one_of(*map(values, args))
    if origin is tuple:
        if args[-1] is Ellipsis:
            return st.lists(values(args[0]), max_size=2).map(tuple)
        return st.tuples(*map(values, args))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return st.dictionaries(values(args[0]), values(args[1]), max_size=2)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return st.lists(values(args[0]), max_size=2)
    return instances(cast(type, hint))


def instances(kind: type) -> st.SearchStrategy[object]:
    """Return a strategy for the values of a class."""
    if is_typeddict(kind):
        hints, marked = get_type_hints(kind), get_type_hints(kind, include_extras=True)
        may = {name for name in hints if get_origin(marked[name]) is NotRequired}
        of = {name: values(hint) for name, hint in hints.items()}
        return st.fixed_dictionaries(
            {name: of[name] for name in hints if name not in may},
            optional={name: of[name] for name in sorted(may)},
        )
    if issubclass(kind, Enum):
        return st.sampled_from(list(kind))
    return nouns(kind)


def nouns(kind: type) -> st.SearchStrategy[Noun]:
    """Return a strategy for nouns of a class, made of its fields."""
    hints = get_type_hints(kind)
    names = [each.name for each in dataclasses.fields(kind) if "outside" not in each.metadata]
    drawn = {name: values(hints[name]) for name in names}
    if kind is SessionRequest:  # refuses a place that leads out
        drawn["root_name"] = st.sampled_from(["project", "a/project", "ä b"])
    return st.builds(kind, **drawn)


@pytest.mark.parametrize("kind", MESSAGES.values(), ids=lambda kind: kind.__name__)
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_message_arrives_as_it_was_sent(kind: type[Message], data: st.DataObject) -> None:
    """What one process says is all that the other knows."""
    message = data.draw(nouns(kind))
    assert isinstance(message, Message)

    line = encode(message)

    assert line.count(b"\n") == 1
    assert decode(line) == normal(message)


def normal(message: Message) -> Message:
    """Return the message with lists where a field may be any sequence, as JSON has them."""
    changes = {
        each.name: list(value)
        for each in dataclasses.fields(message)  # type: ignore[arg-type]  # each is a dataclass
        if each.default == () and get_origin(get_type_hints(type(message))[each.name]) is not tuple
        for value in [getattr(message, each.name)]
        if value
    }
    return dataclasses.replace(message, **changes)  # type: ignore[type-var]  # each is a dataclass


@pytest.mark.parametrize("kind", EVENTS.values(), ids=lambda kind: kind.__name__)
@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_an_event_comes_out_of_the_journal_with_its_place(
    kind: type[Event], data: st.DataObject
) -> None:
    """The reader checks for gaps by `seq` and `writer`, which no writer of an event fills in."""
    event = data.draw(nouns(kind))
    assert isinstance(event, Event)
    entry = {**event.to_message(), "v": 1, "seq": 4, "writer": "agent", "t": 1.5}

    read = Event.of(json.loads(json.dumps(entry)))

    assert (read.kind, read.seq, read.writer, read.t) == (kind.kind, 4, "agent", 1.5)
    assert read.to_json() == event.to_json()


def test_a_default_is_left_out() -> None:
    """A thousand tests are ten thousand lines: what the reader knows anyway need not travel."""
    finished = Finished(nodeid="a.py::t", attempt=0, records=[], duration_s=0.5)

    assert finished.to_message() == {
        "kind": "finished",
        "nodeid": "a.py::t",
        "attempt": 0,
        "records": [],
        "duration_s": 0.5,
    }
    assert StopRunning().to_message() == {"kind": "stop"}


def test_an_enum_is_its_value_and_an_alias_its_key() -> None:
    """Pipelines read the record: its words may not follow a rename in Python."""
    event = SessionFinished(pytest_status=1, failure_class=FailureClass.LIMIT)

    assert json.loads(encode(event)) == {
        "kind": "session_finished",
        "exitstatus": 1,
        "failure_class": "limit",
    }


CLASSES = "test, crash, timeout, request, infrastructure, environment, capacity, limit, teardown"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"kind": "weather"}', "a message of unknown kind: 'weather'"),
        ("{}", "a message of unknown kind: None"),
        ("[]", "a message of unknown kind: None"),
        ('{"kind": "ready", "soon": 1}', "Ready: unknown key 'soon'"),
        ('{"kind": "started", "nodeid": "a"}', "Started: missing key 'attempt'"),
        (
            '{"kind": "started", "nodeid": 1, "attempt": 0}',
            "Started.nodeid: expected a text, got 1",
        ),
        (
            '{"kind": "started", "nodeid": "a", "attempt": true}',
            "Started.attempt: expected a whole number, got True",
        ),
        (
            '{"kind": "exit", "status": null, "ordered": 0}',
            "Exit.ordered: expected true or false, got 0",
        ),
        ('{"kind": "run", "tests": {}}', "RunTests.tests: expected a list, got {}"),
        (
            '{"kind": "run", "tests": [{"nodeid": "a", "times": 2}]}',
            "RunTests.tests: TestOrder: unknown key 'times'",
        ),
        (
            '{"kind": "session_finished", "failure_class": "bad luck"}',
            f"SessionFinished.failure_class: expected one of {CLASSES}, got 'bad luck'",
        ),
    ],
)
def test_a_wrong_message_is_named(line: str, message: str) -> None:
    """The two sides ship together: a difference is a bug, and is best found at the door."""
    with pytest.raises(FieldError) as error:
        decode(line)

    assert str(error.value) == message


def test_an_order_names_several_tests_of_one_node_id() -> None:
    """Two tests may have the same node id; a test outside the tree is found by its argument."""
    order = TestOrder(nodeid="a.py::t", occurrence=1, outside=("pkg", "/x/a.py"), attempt=2)

    assert decode(encode(RunTests(tests=(order,), last=True))) == RunTests(
        tests=(order,), last=True
    )


def test_an_unknown_event_is_an_error_with_its_name() -> None:
    """Silence about something new is how results get lost."""
    with pytest.raises(FieldError, match="'weather'"):
        Event.of({"v": 1, "kind": "weather"})
    with pytest.raises(FieldError, match="version 2"):
        Event.of({"v": 2, "kind": "output"})
    with pytest.raises(FieldError, match="Output: missing key 'text'"):
        Event.of({"v": 1, "kind": "output", "via": "out"})


def test_an_event_keeps_what_is_not_its_envelope() -> None:
    """The envelope is for order and display; the fields are the event."""
    entry = {"v": 1, "seq": 4, "t": 1.5, "writer": "agent", "kind": "output"}
    event = Event.of({**entry, "text": "hi", "via": "out"})

    assert event == Output(text="hi", via="out", seq=4, writer="agent", t=1.5)
    assert event.to_json() == {"text": "hi", "via": "out"}


@dataclass(frozen=True, kw_only=True)
class Sample(Noun):
    """A noun that is written in full: unlike a message it is not sparse."""

    code: int | None = field(default=None, metadata=alias("exitstatus"))
    share: float = 0.0
    names: tuple[str, ...] = ()


def test_a_stored_noun_has_all_its_keys() -> None:
    """A person who reads the record sees each field, and a whole number is a number too."""
    assert Sample().to_json() == {"exitstatus": None, "share": 0.0, "names": []}
    assert Sample.from_json({"exitstatus": 3, "share": 1}) == Sample(code=3, share=1.0)
    with pytest.raises(FieldError, match="Sample: unknown key 'code'"):
        Sample.from_json({"code": 3})
    with pytest.raises(FieldError, match=r"Sample: expected an object, got 'x+…"):
        Sample.from_json("x" * 200)
