"""The tasks and actors of a test that drives the cluster: they run as if the test had called them.

A test's `ray.init()` gives its job a runtime environment. With it each of the job's processes finds
the modules that the test finds, and starts in the test's directory with its environment. What the
user gives in a `runtime_env` of his own comes before it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from pytest_gpu_cluster.contract.specs import WorkerSpec
from pytest_gpu_cluster.ray_remains import job_config, process_name
from pytest_gpu_cluster.worker import task_entry

HOOK = f"{task_entry.__name__}.{task_entry.enter_tree.__name__}"
# Of the test process, and not of its tasks: Ray gives each task its own devices.
OWN = ("CUDA_VISIBLE_DEVICES", "PYTHONPATH", "COVERAGE_FILE", "PYTEST_CURRENT_TEST")


def write_variables(spec: WorkerSpec) -> None:
    """Write the environment of this process into a file that no other user reads."""
    values = {
        name: value
        for name, value in os.environ.items()
        if name not in OWN and not name.startswith(("RAY_", "GPU_CLUSTER_"))
    }
    with open(os.open(_file(spec), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(values, file)


def variables(spec: WorkerSpec, code: Path) -> Mapping[str, str]:
    """Return the variables by which Ray gives every job of this process that environment.

    `code` is the import root of this package, for the hook.
    """
    runtime_env = {
        "worker_process_setup_hook": HOOK,
        "env_vars": {
            "PYTHONPATH": os.pathsep.join(dict.fromkeys([str(code), *_import_path(spec)])),
            task_entry.CWD: spec.tree.cwd,
            task_entry.VARIABLES: str(_file(spec)),
        },
    }
    process = process_name(spec.testrun, spec.worker)
    return {
        "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job_config(process, runtime_env)),
        "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",  # what the user gives himself comes first
    }


def _import_path(spec: WorkerSpec) -> Iterator[str]:
    """Yield what sys.path has of the tree, in its order, then the rest of PYTHONPATH."""
    top = Path(spec.tree.root)
    for place in sys.path:
        path = Path(place or os.curdir).absolute()
        if path == top or top in path.parents:
            yield str(path)
    yield spec.tree.cwd
    yield from filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))


def _file(spec: WorkerSpec) -> Path:
    return Path(spec.scratch, "variables.json")
