"""A log small enough to count by hand: repeats, a user of one event, held-out users, an item never trained on."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from forethought.data.catalog import Catalog
from forethought.data.dataset import Dataset, Sequences

NUM_ITEMS = 8
TRAINING = [[1, 2, 3, 1, 2], [2, 3, 4, 5], [6], [5, 1, 2, 6, 6, 3, 1, 2, 4, 5], [7, 2], [], [3, 2, 3, 4]]
HELD_OUT = [[], [1, 2], [], [3, 5], [], [4, 2, 7, 8], [7, 1]]


def make_dataset(training: list[list[int]], held_out: list[list[int]], num_items: int) -> Dataset:
    """One list a user. The last of two or more held-out items is the test target, the one before is validation's."""
    whole = [train + rest for train, rest in zip(training, held_out, strict=True)]
    offsets = np.cumsum([0, *map(len, whole)])
    items = np.array([item for user in whole for item in user], dtype=np.int32)
    last = offsets[1:][[len(rest) >= 2 for rest in held_out]] - 1
    counts = {
        "users": len(whole),
        "items": num_items,
        "events": len(items),
        "train_events": sum(map(len, training)),
        "valid": len(last),
        "test": len(last),
        "users_without_target": len(whole) - len(last),
    }
    return Dataset(
        Sequences(offsets, items),
        offsets[:-1] + [len(train) for train in training],
        last - 1,
        last,
        Catalog(pa.table({"id": [f"item {i}" for i in range(1, num_items + 1)]})),
        pa.array([f"user {row}" for row in range(len(whole))]),
        {"name": "tiny", "protocol": "leave-one-out", "fingerprint": "none", "counts": counts},
    )
