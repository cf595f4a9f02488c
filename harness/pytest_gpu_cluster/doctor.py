"""What would go wrong with a run, looked for before anything is spent."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from pytest_gpu_cluster import options, publish
from pytest_gpu_cluster.asked import cluster_spec
from pytest_gpu_cluster.bucket_costs import Cost, bucket_warnings
from pytest_gpu_cluster.clusters.acquire import new_id
from pytest_gpu_cluster.contract.errors import HarnessError, RequestError
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.masking import PassedValues, not_masked_line
from pytest_gpu_cluster.contract.secret_values import refuse_unmaskable
from pytest_gpu_cluster.contract.settings import Settings
from pytest_gpu_cluster.contract.store import Store, local_path
from pytest_gpu_cluster.project import PYPROJECT, ProjectDirectory
from pytest_gpu_cluster.providers import LaunchPlan, load_provider


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at. With a remedy though `ok`, it is a warning."""

    check: str
    ok: bool
    said: str
    remedy: str = ""

    def __str__(self) -> str:
        word = "FAIL" if not self.ok else "warn" if self.remedy else "ok  "
        line = f"{word} {self.check}: {self.said}"
        return f"{line}\n     remedy: {self.remedy}" if self.remedy else line


def examine(
    project: ProjectDirectory, profile: str | None, environ: Mapping[str, str]
) -> Iterator[Check]:
    """Yield each check on its own, so that one failure hides no other."""
    examination = Examination(project, profile, environ)
    for name, look in (
        ("settings", examination.read_settings),
        ("store", examination.write_to_store),
        ("secrets", examination.name_secrets),
        ("environment", examination.describe_environment),
        ("cluster", examination.examine_plan),
        ("CI host", examination.detect_host),
    ):
        yield _check(name, look)
    yield from examination.price_bucket()


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(check=name, ok=True, said=look())
    except HarnessError as problem:
        return Check(check=name, ok=False, said=problem.what, remedy=problem.remedy)


class Examination:
    """Each method returns what was found, or raises a HarnessError.

    Without settings the defaults are examined.
    """

    def __init__(
        self, project: ProjectDirectory, profile: str | None, environ: Mapping[str, str]
    ) -> None:
        self._project, self._profile, self._environ = project, profile, environ
        self._settings = Settings()

    def read_settings(self) -> str:
        path = self._project.root / PYPROJECT
        self._settings = options.read_settings(path, profile=self._profile, environ=self._environ)
        if not self._project.configured:
            return f"no [tool.gpu-cluster] here or above; the defaults hold in {path.parent}"
        return str(path)

    def write_to_store(self) -> str:
        path = local_path(self._settings.store, base=self._project.root)
        if path is not None and not path.exists() and _can_be_made(path):
            return f"{path} will be made by the first run"
        store = Store.open(self._settings.store, base=self._project.root)
        store.check_writable()
        return store.url

    def price_bucket(self) -> Iterator[Check]:
        """Yield a warning for each thing that makes a bucket of S3 dear."""
        url = self._settings.store
        try:
            costs = bucket_warnings(url, self._environ) if url.startswith("s3://") else []
        except ImportError:
            remedy = "pip install boto3, and ask again; no run needs it"
            costs = [Cost("versions, encryption and lifecycle were not looked at", remedy)]
        for cost in costs:
            yield Check(check="bucket", ok=True, said=cost.text, remedy=cost.remedy)

    def name_secrets(self) -> str:
        settings = self._settings
        env = options.passed_variables(self._environ, settings.pass_env)
        refuse_unmaskable(env, settings.secret_env)
        passed = PassedValues(env=env, secret_env=settings.secret_env)
        names = sorted({secret.name for secret in passed.secrets()})
        masked = f"masked: {', '.join(names)}" if names else "none is passed"
        return "; ".join(filter(None, [masked, not_masked_line(passed)]))

    def describe_environment(self) -> str:
        return self._plan().environment

    def examine_plan(self) -> str:
        return "; ".join(" ".join(line.split()) for line in self._plan().examine())

    def _plan(self) -> LaunchPlan:
        provider = load_provider(self._settings.provider, self._settings, self._environ)
        version = pytest.__version__
        return provider.plan(cluster_spec(self._settings, token=new_id(), pytest_version=version))

    def detect_host(self) -> str:
        ci = publish.detect(self._environ)
        if ci is None:
            return "none: results are not published"
        host = publish.publisher(ci, self._settings, self._environ)
        if host is None:
            return f"{ci.host}: files in {self._settings.reports.results_dir}"
        if host.troubles:
            raise RequestError(
                f"{host.name}: {host.troubles[0]}",
                remedy="correct that variable; the tests themselves do not need it",
            )
        return "; ".join([f"{host.name}, {ci.repository} at {ci.commit[:12]}", *host.notes])


def _can_be_made(path: Path) -> bool:
    """Try it in the nearest directory that exists, and leave nothing there."""
    above = next(parent for parent in path.parents if parent.exists())
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".gpu-cluster-", dir=above))
    except OSError:
        return False
    return True
