"""Square tiles of aerial images with masks of tree crowns: cut from photographs, or drawn.

They lie in a table, or in a store as a map server has them: `images/z/x/y.png` and
`masks/z/x/y.png`, z being the zoom.
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

from .store import list_keys, map_in_order, open_store, read, write

TILE_PX = 128
SCHEMA = pa.schema([("tile", pa.string()), ("image", pa.binary()), ("mask", pa.binary())])

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are outside


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Decoded tiles.

    `images`: uint8, (tiles, px, px, 3), RGB. `masks`: uint8, (tiles, px, px), 1 inside a crown's
    box.
    """

    names: tuple[str, ...]
    images: npt.NDArray[np.uint8]
    masks: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.names)

    def batches(self, chosen: Iterable[npt.NDArray[np.int64]]) -> Iterator[Tiles]:
        """Yield the tiles at each of these arrays of places, in their order."""
        for places in chosen:
            yield Tiles(
                names=tuple(self.names[place] for place in places),
                images=self.images[places],
                masks=self.masks[places],
            )

    def pick(self, chosen: npt.NDArray[np.bool_]) -> Tiles:
        """Return the tiles for which `chosen`, bool, (tiles,), is true, in their order."""
        names = tuple(name for name, selected in zip(self.names, chosen, strict=True) if selected)
        return Tiles(names=names, images=self.images[chosen], masks=self.masks[chosen])


def read_boxes(annotation: bytes) -> list[Box]:
    """Return the crown boxes of a Pascal VOC annotation, whatever their class: alive or dead."""
    edges = ("xmin", "ymin", "xmax", "ymax")
    elements = ElementTree.fromstring(annotation).iter("bndbox")
    corners = ([int(float(box.findtext(edge, ""))) for edge in edges] for box in elements)
    return [(x0, y0, x1, y1) for x0, y0, x1, y1 in corners]


def cut_photograph(
    stem: str, photograph: bytes, crowns: Iterable[Box], *, px: int = TILE_PX
) -> Iterator[dict[str, object]]:
    """Yield a row of SCHEMA for every whole tile of one photograph, named `stem/row/column`.

    Tiles do not overlap. A remainder at the right or lower edge that fills no tile is left out.
    """
    image = np.asarray(Image.open(io.BytesIO(photograph)).convert("RGB"))
    mask = np.zeros(image.shape[:2], np.uint8)
    for x0, y0, x1, y1 in crowns:
        mask[max(y0, 0) : y1, max(x0, 0) : x1] = 255
    for row in range(image.shape[0] // px):
        for column in range(image.shape[1] // px):
            area = slice(row * px, (row + 1) * px), slice(column * px, (column + 1) * px)
            colours, crowned = (
                Image.fromarray(image[area]),
                Image.fromarray(mask[area]).convert("1"),
            )
            yield {
                "tile": f"{stem}/{row:02d}/{column:02d}",
                "image": encode_png(colours),
                "mask": encode_png(crowned),
            }


def encode_png(image: Image.Image) -> bytes:
    """Return the image as PNG, without the metadata of its source."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def read_table(path: Path) -> pa.Table:
    """Read the table of SCHEMA at `path`.

    Raises FileNotFoundError, or ValueError when the columns are others.
    """
    table = pq.read_table(path)
    if table.schema.remove_metadata() != SCHEMA:
        raise ValueError(f"{path} has the columns {table.schema.names}, expected {SCHEMA.names}")
    return table


def decode_images(encoded: Iterable[bytes]) -> npt.NDArray[np.uint8]:
    """Decode PNG bytes to uint8.

    The shape is (images, px, px, 3) for colour, and (images, px, px) with 0 and 1 for masks.
    """
    return np.stack([np.asarray(Image.open(io.BytesIO(data))).astype(np.uint8) for data in encoded])


def decode_table(table: pa.Table) -> Tiles:
    """Decode all tiles of a table of SCHEMA, in its order. Raises ValueError for an empty table."""
    columns = table.to_pydict()
    return Tiles(
        names=tuple(columns["tile"]),
        images=decode_images(columns["image"]),
        masks=decode_images(columns["mask"]),
    )


def held_out(names: Iterable[str]) -> npt.NDArray[np.bool_]:
    """Return the tiles that are for validation, bool, (tiles,): about one of five.

    The name alone decides, so that a tile never moves from one set to the other.
    """
    return np.array([zlib.crc32(name.encode()) % 5 == 0 for name in names])


@dataclass(frozen=True, kw_only=True)
class StoredTiles:
    """Tiles in the store at `url`, read when they are used.

    At most `at_once` requests are in flight.
    """

    url: str
    names: tuple[str, ...]  # z/x/y
    at_once: int = 16

    def __len__(self) -> int:
        return len(self.names)

    def batches(self, chosen: Iterable[npt.NDArray[np.int64]]) -> Iterator[Tiles]:
        """Yield the tiles at each of these arrays of places, in their order.

        The next tiles are read while one batch is used.
        """
        store = open_store(self.url)
        selected = [[self.names[place] for place in places] for places in chosen]
        keys = [
            f"{kind}/{name}.png"
            for batch in selected
            for name in batch
            for kind in ("images", "masks")
        ]
        objects = map_in_order(lambda key: read(store, key), keys, at_once=self.at_once)
        for batch in selected:
            pairs = [(next(objects), next(objects)) for _ in batch]
            yield Tiles(
                names=tuple(batch),
                images=decode_images(image for image, _ in pairs),
                masks=decode_images(mask for _, mask in pairs),
            )

    def pick(self, chosen: npt.NDArray[np.bool_]) -> StoredTiles:
        """Return the tiles for which `chosen`, bool, (tiles,), is true, in their order."""
        return StoredTiles(
            url=self.url,
            names=tuple(
                name for name, selected in zip(self.names, chosen, strict=True) if selected
            ),
            at_once=self.at_once,
        )

    def load(self) -> Tiles:
        """Read all tiles into memory. Raises ValueError when there are none."""
        return next(self.batches([np.arange(len(self.names))]))


def list_tiles(store: ObjectStore, kind: str, zoom: int) -> list[str]:
    """Return the names, z/x/y, of the `images` or `masks` of a zoom, sorted."""
    return [
        key.removeprefix(f"{kind}/").removesuffix(".png")
        for key in list_keys(store, f"{kind}/{zoom}")
        if key.endswith(".png")
    ]


def upload_tiles(
    store: ObjectStore, tiles: Iterable[tuple[str, bytes, bytes | None]], *, at_once: int = 8
) -> list[str]:
    """Put tiles (name, image, mask or None) where `StoredTiles` finds them.

    Returns their names, sorted.
    """

    def put(tile: tuple[str, bytes, bytes | None]) -> str:
        name, image, mask = tile
        write(store, f"images/{name}.png", image)
        if mask is not None:
            write(store, f"masks/{name}.png", mask)
        return name

    return sorted(map_in_order(put, tiles, at_once=at_once))


def photograph_tiles(table: pa.Table, *, zoom: int) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield the tiles of a table of SCHEMA with names of a map.

    Photographs lie beside each other, 100 columns apart.
    """
    stems = sorted({name.split("/")[0] for name in table["tile"].to_pylist()})
    for tile in table.to_pylist():
        stem, row, column = tile["tile"].split("/")
        yield (
            f"{zoom}/{stems.index(stem) * 100 + int(column)}/{int(row)}",
            tile["image"],
            tile["mask"],
        )


def drawn_tiles(
    zoom: int, columns: int, rows: int, *, seed: int = 0, px: int = TILE_PX
) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield `columns` times `rows` tiles of a drawn landscape.

    Each tile is decided by `seed` and its name alone.
    """
    for x in range(columns):
        for y in range(rows):
            image, mask = draw_tile(zoom, x, y, seed=seed, px=px)
            yield (
                f"{zoom}/{x}/{y}",
                encode_png(Image.fromarray(image)),
                encode_png(Image.fromarray(mask).convert("1")),
            )


def draw_tile(
    zoom: int, x: int, y: int, *, seed: int, px: int = TILE_PX
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Draw one tile, uint8, (px, px, 3), and its mask, uint8, (px, px), 0 and 255.

    The ground is smooth noise. Crowns are shaded green discs with noise; grey rocks of the same
    shape are no crowns.
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
