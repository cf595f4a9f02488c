"""The provider `ray` against dashboards that are none, or not ours, each said in its own words."""

from __future__ import annotations

import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Literal

import pytest

from pytest_gpu_cluster.contract.errors import (
    EnvironmentBuildError,
    HarnessError,
    InfrastructureError,
    RequestError,
    TeardownError,
)
from pytest_gpu_cluster.contract.failures import FailureClass
from pytest_gpu_cluster.contract.settings import Settings
from pytest_gpu_cluster.contract.specs import BootSpec
from pytest_gpu_cluster.contract.waits import Waits
from pytest_gpu_cluster.node.processes import free_ports
from pytest_gpu_cluster.providers import BootScript, ClusterRef, ClusterSpec
from pytest_gpu_cluster.providers.ray import RayProvider, package

Answer = tuple[int, str]
LOGIN = "<!doctype html><html><title>Sign in</title></html>"


@contextmanager
def answering(answer: Callable[[str, str], Answer]) -> Iterator[str]:
    """Give the address of a server; `answer` has its answers, by path and Authorization."""
    with dashboard(lambda method, path, token, body: answer(path, token)) as address:
        yield address


@contextmanager
def dashboard(answer: Callable[[str, str, str, bytes], Answer]) -> Iterator[str]:
    """Give the address of a server; `answer` gets method, path, Authorization and body."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            token = self.headers.get("Authorization", "")
            code, body = answer(self.command, self.path, token, sent)
            self.send_response(code)
            if code in (301, 302):
                self.send_header("Location", "https://login.example/")
            self.end_headers()
            self.wfile.write(body.encode())

        def do_POST(self) -> None:
            self.do_GET()

        def do_PUT(self) -> None:
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class Dashboard:
    """A dashboard that takes one job, and what it was sent."""

    def __init__(self, job: dict[str, object] | None = None) -> None:
        self.job, self.log = job, ""
        self.sent: list[tuple[str, str, bytes]] = []  # method, path, body
        self.tokens: set[str] = set()

    def answer(self, method: str, path: str, token: str, body: bytes) -> Answer:
        self.sent.append((method, path, body))
        self.tokens.add(token)
        match method, path.removeprefix("/api/").partition("/"):
            case "GET", ("version", _, _):
                return 200, version("2.60.0")
            case "GET", ("packages", _, _):
                return 404, "Package does not exist"
            case "POST", ("jobs", _, ""):
                if self.job is not None:
                    return 500, "ValueError: Job with submission_id c1 already exists."
                self.job = {"submission_id": "c1", "status": "PENDING", **json.loads(body)}
                return 200, json.dumps(self.job)
            case "GET", ("jobs", _, rest) if rest.endswith("/logs"):
                return 200, json.dumps({"logs": self.log})
            case "GET", ("jobs", _, "c1") if self.job is not None:
                return 200, json.dumps(self.job)
            case "GET", ("jobs", _, _):
                return 404, "Job does not exist"
        return 200, "{}"


def provider(address: str, **environ: str) -> RayProvider:
    settings = replace(Settings(), provider_settings={"ray": {"address": address}})
    return RayProvider(settings, environ)


def spec(gpus_per_node: int | Literal["auto"] = 1) -> ClusterSpec:
    return ClusterSpec(
        token="c1",
        nodes=2,
        gpus_per_node=gpus_per_node,
        pytest_version="9.2.0",
        idle_s=0.0,
        deadline_s=60.0,
    )


def refusal(address: str, **environ: str) -> HarnessError:
    with pytest.raises(HarnessError) as caught:
        provider(address, **environ).plan(spec()).examine()
    return caught.value


def version(number: str) -> str:
    return json.dumps({"version": "4", "ray_version": number})


def test_an_address_of_nothing_is_named() -> None:
    """The first thing that goes wrong is the address, or the way to it."""
    (port,) = free_ports(1)

    problem = refusal(f"http://127.0.0.1:{port}")

    assert isinstance(problem, InfrastructureError)
    assert f"nothing answers at http://127.0.0.1:{port}: " in problem.what
    assert "refused" in problem.what
    assert "address" in problem.remedy


@pytest.mark.parametrize("address", ["head:8265", "ftp://head", ""])
def test_what_is_no_url_is_refused_before_it_is_tried(address: str) -> None:
    """`head:8265` is what Ray itself takes for a node's address."""
    problem = refusal(address)

    assert isinstance(problem, RequestError)
    assert "http://head:8265" in problem.remedy


@pytest.mark.parametrize(
    ("environ", "words"),
    [({}, "wants a token"), ({"RAY_AUTH_TOKEN": "wr0ng-t0ken"}, "refuses the token")],
)
def test_a_missing_and_a_wrong_token_are_told_apart(environ: dict[str, str], words: str) -> None:
    """And the token is in no message."""
    with answering(lambda path, token: (401, "Unauthorized: missing token")) as address:
        problem = refusal(address, **environ)

    assert isinstance(problem, RequestError)
    assert words in problem.what
    assert "RAY_AUTH_TOKEN" in problem.remedy
    assert "wr0ng-t0ken" not in str(problem)


@pytest.mark.parametrize("code", [200, 302, 403, 502])
def test_a_page_of_a_proxy_is_no_dashboard(code: int) -> None:
    """It answers with 200 as well as with a redirect; and no token follows a redirect."""
    with answering(lambda path, token: (code, LOGIN)) as address:
        problem = refusal(address)

    assert isinstance(problem, RequestError)
    assert "headers" in problem.remedy or code == 403


def test_an_older_ray_is_a_matter_of_the_environment() -> None:
    """It is seen before anything is sent there."""
    with answering(lambda path, token: (200, version("2.40.0"))) as address:
        problem = refusal(address)

    assert isinstance(problem, EnvironmentBuildError)
    assert "2.40.0" in problem.what


def test_the_token_of_a_named_variable_opens_the_dashboard() -> None:
    """A vendor's own name for it, and no other variable, is read."""
    seen: list[str] = []

    def answer(path: str, token: str) -> Answer:
        seen.append(token)
        return 200, version("2.60.0")

    with answering(answer) as address:
        table = {"address": address, "token-env": "VENDOR_TOKEN"}
        settings = replace(Settings(), provider_settings={"ray": table})
        environ = {"VENDOR_TOKEN": "t0k3n", "RAY_AUTH_TOKEN": "other"}
        RayProvider(settings, environ).plan(spec()).examine()

    assert seen == ["Bearer t0k3n"]


def test_the_package_is_the_same_for_the_same_files(tmp_path: Path) -> None:
    """Its name is that of its content: Ray takes it once, and keeps it for the next session."""
    (tmp_path / "b.py").write_text("b = 1")
    (tmp_path / "a.py").write_text("a = 1")
    code = {"p/b.py": tmp_path / "b.py", "p/a.py": tmp_path / "a.py"}

    name, content = package(code)

    assert (name, content) == package(dict(reversed(code.items())))
    assert zipfile.ZipFile(BytesIO(content)).namelist() == ["p/a.py", "p/b.py"]


def boot() -> BootScript:
    spec = BootSpec(
        cluster="c1",
        store="s3://bucket/prefix",
        code="d1",
        nodes=2,
        gpus_per_node=1,
        simulated_gpus=0,
        idle_s=0.0,
        deadline_s=60.0,
        waits=Waits(),
        sealed=True,
    )
    return BootScript(code={"p/__init__.py": Path(__file__)}, spec=spec)


def test_what_is_submitted_has_no_secret() -> None:
    """Every user of that Ray can read it: entry, metadata, environment and code."""
    ray = Dashboard()
    with dashboard(ray.answer) as address:
        ours = provider(address, RAY_AUTH_TOKEN="t0k3n-of-ray", AWS_SECRET_ACCESS_KEY="s3cr3t")
        ours.launch(ours.plan(spec()), boot(), lambda line: None)

    assert ray.tokens == {"Bearer t0k3n-of-ray"}
    bodies = b"".join(body for _, _, body in ray.sent)
    assert b"t0k3n-of-ray" not in bodies
    assert b"s3cr3t" not in bodies
    assert ray.job is not None
    assert set(ray.job) == {
        *("submission_id", "status", "entrypoint", "runtime_env", "metadata"),
    }


def test_a_job_that_is_there_already_is_the_one_that_was_asked_for() -> None:
    """The answer to a first submission may be lost on its way; the token makes one of two."""
    ray = Dashboard({"submission_id": "c1", "status": "RUNNING"})
    with dashboard(ray.answer) as address:
        ours = provider(address)
        ours.launch(ours.plan(spec()), boot(), lambda line: None)

        assert ours.state(ClusterRef(provider="ray", id="c1")).state == "running"
        assert ours.state(ClusterRef(provider="ray", id="c2")).state == "gone"


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        ({"driver_exit_code": 12}, FailureClass.CAPACITY),
        ({"driver_exit_code": 13}, FailureClass.LIMIT),
        ({"driver_exit_code": 127}, FailureClass.ENVIRONMENT),
        ({"driver_exit_code": 1}, FailureClass.INFRASTRUCTURE),
        ({"error_type": "RUNTIME_ENV_SETUP_FAILURE"}, FailureClass.ENVIRONMENT),
    ],
)
def test_the_class_of_a_failure_comes_from_the_exit_code(
    job: dict[str, object], expected: FailureClass
) -> None:
    """Of the driver; what it said last is the reason, without Ray's own lines."""
    ray = Dashboard({"submission_id": "c1", "status": "FAILED", "message": "of Ray", **job})
    ray.log = "Runtime env is setting up.\ngpu-cluster: waits\ngpu-cluster: no GPU\n  remedy: buy\n"
    with dashboard(ray.answer) as address:
        state = provider(address).state(ClusterRef(provider="ray", id="c1"))

    assert (state.state, state.failure_class) == ("gone", expected)
    assert state.reason == "no GPU\n  remedy: buy"


def test_a_dashboard_that_does_not_answer_says_nothing_of_a_cluster() -> None:
    """The tests there go on without it."""
    (port,) = free_ports(1)
    ref = ClusterRef(provider="ray", id="c1")

    assert provider(f"http://127.0.0.1:{port}").state(ref).state == "unknown"
    with answering(lambda path, token: (502, "")) as address:
        assert provider(address).state(ref).state == "unknown"


def test_a_token_goes_to_no_address_that_a_record_names() -> None:
    """Whoever may write to the store could have it sent to his own server."""
    seen: list[str] = []

    def answer(path: str, token: str) -> Answer:
        seen.append(token)
        return 200, "{}"

    with answering(answer) as theirs:
        ref = ClusterRef(provider="ray", id="c1", where={"address": theirs})
        ours = provider("http://127.0.0.1:1", RAY_AUTH_TOKEN="t0k3n")

        assert ours.state(ref).state == "unknown"
        with pytest.raises(TeardownError, match="the settings name http://127"):
            ours.close(ref)

    assert seen == []


@pytest.mark.parametrize("gpus", ["auto", 0])
def test_a_cluster_that_others_use_is_asked_for_a_number(gpus: int | Literal["auto"]) -> None:
    """All there are would be those of everybody."""
    with pytest.raises(RequestError, match="other users"):
        provider("http://head:8265").plan(spec(gpus_per_node=gpus))
