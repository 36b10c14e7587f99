"""Adaptive depth of a run: policies chosen on its validation users, and on test users beside all they have to beat."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from forethought.atomic import atomic_file, atomic_folder
from forethought.data.arguments import MOST_STEPS, check_whole
from forethought.data.batches import target_batches
from forethought.errors import ArtefactError, DataError
from forethought.evaluation.metrics import accuracy
from forethought.evaluation.ranking import rank_targets
from forethought.evaluation.significance import paired_tests
from forethought.instruments.fingerprint import fingerprint
from forethought.nn.dropout import Dropout
from forethought.nn.halting import Divergence, Entropy, Probe, Rule
from forethought.recommenders.latent.model import LatentReasoner
from forethought.recommenders.latent.policies import (
    RULES,
    Floats,
    Policy,
    Table,
    Watch,
    choose,
    depths,
    judge,
    settings,
)
from forethought.recommenders.run import Run
from forethought.recommenders.thinking import METRICS, Counted, Split, Told, reasoner, refuse_untrained, thinking

FORMAT = "forethought.dial"
VERSION = 1
METRIC = "ndcg@10"
CASES = 50  # fewer say nothing
POINTS = 6  # of each rule's curve
CLOCKED, BATCH, ROUNDS = 512, 256, 3  # users and batch of a timing, and how often each policy is timed


@dataclass(frozen=True)
class Dial:
    """The policies of a run.

    Attributes:
        policies: one a name.
        auto: the name of the one that ``auto`` steps go by.
        quality: NDCG@10 after 0 … K steps, on the validation users.
        best: the fixed depth that was best there.
        loss, level: share of its NDCG@10 that may be given up, and the confidence that no more is.
        seed: of the probe's halves.
        model: fingerprint of the weights it was made on.
    """

    policies: tuple[Policy, ...]
    auto: str
    quality: tuple[float, ...]
    best: int
    loss: float
    level: float
    seed: int
    model: str

    @property
    def chosen(self) -> Policy:
        """What ``auto`` steps go by."""
        return next(policy for policy in self.policies if policy.name == self.auto)

    def save(self, folder: Path) -> None:
        """Write ``dial.json`` and, where there is a probe, ``probe.safetensors``, as one folder in place of another."""
        policies = [{**vars(policy), "rule": setting(policy.rule)} for policy in self.policies]
        content = {"format": FORMAT, "version": VERSION, **vars(self), "policies": policies}
        with atomic_folder(folder, replace=True) as scratch:
            (scratch / "dial.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            for rule in (policy.rule for policy in self.policies):
                if isinstance(rule, Probe):
                    tensors = {"weight": rule.weight.contiguous(), "bias": rule.bias.contiguous()}
                    save_file(tensors, scratch / "probe.safetensors")

    @classmethod
    def open(cls, run: Run) -> Dial:
        """The dial in ``RUN/dial``.

        Raises:
            ArtefactError: there is none, it is damaged or of another version, or of other weights than the run's.
        """
        folder, command = run.path / "dial", f"run 'forethought dial {run.path}'"
        if run.recipe is None:
            raise ArtefactError(f"{run.path} is a model without its run; name the run, whose dial chooses the steps.")
        if not folder.is_dir():
            raise ArtefactError(f"{run.path} has no dial yet to choose steps by; {command} first.")
        try:
            content = json.loads((folder / "dial.json").read_text(encoding="utf-8"))
            if content.pop("format") != FORMAT or content.pop("version") != VERSION:
                raise ArtefactError(f"{folder} is no {FORMAT} version {VERSION}; {command} again.")
            policies = [Policy(**{**each, "rule": _rule(each, folder)}) for each in content["policies"]]
            dial = cls(**{**content, "policies": tuple(policies), "quality": tuple(content["quality"])})
            if dial.auto not in [policy.name for policy in policies]:
                raise ValueError(f"no policy {dial.auto}")
        except ArtefactError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ArtefactError(f"{folder} is damaged ({reason}); {command} again.") from error
        if dial.model != fingerprint(run.model):
            raise ArtefactError(f"{folder} was made on other weights than {run.path} has now; {command} again.")
        return dial


def setting(rule: Rule | None) -> dict[str, float]:
    """The numbers of a rule, without a probe's weights."""
    return {} if rule is None else {key: value for key, value in vars(rule).items() if not isinstance(value, Tensor)}


def _rule(policy: dict[str, Any], folder: Path) -> Rule | None:
    if policy["name"] == "probe":
        heads = load_file(folder / "probe.safetensors")
        return Probe(heads["weight"], heads["bias"], **policy["rule"])
    if policy["name"] == "fixed":
        return None
    return Entropy(**policy["rule"]) if policy["name"] == "entropy" else Divergence(**policy["rule"])


@torch.no_grad()
def look(run: Run, split: Split, most: int, progress: Told | None = None) -> tuple[Table, dict[str, Floats]]:
    """Rank a split after 0 … ``most`` steps, and watch its thoughts.

    Returns:
        The table of :data:`METRIC`, and all :data:`METRICS`, float64 ``[cases, most + 1]`` each; seen items removed.

    Raises:
        ArtefactError: the model takes no steps, or answers by chance.
        DataError: the split has fewer than :data:`CASES` cases, or ``most`` is no whole number from 1 to 10,000.
    """
    model, targets = reasoner(run), run.dataset.targets(split)
    refuse_untrained(run)
    if getattr(model.config, "start", "") == "normal" and not model.config.test_draws:
        raise ArtefactError(
            f"{run.path} draws an initial state for every answer; train it with --model.test_draws 1, so that an "
            "answer depends on the history alone."
        )
    check_whole("steps", most, least=1, most=MOST_STEPS)
    if len(targets) < CASES:
        raise DataError(
            f"{run.dataset.path} has {len(targets)} {split} cases and a dial takes at least {CASES}; prepare it with "
            "more users or another split, and train again."
        )
    columns = []
    for step in range(most + 1):
        with thinking(model, step):
            columns.append(_ranked(run, split, f"{split} users, {step} steps", progress))
    values = {metric: np.stack([column[metric] for column in columns], axis=1) for metric in METRICS}
    watch, order, done = Watch(), [], 0
    with thinking(model, most, halting=watch):
        for chunk, history in target_batches(targets, 1024, model.config.max_length):
            model.query(history.to(model.device))
            order.append(chunk)
            done += len(chunk)
            if progress is not None:
                progress(f"{split} users, watched", done)
    return watch.table(values[METRIC], targets.users, np.concatenate(order)), values


def _ranked(run: Run, split: Split, name: str, progress: Told | None) -> dict[str, Floats]:
    """:data:`METRICS` of each case, seen items removed; float64 ``[cases]``."""
    tell = None if progress is None else lambda done: progress(name, done)
    found = accuracy(rank_targets(run.model, run.dataset.targets(split), progress=tell), [10])
    return {metric: found[metric][:, 0] for metric in METRICS}


def fit(
    run: Run,
    *,
    most: int | None = None,
    loss: float = 0.01,
    level: float = 0.8,
    seed: int = 0,
    rule: str | None = None,
    progress: Told | None = None,
) -> Dial:
    """Choose every rule's setting on the validation users, as :func:`choose` does.

    Args:
        run: of a ReaRec or a LARES.
        most: K, the most steps; by default as many as it was trained for.
        loss: share of the best fixed depth's NDCG@10 that may be given up.
        level: confidence that no more is by what ``auto`` goes by, 0.5 going by the mean of the validation users alone.
        seed: of the halves the probe is fitted on.
        rule: that ``auto`` steps go by; by default the one that takes the fewest on the validation users, for which
            every rule has to keep more to be trusted.
        progress: called with what is measured and the number of cases so far.

    Raises:
        ArtefactError: the model takes no steps, or answers by chance.
        DataError: too few validation cases, or an argument that does not fit.
    """
    if not 0 <= loss < 1:
        raise DataError(f"loss is {loss}; it has to be at least 0 and less than 1.")
    if not 0.5 <= level < 1:
        raise DataError(f"level is {level}; it has to be at least 0.5 and less than 1.")
    if rule is not None and rule not in RULES:
        raise DataError(f"rule is {rule!r}; it has to be one of {', '.join(RULES)}.")
    table, _ = look(run, "valid", reasoner(run).config.steps if most is None else most, progress)
    if progress is not None:
        progress("the probe on valid users", len(table.owners))
    policies, best = choose(table, loss, level, seed, named=rule is not None)
    auto = min(policies, key=lambda policy: policy.steps).name
    if rule is not None:
        auto = rule if best else "fixed"
    quality = tuple(float(each) for each in table.quality.mean(axis=0))
    return Dial(policies, auto, quality, best, loss, level, seed, fingerprint(run.model))


def measure(
    run: Run, dial: Dial, *, draws: int | None = None, seed: int = 0, progress: Told | None = None
) -> dict[str, Any]:
    """Every fixed depth and every policy on the test users, and what looking at the label would give.

    ``by_lot`` is what a policy's depths are worth when they are dealt to the users by lot: one that is no better knows
    nothing of the users. Under ``label`` stands what can be had by looking at the target. The ``oracle`` takes each
    user's best depth (ReaRec's "upper bound"); ``dropout`` takes each user's best of several answers at one depth, the
    best fixed one, that differ by their dropout masks alone. The best of several rankings that are not the same is an
    order statistic, high without any thought.

    Args:
        run, dial: a run, and what :func:`fit` chose for it.
        draws: answers under dropout; by default as many as the oracle has depths.
        seed: of these, of the resampling, and of the users that are timed.
        progress: as for :func:`fit`.

    Returns:
        What ``test-dial.json`` holds; plain numbers.
    """
    model, most, best = reasoner(run), len(dial.quality) - 1, dial.best
    draws = most + 1 if draws is None else draws
    check_whole("draws", draws, least=1)
    table, values = look(run, "test", most, progress)
    quality, base = table.quality, table.quality[:, best]
    fixed: list[dict[str, Any]] = [
        {"steps": step, **{metric: float(each[:, step].mean()) for metric, each in values.items()}}
        for step in range(most + 1)
    ]
    rules: list[dict[str, Any]] = []
    reached: list[Floats] = []
    for policy in dial.policies:
        counted = None if policy.rule is None else Counted(policy.rule)
        with thinking(model, policy.most, halting=counted):
            found = _ranked(run, "test", policy.name, progress)
        reached.append(found[METRIC])
        steps = float(policy.most) if counted is None else counted.steps / len(base)
        shares = np.bincount(depths(policy.rule, policy.most, table), minlength=most + 1) / len(base)
        gap = quality.max(axis=1).mean() - base.mean()
        row: dict[str, Any] = {"rule": policy.name, "setting": {"most": policy.most, **setting(policy.rule)}}
        row |= {"auto": policy.name == dial.auto, "steps": steps, "of_best_steps": _share(steps, best)}
        row |= {metric: float(each.mean()) for metric, each in found.items()}
        row |= {"of_best_quality": _share(found[METRIC].mean(), base.mean())}
        row |= {"of_oracle_gap": _share(found[METRIC].mean() - base.mean(), gap)}
        row |= {"by_lot": float(shares @ quality.mean(axis=0))}
        rules.append({**row, "valid": {"steps": policy.steps, METRIC: policy.quality}})
    for row, test in zip(rules, paired_tests(base, reached, table.owners, seed=seed), strict=True):  # base - reached
        low, mean, high = (0.0 - each for each in (test.high, test.difference, test.low))  # 0.0, and no -0.0
        row["difference"] = {"mean": mean, "low": low, "high": high, "p": test.p_randomisation}
    points = [each for policy in dial.policies if policy.rule is not None for each in _spread(policy, table)]
    curves: dict[str, list[dict[str, float]]] = {policy.name: [] for policy in points}
    for policy in points:
        where = {key: value for key, value in setting(policy.rule).items() if key in ("threshold", "confidence")}
        curves[policy.name].append({**where, "steps": policy.steps, METRIC: policy.quality})
    plain = [Policy("fixed", step, None, 0, 0) for step in range(most + 1)]
    times = clock(run, [*plain, *dial.policies, *points], seed, progress)
    drawn = [point for curve in curves.values() for point in curve]
    for row, milliseconds in zip([*fixed, *rules, *drawn], times, strict=True):
        row["milliseconds"] = milliseconds
    oracle = {"steps": float(quality.argmax(axis=1).mean()), METRIC: float(quality.max(axis=1).mean())}
    label = {"oracle": oracle, "dropout": _best_of_dropout(run, best, draws, seed, progress)}
    timing = {"users": min(CLOCKED, len(base)), "batch": BATCH, "rounds": ROUNDS, "threads": torch.get_num_threads()}
    return {
        "model": run.kind, "data": run.dataset.fingerprint, "split": "test", "metric": METRIC, "cases": len(base),
        "users": len(np.unique(table.owners)), "loss": dial.loss, "level": dial.level, "most": most, "best": best,
        "auto": dial.auto, "valid": {"seed": dial.seed, METRIC: list(dial.quality)}, "fixed": fixed, "rules": rules,
        "curves": curves, "label": label, "seed": seed, "timing": {**timing, "device": str(model.device)},
    }  # fmt: skip


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _spread(policy: Policy, table: Table) -> list[Policy]:
    """The policy at settings whose mean steps lie evenly between the fewest and the most it can take, each once."""
    assert policy.rule is not None
    rules = settings(policy.rule, policy.most, table)
    found = [judge(policy.name, rule, policy.most, table) for rule in rules]
    steps = np.array([each.steps for each in found])
    wanted = np.linspace(steps.min(), steps.max(), POINTS)
    return [found[index] for index in dict.fromkeys(int(np.abs(steps - each).argmin()) for each in wanted)]


@torch.no_grad()
def clock(run: Run, policies: Sequence[Policy], seed: int, progress: Told | None = None) -> list[float]:
    """Milliseconds a user for the ten best items under each policy: reading, thinking, deciding, scoring, choosing.

    The policies take turns and the fastest of :data:`ROUNDS` counts, as what else a machine does only adds time. Timed
    are :data:`CLOCKED` test users, drawn at random, in batches of :data:`BATCH`.
    """
    model, targets = reasoner(run), run.dataset.targets("test")
    drawn = np.random.default_rng(seed).permutation(len(targets))[:CLOCKED]
    batches = [
        history.to(model.device) for _, history in target_batches(targets, BATCH, model.config.max_length, drawn)
    ]
    seconds = np.full(len(policies), np.inf)
    for turn in range(ROUNDS):
        for index, policy in enumerate(policies):
            with thinking(model, policy.most, halting=policy.rule):
                began = time.perf_counter()
                for history in batches:
                    model.recommend(history)
                if model.device.type == "cuda":
                    torch.cuda.synchronize(model.device)
                seconds[index] = min(seconds[index], time.perf_counter() - began)
            if progress is not None:
                progress("milliseconds", len(drawn) * (turn * len(policies) + index + 1))
    return [float(1e3 * each / len(drawn)) for each in seconds]


def _best_of_dropout(run: Run, steps: int, draws: int, seed: int, progress: Told | None) -> dict[str, float] | None:
    """None where the model has no dropout to draw from."""
    model, found = reasoner(run), []
    if not any(part.p for part in model.modules() if isinstance(part, Dropout)):
        return None
    with torch.random.fork_rng(), thinking(model, steps), dropping(model):
        for draw in range(draws):
            torch.manual_seed(seed + draw)
            found.append(_ranked(run, "test", f"dropout {draw + 1} of {draws}", progress)[METRIC])
    best = float(np.max(found, axis=0).mean())
    return {"draws": draws, "steps": steps, METRIC: best, "one": float(np.mean(found))}


@contextlib.contextmanager
def dropping(model: LatentReasoner) -> Iterator[None]:
    """Inside, dropout drops, and all else of the model is as it answers."""
    parts = [part for part in model.modules() if isinstance(part, Dropout)]

    def drop(part: torch.nn.Module, _: Any) -> None:
        part.train()  # just before it is used: what ranks puts the model into evaluation mode

    hooks = [part.register_forward_pre_hook(drop) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for part in parts:
            part.train(model.training)


def save(run: Run, dial: Dial, found: dict[str, Any], command: str) -> Path:
    """Write ``RUN/evaluation/test-dial.json``, ``test-dial.png`` and ``RUN/dial``; returns the figure's path."""
    from forethought.evaluation.figures import dial as draw

    path, figure = run.path / "evaluation" / "test-dial.json", draw(found)
    with atomic_file(path) as scratch:
        scratch.write_text(json.dumps({"command": command, **found}, indent=2) + "\n", encoding="utf-8")
    with atomic_file(path.with_suffix(".png")) as scratch:
        figure.savefig(scratch, dpi=150)
    dial.save(run.path / "dial")
    vars(run)["dial"] = dial  # in place of one that was opened before
    return path.with_suffix(".png")
