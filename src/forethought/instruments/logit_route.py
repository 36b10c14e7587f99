"""Steering at the final norm without touching the model: there it is a constant bias on the logits.

What the final norm makes goes straight into the unembedding W_U, so that adding α v to it adds α W_U v to the logits,
step after step, and nothing else. Any engine that lets a program add to the logits can do that: transformers by
:class:`ThinkingBias`, everything else by the plain array that :func:`logit_bias` gives.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor

from forethought.errors import ArtefactError
from forethought.instruments.phases import Delimiters
from forethought.instruments.schedules import (
    Constant,
    Places,
    Schedule,
    check_delimiters,
    check_strength,
    expanded,
    relative_entropy,
)
from forethought.instruments.steering import Steering

PROBE = 10.0  # the greatest shift of a logit that linearity is tried with: far into the bend of any soft cap


def logit_bias(model: nn.Module, vector: Tensor) -> Tensor:
    """What adding a vector after the final norm adds to the logits; float32 ``[V]``.

    Some models multiply their logits by a constant, under many names; a forward pass of one token, steered and not,
    tells which, and whether the way from the norm to the logits is linear at all.

    Args:
        model: a causal language model, in evaluation mode.
        vector: float ``[d]``.

    Raises:
        ArtefactError: the model has no unembedding or no final norm, the vector is not as wide as it, or the logits
            are not linear in what the norm gives, as where they are capped softly (Gemma 2): steer those with
            ``Steering({"norm": vector})``.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    weight = getattr(head, "weight", None)
    if weight is None or weight.ndim != 2 or not weight.is_floating_point():
        raise ArtefactError(f"{type(model).__name__} has no unembedding matrix in floating point to read a bias from.")
    if tuple(vector.shape) != (weight.shape[1],):
        raise ArtefactError(
            f"The vector has shape {list(vector.shape)} and the unembedding is {weight.shape[1]} wide; "
            "take a vector that was fitted on this model."
        )
    bias: Tensor = weight.detach().float() @ vector.detach().to(weight.device).float()
    multiplier = _multiplier(model, vector.detach(), bias)
    return multiplier * bias


@torch.no_grad()
def _multiplier(model: nn.Module, vector: Tensor, bias: Tensor) -> float:
    """What the model multiplies W_U v with."""
    if model.training:
        raise ArtefactError("Put the model in evaluation mode, model.eval(), before its logits are compared.")
    scale = PROBE / float(bias.abs().max().clamp(min=1e-12))
    token = torch.zeros(2, 1, dtype=torch.long, device=bias.device)
    with Steering({"norm": vector}, torch.tensor([0.0, scale])).applied(model):
        plain, steered = model(input_ids=token).logits[:, -1].float()
    shift, expected = steered - plain, scale * bias
    multiplier = float(shift @ expected / (expected @ expected))
    # the logits are rounded to the model's own precision
    rounding = torch.finfo(next(model.parameters()).dtype).eps * float(steered.abs().max().clamp(min=1))
    if float((shift - multiplier * expected).abs().max()) > 1e-4 * PROBE * abs(multiplier) + 8 * rounding:
        raise ArtefactError(
            f"The logits of {type(model).__name__} are not linear in what its final norm gives (they may be capped), "
            "so no bias is equal to the vector; steer it with Steering({'norm': vector})."
        )
    return 1.0 if abs(multiplier - 1) < max(1e-4, 2 * rounding / PROBE) else multiplier


def end_bias(delimiters: Delimiters, vocabulary: int) -> Tensor:
    """A bias of 1 on the closing delimiter and nothing else, the plain knob to compare with; float32 ``[V]``.

    Raises:
        ArtefactError: the closing delimiter is more than one token, or none of this vocabulary.
    """
    bias = torch.zeros(vocabulary)
    bias[_end(delimiters, vocabulary)] = 1.0
    return bias


def parts(bias: Tensor, delimiters: Delimiters) -> tuple[Tensor, Tensor]:
    """A bias as its entry at the closing delimiter alone, and all the others; each ``[V]``, together the bias.

    Raises:
        ArtefactError: as :func:`end_bias`.
    """
    chosen = torch.zeros_like(bias, dtype=torch.bool)
    chosen[_end(delimiters, len(bias))] = True
    nothing = torch.zeros_like(bias)
    return torch.where(chosen, bias, nothing), torch.where(chosen, nothing, bias)


def advantage(bias: Tensor, logits: Tensor, delimiters: Delimiters) -> Tensor:
    """How much a bias favours the closing delimiter over its competitors, for each unit of strength.

    It is b_end - Σ_{j ≠ end} p_j b_j, where p is the softmax of the other logits: the derivative, at strength 0, of the
    log-odds of ending the thought here. It does not foretell lengths: where the end is no contender it counts for
    nothing, and a bias changes what is thought besides.

    Args:
        bias: float ``[V]``.
        logits: float ``[..., V]``, not steered.
        delimiters: of the model.

    Returns:
        float32 ``[...]``.

    Raises:
        ArtefactError: as :func:`end_bias`, or the bias and the logits are of two vocabularies.
    """
    end = _end(delimiters, len(bias))
    if logits.shape[-1] != len(bias):
        raise ArtefactError(f"The bias has {len(bias)} entries for {logits.shape[-1]} logits; take one of this model.")
    others = logits.float().clone()
    others[..., end] = float("-inf")
    bias = bias.to(logits.device).float()
    return bias[end] - others.softmax(dim=-1) @ bias


def _end(delimiters: Delimiters, vocabulary: int) -> int:
    check_delimiters(delimiters, True, vocabulary)
    if len(delimiters.close) != 1:
        raise ArtefactError(
            f"The closing delimiter is {len(delimiters.close)} tokens long; only one token has an entry in a bias."
        )
    return delimiters.close[0]


class ThinkingBias(LogitsProcessor):  # type: ignore[misc]  # transformers is not typed
    """Adds ``strength × schedule × bias`` to the logits while a model thinks, and nothing after it.

    The same numbers as ``Steering({"norm": vector}, strength, gate="think", schedule=schedule)`` with
    ``bias = logit_bias(model, vector)``, and the same position rule. It goes into ``generate`` as
    ``logits_processor=[ThinkingBias(…)]``; schedules are for one call of ``generate`` at a time. Transformers calls
    processors one after another: the entropy schedule sees what those before this one left.

    Args:
        bias: float ``[V]``.
        strength: α; one number or one for each prompt, float ``[B]``.
        delimiters: of the model.
        schedule: multiplies the strength.

    Attributes:
        count: steps at which each row was biased in this call of ``generate``, int64 ``[B]``. A row whose text ended
            inside its thought counts on until all rows have ended: which tokens end a text is not known here.

    Raises:
        ArtefactError: the bias or the strength is not of this kind; in ``generate``, if the bias is not as wide as the
            vocabulary, there are more or fewer strengths than prompts, or rows are moved (beam search) under the
            entropy schedule.
    """

    def __init__(
        self, bias: Tensor, strength: float | Tensor, delimiters: Delimiters, schedule: Schedule | None = None
    ) -> None:
        if bias.ndim != 1 or not bool(bias.isfinite().all()):
            raise ArtefactError(f"A bias is one finite number a token; this one has shape {list(bias.shape)}.")
        check_strength(strength)
        check_delimiters(delimiters, True, len(bias))
        self.bias, self.strength, self.delimiters = bias, strength, delimiters
        self.schedule: Schedule = schedule if schedule is not None else Constant()
        self.count = torch.zeros(0, dtype=torch.long)
        self._ids = torch.zeros(0, 0, dtype=torch.long)
        self._prompt = 0
        self._entropy = torch.zeros(0)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """int64 ``[B, T]``, float ``[B, V]`` → float ``[B, V]``."""
        if scores.shape[-1] != len(self.bias):
            raise ArtefactError(
                f"The bias has {len(self.bias)} entries for {scores.shape[-1]} logits; take one of this model."
            )
        rows, length = input_ids.shape
        self._follow(input_ids)
        entropy = None
        if "entropy" in self.schedule.needs:
            entropy = torch.full((rows, length), float("nan"), device=input_ids.device)
            if length > self._prompt:
                entropy[:, -1] = self._entropy
        prompt_length = torch.full((rows,), self._prompt, device=input_ids.device)
        # padding is left of everything: it shifts tokens and prompt alike, and holds no delimiter
        at = Places.of(input_ids, torch.ones_like(input_ids, dtype=torch.bool), prompt_length, self.delimiters, entropy)
        copies = max(rows // max(torch.as_tensor(self.strength).numel(), 1), 1)
        prompts = input_ids[:, : self._prompt]
        if not torch.equal(prompts[::copies].repeat_interleave(copies, dim=0)[:rows], prompts):
            copies = 1  # these are other prompts, not copies that generate made: each needs a strength
        strength = expanded(self.strength, rows, copies).to(scores.device)
        scale = torch.where(at.opened("think")[:, -1], self.schedule(at)[:, -1].to(scores.device) * strength, 0.0)
        touched = scale != 0
        self.count = self.count + touched.cpu()
        if bool(touched.any()):
            biased = scores + scale[:, None].to(scores) * self.bias.to(scores)
            scores = torch.where(touched[:, None], biased, scores)
        if entropy is not None:
            self._entropy = relative_entropy(scores)
        return scores

    def _follow(self, ids: Tensor) -> None:
        """Tell the next step of a generation from the first of another."""
        seen, length = self._ids, ids.shape[1]
        following = len(seen) == len(ids) and seen.shape[1] + 1 == length
        # other prompts may be as wide as the texts before them came to be; beams move between copies of one prompt
        following = following and torch.equal(seen[:, : self._prompt], ids[:, : self._prompt])
        if following and "entropy" in self.schedule.needs and not torch.equal(ids[:, :-1], seen):
            raise ArtefactError("The entropy schedule follows every row, and beam search moves them; sample instead.")
        if not following:
            self._prompt = length
            self.count = torch.zeros(len(ids), dtype=torch.long)
        self._ids = ids
