"""Steering: a direction added to the residual stream while a model reads, thinks or answers.

A :class:`Steering` says what is added, where, when and how much; :meth:`Steering.applied` does it, in single forward
passes and in ``generate``, with a key-value cache and without, and counts what it did:

    steering = Steering({12: direction}, strength=-0.2, gate="think")
    with steering.applied(model, Delimiters.of(tokenizer)) as applied:
        model.generate(**tokenizer(prompts, return_tensors="pt", padding=True))
    print(applied.count)

What is nowhere steered is nowhere computed with: it stays the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from inspect import signature

import torch
from torch import Tensor, nn

from forethought.errors import ArtefactError
from forethought.instruments.applied import Applied
from forethought.instruments.phases import Delimiters
from forethought.instruments.schedules import (
    GATES,
    Constant,
    Gate,
    Places,
    Schedule,
    check_delimiters,
    check_strength,
    expanded,
)
from forethought.instruments.sites import Site, Stack


@dataclass(frozen=True)
class Dose:
    """How much a steering adds to the stream, where its schedule is 1.

    Attributes:
        sites: in the order of the stream.
        each: float64 ``[sites]``, or ``[B, sites]`` for a strength a row; the norm of what each site adds.
        cumulative: the same shape; the norm of all that was added up to each site, for the stream carries it on. What
            is added at ``"norm"`` is in another space and begins a sum of its own.
    """

    sites: tuple[Site, ...]
    each: Tensor
    cumulative: Tensor

    @property
    def total(self) -> Tensor:
        """What the last block's stream has received, or the final norm where no block is steered; ``[]`` or ``[B]``."""
        on_stream = [place for place, site in enumerate(self.sites) if site != "norm"]
        return self.cumulative[..., on_stream[-1] if on_stream else -1]


@dataclass(frozen=True, eq=False)
class Steering:
    """What to add to a network's stream: ``strength × schedule × vector`` at every site, where the gate is open.

    Attributes:
        vectors: float ``[d]`` by site; sites that are not named are not touched. The vectors of RSP (Sheng et al.
            2025), added to the *input* of block l, belong to site l - 1.
        strength: λ or α; one number, or one a row of the batch, float ``[B]``.
        gate: ``all`` positions; those that produce ``prompt`` tokens, or ``generated`` ones; those that produce the
            ``think``-ing tokens, the closing delimiter included, or the ``answer``.
        window: besides, only where generated tokens from the first number up to, not including, the second are
            produced, counted from 0; None leaves the end open.
        after: besides, only from the first occurrence of this token in the text on, that one included.
        schedule: multiplies the strength.

    Raises:
        ArtefactError: vectors, strength, gate or window are not of this kind.
    """

    vectors: Mapping[Site, Tensor]
    strength: float | Tensor = 1.0
    gate: Gate = "all"
    window: tuple[int, int | None] | None = None
    after: int | None = None
    schedule: Schedule = field(default_factory=Constant)

    def __post_init__(self) -> None:
        shapes = {tuple(vector.shape) for vector in self.vectors.values()}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1:
            raise ArtefactError("Steering needs a vector at one site or more, all of one dimension and one width.")
        if not all(bool(vector.isfinite().all()) for vector in self.vectors.values()):
            raise ArtefactError("A steering vector holds values that are not finite; fit it again.")
        if not any(bool(vector.any()) for vector in self.vectors.values()):
            raise ArtefactError("All steering vectors are zero, so nothing would change; fit them again.")
        check_strength(self.strength)
        if self.gate not in GATES:
            raise ArtefactError(f"There is no gate {self.gate!r}; choose one of {', '.join(GATES)}.")
        first, end = self.window or (0, None)
        if first < 0 or (end is not None and end <= first):
            raise ArtefactError(f"The window {self.window} holds no generated token; give two rising numbers from 0.")

    @property
    def plain(self) -> bool:
        """Whether all positions are steered alike, so that nothing need be known of them."""
        constant = isinstance(self.schedule, Constant)
        return constant and self.gate == "all" and self.window is None and self.after is None

    @property
    def needs_phase(self) -> bool:
        """Whether it has to be known what is thought and what answered."""
        return self.gate in ("think", "answer") or "phase" in self.schedule.needs

    def scale(self, at: Places, copies: int = 1) -> Tensor:
        """What the vectors are multiplied with; float32 ``[B, T]``, zero where the gate is closed."""
        opened = at.opened(self.gate, self.window, self.after)
        strength = expanded(self.strength, len(at.ids), copies).to(at.ids.device)
        return torch.where(opened, self.schedule(at) * strength[:, None], 0.0)

    def dose(self) -> Dose:
        """The norms of what is added, site by site and summed up along the stream."""
        order: list[Site] = sorted(self.vectors, key=lambda site: float("inf") if site == "norm" else float(site))
        vectors = torch.stack([self.vectors[site].detach().cpu().double() for site in order])
        sums = vectors.cumsum(dim=0)
        if order[-1] == "norm":
            sums[-1] = vectors[-1]
        strength = torch.as_tensor(self.strength, dtype=torch.float64).cpu().abs()[..., None]
        return Dose(tuple(order), strength * vectors.norm(dim=-1), strength * sums.norm(dim=-1))

    def with_dose(self, total: float | Tensor) -> Steering:
        """The same steering at the strength whose ``dose().total`` is this, so that one site compares with all of them.

        The strength keeps its sign.

        Raises:
            ArtefactError: the vectors cancel out, so that no strength has a dose.
        """
        unit = float(replace(self, strength=1.0).dose().total)
        if unit == 0:
            raise ArtefactError("The vectors add up to nothing at the last site, so no strength gives them a dose.")
        sign = torch.where(torch.as_tensor(self.strength).cpu() < 0, -1.0, 1.0)
        strength = sign * torch.as_tensor(total, dtype=torch.float64).cpu() / unit
        return replace(self, strength=strength if strength.ndim else float(strength))

    @contextmanager
    def applied(
        self,
        model: nn.Module,
        delimiters: Delimiters | None = None,
        *,
        stack: Stack | None = None,
        prompt_length: Tensor | int | None = None,
        must_touch: bool = True,
    ) -> Iterator[Applied]:
        """Steer every forward pass of a model inside the ``with``.

        Where ids are given, left padding and what follows the end of a finished text are not steered. A model that is
        called without ids (a recommender) can be steered at all positions only.

        Args:
            model: any network with one stack of blocks.
            delimiters: of the model; the gates ``think`` and ``answer`` and the schedule ``Budget`` need them.
            stack: where the blocks are; found where None.
            prompt_length: tokens of the prompt, padding not counted, int64 ``[B]`` or one for all; where None, all
                that ``generate``, or the first forward pass on an empty cache, is given.
            must_touch: refuse to end without having steered anything.

        Raises:
            ArtefactError: a site, a width or the delimiters are not the model's, or, at the end, no position was
                touched though the strength is not zero.
        """
        if "decoder_input_ids" in signature(model.forward).parameters:
            raise ArtefactError("An encoder-decoder has two streams; apply the steering to its encoder or its decoder.")
        stack = Stack.of(model) if stack is None else stack
        for site in self.vectors:
            stack.check(site)
        config = getattr(model, "config", None)
        config = getattr(config, "get_text_config", lambda: config)()
        check_delimiters(delimiters, self.needs_phase, getattr(config, "vocab_size", None))
        applied = Applied(self, model, delimiters, prompt_length)
        with ExitStack() as undo:
            applied.attach(stack, undo)
            yield applied
        if must_touch:
            applied.check()
