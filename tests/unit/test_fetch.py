"""Fetching the photographs of gpu_tests: only pinned files are used, and failures have a remedy."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gpu_tests import fetch
from gpu_tests.pipelines import tiles
from pytest_gpu_cluster.contract.errors import HarnessError

BOX = (
    "<a><object><bndbox><xmin>10</xmin><ymin>20</ymin>"
    "<xmax>30</xmax><ymax>50</ymax></bndbox></object></a>"
)
NO_PIP = (sys.executable, "-c", "import sys; sys.exit('no network here')")


def photograph(width: int = 300, height: int = 140) -> bytes:
    """Return a PNG of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return tiles.encode_png(Image.fromarray(pixels))


@pytest.fixture
def wheel() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("p/a.png", photograph())
        archive.writestr("p/a.xml", BOX)
        archive.writestr("p/LICENSE", "Do as you like.")
    return buffer.getvalue()


@pytest.fixture
def source(wheel: bytes) -> fetch.Source:
    files = {"p/a.png": fetch.sha256(photograph()), "p/a.xml": fetch.sha256(BOX.encode())}
    return fetch.Source(
        requirement="p==1",
        wheel="p.whl",
        sha256=fetch.sha256(wheel),
        licence="p/LICENSE",
        files=files,
    )


def copying_pip(wheel: Path) -> tuple[str, ...]:
    """Return the command of a pip whose download gives a copy of this file as p.whl."""
    target = "sys.argv[sys.argv.index('-d') + 1] + '/p.whl'"
    script = f"import shutil, sys; shutil.copy({str(wheel)!r}, {target})"
    return (sys.executable, "-c", script)


def test_whole_tiles_are_cut_with_the_boxes_as_masks(
    source: fetch.Source, wheel: bytes, tmp_path: Path
) -> None:
    """A mask that is off by a pixel row would still train, and would teach the wrong thing."""
    (tmp_path / "p.whl").write_bytes(wheel)

    fetch.fetch(source, tmp_path / "data", tmp_path)

    cut = tiles.decode_table(tiles.read_table(tmp_path / "data/tiles.parquet"))
    assert cut.names == ("a/00/00", "a/00/01")
    assert cut.images.shape == (2, 128, 128, 3)
    expected = np.zeros((2, 128, 128), np.uint8)
    expected[0, 20:50, 10:30] = 1
    np.testing.assert_array_equal(cut.masks, expected)
    whole = np.asarray(Image.open(io.BytesIO(photograph())))
    np.testing.assert_array_equal(cut.images[1], whole[:128, 128:256])


def test_source_and_licence_lie_beside_the_tiles(
    source: fetch.Source, wheel: bytes, tmp_path: Path
) -> None:
    """A reader of the tiles must be able to tell their origin and their licence."""
    (tmp_path / "p.whl").write_bytes(wheel)

    fetch.fetch(source, tmp_path / "data", tmp_path)

    assert "Do as you like." in (tmp_path / "data/LICENCE.md").read_text()
    assert json.loads((tmp_path / "data/SOURCE.json").read_text())["wheel_sha256"] == source.sha256


def test_nothing_is_done_when_the_tiles_are_there_and_all_of_it_when_they_are_damaged(
    source: fetch.Source, wheel: bytes, tmp_path: Path
) -> None:
    """It runs before every smoke test; and half a file must not train anything."""
    data = tmp_path / "data"
    (tmp_path / "p.whl").write_bytes(wheel)
    fetch.fetch(source, data, tmp_path)

    assert "up to date" in fetch.fetch(source, data, tmp_path)

    (data / "tiles.parquet").write_bytes(b"half")
    assert "cut 2 tiles" in fetch.fetch(source, data, tmp_path)
    assert fetch.up_to_date(source, data)
    assert not fetch.up_to_date(replace(source, sha256="0" * 64), data)


def test_a_failed_download_says_why_and_what_else_can_be_done(
    source: fetch.Source, tmp_path: Path
) -> None:
    """The commonest failure in a closed network."""
    with pytest.raises(HarnessError, match="p==1: no network here") as caught:
        fetch.download(source, tmp_path / "cache", NO_PIP)

    assert f"put p.whl into {tmp_path / 'cache'}" in caught.value.remedy


def test_another_file_than_the_pinned_one_is_refused_and_not_kept(
    source: fetch.Source, tmp_path: Path
) -> None:
    """A package index can be wrong, or wicked."""
    (tmp_path / "other").write_bytes(b"other")

    with pytest.raises(HarnessError, match=r"p\.whl has SHA-256"):
        fetch.download(source, tmp_path / "cache", copying_pip(tmp_path / "other"))

    assert not list((tmp_path / "cache").iterdir())


def test_a_damaged_cache_is_fetched_again(
    source: fetch.Source, wheel: bytes, tmp_path: Path
) -> None:
    """An interrupted copy must not need a human."""
    (tmp_path / "fresh").write_bytes(wheel)
    (tmp_path / "p.whl").write_bytes(wheel[:-1])

    assert fetch.download(source, tmp_path, copying_pip(tmp_path / "fresh")) == wheel

    assert fetch.download(source, tmp_path, NO_PIP) == wheel


def test_every_file_is_checked_by_its_own_digest(source: fetch.Source, wheel: bytes) -> None:
    """The tiles name their photographs by digest; that must be true of what was cut."""
    wrong = replace(source, files={**source.files, "p/a.xml": "0" * 64})

    with pytest.raises(HarnessError, match=r"p/a\.xml in p\.whl"):
        fetch.read_photographs(wrong, wheel)


def test_the_cache_is_where_the_environment_says() -> None:
    """CI machines keep one folder between runs, and it is not always in a home."""
    assert fetch.cache_folder({"GPU_TESTS_CACHE": "/c", "XDG_CACHE_HOME": "/x"}) == Path("/c")
    assert fetch.cache_folder({"XDG_CACHE_HOME": "/x"}) == Path("/x/gpu-cluster")
    assert fetch.cache_folder({}) == Path.home() / ".cache/gpu-cluster"
