"""A bucket of one test: tiles and job configurations are put into it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from .accelerators import SHARE
from .pipelines.store import open_store, write
from .pipelines.tiles import drawn_tiles, upload_tiles
from .s3_server import S3Server

ZOOM = 17
EPOCHS = 8  # as few as let the loss fall by a tenth


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """An empty bucket of a server that only this test uses. `url` has no slash at its end."""

    url: str
    server: S3Server

    def draw_tiles(self, columns: int, rows: int) -> list[str]:
        """Put drawn tiles into its folder tiles/; return their names."""
        return upload_tiles(open_store(f"{self.url}/tiles"), drawn_tiles(ZOOM, columns, rows))

    def write_job(self, **changes: str | float | None) -> str:
        """Put a job's configuration into the bucket and return its URL; None leaves a key out."""
        settings: dict[str, str | float | None] = {
            "tiles": f"{self.url}/tiles",
            "zoom": ZOOM,
            "epochs": EPOCHS,
            "learning-rate": 0.02,
            "batch": 4,
            "output": f"{self.url}/model",
            "max-runtime-s": 600,
            "gpus-per-worker": SHARE,
            **{name.replace("_", "-"): value for name, value in changes.items()},
        }
        lines = [
            f"{name} = {json.dumps(value)}" for name, value in settings.items() if value is not None
        ]
        write(open_store(self.url), "job.toml", "\n".join(lines).encode())
        return f"{self.url}/job.toml"
