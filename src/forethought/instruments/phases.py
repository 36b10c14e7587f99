"""Which tokens of a text are prompt, thought and answer.

A position belongs to the phase of the token that it **produces**, the next one: so the last position of a prompt that
ends in ``<think>`` is a thinking position already, the position before ``</think>``, which decides to stop, is the
last, and ``</think>`` itself is an answering one. Whatever is biased while thinking is so never biased after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from forethought.errors import ArtefactError

Phase = Literal["prompt", "think", "answer"]

PAD, PROMPT, THINK, ANSWER = -1, 0, 1, 2
PHASES: dict[Phase, int] = {"prompt": PROMPT, "think": THINK, "answer": ANSWER}


@dataclass(frozen=True)
class Delimiters:
    """The token ids that open and close a thought; several where the tokenizer has no one token for it.

    Raises:
        ArtefactError: there is none to open or to close with, or one is no token id.
    """

    open: tuple[int, ...]
    close: tuple[int, ...]

    def __post_init__(self) -> None:
        for name, ids in (("open", self.open), ("close", self.close)):
            if not ids or not all(isinstance(token, int) and token >= 0 for token in ids):
                raise ArtefactError(
                    f"The delimiters {name} a thought with {list(ids)}; give one token id or more, each 0 or greater."
                )

    @classmethod
    def of(cls, tokenizer: Any, opening: str = "<think>", closing: str = "</think>") -> Delimiters:
        """The delimiters as a tokenizer writes them.

        Raises:
            ArtefactError: the tokenizer has no token for one of them, so that texts of its model will not hold it.
        """
        found = []
        for text in (opening, closing):
            ids = tuple(tokenizer.encode(text, add_special_tokens=False))
            # what a tokenizer does not know may be one token too, the unknown one
            if len(ids) != 1 or ids[0] == getattr(tokenizer, "unk_token_id", None):
                raise ArtefactError(
                    f"The tokenizer of {getattr(tokenizer, 'name_or_path', '') or 'this model'} has no token {text}; "
                    "name the delimiters its model thinks between, or take a reasoning model."
                )
            found.append(ids)
        return cls(*found)


def phases(ids: Tensor, mask: Tensor, prompt_length: Tensor | int, delimiters: Delimiters) -> Tensor:
    """The phase of every position.

    Args:
        ids: int64 ``[B, T]``.
        mask: bool or int ``[B, T]``, false where there is padding, on either side.
        prompt_length: tokens of the prompt, padding not counted; int64 ``[B]`` or one for all.
        delimiters: of the model.

    Returns:
        int8 ``[B, T]`` of ``PAD``, ``PROMPT``, ``THINK``, ``ANSWER``. Positions inside the prompt are ``PROMPT``, but
        for its last, which has the phase of what it produces. Generated positions before any delimiter are ``PROMPT``.
    """
    mask = mask.bool()
    opened, closed = _ends(ids, mask, delimiters.open), _ends(ids, mask, delimiters.close)
    position = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    # the newest delimiter up to each position decides
    last_open = torch.where(opened, position, -1).cummax(dim=1).values
    last_close = torch.where(closed, position, -1).cummax(dim=1).values
    phase = torch.where(last_open > last_close, THINK, torch.where(last_close >= 0, ANSWER, PROMPT))
    inside = mask.cumsum(dim=1) < torch.as_tensor(prompt_length, device=ids.device).reshape(-1, 1)
    return torch.where(mask, torch.where(inside, PROMPT, phase), PAD).to(torch.int8)


def _ends(ids: Tensor, mask: Tensor, pattern: tuple[int, ...]) -> Tensor:
    """bool ``[B, T]``, true where an occurrence of the pattern ends."""
    found = mask.clone()
    for back, token in enumerate(reversed(pattern)):
        here = (ids == token) & mask
        if back:
            here = torch.cat([torch.zeros_like(here[:, :back]), here[:, :-back]], dim=1)
        found &= here
    return found
