"""A probe of classes: from a state before thinking, how probable it is that the thought will be of some kind."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forethought.errors import DataError
from forethought.instruments.controls import Floats, Folds, Ints, finite, grouped_folds, problems_of
from forethought.instruments.probe import Heads, Scaling, hold_out, same_width


@dataclass(frozen=True)
class ClassProbe:
    """A calibrated probability that a state belongs to a class, such as "will overthink".

    Attributes:
        layers: weight float64 ``[in, out]`` and bias ``[out]`` of each; one for logistic regression. ReLU between them,
            one logit at the end.
    """

    layers: tuple[Heads, ...]

    @classmethod
    def fit(
        cls,
        states: Any,
        labels: Any,
        groups: Any = None,
        hidden: Sequence[int] = (),
        alpha: float | None = None,
        calibration: float = 0.2,
        seed: int = 0,
    ) -> ClassProbe:
        """Fit, choose the penalty, calibrate by Platt's (1999) logistic map on problems kept out of the fit.

        Args:
            states: float ``[n, d]``.
            labels: bool or 0/1 ``[n]``.
            groups: the problem of each row; None: every row its own.
            hidden: widths of hidden layers; none is logistic regression, (128, 64) the MLP of the RSP code.
            alpha: L2 penalty on the weights of standardised states, beside the sum of losses (logistic) or beside their
                mean (MLP), as scikit-learn has them; None: the best of a grid by cross-validation over problems.
            calibration: share of the problems kept out of the fit.

        Raises:
            DataError: bad input, one class only (in the whole, or in what is held out), or too few problems.
        """
        x, y = finite("states", states, ndim=2), finite("labels", labels)
        x, label = finite("states", x, ndim=2, rows=len(y)), _binary(y)
        group = problems_of(groups, len(x))
        fitting, held_out = hold_out(group, calibration, 2, seed, "A calibrated probability")
        if np.ptp(label[held_out]) == 0 or np.ptp(label[fitting]) == 0:
            raise DataError(
                "The problems held out for calibration have one class only; give more rows of both classes."
            )
        scale = Scaling.of(x[fitting])
        z, target = scale(x[fitting]), label[fitting]
        if alpha is None:
            grid = [10.0**power for power in range(-3, 2)] if hidden else [10.0**power for power in range(-2, 5)]
            folds = [fold for fold in grouped_folds(group[fitting], seed=seed) if np.ptp(target[fold[0]]) > 0]
            losses = [_held_out_loss(z, target, folds, hidden, penalty, seed) for penalty in grid]
            alpha = grid[int(np.argmin(losses))]
        layers = _classify(z, target, hidden, alpha, seed)
        weight, bias = scale.fold(layers[0][0].T, layers[0][1])
        raw = cls(((weight.T, bias), *layers[1:]))
        slope, offset = _platt(raw.logits(x[held_out]), label[held_out])
        weight, bias = raw.layers[-1]
        return cls((*raw.layers[:-1], (weight * slope, bias * slope + offset)))

    def logits(self, states: Any) -> Floats:
        """Calibrated log odds of float ``[n, d]`` states, float64 ``[n]``.

        Raises:
            DataError: NaN, or states of another width.
        """
        x = finite("states", states, ndim=2)
        same_width(x, len(self.layers[0][0]))
        return _forward(self.layers, x)

    def probability(self, states: Any) -> Floats:
        """Of the class 1, float64 ``[n]``; raises as :meth:`logits`."""
        from scipy.special import expit

        return np.asarray(expit(self.logits(states)))

    def scores(self, states: Any, labels: Any) -> dict[str, float]:
        """``auc``, ``brier`` and ``log-loss`` on states that the probe has not seen.

        Raises:
            DataError: bad input, or one class only.
        """
        from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

        guess = self.probability(states)
        label = _binary(finite("labels", labels, rows=len(guess)))
        found = {"auc": roc_auc_score, "brier": brier_score_loss, "log-loss": log_loss}
        return {name: float(score(label, guess)) for name, score in found.items()}

    def roc(self, states: Any, labels: Any) -> tuple[Floats, Floats, Floats]:
        """False and true positive rates and their thresholds, as ``sklearn.metrics.roc_curve`` gives them.

        Raises:
            DataError: bad input, or one class only.
        """
        from sklearn.metrics import roc_curve

        guess = self.probability(states)
        false, true, at = roc_curve(_binary(finite("labels", labels, rows=len(guess))), guess)
        return false, true, at

    def state(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """All of it as tensors and numbers, for safetensors and JSON."""
        tensors: dict[str, Tensor] = {}
        for i, (weight, bias) in enumerate(self.layers):
            tensors |= {f"weight.{i}": torch.tensor(weight), f"bias.{i}": torch.tensor(bias)}
        return tensors, {"layers": float(len(self.layers))}

    @classmethod
    def from_state(cls, tensors: dict[str, Tensor], numbers: dict[str, float]) -> ClassProbe:
        """The probe that :meth:`state` described."""
        places = range(int(numbers["layers"]))
        return cls(
            tuple((tensors[f"weight.{i}"].double().numpy(), tensors[f"bias.{i}"].double().numpy()) for i in places)
        )


def _binary(labels: Floats) -> Ints:
    if set(np.unique(labels)) != {0.0, 1.0}:
        raise DataError(f"Labels must hold both 0 and 1, and hold {np.unique(labels)[:5].tolist()}.")
    return labels.astype(np.int64)


def _forward(layers: Sequence[Heads], x: Floats) -> Floats:
    for weight, bias in layers[:-1]:
        x = np.maximum(x @ weight + bias, 0)
    return np.asarray(x @ layers[-1][0] + layers[-1][1])[:, 0]


def _classify(z: Floats, y: Ints, hidden: Sequence[int], alpha: float, seed: int) -> tuple[Heads, ...]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier

    if not hidden:
        model = LogisticRegression(C=1 / alpha, max_iter=2000).fit(z, y)
        return ((model.coef_.T, model.intercept_),)
    # no early stop: scikit-learn's draws rows, not problems; the penalty is chosen on problems instead
    mlp = MLPClassifier(tuple(hidden), alpha=alpha, learning_rate_init=5e-4, max_iter=100, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "has not converged": a fixed number of epochs is meant
        mlp.fit(z, y)
    return tuple(zip(mlp.coefs_, mlp.intercepts_, strict=True))


def _held_out_loss(z: Floats, y: Ints, folds: Folds, hidden: Sequence[int], alpha: float, seed: int) -> float:
    total = 0.0
    for train, test in folds:
        logits = _forward(_classify(z[train], y[train], hidden, alpha, seed), z[test])
        total += float(np.logaddexp(0, np.where(y[test] == 1, -logits, logits)).sum())
    return total


def _platt(logits: Floats, y: Ints) -> tuple[float, float]:
    from sklearn.linear_model import LogisticRegression

    # a weak penalty: classes that the held-out problems part completely would send the slope to infinity
    spread = max(float(logits.std()), 1e-12)
    model = LogisticRegression(C=10.0).fit(logits[:, None] / spread, y)
    return float(model.coef_[0, 0]) / spread, float(model.intercept_[0])
