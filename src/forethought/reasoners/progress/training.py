"""Fit everything that reads progress, choose among it on problems held out, and say what it comes to on others.

Three parts of the problems: the readers are fitted on ``fit``; ``validation`` chooses their smoothing, fits their map,
calibrates their interval and picks which of them a bar shows, and later α; what is reported is measured on ``test``,
which has no other use. The published script refits its vector on the test problems before it is kept; nothing is
refitted here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from forethought.errors import DataError
from forethought.instruments.progress import NormalEquations, ProgressProbe, progress_labels, progress_scores
from forethought.instruments.progress_baselines import ConstantBaseline, LastTokensBaseline, PositionBaseline
from forethought.instruments.progress_gru import ProgressGRU
from forethought.reasoners.progress.meters import Floats, Meter, coverage, gain, thought_errors
from forethought.reasoners.progress.preparation import Chosen, Prepared, Thoughts
from forethought.reasoners.progress.trained import NAMES, SOURCES, Source, Trained

Ints = npt.NDArray[np.int64]
_DRAWN = 4  # thoughts in the figure


@dataclass(frozen=True)
class Report:
    """What the readers came to.

    Attributes:
        rows: on the test problems, by reader, as ``progress_scores`` names them; ``gain`` over the position with its
            bounds; ``coverage`` of the interval where there is one.
        validation: gain over the position of what would be shown, with bounds, by source; from this the source was
            chosen.
        families: errors on the thoughts of each family, ``within`` with all families trained on and ``across`` with
            this one left out of the training, by reader; ``across`` is missing where there is one family only.
        deciles: error in every tenth of a thought, float ``[10]``, by reader.
        drawn: for the figure: readings of some test thoughts by reader.
    """

    rows: dict[str, dict[str, float]]
    validation: dict[str, tuple[float, float, float]]
    families: dict[str, dict[str, dict[str, float]]]
    deciles: dict[str, Floats]
    drawn: list[dict[str, Floats]]


def train(
    prepared: Prepared, *, epsilon: float = 1e-10, level: float | None = None, seed: int = 42, device: str = "cpu"
) -> tuple[Trained, Report]:
    """Fit, choose, measure.

    Args:
        prepared: states of thoughts and the parts of the problems.
        epsilon: ridge of the raw fit, the paper's 1e-10; that of the centred fit is chosen by cross-validation.
        level: of the interval, between 0 and 1; see :meth:`Meter.fit`.
        seed: of the GRU.
        device: of the GRU's training.

    Raises:
        DataError: too few problems or thoughts, or a level that is no share.
    """
    if level is not None and not 0 < level < 1:
        raise DataError(f"level is {level:g}; it is the share of thoughts that an interval holds, such as 0.9.")
    thoughts = Thoughts(prepared.states())
    fit, validation, test = (thoughts.of(prepared.parts[part]) for part in ("fit", "validation", "test"))
    tpv, raw, gru = _readers(thoughts, fit, epsilon, seed, device)
    position = PositionBaseline.fit(thoughts.lengths[fit])
    problems = thoughts.problem[validation]
    draft = Trained(tpv, raw, gru, position, {}, "position")
    meters, errors = {}, {}
    for source in SOURCES:
        readings = [draft.predict(source, thoughts[i]) for i in validation]
        meters[source], shown = Meter.fit(readings, problems, level)
        errors[source] = thought_errors(shown)
    chosen, gains = choose_source(errors, problems)
    trained = Trained(tpv, raw, gru, position, meters, chosen)
    return trained, _report(trained, prepared, thoughts, fit, test, gains, epsilon, seed, device)


def choose_source(errors: dict[Source, Floats], problems: Any) -> tuple[Source, dict[str, tuple[float, float, float]]]:
    """The best source that is better than the position for certain, or the position.

    Args:
        errors: mean squared error of each thought held out, ``[thoughts]``, by source.
        problems: of each thought.

    Returns:
        The source; gains over the position with 95 % bounds over problems, by source.
    """
    gains = {source: gain(errors["position"], errors[source], problems) for source in SOURCES if source != "position"}
    better = [source for source in SOURCES if source != "position" and gains[source][1] > 0]
    best = max(better, key=lambda source: gains[source][0], default=SOURCES[0])
    return best, {str(source): found for source, found in gains.items()}


def _readers(
    thoughts: Thoughts, rows: Ints, epsilon: float, seed: int, device: str
) -> tuple[ProgressProbe, ProgressProbe, ProgressGRU]:
    """The centred probe, the paper's raw one, and the GRU, from some thoughts."""
    owners = thoughts.problem[rows]
    if len(np.unique(owners)) < 2:
        raise DataError("Training takes finished thoughts about two problems or more; generate more.")
    tpv = ProgressProbe.fit(NormalEquations.stream((thoughts[i], thoughts.problem[i]) for i in rows))
    parts = NormalEquations.stream(((thoughts[i], thoughts.problem[i]) for i in rows), per_thought=False)
    raw = ProgressProbe.fit(parts, centred=False, ridge=epsilon)
    gru = ProgressGRU.fit(Chosen(thoughts, rows), owners, seed=seed, device=device)
    return tpv, raw, gru.to("cpu")


def _report(
    trained: Trained, prepared: Prepared, thoughts: Thoughts, fit: Ints, test: Ints,
    gains: dict[str, tuple[float, float, float]], epsilon: float, seed: int, device: str,
) -> Report:  # fmt: skip
    constant = ConstantBaseline.fit(thoughts.lengths[fit])
    words = LastTokensBaseline.fit([thoughts.read(i) for i in fit])
    guesses: dict[str, list[Floats]] = {
        "constant": [constant.predict(int(thoughts.lengths[i])) for i in test],
        "position": [trained.predict("position", thoughts[i]) for i in test],
        "last 4 tokens": [words.predict(thoughts.read(i)) for i in test],
        "TPV, raw": [trained.raw.predict(thoughts[i]) for i in test],
        "TPV, centred": [trained.predict("tpv", thoughts[i]) for i in test],
        "GRU": [trained.predict("gru", thoughts[i]) for i in test],
    }
    shown = {source: [trained.meters[source].shown(values) for values in guesses[NAMES[source]]] for source in SOURCES}
    guesses |= {f"{NAMES[source]}, shown": shown[source] for source in SOURCES}
    owners, rows = thoughts.problem[test], {}
    baseline = thought_errors(guesses["position"])
    for name, values in guesses.items():
        found = gain(baseline, thought_errors(values), owners)
        rows[name] = progress_scores(values) | dict(zip(("gain", "gain/low", "gain/high"), found, strict=True))
    for source in SOURCES:
        row = rows[f"{NAMES[source]}, shown"]
        row["coverage"] = coverage(trained.meters[source], shown[source], owners)
        row["level"] = trained.meters[source].eta.level
    kept = ("position", "last 4 tokens", "TPV, raw", "TPV, centred", "GRU")
    place = [int(i) for i in np.argsort(thoughts.lengths[test], kind="stable")]
    some = [place[round(share * (len(place) - 1))] for share in np.linspace(0.2, 0.95, min(_DRAWN, len(place)))]
    drawn = [
        {"TPV, centred": guesses["TPV, centred"][i], "GRU": guesses["GRU"][i],
         "shown": shown[trained.source][i]} for i in some
    ]  # fmt: skip
    families = _families(guesses, prepared, thoughts, fit, test, epsilon, seed, device)
    return Report(rows, gains, families, {name: deciles(guesses[name]) for name in kept}, drawn)


def deciles(predictions: Sequence[Floats]) -> Floats:
    """Mean squared error in each tenth of a thought's true progress, each thought counting once; float64 ``[10]``."""
    sums, counts = np.zeros(10), np.zeros(10)
    for values in predictions:
        labels = progress_labels(len(values))
        place = np.minimum((labels * 10 - 1e-9).astype(int), 9)
        tokens = np.bincount(place, minlength=10)
        error = np.bincount(place, (values - labels) ** 2, minlength=10)
        sums += np.divide(error, tokens, out=np.zeros(10), where=tokens > 0)
        counts += tokens > 0
    return np.asarray(np.divide(sums, counts, out=np.full(10, np.nan), where=counts > 0))


def _families(
    guesses: dict[str, list[Floats]], prepared: Prepared, thoughts: Thoughts, fit: Ints, test: Ints, epsilon: float,
    seed: int, device: str,
) -> dict[str, dict[str, dict[str, float]]]:  # fmt: skip
    """Errors by family, within and across.

    Across: families in two halves, readers fitted on the one and tested on the other, so that two more fits serve all.
    """
    family = np.array([prepared.problems[int(number)].family for number in thoughts.problem])
    names = sorted(set(family[test].tolist()))
    compared = ("position", "TPV, centred", "GRU")
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in names:
        here = np.flatnonzero(family[test] == name)
        found[name] = {
            "within": {key: float(thought_errors([guesses[key][i] for i in here]).mean()) for key in compared}
        }
    everything = sorted(set(family[fit].tolist()))
    for half in (everything[::2], everything[1::2]):
        rows, aimed = fit[~np.isin(family[fit], half)], test[np.isin(family[test], half)]
        if len(np.unique(thoughts.problem[rows])) < 2 or not len(aimed):
            continue
        tpv, _, gru = _readers(thoughts, rows, epsilon, seed, device)
        position = PositionBaseline.fit(thoughts.lengths[rows])
        for name in sorted(set(family[aimed].tolist())):
            here = aimed[family[aimed] == name]
            found[name]["across"] = {
                "position": _mean(position.predict(int(thoughts.lengths[i])) for i in here),
                "TPV, centred": _mean(tpv.predict(thoughts[i]) for i in here),
                "GRU": _mean(gru.predict(thoughts[i]) for i in here),
            }
    return found


def _mean(predictions: Any) -> float:
    return float(thought_errors(list(predictions)).mean())
