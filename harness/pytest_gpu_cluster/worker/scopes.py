"""Which collected tests belong together, and what binds their order: facts for the agent's plan."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import pytest
from _pytest.fixtures import reorder_items

from pytest_gpu_cluster.contract.output_options import given
from pytest_gpu_cluster.contract.selection import Distribution, Ordering
from pytest_gpu_cluster.worker.benchmarks import is_measured

# Values of --dist of pytest-xdist, and what they mean here.
XDIST = {
    "load": Distribution.TEST,
    "worksteal": Distribution.TEST,
    "loadscope": Distribution.MODULE,
    "loadfile": Distribution.FILE,
    "loadgroup": Distribution.GROUP,
}
# Plugins that run tests in the order of a mark, by the mark: the names for people and for pytest.
ORDERING_MARKS = {
    "order": ("pytest-order", "pytest_order"),
    "run": ("pytest-ordering", "pytest_ordering"),
}


def distribution(setting: Distribution, config: pytest.Config) -> Distribution:
    """Return what holds: `--dist` of the command line, else the setting."""
    typed = "load" if getattr(config.option, "distload", False) else _dist(config)
    return XDIST.get(typed, setting)


def unused_options(config: pytest.Config) -> tuple[str, ...]:
    """Return the options of pytest-xdist that have no effect here."""
    option = config.option
    number = getattr(option, "numprocesses", None)
    options = [f"-n {number}"] if number is not None else []
    options += [f"--dist {name}" for name in (_dist(config),) if name not in (*XDIST, "no")]
    return tuple(options)


def _dist(config: pytest.Config) -> str:
    return str(getattr(config.option, "dist", "no"))


class Scopes:
    """Names the scope of each test: those of one scope run in one process, in their order."""

    def __init__(self, items: Sequence[pytest.Item], how: Distribution) -> None:
        self.how = how
        watched = items if how is Distribution.AUTO else ()
        # Classes with a test that shares a fixture of its module, and files with dependent tests.
        self._sharing = {_class(item) for item in watched if _shares_fixture(item)} - {""}
        self._dependent = {_file(item) for item in watched if _is_dependent(item)}

    def of(self, item: pytest.Item) -> str:
        """Return the name of a test's scope; "" for a test that is alone."""
        group = _group(item)
        match self.how:
            case Distribution.AUTO:
                return group or self._automatic(item)
            case Distribution.GROUP:
                return group
            case Distribution.FILE:
                return _file(item)
            case Distribution.CLASS:
                return _class(item)
            case Distribution.MODULE:
                return _class(item) or _file(item)
            case Distribution.TEST:
                return ""

    @property
    def automatic(self) -> bool:
        """True where the user has not said which tests stay together."""
        return self.how is Distribution.AUTO

    def are_torn(self, items: Sequence[pytest.Item]) -> bool:
        """Return True when tests of another scope stand between those of one."""
        runs = [name for name, _ in groupby(map(self.of, items)) if name]
        return len(runs) > len(set(runs))

    def _automatic(self, item: pytest.Item) -> str:
        of_file = _class(item) in self._sharing or _file(item) in self._dependent
        return _file(item) if of_file or _shares_fixture(item) else _class(item)

    def row(self, item: pytest.Item) -> dict[str, str | bool]:
        """Return the keys `scope` and `bound` of a test's row, where they are not the default."""
        name = self.of(item)
        bound = bool(_group(item)) or _file(item) in self._dependent
        return {} if not name else {"scope": name, "bound": True} if bound else {"scope": name}


def _class(item: pytest.Item) -> str:
    """Return the outermost class of a test; "" for a function."""
    found, node = "", item.parent
    while node is not None and not isinstance(node, pytest.File):
        found = node.nodeid if isinstance(node, pytest.Class) else found
        node = node.parent
    return found


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def _group(item: pytest.Item) -> str:
    """Return the name that pytest-xdist gives the group of a test; "" without the mark."""
    if not has_mark(item, "xdist_group"):
        return ""
    names = {
        str(mark.args[0] if mark.args else mark.kwargs.get("name", "default"))
        for mark in item.iter_markers("xdist_group")
    }
    return f"group {'_'.join(sorted(names))}"


def has_mark(item: pytest.Item, name: str) -> bool:
    """Return True for a test with this mark. Most have none, and keywords are looked up at once."""
    return name in item.keywords and item.get_closest_marker(name) is not None


def _is_dependent(item: pytest.Item) -> bool:
    """Return True for a test with pytest-dependency's mark, or whose module has its `depends`."""
    if has_mark(item, "dependency"):
        return True
    depends = getattr(getattr(item, "module", None), "depends", None)
    return getattr(depends, "__module__", None) == "pytest_dependency"


def _shares_fixture(item: pytest.Item) -> bool:
    """Return True for a test with a fixture that lives longer than its class."""
    found = getattr(item, "_fixtureinfo", None)  # private; absent: not a function
    definitions = found.name2fixturedefs.values() if found is not None else ()
    return any(each[-1].scope == "module" for each in definitions if each)


def ordering(
    config: pytest.Config, items: Sequence[pytest.Item], *, reordered: bool, scopes: Scopes
) -> tuple[Ordering, str]:
    """Return how far the order binds, and what binds it, for people.

    One process runs all tests where the order has a meaning, or tears a scope: its fixtures would
    end in between. A user who distributes tests by name has them on all slots, but for stepwise,
    where what it skips next time must have passed, and for plugins whose processes would write over
    each other's files.
    """
    if fixed := fixed_reason(config):
        return Ordering.SERIAL, fixed
    serial = _serial_reason(config, items)
    kept = _kept_reason(config)
    if serial or (reordered and not kept):
        reason = serial or "a plugin or conftest.py that sorts the tests"
        return (Ordering.SERIAL if scopes.automatic else Ordering.KEPT), reason
    if not kept:
        return Ordering.FREE, ""
    torn = scopes.automatic and scopes.are_torn(items)
    return (Ordering.SERIAL if torn else Ordering.KEPT), kept


def fixed_reason(config: pytest.Config) -> str:
    """Return the option that wants one process whatever the user distributes; "" without any."""
    option = config.option
    if getattr(option, "stepwise", False) or getattr(option, "stepwise_skip", False):
        return "--stepwise"
    return next((each.name for each in given(vars(option)) if each.one_process), "")


def _serial_reason(config: pytest.Config, items: Sequence[pytest.Item]) -> str:
    if limit := config.option.maxfail:
        return "-x" if limit == 1 else f"--maxfail={limit}"
    if is_measured(config, items):
        return "pytest-benchmark"
    for mark, (name, plugin) in ORDERING_MARKS.items():
        if config.pluginmanager.hasplugin(plugin) and any(has_mark(item, mark) for item in items):
            return name
    dependent = (item for item in items if has_mark(item, "dependency"))
    far = ("session", "package")
    if any(m.kwargs.get("scope") in far for i in dependent for m in i.iter_markers("dependency")):
        return "pytest-dependency"
    return ""


def _kept_reason(config: pytest.Config) -> str:
    option = config.option
    if getattr(option, "failedfirst", False):
        return "--failed-first"
    if getattr(option, "newfirst", False):
        return "--new-first"
    if getattr(option, "randomly_reorganize", False):
        return "pytest-randomly"
    return ""


def is_reordered(before: Sequence[pytest.Item], after: Sequence[pytest.Item]) -> bool:
    """Return True when the tests stand in another order than pytest itself would give them.

    `before` are the tests as collected. pytest brings those together that share a parametrised
    fixture of a higher scope.
    """
    places = {id(item): place for place, item in enumerate(before)}
    order = [places[id(item)] for item in after if id(item) in places]
    if order == sorted(order):
        return False
    left = {id(item) for item in after}
    for natural in (reorder_items([i for i in before if id(i) in left]), reorder_items(before)):
        if [places[id(item)] for item in natural if id(item) in left] == order:
            return False
    return True
