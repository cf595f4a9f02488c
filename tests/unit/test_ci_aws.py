"""The AWS role of a pipeline: its policies, its token, and the store that uses both."""

from __future__ import annotations

import os
import re
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from pytest_gpu_cluster.contract.store import Store
from tests.unit.ci_files import BITBUCKET, CI, GITLAB, README, load, texts

TRUSTS = sorted(CI.glob("iam/trust-*.json"))


@pytest.mark.parametrize("path", TRUSTS, ids=lambda path: path.name)
def test_a_trust_policy_says_who_and_for_whom(path: Path) -> None:
    """Without `sub` every repository of the host could take the role.

    The audience is compared whole. Both are keys of the provider that the policy names.
    """
    (statement,) = load(path)["Statement"]
    issuer = statement["Principal"]["Federated"].partition("oidc-provider/")[2]

    assert statement["Action"] == "sts:AssumeRoleWithWebIdentity"
    assert list(statement["Condition"]["StringEquals"]) == [f"{issuer}:aud"]
    assert list(statement["Condition"]["StringLike"]) == [f"{issuer}:sub"]
    subjects = statement["Condition"]["StringLike"][f"{issuer}:sub"]
    for subject in [subjects] if isinstance(subjects, str) else subjects:
        assert re.match(
            r"(\{REPOSITORY_UUID\}|repo:OWNER(@OWNER_ID)?/REPOSITORY|project_path:GROUP/PROJECT:)",
            subject,
        )


def test_the_audiences_are_those_that_the_files_ask_for() -> None:
    """GitHub's is the default of the action that the workflow logs in with."""
    (gitlab,) = load(CI / "iam" / "trust-gitlab.json")["Statement"][0]["Condition"][
        "StringEquals"
    ].values()
    (github,) = load(CI / "iam" / "trust-github.json")["Statement"][0]["Condition"][
        "StringEquals"
    ].values()

    assert load(GITLAB)[".gpu-cluster"]["id_tokens"]["AWS_ID_TOKEN"]["aud"] == gitlab
    assert github == "sts.amazonaws.com"


def test_the_role_may_only_use_its_prefix() -> None:
    """What the store does: get, put (in parts too), list, delete."""
    actions = {
        action: s["Resource"]
        for s in load(CI / "iam" / "store-policy.json")["Statement"]
        for action in ([s["Action"]] if isinstance(s["Action"], str) else s["Action"])
    }

    assert actions.pop("s3:ListBucket") == "arn:aws:s3:::BUCKET"
    assert set(actions) == {
        "s3:GetObject",
        "s3:PutObject",
        "s3:DeleteObject",
        "s3:AbortMultipartUpload",
    }
    assert set(actions.values()) == {"arn:aws:s3:::BUCKET/PREFIX/*"}


TOKEN = "aGVhZA.eyJzdWIiOiAie3JlcG99OntzdGVwfSJ9.c2lnbg"


def test_the_line_that_decodes_a_token_shows_its_claims_alone() -> None:
    """The signature is what makes it a credential."""
    (line,) = re.findall(r"^python3 -c '(.*)'$", README, re.MULTILINE)

    said = subprocess.run(
        [sys.executable, "-c", line],
        env={"BITBUCKET_STEP_OIDC_TOKEN": TOKEN},
        text=True,
        capture_output=True,
        timeout=30,
        check=True,
    ).stdout

    assert said.strip() == """b'{"sub": "{repo}:{step}"}'"""


STS_ANSWER = """<AssumeRoleWithWebIdentityResponse
xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult><Credentials>
<SessionToken>borrowed</SessionToken><SecretAccessKey>k</SecretAccessKey>
<Expiration>2099-01-01T00:00:00Z</Expiration><AccessKeyId>AKIDBORROWED</AccessKeyId></Credentials>
</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"""


@pytest.fixture
def aws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[tuple[str, dict[str, list[str]], str]]]:
    """The requests to a token service and a bucket, as (path, query, access key).

    Both are behind TLS: the store's client asks for a role over nothing else. The environment leads
    there, and has no credentials.
    """
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate with")
    certificate = tls(tmp_path)
    seen: list[tuple[str, dict[str, list[str]], str]] = []

    class Answer(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            url = urlsplit(self.path)
            key = re.search(r"Credential=(\w+)/", self.headers.get("authorization", ""))
            seen.append((url.path, parse_qs(url.query), key[1] if key else ""))
            body = STS_ANSWER.encode() if "AssumeRole" in url.query else b""
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.send_header("etag", '"e"')
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = answer  # noqa: N815 - the names that http.server looks for

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    url = f"https://localhost:{server.server_port}"
    given = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ENDPOINT_URL_STS": url,
        "SSL_CERT_FILE": str(tmp_path / "ca.pem"),
        "AWS_REGION": "eu-central-1",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    yield seen
    server.shutdown()
    thread.join()
    server.server_close()


def tls(where: Path) -> Path:
    """A certificate for localhost with its key; beside it, as ca.pem, the authority that signed."""
    make = ("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    (where / "names").write_text("subjectAltName=DNS:localhost")
    for command in (
        (*make, "-x509", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority"),
        (*make, "-keyout", "key.pem", "-out", "request.pem", "-subj", "/CN=localhost"),
        (
            "openssl",
            "x509",
            "-req",
            "-in",
            "request.pem",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-extfile",
            "names",
            "-out",
            "signed.pem",
        ),
    ):
        subprocess.run(command, cwd=where, check=True, capture_output=True, timeout=30)
    both = where / "server.pem"
    both.write_text((where / "signed.pem").read_text() + (where / "key.pem").read_text())
    return both


@pytest.mark.parametrize(
    ("path", "token", "number", "name"),
    [
        (BITBUCKET, "BITBUCKET_STEP_OIDC_TOKEN", "BITBUCKET_BUILD_NUMBER", "bitbucket-7"),
        (GITLAB, "AWS_ID_TOKEN", "CI_JOB_ID", "gitlab-7"),
    ],
    ids=["bitbucket", "gitlab"],
)
def test_the_store_takes_the_role_with_the_token_that_the_script_wrote(
    path: Path,
    token: str,
    number: str,
    name: str,
    aws: list[tuple[str, dict[str, list[str]], str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The file's own lines, run by a shell, then the store.

    The token must arrive as it is, because a line break is sent along and AWS refuses it.
    """
    lines = next(
        text for text in texts(load(path)) if text.startswith("export AWS_WEB_IDENTITY_TOKEN_FILE")
    )
    script = lines.replace("/tmp/", f"{tmp_path}/") + '\nenv | grep "^AWS_[WR]"'
    env = {
        "PATH": "/usr/bin:/bin",
        token: TOKEN,
        number: "7",
        "AWS_ROLE_ARN": "arn:aws:iam::1:role/tests",
    }
    said = subprocess.run(
        ["sh", "-e", "-c", script], env=env, text=True, capture_output=True, timeout=30, check=True
    ).stdout
    for line in said.splitlines():
        monkeypatch.setenv(*line.split("=", 1))

    Store.open("s3://bucket/prefix", base=tmp_path).put("key", b"value")

    (_, asked, _), (put, _, key) = aws
    assert asked["WebIdentityToken"] == [TOKEN]
    assert asked["RoleArn"] == ["arn:aws:iam::1:role/tests"]
    assert asked["RoleSessionName"] == [name]
    assert (put, key) == ("/bucket/prefix/key", "AKIDBORROWED")
    assert Path(os.environ["AWS_WEB_IDENTITY_TOKEN_FILE"]).stat().st_mode & 0o777 == 0o600
