"""Read states of chosen sites and positions: while a model runs anyway, or from finished transcripts."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from forethought.atomic import atomic_file
from forethought.errors import ArtefactError
from forethought.instruments.fingerprint import Identity
from forethought.instruments.moments import Moments
from forethought.instruments.phases import Delimiters
from forethought.instruments.reader import Reader, Work, reading
from forethought.instruments.sites import Site, Stack
from forethought.instruments.states import (
    FORMAT,
    INDEX,
    LABELS,
    VERSION,
    States,
    read_index,
    shard_problem,
    write_shard,
)
from forethought.instruments.transcripts import Positions, Transcript, choose, count_rows, digest

__all__ = ["Captured", "Transcript", "capture", "captured", "moments"]

SHARD_BYTES = 128 << 20
_PATIENCE = 2.0  # seconds before a bar is shown


class Captured:
    """What :func:`captured` saw.

    Attributes:
        passes: of each site the states of each forward pass, ``[batch, positions, d]``, in the model's own dtype.
    """

    def __init__(self, sites: Sequence[Site]) -> None:
        self.passes: dict[Site, list[Tensor]] = {site: [] for site in sites}

    def at(self, site: Site) -> Tensor:
        """All passes, one after another along the positions; ``[batch, positions, d]``.

        Under ``generate`` with a cache that is every position once: the prompt's, then one a token.

        Raises:
            ArtefactError: the site was not asked for, nothing ran, or the passes had different batches.
        """
        if site not in self.passes:
            raise ArtefactError(f"Site {site!r} was not captured; captured were {', '.join(map(str, self.passes))}.")
        seen = self.passes[site]
        if not seen:
            raise ArtefactError(f"No forward pass went through site {site!r}; run the model inside captured().")
        if len({len(states) for states in seen}) > 1:
            batches = ", ".join(str(len(states)) for states in seen)
            raise ArtefactError(f"The passes had batches of {batches} rows; read them one by one from .passes.")
        return torch.cat(seen, dim=1)


@contextlib.contextmanager
def captured(
    model: nn.Module, sites: Sequence[Site], *, last: bool = False, stack: Stack | None = None
) -> Iterator[Captured]:
    """Keep the states of every forward pass in the block, ``generate`` among them, as copies in the CPU's memory.

    Steering that was put on before is seen in them.

    Args:
        model: any network with blocks.
        sites: which to read.
        last: keep only the last position of each pass: under ``generate`` the states that produced the tokens, one
            each, the first of them at the last position of the prompt.
        stack: the blocks; found where it is not given.

    Raises:
        ArtefactError: the network has no such site.
    """
    stack, seen = stack or Stack.of(model), Captured(sites)

    def keep(site: Site) -> Callable[[Tensor], None]:
        def change(stream: Tensor) -> None:
            chosen = stream[:, -1:] if last else stream
            seen.passes[site].append(chosen.detach().to("cpu", copy=True))  # a model may go on in the same memory

        return change

    with contextlib.ExitStack() as hooks:
        for site in sites:
            hooks.callback(stack.hook(site, keep(site)).remove)
        yield seen


def capture(
    model: nn.Module,
    transcripts: Sequence[Transcript],
    sites: Sequence[Site],
    positions: Positions,
    out: str | os.PathLike[str],
    *,
    batch_size: int = 32,
    delimiters: Delimiters | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    stack: Stack | None = None,
    quiet: bool = False,
) -> States:
    """Run finished transcripts through the network without its head and keep the chosen rows on disk.

    Repeated after a kill with the same arguments it goes on where it was: whole shards stay, a damaged one is made
    anew. Memory holds one shard and one batch, however many transcripts there are. Tokens after the last chosen
    position are not run, nor, but for the first batch, blocks after the last site.

    Args:
        model: a causal language model, or any module that takes token ids ``[B, T]`` through blocks in causal order.
        transcripts: in the order the rows are to have.
        sites: which to read.
        positions: ``last-prompt``: the last of the prompt, one row each. ``generated``: those that produced a
            generated token. ``think``, ``answer``: those of them in this phase. ``all``: every one, the last too.
        out: the folder.
        batch_size: transcripts run at once, padded on the left; similar lengths of one shard come together.
        delimiters: what the phases are told by; needed for ``think`` and ``answer``.
        dtype: of the states on disk; the model's own where it is not given.
        shard_bytes: most that the states of one shard take.
        stack: the blocks; found where it is not given.
        quiet: no progress bar.

    Returns:
        The states, opened.

    Raises:
        ArtefactError: a transcript does not fit the model, nothing is chosen, the network has no such site, or the
            folder holds something else.
    """
    out = Path(out)
    with reading(model, sites, stack) as reader:
        counts = count_rows(model, transcripts, positions, delimiters)
        dtype = dtype or reader.dtype
        plan = _plan(counts, max(1, shard_bytes // (len(sites) * reader.width * dtype.itemsize)))
        index: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "model": asdict(Identity.of(model, reader.stack)),
            "sites": list(sites),
            "positions": positions,
            "delimiters": None if delimiters is None else {key: list(ids) for key, ids in asdict(delimiters).items()},
            "dtype": str(dtype).removeprefix("torch."),
            "transcripts": digest(transcripts),
            "shards": [sum(piece.rows for piece in pieces) for pieces in plan],
        }
        index = _prepare(out, index)
        with _bar("reading states", sum(counts), quiet) as advance:
            for number, pieces in enumerate(plan):
                if shard_problem(out, index, number, verify=True) is None:
                    advance(index["shards"][number])
                    continue
                chosen = [_rows(piece, transcripts[piece.owner], positions, delimiters) for piece in pieces]
                labels = {name: torch.cat([rows[name] for rows in chosen]) for name in LABELS}
                work, start = [], 0
                for piece, rows in zip(pieces, chosen, strict=True):
                    work.append(Work(transcripts[piece.owner].ids, rows["position"], start))
                    start += piece.rows
                states = {site: torch.empty(start, reader.width, dtype=dtype) for site in sites}
                _fill(states, reader, work, batch_size, advance)
                write_shard(out, index, number, labels, states)
    return States.open(out)


def moments(
    model: nn.Module,
    transcripts: Sequence[Transcript],
    sites: Sequence[Site],
    positions: Positions,
    groups: Sequence[Hashable] | None = None,
    *,
    covariance: bool = True,
    batch_size: int = 32,
    delimiters: Delimiters | None = None,
    stack: Stack | None = None,
    quiet: bool = False,
) -> dict[Site, Moments]:
    """Means and covariances of the chosen rows without their states: nothing is written, nothing kept.

    Args:
        model, transcripts, sites, positions, batch_size, delimiters, stack, quiet: as in :func:`capture`.
        groups: the group of each transcript, such as its level; one for all where it is not given.
        covariance: false keeps means alone.

    Returns:
        :class:`~forethought.instruments.moments.Moments` of each site.

    Raises:
        ArtefactError: as :func:`capture`, or the number of groups is not that of the transcripts.
    """
    if groups is not None and len(groups) != len(transcripts):
        raise ArtefactError(f"{len(groups)} groups were given for {len(transcripts)} transcripts; give one each.")
    with reading(model, sites, stack) as reader:
        counts = count_rows(model, transcripts, positions, delimiters)
        found = {site: Moments(reader.width, covariance=covariance) for site in sites}

        def add(site: Site, rows: Tensor, batch: list[Work]) -> None:
            of = None if groups is None else [groups[item.owner] for item in batch for _ in item.where]
            found[site].add(rows.cpu().double().numpy(), of)  # MPS has no float64

        order = sorted((i for i, count in enumerate(counts) if count), key=lambda i: -len(transcripts[i]))
        with _bar("reading states", sum(counts), quiet) as advance:
            for start in range(0, len(order), batch_size):  # the positions of one batch in memory, not of all
                chosen = order[start : start + batch_size]
                work = [Work(transcripts[i].ids, choose(transcripts[i], positions, delimiters)[0], i) for i in chosen]
                for batch in reader.batches(work, batch_size):
                    reader.run(batch, add)
                advance(sum(counts[i] for i in chosen))
    return found


@dataclass(frozen=True)
class _Piece:
    """Rows ``first`` to ``last`` of those chosen from a transcript; all of them, where they fit into a shard."""

    owner: int
    first: int
    last: int

    @property
    def rows(self) -> int:
        return self.last - self.first


def _plan(counts: Sequence[int], limit: int) -> list[list[_Piece]]:
    """Which rows go into which shard: never more than the limit, and a transcript whole where it fits into one.

    It follows from the counts alone, so that a capture begun again makes the same shards.
    """
    shards: list[list[_Piece]] = [[]]
    room = limit
    for owner, count in enumerate(counts):
        for first in range(0, count, limit):
            rows = min(limit, count - first)
            if rows > room:
                shards.append([])
                room = limit
            shards[-1].append(_Piece(owner, first, first + rows))
            room -= rows
    return shards


def _rows(
    piece: _Piece, transcript: Transcript, positions: Positions, delimiters: Delimiters | None
) -> dict[str, Tensor]:
    """The labels of a piece, int ``[rows]`` each."""
    where, phase = (part[piece.first : piece.last] for part in choose(transcript, positions, delimiters))
    ids = torch.tensor([*transcript.ids, -1])
    return {
        "sequence": torch.full_like(where, piece.owner),
        "problem": torch.full_like(where, transcript.problem),
        "sample": torch.full_like(where, transcript.sample),
        "position": where,
        "token": ids[where],
        "produced": ids[where + 1],
        "phase": phase,
    }


def _fill(
    states: dict[Site, Tensor], reader: Reader, work: list[Work], batch_size: int, advance: Callable[[int], None]
) -> None:
    """Read ``states``, ``[rows, d]`` a site; the owner of a piece of work is its first row."""

    def store(site: Site, rows: Tensor, batch: list[Work]) -> None:
        begin = 0
        for item in batch:
            end = begin + len(item.where)
            states[site][item.owner : item.owner + len(item.where)] = rows[begin:end]
            begin = end

    for batch in reader.batches(work, batch_size):
        reader.run(batch, store)
        advance(sum(len(item.where) for item in batch))


def _prepare(out: Path, index: dict[str, Any]) -> dict[str, Any]:
    """Write the index into a new folder, or take the one there, which has to be the same but for the model's name."""
    if (out / INDEX).exists():
        there = read_index(out)
        known = {
            **index,
            "model": {**index["model"], "name": there["model"]["name"]},
        }  # a path may be written otherwise
        other = [key for key in index if there.get(key) != known[key]]
        if other:
            raise ArtefactError(
                f"{out} holds another capture (different: {', '.join(other)}); choose another or remove it."
            )
        for scrap in out.glob(".states-*.part.safetensors"):  # of a killed run
            scrap.unlink(missing_ok=True)
        return there
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ArtefactError(f"{out} exists already and holds no captured states; choose another folder.")
    with atomic_file(out / INDEX) as scratch:
        scratch.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return index


@contextlib.contextmanager
def _bar(task: str, total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A function that is told how many rows are done; a bar appears where that takes a while and someone looks on."""
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows"),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    )
    number, began = progress.add_task(task, total=total), time.monotonic()

    def advance(rows: int) -> None:
        progress.advance(number, rows)
        if time.monotonic() - began > _PATIENCE and not progress.live.is_started:
            progress.start()

    try:
        yield advance
    finally:
        progress.stop()
