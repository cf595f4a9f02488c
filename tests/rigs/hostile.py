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
from dataclasses import replace
from pathlib import Path

from pytest_gpu_cluster.contract import procfs
from pytest_gpu_cluster.contract.cluster_directory import is_own, make_directory
from pytest_gpu_cluster.contract.specs import BootSpec, KeeperSpec
from pytest_gpu_cluster.contract.store import credentials
from pytest_gpu_cluster.providers import BootScript, ClusterRef, LaunchPlan
from pytest_gpu_cluster.providers.local import LocalProvider, base_directory
from tests.rigs.machine import GUARD
from tests.rigs.world import FIRST, NETWORK, REPOSITORY, SECOND, UNSHARE

START_S = 30.0  # for the guard of the second machine to be there


class HostileProvider(LocalProvider):
    """Clusters of two machines that share nothing but a network."""

    name = "tests.rigs.hostile:HostileProvider"

    def launch(self, plan: LaunchPlan, boot: BootScript) -> ClusterRef:
        """Start a guard on each of the two machines."""
        ref = ClusterRef(provider=self.name, id=plan.spec.token)
        base = base_directory()
        base.mkdir(mode=0o700, exist_ok=True)
        if is_own(base / ref.id):
            return ref
        directory = make_directory(base, ref.id)
        guards = [
            self._start_first(directory, boot, plan.spec.python),
            self._start_second(directory, boot, plan.spec.python),
        ]
        document = {"store": boot.spec.store, "guards": [[g, procfs.start_time(g)] for g in guards]}
        (directory / "guards.json").write_text(json.dumps(document))
        return ref

    def _start_first(self, directory: Path, boot: BootScript, python: str) -> int:
        for relative, source in boot.code.items():
            target = directory / "code" / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        of_head = boot.spec
        if gpus := self._environ.get("RIG_HEAD_GPUS"):
            of_head = replace(of_head, gpus_per_node="auto", simulated_gpus=int(gpus))
        spec = self._keeper(directory, of_head, 0)
        (spec.directory / "handoff").mkdir(parents=True)
        path = spec.directory / "spec.json"
        path.write_text(json.dumps(spec.to_json()))
        with open(spec.directory / "keeper.log", "ab") as log:
            process = subprocess.Popen(
                [python, "-m", GUARD, str(path)],
                cwd=spec.directory,
                env={**self._inherited(), "PYTHONPATH": str(directory / "code")},
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        process.returncode = 0  # it outlives this process on purpose
        return process.pid

    def _start_second(self, directory: Path, boot: BootScript, python: str) -> int:
        order = {
            "spec": self._keeper(directory, boot.spec, 1).to_json(),
            "code": {name: source.read_text() for name, source in boot.code.items()},
            "python": python,
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

    def _keeper(self, directory: Path, boot: BootSpec, number: int) -> KeeperSpec:
        return KeeperSpec(
            boot=boot,
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
