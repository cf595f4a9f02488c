"""Square tiles of aerial images with masks of tree crowns: cut from photographs, or drawn; in a table, or in a store.

In a store they lie as a map server has them: `images/z/x/y.png` and `masks/z/x/y.png`, z being the zoom.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from obstore.store import ObjectStore
from PIL import Image

from .store import in_order, names, open_store, read, write

TILE_PX = 128
SCHEMA = pa.schema([("tile", pa.string()), ("image", pa.binary()), ("mask", pa.binary())])

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are outside


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Decoded. `images`: uint8, (tiles, px, px, 3), RGB. `masks`: uint8, (tiles, px, px), 1 inside a crown's box."""

    names: tuple[str, ...]
    images: npt.NDArray[np.uint8]
    masks: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.names)

    def batches(self, chosen: Iterable[npt.NDArray[np.int64]]) -> Iterator[Tiles]:
        """The tiles at each of these arrays of places, in their order."""
        for places in chosen:
            yield Tiles(
                names=tuple(self.names[at] for at in places),
                images=self.images[places],
                masks=self.masks[places],
            )

    def pick(self, chosen: npt.NDArray[np.bool_]) -> Tiles:
        """The tiles for which `chosen`, bool, (tiles,), is true, in their order."""
        names = tuple(name for name, wanted in zip(self.names, chosen, strict=True) if wanted)
        return Tiles(names=names, images=self.images[chosen], masks=self.masks[chosen])


def boxes(annotation: bytes) -> list[Box]:
    """The crown boxes of a Pascal VOC annotation, whatever their class: alive or dead, it is a crown."""
    edges = ("xmin", "ymin", "xmax", "ymax")
    found = ElementTree.fromstring(annotation).iter("bndbox")
    return [tuple(int(float(box.findtext(edge, ""))) for edge in edges) for box in found]  # type: ignore[misc]  # four


def cut(
    stem: str, photograph: bytes, crowns: Iterable[Box], *, px: int = TILE_PX
) -> Iterator[dict[str, object]]:
    """Rows of SCHEMA for every whole tile of one photograph, row by row, named `stem/row/column`.

    Tiles do not overlap; a rest at the right or lower edge that fills no tile is left out.
    """
    image = np.asarray(Image.open(io.BytesIO(photograph)).convert("RGB"))
    mask = np.zeros(image.shape[:2], np.uint8)
    for left, top, right, bottom in crowns:
        mask[max(top, 0) : bottom, max(left, 0) : right] = 255
    for row in range(image.shape[0] // px):
        for column in range(image.shape[1] // px):
            at = slice(row * px, (row + 1) * px), slice(column * px, (column + 1) * px)
            colours, crowned = Image.fromarray(image[at]), Image.fromarray(mask[at]).convert("1")
            yield {
                "tile": f"{stem}/{row:02d}/{column:02d}",
                "image": png(colours),
                "mask": png(crowned),
            }


def png(image: Image.Image) -> bytes:
    """The image as PNG, without the metadata of its source."""
    held = io.BytesIO()
    image.save(held, "PNG", optimize=True)
    return held.getvalue()


def read_table(path: Path) -> pa.Table:
    """The table of SCHEMA at `path`. Raises FileNotFoundError, or ValueError when the columns are others."""
    table = pq.read_table(path)
    if table.schema.remove_metadata() != SCHEMA:
        raise ValueError(f"{path} has the columns {table.schema.names}, expected {SCHEMA.names}")
    return table


def pixels(encoded: Iterable[bytes]) -> npt.NDArray[np.uint8]:
    """PNG bytes -> uint8, (images, px, px, 3) for colour and (images, px, px) with 0 and 1 for masks."""
    return np.stack([np.asarray(Image.open(io.BytesIO(one))).astype(np.uint8) for one in encoded])


def decode(table: pa.Table) -> Tiles:
    """All tiles of a table of SCHEMA, in its order. Raises ValueError for an empty table."""
    columns = table.to_pydict()
    return Tiles(
        names=tuple(columns["tile"]), images=pixels(columns["image"]), masks=pixels(columns["mask"])
    )


def held_out(names: Iterable[str]) -> npt.NDArray[np.bool_]:
    """Which tiles are for validation, bool, (tiles,): one of five or so, by name alone, so that it never moves."""
    return np.array([zlib.crc32(name.encode()) % 5 == 0 for name in names])


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Tiles in the store at `url`, read when they are used and not kept; `at_once` requests are under way, never more."""

    url: str
    names: tuple[str, ...]  # z/x/y
    at_once: int = 16

    def __len__(self) -> int:
        return len(self.names)

    def batches(self, chosen: Iterable[npt.NDArray[np.int64]]) -> Iterator[Tiles]:
        """The tiles at each of these arrays of places, in their order; while one is used the next are read."""
        store = open_store(self.url)
        wanted = [[self.names[at] for at in places] for places in chosen]
        keys = [
            f"{kind}/{name}.png"
            for batch in wanted
            for name in batch
            for kind in ("images", "masks")
        ]
        found = in_order(lambda key: read(store, key), keys, at_once=self.at_once)
        for batch in wanted:
            both = [(next(found), next(found)) for _ in batch]
            yield Tiles(
                names=tuple(batch),
                images=pixels(image for image, _ in both),
                masks=pixels(mask for _, mask in both),
            )

    def pick(self, chosen: npt.NDArray[np.bool_]) -> Stored:
        """The tiles for which `chosen`, bool, (tiles,), is true, in their order."""
        return Stored(
            url=self.url,
            names=tuple(name for name, wanted in zip(self.names, chosen, strict=True) if wanted),
            at_once=self.at_once,
        )

    def load(self) -> Tiles:
        """All of them, in memory. Raises ValueError when there are none."""
        return next(self.batches([np.arange(len(self.names))]))


def listed(store: ObjectStore, kind: str, zoom: int) -> list[str]:
    """The names, z/x/y, of the `images` or `masks` of a zoom, sorted."""
    return [
        key.removeprefix(f"{kind}/").removesuffix(".png")
        for key in names(store, f"{kind}/{zoom}")
        if key.endswith(".png")
    ]


def upload(
    store: ObjectStore, tiles: Iterable[tuple[str, bytes, bytes | None]], *, at_once: int = 8
) -> list[str]:
    """Put tiles (name, image, mask or None) where `Stored` finds them; returns their names, sorted."""

    def put(tile: tuple[str, bytes, bytes | None]) -> str:
        name, image, mask = tile
        write(store, f"images/{name}.png", image)
        if mask is not None:
            write(store, f"masks/{name}.png", mask)
        return name

    return sorted(in_order(put, tiles, at_once=at_once))


def real(table: pa.Table, *, zoom: int) -> Iterator[tuple[str, bytes, bytes]]:
    """The tiles of a table of SCHEMA with names of a map: photographs lie beside each other, 100 columns apart."""
    stems = sorted({name.split("/")[0] for name in table["tile"].to_pylist()})
    for tile in table.to_pylist():
        stem, row, column = tile["tile"].split("/")
        yield (
            f"{zoom}/{stems.index(stem) * 100 + int(column)}/{int(row)}",
            tile["image"],
            tile["mask"],
        )


def drawn(
    zoom: int, columns: int, rows: int, *, seed: int = 0, px: int = TILE_PX
) -> Iterator[tuple[str, bytes, bytes]]:
    """Tiles of a landscape that is drawn: `columns` times `rows` of them, each decided by `seed` and its name alone."""
    for x in range(columns):
        for y in range(rows):
            image, mask = draw(zoom, x, y, seed=seed, px=px)
            yield (
                f"{zoom}/{x}/{y}",
                png(Image.fromarray(image)),
                png(Image.fromarray(mask).convert("1")),
            )


def draw(
    zoom: int, x: int, y: int, *, seed: int, px: int = TILE_PX
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """One tile, uint8, (px, px, 3), and its mask, uint8, (px, px), 0 and 255.

    Ground of smooth noise, crowns as shaded green discs with noise, and grey rocks of the same shape that are none.
    """
    source = np.random.default_rng([seed, zoom, x, y])
    dry, grass = np.array([165, 140, 105], np.float32), np.array([95, 120, 70], np.float32)
    smooth = Image.fromarray(source.integers(0, 256, (6, 6)).astype(np.uint8)).resize(
        (px, px), Image.Resampling.BICUBIC
    )
    picture = dry + (grass - dry) * (np.asarray(smooth).astype(np.float32) / 255)[..., None]
    mask = np.zeros((px, px), np.uint8)
    rows, columns = np.mgrid[:px, :px]
    for number in range(int(source.integers(6, 16))):
        row, column, radius = source.integers(0, px), source.integers(0, px), source.integers(6, 20)
        inside = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
        light = 1 - ((rows - row) + (columns - column))[inside] / (4 * radius)
        crown = number % 3 > 0
        picture[inside] = light[:, None] * np.array(
            [40, 95, 45] if crown else [120, 120, 125], np.float32
        )
        mask[inside] = 255 if crown else 0
    picture += source.normal(0, 12, picture.shape).astype(np.float32)
    return np.clip(picture, 0, 255).astype(np.uint8), mask
