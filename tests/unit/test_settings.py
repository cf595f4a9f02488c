"""Settings from every source, and the message for a wrong one."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_gpu_cluster.contract.errors import RequestError
from pytest_gpu_cluster.contract.settings import FileSettings, LimitSettings, Settings
from pytest_gpu_cluster.options import (
    read_settings,
)
from pytest_gpu_cluster.providers import ENTRY_POINTS, REGISTRY


def settings(
    tmp_path: Path,
    toml: str = "",
    *,
    profile: str | None = None,
    environ: dict[str, str] | None = None,
) -> Settings:
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text(toml, encoding="utf-8")
    return read_settings(pyproject, profile=profile, environ=environ or {})


def refusal(
    tmp_path: Path,
    toml: str = "",
    *,
    profile: str | None = None,
    environ: dict[str, str] | None = None,
) -> RequestError:
    with pytest.raises(RequestError) as caught:
        settings(tmp_path, toml, profile=profile, environ=environ)
    return caught.value


def test_nothing_configured_is_the_documented_default(tmp_path: Path) -> None:
    """`pytest --gpu-cluster` works in a project without settings, even without pyproject.toml."""
    result = read_settings(tmp_path / "pyproject.toml", profile=None, environ={})

    assert result == Settings()


EVERY_KEY = """
[tool.gpu-cluster]
provider = "ours.machines:Rack"
store = "s3://bucket/prefix"
nodes = 3
gpus-per-node = 4
simulated-gpus = 0
default-gpus = 0.5
test-timeout-s = 1.5
max-minutes = 90
idle-minutes = 0
infra-retries = 0
require-gpu = true
pass-env = ["HF_*"]
secret-env = ["MY_*"]
include = ["data/**"]
exclude = ["docs"]
allow-files = ["tests/certs/*"]
keep-sessions = 5
[tool.gpu-cluster.local]
python = "bin/python"
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    path = tmp_path / "bin" / "python"
    path.parent.mkdir()
    path.symlink_to(sys.executable)
    return path


def test_every_key_reaches_its_field(tmp_path: Path, python: Path) -> None:
    """The README's table is true; an interpreter's link stays, as a virtual environment needs."""
    assert settings(tmp_path, EVERY_KEY) == Settings(
        provider="ours.machines:Rack",
        store="s3://bucket/prefix",
        nodes=3,
        gpus_per_node=4,
        simulated_gpus=0,
        default_gpus=0.5,
        limits=LimitSettings(
            test_timeout_s=1.5, max_minutes=90.0, idle_minutes=0.0, infra_retries=0
        ),
        require_gpu=True,
        pass_env=("HF_*",),
        secret_env=("MY_*",),
        files=FileSettings(include=("data/**",), exclude=("docs",), allow_files=("tests/certs/*",)),
        keep_sessions=5,
        provider_settings={"local": {"python": str(python)}},
    )


def test_a_profile_lies_over_the_base_table(tmp_path: Path, python: Path) -> None:
    """A CI profile says only what differs, nested tables too."""
    toml = """
        [tool.gpu-cluster]
        nodes = 2
        max-minutes = 10
        [tool.gpu-cluster.profile.ci]
        nodes = 4
        [tool.gpu-cluster.profile.ci.local]
        python = "bin/python"
    """

    result = settings(tmp_path, toml, profile="ci")

    assert (result.nodes, result.limits.max_minutes) == (4, 10.0)
    assert result.provider_settings == {"local": {"python": str(python)}}
    assert settings(tmp_path, toml).nodes == 2


def test_environment_variables_override_every_table(tmp_path: Path, python: Path) -> None:
    """CI changes a setting without a commit."""
    environ = {
        "GPU_CLUSTER_NODES": "7",
        "GPU_CLUSTER_GPUS_PER_NODE": "auto",
        "GPU_CLUSTER_DEFAULT_GPUS": "0.25",
        "GPU_CLUSTER_REQUIRE_GPU": "True",
        "GPU_CLUSTER_PASS_ENV": "HF_*, WANDB_MODE",
        "GPU_CLUSTER_LOCAL_PYTHON": "bin/python",
        "GPU_CLUSTER_STORE": "gs://bucket",
    }
    toml = """
        [tool.gpu-cluster]
        nodes = 1
        [tool.gpu-cluster.profile.ci]
        nodes = 2
        gpus-per-node = 8
    """

    result = settings(tmp_path, toml, profile="ci", environ=environ)

    assert result == Settings(
        nodes=7,
        default_gpus=0.25,
        require_gpu=True,
        pass_env=("HF_*", "WANDB_MODE"),
        provider_settings={"local": {"python": str(python)}},
        store="gs://bucket",
    )


def test_an_empty_variable_counts_as_not_set(tmp_path: Path) -> None:
    """CI systems export undefined variables as empty ones."""
    assert (
        settings(tmp_path, environ={"GPU_CLUSTER_NODES": "", "GPU_CLUSTER_STORE": " "}).nodes == 1
    )


@pytest.mark.parametrize(
    ("environ", "minutes"),
    [
        ({}, 9.0),
        ({"CI": "true"}, 0.0),
        ({"CI": "1"}, 0.0),
        ({"CI": "false"}, 9.0),
        ({"CI": ""}, 9.0),
        ({"CI": "true", "GPU_CLUSTER_IDLE_MINUTES": "3"}, 3.0),
    ],
)
def test_a_cluster_stays_warm_for_people_not_for_ci(
    tmp_path: Path, environ: dict[str, str], minutes: float
) -> None:
    """A pipeline step that ended must not keep paying; who wants that says so in the pipeline."""
    assert (
        settings(
            tmp_path, "[tool.gpu-cluster]\nidle-minutes = 9\n", environ=environ
        ).limits.idle_minutes
        == minutes
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("nodes = 0", "a whole number, 1 or more"),
        ("nodes = true", "a whole number, 1 or more"),
        ("nodes = 1.0", "a whole number, 1 or more"),
        ('nodes = "2"', "a whole number, 1 or more"),
        ("gpus-per-node = -1", '"auto" or a whole number, 0 or more'),
        ('gpus-per-node = "all"', '"auto" or a whole number, 0 or more'),
        ("simulated-gpus = -1", "a whole number, 0 or more"),
        ("default-gpus = 1.5", "a number from 0 to 1, or a whole number"),
        ("default-gpus = -0.5", "a number from 0 to 1, or a whole number"),
        ("default-gpus = true", "a number from 0 to 1, or a whole number"),
        ("test-timeout-s = 0", "a number, more than 0"),
        ("test-timeout-s = inf", "a number, more than 0"),
        ("max-minutes = nan", "a number, more than 0"),
        ("idle-minutes = -1", "a number, 0 or more"),
        ("infra-retries = -1", "a whole number, 0 or more"),
        ("require-gpu = 1", "true or false"),
        ('pass-env = "CI"', "a list of names or patterns of environment variables"),
        ('secret-env = "CI"', "a list of names or patterns of environment variables"),
        ("pass-env = [1]", "a list of names or patterns of environment variables"),
        ('include = ["/data"]', "a list of globs relative to this file, which may begin with ../"),
        (
            'include = ["data/../../x"]',
            "a list of globs relative to this file, which may begin with ../",
        ),
        ("keep-sessions = 0", "a whole number, 1 or more"),
        ("provider = 3", '"local" or "ray" or "package.module:Class"'),
        ('provider = "ec2:"', '"local" or "ray" or "package.module:Class"'),
        ('store = ""', "a path, file:///path, s3://bucket/prefix"),
        ('store = "s3://"', "a path, file:///path, s3://bucket/prefix"),
        ('store = "s3:/bucket"', "a path, file:///path, s3://bucket/prefix"),
        ('tree = "rootdir"', '"project" or "git"'),
        ('store = "file://here"', "a path, file:///path, s3://bucket/prefix"),
        ("local = 3", "a table"),
        ("profile = 3", "a table"),
        ("local.python = 3", "the path of a Python interpreter"),
    ],
)
def test_a_bad_value_is_told_its_place_itself_and_what_was_expected(
    tmp_path: Path, line: str, expected: str
) -> None:
    """Money is spent on settings; one that was misread must never be guessed at."""
    error = refusal(tmp_path, f"[tool.gpu-cluster]\n{line}\n")

    key, _, value = line.partition(" = ")
    assert error.what.startswith(f"tool.gpu-cluster.{key} in {tmp_path / 'pyproject.toml'} is ")
    assert value.strip('"[]') in str(error).replace("True", "true")
    assert f"expected {expected}" in error.what
    assert error.remedy


def test_a_bad_value_in_a_profile_is_told_the_profile_even_when_it_is_not_asked_for(
    tmp_path: Path,
) -> None:
    """A typo meant for CI shows on the laptop, before the pipeline runs."""
    error = refusal(tmp_path, "[tool.gpu-cluster.profile.ci]\nnodes = 0\n")

    assert f"tool.gpu-cluster.profile.ci.nodes in {tmp_path / 'pyproject.toml'} is 0" in error.what


@pytest.mark.parametrize(
    ("toml", "place", "suggestion"),
    [
        ("[tool.gpu-cluster]\nnode = 2", "tool.gpu-cluster.node ", "did you mean nodes?"),
        (
            "[tool.gpu-cluster]\nmax_minutes = 2",
            "tool.gpu-cluster.max_minutes ",
            "did you mean max-minutes?",
        ),
        (
            "[tool.gpu-cluster.local]\npyton = ''",
            "tool.gpu-cluster.local.pyton ",
            "did you mean local.python?",
        ),
        (
            "[tool.gpu-cluster.profile.x]\nstor = ''",
            "tool.gpu-cluster.profile.x.stor ",
            "did you mean store?",
        ),
        (
            "[tool.gpu-cluster]\ncolour = 2",
            "tool.gpu-cluster.colour ",
            "the settings are: provider, store, ",
        ),
        (
            "[tool.gpu-cluster]\nprovider = 'locla'",
            "tool.gpu-cluster.provider ",
            "did you mean local?",
        ),
        ("[tool.gpu-cluster]\nstore = 's3a://b'", "tool.gpu-cluster.store ", "did you mean s3?"),
    ],
)
def test_a_typo_gets_a_suggestion(tmp_path: Path, toml: str, place: str, suggestion: str) -> None:
    """Silently ignored settings are the worst kind."""
    error = refusal(tmp_path, toml)

    assert place in error.what
    assert suggestion in error.remedy


def test_a_bad_variable_is_told_by_its_own_name(tmp_path: Path) -> None:
    """The pipeline's author looks for GPU_CLUSTER_…, not for a line in a file."""
    assert (
        "GPU_CLUSTER_NODES is 'two'" in refusal(tmp_path, environ={"GPU_CLUSTER_NODES": "two"}).what
    )
    assert (
        "expected true or false"
        in refusal(tmp_path, environ={"GPU_CLUSTER_REQUIRE_GPU": "yes"}).what
    )
    error = refusal(tmp_path, environ={"GPU_CLUSTER_NODE": "2"})
    assert "GPU_CLUSTER_NODE is not a setting" in error.what
    assert "did you mean GPU_CLUSTER_NODES?" in error.remedy


def test_internal_variables_are_left_alone(tmp_path: Path) -> None:
    """Our own processes talk through them."""
    assert settings(tmp_path, environ={"GPU_CLUSTER_INTERNAL_TOKEN": "x"}).nodes == 1
    in_a_test = {"GPU_CLUSTER_GIT_COMMIT": "c" * 40, "GPU_CLUSTER_GIT_DIRTY": "false"}
    assert settings(tmp_path, environ=in_a_test) == Settings()


def test_an_unknown_profile_lists_the_known(tmp_path: Path) -> None:
    """`--gpu-profile` with a typo must not run with the base table."""
    error = refusal(tmp_path, "[tool.gpu-cluster.profile.night]\nnodes = 2\n", profile="nihgt")

    assert "--gpu-profile nihgt" in error.what
    assert "it has: night" in error.what
    assert error.remedy == "did you mean night?"
    assert "it has: no profile" in refusal(tmp_path, profile="x").what


@pytest.mark.parametrize("name", REGISTRY)
def test_every_provider_on_the_shelf_may_be_named(tmp_path: Path, name: str) -> None:
    """A line in the registry is all that a new provider needs."""
    assert settings(tmp_path, f"[tool.gpu-cluster]\nprovider = '{name}'\n").provider == name


OUTSIDE = """
from pytest_gpu_cluster.settings_keys import strings, whole

class Rack:
    keys = {"zone-count": whole(1), "zones": strings("a list of zones")}
"""


@pytest.fixture(params=["rack_of_ours:Rack", "rack"])
def outside(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The name of a provider of another package: its class, or an entry point of the package."""
    site = tmp_path / "site"
    metadata = site / "rack_of_ours-1.dist-info"
    metadata.mkdir(parents=True)
    (site / "rack_of_ours.py").write_text(OUTSIDE)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: rack-of-ours\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\nrack = rack_of_ours:Rack\n")
    monkeypatch.syspath_prepend(site)
    yield str(request.param)
    sys.modules.pop("rack_of_ours", None)


def test_a_provider_from_outside_has_a_table_that_is_checked_like_ours(
    tmp_path: Path, outside: str
) -> None:
    """A cloud that only its users need is a package of theirs, and its typos cost them no less."""
    toml = f"""
        [tool.gpu-cluster]
        provider = "{outside}"
        [tool.gpu-cluster."{outside}"]
        zone-count = 2
    """
    variable = f"GPU_CLUSTER_{re.sub('[.:]', '_', outside).upper()}_ZONES"

    result = settings(tmp_path, toml, environ={variable: "a, b"})

    assert result.provider == outside
    assert result.provider_settings == {outside: {"zone-count": 2, "zones": ("a", "b")}}
    assert "expected a whole number" in refusal(tmp_path, toml.replace("2", "0")).what
    wrong_key = refusal(tmp_path, toml.replace("zone-count", "zone-cuont"))
    assert f"tool.gpu-cluster.{outside}.zone-cuont " in wrong_key.what
    assert wrong_key.remedy == f"did you mean {outside}.zone-count?"
    assert "is not a setting" in refusal(tmp_path, toml, environ={f"{variable}X": "a"}).what


def test_an_interpreter_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """Else the node would fail minutes later with ENOENT."""
    (tmp_path / "plain").write_text("")

    for python in ("no/python", "plain", "no-such-python-on-path"):
        error = refusal(
            tmp_path,
            f"[tool.gpu-cluster.local]\npython = '{python}'\n",
            environ={"PATH": "/nowhere"},
        )

        assert f"local.python is '{python}'" in error.what
        assert "not an executable file" in error.what


def test_an_interpreter_may_be_named_as_on_the_command_line(tmp_path: Path, python: Path) -> None:
    """`python = "python3.12"` is what people type."""
    python.rename(python.with_name("python-of-ours"))

    result = settings(
        tmp_path,
        "[tool.gpu-cluster.local]\npython = 'python-of-ours'\n",
        environ={"PATH": str(python.parent)},
    )

    interpreter = str(python.with_name("python-of-ours"))
    assert result.provider_settings == {"local": {"python": interpreter}}


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    """`gpu-cluster doctor` reads it without pytest, which would have complained first."""
    assert str(tmp_path / "pyproject.toml") in refusal(tmp_path, "[tool.gpu-cluster").what
