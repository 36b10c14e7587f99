from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from forethought.cli import main
from forethought.errors import ArtefactError, DataError
from forethought.instruments.artefact import Instrument
from forethought.instruments.controls import bag_of_tokens_baseline, prompt_length_baseline, r2, spearman
from forethought.instruments.probe import LengthProbe
from forethought.reasoners.reasoner import Reasoner
from forethought.reasoners.strength import tables
from forethought.reasoners.strength.analysis import Analysis, analyse, by_family, clean, save, steering_vectors
from forethought.reasoners.strength.collection import Collection
from forethought.reasoners.strength.overthink import detect, matched_auc
from forethought.reasoners.strength.overthink import save as save_detector
from forethought.serving.vllm_requests import vectors
from tests.reasoners.strength.conftest import NUMBER, SAMPLES, SITE, plant
from tests.reasoners.tiny import tiny


@pytest.fixture(scope="module")
def found(planted: Collection) -> Analysis:
    return analyse(planted, permutations=40)


@pytest.fixture(scope="module")
def nothing(null: Collection) -> Analysis:
    return analyse(null, permutations=40)


def test_a_planted_length_is_found_and_none_where_there_is_none(found: Analysis, nothing: Analysis) -> None:
    assert found.controls["spearman"] > 0.7 > 0.4 > nothing.controls["spearman"]
    assert found.controls["spearman/p"] <= 0.05 < nothing.controls["spearman/p"]
    assert found.controls["r2"] > 0.4 > nothing.controls["r2"]
    assert found.controls["ceiling/spearman"] > 0.95
    for name in ("prompt-length", "bag-of-tokens"):
        assert f"{name}/spearman" in found.controls
    assert {"within-level/spearman", "within-level/p", "interval/coverage", "censored"} <= found.controls.keys()
    assert 0.6 <= found.controls["interval/coverage"] <= 1


def test_the_reported_numbers_are_of_problems_that_chose_nothing(found: Analysis, planted: Collection) -> None:
    test = planted.part("test")
    actual = planted.lengths()[0].mean(axis=1)[test]
    assert np.array_equal(found.actual, actual)
    guess = found.probe.predict(planted.states.at(found.best)[test])
    assert found.controls["spearman"] == pytest.approx(spearman(guess, actual))
    rows = {row["site"]: row for row in found.sites}
    assert rows[-1] == {"site": -1, "constant": True}
    assert rows[found.best]["choose/spearman"] == max(
        row["choose/spearman"] for row in rows.values() if "choose/spearman" in row
    )
    # and the probe is one of the problems to fit
    fit = planted.part("fit")
    again = LengthProbe.fit(planted.states.at(found.best)[fit], planted.lengths()[0].mean(axis=1)[fit])
    assert np.allclose(again.weight, found.probe.weight)


def test_the_baselines_know_the_problems_that_the_probe_knows(found: Analysis, planted: Collection) -> None:
    mean, (fit, test) = planted.lengths()[0].mean(axis=1), (planted.part(name) for name in ("fit", "test"))
    prompts = [planted.rollouts.rollouts[index * SAMPLES].prompt for index in range(NUMBER)]
    guess = {
        "bag-of-tokens": bag_of_tokens_baseline([prompts[i] for i in fit], mean[fit], [prompts[i] for i in test]),
        "prompt-length": prompt_length_baseline(
            [len(prompts[i]) for i in fit], mean[fit], [len(prompts[i]) for i in test]
        ),
    }
    for name, values in guess.items():
        assert found.controls[f"{name}/spearman"] == pytest.approx(spearman(values, mean[test]))
        assert found.controls[f"{name}/r2"] == pytest.approx(r2(values, mean[test]))


def test_directions_are_differences_of_means_beside_their_null(found: Analysis, planted: Collection) -> None:
    fit = planted.part("fit")
    x, levels = planted.states.at(SITE)[fit], np.array([planted.problems[i].level for i in fit])
    means = np.array([x[levels == level].mean(axis=0) for level in range(1, 6)])
    assert np.allclose(found.directions[SITE].vector(), (means[1:] - means[0]).mean(axis=0), atol=1e-6)
    row = next(row for row in found.sites if row["site"] == SITE)
    assert np.allclose(row["norms"], np.linalg.norm(means[1:] - means[0], axis=1))
    units = (means[1:] - means[0]) / np.linalg.norm(means[1:] - means[0], axis=1, keepdims=True)
    assert row["cosine"] == pytest.approx((units @ units.T)[np.triu_indices(4, 1)].mean())
    assert row["cosine/null-95"] > 0.3  # differences from one mean agree by chance, too
    assert row["norms"][-1] > row["norms/null-95"][-1]
    assert found.controls["w.r/actual"] > 20
    assert found.controls["w.r/predicted"] == pytest.approx(found.controls["w.r/actual"], rel=0.5)


def test_where_levels_mean_nothing_their_directions_are_as_by_chance(nothing: Analysis) -> None:
    row = next(row for row in nothing.sites if row["site"] == SITE)
    assert row["cosine"] < row["cosine/null-95"] + 0.1
    assert abs(nothing.controls["w.r/predicted"]) < 0.6 * nothing.controls["w.r/actual"]


@pytest.mark.slow
def test_cut_off_thoughts_make_it_a_tobit_and_are_told(reasoner: Reasoner, tmp_path: Path) -> None:
    collection = plant(tmp_path, reasoner, cap=100)
    collection.states.sites = (SITE,)  # a tobit takes its time
    cut = analyse(collection, kind="lasso", permutations=5)
    assert cut.probe.kind == "tobit"
    assert 0.1 < cut.controls["censored"] < 0.5
    assert cut.controls["spearman"] > 0.6
    # the interval is of single rollouts, and the upper end has to reach one that was cut off
    low, high = cut.probe.interval(collection.states.at(SITE))
    held = [
        (low[r.problem] <= r.thinking_tokens or not r.ended) and r.thinking_tokens <= high[r.problem]
        for r in collection.rollouts.rollouts
        if r.problem in collection.part("test")
    ]
    assert cut.controls["interval/coverage"] == pytest.approx(np.mean(held))
    assert "capped means" in str(tables.controls(cut).caption)


def test_without_levels_there_are_lengths_only(planted: Collection) -> None:
    asked = [dataclasses.replace(problem, level=0) for problem in planted.problems]
    rollouts = dataclasses.replace(planted).rollouts
    other = type(rollouts)(rollouts.path, rollouts.settings, asked, rollouts.rollouts)
    found = analyse(dataclasses.replace(planted, rollouts=other), permutations=5)
    assert not found.directions
    assert "w.r/predicted" not in found.controls
    assert "within-level/spearman" not in found.controls
    assert found.controls["spearman"] > 0.7


def test_a_site_whose_probe_says_the_same_of_all_is_not_the_best(
    planted: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rank correlation is no number, and no number is greater or smaller than that."""
    predict, first = LengthProbe.predict, planted.states.at(0)

    def flat(self: LengthProbe, states: Any) -> Any:
        guess = predict(self, states)
        same = any(np.array_equal(states, first[planted.part(name)]) for name in ("choose", "test"))
        return np.full_like(guess, guess.mean()) if same else guess

    monkeypatch.setattr(LengthProbe, "predict", flat)
    found = analyse(planted, permutations=5)
    assert math.isnan(found.sites[1]["choose/spearman"])
    assert found.best != 0


def test_a_null_takes_a_permutation(planted: Collection) -> None:
    with pytest.raises(DataError, match="permutations is 0"):
        analyse(planted, permutations=0)


def test_where_none_was_cut_off_nothing_is_said_of_it(found: Analysis) -> None:
    assert tables.controls(found).caption is None


def test_numbers_figures_and_instruments_are_kept(
    found: Analysis, planted: Collection, reasoner: Reasoner, tmp_path: Path
) -> None:
    out = save(found, planted, tmp_path / "analysis", "the command")
    for name in ("probe.png", "directions.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    document = json.loads((out / "analysis.json").read_text())
    assert (document["command"], document["best"], document["kind"]) == ("the command", found.best, "ridge")
    probe = Instrument.open(out / "probe")
    assert (probe.sites, probe.position, probe.units) == ([found.best], "last-prompt", "thinking tokens")
    assert probe.provenance["rollouts"] == planted.rollouts.digest
    again = LengthProbe.from_state(dict(probe.tensors[found.best]), dict(probe.numbers[found.best]))
    states = planted.states.at(found.best)
    assert np.allclose(again.predict(states), found.probe.predict(states))
    # as RSP: the inputs of the blocks, so nothing after the last of them
    steered = steering_vectors(out / "direction", reasoner)
    assert list(steered) == [0]
    assert np.allclose(steered[0].numpy(), found.directions[0].vector(), atol=1e-6)
    with pytest.raises(ArtefactError, match="other weights"):
        steering_vectors(out / "direction", tiny(seed=8))
    with pytest.raises(ArtefactError, match="no tensor 'direction'"):
        steering_vectors(out / "probe", reasoner)
    save(found, planted, tmp_path / "analysis", "again")  # in place of what was there
    assert json.loads((out / "analysis.json").read_text())["command"] == "again"


def test_what_is_kept_is_steered_with_alike_here_in_vllm_and_in_llama_cpp(tmp_path: Path) -> None:
    reasoner = Reasoner.open(device="cpu")
    collection = plant(tmp_path, reasoner)
    out = save(analyse(collection, permutations=5), collection, tmp_path / "analysis", "the command") / "direction"
    steered = {site: vector.numpy() for site, vector in steering_vectors(out, reasoner).items()}
    assert list(steered) == [0, 1, 2, 3, 4] == Instrument.open(out).sites  # the inputs of blocks 1 to 5, the last
    width = reasoner.model.config.hidden_size
    served = vectors(str(out), 0, 6, width)
    assert main(["export", str(out), str(tmp_path / "v.npy")]) == 0
    assert main(["export", str(out), str(tmp_path / "v.gguf")]) == 0
    rows = np.stack([np.zeros(width), *steered.values(), np.zeros(width)])
    assert np.array_equal(served, rows)
    assert np.array_equal(np.load(tmp_path / "v.npy"), rows[:-1])
    written = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "v.gguf").tensors}
    assert list(written) == [f"direction.{site}" for site in (1, 2, 3, 4)]  # llama.cpp has none for block 0
    assert all(np.array_equal(written[f"direction.{site}"], steered[site]) for site in (1, 2, 3, 4))


def test_families_are_those_with_ten_problems_whose_lengths_differ(planted: Collection) -> None:
    asked = planted.problems[:30]
    many = [dataclasses.replace(p, family="a" if i < 15 else "b" if i < 27 else "c") for i, p in enumerate(asked)]
    actual = np.array([float(i) for i in range(15)] + [5.0] * 12 + [1.0, 2.0, 3.0])
    found = by_family(many, actual * 2, actual, list(range(30)))
    assert list(found) == ["a"]
    assert found["a"]["spearman"] == pytest.approx(1)
    assert found["a"]["spearman/p"] < 0.01


def test_json_has_no_nan() -> None:
    assert clean({1: [np.float32(0.5), float("nan"), (math.inf, "x")], "n": np.int64(3)}) == {
        "1": [0.5, None, [None, "x"]],
        "n": 3,
    }


# ---------------------------------------------------------------------------------------------------- overthinking


def test_the_longest_thoughts_are_detected_where_they_are_planted(planted: Collection, null: Collection) -> None:
    found, none = detect(planted), detect(null)
    assert found.numbers["auc"] > 0.85
    assert none.numbers["auc"] < 0.75
    assert found.threshold == pytest.approx(np.quantile(planted.lengths()[0].mean(axis=1)[planted.part("fit")], 0.75))
    assert {
        "prompt-length/auc",
        "bag-of-tokens/auc",
        "length-controlled/auc",
        "brier",
        "censored",
    } <= found.numbers.keys()
    given = found.probe.probability(planted.states.at(found.site))
    assert ((given >= 0) & (given <= 1)).all()
    for false, true, area in found.curves.values():
        assert np.trapezoid(true, false) == pytest.approx(area)
    assert len(found.reliability[0]) == len(found.reliability[1]) > 2


def test_the_detector_is_kept(planted: Collection, tmp_path: Path) -> None:
    out = save_detector(detect(planted), planted, tmp_path / "overthink", "the command")
    assert (out / "roc.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "overthink.json").read_text())["numbers"]["auc"] > 0.8
    assert "log-odds of more than" in Instrument.open(out / "detector").units


@pytest.mark.parametrize("share", [0.0, 1.0, 2.0])
def test_a_share_is_a_share(planted: Collection, share: float) -> None:
    with pytest.raises(DataError, match="share is"):
        detect(planted, share=share)


def test_one_class_is_told(planted: Collection) -> None:
    with pytest.raises(DataError, match="of one class"):
        detect(planted, share=0.9999)


@pytest.mark.parametrize("seed", range(20))
def test_matched_pairs_are_those_of_one_length(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores, labels = random.integers(0, 4, 15).astype(float), random.random(15) < 0.5
    lengths = random.integers(0, 3, 15)
    won = [
        1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
        for i in range(15)
        for j in range(15)
        if labels[i] and not labels[j] and lengths[i] == lengths[j]
    ]
    assert matched_auc(scores, labels, lengths) == pytest.approx(np.mean(won) if won else math.nan, nan_ok=True)
    assert math.isnan(matched_auc(scores, labels, np.arange(15)))
