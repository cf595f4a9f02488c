"""A provider like `local` whose second node is another machine, as `tests.rigs.machine` makes it.

Variables of the client say more: RIG_CGROUP, a memory cgroup for the second machine; RIG_HEAD_GPUS,
the simulated GPUs of the head where they are not those of the other; RIG_SPOILED, no session can be
prepared on the second machine; RIG_LOG, the file of what that one's init has to say.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pytest_gpu_cluster.contract import procfs
from pytest_gpu_cluster.contract.cluster_directory import is_own, make_directory
from pytest_gpu_cluster.contract.specs import BootSpec, ClusterSecrets, KeeperSpec
from pytest_gpu_cluster.contract.store import credentials
from pytest_gpu_cluster.providers import BootScript, LaunchPlan
from pytest_gpu_cluster.providers.local import LocalProvider, base_directory
from tests.rigs.machine import GUARD
from tests.rigs.world import FIRST, NETWORK, REPOSITORY, SECOND, UNSHARE

START_S = 30.0  # for the guard of the second machine to be there


class HostileProvider(LocalProvider):
    """Clusters of two machines that share nothing but a network."""

    name = "tests.rigs.hostile:HostileProvider"

    def launch(self, plan: LaunchPlan, boot: BootScript, tell: Callable[[str], None]) -> None:
        """Start a guard on each of the two machines."""
        base = base_directory()
        base.mkdir(mode=0o700, exist_ok=True)
        if is_own(base / plan.spec.token):
            return
        directory = make_directory(base, plan.spec.token)
        secrets = ClusterSecrets.new()
        guards = [
            self._start_first(directory, boot, secrets),
            self._start_second(directory, boot, secrets),
        ]
        document = {"store": boot.spec.store, "guards": [[g, procfs.start_time(g)] for g in guards]}
        (directory / "guards.json").write_text(json.dumps(document))

    def _start_first(self, directory: Path, boot: BootScript, secrets: ClusterSecrets) -> int:
        for relative, source in boot.code.items():
            target = directory / "code" / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        of_head = boot.spec
        if gpus := self._environ.get("RIG_HEAD_GPUS"):
            of_head = replace(of_head, gpus_per_node="auto", simulated_gpus=int(gpus))
        spec = self._keeper(directory, of_head, secrets, 0)
        (spec.directory / "handoff").mkdir(parents=True)
        path = spec.directory / "spec.json"
        path.write_text(json.dumps(spec.to_json()))
        with open(spec.directory / "keeper.log", "ab") as log:
            process = subprocess.Popen(
                [self._python, "-m", GUARD, str(path)],
                cwd=spec.directory,
                env={**self._inherited(), "PYTHONPATH": str(directory / "code")},
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        process.returncode = 0  # it outlives this process on purpose
        return process.pid

    def _start_second(self, directory: Path, boot: BootScript, secrets: ClusterSecrets) -> int:
        order = {
            "spec": self._keeper(directory, boot.spec, secrets, 1).to_json(),
            "code": {name: source.read_text() for name, source in boot.code.items()},
            "python": self._python,
            "cgroup": self._environ.get("RIG_CGROUP", ""),
            "hidden": [str(Path.home()), "/tmp"],
            "spoiled": "RIG_SPOILED" in self._environ,
        }
        isolate = [each for each in UNSHARE if each != "--net"]
        path = Path(self._environ["RIG_LOG"])
        with open(path, "ab") as log:
            process = subprocess.Popen(
                [
                    *("nsenter", f"--net=/run/netns/{NETWORK}", *isolate, "--mount-proc"),
                    *(sys.executable, "-m", "tests.rigs.machine"),
                ],
                cwd=REPOSITORY,
                text=True,
                start_new_session=True,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        process.returncode = 0
        assert process.stdin is not None
        with process.stdin:
            json.dump(order, process.stdin)
        deadline = time.monotonic() + START_S
        while (guard := _guard_below(process.pid)) is None:
            log_text = path.read_text()
            assert procfs.start_time(process.pid), f"the second machine did not start: {log_text}"
            assert time.monotonic() < deadline, f"the second machine has no guard: {log_text}"
            time.sleep(0.02)
        return guard

    def _keeper(
        self, directory: Path, boot: BootSpec, secrets: ClusterSecrets, number: int
    ) -> KeeperSpec:
        return KeeperSpec(
            boot=boot,
            secrets=secrets,
            directory=directory / f"n{number}",
            ray_directory=directory / "r",
            head=number == 0,
            ip=(FIRST, SECOND)[number],
            credentials=credentials(self._environ),
        )


def _guard_below(pid: int) -> int | None:
    """Return the pid of the guard: unshare, then its init, then the guard."""
    for init in procfs.children(pid):
        for child in procfs.children(init):
            if GUARD.encode() in procfs.command_line(child):
                return child
    return None
