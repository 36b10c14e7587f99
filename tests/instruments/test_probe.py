"""Probes find what was planted, in raw units; intervals cover; cut-off lengths are taken for what they are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import norm
from sklearn.linear_model import Lasso, LogisticRegression, Ridge

from forethought.errors import DataError
from forethought.instruments.class_probe import ClassProbe
from forethought.instruments.controls import r2
from forethought.instruments.probe import KINDS, LengthProbe, conformal_quantile, tobit


def planted(rows: int, seed: int = 0, width: int = 12, noise: float = 100.0):
    """States of very different scales and offsets, lengths linear in two of them."""
    random = np.random.default_rng(seed)
    scales = 10.0 ** np.linspace(-2, 2, width)
    states = 5 * scales + scales * random.normal(size=(rows, width))
    weight = np.zeros(width)
    weight[1], weight[-2] = 300 / scales[1], -200 / scales[-2]
    lengths = 3000 + (states - 5 * scales) @ weight + noise * random.normal(size=rows)
    return states, lengths, weight


@pytest.mark.parametrize("kind", KINDS)
def test_raw_weights_are_the_planted_ones(kind):
    states, lengths, weight = planted(400, noise=20)
    probe = LengthProbe.fit(states, lengths, kind)
    middle = probe.weight[len(probe.bias) // 2]
    assert middle * states.std(axis=0) == pytest.approx(weight * states.std(axis=0), abs=12)
    assert probe.predict(states) == pytest.approx(states @ middle + probe.bias[len(probe.bias) // 2])
    new, real, _ = planted(300, seed=1, noise=20)
    assert r2(probe.predict(new), real) > 0.98


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_cover_new_problems(kind):
    covered, widths = [], []
    new, real, _ = planted(2000, seed=99)
    for seed in range(6 if kind == "quantile" else 12):
        states, lengths, _ = planted(200, seed=seed)
        probe = LengthProbe.fit(
            states, lengths, kind, alpha={"lasso": 5.0, "quantile": 0.03}.get(kind, 10.0), seed=seed
        )
        low, high = probe.interval(new)
        covered.append(((low <= real) & (real <= high)).mean())
        widths.append((high - low).mean())
    assert 0.86 < np.mean(covered) < 0.96
    assert np.mean(widths) < 500  # the noise alone takes 330


def test_quantile_intervals_widen_where_lengths_scatter():
    random = np.random.default_rng(0)
    x = random.uniform(0, 1, (600, 1))
    lengths = 2000 + x[:, 0] * 500 + (20 + 400 * x[:, 0]) * random.normal(size=600)
    probe = LengthProbe.fit(x, lengths, "quantile")
    low, high = probe.interval([[0.05], [0.95]])
    assert (high - low)[1] > 3 * (high - low)[0]


def test_the_penalty_of_the_paper_is_n_times_scikit_learns():
    """½‖y − Xw‖² + α‖w‖₁ at α = n·α_sklearn is least at scikit-learn's solution: the subgradient holds zero."""
    random = np.random.default_rng(0)
    x = random.normal(size=(80, 6))
    y = x @ np.array([3.0, -2, 0, 0, 0.05, 0]) + 0.1 * random.normal(size=80)
    x, y = x - x.mean(axis=0), y - y.mean()
    model = Lasso(alpha=0.3, tol=1e-12, max_iter=100_000).fit(x, y)
    slope, paper = x.T @ (y - x @ model.coef_), 0.3 * len(y)
    kept = model.coef_ != 0
    assert slope[kept] == pytest.approx(paper * np.sign(model.coef_[kept]))
    assert (np.abs(slope[~kept]) <= paper).all()
    assert not kept.all()


def test_without_censoring_tobit_is_ridge():
    states, lengths, _ = planted(60)
    z = (states - states.mean(axis=0)) / states.std(axis=0)
    weight, bias, sigma = tobit(z, lengths, np.zeros(60, dtype=bool), 7.0)
    ridge = Ridge(alpha=7.0).fit(z, lengths)
    assert weight == pytest.approx(ridge.coef_, rel=1e-3, abs=0.05)
    assert bias == pytest.approx(ridge.intercept_, rel=1e-5)
    assert 50 < sigma < 200


def test_tobit_is_the_maximum_of_its_likelihood():
    """Brute force in the plain letters w, b, log σ, from another start."""
    random = np.random.default_rng(1)
    z = random.normal(size=(80, 2))
    y = z @ np.array([2.0, -1.0]) + 3 + random.normal(size=80)
    cut = y > 3.5
    y = np.minimum(y, 3.5)

    def loss(p):
        w, b, sigma = p[:2], p[2], math.exp(p[3])
        gap = y - z @ w - b
        seen = norm.logpdf(gap[~cut], scale=sigma).sum() + norm.logsf(gap[cut], scale=sigma).sum()
        return -seen + 0.5 * 3.0 * w @ w / sigma**2

    best = minimize(loss, np.zeros(4), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10, "maxiter": 5000})
    weight, bias, sigma = tobit(z, y, cut, 3.0)
    assert [*weight, bias, math.log(sigma)] == pytest.approx(best.x, abs=1e-3)


@pytest.mark.parametrize("log", [False, True])
def test_tobit_finds_what_ignoring_or_dropping_cut_off_rows_does_not(log):
    """Half the thoughts are cut off at the cap."""
    random = np.random.default_rng(2)
    states = random.normal(size=(1500, 4))
    weight = np.array([0.5, -0.3, 0.2, 0.0]) if log else np.array([1000.0, -600, 400, 0])
    true = states @ weight + (7.5 if log else 5000) + (0.4 if log else 800) * random.normal(size=1500)
    true = np.exp(true) if log else np.maximum(true, 0)
    cap = float(np.median(true))
    seen, cut = np.minimum(true, cap), true > cap

    def error(probe):
        return np.linalg.norm(probe.weight[-1] - weight) / np.linalg.norm(weight)

    honest = LengthProbe.fit(states, seen, "tobit", censored=cut, log=log)
    ignoring = LengthProbe.fit(states, seen, "ridge", log=log)
    dropping = LengthProbe.fit(states[~cut], seen[~cut], "ridge", log=log)
    assert error(honest) < 0.08
    assert error(ignoring) > 0.3
    assert error(dropping) > 0.3
    assert honest.sigma == pytest.approx(0.4 if log else 800, rel=0.1)
    low, high = honest.interval(states)
    assert (np.minimum(low, seen) <= high).all()
    covered = np.where(cut, high >= cap, (low <= seen) & (seen <= high))
    assert covered.mean() == pytest.approx(0.9, abs=0.04)
    assert r2(honest.predict(states), true) > r2(ignoring.predict(states), true) + 0.1


def test_with_nothing_to_find_the_penalty_is_large():
    random = np.random.default_rng(3)
    states, lengths = random.normal(size=(200, 100)), random.gamma(3, 500, 200)
    for kind in ("ridge", "lasso"):
        probe = LengthProbe.fit(states, lengths, kind)
        assert np.std(probe.predict(states)) < 0.25 * lengths.std()


def test_the_penalty_is_chosen_across_problems():
    """Each problem has 8 rows of nearly one state and one length: folds of rows would reward remembering problems."""
    random = np.random.default_rng(4)
    groups = np.repeat(np.arange(40), 8)
    states = np.repeat(random.normal(size=(40, 60)), 8, axis=0) + 0.01 * random.normal(size=(320, 60))
    lengths = np.repeat(random.gamma(3, 500, 40), 8)
    careful = LengthProbe.fit(states, lengths, groups=groups)
    careless = LengthProbe.fit(states, lengths)
    assert careful.alpha > 100 * careless.alpha
    assert careful.margin > 3 * careless.margin


def test_a_column_that_never_changes_has_no_weight():
    states, lengths, _ = planted(100)
    states[:, 3] = 0.1
    probe = LengthProbe.fit(states, lengths)
    assert probe.weight[0, 3] == 0
    assert np.isfinite(probe.predict(states)).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 30), st.sampled_from([0.5, 0.8, 0.9]))
def test_the_conformal_quantile_is_an_order_statistic(seed, rows, level):
    scores = np.random.default_rng(seed).normal(size=rows)
    rank = math.ceil((rows + 1) * level - 1e-9)
    expected = math.inf if rank > rows else np.sort(scores)[rank - 1]
    assert conformal_quantile(scores, np.arange(rows), level) == expected
    # rows that a problem repeats change nothing
    assert conformal_quantile(np.repeat(scores, 3), np.repeat(np.arange(rows), 3), level) == expected


def planted_classes(rows: int, seed: int = 0):
    random = np.random.default_rng(seed)
    states = 40 + 10 * random.normal(size=(rows, 5))
    logits = 0.15 * (states[:, 0] - 40) - 0.1 * (states[:, 1] - 40)
    return states, random.random(rows) < 1 / (1 + np.exp(-logits)), logits


def test_probabilities_are_those_planted():
    states, labels, _ = planted_classes(3000)
    probe = ClassProbe.fit(states, labels)
    new, real, logits = planted_classes(3000, seed=1)
    assert np.abs(probe.logits(new) - logits).mean() < 0.3
    scores = probe.scores(new, real)
    assert scores["log-loss"] < 1.02 * -np.mean(np.log(1 / (1 + np.exp(np.where(real, -logits, logits)))))
    assert scores["auc"] == pytest.approx(0.84, abs=0.04)
    false, true, at = probe.roc(new, real)
    assert np.trapezoid(true, false) == pytest.approx(scores["auc"])
    assert len(false) == len(at)


def test_calibration_mends_a_probe_that_is_too_sure():
    """Without a penalty, 100 rows of width 60 are parted completely; held-out problems bring the odds back to earth."""
    random = np.random.default_rng(5)
    states = random.normal(size=(150, 60))
    labels = random.random(150) < 1 / (1 + np.exp(-states[:, 0]))
    new = random.normal(size=(4000, 60))
    real = random.random(4000) < 1 / (1 + np.exp(-new[:, 0]))
    sure = LogisticRegression(C=1e6, max_iter=5000).fit(states, labels).predict_proba(new)[:, 1]
    probe = ClassProbe.fit(states, labels, alpha=1e-6, calibration=0.3)
    scores = probe.scores(new, real)
    assert scores["brier"] < np.mean((sure - real) ** 2) - 0.05
    assert scores["log-loss"] < np.log(2) + 0.05  # never far worse than knowing nothing


def test_a_network_finds_what_no_line_does():
    random = np.random.default_rng(6)
    states = 3 + random.normal(size=(1200, 3))
    labels = (states[:, 0] - 3) * (states[:, 1] - 3) > 0
    network = ClassProbe.fit(states, labels, hidden=(32,), alpha=0.01)
    line = ClassProbe.fit(states, labels)
    new = 3 + random.normal(size=(1000, 3))
    real = (new[:, 0] - 3) * (new[:, 1] - 3) > 0
    assert line.scores(new, real)["auc"] < 0.65
    assert network.scores(new, real)["auc"] > 0.9
    tensors, numbers = network.state()
    assert ClassProbe.from_state(tensors, numbers).logits(new) == pytest.approx(network.logits(new))


@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_probe_is_the_probe(kind, tmp_path):
    import json

    from safetensors.torch import load_file, save_file

    states, lengths, _ = planted(120)
    probe = LengthProbe.fit(states, lengths, kind, alpha=0.1, log=kind == "tobit")
    tensors, numbers = probe.state()
    save_file(tensors, tmp_path / "probe.safetensors")
    text = json.dumps(numbers, allow_nan=False)
    again = LengthProbe.from_state(load_file(tmp_path / "probe.safetensors"), json.loads(text))
    assert again.kind == kind
    assert (again.predict(states) == probe.predict(states)).all()
    assert (again.interval(states)[1] == probe.interval(states)[1]).all()


def test_tensors_of_any_type_are_read():
    states, lengths, _ = planted(60)
    probe = LengthProbe.fit(torch.tensor(states, dtype=torch.float32), torch.tensor(lengths))
    half = torch.tensor(states).bfloat16()
    assert probe.predict(half) == pytest.approx(probe.predict(half.double().numpy()))


X, Y = np.random.default_rng(0).normal(size=(40, 3)), np.linspace(1, 2, 40)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: LengthProbe.fit(np.where(X > 2, np.nan, X), Y), "states holds NaN"),
        (lambda: LengthProbe.fit(X, Y[1:]), "states has 40 rows .* 39"),
        (lambda: LengthProbe.fit(X, np.ones(40)), "equal"),
        (lambda: LengthProbe.fit(X, Y - 1.5), "not negative"),
        (lambda: LengthProbe.fit(X, Y - 1, log=True), "positive"),
        (lambda: LengthProbe.fit(X, Y, "ols"), "lasso, ridge"),
        (lambda: LengthProbe.fit(X, Y, censored=Y > 1.5), "use tobit"),
        (lambda: LengthProbe.fit(X, Y, "tobit", censored=Y > 0), "raise the cap"),
        (lambda: LengthProbe.fit(X, Y, groups=np.arange(40) % 8), "needs 9 problems .* there are 8"),
        (lambda: LengthProbe.fit(X, Y, groups=np.zeros(40)), "there are 1"),
        (lambda: LengthProbe.fit(X, Y, level=1.0), "level is 1; an interval"),
        (lambda: LengthProbe.fit(X, Y, level=0.0), "level is 0; an interval"),
        (lambda: LengthProbe.fit(X, Y, alpha=1.0).predict(X[:, :2]), "2 wide"),
        (lambda: ClassProbe.fit(X, np.ones(40)), "both 0 and 1"),
        (lambda: ClassProbe.fit(X, np.arange(40) % 3), "both 0 and 1"),
        (lambda: ClassProbe.fit(X, np.arange(40) < 1), "one class only"),
        (lambda: ClassProbe.fit(X, np.arange(39) < 9), "40 rows"),
    ],
)
def test_bad_input_is_said_in_one_sentence(call, said):
    with pytest.raises(DataError, match=said):
        call()
