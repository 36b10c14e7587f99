"""Is the length of a thought written in the prompt's last state, and along which direction does difficulty lie?"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from forethought.atomic import atomic_folder
from forethought.data.problems import Problem
from forethought.errors import ArtefactError, DataError
from forethought.instruments.artefact import Instrument
from forethought.instruments.controls import (
    bag_of_tokens_baseline,
    length_controls,
    prompt_length_baseline,
    spearman,
)
from forethought.instruments.direction import LevelDirections, direction_nulls, held_out_projection
from forethought.instruments.probe import Kind, LengthProbe
from forethought.instruments.sites import Site
from forethought.reasoners.reasoner import Reasoner
from forethought.reasoners.strength.collection import Collection

UNITS = "strength 1 adds the mean difference between the lowest level and the others"


@dataclass(frozen=True)
class Analysis:
    """What prompts tell of the thoughts to come.

    Attributes:
        sites: of each site, by name: ``site``, ``choose/spearman``, ``test/spearman``, ``test/r2`` of its probe;
            ``norm``, ``cosine``, ``cosine/null`` of its directions (NaN where there are no levels).
        best: the site whose probe was best on the problems to choose by.
        controls: of that probe on the test problems, as :func:`~forethought.instruments.controls.length_controls`
            names them, its baselines fitted on the problems that it was fitted on; ``interval/coverage``, of means, of
            a tobit's of single rollouts; ``censored``, the share of rollouts that were cut off: all but the coverage is
            against means that take those for ends; ``w.r/predicted`` and ``w.r/actual`` in tokens.
        families: the same probe and its baselines inside each family of problems.
        predicted, actual: tokens of each test problem.
        probe: of the best site.
        directions: of every site that has one.
    """

    sites: list[dict[str, Any]]
    best: Site
    controls: dict[str, float]
    families: dict[str, dict[str, float]]
    predicted: npt.NDArray[np.float64]
    actual: npt.NDArray[np.float64]
    probe: LengthProbe
    directions: dict[Site, LevelDirections]


def analyse(collection: Collection, *, kind: Kind = "ridge", permutations: int = 200, seed: int = 0) -> Analysis:
    """Fit a length probe at every site and directions between levels, beside everything they have to be held to.

    Args:
        collection: rollouts and prompt states.
        kind: of probe; where rollouts were cut off it is ``tobit`` whatever is asked for. A tobit is fitted on the
            rollouts, the others on their means.
        permutations: of every null.
        seed: of every draw.

    Raises:
        DataError: too few problems, or lengths that do not vary.
    """
    if permutations < 1:
        raise DataError(f"permutations is {permutations}; a null takes at least 1.")
    tokens, censored = collection.lengths()
    mean, cut = tokens.mean(axis=1), np.asarray(censored.any(axis=1))
    if cut.any():
        kind = "tobit"
    fit, choose, test = (collection.part(name) for name in ("fit", "choose", "test"))
    problems = collection.problems
    levels = np.array([problem.level for problem in problems])
    levelled = fit[levels[fit] > 0]
    has_levels = len(np.unique(levels[levelled])) > 1
    sites, probes, directions = [], {}, {}
    for site in collection.states.sites:
        states = collection.states.at(site)
        row: dict[str, Any] = {"site": site}
        if bool((states[fit] == states[fit[0]]).all()):
            row["constant"] = True  # the last prompt token is the same for every question
        else:
            if kind == "tobit":  # a row a rollout: one that was cut off makes no lower bound of the others
                probe = LengthProbe.fit(
                    np.repeat(states[fit], tokens.shape[1], axis=0),
                    tokens[fit].ravel(),
                    kind=kind,
                    groups=np.repeat(fit, tokens.shape[1]),
                    censored=censored[fit].ravel(),
                    seed=seed,
                )
            else:
                probe = LengthProbe.fit(states[fit], mean[fit], kind=kind, seed=seed)
            probes[site] = probe
            guess = {name: probe.predict(states[part]) for name, part in (("choose", choose), ("test", test))}
            row["choose/spearman"] = spearman(guess["choose"], mean[choose])
            numbers = length_controls(guess["test"], mean[test], permutations=2, seed=seed)
            row |= {"test/spearman": numbers["spearman"], "test/r2": numbers["r2"], "alpha": probe.alpha}
            if has_levels:
                found = LevelDirections.fit(states[levelled], levels[levelled])
                nulls = direction_nulls(states[levelled], levels[levelled], permutations=permutations, seed=seed)
                directions[site] = found
                row |= {
                    "norms": found.norms.tolist(),
                    "norms/null-95": [null.high for null in nulls.norms],
                    "cosine": nulls.mean_cosine.observed,
                    "cosine/null-95": nulls.mean_cosine.high,
                    "cosine/expected": nulls.expected_cosine,
                }
        sites.append(row)
    if not probes:
        raise DataError("The states of all prompts are equal at every site; read another position.")
    chosen_by = {row["site"]: row["choose/spearman"] for row in sites if row["site"] in probes}
    best = max(probes, key=lambda site: -math.inf if math.isnan(chosen_by[site]) else chosen_by[site])
    states, probe = collection.states.at(best), probes[best]
    predicted = probe.predict(states[test])
    asked, known = (
        [collection.rollouts.rollouts[index * tokens.shape[1]].prompt for index in part] for part in (test, fit)
    )
    sizes = [len(prompt) for prompt in asked]
    controls = length_controls(
        predicted,
        mean[test],
        levels=levels[test] if has_levels else None,
        baselines={
            "prompt-length": prompt_length_baseline([len(prompt) for prompt in known], mean[fit], sizes, seed=seed),
            "bag-of-tokens": bag_of_tokens_baseline(known, mean[fit], asked, seed=seed),
        },
        rollouts=tokens[test] if tokens.shape[1] > 1 else None,
        permutations=permutations,
        seed=seed,
    )
    low, high = (end[:, None] for end in probe.interval(states[test]))
    if kind == "tobit":  # of one rollout; one that was cut off is covered where the upper end reaches it
        held = ((low <= tokens[test]) | censored[test]) & (tokens[test] <= high)
    else:
        held = (low <= mean[test, None]) & (mean[test, None] <= high)
    controls["interval/coverage"] = float(held.mean())
    controls["censored"] = float(censored.mean())
    if has_levels:
        try:
            projection = held_out_projection(states[levelled], mean[levelled], levels[levelled], seed=seed)
            controls |= {"w.r/predicted": projection.predicted, "w.r/actual": projection.actual}
        except DataError:
            pass  # a level with one problem: nothing can be held out
    families = by_family([problems[i] for i in test], predicted, mean[test], sizes, seed)
    return Analysis(sites, best, controls, families, predicted, mean[test], probe, directions)


def by_family(
    problems: Sequence[Problem], predicted: Any, actual: Any, prompt_lengths: Sequence[int], seed: int = 0
) -> dict[str, dict[str, float]]:
    """Rank correlations inside each family of ten problems or more: the probe's, the prompt length's, and a p-value."""
    names = np.array([problem.family for problem in problems])
    found = {}
    for name in dict.fromkeys(names.tolist()):
        rows = np.flatnonzero(names == name)
        if len(rows) < 10 or np.ptp(actual[rows]) == 0:
            continue
        numbers = length_controls(predicted[rows], actual[rows], permutations=500, seed=seed)
        found[name] = {
            "problems": float(len(rows)),
            "spearman": numbers["spearman"],
            "spearman/p": numbers["spearman/p"],
            "prompt-length/spearman": spearman(np.array(prompt_lengths, dtype=np.float64)[rows], actual[rows]),
        }
    return found


def save(analysis: Analysis, collection: Collection, out: Path, command: str) -> Path:
    """Write numbers, figures, the probe and the directions into a folder.

    Raises:
        ArtefactError: the place cannot be written.
    """
    from forethought.reasoners.strength import figures

    made = {"command": command, **collection.provenance()}
    told = collection.states.delimiters
    with atomic_folder(out, replace=True) as scratch:
        tensors, numbers = analysis.probe.state()
        Instrument(
            "probe", "thinking tokens", {analysis.best: tensors}, collection.states.model, "last-prompt",
            "thinking tokens", {analysis.best: numbers}, told, made, clean(analysis.controls),
        ).save(scratch / "probe")  # fmt: skip
        # RSP steers the inputs of blocks; what is kept is all that is added, here and in every engine
        last = collection.states.model.blocks - 1
        vectors: dict[Site, dict[str, torch.Tensor]] = {
            site: {"direction": torch.from_numpy(found.vector()).float()}
            for site, found in analysis.directions.items()
            if site != "norm" and site < last
        }
        if vectors:
            rows = [row for row in analysis.sites if row["site"] in vectors]
            controls = {str(row["site"]): {k: v for k, v in row.items() if k != "site"} for row in rows}
            Instrument(
                "direction", "difficulty", vectors, collection.states.model, "last-prompt", UNITS,
                delimiters=told, provenance=made, controls=clean(controls),
            ).save(scratch / "direction")  # fmt: skip
        document = {
            "command": command,
            "kind": analysis.probe.kind,
            "best": analysis.best,
            "sites": analysis.sites,
            "controls": analysis.controls,
            "families": analysis.families,
        }
        (scratch / "analysis.json").write_text(json.dumps(clean(document), indent=2) + "\n", encoding="utf-8")
        figures.draw_analysis(analysis, scratch)
    return out


def steering_vectors(folder: Path, reasoner: Reasoner) -> dict[Site, torch.Tensor]:
    """The vectors of a direction, held to the model.

    Raises:
        ArtefactError: there is none, or it is for another model.
    """
    instrument = Instrument.open(folder)
    instrument.check_model(reasoner.model)
    found = instrument.steering()
    if "norm" in found:
        raise ArtefactError(f"{folder} has no vector that goes into a block; take a direction of another site.")
    return found


def clean(value: Any) -> Any:
    """Ready for JSON: numbers of numpy as Python's own, what is not a number as null."""
    if isinstance(value, Mapping):
        return {str(key): clean(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [clean(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
