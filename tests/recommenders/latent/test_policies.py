"""What is chosen where the answer is known: planted difficulty, none at all, and chains of one to four hops."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import gamma

from forethought.nn.halting import Divergence, Entropy, Probe, unroll_until
from forethought.recommenders.latent.policies import (
    Policy,
    Table,
    Watch,
    at,
    choose,
    depths,
    fit_probe,
    judge,
    settings,
)

HOPS = Path(__file__).resolve().parents[3] / "benchmarks" / "hops.py"


def planted(users: int = 1200, seed: int = 0, blind: bool = False, known: bool = True) -> tuple[Table, Any]:
    """Users whose answer is right from 0, 1 or 3 steps on, and what r_0 and the signals tell of them."""
    draw = np.random.default_rng(seed)
    needed = draw.choice([0, 1, 3], users, p=[0.5, 0.3, 0.2])
    quality = (np.arange(4) >= needed[:, None]).astype(np.float64)
    first = draw.normal(size=(users, 6))
    if not blind:
        first[:, 2] += 3.0 * needed
    entropy = np.where(np.arange(3) >= needed[:, None], 0.1, 2.0) + draw.uniform(0, 0.5, (users, 3))
    divergence = np.concatenate([np.full((users, 1), np.inf), entropy[:, :2]], axis=1)  # a step after it was reached
    if not known:
        entropy, divergence[:, 1:] = draw.uniform(size=(users, 3)), draw.uniform(size=(users, 2))
    return Table(quality, entropy, divergence, torch.from_numpy(first).float(), np.arange(users)), needed


def by_name(policies: tuple[Policy, ...]) -> dict[str, Policy]:
    return {policy.name: policy for policy in policies}


def test_planted_difficulty_is_found() -> None:
    table, needed = planted()
    policies, best = choose(table, loss=0.01)
    assert best == 3
    found = by_name(policies)
    assert list(found) == ["fixed", "probe", "entropy", "divergence"]
    assert (found["fixed"].rule, found["fixed"].most) == (None, 3)  # at 1 step a fifth of the users is lost
    other, theirs = planted(seed=1)  # users that nothing was chosen on
    for name, least in (("entropy", 0.9), ("divergence", 1.7), ("probe", 0.9)):
        policy = judge(name, found[name].rule, 3, other)
        assert policy.quality >= 0.98
        assert least - 0.1 <= policy.steps <= least + 0.25, name  # 0.9 on average is what they need
        steps = depths(found[name].rule, 3, other)
        assert [steps[theirs == kind].mean() for kind in (0, 1, 3)] == sorted(
            steps[theirs == kind].mean() for kind in (0, 1, 3)
        )
    probe = found["probe"].rule
    assert isinstance(probe, Probe)
    assert (probe.easy, probe.normal, probe.hard) == (0, 1, 3)
    assert needed.mean() == pytest.approx(0.9, abs=0.1)


def spared(policy: Policy, table: Table, loss: float, level: float) -> float:
    """The lower bound of what is kept beyond what has to be, written out; each user has one case."""
    best = table.quality[:, table.quality.mean(axis=0).argmax()]
    moved = at(table.quality, depths(policy.rule, policy.most, table)) - best
    spared = moved.sum() + loss * best.sum()
    if level == 0.5:
        return float(spared)
    events = np.append(-moved[moved < 0], best[best > 0].mean())
    scale = (events**2).sum() / events.sum()
    lost = gamma.ppf(level, events.sum() / scale, scale=scale) - events[:-1].sum()
    won = moved[moved > 0]
    scale = (won**2).sum() / won.sum() if len(won) else 1.0
    won = won.sum() - (gamma.ppf(1 - level, won.sum() / scale, scale=scale) if len(won) else 0.0)
    return float(spared - np.sqrt(lost**2 + won**2))


@pytest.mark.parametrize("level", [0.5, 0.8, 0.99])
@pytest.mark.parametrize("loss", [0.0, 0.01, 0.2, 0.6])
def test_a_rule_is_turned_until_it_no_longer_keeps_what_is_to_be_kept(loss: float, level: float) -> None:
    table, _ = planted(known=False)
    policies, best = choose(table, loss, level, named=True)
    found = by_name(policies)
    for name, kind in (("entropy", Entropy(0)), ("divergence", Divergence(0))):
        tried = [judge(name, rule, best, table) for rule in settings(kind, best, table)]
        place = tried.index(found[name])
        assert all(spared(each, table, loss, level) >= 0 for each in tried[1 : place + 1])
        assert place == len(tried) - 1 or spared(tried[place + 1], table, loss, level) < 0
        assert [each.steps for each in tried] == sorted((each.steps for each in tried), reverse=True)
    fixed = found["fixed"]
    assert fixed.most == best or spared(fixed, table, loss, level) >= 0
    assert fixed.most == 0 or spared(judge("fixed", None, fixed.most - 1, table), table, loss, level) < 0
    for stricter in (choose(table, loss, 0.999, named=True), choose(table, loss, level)):  # of four rules one is taken
        other = by_name(stricter[0])
        assert all(found[name].steps <= other[name].steps for name in ("fixed", "entropy", "divergence"))


@pytest.mark.slow
@pytest.mark.parametrize("nested", [False, True])
def test_the_confidence_is_what_it_is_called(nested: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no signal tells whom to stop, a setting keeps what its share of stopped users keeps, which is known here.

    Most users are found by no depth and few move at all, as in real rankings: by the normal law, each rule by itself,
    more than two in five of the taken rules lose more than they may.
    """
    monkeypatch.setattr("forethought.recommenders.latent.policies._probes", lambda table, best, seed: [[(None, full)]])
    keeps, full, wrong = np.array([0.8, 0.88, 0.94, 1.0]), np.full(2000, 3), 0
    for seed in range(150):
        draw = np.random.default_rng(seed)
        found = draw.random(2000) < 0.15
        gain = found * draw.choice(1 / np.log2(np.arange(2, 12)), 2000)
        stays = draw.random((2000, 1 if nested else 4)) < keeps
        first_steps = np.concatenate([np.full((2000, 1), np.inf), draw.random((2000, 2))], axis=1)
        table = Table(gain[:, None] * stays, draw.random((2000, 3)), first_steps, torch.zeros(2000, 2), np.arange(2000))
        policies, best = choose(table, 0.01, 0.8)
        taken = min(policies, key=lambda policy: policy.steps)
        share = np.bincount(depths(taken.rule, taken.most, table), minlength=4) / 2000
        wrong += share @ keeps < 0.99 * keeps[best]
    assert wrong <= 0.2 * 150


def test_a_signal_that_tells_nothing_saves_no_more_than_lots() -> None:
    """Depths dealt by lot keep 1 - loss where at most a loss of the users, and no more, is stopped too early."""
    table, _ = planted(blind=True, known=False, users=4000)
    policies, _ = choose(table, loss=0.01)
    other, _ = planted(blind=True, known=False, users=4000, seed=1)
    for name, policy in by_name(policies).items():
        if name != "fixed":
            assert judge(name, policy.rule, 3, other).steps > 2.6


def test_the_probe_is_judged_by_users_it_was_not_fitted_on() -> None:
    """More columns of noise than users tell a probe all of the users it was fitted on, and nothing of others."""
    table, _ = planted(users=120, blind=True)
    noise = torch.randn(120, 200, generator=torch.Generator().manual_seed(0))
    table = Table(table.quality, table.entropy, table.divergence, noise, table.owners)
    weight, bias = fit_probe(noise.double().numpy(), table.quality[:, :3] > 0, 10.0)
    fitted = (noise.double().numpy() @ weight + bias > 0) == (table.quality[:, :3] > 0)
    assert fitted.mean() > 0.97
    probe = by_name(choose(table, loss=0.01)[0])["probe"]
    assert probe.steps > 2.3


def test_cases_of_one_user_stay_on_one_side(monkeypatch: pytest.MonkeyPatch) -> None:
    table, _ = planted(users=400)
    owners = np.arange(400) // 4
    table = Table(table.quality, table.entropy, table.divergence, table.first, owners)
    row, seen = {states.tobytes(): case for case, states in enumerate(table.first.double().numpy())}, []

    def recorded(states: Any, enough: Any, alpha: float) -> Any:
        seen.append({int(owners[row[state.tobytes()]]) for state in states})
        return fit_probe(states, enough, alpha)

    monkeypatch.setattr("forethought.recommenders.latent.policies.fit_probe", recorded)
    choose(table)
    one, other, *_, whole = seen
    assert not one & other
    assert one | other == whole == set(range(100))
    assert len(one) == len(other) == 50


def test_where_thinking_brings_nothing_nobody_thinks() -> None:
    table, _ = planted()
    flat = Table(np.ones_like(table.quality), table.entropy, table.divergence, table.first, table.owners)
    assert choose(flat) == ((Policy("fixed", 0, None, 0.0, 1.0),), 0)
    one = Table(table.quality[:, :2], table.entropy[:, :1], table.divergence[:, :1], table.first, table.owners)
    found = by_name(choose(one)[0])  # of one step the divergence knows nothing before it is taken
    assert found["divergence"].rule == Divergence(0.0)
    assert found["entropy"].steps < 1


def test_half_a_level_goes_by_the_mean_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[float] = []
    monkeypatch.setattr(
        "forethought.recommenders.latent.policies._spared", lambda *given: levels.append(given[-1]) or 0.0
    )
    choose(planted()[0], level=0.5)
    assert set(levels) == {0.5}


def test_a_depth_that_is_enough_for_nearly_all_has_no_weights() -> None:
    states, enough = np.random.default_rng(0).normal(size=(100, 3)), np.ones((100, 2), dtype=bool)
    enough[:40, 1] = False
    enough[:4, 0] = False
    weight, bias = fit_probe(states, enough, 1.0)
    assert weight[:, 0].tolist() == [0, 0, 0]
    assert 1 / (1 + np.exp(-bias[0])) == pytest.approx(97 / 102)
    assert np.abs(weight[:, 1]).min() > 0


@pytest.mark.slow
def test_chains_are_followed_as_far_as_they_go() -> None:
    """A token a hop: with h hops the answer stands after h - 1 steps, and a further step leaves it where it is.

    So the divergence lets go after h steps, 3 at most: (1 + 2 + 3 + 3) / 4 of 3, a quarter saved at no loss, which is
    all that a rule can save that has to see a step change nothing. The states on the way are no early answers, yet just
    as sure, so entropy cannot tell the one from the other; nor is the number of hops linear in r_0.
    """
    hops = runpy.run_path(str(HOPS))
    torch.manual_seed(0)
    task, draws = hops["Task"](hops["MODELS"]["append, K = 3"]()), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(task.parameters(), 1e-3)
    for _ in range(600):
        edges, start, goal, _ = hops["cases"](hops["BATCH"], draws)
        optimiser.zero_grad()
        task.loss(task.vectors(edges, start), goal).backward()
        optimiser.step()

    @torch.no_grad()
    def look(seed: int) -> tuple[Table, Any]:
        edges, start, goal, far = hops["cases"](2000, torch.Generator().manual_seed(seed))
        vectors, watch = task.vectors(edges, start), Watch()
        newest = torch.full((2000, 1), vectors.shape[1] - 1)
        chain = task.states(vectors, 3)
        right = (task.head(chain).argmax(dim=-1) == goal[:, None]).double().numpy()
        unroll_until(
            task.encoder, [task.encoder.encode(vectors, newest)], 3, watch, lambda states: states[:, -1],
            lambda state: task.head(state).log_softmax(dim=-1),
        )  # fmt: skip
        return watch.table(right, np.arange(2000)), far.numpy()

    valid, _ = look(10**6)
    test, far = look(10**6 + 1)
    policies, best = choose(valid, loss=0.01)
    assert best == 3
    full = test.quality[:, 3].mean()
    assert full >= 0.97
    found = by_name(policies)
    depth = depths(found["divergence"].rule, 3, test)
    assert at(test.quality, depth).mean() >= 0.99 * full
    assert depth.mean() / 3 < 0.8
    assert [depth[far == hop].mean() for hop in (1, 2, 3, 4)] == pytest.approx([1, 2, 3, 3], abs=0.15)
    lots = np.random.default_rng(0).permutation(depth)
    assert at(test.quality, lots).mean() < 0.85 * full
    for name in ("entropy", "probe"):
        assert judge(name, found[name].rule, 3, test).steps / 3 > 0.85
