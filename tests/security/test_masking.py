"""Masking by itself: which values are secrets, the shapes in which they are found, ids of tests."""

from __future__ import annotations

import base64
import codecs
import html
import json
import pprint
import re
import shlex
import textwrap
import urllib.parse
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_gpu_cluster.contract.event_words import event_words
from pytest_gpu_cluster.contract.events import (
    Notice,
    SessionFinished,
)
from pytest_gpu_cluster.contract.failures import KeeperStop
from pytest_gpu_cluster.contract.masking import PassedValues, masker, not_masked_line
from pytest_gpu_cluster.contract.record import SessionRecord
from pytest_gpu_cluster.contract.request import Limits, SessionRequest
from pytest_gpu_cluster.contract.secret_values import is_secret_name, unmaskable
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.contract.withheld import stored_request, take_withheld, withheld
from pytest_gpu_cluster.node.context import Stop
from pytest_gpu_cluster.node.session import append_lost_end

VALUE = "q7!Zk-very secret/91+a=="
HARD = "pa'ss\"wörd\\9 & 100%\nsecond-Line9"


def twice(write: Callable[[str], str]) -> Callable[[str], str]:
    return lambda value: write(write(value))


SHAPES: dict[str, Callable[[str], str]] = {
    "plain": str,
    "repr": repr,
    "a repr of a repr": twice(repr),
    "ascii": ascii,
    "json": json.dumps,
    "json in json": twice(json.dumps),
    "three times json": lambda value: json.dumps(twice(json.dumps)(value)),
    "json as Unicode": lambda value: json.dumps(value, ensure_ascii=False),
    "repr of bytes": lambda value: repr(value.encode()),
    "bytes of a repr": lambda value: repr(repr(value).encode()),
    "URL": lambda value: urllib.parse.quote(value, safe=""),
    "form": urllib.parse.quote_plus,
    "URL in a URL": lambda value: urllib.parse.quote(urllib.parse.quote(value, safe=""), safe=""),
    "HTML": html.escape,
    "XML": lambda value: html.escape(value).encode("ascii", "xmlcharrefreplace").decode(),
    "regular expression": re.escape,
    "base64": lambda value: base64.b64encode(value.encode()).decode(),
    "basic auth": lambda value: base64.b64encode(f"me:{value}".encode()).decode(),
    "another basic auth": lambda value: base64.b64encode(f"you:{value}".encode()).decode(),
    "base64 for URLs": lambda value: base64.urlsafe_b64encode(value.encode()).decode(),
    "base64 in lines": lambda value: base64.encodebytes(f"{'x' * 50}{value}".encode()).decode(),
    "hexadecimal": lambda value: value.encode().hex(),
    "pprint": lambda value: pprint.pformat({"a": f"{'word ' * 13}{value}{' word' * 20}"}),
    "pprint of bytes": lambda value: pprint.pformat(f"{'word ' * 12}{value}".encode() * 2),
    "in a list of pytest": lambda value: "\n".join(
        f"E     {line}" for line in pprint.pformat([f"{'word ' * 13}{value}"]).splitlines()
    ),
    "wrapped": lambda value: textwrap.fill(f"{'x' * 60} {value.replace(' ', '-')}", 70),
    "in colours": lambda value: f"\x1b[31m{value[:9]}\x1b[0m\x1b[33m{value[9:]}\x1b[0m",
}


def windows(text: str, size: int = 8) -> set[str]:
    return {text[start : start + size] for start in range(len(text) - size + 1)}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("value", [VALUE, HARD], ids=["one line", "hard"])
def test_a_secret_is_masked_in_whatever_shape(value: str, shape: str) -> None:
    """Nobody prints a value as it is: it comes in a repr, in a request, in a header."""
    written, around = (f"before {SHAPES[shape](each)} after" for each in (value, "#" * len(value)))
    secret = value.replace(" ", "-") if shape == "wrapped" else value

    masked = masker({"SERVICE_TOKEN": secret})(written)

    assert "***" in masked
    left = windows(masked, 7) & windows(written, 7) - windows(around, 7)
    assert not [each for each in left if each.isalnum()], masked
    assert masked.startswith("before ")
    assert masked.endswith(" after")


# What no masking finds: the test itself has hidden it. The README names these.
OUT_OF_REACH: dict[str, Callable[[str], str]] = {
    "reversed": lambda value: value[::-1],
    "in another case": str.swapcase,
    "letter by letter": " ".join,
    "in pieces": lambda value: f"{value[:6]} and {value[6:12]} and {value[12:]}",
    "encrypted": lambda value: codecs.encode(value, "rot13"),
    "packed": lambda value: base64.b64encode(zlib.compress(value.encode())).decode(),
    "as numbers": lambda value: str([*value.encode()]),
    "base64 of base64": lambda value: base64.b64encode(base64.b64encode(value.encode())).decode(),
}


@pytest.mark.parametrize("way", OUT_OF_REACH)
def test_what_a_test_hides_itself_is_out_of_reach(way: str) -> None:
    """A user who counts on masking has to know where it ends; one that is found moves up."""
    written = OUT_OF_REACH[way](VALUE)

    assert masker({"SERVICE_TOKEN": VALUE})(written) == written


@pytest.mark.parametrize("length", [20, 60, 200])
@pytest.mark.parametrize("width", [30, 80, 120])
def test_what_pytest_abridges_leaves_no_end_of_a_secret(length: int, width: int) -> None:
    """The beginning of a token narrows a search for the rest."""
    value = "".join(chr(ord("A") + (7 * n * n) % 26) + f"{n % 10}" for n in range(length // 2))
    text = repr({"key": value, "other": "y" * 40})
    half = (width - 3) // 2

    masked = masker({"SERVICE_TOKEN": value})(f"{text[:half]}...{text[-half:]}")

    assert not [each for each in windows(value, 4) if each in masked], masked


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AZURE_CREDS", VALUE),
        ("GCP_CREDENTIALS", VALUE),
        ("SLACK_WEBHOOK_URL", "https://hooks.example.com/services/T0/B0/q7ZkVerySecret"),
        ("QUEUE_CONNECTION_STRING", "Endpoint=sb://x/;SharedAccessKey=q7Zk/VerySecret="),
        ("DOCKER_AUTH_CONFIG", '{"auths": {"r.io": {"auth": "bWU6cTdaa1Zlcnk="}}}'),
        ("NPM_CONFIG__AUTH", VALUE),
        ("TWINE_PASSWORD", VALUE),
        ("PIP_EXTRA_INDEX_URL", "https://me:q7Zk-very@pypi.example.com/simple"),
        ("DATABASE_URL", "postgres://app:q7Zk-very@db.example.com/app"),
        ("APP_SESSION", VALUE),
        ("AUTH_COOKIE", VALUE),
        ("TLS_CERT", VALUE),
        ("SERVICE_JWT", VALUE),
        ("KUBECONFIG", VALUE),
        ("VAULT_KEY", "/srv/vault/q7Zk-very-secret"),
        ("DB_PASSWORD", "hunter2"),
        ("DB_PASSWORD", "wintergreen"),
        ("RETRY_TOKEN", "aaaaaaaaaaaa"),
        ("LOGIN_PIN", "483921"),
    ],
)
def test_a_secret_is_known_by_the_names_of_hosts_clouds_and_registries(
    name: str, value: str
) -> None:
    """Nobody renames a variable of a cloud for the sake of a test runner."""
    mask = masker({name: value})
    secret = next(part for part in re.split(r"[:/@]", value)[::-1] if part) if "@" in value else ""
    told = value if not secret else value.split("//")[1].split("@", maxsplit=1)[0].split(":")[1]

    assert told not in mask(f"it is {value}.")
    assert told not in mask(f"pw={told},")


def test_a_short_value_is_masked_as_a_word_of_its_own_alone() -> None:
    """`cafe` in `decafed` is no password, and half of a report would be stars."""
    mask = masker({"DB_PASSWORD": "cafe"})

    assert mask("decafed cafeteria, cafe; my_cafe") == "decafed cafeteria, ***; my_***"


@pytest.mark.parametrize("value", ["okay", "wort", "1234", "zzzzzzzz", "/srv/x", "a-b"])
def test_what_secret_env_names_is_masked_whatever_it_is(value: str) -> None:
    """The user knows better than any pattern; what cannot be masked is refused, never passed on."""
    passed = PassedValues(env={"MY_CHOICE": value}, secret_env=("MY_*",))
    refused = unmaskable(passed.pairs(), passed.secret_env)

    if len(value) < 4:
        assert [(each.name, each.named) for each in refused] == [("MY_CHOICE", True)]
    else:
        assert (refused, passed.masker()(f"it is {value}.")) == ((), "it is ***.")


def test_a_word_of_every_report_cannot_be_a_secret() -> None:
    """With `passed` masked there would be no report, and without it no secret."""
    passed = PassedValues(env={"MY_CHOICE": "passed"}, secret_env=("MY_*",))

    (refused,) = unmaskable(passed.pairs(), passed.secret_env)

    assert (refused.why, refused.named) == ("is a word of every report", True)
    assert {"passed", "nodeid", "longrepr", "reprcrash", "setup"} <= event_words()


def test_what_is_not_masked_is_said_without_its_value() -> None:
    """A user who is told can choose another password."""
    env = {"DB_PASSWORD": "postgres", "PIN_KEY": "12", "API_TOKEN": VALUE, "MAX_TOKENS": "4096"}

    line = not_masked_line(PassedValues(env=env))

    assert line == (
        "not masked: DB_PASSWORD, whose value is a common word;"
        " PIN_KEY, whose value has fewer than 4 characters"
    )


def test_the_contents_of_a_file_that_a_variable_names_are_secrets(tmp_path: Path) -> None:
    """The host of a pipeline writes keys into files, and tells tests where they are."""
    document = {"type": "service_account", "private_key_id": "q7ZkVerySecret01", "x": "y"}
    (tmp_path / "key.json").write_text(json.dumps(document))
    (tmp_path / "token").write_text(f"{VALUE}\n")
    environ = {"APP_CREDENTIALS": f"{tmp_path}/key.json", "APP_TOKEN_FILE": f"{tmp_path}/token"}
    mask = masker(environ)

    assert mask(f"{document['private_key_id']} and {VALUE}") == "*** and ***"
    assert mask(f"in {tmp_path}/key.json") == f"in {tmp_path}/key.json"


@pytest.mark.parametrize(
    "args",
    [("--api-token=q7Zk",), ("--api-token", "q7Zk"), ("-x", "--db-password=q7Zk", "a.py")],
    ids=["joined", "apart", "between others"],
)
def test_a_secret_on_the_command_line_is_in_no_request(args: tuple[str, ...]) -> None:
    """request.json is read by whoever may read the store; pytest on the cluster needs the value."""
    request = request_of(args)
    mask = PassedValues(args=args).masker()

    stored = stored_request(request, mask)
    passed = {"CI": "true", **withheld(request, mask)}

    assert "q7Zk" not in json.dumps(stored.to_json())
    assert mask("with q7Zk.") == "with ***."
    assert take_withheld(stored, passed) == request
    assert passed == {"CI": "true"}


def test_a_request_without_secrets_is_stored_as_it_is() -> None:
    """Whoever reads `gpu-cluster ls` sees what was asked for."""
    request = request_of(("-k", "loss", "tests"))
    mask = PassedValues(env={"API_TOKEN": VALUE}).masker()

    assert stored_request(request, mask) == request
    assert withheld(request, mask) == {}


def request_of(args: tuple[str, ...]) -> SessionRequest:
    limits = Limits(max_s=60.0, idle_s=0.0, test_timeout_s=10.0, infra_retries=1, default_gpus=None)
    return SessionRequest(
        session="20261127-000000-abcd",
        asked_at=0.0,
        provider="local",
        agent="pytest_gpu_cluster.agent.main:main",
        root_name="tree",
        origin="/home/me/tree",
        cwd=".",
        args=args,
        passed=(),
        limits=limits,
    )


def test_the_last_words_of_a_lost_agent_hold_no_secret(tmp_path: Path) -> None:
    """A traceback has the value that failed; here the keeper speaks in the place of the agent."""
    record = SessionRecord(Store.open("store", base=tmp_path), "s1")
    stop = Stop(kind=KeeperStop.CLIENT_SILENT, message=f"its agent ended with 1: KeyError: {VALUE}")
    held = Notice(name="artifacts", text=f"{VALUE}.txt was held back")
    mask = masker({"SERVICE_TOKEN": VALUE})

    append_lost_end(record, stop, mask=mask, tail=f"with {VALUE}", notices=[held], timeout_s=5)

    notice, end = record.reader().poll()
    ending = record.result()
    assert isinstance(notice, Notice)
    assert isinstance(end, SessionFinished)
    assert ending is not None
    assert notice.text == "***.txt was held back"
    assert (end.message, end.tail) == ("its agent ended with 1: KeyError: ***", "with ***")
    assert ending.message == end.message


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        f"with {VALUE}\n".encode(),
        f"with {VALUE}".encode("utf-16"),
        b"\x89PNG\0\0" + VALUE.encode() + b"\0",
        base64.encodebytes(f"{'x' * 50}{VALUE}".encode()),
        json.dumps(json.dumps(VALUE)).encode(),
        b"\0" * (9 << 20) + VALUE.encode(),
        b"line of a log\n" * (1 << 20) + base64.b64encode(VALUE.encode()),
    ],
    ids=["text", "utf-16", "binary", "base64", "json", "big", "long log"],
)
def test_a_file_that_holds_a_secret_is_known(content: bytes) -> None:
    """A log, a picture's comment, a checkpoint: all of them leave the cluster."""
    mask = masker({"SERVICE_TOKEN": VALUE, "DB_PASSWORD": "okay"})

    assert mask.holder(content) == "SERVICE_TOKEN"
    assert mask.holder(content.replace(VALUE[3:9].encode(), b"harmless")[:20]) == ""


def test_a_short_secret_is_looked_for_in_texts_alone() -> None:
    """Four letters are in any picture by chance; held back, its user would miss it."""
    mask = masker({"DB_PASSWORD": "cafe"})

    assert mask.holder(b"the cafe") == "DB_PASSWORD"
    assert mask.holder(b"\0cafe\0") == ""


def test_names_that_only_sound_like_secrets() -> None:
    """A name that is masked for nothing takes a word out of every report."""
    names = ["TOKENIZER", "MONKEY", "PASSENGERS", "AUTHOR", "XDG_SESSION_ID", "COMPASS", "KEYBOARD"]

    assert [name for name in names if is_secret_name(name)] == []


def test_shell_quoting_is_a_shape_too() -> None:
    """A failing command is in its error, as the shell would take it."""
    masked = masker({"SERVICE_TOKEN": VALUE})(shlex.join(["curl", f"--header={VALUE}"]))

    assert masked == "curl '--header=***'"
