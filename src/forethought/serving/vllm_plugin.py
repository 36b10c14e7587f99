"""Steering inside vLLM, request by request, with the engine that pip installs: no fork and no copied model.

Two hands hold it. In the process that takes requests, :func:`register` (an entry point of ``vllm.general_plugins``)
checks each request, answers mistakes with one sentence, and gives steered requests a key-value cache of their own. In
every worker, :class:`SteeringWorker` adds ``strength · vector`` to the rows of the requests that asked for it::

    LLM(model, enforce_eager=True, worker_extension_cls="forethought.serving.vllm_plugin.SteeringWorker")
    SamplingParams(extra_args={"steer": "short", "strength": -0.2, "phase": "think"})

The keys, and where names come from, are in :mod:`forethought.serving.vllm_requests`; the logits are steered by
:mod:`forethought.serving.vllm_logits`. Hooks run in eager mode and on vLLM's V1 model runner only, so that an engine of
another kind is refused when it starts; and a worker whose hooks did not all run stops, rather than go on unsteered.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial, wraps
from typing import Any

import torch
from torch import Tensor, nn

from forethought.errors import ArtefactError, ForethoughtError
from forethought.instruments.sites import Stack
from forethought.serving.vllm_requests import KEY, Engine, Order, order, vectors

WORKER = "forethought.serving.vllm_plugin.SteeringWorker"
LOGITS = "forethought.serving.vllm_logits:SteeringLogits"

REMEMBERED = 10_000  # finished requests whose counts are kept


def register() -> None:
    """Let vLLM's input processor check and prepare what requests ask of steering. Called once in each vLLM process."""
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.engine.input_processor import InputProcessor

    if getattr(InputProcessor, KEY, False):
        return
    start, process = InputProcessor.__init__, InputProcessor.process_inputs

    @wraps(start)
    def started(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        check_engine(vllm_config)
        start(self, vllm_config, *args, **kwargs)

    @wraps(process)
    def processed(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = process(self, *args, **kwargs)
        if request.sampling_params is not None:
            try:
                prepare(request, engine(self.vllm_config), self.tokenizer)
            except ForethoughtError as error:  # only vLLM's own is answered with 400
                raise VLLMValidationError(str(error)) from error
        return request

    InputProcessor.__init__, InputProcessor.process_inputs = started, processed
    setattr(InputProcessor, KEY, True)


def check_engine(config: Any) -> None:
    """Refuse an engine that was told to steer the residual stream but would skip the hooks.

    Raises:
        ArtefactError: the engine compiles, or splits or repeats the forward pass, or has a runner of another kind.
    """
    parallel = config.parallel_config
    if parallel.worker_extension_cls != WORKER:
        return
    for bad, found, cure in (
        (not config.model_config.enforce_eager, "compiles the model, which skips them", "enforce_eager=True"),
        (config.use_v2_model_runner, "uses the V2 model runner", "VLLM_USE_V2_MODEL_RUNNER=0 in the environment"),
        (config.speculative_config is not None, "decodes speculatively", "no speculative_config"),
        (parallel.pipeline_parallel_size > 1, "splits the blocks over a pipeline", "pipeline_parallel_size=1"),
        (parallel.use_ubatching, "splits batches in two", "no dual batch overlap"),
    ):
        if bad:
            raise ArtefactError(f"Steering needs hooks on the blocks, and this engine {found}; start it with {cure}.")


def engine(config: Any) -> Engine:
    """What requests to an engine are checked against."""
    model = config.model_config
    return Engine(
        model=model.model,
        layers=model.hf_text_config.num_hidden_layers,
        width=model.get_hidden_size(),
        vocabulary=model.get_vocab_size(),
        hooks=config.parallel_config.worker_extension_cls == WORKER,
        logits=LOGITS in (model.logits_processors or ()),
        revision=model.revision,
    )


def prepare(request: Any, engine: Engine, tokenizer: Any) -> None:
    """Check what an engine request asks of steering and write the order for the workers into it.

    Raises:
        ArtefactError, RecipeError: see :func:`forethought.serving.vllm_requests.order`.
    """
    params, prompt = request.sampling_params, request.prompt_token_ids
    args = dict(params.extra_args or {})
    args.pop(KEY, None)  # orders are ours alone to write, whatever a client sends
    length = len(prompt) if prompt is not None else len(request.prompt_embeds)
    ordered = order(args, prompt, length, engine, tokenizer)
    if ordered is not None:
        args[KEY] = ordered.wire()
        if salt := ordered.salt():
            request.cache_salt = f"{request.cache_salt or ''}{salt}"
    params.extra_args = args or None


class SteeringWorker:
    """vLLM's worker extension: the runner it is given steers, and ``collective_rpc`` can ask how often.

    vLLM calls no method of an extension by itself, but every worker sets ``self.model_runner``, first to None and then,
    before it loads the model, to the runner: this property sees it.
    """

    @property
    def model_runner(self) -> Any:
        return self.__dict__["model_runner"]

    @model_runner.setter
    def model_runner(self, runner: Any) -> None:
        from vllm.v1.engine.input_processor import InputProcessor

        self.__dict__["model_runner"] = runner
        if runner is None:
            return
        if not getattr(InputProcessor, KEY, False):
            raise ArtefactError("vLLM did not load forethought's plugin; add forethought to VLLM_PLUGINS, or unset it.")
        check_engine(runner.vllm_config)
        self.steering = Steering(runner)

    def steering_counts(self) -> dict[str, int]:
        """How many positions of each request were steered, each at every site; 0 where none was, as in a text without
        a thought. Positions taken from the prefix cache were steered when it was filled, and are not in it.

        Requests have vLLM's internal names: the name that the caller knows, a hyphen and eight characters.
        """
        return dict(self.steering.counts)


@dataclass
class Step:
    """One forward pass: the rows to steer.

    Attributes:
        scheduled: tokens of each request in it.
        rows: int64 ``[n]`` into the packed tokens. which: int64 ``[n]`` into ``deltas``.
        deltas: ``[L + 1, orders, d]``, what the sites -1 … L - 1 get; None where no row is steered.
        touched: positions of each request that are steered for the first time. applied: sites steered so far.
        planned: whether the model said that the pass began.
    """

    scheduled: dict[str, int]
    rows: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    which: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    deltas: Tensor | None = None
    touched: dict[str, int] = field(default_factory=dict)
    applied: int = 0
    planned: bool = False


@dataclass
class Progress:
    """How far a steered request has come.

    Attributes:
        reached: its last position that was steered. A preempted request comes back to earlier ones.
        thinking: from which positions on it thinks, or no longer does.
    """

    reached: int
    thinking: dict[int, bool]


class Steering:
    """Steers the forward passes of one model runner.

    Attributes:
        counts: positions steered of each request that asked, the newest ``REMEMBERED`` of them.
    """

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.counts: dict[str, int] = {}
        self._step: Step | None = None
        self._progress: dict[str, Progress] = {}
        self._deltas = lru_cache(maxsize=64)(self._scaled)
        load, execute = runner.load_model, runner.execute_model

        @wraps(load)
        def load_model(*args: Any, **kwargs: Any) -> None:
            load(*args, **kwargs)
            self._attach(runner.get_model())

        @wraps(execute)
        def execute_model(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
            with self._stepping(scheduled):
                return execute(scheduled, *args, **kwargs)

        runner.load_model, runner.execute_model = load_model, execute_model

    def _attach(self, model: nn.Module) -> None:
        stack = Stack.of(model)

        def before(block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
            # the inputs of a block are (positions, stream, …): vLLM's order, not Transformers'
            moved = self._moved(0, inputs[1])
            return None if moved is None else (inputs[0], moved, *inputs[2:])

        stack.blocks[0].register_forward_pre_hook(before)
        for site in range(len(stack)):
            # a block gives (change, stream before it); the stream is their sum, so either may be added to
            stack.hook(site, partial(self._moved, site + 1))
        model.register_forward_pre_hook(self._plan, with_kwargs=True)

    @contextmanager
    def _stepping(self, scheduled: Any) -> Iterator[None]:
        for request in scheduled.finished_req_ids:
            self._progress.pop(request, None)
        step = self._step = Step(scheduled.num_scheduled_tokens)
        try:
            yield
        finally:
            self._step = None
        sites = 0 if step.deltas is None else len(step.deltas)
        if step.applied != sites or not (
            step.planned or all(self._order(request) is None for request in step.scheduled)
        ):
            raise RuntimeError(
                f"Steering was asked for and ran at {step.applied} of {sites} sites: vLLM skipped hooks."
            )
        for request, count in step.touched.items():
            self.counts[request] = self.counts.pop(request, 0) + count
        while len(self.counts) > REMEMBERED:
            del self.counts[next(iter(self.counts))]

    def _plan(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Before the forward pass, once the runner has ordered its batch: find the rows to steer."""
        step = self._step
        if step is None:  # a warm-up
            return
        step.planned = True
        batch, start = self.runner.input_batch, 0
        rows: list[int] = []
        which: list[int] = []
        orders: dict[Order, int] = {}
        for index, request in enumerate(batch.req_ids):
            count = step.scheduled[request]
            ordered = self._order(request)
            if ordered is not None:
                first = int(batch.num_computed_tokens_cpu[index])
                ids = kwargs["input_ids"] if kwargs.get("input_ids") is not None else self.runner.input_ids.gpu
                progress = self._progress.setdefault(request, Progress(-1, {ordered.prompt - 1: ordered.thinking}))
                offsets = _offsets(ordered, progress, first, ids[start : start + count])
                # requests with the same vectors and strength share a row of the table
                slot = orders.setdefault(replace(ordered, prompt=0, thinking=False, phase="all"), len(orders))
                rows += [start + offset for offset in offsets]
                which += [slot] * len(offsets)
                step.touched[request] = sum(first + offset > progress.reached for offset in offsets)
                progress.reached = max([progress.reached, *(first + offset for offset in offsets)])
            start += count
        if rows:
            device = self.runner.device
            step.rows, step.which = torch.tensor(rows, device=device), torch.tensor(which, device=device)
            step.deltas = torch.stack([self._deltas(each) for each in orders], dim=1)

    def _order(self, request: str) -> Order | None:
        """What a request wants of the residual stream."""
        params = self.runner.requests[request].sampling_params
        ordered = None if params is None else Order.of(params.extra_args)
        return ordered if ordered is not None and ordered.vector else None

    def _scaled(self, ordered: Order) -> Tensor:
        """strength · vectors, ``[L + 1, d]``."""
        config = engine(self.runner.vllm_config)
        array = vectors(ordered.vector, ordered.vector_stamp, config.layers, config.width)
        strength = torch.tensor(ordered.strength)[:, None]
        return (strength * torch.from_numpy(array)).to(self.runner.device, self.runner.model_config.dtype)

    def _moved(self, row: int, stream: Tensor) -> Tensor | None:
        """The packed stream ``[tokens, d]`` at a site, steered; None where this pass steers nothing."""
        step = self._step
        if step is None or step.deltas is None:
            return None
        step.applied += 1
        return stream.index_add(0, step.rows, step.deltas[row][step.which].to(stream.dtype))


def _offsets(ordered: Order, progress: Progress, first: int, ids: Tensor) -> list[int]:
    """Which of the tokens ``ids``, the first at absolute position ``first``, are steered.

    What was fed to the model decides: vLLM's lists of generated tokens lag behind when it schedules ahead.
    """
    begin = 0 if ordered.phase == "all" else max(0, ordered.prompt - 1 - first)
    offsets = list(range(begin, len(ids)))
    if ordered.phase != "think" or not offsets:
        return offsets
    thinking, steered = progress.thinking, []
    for offset, token in zip(offsets, ids[begin:].tolist(), strict=True):
        position = first + offset
        if position >= ordered.prompt and token in (ordered.opening, ordered.closing):
            thinking[position] = token == ordered.opening
        if thinking[max(known for known in thinking if known <= position)]:
            steered.append(offset)
    return steered
