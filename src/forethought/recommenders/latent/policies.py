"""How long to think about whom: for each rule of halting the setting that takes the fewest steps and loses little."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from forethought.instruments.probe import Scaling
from forethought.nn.halting import Divergence, Entropy, Moment, Probe, Rule, divergence, entropy

RULES = ("fixed", "probe", "entropy", "divergence")  # of those that take equally many steps the first is chosen
GRID = 64  # quantiles that are tried as thresholds
ALPHAS = (1e1, 1e2, 1e3, 1e4)  # L2 penalties on the weights of standardised states, beside the sum of losses

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Table:
    """What every depth from 0 to K steps is worth to each case, and what can be known without the target.

    Attributes:
        quality: float64 ``[cases, K + 1]``, NDCG@10 or another gain.
        entropy, divergence: float64 ``[cases, K]``, after 0 … K - 1 steps, of the answer and from the one before; the
            divergence after 0 steps is infinite.
        first: float ``[cases, d]``, r_0.
        owners: int64 ``[cases]``, the user of each.
    """

    quality: Floats
    entropy: Floats
    divergence: Floats
    first: Tensor
    owners: Ints


class Watch:
    """A rule that lets no row answer early, and keeps what the others decide by."""

    reads_answers = True

    def __init__(self) -> None:
        self.seen: list[tuple[int, Tensor, Tensor, Tensor]] = []

    def halts(self, moment: Moment) -> Tensor:
        """None does."""
        assert moment.answer is not None
        sure = entropy(moment.answer)
        before = moment.before
        moved = torch.full_like(sure, torch.inf) if before is None else divergence(before, moment.answer)
        self.seen.append((moment.step, moment.first, sure, moved))
        return torch.zeros_like(sure, dtype=torch.bool)

    def table(self, quality: Floats, owners: Ints, order: Ints | None = None) -> Table:
        """Of all rows so far, as they came; or by case, where ``order``, int64 ``[cases]``, tells which each was."""
        steps = range(1 + max(step for step, *_ in self.seen))
        place = np.arange(len(owners)) if order is None else np.argsort(order)

        def of(part: int, step: int) -> Tensor:
            parts: list[Tensor] = [row[part] for row in self.seen if row[0] == step]  # type: ignore[misc]  # no step
            return torch.cat(parts).cpu()[torch.from_numpy(place)]

        sure, moved = (torch.stack([of(part, step) for step in steps], dim=1).double().numpy() for part in (2, 3))
        return Table(quality, sure, moved, of(1, 0), owners)


@dataclass(frozen=True)
class Policy:
    """One way of choosing steps, and what it was worth on some cases.

    Attributes:
        name: one of :data:`RULES`.
        most: steps after which whoever is left answers.
        rule: None answers after ``most`` steps.
        steps, quality: their means over these; where :func:`choose` chose a probe, from halves it was not fitted on.
    """

    name: str
    most: int
    rule: Rule | None
    steps: float
    quality: float


def depths(rule: Rule | None, most: int, table: Table) -> Ints:
    """The steps that a rule gives each case, int64 ``[cases]``."""
    if isinstance(rule, Probe):
        return np.asarray(rule.budget(table.first).numpy())
    if isinstance(rule, Entropy):
        return _first_below(table.entropy[:, :most], rule.threshold)
    if isinstance(rule, Divergence):
        return _first_below(table.divergence[:, :most], rule.threshold)
    return np.full(len(table.owners), most)


def _first_below(signal: Floats, threshold: float) -> Ints:
    below = signal < threshold
    return np.asarray(np.where(below.any(axis=1), below.argmax(axis=1), signal.shape[1]))


def at(quality: Floats, depth: Ints) -> Floats:
    """Each row's value at its depth, int64 ``[cases]``: float64 ``[cases, K + 1]`` → float64 ``[cases]``."""
    return quality[np.arange(len(depth)), depth]


def choose(
    table: Table, loss: float = 0.01, level: float = 0.8, seed: int = 0, named: bool = False
) -> tuple[tuple[Policy, ...], int]:
    """For each rule the setting that takes few steps and keeps (1 - loss) of the best fixed depth's quality.

    Every rule starts where nobody answers early, which loses nothing, and is turned towards fewer steps as long as each
    setting keeps what is to be kept; the first that does not ends the walk. Whoever takes the best of all settings that
    seem to keep it takes the luckiest. A walk in a fixed order needs no correction for how many it tries: "fixed
    sequence testing", of Learn then Test (arXiv 2110.01052), which calibrates early exits so in CALM (2207.07061).
    Whoever takes the best of several walks needs one, and gets Bonferroni's.

    No rule goes beyond the best fixed depth. ``fixed`` is the least depth that keeps as much for all alike, which the
    others have to beat; where the best depth is 0 it stands alone.

    Args:
        table: of validation users.
        loss: share of the quality that may be given up.
        level: one-sided confidence over users drawn anew that no more is, of whichever rule is taken; 0.5 goes by the
            plain mean.
        seed: of the halves the probe is fitted on.
        named: which rule is taken does not depend on these users, so that each has the confidence by itself.

    Returns:
        The policies in the order of :data:`RULES`, and the best fixed depth.
    """
    best = int(table.quality.mean(axis=0).argmax())

    def walk(name: str, rules: Iterable[tuple[Rule | None, Ints]], walks: int = 1) -> Policy:
        walks *= 1 if named else len(RULES)
        corrected = level if level == 0.5 else 1 - (1 - level) / walks
        kept: list[Policy] = []
        for rule, depth in rules:
            reached = at(table.quality, depth)
            if kept and _spared(reached, table.quality[:, best], table.owners, loss, corrected) < 0:
                break
            most = int(depth[0]) if rule is None else best
            kept.append(Policy(name, most, rule, float(depth.mean()), float(reached.mean())))
        return kept[-1]

    found = [walk("fixed", ((None, np.full(len(table.owners), step)) for step in range(best, -1, -1)))]
    if best:
        probes = _probes(table, best, seed)
        found.append(min((walk("probe", rules, len(probes)) for rules in probes), key=lambda policy: policy.steps))
        for name, kind in (("entropy", Entropy(0)), ("divergence", Divergence(0))):
            found.append(walk(name, ((rule, depths(rule, best, table)) for rule in settings(kind, best, table))))
    return tuple(found), best


def _spared(reached: Floats, best: Floats, owners: Ints, loss: float, level: float) -> float:
    """A lower bound of what is kept beyond (1 - loss) of ``best``, in sums of quality; float64 ``[cases]`` each.

    Most users lose and gain nothing, so the mean is far from normal: where no loser happened to be drawn, the standard
    error sees none either. What is lost and what is gained are weighted sums of rare events instead, each with the
    limits of a gamma law (Fay and Feuer 1997), in which the next loss weighs as much as a user who was found has on
    average (Tiwari et al. 2006); the two are put together by squares (MOVER, Zou and Donner 2008).
    """
    from scipy.stats import gamma

    moved, had = np.bincount(owners, reached - best), np.bincount(owners, best)
    spared = float(moved.sum() + loss * had.sum())
    if level == 0.5 or not had.any():
        return spared
    lost, won, next_one = -moved[moved < 0], moved[moved > 0], had[had > 0].mean()
    first, second = lost.sum() + next_one, (lost**2).sum() + next_one**2
    most_lost = gamma.ppf(level, first**2 / second, scale=second / first)
    least_won = 0.0
    if len(won):
        least_won = gamma.ppf(1 - level, won.sum() ** 2 / (won**2).sum(), scale=(won**2).sum() / won.sum())
    return spared - float(np.hypot(most_lost - lost.sum(), won.sum() - least_won))


def settings(rule: Rule, most: int, table: Table) -> list[Rule]:
    """The rule at every threshold, or every confidence, that is worth trying: quantiles, and beyond either end.

    They go from the one where nobody answers early to fewer and fewer steps.
    """
    if isinstance(rule, Probe):
        sure = (table.first.double() @ rule.weight + rule.bias).sigmoid()
        return [Probe(**{**vars(rule), "confidence": value}) for value in _confidences(sure.numpy())]
    signal = (table.entropy if isinstance(rule, Entropy) else table.divergence)[:, :most]
    known, values = signal[np.isfinite(signal)], {0.0}
    if len(known):  # the first divergence is not
        values |= {float(known.max()) + 1, *np.quantile(known, np.linspace(0, 1, GRID)).tolist()}
    kind = Entropy if isinstance(rule, Entropy) else Divergence
    return [kind(value) for value in sorted(values)]


def _confidences(sure: Floats) -> list[float]:
    values = {*np.quantile(sure, np.linspace(0, 1, GRID)).tolist(), float(np.nextafter(1, 2))}
    return sorted(values, reverse=True)


def judge(name: str, rule: Rule | None, most: int, table: Table) -> Policy:
    """A policy with its mean steps and quality on a table."""
    depth = depths(rule, most, table)
    return Policy(name, most, rule, float(depth.mean()), float(at(table.quality, depth).mean()))


def _probes(table: Table, best: int, seed: int) -> list[list[tuple[Probe, Ints]]]:
    """Probes of every two depths for easy and normal, by falling confidence, each with the depths it gives.

    An answer after k steps is *enough* where its quality is at least that after the best fixed depth, so that nothing
    is lost by stopping there; one logistic regression a depth on the standardised r_0 learns when that is so. The label
    asks for what is to be kept and for no more: that most users are found by no depth, and so lose by none, is what
    makes most of them easy. What a probe says of a user is said, here, by one that was fitted on the other half of the
    users, and so is the penalty chosen, by log-loss; the probe that is kept is fitted on all.
    """
    enough = table.quality[:, :best] >= table.quality[:, best : best + 1]
    _, owner = np.unique(table.owners, return_inverse=True)
    half = (np.random.default_rng(seed).permutation(owner.max() + 1) % 2)[owner]
    states = table.first.double().numpy()
    guesses = []
    for alpha in ALPHAS:
        logits = np.empty(enough.shape)
        for side in (0, 1):
            weight, bias = fit_probe(states[half != side], enough[half != side], alpha)
            logits[half == side] = states[half == side] @ weight + bias
        guesses.append((float(np.logaddexp(0, np.where(enough, -logits, logits)).sum()), alpha, logits))
    _, alpha, logits = min(guesses, key=lambda guess: guess[0])
    weight, bias = fit_probe(states, enough, alpha)
    sure = np.append(1 / (1 + np.exp(-logits)), np.zeros((len(logits), 1)), axis=1)  # the hard budget asks for nothing
    weight, bias = np.append(weight, np.zeros((len(weight), 1)), axis=1), np.append(bias, 0.0)
    found = []
    for easy, normal in combinations(range(best + 1), 2):
        heads = torch.from_numpy(weight[:, [easy, normal]]), torch.from_numpy(bias[[easy, normal]])
        walk = []
        for confidence in _confidences(sure[:, [each for each in (easy, normal) if each < best]]):
            depth = np.where(sure[:, normal] >= confidence, normal, best)
            depth = np.where(sure[:, easy] >= confidence, easy, depth)
            walk.append((Probe(*heads, easy, normal, best, confidence), depth))
        found.append(walk)
    return found


def fit_probe(states: Floats, enough: npt.NDArray[np.bool_], alpha: float) -> tuple[Floats, Floats]:
    """One logistic regression a depth: float64 ``[n, d]``, bool ``[n, D]`` → weight ``[d, D]`` and bias ``[D]``.

    A depth with fewer than five rows of either kind gets the odds of the two, the same for every state.
    """
    from sklearn.linear_model import LogisticRegression

    scale = Scaling.of(states)
    scaled, weights, biases = scale(states), [], []
    for label in enough.T:
        if min(label.sum(), (~label).sum()) < 5:
            weights.append(np.zeros(states.shape[1]))
            biases.append(float(np.log((label.sum() + 1) / ((~label).sum() + 1))))
            continue
        model = LogisticRegression(C=1 / alpha, max_iter=1000).fit(scaled, label)
        weights.append(model.coef_[0])
        biases.append(float(model.intercept_[0]))
    weight, bias = scale.fold(np.stack(weights), np.array(biases))
    return weight.T, bias
