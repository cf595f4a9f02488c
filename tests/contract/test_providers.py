"""The contract that every provider keeps: those of the registry, and one from outside the package.

Each provider launches one real cluster, which all tests of this module share.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pytest_gpu_cluster.clusters.acquire import boot_spec
from pytest_gpu_cluster.contract.cluster_record import ClusterPhase, ClusterRecord
from pytest_gpu_cluster.contract.errors import HarnessError, InfrastructureError, RequestError
from pytest_gpu_cluster.contract.settings import Settings
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.environment import own_code
from pytest_gpu_cluster.options import read_settings
from pytest_gpu_cluster.providers import (
    REGISTRY,
    BootScript,
    ClusterRef,
    ClusterSpec,
    LaunchPlan,
    Provider,
    load_provider,
    provider_class,
)
from pytest_gpu_cluster.providers.local import LocalProvider
from pytest_gpu_cluster.providers.ray import RayProvider
from tests.acceptance.processes import eventually
from tests.conftest import RunPython
from tests.contract.directories import DirectoryProvider
from tests.rigs.ray_cluster import ray_rig

# For mypy to check.
CLASSES: tuple[type[Provider], ...] = (LocalProvider, RayProvider, DirectoryProvider)
OUTSIDE = DirectoryProvider.name
HEAVY = ("boto3", "botocore", "obstore", "pynvml", "ray", "torch")
START_S = 60.0  # for a node to be ready


@dataclass(frozen=True, kw_only=True)
class Launched:
    """A cluster that runs, and the request that made it."""

    provider: Provider
    plan: LaunchPlan
    boot: BootScript
    ref: ClusterRef

    @property
    def unknown(self) -> ClusterRef:
        """A cluster of the same provider that was never launched."""
        return replace(self.ref, id=new_token())


def new_token() -> str:
    return f"c{secrets.token_hex(3)}"


def new_spec() -> ClusterSpec:
    """Return the spec of a cluster of one node with one GPU."""
    return ClusterSpec(
        token=new_token(),
        nodes=1,
        gpus_per_node=1,
        pytest_version=pytest.__version__,
        deadline_s=300.0,
        idle_s=60.0,
    )


def boot_script(plan: LaunchPlan, store: Store) -> BootScript:
    """Return the keeper's code, and a spec as `clusters.launch` writes it."""
    return BootScript(code=own_code(), spec=boot_spec(store, plan, ""))


def quietly(line: str) -> None:
    """Show nothing of what is waited for."""


def is_idle(store: Store, cluster: str) -> bool:
    """Return whether the keeper has announced that Ray is up."""
    return ClusterRecord(store, cluster).announcement().state is ClusterPhase.IDLE


def processes_of(cluster: str, word: str = "") -> set[int]:
    """Return the pids of processes whose environment or command line names the cluster.

    With `word`, only those that have it in their command line.
    """
    pids = set()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (path / "cmdline").read_bytes()
            text = line + (path / "environ").read_bytes()
            if f"/{cluster}/".encode() in text and word.encode() in line:
                pids.add(int(path.name))
    return pids - {os.getpid()}


def owned_ids(provider: Provider) -> list[str]:
    return [owned.ref.id for owned in provider.owned()]


@pytest.fixture(scope="module", params=[*REGISTRY, OUTSIDE])
def launched(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Launched]:
    """One cluster of each provider, in a store of its own."""
    folder = tmp_path_factory.mktemp("provider")
    with table_of(request.param, folder) as table:
        yield from launch(request.param, table, folder)


@contextlib.contextmanager
def table_of(name: str, folder: Path) -> Iterator[dict[str, object]]:
    """Give the settings with which a provider finds what it is to use."""
    if name != RayProvider.name:
        yield {"folder": str(folder / "clusters")} if name == OUTSIDE else {}
        return
    with (
        ray_rig(Path(f"/tmp/gpu-rig-{os.getpid()}-c"), nodes=1) as rig,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_AUTH_TOKEN", rig.token)
        yield {"address": rig.address}


def launch(name: str, table: dict[str, object], folder: Path) -> Iterator[Launched]:
    """Launch a cluster in a store of its own, and close it."""
    settings = Settings(provider=name, provider_settings={name: table})
    provider = load_provider(name, settings, os.environ)
    store = Store.open("store", base=folder)
    plan = provider.plan(new_spec())
    boot = boot_script(plan, store)
    ref = ClusterRef(provider=provider.name, id=plan.spec.token, where=plan.where)
    try:
        provider.launch(plan, boot, quietly)
        if name in REGISTRY:
            assert eventually(lambda: is_idle(store, ref.id), within_s=START_S), provider.state(ref)
        yield Launched(provider=provider, plan=plan, boot=boot, ref=ref)
    finally:
        provider.close(ref)


@pytest.mark.parametrize("name", [*REGISTRY, OUTSIDE])
def test_a_provider_goes_by_the_name_that_settings_and_records_have(name: str) -> None:
    """The record of a cluster names its provider, which must be found again to end the cluster."""
    assert load_provider(name, Settings(), os.environ).name == name


@pytest.mark.parametrize("name", [*REGISTRY, OUTSIDE])
def test_each_key_of_a_table_refuses_what_is_not_expected(tmp_path: Path, name: str) -> None:
    """A provider's settings cost money too; they are checked before anything is asked of it."""
    for key, rule in provider_class(name).keys.items():
        toml = f'[tool.gpu-cluster]\nprovider = "{name}"\n"{name}".{key} = [{{ a = 1 }}]\n'
        (tmp_path / "pyproject.toml").write_text(toml)

        with pytest.raises(RequestError) as caught:
            read_settings(tmp_path / "pyproject.toml", profile=None, environ={})

        assert f"tool.gpu-cluster.{name}.{key} in " in caught.value.what
        assert f"expected {rule.expected}" in caught.value.what


@pytest.mark.parametrize("name", REGISTRY)
def test_a_provider_is_imported_without_its_sdk(run_python: RunPython, name: str) -> None:
    """Each run imports every provider of the registry, also those that it does not use."""
    module = REGISTRY[name].partition(":")[0]

    process = run_python("-c", f"import sys, {module}; print(*sys.modules)")

    assert process.returncode == 0, process.stderr
    assert set(HEAVY).isdisjoint(process.stdout.split())


def test_a_plan_says_what_it_costs_and_spends_nothing(launched: Launched) -> None:
    """`--gpu-plan` is what people run before they dare."""
    spec = new_spec()

    plan = launched.provider.plan(spec)

    assert plan.spec == spec
    assert plan.examine()
    assert plan.environment
    assert plan.price_ceiling_usd is None or plan.price_ceiling_usd >= 0
    assert spec.token not in owned_ids(launched.provider)
    assert processes_of(spec.token) == set()


def test_what_was_launched_is_found_again(launched: Launched) -> None:
    """A killed client leaves machines behind; the next client finds them without its memory."""
    stranger = load_provider(
        launched.ref.provider,
        Settings(provider_settings={launched.ref.provider: dict(launched.plan.where)}),
        os.environ,
    )

    assert launched.ref.id in owned_ids(stranger)
    assert stranger.state(launched.ref).state == "running"
    assert stranger.plan(launched.plan.spec).shape == launched.plan.shape


def test_launching_twice_with_one_token_is_one_cluster(launched: Launched) -> None:
    """An answer that was lost is asked for again, and must not be paid for twice."""
    keepers = processes_of(launched.ref.id, "node.guard")

    launched.provider.launch(launched.plan, launched.boot, quietly)

    assert owned_ids(launched.provider).count(launched.ref.id) == 1
    assert processes_of(launched.ref.id, "node.guard") == keepers


def test_an_unknown_cluster_is_gone_and_closing_it_is_quiet(launched: Launched) -> None:
    """Records outlive machines; what is not there any more must not stop a sweep."""
    state = launched.provider.state(launched.unknown)

    assert (state.state, bool(state.reason)) == ("gone", True)
    launched.provider.close(launched.unknown)
    launched.provider.close(launched.unknown, now=True)


def test_every_error_is_ours_and_has_a_remedy(launched: Launched, tmp_path: Path) -> None:
    """The exit code and the report are made of the class; a vendor's error would be a traceback."""
    name = launched.ref.provider
    settings = Settings(
        require_gpu=True, simulated_gpus=0, provider_settings={name: dict(launched.plan.where)}
    )
    provider, spec = load_provider(name, settings, os.environ), new_spec()
    broken = BootScript(code={"absent.py": tmp_path / "absent.py"}, spec=launched.boot.spec)
    errors: list[HarnessError] = []

    # What a Ray that is there has, and with which versions, its own nodes say.
    impossible = replace(spec, gpus_per_node=10_000), replace(spec, pytest_version="0.1")
    for wrong in impossible if name != RayProvider.name else ():
        with pytest.raises(RequestError) as caught:
            provider.plan(wrong).examine()
        errors.append(caught.value)
    with pytest.raises(InfrastructureError) as failure:
        provider.launch(provider.plan(spec), broken, quietly)
    errors.append(failure.value)
    provider.close(replace(launched.ref, id=spec.token))

    assert all(error.what and error.remedy for error in errors)
    assert spec.token not in owned_ids(provider)


def test_closing_leaves_nothing_and_may_be_repeated(launched: Launched) -> None:
    """The last test of a cluster: whoever comes second, client or sweep, has nothing left to do."""
    launched.provider.close(launched.ref)
    launched.provider.close(launched.ref)

    assert launched.provider.state(launched.ref).state == "gone"
    assert launched.ref.id not in owned_ids(launched.provider)
    assert processes_of(launched.ref.id) == set()
