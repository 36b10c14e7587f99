"""From ordered sequences to a data set: the split, the counts, the catalogue and the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from forethought.data.catalog import Catalog
from forethought.data.dataset import Dataset, Sequences
from forethought.data.splitting import CUTS, Positions, Split, given_split, global_time, leave_one_out, user_split
from forethought.errors import DataError


def assemble(
    sequences: Sequences,
    users: pa.Array,
    described: pa.Table,
    split: Split | None = None,
    *,
    seed: int = 0,
    quantiles: tuple[float, float] | None = None,
    valid_users: int | None = None,
    parts: npt.NDArray[np.int64] | None = None,
    name: str = "data",
    tie_rule: str = "given order",
    rules: Sequence[Mapping[str, Any]] = (),
    provenance: Mapping[str, Any] | None = None,
    dropped: Mapping[str, int] | None = None,
    actions: Sequence[str] = (),
) -> Dataset:
    """Split the sequences and make the data set, in memory.

    Args:
        sequences: every user's events in order, items 1..N.
        users: own ids, one a user.
        described: one row an item with ``id`` and, where known, ``title``, ``categories``, ``text``.
        split: the protocol; None takes the given ``parts``, or else ``"leave-one-out"``.
        seed: of what is drawn by the split.
        quantiles: of the global-time cuts; 0.8 and 0.9 by default.
        valid_users: of leave-one-out, how many users have a validation case; all by default.
        parts: int64 ``[users]``: 0 training, 1 validation, 2 test.
        name, tie_rule, rules, provenance, dropped, actions: for the manifest.

    Raises:
        DataError: the split leaves nothing to train on or nothing to test.
    """
    protocol, positions = _split(sequences, split, seed, quantiles, valid_users, parts)
    trained = positions.train_stop - sequences.offsets[:-1]
    for what, found in (("test case", len(positions.test)), ("training event", trained.sum())):
        if not found:
            raise DataError(f"{name} leaves no {what} under {protocol}: its {len(users)} users have too few events.")
    dataset = Dataset(sequences, positions.train_stop, positions.valid, positions.test, Catalog(described), users, {})
    counts = np.asarray(dataset.item_counts()[1:])
    dataset.catalog = Catalog(described.append_column("count", pa.array(counts, pa.int64())))
    dataset.manifest = {
        "name": name,
        "protocol": protocol,
        "counts": {**dataset._counts(), "users_without_target": positions.parameters["users_without_target"]},
        "tie_rule": tie_rule,
        "rules": [*map(dict, rules), {"rule": "split", "protocol": protocol, **positions.parameters}],
        "provenance": dict(provenance or {}),
        "dropped": dict(dropped or {}),
        "actions": list(actions),
    }
    dataset.manifest["fingerprint"] = dataset._digest()
    return dataset


def _split(
    sequences: Sequences,
    split: Split | None,
    seed: int,
    quantiles: tuple[float, float] | None,
    valid_users: int | None,
    parts: npt.NDArray[np.int64] | None,
) -> tuple[Split, Positions]:
    came_split = split is None and parts is not None
    if valid_users is not None and (came_split or split not in (None, "leave-one-out")):
        raise DataError("A number of validation users goes with the split leave-one-out alone.")
    if quantiles is not None and (came_split or split != "global-time"):
        raise DataError("Cuts go with the split global-time alone.")
    if split is None and parts is not None:
        return "user-split", given_split(sequences.offsets, parts)
    if split == "user-split":
        return split, user_split(sequences.offsets, seed)
    if split == "global-time":
        if sequences.times is None:
            raise DataError("The split global-time needs times; name the time column with --time-column.")
        if len(sequences.times) and sequences.times.min() == sequences.times.max():
            raise DataError("The split global-time needs times, and all of these are equal; choose another --split.")
        return split, global_time(sequences.offsets, sequences.times, quantiles or CUTS)
    return "leave-one-out", leave_one_out(sequences.offsets, valid_users, seed)
