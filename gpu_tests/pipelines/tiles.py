"""Photographs with crown boxes -> square tiles with masks, in one Arrow table of PNG bytes; and back to arrays."""

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
from PIL import Image

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

    def pick(self, chosen: npt.NDArray[np.bool_]) -> Tiles:
        """The tiles for which `chosen`, bool, (tiles,), is true, in their order."""
        names = tuple(name for name, wanted in zip(self.names, chosen, strict=True) if wanted)
        return Tiles(names=names, images=self.images[chosen], masks=self.masks[chosen])


def boxes(annotation: bytes) -> list[Box]:
    """The crown boxes of a Pascal VOC annotation, whatever their class: alive or dead, it is a crown."""
    edges = ("xmin", "ymin", "xmax", "ymax")
    found = ElementTree.fromstring(annotation).iter("bndbox")
    return [tuple(int(float(box.findtext(edge, ""))) for edge in edges) for box in found]  # type: ignore[misc]  # four


def cut(stem: str, photograph: bytes, crowns: Iterable[Box], *, px: int = TILE_PX) -> Iterator[dict[str, object]]:
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
            yield {"tile": f"{stem}/{row:02d}/{column:02d}", "image": png(colours), "mask": png(crowned)}


def png(image: Image.Image) -> bytes:
    """The image as PNG, without the metadata of its source."""
    held = io.BytesIO()
    image.save(held, "PNG", optimize=True)
    return held.getvalue()


def read(path: Path) -> pa.Table:
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
    return Tiles(names=tuple(columns["tile"]), images=pixels(columns["image"]), masks=pixels(columns["mask"]))


def held_out(names: Iterable[str]) -> npt.NDArray[np.bool_]:
    """Which tiles are for validation, bool, (tiles,): one of five or so, by name alone, so that it never moves."""
    return np.array([zlib.crc32(name.encode()) % 5 == 0 for name in names])
