"""Every row of the table of bad input: exit code, the words a user reads, nothing left running,
nothing lost.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.processes import left_of
from tests.acceptance.project import Project, Ran

PASSING = "def test_passes():\n    pass\n"
LIBRARY_MISSING = "libnowhere.so.12: cannot open shared object file"


def refused(ran: Ran, *words: str) -> None:
    """Exit 4, each word said, a remedy beside them, and no cluster asked for."""
    assert ran.code == 4, ran.out
    for word in (*words, "remedy:"):
        assert word in ran.out, f"{word!r} is not in:\n{ran.out}"
    assert ran.cluster == "", "a cluster was started for a request that cannot be met"
    assert "Traceback" not in ran.out


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("nodez = 2", ("tool.gpu-cluster.nodez", "pyproject.toml", "did you mean nodes?")),
        ("nodes = 0", ("tool.gpu-cluster.nodes", "is 0", "a whole number, 1 or more")),
        ('distribute = "tests"', ("tool.gpu-cluster.distribute", "'tests'", '"module"')),
        ('provider = "locl"', ("tool.gpu-cluster.provider", "'locl'", "did you mean local?")),
        (
            'provider = "nowhere.at_all:Cloud"',
            ("'nowhere.at_all:Cloud' cannot be loaded", "install its package"),
        ),
        (
            'local.python = "bin/absent"',
            ("tool.gpu-cluster.local.python", "'bin/absent'", "not an executable file"),
        ),
        ("[tool.gpu-cluster.profile.ci]\nnodes = 2", ("--gpu-profile big", "it has: ci")),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_what_was_expected(
    lone: Project, settings: str, words: tuple[str, ...]
) -> None:
    """A typo must cost a second, not a cluster that runs something else."""
    lone.write(test_a=PASSING)
    lone.settings(settings)

    ran = lone.run(*(["--gpu-profile", "big"] if "profile" in settings else []))

    refused(ran, *words)
    assert not Path(lone.store).exists(), "a refused request wrote a store"


def test_a_wrong_variable_is_named_with_a_suggestion(lone: Project) -> None:
    """In CI the settings come as variables, where a typo is not even in the diff."""
    lone.write(test_a=PASSING)

    refused(
        lone.run(GPU_CLUSTER_NODEZ="2"),
        "environment variable GPU_CLUSTER_NODEZ",
        "did you mean GPU_CLUSTER_NODES?",
    )


@pytest.mark.parametrize("flag", ["--pdb", "--trace"])
def test_a_debugger_is_refused_with_the_way_to_have_one(lone: Project, flag: str) -> None:
    """There is no terminal beside the test: a prompt that nobody can answer would hang until the
    deadline.
    """
    lone.write(test_a=PASSING)

    refused(lone.run(flag), f"{flag} needs a terminal", "without --gpu-cluster")


def test_a_store_that_is_a_file_is_refused(lone: Project) -> None:
    """The store is all that both sides share; without it nothing may start."""
    Path(lone.store).write_text("not a directory")
    lone.write(test_a=PASSING)

    refused(lone.run(), lone.store)
    assert Path(lone.store).read_text() == "not a directory"


def test_a_store_that_cannot_be_written_is_refused(lone: Project) -> None:
    """/proc stands for a read-only place: root may write everywhere else."""
    lone.write(test_a=PASSING)

    refused(lone.run(GPU_CLUSTER_STORE="/proc/gpu-cluster"), "/proc/gpu-cluster")


def test_a_store_that_others_may_write_is_refused(lone: Project) -> None:
    """Writing to a store's inbox is running code with its owner's rights."""
    Path(lone.store).mkdir()
    Path(lone.store).chmod(0o777)
    lone.write(test_a=PASSING)

    refused(lone.run(), lone.store)


def test_an_s3_store_that_refuses_connections_is_named_soon(lone: Project) -> None:
    """A wrong endpoint is a line in a minute of CI, not a timeout after ten."""
    lone.write(test_a=PASSING)
    began = time.monotonic()

    ran = lone.run(
        GPU_CLUSTER_STORE="s3://nowhere/prefix",
        AWS_ENDPOINT_URL="http://127.0.0.1:9",
        AWS_ACCESS_KEY_ID="x",
        AWS_SECRET_ACCESS_KEY="the-secret",
        AWS_REGION="us-east-1",
    )

    refused(ran, "s3://nowhere/prefix")
    assert "the-secret" not in ran.out
    assert time.monotonic() - began < 20


def test_an_interpreter_without_ray_is_refused_with_the_pip_line(
    lone: Project, interpreter: Callable[..., str]
) -> None:
    """The thin client is installed without Ray on purpose; the local provider then needs one line
    to mend it.
    """
    python = interpreter(like_ours=False)
    lone.write(test_a=PASSING)
    lone.settings(f'local.python = "{python}"')

    refused(
        lone.run(),
        f"Ray is not installed for {python}",
        f"{python} -m pip install 'ray[default]",
    )


def test_another_pytest_on_the_cluster_is_refused(
    lone: Project, interpreter: Callable[..., str]
) -> None:
    """Reports of another minor version say other things.

    What is installed is read from the names of its dist-info directories, so a name is enough here:
    no second pytest needs to be installed for it.
    """
    names = ("ray-2.60.0", "obstore-0.9.0", "pytest-8.0.1")
    python = interpreter(
        like_ours=False, write={f"{name}.dist-info/METADATA": "" for name in names}
    )
    lone.write(test_a=PASSING)
    lone.settings(f'local.python = "{python}"')

    refused(
        lone.run(),
        f"pytest is {pytest.__version__} here and 8.0.1 for {python}",
        f"-m pip install pytest=={pytest.__version__}",
    )


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="this machine has a GPU")
def test_require_gpu_without_a_gpu_starts_nothing(lone: Project) -> None:
    """Simulated GPUs let training tests pass on a CPU; who says that real ones are needed must not
    get them.
    """
    lone.write(test_a=PASSING)
    lone.settings("require-gpu = true")

    refused(lone.run(), "require-gpu is set", "NVML finds no GPU")


def test_a_credential_in_the_tree_is_refused(lone: Project) -> None:
    """The store keeps for weeks whatever is uploaded."""
    lone.write(test_a=PASSING)
    (lone.root / ".env").write_text(
        "AWS_SECRET_ACCESS_KEY=abcdefghijklmnopqrstuvwxyz0123456789ABCD\n"
    )

    refused(lone.run(), ".env", "allow-files")


# -- refused by the pytest on the cluster, which stays warm ----------------------------------------


def test_a_conftest_that_fails_to_import_is_shown_with_its_traceback(project: Project) -> None:
    """It is imported there and not here; its reader must not notice the difference."""
    project.write(test_a=PASSING, conftest="import no_such_module_at_all\n")

    ran = project.run()
    plain = project.plain()

    assert ran.code == plain.code == 4, ran.out
    for words in (
        "ImportError while loading conftest",
        str(project.root / "conftest.py"),
        "no_such_module_at_all",
    ):
        assert words in ran.out
        assert words in plain.out
    assert "INTERNALERROR" not in ran.out


@pytest.mark.parametrize("argument", ["absent.py", "test_a.py::test_absent"])
def test_a_path_or_node_id_that_does_not_exist_is_a_usage_error(
    project: Project, argument: str
) -> None:
    """A renamed test in a pipeline must not become a green run of nothing."""
    project.write(test_a=PASSING)

    ran = project.run(argument)
    plain = project.plain(argument)

    assert ran.code == plain.code == 4, ran.out
    (message,) = [line for line in plain.out.splitlines() if line.startswith("ERROR:")]
    assert message in ran.out


def test_a_typo_on_the_command_line_costs_no_cluster(lone: Project) -> None:
    """A cluster takes seconds here and money elsewhere, and the answer is certain before.

    Plain pytest's words and exit code are the same. An option of a conftest.py still works.
    """
    lone.write(test_a=PASSING)

    path, option = lone.run("absent.py"), lone.run("--nosuchoption")
    plain_path, plain_option = lone.plain("absent.py"), lone.plain("--nosuchoption")

    for ran, plain, words in (
        (path, plain_path, "ERROR: file or directory not found: absent.py"),
        (option, plain_option, "unrecognized arguments: --nosuchoption"),
    ):
        assert ran.code == plain.code == 4, ran.out
        assert words in plain.out
        assert words in ran.out
        assert "remedy: correct it" in ran.out
        assert "gpu-cluster: tree" not in ran.out
    assert lone.keys("") == []


GREEDY = """
import pytest

@pytest.mark.gpu(count=64)
def test_greedy():
    pass

@pytest.mark.ray(nodes=9)
def test_wide():
    pass

def test_modest():
    pass
"""


def test_a_demand_that_can_never_be_met_is_that_tests_error_at_once(project: Project) -> None:
    """Waiting for a GPU that will never come would end at the deadline, in everybody's way."""
    project.write(test_a=GREEDY)

    ran = project.run()

    assert ran.code == 1, ran.out
    assert ran.cases() == {"test_greedy": "error", "test_wide": "error", "test_modest": "passed"}
    assert "64 GPUs" in ran.message("test_greedy")
    assert "gpus-per-node" in ran.message("test_greedy")
    assert "9 nodes" in ran.message("test_wide")


def test_a_selection_of_nothing_but_impossible_demands_is_a_usage_error(project: Project) -> None:
    """Nothing that was asked for can be done: that is a mistake in the request, not a failed
    test.
    """
    project.write(test_a=GREEDY)

    ran = project.run("-k", "greedy or wide")

    assert ran.code == 4, ran.out
    assert ran.cases() == {"test_greedy": "error", "test_wide": "error"}
    assert "gpus-per-node" in ran.out


# -- infrastructure --------------------------------------------------------------------------------


def test_a_ray_that_does_not_come_up_is_shown_with_the_end_of_its_log(
    lone: Project, interpreter: Callable[..., str]
) -> None:
    """A broken install of Ray (a library of it is missing) is found when it starts, and the reader
    needs its words.
    """
    python = interpreter(
        without=("ray",),
        write={
            "ray-2.60.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: ray\nVersion: 2.60.0\n",
            "ray/__init__.py": f"raise ImportError({LIBRARY_MISSING!r})\n",
        },
    )
    lone.write(test_a=PASSING)
    lone.settings(f'local.python = "{python}"')

    ran = lone.run()

    assert ran.code == 10, ran.out
    assert "Ray did not come up" in ran.out
    assert LIBRARY_MISSING in ran.out
    assert left_of(ran.cluster) == []


FEW_PORTS = (
    "unshare",
    "-rn",
    "sh",
    "-c",
    'echo "20000 20002" > /proc/sys/net/ipv4/ip_local_port_range; exec "$@"',
    "sh",
)
NAMESPACES = subprocess.run([*FEW_PORTS, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not NAMESPACES, reason="this machine gives no network namespace")
def test_without_free_ports_it_is_the_machine_not_the_tests(lone: Project) -> None:
    """A network of its own with three ports to give stands for a machine on which all are taken."""
    lone.write(test_a=PASSING)
    lone.within = FEW_PORTS

    ran = lone.run()

    assert ran.code == 10, ran.out
    assert "infrastructure: the keeper failed: no free port for Ray" in ran.out
    assert "remedy: end what holds them" in ran.out
    assert left_of(ran.cluster) == []


def test_without_torch_only_the_tests_that_import_it_fail(
    lone: Project, interpreter: Callable[..., str]
) -> None:
    """Torch is the tests' own dependency: a suite without it needs none."""
    python = interpreter(without=("torch", "functorch"))
    lone.write(
        test_a=PASSING,
        test_b="import torch\n\ndef test_trains():\n    pass\n",
        test_c="def test_takes_a_device(device):\n    pass\n",
    )
    lone.settings(f'local.python = "{python}"\nidle-minutes = 0')

    ran = lone.run("--continue-on-collection-errors")

    assert ran.code == 1, ran.out
    assert ran.cases() == {
        "test_passes": "passed",
        "test_b": "error",
        "test_takes_a_device": "skipped",
    }
    assert "ModuleNotFoundError: No module named 'torch'" in ran.out
    assert left_of(ran.cluster) == [], "idle-minutes = 0 left a cluster"
