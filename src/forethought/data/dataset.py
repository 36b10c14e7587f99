"""A prepared data set: memory-mapped sequences, split positions, vocabulary and a manifest.

Inside the project item 0 is padding and items are 1..N; users see their own ids through the :class:`Catalog`.
"""

from __future__ import annotations

import hashlib
import json
import os
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from forethought.atomic import atomic_folder, refuse_existing
from forethought.data.catalog import Catalog
from forethought.data.splitting import SPLITS
from forethought.errors import ArtefactError, DataError

FORMAT = "forethought.dataset"
VERSION = 1
COUNTS = ("users", "items", "events", "train_events", "valid", "test", "users_without_target")
_BLOCK = 1 << 22
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sequences:
    """Every user's events in order, as one compressed sparse layout.

    Attributes:
        offsets: int64 ``[users + 1]``; user u owns ``items[offsets[u]:offsets[u + 1]]``.
        items: int32 ``[events]``, values 1..N.
        times: int64 ``[events]``, Unix milliseconds, or None.
        actions: int16 ``[events]``, index into the manifest's ``actions``, or None.
        ratings: float32 ``[events]``, or None.
    """

    offsets: npt.NDArray[np.int64]
    items: npt.NDArray[np.int32]
    times: npt.NDArray[np.int64] | None = None
    actions: npt.NDArray[np.int16] | None = None
    ratings: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def owner(self, positions: Ints) -> Ints:
        """The user of each flat position; int64 of the same shape."""
        return np.searchsorted(self.offsets, positions, side="right") - 1


@dataclass(frozen=True)
class Targets:
    """Held-out cases: the item at each position is to be ranked given what its user did before.

    Attributes:
        sequences: the whole log.
        positions: int64 ``[cases]``, flat index of each target.
        users: int64 ``[cases]``, the user of each target.
    """

    sequences: Sequences
    positions: Ints
    users: Ints

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def items(self) -> Ints:
        """int64 ``[cases]``, the item to be found."""
        return self.sequences.items[self.positions].astype(np.int64)

    @property
    def starts(self) -> Ints:
        """int64 ``[cases]``, flat index where the history begins; it ends before ``positions``."""
        return np.asarray(self.sequences.offsets[self.users])

    @property
    def lengths(self) -> Ints:
        """int64 ``[cases]``, events in the history."""
        return self.positions - self.starts


class Dataset:
    """A prepared folder, opened read-only.

    Attributes:
        path: the folder, or None when made in memory.
        sequences: every user's events.
        train_stop: int64 ``[users]``: user u trains on ``items[offsets[u]:train_stop[u]]``; empty for held-out users.
        catalog: item ids, titles, categories, text and training counts.
        users: the users' own ids, in order.
        manifest: counts, fingerprint, provenance and every rule applied.
    """

    def __init__(
        self,
        sequences: Sequences,
        train_stop: Ints,
        valid_positions: Ints,
        test_positions: Ints,
        catalog: Catalog,
        users: pa.Array,
        manifest: Mapping[str, Any],
        path: Path | None = None,
    ) -> None:
        self.sequences = sequences
        self.train_stop = train_stop
        self._positions: dict[str, Ints] = {"valid": valid_positions, "test": test_positions}
        self.catalog = catalog
        self.users = users
        self.manifest = dict(manifest)
        self.path = path

    @property
    def num_items(self) -> int:
        """N; items are 1..N."""
        return len(self.catalog)

    @property
    def num_users(self) -> int:
        """Users, held-out ones among them."""
        return len(self.sequences)

    @property
    def protocol(self) -> str:
        """``leave-one-out``, ``user-split`` or ``global-time``."""
        return str(self.manifest["protocol"])

    @property
    def fingerprint(self) -> str:
        """SHA-256 over arrays, vocabulary and split; equal data has equal fingerprints."""
        return str(self.manifest["fingerprint"])

    def targets(self, split: Literal["valid", "test"]) -> Targets:
        """The held-out cases of a split."""
        if split not in self._positions:
            raise DataError(f"There is no split {split!r}; choose valid or test.")
        positions = np.asarray(self._positions[split])
        return Targets(self.sequences, positions, self.sequences.owner(positions))

    def item_counts(self) -> npt.NDArray[np.int64]:
        """int64 ``[N + 1]``: how often each item occurs in training; entry 0 is padding."""
        items, counts = self.train_items(), np.zeros(self.num_items + 1, dtype=np.int64)
        for start in range(0, len(items), _BLOCK):  # bincount widens to int64: a block at a time
            counts += np.bincount(items[start : start + _BLOCK], minlength=len(counts))
        return counts

    def train_items(self) -> npt.NDArray[np.int32]:
        """int32 ``[training events]``, user after user."""
        kept = np.zeros(len(self.sequences.items) + 1, dtype=np.int8)  # wraps around and back where users are empty
        np.add.at(kept, self.sequences.offsets[:-1], 1)
        np.add.at(kept, self.train_stop, -1)
        return np.asarray(self.sequences.items[np.cumsum(kept[:-1], dtype=np.int8).view(bool)])

    def user_index(self, user: object) -> int:
        """The row of a user's own id (given as the id itself or as its text).

        Raises:
            DataError: the user is not in this data set.
        """
        if not hasattr(self, "_user_rows"):
            self._user_rows = {str(value): row for row, value in enumerate(self.users.to_pylist())}
        row = self._user_rows.get(str(user))
        if row is None:
            example = ", ".join(str(value) for value in self.users[:3].to_pylist())
            raise DataError(f"User {user!r} is not in {self.path or 'this data set'}; its users look like {example}.")
        return row

    def save(self, path: str | os.PathLike[str], *, replace: bool = False) -> Dataset:
        """Write the folder atomically and return it opened.

        Args:
            path: the folder to make.
            replace: an empty folder or a prepared one may give way to it.

        Raises:
            ArtefactError: the place is taken or cannot be written.
        """
        check_place(path, replace)
        with atomic_folder(path, replace=replace) as scratch:
            arrays = {}
            for name, array in self._arrays().items():
                # plain numbers: nothing in an artefact is pickled, here and where it is read
                np.save(scratch / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)
                arrays[name] = {"dtype": str(array.dtype), "length": len(array)}
            self.catalog.save(scratch / "items.parquet")
            pq.write_table(pa.table({"id": self.users}), scratch / "users.parquet")
            manifest = {"format": FORMAT, "version": VERSION, **self.manifest, "arrays": arrays}
            manifest["fingerprint"] = self._digest()
            content = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
            (scratch / "manifest.json").write_text(content, encoding="utf-8")
        return Dataset.open(os.path.abspath(path))  # a/../b is b though there is no a

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        arrays: dict[str, npt.NDArray[Any] | None] = {
            "offsets": self.sequences.offsets,
            "items": self.sequences.items,
            "times": self.sequences.times,
            "actions": self.sequences.actions,
            "ratings": self.sequences.ratings,
            "train_stop": self.train_stop,
            "valid_positions": self._positions["valid"],
            "test_positions": self._positions["test"],
        }
        return {name: array for name, array in arrays.items() if array is not None}

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for name, array in sorted(self._arrays().items()):
            digest.update(f"{name}:{array.dtype}:{len(array)}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
        for ids in (self.catalog.ids, self.users):
            for chunk in range(0, len(ids), 65536):
                digest.update("\n".join(map(str, ids[chunk : chunk + 65536].to_pylist())).encode())
        return digest.hexdigest()

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = False) -> Dataset:
        """Open a prepared folder; arrays are memory-mapped.

        Args:
            path: the folder ``forethought data prepare --out`` wrote.
            verify: also recompute the fingerprint (reads everything).

        Raises:
            DataError: the folder is missing, damaged, or of another version.
        """
        path = Path(path)
        file = path / "manifest.json"
        if not file.is_file():
            raise DataError(
                f"{path} is no prepared data folder (no manifest.json); make one with 'forethought data prepare'."
            )
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
            arrays = manifest["arrays"]
            if manifest["format"] != FORMAT or manifest["version"] != VERSION:
                raise DataError(
                    f"{file} is {manifest['format']} version {manifest['version']}; "
                    f"this forethought reads {FORMAT} {VERSION}."
                )
            loaded = {name: cls._load_array(path, name, spec) for name, spec in arrays.items()}
            sequences = Sequences(
                loaded["offsets"], loaded["items"], loaded.get("times"), loaded.get("actions"), loaded.get("ratings")
            )
            catalog = Catalog.open(path / "items.parquet")
            users = pq.read_table(path / "users.parquet")["id"].combine_chunks()
            dataset = cls(
                sequences, loaded["train_stop"], loaded["valid_positions"], loaded["test_positions"],
                catalog, users, manifest, path,
            )  # fmt: skip
            protocol, fingerprint = dataset.protocol, dataset.fingerprint
            if protocol not in SPLITS:
                raise DataError(f"{file} has the protocol {protocol!r}; this forethought knows {', '.join(SPLITS)}.")
            dataset._check_shape()
            told = {name: manifest["counts"][name] for name in COUNTS}
            numbers = [*told.values(), *manifest.get("dropped", {}).values()]
            if not all(isinstance(number, int) for number in numbers):
                raise DataError(f"{path} is damaged (its counts are no whole numbers); prepare the data again.")
            split = [rule["protocol"] for rule in manifest.get("rules", []) if rule["rule"] == "split"]
            if told | dataset._counts() != told or split not in ([], [protocol]):
                raise DataError(f"{path} is damaged (its manifest contradicts its arrays); prepare the data again.")
            if verify and dataset._digest() != fingerprint:
                raise DataError(
                    f"{path} does not match its fingerprint; it was changed after it was made ({protocol}). "
                    "Prepare it again."
                )
        except DataError:
            raise
        except (
            LookupError, TypeError, AttributeError, ValueError, OSError, EOFError, RecursionError,
            SyntaxError, tokenize.TokenError,  # of numpy, where an array's header is damaged
        ) as error:  # fmt: skip
            raise DataError(f"{path} is damaged ({type(error).__name__}: {error}); prepare the data again.") from error
        return dataset

    @staticmethod
    def _load_array(path: Path, name: str, spec: Mapping[str, Any]) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = np.load(
            path / f"{name}.npy", mmap_mode="c" if spec["length"] else None, allow_pickle=False
        )
        if str(array.dtype) != spec["dtype"] or array.shape != (spec["length"],):
            raise DataError(
                f"{path / name}.npy holds {array.dtype} {array.shape}, "
                f"the manifest says {spec['dtype']} ({spec['length']},); prepare the data again."
            )
        return array

    def _counts(self) -> dict[str, int]:
        """What the manifest says under ``counts`` and the arrays tell."""
        return {
            "users": len(self.users),
            "items": self.num_items,
            "events": len(self.sequences.items),
            "train_events": int((self.train_stop - self.sequences.offsets[:-1]).sum()),
            "valid": len(self._positions["valid"]),
            "test": len(self._positions["test"]),
        }

    def _check_shape(self) -> None:
        offsets, events = self.sequences.offsets, len(self.sequences.items)
        whole = len(offsets) == len(self.users) + 1 == len(self.train_stop) + 1
        whole = whole and offsets[0] == 0 and offsets[-1] == events and bool((np.diff(offsets) >= 0).all())
        whole = whole and bool(((self.train_stop >= offsets[:-1]) & (self.train_stop <= offsets[1:])).all())
        for positions in self._positions.values():
            whole = whole and (len(positions) == 0 or (positions.min() >= 0 and positions.max() < events))
        if events:
            whole = whole and self.sequences.items.min() >= 1 and self.sequences.items.max() <= self.num_items
        if not whole:
            raise DataError(f"{self.path} is damaged (its arrays contradict each other); prepare the data again.")


def check_place(
    path: str | os.PathLike[str],
    replace: bool,
    advice: str = "choose another folder or remove it first",
    reads: Iterable[str | os.PathLike[str]] = (),
) -> None:
    """Stop before the work is begun where a prepared folder has no place.

    Args:
        path: the folder to make.
        replace: it may take the place of an empty folder or of a prepared one, and of nothing else.
        advice: what can be done where it exists and is not to be replaced.
        reads: files and folders that are read for it, and so do not go with it.

    Raises:
        ArtefactError: the place is taken.
    """
    target = Path(os.path.abspath(path))
    inside = [source for source in reads if Path(source).resolve().is_relative_to(target.resolve())]
    if not replace:
        refuse_existing(path, advice)
    elif target.exists() and Path.cwd().is_relative_to(target.resolve()):
        raise ArtefactError(f"{path} is the folder that this runs in, so it is not replaced; run it from elsewhere.")
    elif target.exists() and not _may_go(target):
        raise ArtefactError(
            f"{path} is neither an empty folder nor a prepared data folder, so it is not replaced; "
            "choose another folder or remove it first."
        )
    elif target.exists() and inside:
        raise ArtefactError(f"{path} holds {inside[0]}, which is read, so it is not replaced; choose another folder.")


def _may_go(path: Path) -> bool:
    if path.is_dir() and not any(path.iterdir()):
        return True
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT
