"""A record of the store is data: whoever writes one has no say over what lies beside the store.

A team shares one bucket, and pull requests of strangers write to it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.security.places import Place, closed, description, state

COMMANDS = (("ls",), ("down",), ("sweep",), ("logs",), ("report",), ("artifacts",), ("doctor",))
EVIL = """
from pathlib import Path
mark = Path(__file__).with_name("ran.txt")
mark.write_text("imported")
from pytest_gpu_cluster.settings_keys import Key, read_text
class Evil:
    name, keys = "evil_provider:Evil", {"folder": Key(expected="a folder", read=read_text)}
    def __init__(self, *_): mark.write_text("made")
    def close(self, ref): mark.write_text("closed " + ref.id)
    def owned(self): return ()
    def plan(self, spec): ...
    def launch(self, plan, boot, tell): ...
    def state(self, ref):
        from pytest_gpu_cluster.providers import ClusterState
        return ClusterState(state="running")
"""


@pytest.mark.parametrize("number", range(5))
def test_a_cluster_whose_id_is_a_path_deletes_and_ends_nothing(
    place: Place, number: int, bystander: subprocess.Popen[bytes]
) -> None:
    """`gpu-cluster down` deleted the directory that such a record named, with all that was in it,
    and ended the processes that a file in it named.
    """
    name = place.bent[number]
    place.guard(bystander)
    place.plant("clusters/planted/cluster.json", description(name))
    place.plant("clusters/planted/state.json", state())
    place.plant("clusters/c1/deeper/cluster.json", description(name))
    place.plant("clusters/c2/cluster.json", description("c2"))
    place.plant("clusters/c2/state.json", state(name))
    before = place.outside()

    told = {
        command: place.command(*command)
        for command in (("ls",), ("ls", "--json"), ("down", name), ("sweep",), ("down",))
    }

    assert place.outside() == before
    assert bystander.poll() is None
    assert told["down", name].code == 4
    assert "no cluster" in told["down", name].err
    assert [told[command].code for command in (("ls",), ("sweep",), ("down",))] == [0, 0, 0]
    assert "a secret of mine" not in str(told)


def test_a_provider_that_only_a_record_names_is_not_imported(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`gpu-cluster ls` imported and called whatever class a record named."""
    code = place.top / "code"
    code.mkdir()
    (code / "evil_provider.py").write_text(EVIL)
    monkeypatch.syspath_prepend(code)
    place.plant("clusters/c1/cluster.json", description("c1", "evil_provider:Evil"))
    place.plant("clusters/c1/state.json", state())
    place.plant("clusters/c2/cluster.json", description("c2"))

    told = {command: place.command(*command) for command in (*COMMANDS, ("down", "c1"))}

    assert "evil_provider" not in sys.modules
    assert not (code / "ran.txt").exists()
    problem = "provider 'evil_provider:Evil' is not of this project\n  remedy: if the cluster"
    assert f"cluster c1  unknown: {problem}" in told["ls",].out
    assert "cluster c2  local  gone" in told["ls",].out
    assert f"cluster c1 NOT closed: {problem}" in told["down",].out
    assert "cluster c2 closed" in told["down",].out
    assert (told["ls",].code, told["down",].code, told["down", "c1"].code) == (0, 4, 4)


@pytest.mark.parametrize(
    "lines",
    ['provider = "evil_provider:Evil"', '"evil_provider:Evil".folder = "x"'],
    ids=["name", "table"],
)
def test_a_provider_that_the_settings_name_is_used(
    place: Place, monkeypatch: pytest.MonkeyPatch, lines: str
) -> None:
    """The project's own settings decide: its clusters are listed and closed as before."""
    code = place.top / "code"
    code.mkdir()
    (code / "evil_provider.py").write_text(EVIL)
    monkeypatch.syspath_prepend(code)
    place.settings(lines)
    place.plant("clusters/c1/cluster.json", description("c1", "evil_provider:Evil"))
    place.plant("clusters/c1/state.json", state())

    listed, closed_ = place.command("ls"), place.command("down")
    sys.modules.pop("evil_provider")

    assert "cluster c1  evil_provider:Evil  idle" in listed.out
    assert closed_.out == "cluster c1 closed\n"
    assert (code / "ran.txt").read_text() == "closed c1"


LINKED = (
    *("clusters", "clusters/c1", "sessions", "sessions/20260101-000000-abcd", "trees", "blobs"),
    *("history", "sessions/20260101-000000-abcd/artifacts", "clusters/c1/inbox", "index", "home"),
)


@pytest.mark.parametrize("key", LINKED)
def test_no_link_in_a_store_is_followed(place: Place, key: str) -> None:
    """A store lies in a checkout, or comes out of a CI cache: with a link in it, striking off a
    cluster deleted the files that the link led to.
    """
    if "/" in key:
        place.plant("clusters/c0/cluster.json", description("c0"))
        place.plant("sessions/20250101-000000-abcd/result.json", closed())
    if key.endswith("/artifacts"):
        place.plant("sessions/20260101-000000-abcd/result.json", closed())
    link = place.store / key
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(place.victim)
    before = place.outside()

    told = [place.command(*command) for command in (*COMMANDS, ("down", "c1"))]

    assert place.outside() == before
    assert link.is_symlink()
    assert "a secret of mine" not in str(told)
    if "/" in key:  # what is beside it is served all the same
        assert [each.code for each in told[:3]] == [0, 0, 0]
    else:
        broken = [each.err for each in told if each.code == 10]
        assert all(f"{key} in the store is a link" in text for text in broken)


@pytest.mark.parametrize("number", range(4))
def test_a_file_that_is_no_file_holds_nobody_up(place: Place, number: int) -> None:
    """A named pipe is waited for without end, and a folder in the place of a file, or the reverse,
    ended `ls` for everybody.
    """
    session = "sessions/20260101-000000-abcd"
    place.plant("sessions/20250101-000000-abcd/result.json", closed())
    path = place.store / session / "result.json"
    match number:
        case 0:
            path.parent.mkdir()
            os.mkfifo(path)
        case 1:
            path.mkdir(parents=True)
            place.plant(f"{session}/result.json/x", b"")
        case 2:
            place.plant(session, b"")
        case 3:
            place.plant("sessions/a\nb/result.json", closed())
            Path(place.store / "sessions/loop").symlink_to("loop")

    listed = place.command("ls")

    assert listed.code == 0, listed.err
    assert "20250101-000000-abcd" in listed.out


def test_what_a_record_says_moves_no_cursor(place: Place) -> None:
    """The name of a provider or a branch is others' text, and a terminal obeys what it is sent."""
    place.plant("clusters/c1/cluster.json", description("c1", "\x1b]0;owned\x07\x1b[2J"))
    place.plant("sessions/20260101-000000-abcd/request.json", b'{"\x1b[2J": "\\ud800"}')

    told = [place.command("ls"), place.command("down"), place.command("down", "\x1b[2J")]

    assert not any("\x1b" in each.out + each.err for each in told)
