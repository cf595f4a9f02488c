"""Secrets that a test prints, and what masking leaves of a report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import pytest

from pytest_gpu_cluster.contract.codec import map_strings
from pytest_gpu_cluster.contract.events import Event
from pytest_gpu_cluster.contract.masking import masker
from pytest_gpu_cluster.contract.record import Ending
from pytest_gpu_cluster.report import junit
from tests.unit.report.outputs import cases_of, key_of, schema_violations, texts_of
from tests.unit.report.project import ANOTHER, BODY, ENVIRON, PEM, PEM_LINES, SPLIT, TOKEN
from tests.unit.report.real_run import RealRun


def pieces(secret: str, size: int = 16) -> set[str]:
    return {secret[start : start + size] for start in range(len(secret) - size + 1)}


def test_a_run_that_prints_its_secrets_everywhere_tells_none(real: RealRun) -> None:
    """A comment on a pull request is read by more people than the pipeline's variables."""
    ending = Ending(exit_code=1, message=f"could not log in with {TOKEN}", remedy=f"not with {PEM}")
    run = real.without("test_splits.py", "test_abridged.py")
    report = run.report(ending, environ=ENVIRON)
    data = str(real.events)

    for kind, text in texts_of(report):
        assert TOKEN not in text, kind
        assert not [line for line in PEM_LINES if len(line) >= 16 and line in text], kind
    assert TOKEN in data, "nothing leaked that could be masked"
    assert PEM_LINES[3] in data
    assert len({result.nodeid for result in report.results if "test_in_" in result.nodeid}) == 8


def test_masking_leaves_a_valid_file_with_every_case_in_it(real: RealRun) -> None:
    """Two ids that differ in a secret are equal after it.

    Each of the two tests is still one case.
    """
    plain, masked = junit.write(real.report()), junit.write(real.report(environ=ENVIRON))

    assert schema_violations(masked) == []
    assert len(cases_of(masked)) == len(cases_of(plain))
    assert len({key_of(case) for case in cases_of(masked)}) == len(cases_of(plain))


def test_a_secret_at_the_place_where_an_output_is_cut_is_masked(real: RealRun) -> None:
    """The middle of a long output is left out.

    Half of a token beside the gap no longer looks like one.
    """
    for kind, text in texts_of(real.report(environ=ENVIRON)):
        assert SPLIT[:8] not in text, kind
        assert SPLIT[-8:] not in text, kind


def test_a_key_that_pytest_has_abridged_is_masked(real: RealRun) -> None:
    """pytest shows the beginning and the end of a long value.

    Lines of the key are no longer whole lines then.
    """
    shown = next(
        result
        for result in real.report(environ=ENVIRON).results
        if result.nodeid == "test_abridged.py::test_key"
    )
    text = "".join(problem.message + problem.text for problem in shown.problems)

    assert not [piece for piece in pieces(BODY) if piece in text]


def test_a_secret_that_begins_with_another_is_masked_as_a_whole() -> None:
    """A user may have a password, and the same with a suffix.

    The rest of the longer one would be left beside three stars.
    """
    assert (
        masker({"A_TOKEN": "abcdefgh", "B_TOKEN": "abcdefgh-1234"})("it is abcdefgh-1234")
        == "it is ***"
    )


@pytest.mark.parametrize(
    "shown",
    [repr, json.dumps, ascii, lambda value: value.encode("unicode_escape").decode()],
    ids=["repr", "json", "ascii", "id"],
)
@pytest.mark.parametrize(
    "value",
    ["pass'wörd\"9-z", "back\\slash\\9-z", "tab\tand more-9"],
    ids=["quotes", "backslashes", "a tab"],
)
def test_a_secret_is_masked_also_as_pytest_writes_it(
    value: str, shown: Callable[[str], str]
) -> None:
    """An assertion has its repr, a parametrised id has escapes, a dumped request has JSON."""
    written = shown(value).strip("'\"")

    assert written not in masker({"DB_PASSWORD": value})(f"before {shown(value)} after")


@pytest.mark.parametrize(
    "token",
    [
        "gh" + "p_" + "a1B2" * 9,
        "gh" + "s_" + "c3D4" * 9,
        "github_" + "pat_" + "11ABCDEFG0" * 6,
        "glp" + "at-" + "x7Yz_" * 5,
        "xo" + "xb-123456789012-" + "aBcD" * 6,
        "h" + "f_" + "Ab" * 17,
        "ATB" + "B" + "x7Yz9" * 6,
        "ATA" + "TT3xFfGF0" + "x7Yz9" * 6,
        "ATC" + "TT3xFfGN0" + "x7Yz9" * 6,
        "AKI" + "AQ3EGRT7XKJ2M5N4P",
        PEM,
        PEM[: len(PEM) // 2],
    ],
    ids=[
        "github",
        "github app",
        "github fine",
        "gitlab",
        "slack",
        "hugging face",
        "bitbucket",
        "atlassian",
        "workspace",
        "aws",
        "pem",
        "half a pem",
    ],
)
def test_the_known_forms_of_tokens_are_masked_without_being_in_the_environment(token: str) -> None:
    """A test reads its token from a file, or from a vault: this side has never seen it."""
    masked = masker({})(f"logged in with {token}")

    assert masked.startswith("logged in with ***")
    assert not [piece for piece in pieces(token) if piece in masked]


@pytest.mark.parametrize("kind", ["", "RSA ", "OPENSSH "])
@pytest.mark.parametrize("masked_kind", ["", "RSA ", "OPENSSH "])
def test_a_key_is_masked_also_beside_one_that_the_environment_has(
    masked_kind: str, kind: str
) -> None:
    """Both have the same first and last line.

    What takes out the one known must not take the marks off the other.
    """
    environ = {"SIGNING_PRIVATE_KEY": PEM.replace("PRIVATE KEY", f"{masked_kind}PRIVATE KEY")}
    lines = [ANOTHER[start : start + 64] for start in range(0, len(ANOTHER), 64)]
    key = "\n".join(
        [f"-----BEGIN {kind}{'PRIVATE'} KEY-----", *lines, f"-----END {kind}{'PRIVATE'} KEY-----"]
    )
    masked = masker(environ)(f"before {key} after")

    assert not [piece for piece in pieces(ANOTHER) if piece in masked]
    assert masked.startswith("before ")
    assert masked.endswith(" after")


def masked_event(event: Event, mask: Callable[[str], str]) -> Event:
    """Return the event as a journal has it that masks each text by itself."""
    masked = type(event).from_json(map_strings(event.to_json(), mask))
    return dataclasses.replace(masked, seq=event.seq, writer=event.writer, t=event.t)


def test_a_key_that_the_agent_saw_line_by_line_is_masked_as_a_whole(real: RealRun) -> None:
    """A traceback travels in lines, and the agent takes out what it knows of each.

    A key that it does not know must keep its marks.
    """
    mask = masker({"SERVICE_TOKEN": TOKEN})
    events = tuple(masked_event(event, mask) for event in real.events)
    run = dataclasses.replace(real, events=events).without("test_splits.py")

    for kind, text in texts_of(run.report()):
        assert not [line for line in PEM_LINES if line in text], kind


@pytest.mark.parametrize(
    "value",
    [
        "AKIAQ3EGRT7XKJ2M5N4P:pw9-Zk",
        "id=7;amqp://a:bcd9@c-9-Zk",
        "Bearer q7Zk2very3secret4and5long",
    ],
)
def test_a_secret_that_holds_a_known_form_is_masked_as_a_whole(value: str) -> None:
    """Two halves of a secret are known by different marks; the one must not hide the other."""
    assert masker({"REGISTRY_PASSWORD": value})(f"before {value} after") == "before *** after"


@pytest.mark.parametrize(
    "name",
    [
        "GITHUB_TOKEN",
        "githubToken",
        "TOKEN_2",
        "DB_PASSWORD2",
        "SECRET1",
        "API_KEYS",
        "APIKEY",
        "SECRETKEY",
        "PGPASSWORD",
        "MYSQL_PWD",
        "AWS_SECRET_ACCESS_KEY",
        "AZURE_STORAGE_KEY",
        "AZURE_STORAGE_SAS_TOKEN",
        "SENTRY_DSN",
        "HTTP_AUTH",
        "CI_JOB_TOKEN",
        "NPM_AUTHTOKEN",
    ],
)
def test_a_variable_is_known_for_a_secret_by_its_name(name: str) -> None:
    """People number them, and write them together."""
    assert masker({name: "q7!Zk-very-se"})("it is q7!Zk-very-se") == "it is ***"


@pytest.mark.parametrize(
    ("url", "secret"),
    [
        ("https://bot:s3cr3t-pw@git.example.com/x.git", "s3cr3t-pw"),
        ("postgres://app:s3cr3t-pw@db.example.com:5432/app", "s3cr3t-pw"),
        ("https://s3cr3t0123456789@o1.ingest.sentry.example/42", "s3cr3t0123456789"),
        ("https://acct.blob.core.windows.net/c?sv=2024-11-04&sig=s3cr3t%2Fpw%3D", "s3cr3t%2Fpw%3D"),
    ],
    ids=["password", "dsn", "user alone", "signature"],
)
def test_an_url_with_credentials_is_masked(url: str, secret: str) -> None:
    """In a variable with a telling name, an URL is left alone only as far as it opens nothing."""
    masked = masker({"SERVICE_DSN": url})(f"connected to {url} at last")

    assert secret not in masked


@pytest.mark.parametrize(
    "value",
    ["/Zk3xE8wLr5Tn2Yc6Gd9Hk4Mp7Qs1Uz0Jb3xE8wL", "/" + BODY[:87]],
    ids=["40 characters", "88 characters"],
)
def test_a_key_that_begins_with_a_slash_is_no_path(value: str) -> None:
    """One in 64 keys of AWS and of Azure storage does: base64 has the slash."""
    assert value not in masker({"AWS_SECRET_ACCESS_KEY": value})(f"with {value}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BITBUCKET_REPO_IS_PRIVATE", "true"),
        ("MAX_TOKENS", "4096"),
        ("DB_PASSWORD", "password"),
        ("DESKTOP_SESSION", "ubuntu"),
        ("SSH_PUBLIC_KEY", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA"),
        ("SSH_AUTH_SOCK", "/tmp/ssh-agent.sock"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/home/me/keys/service.json"),
        ("TOKEN_URL", "https://auth.example.com/oauth/token"),
        ("STATE_KEY", "s3://bucket/state"),
        ("HOME", "/home/somebody"),
        ("TOKENIZER", "bert-base-uncased"),
        ("GIT_AUTHOR_NAME", "Ada Lovelace"),
    ],
)
def test_what_is_no_secret_stays_readable(name: str, value: str) -> None:
    """With every `true`, or each test of a tokenizer, as `***`, people switch masking off."""
    text = f"in test_x[{value}] the value is {value}"

    assert masker({name: value})(text) == text
