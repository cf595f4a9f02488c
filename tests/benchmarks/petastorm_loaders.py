"""Run by an interpreter that has Petastorm (see workloads.py): one epoch through its two loaders, rows a second, as JSON.

python petastorm_loaders.py FOLDER BATCH
"""

import json
import sys
import time
import warnings

warnings.simplefilter("ignore")

from petastorm import make_batch_reader  # noqa: E402
from petastorm.pytorch import BatchedDataLoader, DataLoader  # noqa: E402


def main(folder, batch):
    found = {}
    for name, made in (("row loader", DataLoader), ("batched loader", BatchedDataLoader)):
        began, ids = time.monotonic(), []
        with make_batch_reader(
            f"file://{folder}", num_epochs=1, shuffle_row_groups=True, workers_count=2
        ) as reader:
            for rows in made(reader, batch_size=batch, shuffling_queue_capacity=20 * batch):
                ids.extend(rows["id"].tolist())
        found[name] = len(ids) / (time.monotonic() - began)
        assert sorted(ids) == list(range(len(ids))), f"{name} lost or doubled rows"
    print(json.dumps({"rows": len(ids), **found}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
