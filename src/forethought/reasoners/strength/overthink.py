"""Detect before the first token that a thought will be among the longest, whether or not its problem warrants that."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from forethought.atomic import atomic_folder
from forethought.errors import DataError
from forethought.instruments.artefact import Instrument
from forethought.instruments.class_probe import ClassProbe
from forethought.instruments.controls import prompt_length_baseline
from forethought.instruments.sites import Site
from forethought.reasoners.strength.analysis import clean
from forethought.reasoners.strength.collection import Collection


@dataclass(frozen=True)
class Overthinking:
    """A detector and what it was held to.

    Attributes:
        site: where it reads.
        threshold: tokens; a problem whose mean thought is longer is a positive.
        probe: the detector; its probabilities are calibrated.
        numbers: ``threshold``; the share of rollouts that were ``censored``; on the test problems ``positives``,
            ``auc``, ``brier``, ``log-loss``; the ``auc`` of the baselines ``prompt-length`` and ``bag-of-tokens``;
            ``length-controlled/auc``, over pairs of problems whose prompts are equally long.
        curves: false and true positive rates and the area, by name.
        reliability: mean probability given, and share that came true, in ten bins.
    """

    site: Site
    threshold: float
    probe: ClassProbe
    numbers: dict[str, float]
    curves: dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], float]]
    reliability: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


def detect(collection: Collection, *, share: float = 0.25, seed: int = 0) -> Overthinking:
    """Fit a detector of the problems on which a model thinks longest.

    The threshold is the quantile ``1 - share`` of the mean lengths on the problems that fit. The site is the one with
    the best AUC on the problems to choose by.

    Raises:
        DataError: one class only in a part.
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    if not 0 < share < 1:
        raise DataError(f"share is {share}; it has to lie between 0 and 1.")
    tokens, censored = collection.lengths()
    mean = tokens.mean(axis=1)
    fit, choose, test = (collection.part(name) for name in ("fit", "choose", "test"))
    threshold = float(np.quantile(mean[fit], 1 - share))
    label = mean > threshold
    for name, part in (("fit", fit), ("choose", choose), ("test", test)):
        if label[part].all() or not label[part].any():
            raise DataError(f"All problems to {name} are of one class at {threshold:g} tokens; collect more.")
    best: tuple[float, Site, ClassProbe] | None = None
    for site in collection.states.sites:
        states = collection.states.at(site)
        if bool((states[fit] == states[fit[0]]).all()):
            continue
        probe = ClassProbe.fit(states[fit], label[fit], seed=seed)
        area = probe.scores(states[choose], label[choose])["auc"]
        if best is None or area > best[0]:
            best = (area, site, probe)
    if best is None:
        raise DataError("The states of all prompts are equal at every site; read another position.")
    _, site, probe = best
    given = probe.probability(collection.states.at(site)[test])
    numbers = {"positives": float(label[test].mean()), "threshold": threshold, "censored": float(censored.mean())}
    numbers |= probe.scores(collection.states.at(site)[test], label[test])
    samples = tokens.shape[1]
    prompts = [collection.rollouts.rollouts[index * samples].prompt for index in range(len(mean))]
    lengths = np.array([len(prompt) for prompt in prompts])
    used = np.unique(np.concatenate(prompts))
    bags = np.zeros((len(prompts), len(used)))
    for row, prompt in enumerate(prompts):
        np.add.at(bags[row], np.searchsorted(used, prompt), 1)
    curves = {}
    for name, guess in (
        ("probe", given),
        ("prompt-length", prompt_length_baseline(lengths[fit], label[fit], lengths[test], seed=seed)),
        ("bag-of-tokens", ClassProbe.fit(bags[fit], label[fit], seed=seed).probability(bags[test])),
    ):
        false, true, _ = roc_curve(label[test], guess)
        curves[name] = (false, true, float(roc_auc_score(label[test], guess)))
        if name != "probe":
            numbers[f"{name}/auc"] = curves[name][2]
    numbers["length-controlled/auc"] = matched_auc(given, label[test], lengths[test])
    edges = np.quantile(given, np.linspace(0, 1, 11))
    place = np.clip(np.searchsorted(edges, given, side="right") - 1, 0, 9)
    bins = [place == index for index in range(10) if (place == index).any()]
    reliability = (np.array([given[b].mean() for b in bins]), np.array([label[test][b].mean() for b in bins]))
    return Overthinking(site, threshold, probe, numbers, curves, reliability)


def matched_auc(scores: Any, labels: Any, lengths: Any) -> float:
    """The chance that a positive scores above a negative whose prompt is equally long; NaN where there is no pair."""
    scores, labels, lengths = np.asarray(scores), np.asarray(labels, dtype=bool), np.asarray(lengths)
    won, pairs = 0.0, 0
    for length in np.unique(lengths):
        here = lengths == length
        difference = scores[here & labels][:, None] - scores[here & ~labels][None, :]
        won += float((difference > 0).sum() + (difference == 0).sum() / 2)
        pairs += difference.size
    return won / pairs if pairs else float("nan")


def save(found: Overthinking, collection: Collection, out: Path, command: str) -> Path:
    """Write the detector, its numbers and its figure into a folder."""
    from forethought.reasoners.strength import figures

    with atomic_folder(out, replace=True) as scratch:
        tensors, numbers = found.probe.state()
        Instrument(
            "probe", "overthinking", {found.site: tensors}, collection.states.model, "last-prompt",
            f"log-odds of more than {found.threshold:g} thinking tokens", {found.site: numbers},
            collection.states.delimiters, {"command": command, **collection.provenance()}, clean(found.numbers),
        ).save(scratch / "detector")  # fmt: skip
        document = {"command": command, "site": found.site, "numbers": found.numbers}
        (scratch / "overthink.json").write_text(json.dumps(clean(document), indent=2) + "\n", encoding="utf-8")
        figures.draw_roc(found.curves, found.reliability, scratch / "roc.png")
    return out
