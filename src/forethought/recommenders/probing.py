"""The instruments on a next-item model: whether it needs to think on, and how popular what it recommends is to be."""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from forethought.atomic import atomic_folder
from forethought.data.arguments import MOST_STEPS, check_whole
from forethought.data.batches import target_batches
from forethought.errors import ArtefactError, DataError
from forethought.evaluation.evaluator import evaluate
from forethought.instruments.class_probe import ClassProbe
from forethought.instruments.direction import random_directions
from forethought.instruments.settling import kept
from forethought.instruments.sites import Stack
from forethought.instruments.steering import Steering
from forethought.nn.encoder import CausalEncoder
from forethought.recommenders.latent.model import LatentReasoner
from forethought.recommenders.prefergrow.model import PreferGrow
from forethought.recommenders.run import Run
from forethought.recommenders.thinking import refuse_untrained

LEAST = 50  # cases of a split that a probe is fitted or tested on
METRICS = ("ndcg@10", "hr@10", "novelty@10", "popular@10", "coverage@10")


@dataclass(frozen=True)
class Settling:
    """What a settling probe, fitted on validation users, is worth on test users, a row a step.

    Attributes:
        rows: ``step``; ``kept``, the mean share of the final top k that is there; ``changed``, the share of users whose
            answer changes; ``auc`` and ``brier`` of the probe;
            ``length/auc`` and ``popularity/auc`` of a probe that sees only how long the history is, or how popular its
            newest item. None where all rows change or none does.
    """

    rows: list[dict[str, Any]]


@torch.no_grad()
def settling(
    run: Run, *, k: int = 10, share: float = 0.5, steps: int | None = None, users: int = 4096, seed: int = 0
) -> Settling:
    """Fit and test a settling probe after every step but the last.

    Args:
        run: its model gives thoughts of two steps or more, with answers.
        k: best items compared.
        share: the answer is said to change where less than this share of the final top k is there already.
        steps: of ``model.think``.
        users: most of each split that are read, at least 50.
        seed: of the choice of users, and of chains.

    Raises:
        ArtefactError: the model takes one step only, or steps are asked of one that was trained with 0.
        DataError: too few users, or a number is none that fits.
    """
    check_whole("users", users, least=LEAST)
    if not 0 < share <= 1:
        raise DataError(f"share is {share}; it has to be more than 0 and at most 1.")
    if steps is not None:
        check_whole("steps", steps, most=MOST_STEPS)
        if steps and isinstance(run.model, LatentReasoner):
            refuse_untrained(run)
    read = {split: _think(run, split, steps, k, users, seed) for split in ("valid", "test")}
    taken = read["test"].states.shape[1]
    if taken < 2:
        raise ArtefactError(f"{run.path} holds a {run.kind}, which takes one step; there is nothing to think on for.")
    rows: list[dict[str, Any]] = []
    for step in range(taken - 1):
        changed = {split: found.kept[:, step] < share for split, found in read.items()}
        row: dict[str, Any] = {
            "step": step,
            "kept": float(read["test"].kept[:, step].mean()),
            "changed": float(changed["test"].mean()),
        }
        if all(0.01 < found.mean() < 0.99 for found in changed.values()):
            inputs = {"": {split: found.states[:, step] for split, found in read.items()}}
            for column, name in enumerate(("length/", "popularity/")):
                inputs[name] = {split: found.facts[:, column : column + 1] for split, found in read.items()}
            for name, values in inputs.items():
                probe = ClassProbe.fit(values["valid"], changed["valid"], seed=seed)
                scores = probe.scores(values["test"], changed["test"])
                row |= {f"{name}auc": scores["auc"]} | ({} if name else {"brier": scores["brier"]})
        rows.append(row)
    return Settling(rows)


@dataclass(frozen=True)
class _Read:
    """Of users: states float64 ``[B, steps, d]``, kept ``[B, steps]``, and facts ``[B, 2]``, length and popularity."""

    states: npt.NDArray[np.float64]
    kept: npt.NDArray[np.float64]
    facts: npt.NDArray[np.float64]


def _think(run: Run, split: Any, steps: int | None, k: int, users: int, seed: int) -> _Read:
    targets, model = run.dataset.targets(split), run.model
    if len(targets) < LEAST:
        raise DataError(f"{run.path} has {len(targets)} {split} cases; a probe takes at least {LEAST}.")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(targets))[:users])
    counts = run.dataset.item_counts()
    options: dict[str, Any] = {}
    if "generator" in inspect.signature(model.think).parameters:
        options["generator"] = torch.Generator(model.device).manual_seed(seed)
    states, shares, facts = [], [], []
    for _, history in target_batches(targets, 256, model.config.max_length, chosen):
        thought = model.think(history.to(model.device), steps, **options)
        states.append(thought.states.double().cpu().numpy())
        shares.append(kept(thought, k).double().cpu().numpy())
        length = (history > 0).sum(dim=1)
        newest = history[torch.arange(len(history)), (length - 1).clamp(min=0)]
        facts.append(np.column_stack([length.numpy(), np.log1p(counts[newest.numpy()])]))
    return _Read(np.concatenate(states), np.concatenate(shares), np.concatenate(facts).astype(np.float64))


@dataclass(frozen=True)
class Popularity:
    """What steering along the popularity direction does.

    Attributes:
        rows: ``direction`` (``popularity`` or ``random N``), ``strength``, and METRICS on the test targets, seen items
            removed, as the evaluator gives them.
    """

    rows: list[dict[str, Any]]


def popularity_direction(run: Run) -> Tensor:
    """Which way popular items lie: the mean vector of the most popular fifth less that of the others; float ``[d]``.

    Raises:
        ArtefactError: the model does not rank by an inner product.
    """
    if not run.model.inner_product:
        raise ArtefactError(f"{run.path} holds a {run.kind}, which has no item vectors to find a direction in.")
    counts = run.dataset.item_counts()[1:]
    vectors = run.model.item_vectors().detach().float().cpu()
    if isinstance(run.model, PreferGrow):
        vectors = vectors[:, : run.model.config.hidden_size]  # without the bias, which no state can go along
    order = np.argsort(-counts, kind="stable")
    most = torch.from_numpy(order[: math.ceil(len(order) / 5)].copy())
    others = torch.from_numpy(order[math.ceil(len(order) / 5) :].copy())
    return vectors[most].mean(dim=0) - vectors[others].mean(dim=0)


def steer_popularity(
    run: Run, strengths: Sequence[float], *, random: int = 1, seed: int = 0, split: Any = "test"
) -> Popularity:
    """Evaluate a model steered at its final norm, along the popularity direction and along random ones as long.

    Args:
        run: of a model with a final norm before an inner product.
        strengths: multiples of the direction, scaled to the norm of the mean final state; 0 is added.
        random: how many random directions stand beside.
        seed: of theirs.
        split: which targets.

    Raises:
        ArtefactError: the model has no final norm, no inner product, or layers between them.
        DataError: ``random`` is no number of directions, or a strength is not finite.
    """
    check_whole("random", random)
    if not all(map(math.isfinite, strengths)):
        raise DataError(f"strengths are {tuple(strengths)}; they have to be finite numbers.")
    if isinstance(run.model, PreferGrow) and run.model.config.head != "none":
        raise ArtefactError(
            f"{run.path} reads its state through a head, so its items' directions are none of its state; only a "
            "prefergrow with model.head none is steered."
        )
    stack, direction = Stack.of(run.model), popularity_direction(run)
    encoder = getattr(run.model, "encoder", None)
    if isinstance(encoder, CausalEncoder):  # a recurrence has norms between its blocks, too
        norm = encoder.final_norm
        stack = replace(stack, norm=None if isinstance(norm, nn.Identity) else norm)
    stack.check("norm")
    direction = direction / direction.norm() * math.sqrt(len(direction))  # as long as what a layer norm gives
    directions = {"popularity": direction}
    for index, drawn in enumerate(random_directions(direction, random, torch.Generator().manual_seed(seed))):
        directions[f"random {index + 1}"] = drawn
    rows = [{"direction": "none", "strength": 0.0, **_measure(run, split)}]
    for name, vector in directions.items():
        for strength in (value for value in strengths if value):
            with Steering({"norm": vector}, strength).applied(run.model, stack=stack):
                rows.append({"direction": name, "strength": float(strength), **_measure(run, split)})
    return Popularity(rows)


def _measure(run: Run, split: Any) -> dict[str, float]:
    found = evaluate(run.model, run.dataset, split, bootstrap=0, slices=False).metrics["seen_removed"]
    return {name: found[name] for name in METRICS if name in found}


def save(found: Settling, steered: Popularity | None, run: Run, out: str | os.PathLike[str], command: str) -> Path:
    """Write ``probe.json`` and, where a model was steered, ``novelty.png``."""
    with atomic_folder(out, replace=True) as scratch:
        content = {
            "command": command, "run": str(run.path), "model": run.kind, "settling": found.rows,
            "popularity": steered.rows if steered else None,
        }  # fmt: skip
        (scratch / "probe.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        if steered is not None:
            draw_novelty(steered, scratch / "novelty.png")
    return Path(out)


def draw_novelty(steered: Popularity, path: Path) -> None:
    """Accuracy against novelty, a line a direction."""
    from matplotlib.figure import Figure

    from forethought.evaluation.figures import INK, MUTED, SERIES, drawing

    with drawing():
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        plain = steered.rows[0]
        for name in dict.fromkeys(row["direction"] for row in steered.rows[1:]):
            rows = sorted(
                [plain, *(row for row in steered.rows if row["direction"] == name)], key=lambda row: row["strength"]
            )
            colour = SERIES[0] if name == "popularity" else MUTED
            axes.plot(
                [r["novelty@10"] for r in rows], [r["ndcg@10"] for r in rows], "o-", ms=4, color=colour, label=name
            )
            for row in rows:
                axes.annotate(f"{row['strength']:g}", (row["novelty@10"], row["ndcg@10"]), fontsize=7, color=colour)
        axes.plot(plain["novelty@10"], plain["ndcg@10"], "*", ms=13, color=INK, label="unchanged")
        axes.set(title="Steering along popularity", xlabel="novelty@10 (bits)", ylabel="NDCG@10")
        axes.legend(fontsize=8)
        figure.savefig(path, dpi=150)
