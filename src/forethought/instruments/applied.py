"""A steering at work: hooks on the stream, and what they have to know of the text they are called for.

A hook sees a piece of the stream and nothing else. Before every forward pass the whole text so far is put together
from the ids that were passed before and those in ``generate``'s hands, so that positions, prompts and thoughts are
those of the text and never of the piece: with a key-value cache, without one, and with a prompt read in pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial, wraps
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forethought.errors import ArtefactError
from forethought.instruments.phases import Delimiters
from forethought.instruments.schedules import Places, expanded, relative_entropy
from forethought.instruments.sites import Site, Stack

if TYPE_CHECKING:
    from forethought.instruments.steering import Steering

UNKNOWN = -1  # the id of a token that was given as an embedding


@dataclass(frozen=True)
class _Plan:
    """One forward pass: scale float32 ``[B, n]`` and where it is not zero, after so many positions in the cache."""

    scale: Tensor
    touched: Tensor
    past: int

    @cached_property
    def idle(self) -> bool:
        """Whether nothing is touched."""
        return not bool(self.touched.any())

    @cached_property
    def whole(self) -> bool:
        """Whether everything is."""
        return bool(self.touched.all())


class Applied:
    """What :meth:`Steering.applied` gives: it steers, and counts what it touched."""

    def __init__(
        self, steering: Steering, model: nn.Module, delimiters: Delimiters | None, prompt_length: Tensor | int | None
    ) -> None:
        self.steering = steering
        self._model, self._prompt_length = model, prompt_length
        self._delimiters = delimiters if steering.needs_phase else None
        self._vectors = {site: vector for site, vector in steering.vectors.items() if bool(vector.any())}
        self._marks: dict[Site, Tensor] = {}  # bool [B, T], which positions of the newest texts were touched
        self._marked: tuple[_Plan, Tensor | None, Tensor] | None = None  # sites under one plan share one tensor
        self._earlier: dict[Site, int | Tensor] = dict.fromkeys(self._vectors, 0)  # how many in the texts before
        self._planner: nn.Module | None = None  # whose forward pass is running
        self._plan: _Plan | None = None
        self._generating = False
        self._ends: tuple[int, ...] = ()
        self._announced: tuple[Tensor, Any] | None = None  # ids and mask of the whole text, as generate holds them
        self._begin(None, None)

    # ------------------------------------------------------------------------------------------------ what was done

    @property
    def count(self) -> Tensor:
        """Positions touched in each row of the newest batch, at every site that has a vector; int64 ``[B]``.

        A position that is computed again, as without a cache, counts once.
        """
        counts = [marks.sum(dim=1).cpu() for marks in self._marks.values()]
        least = torch.stack(counts).amin(dim=0) if counts else torch.zeros(0, dtype=torch.long)
        return least if len(counts) == len(self._vectors) else torch.zeros_like(least)

    @property
    def total(self) -> int:
        """Positions touched in all batches, at the site where they were fewest."""
        return min(self._touched_at(site) for site in self._vectors)

    def check(self) -> None:
        """Refuse a steering that did nothing.

        Raises:
            ArtefactError: the strength is not zero and no position was touched, at all sites or at one of them.
        """
        idle = [str(site) for site in self._vectors if self._touched_at(site) == 0]
        if idle and bool(torch.as_tensor(self.steering.strength).any()):
            raise ArtefactError(
                f"Nothing was steered at site {', '.join(idle)}: either its block did not run, or no position passed "
                f"the gate {self.steering.gate!r} with its window and schedule."
            )

    def _touched_at(self, site: Site) -> int:
        marks = self._marks.get(site)
        return int(self._earlier[site]) + (0 if marks is None else int(marks.sum()))

    def _begin(self, rows: int | None, columns: int | None) -> None:
        """New texts: so many prompts of so many columns; None where the first forward pass will tell."""
        for site in list(self._marks):
            self._retire(site)
        self._rows, self._columns = rows, columns
        self._ids = self._mask = torch.zeros(0, 0, dtype=torch.long)
        self._entropy = torch.zeros(0, 0)

    def _retire(self, site: Site) -> None:
        if site in self._marks:
            self._earlier[site] = self._earlier[site] + self._marks.pop(site).sum()

    # ------------------------------------------------------------------------------------------------ hooks

    def attach(self, stack: Stack, undo: ExitStack) -> None:
        """Put the hooks in place; ``undo`` takes them away."""
        for site in self._vectors:
            undo.callback(stack.hook(site, partial(self._add, site), first=True).remove)
        # a causal model plans for its decoder too; the decoder alone does where it is called by itself
        decoder = getattr(self._model, "get_decoder", lambda: None)()
        others = [decoder] if isinstance(decoder, nn.Module) and decoder is not self._model else []
        for module in [self._model, *others]:
            names = list(signature(module.forward).parameters)
            undo.callback(module.register_forward_pre_hook(partial(self._before, names), with_kwargs=True).remove)
            undo.callback(module.register_forward_hook(self._after, always_call=True).remove)
        if hasattr(self._model, "prepare_inputs_for_generation"):
            undo.enter_context(_replaced(self._model, "generate", self._generate))
            undo.enter_context(_replaced(self._model, "prepare_inputs_for_generation", self._prepare))

    def _generate(self, original: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        """Learn what a forward pass cannot know: what the prompts are, and which tokens end a text."""
        given = signature(original).bind_partial(*args, **keywords).arguments
        given = {**given, **given.get("kwargs", {})}
        prompt = [given[name] for name in ("inputs", "input_ids", "inputs_embeds") if given.get(name) is not None]
        self._begin(*(prompt[0].shape[:2] if prompt else (None, None)))
        configs = [given.get("generation_config"), self._model.generation_config]

        def told(name: str) -> Any:
            found = [given.get(name), *(getattr(config, name, None) for config in configs)]
            return next((value for value in found if value is not None), None)

        guidance, end = told("guidance_scale"), told("eos_token_id")
        if guidance not in (None, 1):
            raise ArtefactError(
                f"guidance_scale is {guidance}: classifier-free guidance reads a second text beside each, which would "
                "be steered and counted as the first; leave it out."
            )
        end = () if end is None else end
        self._ends = tuple(torch.as_tensor(end, dtype=torch.long).reshape(-1).tolist())
        self._generating = True
        try:
            # a compiled graph would keep the plan of the step that it was made at
            return original(*args, **{"disable_compile": True, **keywords})
        finally:
            self._generating, self._ends = False, ()

    def _prepare(self, original: Callable[..., Any], input_ids: Tensor, *args: Any, **keywords: Any) -> Any:
        """Learn the whole text: beam search has moved its rows since the last pass."""
        self._announced = (input_ids, keywords.get("attention_mask"))
        return original(input_ids, *args, **keywords)

    def _before(self, names: list[str], module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if self._planner is not None and module is not self._model:
            return
        given = {**dict(zip(names, args, strict=False)), **keywords}
        ids, embeddings = given.get("input_ids"), given.get("inputs_embeds")
        if ids is None:
            if embeddings is None:
                return
            ids = torch.full(embeddings.shape[:2], UNKNOWN, device=embeddings.device)
        cache = given.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        if past == 0 and not self._generating:
            self._begin(None, None)
        self._plan = self._planned(ids, given.get("attention_mask"), past)
        self._planner = module

    def _after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if module is self._planner:
            self._planner = self._plan = None
        logits = getattr(output, "logits", None)
        if logits is not None and "entropy" in self.steering.schedule.needs:
            known = self._entropies(self._ids)
            self._entropy = torch.cat([known, relative_entropy(logits[:, -1].detach())[:, None]], dim=1)

    def _add(self, site: Site, stream: Tensor) -> Tensor | None:
        """The hook at a site: stream float ``[B, n, d]``, or ``[B, d]`` where the model goes on with one position."""
        vector = self._vectors[site]
        if stream.shape[-1] != len(vector):
            raise ArtefactError(
                f"The vector at site {site} has {len(vector)} entries and the stream of this model {stream.shape[-1]}; "
                "take a vector that was fitted on this model."
            )
        plan = self._plan or self._blind(site, stream)
        if plan.scale.shape != stream.shape[:-1]:
            raise ArtefactError(
                f"The stream at site {site} has shape {list(stream.shape)} where the model was given "
                f"{list(plan.scale.shape)} tokens, so its positions cannot be told."
            )
        self._mark(site, plan)
        if plan.idle:
            return None
        if vector.device != stream.device:  # moved once, not at every token
            vector = self._vectors[site] = vector.to(stream.device)
        steered = torch.addcmul(stream, plan.scale.to(stream)[..., None], vector.to(stream))
        if plan.whole:
            return steered
        # a zero scale would still turn -0 into 0, so what is not touched is kept as it is
        return torch.where(plan.touched.to(stream.device)[..., None], steered, stream)

    def _mark(self, site: Site, plan: _Plan) -> None:
        known = self._marks.get(site)
        if self._marked is None or self._marked[0] is not plan or self._marked[1] is not known:
            self._marked = (plan, known, self._joined(known, plan))
        self._marks[site] = self._marked[2]

    def _joined(self, known: Tensor | None, plan: _Plan) -> Tensor:
        """What was touched before a pass, and what is touched in it; bool ``[B, T]``."""
        touched = plan.touched.reshape(len(plan.touched), -1)
        before = touched[:, :0] if known is None else known[:, : plan.past]
        if len(before) != len(touched):
            before = touched[:, :0]
        return torch.cat([F.pad(before, (0, plan.past - before.shape[1])), touched], dim=1)

    # ------------------------------------------------------------------------------------------------ plans

    def _blind(self, site: Site, stream: Tensor) -> _Plan:
        """The plan for a network that is called without ids: all positions of the piece, which is a text of its own."""
        if not self.steering.plain:
            raise ArtefactError(
                "A network that is called without input_ids is steered at all positions alike; "
                "take the gate 'all', no window and a constant schedule."
            )
        self._retire(site)
        strength = expanded(self.steering.strength, len(stream)).to(stream.device)
        scale = strength.reshape(-1, *[1] * (stream.ndim - 2)).expand(stream.shape[:-1])
        return _Plan(scale, scale != 0, 0)

    def _planned(self, new: Tensor, mask: Any, past: int) -> _Plan:
        """Put the text together from the ids of a pass, int64 ``[B, n]``, and tell what to add at each of them."""
        steering, rows, length = self.steering, len(new), past + new.shape[1]
        announced, self._announced = self._announced, None
        if announced is not None and announced[0].shape == (rows, length):
            ids = announced[0]
        elif past == 0:
            ids = new
        elif len(self._ids) == rows and past <= self._ids.shape[1]:
            ids = torch.cat([self._ids[:, :past].to(new.device), new], dim=1)
        else:
            raise ArtefactError(
                f"The cache holds {past} positions that were filled before steering was applied; begin with an empty "
                "cache, or give generate the whole text."
            )
        mask = self._whole_mask(ids, mask, announced[1] if announced is not None else None, past)

        prompts, columns = self._rows or rows, self._columns or length
        copies = max(rows // prompts, 1)
        if self._prompt_length is None:
            # of a prompt that is read in pieces, the rest is still to come
            prompt_length = mask[:, :columns].sum(dim=1) + max(columns - length, 0)
        else:
            prompt_length = expanded(self._prompt_length, rows, copies, "prompt lengths").long().to(ids.device)
        entropy = self._entropies(ids) if "entropy" in steering.schedule.needs else None
        self._rows, self._columns, self._ids, self._mask = prompts, columns, ids, mask

        at = Places.of(ids, mask, prompt_length, self._delimiters, entropy, self._ends)
        by_token = self._delimiters is not None or steering.after is not None
        if by_token and bool(((ids == UNKNOWN) & mask).any()):
            raise ArtefactError("Steering that follows the text needs token ids, and the model was given embeddings.")
        if entropy is not None and bool((entropy.isnan() & at.real & (at.generated > 0)).any()):
            raise ArtefactError("The entropy schedule follows generation token by token; it cannot weigh a given text.")
        scale = steering.scale(at, copies)[:, past:]
        return _Plan(scale, scale != 0, past)

    def _whole_mask(self, ids: Tensor, given: Any, announced: Any, past: int) -> Tensor:
        """Which positions of the text are not padding; bool ``[B, T]``."""
        for mask in (given, announced):  # generate may have made a given one into another form
            if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] >= ids.shape[1]:
                return mask[:, : ids.shape[1]].to(ids.device).bool()
        whole = torch.ones_like(ids, dtype=torch.bool)
        if len(self._mask) == len(ids):
            whole[:, :past] = self._mask[:, :past].to(ids.device).bool()
        return whole

    def _entropies(self, ids: Tensor) -> Tensor:
        """The entropy before every token as far as it is known, NaN elsewhere; float32 ``[B, T]``."""
        seen = self._ids.to(ids.device)
        if seen.numel() and not torch.equal(seen, ids[:, : seen.shape[1]]):
            raise ArtefactError("The entropy schedule follows every row, and beam search moves them; sample instead.")
        known = self._entropy if len(self._entropy) == len(ids) else torch.zeros(len(ids), 0)
        known = known.to(ids.device)
        return F.pad(known[:, : ids.shape[1]], (0, max(ids.shape[1] - known.shape[1], 0)), value=float("nan"))


@contextmanager
def _replaced(model: nn.Module, name: str, by: Callable[..., Any]) -> Iterator[None]:
    """Let calls of a method go through ``by(method, …)``."""
    original, own = getattr(model, name), vars(model).get(name)

    @wraps(original)
    def replacement(*args: Any, **keywords: Any) -> Any:
        return by(original, *args, **keywords)

    object.__setattr__(model, name, replacement)
    try:
        yield
    finally:
        if own is None:
            object.__delattr__(model, name)
        else:
            object.__setattr__(model, name, own)
