"""A CI host from another distribution: one module and one entry point."""

from __future__ import annotations

import json
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pytest_gpu_cluster.contract.settings import Settings
from pytest_gpu_cluster.publish import HOSTS, api, detect, publisher
from pytest_gpu_cluster.publish.sender import BackgroundSender
from tests.conftest import RunPython
from tests.unit.publish.rig import BITBUCKET, as_ended

# The module in the documentation is the one that is tested.
DOCUMENTATION = (Path(__file__).parents[3] / "docs" / "ci.md").read_text("utf-8")
ACME = DOCUMENTATION.partition("```python\n")[2].partition("```")[0]
BROKEN = "raise ImportError('made for another version')"
RAISING = ACME.replace("return None", "raise ImportError('made for another version')")
BUILD = {"CI": "true", "ACME_BUILD": "7"}


def install(directory: Path, source: str) -> None:
    """Put a distribution with one CI host into `directory`, as pip lays it out."""
    (directory / "acme_ci.py").write_text(source)
    metadata = directory / "acme_ci-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-ci\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[pytest_gpu_cluster.ci_hosts]\nacme = acme_ci:Acme\n"
    )


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed distributions, empty so far."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("acme_ci", None)


@contextmanager
def serving() -> Iterator[tuple[str, list[tuple[str, object]]]]:
    """Yield the address of a server that takes every PUT, and the path and body of each."""
    received: list[tuple[str, object]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, json.loads(body)))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_host_of_another_distribution_is_detected_and_told(site: Path) -> None:
    """Azure or a company's own CI needs no change here: a module, an entry point, few methods."""
    install(site, ACME)
    with serving() as (url, received):
        environ = {**BUILD, "ACME_API": f"{url}/"}
        ci = detect(environ)
        assert ci is not None
        acme = publisher(ci, Settings(), environ)
        assert acme is not None

        delivery = BackgroundSender(acme).deliver(acme.finished(as_ended("failed")), within_s=10)

    assert (ci.host, ci.api, ci.build) == ("acme", url, "7")
    assert (delivery.updated, delivery.troubles) == (["build page"], [])
    assert received == [("/builds/7", {"verdict": "failed"})]


def test_a_host_without_a_method_shows_nothing_there(site: Path, tmp_path: Path) -> None:
    """The least that a host has to write is what it has to show."""
    install(site, ACME)
    ci = detect(BUILD)
    assert ci is not None
    acme = publisher(ci, Settings(), BUILD)

    assert acme is not None
    report = as_ended("failed")
    assert (acme.started(report), acme.progressed(report)) == ([], [])
    assert (acme.files(report, tmp_path), acme.opening(), acme.closing(report)) == ([], [], [])
    assert (acme.troubles, acme.notes, acme.quarantined(BUILD, str)) == ([], [], [])


def test_the_name_of_the_entry_point_is_the_name_of_the_host(site: Path) -> None:
    """A later `gpu-cluster report` finds the class by the name in the session's record."""
    install(site, ACME.replace('host="acme"', 'host="whatever"'))

    ci = detect(BUILD)

    assert ci is not None
    assert ci.host == "acme"
    assert api("acme", {"ACME_API": "https://acme.example/"}) == "https://acme.example"


def test_a_host_that_is_not_installed_has_no_publisher_and_no_api(site: Path) -> None:
    """The record of a session may come from a machine with other distributions."""
    install(site, ACME)
    ci = detect(BUILD)
    assert ci is not None
    (site / "acme_ci-1.0.dist-info" / "entry_points.txt").unlink()

    assert publisher(ci, Settings(), BUILD) is None
    assert api("acme", {"ACME_API": "https://acme.example"}) == ""


def test_another_host_does_not_recognise_the_environment_of_others(site: Path) -> None:
    """An installed host must not change anything on a Jenkins."""
    install(site, ACME)

    ci = detect({"CI": "true", "BUILD_URL": "https://j.example/9"})

    assert ci is not None
    assert ci.host == "other"


@pytest.mark.parametrize("source", [BROKEN, RAISING], ids=["import", "detect"])
def test_a_host_that_raises_is_skipped_with_a_warning(site: Path, source: str) -> None:
    """A warning names it, and the run goes on: reporting is no reason to break one."""
    install(site, source)

    with pytest.warns(UserWarning, match=r"acme_ci:Acme is skipped: ImportError: made for another"):
        ci = detect({"CI": "true"})

    assert ci is not None
    assert ci.host == "other"


@pytest.mark.parametrize("environ", [{"ACME_BUILD": "7"}, BITBUCKET], ids=["laptop", "bitbucket"])
def test_no_distribution_is_searched_where_it_is_not_needed(
    site: Path, environ: dict[str, str]
) -> None:
    """The search reads every installed distribution, at the start of every run."""
    install(site, BROKEN)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detect(environ)


LOADED = """
import sys
from pytest_gpu_cluster.publish import detect
detect({})
names = [name for name in sys.modules if name.startswith("pytest_gpu_cluster.publish.")]
print(names, "requests" in sys.modules, "importlib.metadata" in sys.modules)
"""


def test_a_laptop_imports_no_host(run_python: RunPython) -> None:
    """`pytest --gpu-cluster` detects the host before anything else; a laptop pays for none."""
    process = run_python("-c", LOADED)

    assert process.stdout.strip() == "[] False False", process.stderr


@pytest.mark.parametrize("name", HOSTS)
def test_a_host_is_registered_under_the_name_that_it_detects(name: str) -> None:
    """Its publisher is looked up by that name, in this process and in a later one."""
    variable, _ = HOSTS[name]

    ci = detect({variable: "true"})

    assert ci is not None
    assert ci.host == name
    assert publisher(ci, Settings(), {}) is not None
