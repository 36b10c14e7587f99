"""A probe of lengths: from a state before thinking, how long the thought will be, and how sure that is.

States are standardised inside the fit, and the scaling is folded back into the weights, so that a probe is applied to
raw states: ``x @ w + b``. The penalty is chosen by cross-validation that keeps a problem's rows together, and the
interval is calibrated on problems that the fit has not seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from forethought.errors import DataError
from forethought.instruments.controls import Floats, Folds, Ints, finite, grouped_folds, problems_of

Kind = Literal["lasso", "ridge", "quantile", "tobit"]
Heads = tuple[Floats, Floats]
Basis = tuple[Floats, Floats, Floats]

KINDS: tuple[Kind, ...] = ("lasso", "ridge", "quantile", "tobit")  # a stored probe holds the place in this list


@dataclass(frozen=True)
class LengthProbe:
    """A linear predictor of thinking lengths with an interval.

    Attributes:
        kind: how it was fitted.
        weight: float64 ``[heads, d]`` on raw states; one head, or the low, the median and the high quantile.
        bias: float64 ``[heads]``.
        log: the heads predict the logarithm of the length.
        alpha: the penalty, in scikit-learn's units on standardised states. The RSP paper writes
            ``½‖Y − (HW + b)‖² + α‖W‖₁``, scikit-learn's Lasso divides the squares by 2n: α here is the paper's α / n.
        level: of the interval; 0.9 holds nine lengths of ten.
        margin: what the interval adds beyond the low and the high head, in tokens (or their logarithm).
        sigma: standard deviation of the noise where the kind is ``tobit``, in the units of the heads; else NaN.
    """

    kind: Kind
    weight: Floats
    bias: Floats
    log: bool
    alpha: float
    level: float
    margin: float
    sigma: float = math.nan

    @classmethod
    def fit(
        cls,
        states: Any,
        lengths: Any,
        kind: Kind = "ridge",
        groups: Any = None,
        censored: Any = None,
        alpha: float | None = None,
        log: bool = False,
        level: float = 0.9,
        calibration: float = 0.2,
        seed: int = 0,
    ) -> LengthProbe:
        """Fit, choose the penalty, calibrate the interval.

        Args:
            states: float ``[n, d]``, one read position of each row.
            lengths: float ``[n]``, tokens thought; means over rollouts, or one rollout a row.
            kind: ``lasso`` (the RSP paper's), ``ridge``, ``quantile`` (three L1-penalised quantile regressions by
                linear programming: minutes where n and d go into thousands), ``tobit`` (ridge by maximum likelihood
                where some lengths are only known to be longer; Tobin 1958).
            groups: the problem of each row; None: every row its own.
            censored: bool ``[n]``, true where a thought was cut off, so that its length is at least what is given.
            alpha: the penalty; None: the best of a grid by cross-validation over problems.
            log: fit the logarithm of the lengths; predictions are then medians, not means.
            level: of the interval.
            calibration: share of the problems kept out of the fit to calibrate the interval.

        The interval is split-conformal (Lei et al. 2018; for quantile heads Romano, Patterson & Candès 2019): it covers
        ``level`` of new problems exchangeable with these, whatever the truth. A cut-off length counts as covered where
        the upper end reaches it. Of several rows of one problem each counts in part, so that a problem counts once.

        Raises:
            DataError: NaN, mismatched or non-positive lengths, constant lengths, too few problems for the level, or
                censored rows with another kind than ``tobit``.
        """
        x, y, group, cut = _checked(states, lengths, groups, censored, kind, log)
        if not 0 < level < 1:
            raise DataError(f"level is {level:g}; an interval holds a share between 0 and 1, such as 0.9.")
        needed = math.ceil(level / (1 - level) - 1e-9)
        fitting, held_out = hold_out(group, calibration, needed, seed, f"An interval of {100 * level:g} %")
        scale = Scaling.of(x[fitting])
        z, target, cut_off = scale(x[fitting]), np.log(y[fitting]) if log else y[fitting], cut[fitting]
        if np.ptp(target) == 0:
            raise DataError("All lengths are equal, so that there is nothing to predict.")
        if alpha is None:
            alpha = _choose(kind, z, target, cut_off, grouped_folds(group[fitting], seed=seed))
        tails = ((1 - level) / 2, 0.5, (1 + level) / 2)
        (weight, bias), sigma = _fit(kind, z, target, cut_off, alpha, tails)
        weight, bias = scale.fold(weight, bias)

        heads = x[held_out] @ weight.T + bias
        real = np.log(y[held_out]) if log else y[held_out]
        score = np.where(cut[held_out], real - heads[:, -1], np.maximum(heads[:, 0] - real, real - heads[:, -1]))
        margin = conformal_quantile(score, group[held_out], level)
        return cls(kind, weight, bias, log, float(alpha), level, margin, sigma)

    def predict(self, states: Any) -> Floats:
        """Lengths of float ``[n, d]`` states, float64 ``[n]``, in tokens; for quantile heads the median.

        Raises:
            DataError: NaN, or states of another width.
        """
        middle = self._heads(states)[:, len(self.bias) // 2]
        return np.exp(middle) if self.log else middle

    def interval(self, states: Any) -> tuple[Floats, Floats]:
        """The calibrated lower and upper end of each length, float64 ``[n]``; the lower never below 0.

        Raises:
            DataError: as :meth:`predict`.
        """
        heads = self._heads(states)
        low, high = heads[:, 0] - self.margin, heads[:, -1] + self.margin
        high = np.maximum(low, high)  # quantile heads may cross
        return (np.exp(low), np.exp(high)) if self.log else (np.maximum(low, 0), np.maximum(high, 0))

    def _heads(self, states: Any) -> Floats:
        x = finite("states", states, ndim=2)
        same_width(x, self.weight.shape[1])
        return np.asarray(x @ self.weight.T + self.bias)

    def state(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """All of it as tensors and numbers, for safetensors and JSON; NaN is left out."""
        numbers = {"kind": float(KINDS.index(self.kind)), "log": float(self.log), "alpha": self.alpha}
        numbers |= {"level": self.level, "margin": self.margin}
        numbers |= {} if math.isnan(self.sigma) else {"sigma": self.sigma}
        return {"weight": torch.from_numpy(self.weight), "bias": torch.from_numpy(self.bias)}, numbers

    @classmethod
    def from_state(cls, tensors: dict[str, Tensor], numbers: dict[str, float]) -> LengthProbe:
        """The probe that :meth:`state` described."""
        weight, bias = (tensors[name].double().numpy() for name in ("weight", "bias"))
        rest = {name: numbers[name] for name in ("alpha", "level", "margin")}
        sigma = numbers.get("sigma", math.nan)
        return cls(KINDS[int(numbers["kind"])], weight, bias, bool(numbers["log"]), **rest, sigma=sigma)


def conformal_quantile(scores: Floats, groups: Ints, level: float) -> float:
    """The least score that at least ``(n + 1) · level`` of n problems do not exceed, each problem counting once.

    Source: Vovk, Gammerman & Shafer 2005. With one row a problem it is the ⌈(n + 1) level⌉-th smallest score.
    """
    _, place, rows = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(scores, kind="stable")
    counted = np.cumsum(1.0 / rows[place][order])
    reached = counted >= (len(rows) + 1) * level - 1e-9
    return float(scores[order][reached.argmax()]) if reached.any() else math.inf


def tobit(z: Floats, y: Floats, censored: Any, alpha: float, basis: Basis | None = None) -> tuple[Floats, float, float]:
    """Linear regression with normal noise where some lengths are lower bounds, with a ridge penalty.

    Maximises, with δ = w/σ, β = b/σ, γ = 1/σ and r = γy − zδ − β,
    ``Σ_seen (log γ − r²/2) + Σ_censored log Φ(−r) − α‖δ‖²/2``. In these letters it is concave (Olsen 1978), and without
    censored rows its weights are exactly those of scikit-learn's ``Ridge(alpha)``.

    Args:
        z: float64 ``[n, d]``, best standardised.
        y: float64 ``[n]``.
        censored: bool ``[n]``.
        alpha: ridge penalty.
        basis: ``np.linalg.svd(z, full_matrices=False)`` where it is at hand.

    Returns:
        Weights float64 ``[d]``, intercept, σ.
    """
    from scipy.optimize import minimize
    from scipy.special import log_ndtr

    centre, spread = y.mean(), y.std() or 1.0
    t, seen = (y - centre) / spread, ~np.asarray(censored, dtype=bool)
    # δ = turn θ, in whose letters every direction is about equally steep: some tens of steps instead of thousands
    left, size, right = basis or _svd(z)
    stretch = np.sqrt(np.maximum(size**2 + alpha, 1e-12 * size[0] ** 2 + 1e-300))
    features, turn, penalty = left * (size / stretch), right.T / stretch, alpha / stretch**2
    d = len(size)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        theta, beta, log_gamma = parameters[:d], parameters[d], parameters[d + 1]
        gamma = math.exp(log_gamma)
        r = gamma * t - features @ theta - beta
        tail = log_ndtr(-r[~seen])
        value = 0.5 * float(r[seen] @ r[seen]) - seen.sum() * log_gamma - tail.sum() + 0.5 * float(penalty @ theta**2)
        slope = r.copy()  # of the loss in r: r where seen, the inverse Mills ratio φ(r) / Φ(−r) where censored
        slope[~seen] = np.exp(-0.5 * r[~seen] ** 2 - 0.5 * math.log(2 * math.pi) - tail)
        last = gamma * float(slope @ t) - seen.sum()
        return value, np.concatenate([penalty * theta - features.T @ slope, [-slope.sum(), last]])

    # start where the best would be if cut-off lengths were ends
    ridge = features.T @ t
    noise = math.sqrt((float(((t - features @ ridge) ** 2).sum()) + float(penalty @ ridge**2)) / len(t) + 1e-12)
    first = np.concatenate([ridge / noise, [0.0, -math.log(noise)]])
    options = {"maxiter": 2000, "ftol": 1e-12, "gtol": 1e-7}
    best = minimize(loss, first, jac=True, method="L-BFGS-B", options=options).x
    sigma = math.exp(-best[d + 1]) * spread
    return turn @ best[:d] * sigma, float(best[d] * sigma + centre), float(sigma)


@dataclass(frozen=True)
class Scaling:
    """Standardisation of columns, ``(x − mean) / scale``; one that never changes becomes zero."""

    mean: Floats
    scale: Floats

    @classmethod
    def of(cls, x: Floats) -> Scaling:
        """From float64 ``[n, d]``."""
        mean, spread = x.mean(axis=0), x.std(axis=0)
        # rounding leaves a constant column a spread of some 1e-16 of its size
        return cls(mean, np.where(spread > 1e-12 * (1e-30 + np.abs(mean)), spread, np.inf))

    def __call__(self, x: Floats) -> Floats:
        return np.asarray((x - self.mean) / self.scale)

    def fold(self, weight: Floats, bias: Floats) -> Heads:
        """Weights ``[heads, d]`` on standardised columns as weights on raw ones."""
        raw = weight / self.scale
        return raw, bias - raw @ self.mean


def _checked(
    states: Any, lengths: Any, groups: Any, censored: Any, kind: str, log: bool
) -> tuple[Floats, Floats, Ints, Any]:
    y = finite("lengths", lengths)
    x = finite("states", states, ndim=2, rows=len(y))
    cut = np.zeros(len(y), dtype=bool) if censored is None else finite("censored", censored, rows=len(y)).astype(bool)
    if kind not in KINDS:
        raise DataError(f"There is no probe {kind!r}; take one of {', '.join(KINDS)}.")
    if cut.any() and kind != "tobit":
        raise DataError(f"{int(cut.sum())} lengths are censored, which a {kind} probe would take for ends; use tobit.")
    if cut.all():
        raise DataError("All lengths are censored, so that no thought was seen to end; raise the cap.")
    if y.min() < 0 or (log and y.min() <= 0):
        raise DataError(f"A length is {y.min():g}; lengths are {'positive' if log else 'not negative'}.")
    return x, y, problems_of(groups, len(y)), cut


def same_width(x: Floats, width: int) -> None:
    """Refuse states of another width than the probe's; raises DataError."""
    if x.shape[1] != width:
        raise DataError(f"The states are {x.shape[1]} wide, the probe was fitted on {width}; read the same site.")


def hold_out(groups: Ints, share: float, needed: int, seed: int, what: str) -> tuple[Ints, Ints]:
    """Rows to fit and rows to calibrate on, no problem in both.

    Args:
        groups: the problem of each row.
        share: of the problems that are held out, but never fewer than ``needed``.
        what: needs them, for the message.

    Raises:
        DataError: fewer than two problems would be left to fit.
    """
    problems = np.unique(groups)
    held_out = max(needed, round(share * len(problems)))
    if len(problems) - held_out < 2:
        raise DataError(
            f"{what} needs {needed} problems for calibration and 2 or more to fit; there are {len(problems)}."
        )
    kept_out = np.isin(groups, np.random.default_rng(seed).permutation(problems)[:held_out])
    return np.flatnonzero(~kept_out), np.flatnonzero(kept_out)


def _fit(
    kind: Kind, z: Floats, y: Floats, cut: Any, alpha: float, tails: tuple[float, ...], basis: Basis | None = None
) -> tuple[Heads, float]:
    from sklearn.linear_model import Lasso, QuantileRegressor, Ridge

    if kind == "tobit":
        weight, bias, sigma = tobit(z, y, cut, alpha, basis)
        return (weight[None], np.array([bias])), sigma
    if kind == "quantile":
        models = [QuantileRegressor(quantile=tail, alpha=alpha, solver="highs").fit(z, y) for tail in tails]
    else:
        models = [(Lasso(alpha=alpha, max_iter=10_000) if kind == "lasso" else Ridge(alpha=alpha)).fit(z, y)]
    return (np.stack([m.coef_ for m in models]), np.array([m.intercept_ for m in models])), math.nan


def _choose(kind: Kind, z: Floats, y: Floats, cut: Any, folds: Folds) -> float:
    """The penalty of least held-out loss: squares, pinball at the median, or minus the censored log-likelihood."""
    from scipy.stats import norm
    from sklearn.linear_model import LassoCV

    if kind == "lasso":
        return float(LassoCV(alphas=30, cv=folds, max_iter=10_000).fit(z, y).alpha_)
    if kind == "quantile":
        grid = [0.003, 0.01, 0.03, 0.1, 0.3]
    else:
        grid = [len(y) * 10.0**power for power in range(-4, 4)]

    losses = np.zeros(len(grid))
    for train, test in folds:
        basis = _svd(z[train]) if kind == "tobit" else None  # one for all penalties
        for i, alpha in enumerate(grid):
            (weight, bias), sigma = _fit(kind, z[train], y[train], cut[train], alpha, (0.5,), basis)
            gap = y[test] - (z[test] @ weight.T + bias)[:, 0]
            if kind == "tobit":
                seen = ~cut[test]
                losses[i] -= norm.logpdf(gap[seen], scale=sigma).sum() + norm.logsf(gap[~seen], scale=sigma).sum()
            else:
                losses[i] += float(gap @ gap) if kind == "ridge" else float(np.abs(gap).sum())
    return grid[int(losses.argmin())]


def _svd(z: Floats) -> Basis:
    left, size, right = np.linalg.svd(z, full_matrices=False)
    return left, size, right
