"""Fetch the aerial photographs that gpu_tests train on, and cut them into tiles.

    python -m gpu_tests.fetch

They ship inside the deepforest package, which is downloaded once with pip, never installed and
never vendored. Package and images are checked by digest. The tiles go into `gpu_tests/data/`, which
git ignores and `[tool.gpu-cluster] include` names, so that they reach the cluster with the tree.
The licence is in IMAGES.md.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_gpu_cluster.contract.errors import HarnessError

PACKAGE = Path(__file__).parent
DATA = PACKAGE / "data"
RECIPE = 1  # raise it when the same photographs are cut differently


@dataclass(frozen=True, kw_only=True)
class Source:
    """A wheel on the package index, and the digests (SHA-256) of the files that are used."""

    requirement: str
    wheel: str
    sha256: str
    licence: str  # its path in the wheel
    files: Mapping[str, str]  # path in the wheel -> digest; every .png has its .xml


# The digests of each photograph and of its annotation.
PHOTOGRAPHS = {
    "2019_YELL_2_528000_4978000_image_crop2": (
        "a9bdb0f4447fdd899d22f567e0e20ba8320c5413b2ad0cd0ac8d9f3b6e0f9767",
        "bd431af6a5086d721eb731b22f5ea28cd8a8eab06883efc1c665391acbc68e11",
    ),
    "2019_YELL_2_541000_4977000_image_crop": (
        "178e58a23cc2642226a364a30f71bd9258ddc1b012c826f12250914a90c7a131",
        "cefe4b96888bacbf8af1674f000082e549aa707aa6590d545effb23e43f26631",
    ),
    "OSBS_029": (
        "d9477c6a00e4902c7bee487d4c5582c3b8b9a2f77f3908a29628b816b291e6ee",
        "1f68c4011d7b351c29ca755072e77f3d16e6fd1f995bd05a9dd4eb952b55373c",
    ),
    "SOAP_061": (
        "256508f1a62149bec4a80879077a865caf50e8cace095e6564c76befa480d424",
        "4833280af75fd9c47965a93e38945282835e9e725cac412bdb9469d63480947c",
    ),
}
DEEPFOREST = Source(
    requirement="deepforest==2.1.0",
    wheel="deepforest-2.1.0-py3-none-any.whl",
    sha256="8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54",
    licence="deepforest-2.1.0.dist-info/licenses/LICENSE",
    files={
        f"deepforest/data/{stem}.{kind}": digest
        for stem, digests in PHOTOGRAPHS.items()
        for kind, digest in zip(("png", "xml"), digests, strict=True)
    },
)


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder for downloads.

    It is GPU_TESTS_CACHE, else gpu-cluster in XDG_CACHE_HOME, else in ~/.cache.
    """
    if chosen := environ.get("GPU_TESTS_CACHE"):
        return Path(chosen)
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "gpu-cluster")


def sha256(data: bytes) -> str:
    """Return the digest in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def download(
    source: Source, cache: Path, pip: Sequence[str] = (sys.executable, "-m", "pip")
) -> bytes:
    """Return the wheel's bytes, from the cache or through pip; only the pinned wheel is cached.

    Raises HarnessError: pip failed, or the digest is wrong.
    """
    cached = cache / source.wheel
    if cached.is_file() and sha256(data := cached.read_bytes()) == source.sha256:
        return data
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "-d", folder]
        command = [*pip, "download", *options, source.requirement]
        process = subprocess.run(
            command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        fresh = Path(folder, source.wheel)
        if process.returncode or not fresh.is_file():
            reason = (process.stderr.strip() or "no output").splitlines()[-1]
            raise HarnessError(
                f"pip could not download {source.requirement}: {reason}",
                remedy="check the network and pip's index, "
                f"or put {source.wheel} into {cache} by hand",
            )
        data = fresh.read_bytes()
        if sha256(data) != source.sha256:
            raise HarnessError(
                f"{source.wheel} has SHA-256 {sha256(data)}, expected {source.sha256}",
                remedy="the package index gave another file than the published one: "
                "try another index (PIP_INDEX_URL)",
            )
        fresh.replace(cached)
    return data


def read_photographs(source: Source, wheel: bytes) -> dict[str, bytes]:
    """Return the wheel's files by path, each checked by its digest.

    Raises HarnessError with the name of the first file that is not as pinned.
    """
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        files = {name: archive.read(name) for name in [*source.files, source.licence]}
    for name, expected in source.files.items():
        if sha256(files[name]) != expected:
            raise HarnessError(
                f"{name} in {source.wheel} has SHA-256 {sha256(files[name])}, expected {expected}",
                remedy="correct the digests in gpu_tests/fetch.py, "
                "after looking at what changed in the image",
            )
    return files


def up_to_date(source: Source, data: Path) -> bool:
    """Return True when `data` holds the complete tiles of this source and recipe."""
    try:
        origin = json.loads((data / "SOURCE.json").read_text())
        complete: bool = origin["tiles_sha256"] == sha256((data / "tiles.parquet").read_bytes())
    except (FileNotFoundError, ValueError, KeyError):
        return False
    return complete and origin["wheel_sha256"] == source.sha256 and origin["recipe"] == RECIPE


def fetch(source: Source, data: Path, cache: Path) -> str:
    """Make `data`/tiles.parquet, unless it is up to date, and return a line about it.

    SOURCE.json and LICENCE.md are written beside it.
    """
    if up_to_date(source, data):
        return f"{data / 'tiles.parquet'} is up to date"
    began = time.monotonic()
    files = read_photographs(source, download(source, cache))
    data.mkdir(parents=True, exist_ok=True)
    # Written again as the last file: its presence means that the others are complete.
    (data / "SOURCE.json").unlink(missing_ok=True)
    count, tile_px = write_tiles(source, files, data / "tiles.parquet")
    note, licence = (PACKAGE / "IMAGES.md").read_text(), files[source.licence].decode()
    (data / "LICENCE.md").write_text(f"{note}\n## The package's licence, as it ships\n\n{licence}")
    origin = {
        "requirement": source.requirement,
        "wheel_sha256": source.sha256,
        "files": dict(source.files),
        "recipe": RECIPE,
        "tile_px": tile_px,
        "tiles": count,
        "tiles_sha256": sha256((data / "tiles.parquet").read_bytes()),
    }
    (data / "SOURCE.json").write_text(json.dumps(origin, indent=1) + "\n")
    return f"cut {count} tiles into {data / 'tiles.parquet'} in {time.monotonic() - began:.1f} s"


def write_tiles(source: Source, files: Mapping[str, bytes], path: Path) -> tuple[int, int]:
    """Cut the photographs into a table of tiles at `path`; return their number and side."""
    import pyarrow as pa  # slow, and not needed when the tiles are up to date
    import pyarrow.parquet as pq

    from .pipelines import tiles

    rows: list[dict[str, object]] = []
    for name in source.files:
        if name.endswith(".png"):
            boxes = tiles.read_boxes(files[name.removesuffix(".png") + ".xml"])
            rows += tiles.cut_photograph(Path(name).stem, files[name], boxes)
    table = pa.Table.from_pylist(rows, schema=tiles.SCHEMA)
    pq.write_table(table, path, compression="none")  # PNG is compressed
    return len(rows), tiles.TILE_PX


def main() -> int:
    """Fetch the tiles of gpu_tests; the exit code is 0, or the error's."""
    try:
        print(fetch(DEEPFOREST, DATA, cache_folder(os.environ)))
    except HarnessError as problem:
        print(problem, file=sys.stderr)
        return problem.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
