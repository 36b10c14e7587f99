"""Finished texts as token ids, and which of their positions are to be read.

The state at position t is what **produces** token t + 1. So the first generated token was produced at the last position
of the prompt, and a transcript of n generated tokens has n generated rows, its own last position not among them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from forethought.errors import ArtefactError
from forethought.instruments.fingerprint import text_config
from forethought.instruments.phases import ANSWER, PAD, THINK, Delimiters, phases

Positions = Literal["last-prompt", "generated", "think", "answer", "all"]


@dataclass(frozen=True)
class Transcript:
    """A finished text, as token ids.

    Attributes:
        prompt: what was given, the chat template and its ``<think>`` with it.
        generated: what the model wrote.
        problem, sample: labels of its rows.
    """

    prompt: Sequence[int]
    generated: Sequence[int] = ()
    problem: int = 0
    sample: int = 0

    def __len__(self) -> int:
        return len(self.prompt) + len(self.generated)

    @property
    def ids(self) -> list[int]:
        """Prompt and generated tokens."""
        return [*self.prompt, *self.generated]


def choose(transcript: Transcript, positions: Positions, delimiters: Delimiters | None) -> tuple[Tensor, Tensor]:
    """The positions to keep, int64 ``[rows]``, and their phases, int8 ``[rows]``, -1 where there are no delimiters."""
    prompt, length = len(transcript.prompt), len(transcript)
    first, last = {"last-prompt": (prompt - 1, prompt), "all": (0, length)}.get(positions, (prompt - 1, length - 1))
    where = torch.arange(first, last)
    if delimiters is None:
        return where, torch.full((len(where),), PAD, dtype=torch.int8)
    ids = torch.tensor([transcript.ids[:last]])
    phase = phases(ids, torch.ones_like(ids), prompt, delimiters)[0, first:]
    if positions in ("think", "answer"):
        kept = phase == (THINK if positions == "think" else ANSWER)
        where, phase = where[kept], phase[kept]
    return where, phase


def count_rows(
    model: nn.Module, transcripts: Sequence[Transcript], positions: Positions, delimiters: Delimiters | None
) -> list[int]:
    """Chosen rows of each transcript, all of them checked against the model before any work is begun.

    Raises:
        ArtefactError: a transcript does not fit the model, or nothing is chosen.
    """
    if positions not in get_args(Positions):
        raise ArtefactError(f"There are no positions {positions!r}; choose from {', '.join(get_args(Positions))}.")
    if positions in ("think", "answer") and delimiters is None:
        raise ArtefactError(f"The positions {positions!r} are told by delimiters; give them, or choose 'generated'.")
    context = getattr(text_config(model), "max_position_embeddings", None)
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    vocabulary = getattr(embeddings, "num_embeddings", None)
    counts = []
    for transcript in transcripts:
        name = f"Problem {transcript.problem}, sample {transcript.sample}"
        if not len(transcript.prompt):
            raise ArtefactError(f"{name} has no prompt, so no state produced its first token; give one.")
        low, high = min(transcript.ids), max(transcript.ids)
        if vocabulary is not None and not 0 <= low <= high < vocabulary:
            raise ArtefactError(
                f"{name} has tokens from {low} to {high}, and the model embeds 0 to {vocabulary - 1}; "
                "use the model's own tokenizer."
            )
        where, _ = choose(transcript, positions, delimiters)
        if context is not None and len(where) and int(where[-1]) >= context:
            raise ArtefactError(
                f"{name} has to be run over {int(where[-1]) + 1} tokens, and the model reads {context}; "
                "leave it out or cut it."
            )
        counts.append(len(where))
    if not sum(counts):
        raise ArtefactError(
            f"None of the {len(transcripts)} transcripts has a position of {positions!r}; check delimiters and texts."
        )
    return counts


def digest(transcripts: Sequence[Transcript]) -> str:
    """SHA-256 over all tokens and labels, in order."""
    found = hashlib.sha256()
    for each in transcripts:
        found.update(f"{each.problem} {each.sample} {len(each.prompt)} {len(each.generated)}\n".encode())
        found.update(np.asarray(each.ids, dtype=np.int64).data)
    return found.hexdigest()
