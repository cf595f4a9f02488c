"""Read one epoch through Petastorm's two loaders, and print rows a second as JSON.

    python petastorm_loaders.py FOLDER BATCH

It is run by an interpreter that has Petastorm (see measures/ingest.py).
"""

import json
import sys
import time
import warnings

warnings.simplefilter("ignore")

from petastorm import make_batch_reader  # noqa: E402
from petastorm.pytorch import BatchedDataLoader, DataLoader  # noqa: E402


def main(folder: str, batch: int) -> None:
    """Measure both loaders."""
    speeds = {}
    for name, loader in (("row loader", DataLoader), ("batched loader", BatchedDataLoader)):
        began, ids = time.monotonic(), []
        with make_batch_reader(
            f"file://{folder}", num_epochs=1, shuffle_row_groups=True, workers_count=2
        ) as reader:
            for rows in loader(reader, batch_size=batch, shuffling_queue_capacity=20 * batch):
                ids.extend(rows["id"].tolist())
        speeds[name] = len(ids) / (time.monotonic() - began)
        assert sorted(ids) == list(range(len(ids))), f"{name} lost or doubled rows"
    print(json.dumps({"rows": len(ids), **speeds}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
