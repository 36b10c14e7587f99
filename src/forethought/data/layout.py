"""From a cleaned table to the compressed sparse arrays, in one ordered pass and without holding the log in memory."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ibis.expr.types as ir
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from forethought.data.dataset import Sequences
from forethought.errors import DataError

ROWS_AT_ONCE = 500_000
PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Layout:
    """Sequences with their vocabularies.

    Attributes:
        sequences: every user's events in order; arrays live in files of the scratch folder.
        users: own ids, ascending.
        items: own ids, ascending; row r is item r + 1.
        actions: names of the actions, ascending.
        parts: int64 ``[users]``: 0 training, 1 validation, 2 test, where the source came split; else None.
    """

    sequences: Sequences
    users: pa.Array
    items: pa.Array
    actions: list[str]
    parts: npt.NDArray[np.int64] | None


def lay_out(table: ir.Table, order: list[str], scratch: Path) -> Layout:
    """Sort by user and order, and write the arrays.

    Args:
        table: ``user``, ``item`` and where known ``time``, ``rating``, ``action``, ``part``.
        order: the columns that put a user's events in order.
        scratch: folder for the arrays; each call makes a folder of its own there, for arrays may still be mapped.

    Raises:
        DataError: there are more kinds of action than can be kept, or an id is no text.
        OSError: there is no room in the scratch folder.
    """
    folder = Path(tempfile.mkdtemp(dir=scratch))
    events = int(table.count().to_pyarrow().as_py())
    items = _one_chunk(table.select("item").distinct().order_by("item").to_pyarrow()["item"])
    actions = pa.array([], pa.string())
    dtypes: dict[str, Any] = {"items": np.int32}
    if "time" in table.columns:
        dtypes["times"] = np.int64
    if "rating" in table.columns:
        dtypes["ratings"] = np.float32
    if "action" in table.columns:
        dtypes["actions"] = np.int16
        actions = _one_chunk(table.select("action").distinct().order_by("action").to_pyarrow()["action"])
        if len(actions) > np.iinfo(np.int16).max:
            raise DataError(
                f"The action column has {len(actions):,} different values; actions are a few kinds of event, such as "
                "view or buy. Name another column, or none."
            )
    arrays = {name: _mapped(folder / f"{name}.npy", dtype, events) for name, dtype in dtypes.items()}
    names = [name for name in ("user", "item", "time", "rating", "action", "part") if name in table.columns]
    starts: list[npt.NDArray[np.int64]] = []
    users: list[pa.Array] = []
    _refuse_zero_bytes("item", items)
    parts: list[npt.NDArray[np.int64]] = []
    last, done = None, 0
    for batch in table.order_by(["user", *order]).select(names).to_pyarrow_batches(chunk_size=ROWS_AT_ONCE):
        if not batch.num_rows:
            continue
        here = slice(done, done + batch.num_rows)
        arrays["items"][here] = pc.index_in(batch["item"], value_set=items).to_numpy(zero_copy_only=False) + 1
        if "times" in arrays:
            arrays["times"][here] = batch["time"].to_numpy(zero_copy_only=False)
        if "ratings" in arrays:
            arrays["ratings"][here] = batch["rating"].to_numpy(zero_copy_only=False)
        if "actions" in arrays:
            arrays["actions"][here] = pc.index_in(batch["action"], value_set=actions).to_numpy(zero_copy_only=False)
        runs = pc.run_end_encode(batch["user"], run_end_type=pa.int64())
        first = np.concatenate(([0], runs.run_ends.to_numpy()[:-1]))
        new = 1 if runs.values[0].as_py() == last else 0  # the last batch's user goes on
        users.append(runs.values[new:])
        starts.append(first[new:] + done)
        if "part" in batch.schema.names:
            codes = pc.index_in(batch["part"], value_set=pa.array(PARTS)).to_numpy(zero_copy_only=False)
            parts.append(codes[first[new:]].astype(np.int64))
        last, done = runs.values[-1].as_py(), here.stop
    offsets = np.concatenate([*starts, [events]]).astype(np.int64)
    sequences = Sequences(offsets, arrays["items"], arrays.get("times"), arrays.get("actions"), arrays.get("ratings"))
    owners = pa.concat_arrays(users)
    _refuse_zero_bytes("user", owners)
    return Layout(sequences, owners, items, actions.to_pylist(), np.concatenate(parts) if parts else None)


def _refuse_zero_bytes(role: str, ids: pa.Array) -> None:
    if pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type):
        found = ids.filter(pc.match_substring(ids, "\0"))
        if len(found):
            raise DataError(
                f"The {role} id {found[0].as_py()!r} holds a zero byte, which no text should; mend the log."
            )


def _mapped(path: Path, dtype: Any, length: int) -> npt.NDArray[Any]:
    """An array in a new file, whose room is taken at once: writing into a hole on a full disk ends the process."""
    array: npt.NDArray[Any] = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(length,))
    if hasattr(os, "posix_fallocate"):  # macOS has none
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(column.chunks)
