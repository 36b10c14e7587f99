"""Adaptive depth of a run, end to end: chosen, measured, kept, used, and refused where there is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from forethought.cli import main
from forethought.cli.dial import _row, _verdict
from forethought.cli.evaluate import print_rows
from forethought.data.dataset import Dataset
from forethought.errors import ArtefactError, DataError
from forethought.nn.dropout import Dropout
from forethought.nn.halting import Divergence, Entropy, Probe
from forethought.recommenders import dialling
from forethought.recommenders.dialling import Dial, _best_of_dropout, dropping, fit, look, measure, save
from forethought.recommenders.latent.policies import Policy, depths, judge
from forethought.recommenders.run import Run, train
from forethought.recommenders.thinking import by_steps, thinking

from ..planted import ring

SETTINGS: dict[str, dict[str, Any]] = {
    "rearec": {"type": "rearec", "steps": 3, "dropout": 0.3},
    "lares": {"type": "lares", "steps": 2, "start": "normal", "adapter": "add", "test_draws": 2},
    "sasrec": {"type": "sasrec"},
    "plain": {"type": "rearec", "steps": 0},
    "chance": {"type": "lares", "steps": 2, "start": "normal", "test_draws": 0},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    data = str(ring(users=160, items=40).save(folder / "data").path)
    for name, model in SETTINGS.items():
        recipe: dict[str, Any] = {
            "name": name, "model": {"hidden_size": 8, **model}, "data": {"path": data},
            "training": {"max_steps": 40 if name in ("rearec", "lares") else 2, "batch_size": 32, "learning_rate": 0.01}
        }  # fmt: skip
        train(recipe, out=folder / name, device="cpu", quiet=True)
    return {name: folder / name for name in SETTINGS}


@pytest.fixture
def rearec(runs: dict[str, Path], tmp_path: Path) -> Run:
    return Run.open(shutil.copytree(runs["rearec"], tmp_path / "run"), "cpu")


def policies(run: Run) -> dict[str, Policy]:
    """Rules that let some users go at each step, whatever their worth."""
    table, _ = look(run, "valid", 3)
    heads = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)).double(), torch.zeros(2).double()
    rules = {
        "probe": Probe(*heads, easy=0, normal=1, hard=3, confidence=0.5),
        "entropy": Entropy(float(np.quantile(table.entropy, 0.3))),
        "divergence": Divergence(float(np.quantile(table.divergence[:, 1:], 0.5))),
    }
    made = {name: judge(name, rule, 3, table) for name, rule in rules.items()}
    return {"fixed": judge("fixed", None, 1, table), **made}


def dial_of(run: Run, auto: str = "probe") -> Dial:
    """One that has every rule; what is fitted on so few users need not."""
    real = fit(run)
    return Dial(tuple(policies(run).values()), auto, real.quality, 3, 0.01, 0.8, 0, real.model)


def test_what_is_measured_is_what_happens(rearec: Run) -> None:
    dial = dial_of(rearec)
    found = measure(rearec, dial, draws=2)
    table, values = look(rearec, "test", 3)
    usual = by_steps(rearec, [0, 1, 2, 3])
    for step, row in enumerate(found["fixed"]):
        assert row["steps"] == step
        assert row["ndcg@10"] == pytest.approx(usual[step]["ndcg@10"]) == table.quality[:, step].mean()
        assert row["hr@10"] == values["hr@10"][:, step].mean()
        assert row["milliseconds"] > 0
    for row, policy in zip(found["rules"], dial.policies, strict=True):
        depth = depths(policy.rule, policy.most, table)
        own = table.quality[np.arange(len(depth)), depth]
        assert row["rule"] == policy.name
        assert row["steps"] == pytest.approx(depth.mean())  # of the halting itself, against the table
        assert row["ndcg@10"] == pytest.approx(own.mean())
        assert row["of_best_steps"] == pytest.approx(depth.mean() / 3)
        assert row["of_best_quality"] == pytest.approx(own.mean() / table.quality[:, 3].mean())
        lots = [
            table.quality[np.arange(len(depth)), np.random.default_rng(seed).permutation(depth)].mean()
            for seed in range(400)
        ]
        assert row["by_lot"] == pytest.approx(np.mean(lots), abs=4 * np.std(lots) / 20 + 1e-9)
        difference = row["difference"]
        assert difference["mean"] == pytest.approx(own.mean() - table.quality[:, 3].mean())
        assert difference["low"] <= difference["mean"] <= difference["high"]
        assert 0 < difference["p"] <= 1
    assert len({row["steps"] for row in found["rules"]}) == 4
    assert [row["rule"] for row in found["rules"] if row["auto"]] == ["probe"]
    oracle = found["label"]["oracle"]
    assert oracle["ndcg@10"] == pytest.approx(table.quality.max(axis=1).mean())
    assert oracle["ndcg@10"] >= max(table.quality.mean(axis=0))
    assert set(found["curves"]) == {"probe", "entropy", "divergence"}
    for curve in found["curves"].values():
        steps = [point["steps"] for point in curve]
        assert steps in (sorted(steps), sorted(steps, reverse=True))
        assert 3 in steps  # the end where nobody goes early
        assert all(point["milliseconds"] > 0 for point in curve)
    assert (rearec.model.steps, rearec.model.halting) == (3, None)
    assert found["users"] == 160


def test_dropout_is_drawn_while_all_else_answers(rearec: Run) -> None:
    one, three, again = (_best_of_dropout(rearec, 3, draws, 0, None) for draws in (1, 3, 3))
    assert one["ndcg@10"] == one["one"]
    assert three["ndcg@10"] > three["one"]
    assert three["ndcg@10"] >= one["ndcg@10"]
    assert again == three
    history = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        clean = rearec.model.query(history)
        with dropping(rearec.model):
            rearec.model.eval()
            assert not torch.equal(rearec.model.query(history), rearec.model.query(history))
        assert torch.equal(rearec.model.query(history), clean)
    for part in rearec.model.modules():
        if isinstance(part, Dropout):
            part.p = 0.0
    assert _best_of_dropout(rearec, 3, 3, 0, None) is None


@pytest.mark.parametrize("auto", ["fixed", "probe", "entropy", "divergence"])
def test_auto_steps_answer_as_the_rule_says(rearec: Run, auto: str, tmp_path: Path) -> None:
    dial = dial_of(rearec, auto)
    dial.save(rearec.path / "dial")
    run = Run.open(rearec.path, "cpu")
    kept = run.dial
    assert (kept.auto, kept.quality, kept.best) == (dial.auto, dial.quality, 3)
    for one, other in zip(kept.policies, dial.policies, strict=True):
        assert (one.name, one.most, one.steps, one.quality) == (other.name, other.most, other.steps, other.quality)
        assert dialling.setting(one.rule) == dialling.setting(other.rule)
    row, plain = by_steps(run, ["auto", 1])
    table, _ = look(run, "test", 3)
    depth = depths(dial.chosen.rule, dial.chosen.most, table)
    assert row["mean_steps"] == pytest.approx(depth.mean())
    assert plain["mean_steps"] == 1.0
    assert row["steps"] == "auto"
    if auto != "divergence":  # the three others may answer without a step
        assert min(depth) <= 1
    targets = run.dataset.targets("test")
    for case in (0, 7, 31):
        items = run.dataset.sequences.items[targets.starts[case] : targets.positions[case]]
        history = run.catalog.decode(items.tolist())
        found, told = (run.recommend(history, steps=steps) for steps in ("auto", int(depth[case])))
        assert [each.id for each in found] == [each.id for each in told]
        assert [each.score for each in found] == pytest.approx([each.score for each in told], rel=1e-5)


@pytest.mark.parametrize("name", ["rearec", "lares"])
def test_from_the_command_line(
    runs: dict[str, Path],
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = shutil.copytree(runs[name], tmp_path / "run")
    out = tmp_path / "all.json"
    words = ["dial", str(path), "--steps", "3", "--loss", "0.05", "--dropout-draws", "2", "--device", "cpu", "--quiet"]
    monkeypatch.setattr("sys.argv", ["forethought", *words])
    assert main([*words, "--json", str(out)]) == 0
    told = capsys.readouterr().out
    assert "Looking at the label" in told
    assert told.splitlines()[-1] == str(path / "evaluation" / "test-dial.png")
    found = json.loads((path / "evaluation" / "test-dial.json").read_text())
    assert json.loads(out.read_text()) == found
    assert found["command"] == f"forethought {' '.join(words)}"
    assert [row["steps"] for row in found["fixed"]] == [0, 1, 2, 3]
    assert found["valid"]["ndcg@10"][found["best"]] == max(found["valid"]["ndcg@10"])
    assert (found["loss"], found["label"]["dropout"]["draws"], found["model"]) == (0.05, 2, name)
    assert len(found["rules"]) == (4 if found["best"] else 1)
    for row in found["rules"]:
        assert row["valid"]["ndcg@10"] >= 0.95 * max(found["valid"]["ndcg@10"])
    least = min(row["valid"]["steps"] for row in found["rules"])
    assert next(row for row in found["rules"] if row["auto"])["valid"]["steps"] == least
    with Image.open(path / "evaluation" / "test-dial.png") as image:
        assert image.size[0] > 1000
        assert np.unique(np.asarray(image.convert("L"))).size > 10  # something is drawn
    kept = {each.name for each in (path / "dial").iterdir()}
    assert kept == ({"dial.json", "probe.safetensors"} if found["best"] else {"dial.json"})

    assert main(["evaluate", str(path), "--steps", "0,auto", "--quiet", "--device", "cpu"]) == 0
    assert "mean_steps" in capsys.readouterr().out
    rows = json.loads((path / "evaluation" / "test-thoughts.json").read_text())["steps"]
    auto = next(row for row in found["rules"] if row["auto"])
    assert [row["steps"] for row in rows] == [0, "auto"]
    assert rows[1]["mean_steps"] == pytest.approx(auto["steps"])
    assert rows[1]["ndcg@10"] == pytest.approx(auto["ndcg@10"])
    assert main(["recommend", str(path), "--user", "u1", "--steps", "auto", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 10
    assert main([*words, "--rule", "fixed", "--json", "-"]) == 0
    assert next(row for row in json.loads(capsys.readouterr().out)["rules"] if row["auto"])["rule"] == "fixed"


def test_what_is_wrong_is_said_in_a_line(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*words: str) -> str:
        assert main([*words, "--device", "cpu"]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        return told

    path = str(runs["rearec"])
    first = f"{path} has no dial yet to choose steps by; run 'forethought dial {path}' first."
    assert first in refused("recommend", path, "--user", "u1", "--steps", "auto")
    assert first in refused("evaluate", path, "--steps", "0,auto")
    assert "model without its run" in refused("recommend", f"{path}/model", "--history", "i3", "--steps", "auto")
    assert "whose steps cannot be chosen" in refused("dial", str(runs["sasrec"]))
    assert "trained with 0 steps and can take none" in refused("dial", str(runs["plain"]))
    assert "--model.test_draws 1" in refused("dial", str(runs["chance"]))
    assert "loss is 1.5" in refused("dial", path, "--loss", "1.5")
    for words in (["recommend", path, "--user", "u1", "--steps", "soon"], ["dial", path, "--steps", "0"]):
        with pytest.raises(SystemExit):
            main(words)
    assert "neither a whole number nor auto" in capsys.readouterr().err
    run = Run.open(path, "cpu")
    with pytest.raises(DataError, match="rule is 'luck'"):
        fit(run, rule="luck")
    with pytest.raises(DataError, match="steps is 'soon'"):
        run.recommend(["i1"], steps="soon")  # type: ignore[arg-type]
    monkeypatch.setattr(dialling, "CASES", 161)
    assert "160 valid cases and a dial takes at least 161" in refused("dial", path)


def test_a_dial_of_other_weights_or_a_damaged_one_is_refused(rearec: Run) -> None:
    dial = dial_of(rearec)
    dial.save(rearec.path / "dial")
    assert Run.open(rearec.path, "cpu").dial.auto == "probe"
    with torch.no_grad():
        rearec.model.embedding.weight.neg_()
    with pytest.raises(ArtefactError, match=r"made on other weights .* run 'forethought dial"):
        rearec.recommend_user("u1", steps="auto")
    file = rearec.path / "dial" / "dial.json"
    text = file.read_text()
    for damaged in (text.replace("forethought.dial", "forethought.index"), text[:90], text.replace('"probe"', '"x"')):
        file.write_text(damaged)
        with pytest.raises(ArtefactError, match=r"run 'forethought dial .*' again"):
            Dial.open(rearec)


def test_one_that_is_stopped_half_way_leaves_what_was_there(rearec: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    dial = dial_of(rearec)
    save(rearec, dial, measure(rearec, dial, draws=1), "forethought dial")
    before = {path: path.read_bytes() for path in rearec.path.rglob("*") if path.is_file()}
    monkeypatch.setattr(dialling, "clock", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["dial", str(rearec.path), "--loss", "0.3", "--device", "cpu"]) == 130
    assert {path: path.read_bytes() for path in rearec.path.rglob("*") if path.is_file()} == before
    assert Run.open(rearec.path, "cpu").recommend_user("u1", steps="auto")


def test_no_validation_users_is_said(rearec: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    few = ring(users=3, items=40).targets("test")
    monkeypatch.setattr(Dataset, "targets", lambda *_: few)
    with pytest.raises(DataError, match="3 valid cases and a dial takes at least 50; prepare it with more users"):
        fit(rearec)


def test_a_depth_beyond_the_trained_one_may_be_dialled(rearec: Run) -> None:
    dial = fit(rearec, most=5, loss=0.9)
    assert len(dial.quality) == 6
    with thinking(rearec.model, 5):  # type: ignore[arg-type]  # a ReaRec
        assert dial.quality[5] == pytest.approx(
            rearec.evaluate("valid", bootstrap=0).metrics["seen_removed"]["ndcg@10"]
        )


def test_a_rule_that_was_named_and_set_aside_is_told() -> None:
    found = {"best": 0, "rules": [{"auto": True}], "label": {"oracle": {"ndcg@10": 0.5}, "dropout": None}}
    assert "auto takes none, and the rule probe is set aside, as no step helps." in _verdict(found, "probe")
    for named in (None, "fixed"):
        assert "auto takes none.\n" in _verdict(found, named)


def test_the_table_of_rules_fits_into_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    difference = {"mean": -0.0123, "low": -0.0234, "high": -0.0012}
    row = {"auto": True, "steps": 10.25, "ndcg@10": 0.1234, "by_lot": 0.1234, "milliseconds": 12.345}
    rows = [{"rule": rule, "difference": difference, **row} for rule in ("probe", "entropy", "divergence")]
    print_rows([_row(each) for each in rows])
    told = capsys.readouterr().out
    assert told.count("-0.0234, -0.0012") == 3
    assert "…" not in told
