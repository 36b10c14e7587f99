"""Small logs, written as files, for the tests of the data layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from forethought.data.dataset import Dataset

# (user, item, Unix seconds): four users, five items; u3 has one event, b and c tie for u1
EVENTS = [
    ("u1", "a", 100), ("u1", "b", 200), ("u1", "c", 200), ("u1", "d", 300),
    ("u2", "b", 150), ("u2", "a", 120), ("u2", "e", 400), ("u2", "d", 180),
    ("u3", "a", 500),
    ("u4", "c", 50), ("u4", "d", 60), ("u4", "e", 70),
]  # fmt: skip
SEQUENCES = {"u1": ["a", "b", "c", "d"], "u2": ["a", "b", "d", "e"], "u3": ["a"], "u4": ["c", "d", "e"]}


def write_csv(path: Path, rows: Iterable[Sequence[Any]] = EVENTS, header: str = "user,item,timestamp") -> Path:
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def sequences_of(dataset: Dataset) -> dict[Any, list[Any]]:
    """Every user's items in order, all by their own ids."""
    offsets, items = dataset.sequences.offsets, dataset.sequences.items
    return {
        user: dataset.catalog.decode(items[offsets[row] : offsets[row + 1]])
        for row, user in enumerate(dataset.users.to_pylist())
    }
