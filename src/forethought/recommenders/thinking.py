"""What a recommender's thoughts are worth: its answers after every step, and with the thoughts taken from it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from forethought.atomic import atomic_file
from forethought.data.arguments import MOST_STEPS, check_whole
from forethought.errors import ArtefactError, DataError
from forethought.evaluation.evaluator import evaluate
from forethought.instruments.fingerprint import fingerprint
from forethought.nn.halting import Moment, Rule, divergence
from forethought.nn.thought import StepKind
from forethought.recommenders.base import best_items, newest
from forethought.recommenders.counting import CountingRecommender
from forethought.recommenders.latent.model import LatentReasoner
from forethought.recommenders.run import Run
from forethought.recommenders.sasrec import SASRec

METRICS = ("ndcg@10", "hr@10", "mrr@10")
Split = Literal["valid", "test"]
Told = Callable[[str, int], None]


def zero(fed: Tensor, generator: torch.Generator) -> Tensor:
    """Nothing is thought."""
    return torch.zeros_like(fed)


def shuffled(fed: Tensor, generator: torch.Generator) -> Tensor:
    """Every user goes on from the thought of another of the batch, drawn anew each time; one alone keeps its own."""
    order = torch.randperm(len(fed), generator=generator).to(fed.device)
    return torch.empty_like(fed).index_copy_(0, order, fed[order.roll(1)])


def random(fed: Tensor, generator: torch.Generator) -> Tensor:
    """A thought of no meaning, as long as the real one at every position."""
    noise = torch.randn(fed.shape, generator=generator).to(fed)
    scaled: Tensor = noise * (fed.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True))
    return scaled


INTERVENTIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "zero": zero, "shuffled": shuffled, "random": random,
}  # fmt: skip


def reasoner(run: Run) -> LatentReasoner:
    """The model of a run, which has to be one that takes as many steps as it is told.

    Raises:
        ArtefactError: it is another.
    """
    if not isinstance(run.model, LatentReasoner):
        raise ArtefactError(
            f"{run.path} holds a {run.kind}, whose steps cannot be chosen; name a run of a rearec or a lares."
        )
    return run.model


def depth(run: Run, steps: int | Literal["auto"]) -> tuple[int, Rule | None]:
    """The most steps to take, and the rule that lets rows answer earlier; ``auto`` asks the run's dial.

    Raises:
        ArtefactError: the model takes no number of steps or was trained with 0, or ``auto`` is asked of a run without
            a dial.
        DataError: ``steps`` is no whole number from 0 to 10,000.
    """
    reasoner(run)
    if steps == "auto":
        return run.dial.chosen.most, run.dial.chosen.rule
    check_whole("steps", steps, most=MOST_STEPS)
    if steps:
        refuse_untrained(run)
    return steps, None


def refuse_untrained(run: Run) -> None:
    """Refuse steps of a model that never took one.

    Raises:
        ArtefactError: it was trained with 0.
    """
    if not run.model.config.steps:
        raise ArtefactError(f"{run.path} was trained with 0 steps and can take none.")


def changeable(run: Run) -> int:
    """How many of a model's steps go on from a thought that :data:`INTERVENTIONS` can be made to.

    The first is none of them where it reads the history alone.

    Raises:
        ArtefactError: the model takes no steps, was trained with 0, or none of its steps is one.
    """
    model = reasoner(run)
    refuse_untrained(run)
    left = model.steps - bool(getattr(model.encoder, "begins_thoughtless", False))
    if left < 1:
        raise ArtefactError(
            f"{run.path} takes 1 step, which reads the history alone, so there is no thought to take away; name a run "
            "of more steps."
        )
    return left


@contextlib.contextmanager
def thinking(
    model: LatentReasoner, steps: int | None = None, change: Any = None, halting: Rule | None = None
) -> Iterator[None]:
    """Inside, the model takes so many steps, ``change`` is made to what each of them goes on from, and ``halting`` lets
    rows answer earlier."""
    before = model.steps, model.change, model.halting
    model.steps, model.change, model.halting = (model.steps if steps is None else steps), change, halting
    try:
        yield
    finally:
        model.steps, model.change, model.halting = before


class Counted:
    """A rule that counts, in ``steps``, how many steps those it lets go on will take."""

    def __init__(self, rule: Rule) -> None:
        self.rule, self.steps = rule, 0

    @property
    def reads_answers(self) -> bool:
        """As the rule's."""
        return self.rule.reads_answers

    def halts(self, moment: Moment) -> Tensor:
        """As the rule's."""
        halts = self.rule.halts(moment)
        self.steps += int((~halts).sum())
        return halts


def by_steps(
    run: Run, steps: Sequence[int | Literal["auto"]], split: Split = "test", *, progress: Told | None = None
) -> list[dict[str, Any]]:
    """Quality and time at each number of steps.

    Args:
        run: of a model that reasons.
        steps: numbers of steps; ``auto`` is as many as the run's dial gives each user.
        split: which targets.
        progress: called with what is measured and the number of cases ranked so far.

    Returns:
        Rows of ``steps``, ``mean_steps``, :data:`METRICS` with seen items removed, and ``milliseconds`` a case, ranking
        included.

    Raises:
        ArtefactError: the model takes no number of steps, or ``auto`` is asked of a run without a dial.
        DataError: one of ``steps`` is no whole number from 0 to 10,000.
    """
    rows = []
    for each, (most, rule) in zip(steps, [depth(run, each) for each in steps], strict=True):  # all are looked at first
        counted = None if rule is None else Counted(rule)
        with thinking(reasoner(run), most, halting=counted):
            found = _measure(run, split, f"{each} steps", progress)
        mean = float(most) if counted is None else counted.steps / len(run.dataset.targets(split))
        rows.append({"steps": each, "mean_steps": mean, **found})
    return rows


def by_intervention(
    run: Run, split: Split = "test", *, seed: int = 0, progress: Told | None = None
) -> list[dict[str, Any]]:
    """Quality with the thoughts as they are, and with each of :data:`INTERVENTIONS` made to what every step reads.

    A thought that nothing is lost by is decoration.

    Returns:
        Rows of ``thoughts``, :data:`METRICS` with seen items removed, and ``milliseconds``.

    Raises:
        ArtefactError: as of :func:`changeable`.
    """
    model = reasoner(run)
    changeable(run)
    rows = [{"thoughts": "its own", **_measure(run, split, "its own", progress)}]
    for name, change in INTERVENTIONS.items():
        generator = torch.Generator().manual_seed(seed)
        with thinking(model, change=lambda fed, by=change, draws=generator: by(fed, draws)):
            rows.append({"thoughts": name, **_measure(run, split, name, progress)})
    return rows


def _measure(run: Run, split: Split, name: str, progress: Told | None) -> dict[str, Any]:
    tell = None if progress is None else lambda done: progress(name, done)
    found = evaluate(run.model, run.dataset, split, bootstrap=0, slices=False, progress=tell)
    metrics = {metric: found.metrics["seen_removed"][metric] for metric in METRICS}
    return {**metrics, "milliseconds": 1e3 * found.seconds / found.cases}


def save(run: Run, split: Split, found: dict[str, list[dict[str, Any]]], command: str) -> Path:
    """Write ``evaluation/SPLIT-thoughts.json``; other parts that were found of the same weights and data stay in it.

    Args:
        run, split: what was measured.
        found: rows of each part, ``steps`` or ``interventions``.
        command: that found them.
    """
    path = run.path / "evaluation" / f"{split}-thoughts.json"
    about = {"model": run.kind, "weights": fingerprint(run.model), "data": run.dataset.fingerprint, "split": split}
    before = _kept(path)
    if not about.items() <= before.items():
        before = {}
    commands = {**before.get("commands", {}), **dict.fromkeys(found, command)}
    content = {**about, "commands": commands, **{part: {**before, **found}[part] for part in commands}}
    with atomic_file(path) as scratch:
        scratch.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def _kept(path: Path) -> dict[str, Any]:
    """What a file of thoughts holds; nothing where there is none, or a damaged one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


class Step(NamedTuple):
    """One step of a thought: how many were taken, its best ``titles`` and their ``scores``, and ``moved``, the
    divergence KL(before ‖ now) of its answer from the last in nats; None after the reading.

    A preference that grows answers with probabilities: they are its scores, items without any are left out, and what
    they lack to 1, the disliked item's share, is part of the divergence."""

    step: int
    titles: list[str]
    scores: list[float]
    moved: float | None


@torch.no_grad()
def answers(run: Run, history: Tensor, k: int = 5, steps: int | None = None, exclude_seen: bool = True) -> list[Step]:
    """What a model would recommend after every step of its thought about one history.

    Args:
        run: its model gives thoughts with answers.
        history: int64 ``[L]``, items 1..N, oldest first.
        k: how many items.
        steps: by default the model's.
        exclude_seen: leave out items of the history.

    Raises:
        ArtefactError: steps are asked of a model that takes one, or of one that was trained with 0, or more of a SASRec
            than it has blocks.
        DataError: the history is empty, or a number is none that fits.
    """
    if not len(history):
        raise DataError("The history is empty; give at least one item.")
    check_whole("k", k, least=1)
    if steps is not None:
        check_whole("steps", steps, most=MOST_STEPS)
        if isinstance(run.model, CountingRecommender):
            raise ArtefactError(f"{run.path} holds a {run.kind}, whose steps cannot be chosen; leave them out.")
        if steps and isinstance(run.model, LatentReasoner):
            refuse_untrained(run)
        if isinstance(run.model, SASRec) and steps > run.model.config.num_blocks:
            blocks = run.model.config.num_blocks
            raise ArtefactError(
                f"{run.path} takes a step a block and has {blocks}, not {steps}; ask for {blocks} at most."
            )
    rows = history[None].to(run.model.device)
    thought = run.model.think(newest(rows, run.model.config.max_length), steps)
    assert thought.answers is not None
    found: list[Step] = []
    before: Tensor | None = None
    for step, scores in enumerate(thought.answers[0]):
        best = best_items(scores[None].clone(), rows, k, exclude_seen)
        kept = best.scores[0] > (0.0 if thought.kind == "grow" else float("-inf"))
        now = _log_law(scores.double(), thought.kind)
        moved = None if before is None else float(divergence(before, now))
        titles = [run.catalog.title(item) for item in best.items[0][kept].tolist()]
        found.append(Step(step, titles, best.scores[0][kept].tolist(), moved))
        before = now
    return found


def _log_law(scores: Tensor, kind: StepKind) -> Tensor:
    """The log-probabilities that an answer, float64 ``[N]``, stands for; float64 ``[N]``, or ``[N + 1]`` if grown."""
    if kind != "grow":
        return scores.log_softmax(dim=0)
    law = torch.cat([scores, (1 - scores.sum()).clamp(min=0)[None]])
    return law.clamp(min=torch.finfo(law.dtype).tiny).log()  # a step may rule out what was likely: far, not infinite
