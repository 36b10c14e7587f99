"""Data whose answer is known: walks on a ring, where one of the next three items follows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from forethought.data.catalog import Catalog
from forethought.data.dataset import Dataset, Sequences


def ring(users: int = 300, items: int = 50, longest: int = 24, seed: int = 0) -> Dataset:
    """Leave-one-out data: item x is followed by x + 1, x + 2 or x + 3, all equally likely."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(4, longest + 1, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    steps = draw.integers(1, 4, offsets[-1]).cumsum()
    walk = (steps - np.repeat(steps[offsets[:-1]] - draw.integers(0, items, users), lengths)) % items + 1
    stops = offsets[1:] - 2
    catalog = Catalog(
        pa.table({"id": [f"i{n}" for n in range(1, items + 1)], "title": [f"Film {n}" for n in range(1, items + 1)]})
    )
    counts = {"users": users, "items": items, "events": len(walk), "train_events": int((stops - offsets[:-1]).sum())}
    return Dataset(
        Sequences(offsets, walk.astype(np.int32)),
        stops,
        stops,
        stops + 1,
        catalog,
        pa.array([f"u{n}" for n in range(users)]),
        {
            "name": "ring",
            "protocol": "leave-one-out",
            "counts": {**counts, "valid": users, "test": users, "users_without_target": 0},
        },
    )
