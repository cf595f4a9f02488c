"""The parts of the workloads that can be tested without a cluster."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gpu_tests.accelerators import computes_on_gpu
from gpu_tests.pipelines.job import ConfigError, Job, parse_job
from gpu_tests.pipelines.store import map_in_order, open_store
from gpu_tests.pipelines.tiles import (
    StoredTiles,
    draw_tile,
    drawn_tiles,
    list_tiles,
    upload_tiles,
)
from pytest_gpu_cluster.contract.errors import HarnessError
from tests.benchmarks.charts import draw_chart
from tests.benchmarks.gpu import moved_bytes
from tests.benchmarks.ratios import (
    Figure,
    Ways,
    charted,
    load,
    make_figure,
    save,
    spread,
    table,
    verdict,
)
from tests.mutations.run import apply_mutation, copy_workloads
from tests.mutations.table import MUTATIONS, Mutation

RATIO = Figure(
    name="stacked_models_vs_sequential",
    value=4.2,
    unit="×",
    baseline="frame by frame",
    floor=3,
    samples=(4.1, 4.2, 4.4),
    verdict="ok",
    ways={"naive": 6.0, "ours": 25.2},
    ways_unit="frames/s",
    note="simulated devices",
)


@pytest.mark.parametrize(
    ("mode", "available", "expected"),
    [("", True, True), ("", False, False), ("sim", True, False), ("gpu", True, True)],
)
def test_the_device_decides_unless_a_mode_is_forced(
    mode: str, available: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sim` on a machine with a GPU gives the figures that a laptop has."""
    monkeypatch.setenv("GPU_TESTS_MODE", mode)

    assert computes_on_gpu(available) is expected


def test_gpus_that_are_demanded_and_not_there_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A skip would be green: a cluster without GPUs would be accepted."""
    monkeypatch.setenv("GPU_TESTS_MODE", "gpu")
    with pytest.raises(HarnessError, match="has no GPU"):
        computes_on_gpu(False)
    monkeypatch.setenv("GPU_TESTS_MODE", "fast")
    with pytest.raises(HarnessError, match="'fast': expected sim or gpu"):
        computes_on_gpu(True)


@given(st.lists(st.integers(), max_size=30), st.integers(1, 8))
def test_what_is_read_at_once_comes_in_order_and_bounded(items: list[int], at_once: int) -> None:
    """A store refuses all requests of a client that sends too many at once."""
    lock, now, most = threading.Lock(), 0, 0

    def work(item: int) -> int:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.0005)
        with lock:
            now -= 1
        return item * 2

    assert list(map_in_order(work, items, at_once=at_once)) == [item * 2 for item in items]
    assert most <= at_once


def test_what_fails_to_be_read_is_raised_at_its_place() -> None:
    """One object that is missing must not be the end of what came before it."""
    results = map_in_order(lambda item: 1 / item, [1, 2, 0, 4], at_once=2)

    assert [next(results), next(results)] == [1, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_tile_is_decided_by_its_name_and_read_back_as_it_was(tmp_path: Path) -> None:
    """The same landscape on every machine: otherwise no figure could be compared with another."""
    store = open_store(f"file://{tmp_path}")
    names = upload_tiles(store, drawn_tiles(17, 2, 3))

    tiles = StoredTiles(
        url=f"file://{tmp_path}", names=tuple(list_tiles(store, "images", 17))
    ).load()

    assert list(tiles.names) == names == [f"17/{x}/{y}" for x in range(2) for y in range(3)]
    for number, name in enumerate(tiles.names):
        image, mask = draw_tile(17, *(int(part) for part in name.split("/")[1:]), seed=0)
        assert np.array_equal(tiles.images[number], image)
        assert np.array_equal(tiles.masks[number] > 0, mask > 0)
    assert not list_tiles(store, "images", 1), "zoom 1 is not zoom 17"


KEYS = st.sampled_from(["tiles", "zoom", "epochs", "output", "max-runtime-s", "batch", "nonsense"])
VALUES = st.one_of(
    st.integers(-3, 30),
    st.text(max_size=5),
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False),
)


@given(st.dictionaries(KEYS, VALUES))
def test_any_configuration_is_a_job_or_a_clear_refusal(settings: dict[str, object]) -> None:
    """No traceback for a person who misspelt a key."""
    with suppress(ConfigError):
        job = parse_job(
            "\n".join(f"{name} = {json.dumps(value)}" for name, value in settings.items())
        )
        assert isinstance(job, Job)
        assert job.epochs > 0


@pytest.mark.parametrize(
    "mutation", MUTATIONS, ids=lambda each: f"{each.id}-{each.property.replace(' ', '-')}"
)
def test_a_mutation_still_fits_the_code(
    mutation: Mutation, mutated: Path, repository: Path
) -> None:
    """A table of mutations that have nothing to change any more would be green for ever."""
    path = mutated / "gpu_tests" / mutation.file
    before = path.read_text()
    apply_mutation(mutation, mutated)
    assert path.read_text() != before
    path.write_text(before)
    file, _, name = mutation.test.partition("::")
    assert f"def {name.partition('[')[0]}(" in (repository / "gpu_tests" / file).read_text(), (
        "there is no such test"
    )


@pytest.fixture(scope="module")
def mutated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the workloads, which each test leaves as it was."""
    folder = tmp_path_factory.mktemp("mutated")
    copy_workloads(folder)
    return folder


def test_a_noisy_machine_is_not_judged() -> None:
    """A ratio of two unsteady times says nothing, whichever way it falls."""
    assert verdict(5.0, 3, noisy=False) == verdict(5.0, None, noisy=False) == "ok"
    assert verdict(2.0, 3, noisy=False) == "low"
    assert verdict(5.0, 3, noisy=True) == "inconclusive"
    assert spread([9, 10, 12]) == pytest.approx(0.3)
    unsteady = Ways({"naive": [1.0, 2.0], "ours": [0.2, 0.4]}, unit="s", busy=False)
    even = Ways({"naive": [1.0, 1.1], "ours": [0.2, 0.4]}, unit="s", busy=False)

    jumping, steady = (
        make_figure("x", [4.0, 5.0], ways, baseline="naive", note="", floor=3)
        for ways in (unsteady, even)
    )

    assert (jumping.verdict, steady.verdict, steady.value) == ("inconclusive", "ok", 4.5)


def test_what_a_layer_moves_is_counted() -> None:
    """The least time of a step follows from the bytes moved; too large a count would flatter."""
    layer = nn.Sequential(nn.Linear(4, 2, bias=False))

    assert moved_bytes(layer, lambda: layer(torch.zeros(3, 4))) == 4 * (3 * 4 + 3 * 2 + 4 * 2)


def test_figures_are_kept_shown_and_drawn(tmp_path: Path) -> None:
    """The file is for machines, the table for readers; both say what was simulated."""
    low = replace(RATIO, name="batch_inference_vs_naive", verdict="low")
    save(tmp_path / "figures.json", {figure.name: figure for figure in (RATIO, low)})

    loaded = load(tmp_path / "figures.json")
    assert charted(loaded) == [RATIO], "the same bars twice"
    draw_chart(RATIO, tmp_path)

    assert list(loaded.values()) == [RATIO, low]
    assert (
        "| `stacked_models_vs_sequential` | 4.2 × | 3 | frame by frame | ok "
        "| naive 6, ours 25.2 (frames/s). simulated devices |" in table(loaded)
    )
    assert "**low**" in table(loaded)
    assert "Frames a second through five equal models (higher is better)" in (
        tmp_path / "stacked_models_vs_sequential.svg"
    ).read_text().replace("&#160;", " ")
