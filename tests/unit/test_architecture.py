"""docs/architecture.md and the roads of CONTRIBUTING.md hold: each is compared with the code."""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import MISSING
from pathlib import Path

import pytest

from pytest_gpu_cluster import providers, publish
from pytest_gpu_cluster.contract.events import EVENTS, Message
from pytest_gpu_cluster.contract.messages import MESSAGES, AgentFinished
from pytest_gpu_cluster.contract.settings import Settings
from pytest_gpu_cluster.report import sinks
from tests.unit.publish.test_outside_host import ACME, BUILD
from tests.unit.test_imports import ARROWS, room
from tests.unit.test_sinks import CHAT

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = [*sorted((ROOT / "docs").glob("*.md")), CONTRIBUTING]
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
PACKAGE = ROOT / "harness" / "pytest_gpu_cluster"

# Each writer of the table of messages, and the code that it is.
WRITERS = {
    "client": ("session.py",),
    "agent": ("agent",),
    "keeper": ("node/session.py",),
    "guard": ("node/guard.py",),
    "lease": ("node/lease.py",),
    "worker": ("worker",),
}


def section(page: Path, heading: str) -> str:
    """Return the text below a heading of the second level."""
    text = f"\n{page.read_text('utf-8')}"
    assert f"\n## {heading}\n" in text, f"{page.name} has no section {heading}"
    return text.split(f"\n## {heading}\n")[1].split("\n## ", maxsplit=1)[0]


def rows(text: str) -> list[list[str]]:
    """Return the cells of all table rows of a text, without the two rows of each heading."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rules = {number for number, line in enumerate(lines) if line.startswith("|---")}
    return [
        [cell.strip() for cell in line[1:-1].split("|")]
        for number, line in enumerate(lines)
        if not {number, number + 1} & rules
    ]


def code_words(cell: str) -> tuple[str, ...]:
    return tuple(re.findall(r"`([^`]+)`", cell))


def code_links(page: Path, text: str) -> Iterator[tuple[str, Path]]:
    """Yield each link from a name in code style to a Python file, as name and file."""
    for label, target in LINK.findall(text):
        if label.startswith("`") and target.endswith(".py"):
            yield label.strip("`"), (page.parent / target).resolve()


def bound(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that one statement of a module or class defines."""
    match statement:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Assign(targets=targets):
            yield from (
                node.id for each in targets for node in ast.walk(each) if isinstance(node, ast.Name)
            )
        case ast.AnnAssign(target=ast.Name(id=name)):
            yield name


@functools.cache
def definitions(path: Path) -> frozenset[str]:
    """Return the names that a module defines, and `Class.member` for those of its classes."""
    names: set[str] = set()
    for statement in ast.parse(path.read_text("utf-8")).body:
        names.update(bound(statement))
        if isinstance(statement, ast.ClassDef):
            names.update(
                f"{statement.name}.{name}" for each in statement.body for name in bound(each)
            )
    return frozenset(names)


def undefined(page: Path, text: str) -> list[str]:
    """Return the code links whose file does not define the name."""
    return [
        f"{name} in {path}"
        for name, path in code_links(page, text)
        if not path.is_file() or name not in definitions(path)
    ]


def anchors(page: Path) -> set[str]:
    """Return the headings of a page, as links name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each).strip().lower().replace(" ", "-") for each in headings}


# -- links -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_of_the_repository(page: Path) -> None:
    """A page is read when something is unclear; a dead link makes that worse."""
    dead = []
    for _, target in LINK.findall(page.read_text("utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(target)

    assert dead == []


@pytest.mark.parametrize("page", [PAGE, CONTRIBUTING], ids=lambda page: page.name)
def test_every_name_is_defined_where_its_link_leads(page: Path) -> None:
    """Names move in a refactoring, and nobody reads the whole page again after one."""
    text = page.read_text("utf-8")

    assert len([*code_links(page, text)]) > 10
    assert undefined(page, text) == []


@pytest.mark.parametrize(
    "link",
    [
        "[`Absent`](../harness/pytest_gpu_cluster/session.py)",
        "[`Run.absent`](../harness/pytest_gpu_cluster/session.py)",
        "[`Run`](../harness/pytest_gpu_cluster/absent.py)",
    ],
)
def test_a_name_that_is_not_there_is_noticed(link: str) -> None:
    """A check that cannot fail is worth nothing."""
    assert len(undefined(PAGE, link)) == 1


# -- docs/architecture.md --------------------------------------------------------------------------


def test_the_table_of_rooms_is_the_rule_of_imports() -> None:
    """A newcomer who follows a wrong table writes an import that the next test refuses."""
    table = {LINK.sub(r"\1", name): code_words(targets) for name, _, targets in rows_of_rooms()}

    assert table == ARROWS


def rows_of_rooms() -> list[list[str]]:
    return rows(section(PAGE, "Rooms"))


def test_every_arrow_of_the_picture_leads_down() -> None:
    """The picture is what one remembers; it has to be as true as the table."""
    picture = section(PAGE, "Rooms").split("```")[1]
    floors: dict[str, int] = {}
    drawn: list[str] = []
    for line in picture.splitlines():
        if floor := re.match(r" *(\d) ", line):
            names = line.split()[1:]
            drawn += names
            floors.update(dict.fromkeys(names, int(floor[1])))

    assert sorted(drawn) == sorted(ARROWS)
    upward = [
        f"{name} -> {target}"
        for name, targets in ARROWS.items()
        for target in targets
        if floors[room(target)] >= floors[name]
    ]
    assert upward == []


def key_names(message: type[Message]) -> tuple[str, ...]:
    """Return the keys of a message in their order, with `?` at those that may be absent."""
    names = []
    for field in dataclasses.fields(message):  # type: ignore[arg-type]  # every message is one
        if "outside" not in field.metadata:
            optional = field.default is not MISSING or field.default_factory is not MISSING
            names.append(field.metadata.get("key", field.name) + "?" * optional)
    return tuple(names)


def message_row(message: type[Message]) -> tuple[str, str, tuple[str, ...]]:
    return message.kind, message.__name__, key_names(message)


def test_the_tables_of_messages_have_every_kind_with_its_keys() -> None:
    """Who debugs a journal or a socket looks a key up here."""
    table = [
        (kind.strip("`"), name.strip("`"), code_words(keys))
        for kind, name, _, keys in rows(section(PAGE, "Messages"))
    ]

    assert table == [message_row(each) for each in (*MESSAGES.values(), AgentFinished)]
    assert [*MESSAGES][: len(EVENTS)] == [*EVENTS]


@functools.cache
def made_in(path: Path) -> frozenset[str]:
    """Return what a module calls by name, and `kind K` for each dict of a kind K."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
                names.add(name)
            case ast.Dict(
                keys=[ast.Constant(value="kind"), *_], values=[ast.Constant(value=str(kind)), *_]
            ):
                names.add(f"kind {kind}")
    return frozenset(names)


def makes(writer: str, kind: str, name: str) -> bool:
    """Return whether the code of a writer makes this message, as an object or as a dict."""
    places = [PACKAGE / place for place in WRITERS[writer]]
    paths = [path for place in places for path in (place.rglob("*.py"), [place])[place.is_file()]]
    return any({f"kind {kind}", name} & made_in(path) for path in paths)


@pytest.mark.parametrize(
    ("kind", "name", "writers"),
    [cells[:3] for cells in rows(section(PAGE, "Messages"))],
    ids=lambda cell: cell.strip("`"),
)
def test_each_writer_of_a_message_makes_one(kind: str, name: str, writers: str) -> None:
    """A reader who looks for the origin of a message must not search the wrong room."""
    for writer in writers.split(", "):
        assert makes(writer, kind.strip("`"), name.strip("`")), writer


def test_who_only_reads_a_message_is_no_writer_of_it() -> None:
    """The agent has a branch for `ready`, which looks like a call to a careless check."""
    assert makes("worker", "ready", "Ready")
    assert not makes("agent", "ready", "Ready")


@pytest.mark.parametrize("heading", ["Words", "Where do I change ..."])
def test_every_row_names_its_place_in_the_code(heading: str) -> None:
    """A word without its place, or a question without one, is an opinion."""
    table = rows(section(PAGE, heading))

    assert len(table) >= 20
    assert [cells[0] for cells in table if not [*code_links(PAGE, cells[-1])]] == []


def test_no_word_is_explained_twice() -> None:
    """Two meanings of one word are what a glossary is to prevent."""
    words = [cells[0] for cells in rows(section(PAGE, "Words"))]

    assert len(words) == len(set(words))


# -- the roads of CONTRIBUTING.md ------------------------------------------------------------------

# The heading of each road, its registry, and its group of entry points.
ROADS = {
    "A new provider": ("REGISTRY", providers.ENTRY_POINTS),
    "A new CI host": ("HOSTS", publish.ENTRY_POINTS),
    "A new sink": ("SINKS", sinks.GROUP),
}


def steps(heading: str) -> list[str]:
    """Return the numbered steps of a road, each with its continuation lines."""
    parts = re.split(r"^(\d+)\. ", section(CONTRIBUTING, heading), flags=re.MULTILINE)
    assert parts[1::2] == [str(number) for number in range(1, len(parts[1::2]) + 1)]
    return parts[2::2]


@pytest.mark.parametrize("heading", ROADS)
def test_a_road_is_short_and_names_registry_entry_point_and_test(heading: str) -> None:
    """An extension that takes more than five steps is a sign that the seam is wrong."""
    registry, group = ROADS[heading]
    road = steps(heading)
    text = "".join(road)

    assert 2 <= len(road) <= 5
    assert registry in [name for name, _ in code_links(CONTRIBUTING, text)]
    assert group in code_words(text)
    paths = re.findall(r"\btests/[\w/.]+", road[-1].partition(".venv/bin/pytest ")[2])
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


# The whole of a provider, here of clusters that nobody has: one file, one line of an entry point.
PROVIDER = """
from pytest_gpu_cluster.contract.errors import CapacityError
from pytest_gpu_cluster.contract.request import Shape
from pytest_gpu_cluster.providers import ClusterState, LaunchPlan

class Acme:
    name, keys = "acme", {}
    def __init__(self, settings, environ): pass
    def plan(self, spec):
        nodes, gpus = spec.nodes, spec.gpus_per_node
        shape = Shape(owner="acme", environment="", nodes=nodes, gpus_per_node=gpus)
        return LaunchPlan(spec=spec, shape=shape, environment="whatever Acme has")
    def launch(self, plan, boot, tell): raise CapacityError("Acme is sold out", remedy="wait")
    def state(self, ref): return ClusterState(state="gone", reason="it was never there")
    def close(self, ref, *, now=False): pass
    def owned(self): return ()
"""
MODULES = {"acme_cloud.py": PROVIDER, "acme_ci.py": ACME, "acme_chat.py": CHAT}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution with one of each, whose entry points are those that CONTRIBUTING.md shows."""
    shown = CONTRIBUTING.read_text("utf-8").partition("```toml\n")[2].partition("```")[0]
    groups = tomllib.loads(shown)["project"]["entry-points"]
    metadata = tmp_path / "acme-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1\n")
    lines = [
        line
        for group, points in groups.items()
        for line in (f"[{group}]", *(f"{name} = {target}" for name, target in points.items()))
    ]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    for name, source in MODULES.items():
        (tmp_path / name).write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in MODULES:
        sys.modules.pop(name.removesuffix(".py"), None)


@pytest.mark.usefixtures("installed")
def test_what_another_distribution_brings_is_found_by_its_entry_point() -> None:
    """Who follows a road in a package of their own needs no change of this one."""
    provider = providers.load_provider("acme", Settings(provider="acme"), {})
    ci = publish.detect(BUILD)
    registered = dict(sinks.registered())

    assert provider.name == "acme"
    assert [*provider.owned()] == []
    assert ci is not None
    assert type(publish.publisher(ci, Settings(), BUILD)).__name__ == "Acme"
    assert registered["chat"]().__name__ == "Chat"


@pytest.mark.parametrize("heading", ROADS)
def test_a_road_leads_through_an_example_that_is_tested(heading: str) -> None:
    """A newcomer copies the example; one that no test runs would be broken by now."""
    examples = {
        "A new provider": "tests/contract/directories.py",
        "A new CI host": "docs/ci.md#another-ci-host",
        "A new sink": "tests/unit/test_sinks.py",
    }
    targets = [target for _, target in LINK.findall("".join(steps(heading)))]

    assert examples[heading] in targets
