"""States on disk: shards of labelled rows in safetensors, and an index that says what they hold.

``index.json`` is written first and holds the whole plan; ``states-00000.safetensors`` … follow, each of them whole or
not there, with the digest of its contents in its own header. Rows stand in the order in which the transcripts were
given, and within a transcript by position.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from forethought.atomic import atomic_file
from forethought.errors import ArtefactError
from forethought.instruments.fingerprint import Identity
from forethought.instruments.phases import Delimiters
from forethought.instruments.sites import Site

FORMAT = "forethought.states"
VERSION = 1
INDEX = "index.json"
LABELS = {
    "sequence": torch.int64,
    "problem": torch.int64,
    "sample": torch.int64,
    "position": torch.int64,
    "token": torch.int64,
    "produced": torch.int64,
    "phase": torch.int8,
}
Ints = npt.NDArray[np.int64]


class States:
    """Captured states, opened read-only: labels in memory, states on disk until they are asked for.

    A row is the state at one position of one transcript, which produced the token after it.

    Attributes:
        path: the folder.
        model: what they were read from.
        sites: in the order of the network.
        positions: which were chosen.
        delimiters: that the phases were told by, or None.
        sequence: int64 ``[rows]``, index of the transcript in the order given.
        problem, sample: int64 ``[rows]``, its labels.
        position: int64 ``[rows]``, 0 is the first token of the prompt.
        token: int64 ``[rows]``, the token at this position, the last one read.
        produced: int64 ``[rows]``, the token at the next position; -1 where the transcript ends.
        phase: int8 ``[rows]``, of the token produced (see :mod:`~forethought.instruments.phases`); -1 where no
            delimiters were given.
    """

    def __init__(self, path: Path, index: Mapping[str, Any], labels: Mapping[str, Ints]) -> None:
        self.path = path
        self.model = Identity(**index["model"])
        self.sites: tuple[Site, ...] = tuple(index["sites"])
        self.positions: str = index["positions"]
        told = index["delimiters"]
        self.delimiters = None if told is None else Delimiters(tuple(told["open"]), tuple(told["close"]))
        self._shards: list[int] = index["shards"]
        self.sequence, self.problem, self.sample = labels["sequence"], labels["problem"], labels["sample"]
        self.position, self.token, self.produced = labels["position"], labels["token"], labels["produced"]
        self.phase = labels["phase"]

    def __len__(self) -> int:
        return len(self.sequence)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = False) -> States:
        """Open a folder that :func:`~forethought.instruments.capture.capture` wrote.

        Args:
            path: the folder.
            verify: also compare every shard with its digest (reads everything).

        Raises:
            ArtefactError: the folder is missing, unfinished, damaged, or of another version.
        """
        path = Path(path)
        index = read_index(path)
        there = sum(shard_path(path, number).exists() for number in range(len(index["shards"])))
        if there < len(index["shards"]):
            raise ArtefactError(
                f"{path} holds {there} of {len(index['shards'])} shards; run the same capture again to make the rest."
            )
        parts: list[dict[str, Tensor]] = []
        for number, rows in enumerate(index["shards"]):
            problem = shard_problem(path, index, number, verify=verify)
            if problem is not None:
                raise ArtefactError(
                    f"{shard_path(path, number)} {problem}; run the same capture again, which makes it anew."
                )
            with safe_open(shard_path(path, number), "pt") as shard:
                parts.append({name: shard.get_tensor(f"label.{name}").clone() for name in LABELS})  # lets the file go
            assert len(parts[-1]["sequence"]) == rows
        return cls(path, index, {name: torch.cat([part[name] for part in parts]).numpy() for name in LABELS})

    def at(self, site: Site, rows: slice | None = None) -> npt.NDArray[np.float32]:
        """The states of one site; float32 ``[rows, d]``, row by row as the labels.

        Args:
            site: one of :attr:`sites`.
            rows: only these; without it all of them are read into memory. Steps are not taken.

        Raises:
            ArtefactError: the site was not captured, or a shard went missing.
        """
        if site not in self.sites:
            raise ArtefactError(
                f"{self.path} has no states of site {site!r}; it has {', '.join(map(str, self.sites))}."
            )
        first, last, _ = (rows or slice(None)).indices(len(self))
        found = np.empty((max(0, last - first), self.model.width), dtype=np.float32)
        begin = 0
        for number, count in enumerate(self._shards):
            low, high = max(first, begin), min(last, begin + count)
            if low < high:
                try:
                    with safe_open(shard_path(self.path, number), "pt") as shard:
                        part = shard.get_slice(f"site.{site}")[low - begin : high - begin]
                except (OSError, SafetensorError) as error:
                    raise ArtefactError(
                        f"{shard_path(self.path, number)} cannot be read ({error}); run the same capture again."
                    ) from error
                found[low - first : high - first] = part.float().numpy()
            begin += count
        return found

    def chunks(self, site: Site, size: int = 65536) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """Go through one site with little memory: which rows, and their states, float32 ``[at most size, d]``."""
        for start in range(0, len(self), size):
            rows = slice(start, min(start + size, len(self)))
            yield rows, self.at(site, rows)


def shard_path(folder: Path, number: int) -> Path:
    """Where a shard lies."""
    return folder / f"states-{number:05d}.safetensors"


def read_index(folder: Path) -> dict[str, Any]:
    """What a folder holds, or is to hold when it is finished.

    Raises:
        ArtefactError: there is no index, or it is damaged or of another version.
    """
    file = folder / INDEX
    if not file.is_file():
        raise ArtefactError(f"{folder} holds no captured states (no {INDEX}); make them with capture().")
    try:
        index: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if (index["format"], index["version"]) != (FORMAT, VERSION):
            raise ArtefactError(
                f"{file} is {index['format']} version {index['version']}; this forethought reads {FORMAT} {VERSION}."
            )
        Identity(**index["model"])
        _ = [*index["sites"], *index["shards"]], index["positions"], index["delimiters"], index["dtype"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ArtefactError):
            raise
        raise ArtefactError(
            f"{file} is damaged ({type(error).__name__}: {error}); remove the folder and capture again."
        ) from error
    return index


def write_shard(
    folder: Path, index: Mapping[str, Any], number: int, labels: Mapping[str, Tensor], states: Mapping[Site, Tensor]
) -> None:
    """Write one shard, whole or not at all.

    Args:
        folder: of the capture.
        index: its plan.
        number: of the shard.
        labels: each of :data:`LABELS`, ``[rows]``.
        states: of each site, ``[rows, d]``.
    """
    tensors = {f"label.{name}": labels[name].to(dtype) for name, dtype in LABELS.items()}
    tensors |= {f"site.{site}": rows for site, rows in states.items()}
    header = {"capture": _plan_digest(index), "shard": number, "digest": _digest(tensors)}
    with atomic_file(shard_path(folder, number)) as scratch:
        try:
            save_file(tensors, scratch, {FORMAT: json.dumps(header)})  # one entry: the order of several is random
        except SafetensorError as error:  # a full disk, which atomic_file tells in words
            raise OSError(str(error)) from error


def shard_problem(folder: Path, index: Mapping[str, Any], number: int, *, verify: bool) -> str | None:
    """What is wrong with a shard, to follow its name in a sentence; None where nothing is.

    Args:
        folder: of the capture.
        index: its plan.
        number: of the shard.
        verify: compare the contents with their digest too, one tensor in memory at a time.
    """
    shape = [index["shards"][number], index["model"]["width"]]
    wanted = {f"label.{name}": shape[:1] for name in LABELS} | {f"site.{site}": shape for site in index["sites"]}
    try:
        with safe_open(shard_path(folder, number), "pt") as shard:
            header = json.loads((shard.metadata() or {}).get(FORMAT, "{}"))
            if (header.get("capture"), header.get("shard")) != (_plan_digest(index), number):
                return "belongs to another capture"
            if {name: shard.get_slice(name).get_shape() for name in shard.keys()} != wanted:  # noqa: SIM118
                return "does not hold the rows that its index says"
            if verify and header.get("digest") != _digest(dict.fromkeys(wanted, shard.get_tensor)):
                return "does not match its digest"
    except FileNotFoundError:
        return "is missing"
    except (OSError, ValueError, SafetensorError) as error:
        return f"cannot be read ({error})"
    return None


def _plan_digest(index: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def _digest(tensors: Mapping[str, Any]) -> str:
    """Over names and contents; a value may be the tensor or what gives it by its name."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        tensor = value if isinstance(value, Tensor) else value(name)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
