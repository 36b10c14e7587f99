"""Depth chosen when a model answers, thoughts taken away, and both from the command line."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from forethought.cli import main
from forethought.errors import ArtefactError, DataError
from forethought.recommenders.dialling import fit
from forethought.recommenders.probing import settling
from forethought.recommenders.run import Run, train
from forethought.recommenders.thinking import (
    INTERVENTIONS,
    answers,
    by_intervention,
    by_steps,
    changeable,
    reasoner,
    save,
    thinking,
)

from ..planted import ring


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    data = str(ring(users=120, items=30).save(folder / "data").path)
    found = {}
    for kind, settings in (
        ("rearec", {"steps": 2}), ("lares", {"steps": 2}), ("sasrec", {}), ("plain", {"type": "rearec", "steps": 0}),
        ("prefergrow", {"kernel": "hybrid", "growing_steps": 3}),
    ):  # fmt: skip
        recipe: dict[str, Any] = {
            "name": kind, "model": {"type": kind, "hidden_size": 8, **settings}, "data": {"path": data},
            "training": {"max_steps": 20, "batch_size": 32, "learning_rate": 0.01},
        }  # fmt: skip
        found[kind] = train(recipe, out=folder / kind, device="cpu", quiet=True)
    return found


def test_interventions_do_what_they_say() -> None:
    fed, draws = torch.randn(5, 2, 3), torch.Generator().manual_seed(0)
    zero, shuffled, random = (change(fed, draws) for change in INTERVENTIONS.values())
    assert not bool(zero.any())
    owners = [next(row for row in range(5) if torch.equal(fed[row], given)) for given in shuffled]
    assert sorted(owners) == list(range(5))
    assert all(owner != row for row, owner in enumerate(owners))
    torch.testing.assert_close(random.norm(dim=-1), fed.norm(dim=-1))
    assert float((random - fed).abs().min()) > 0


@pytest.mark.parametrize("kind", ["rearec", "lares"])
def test_quality_at_every_depth_and_without_thoughts(runs: dict[str, Run], kind: str) -> None:
    run = runs[kind]
    rows = by_steps(run, [0, 2, 4])
    assert [row["steps"] for row in rows] == [0, 2, 4]
    usual = run.evaluate("test", bootstrap=0).metrics["seen_removed"]["ndcg@10"]
    assert rows[1]["ndcg@10"] == pytest.approx(usual)
    found = by_intervention(run)
    assert [row["thoughts"] for row in found] == ["its own", "zero", "shuffled", "random"]
    assert found[0]["ndcg@10"] == pytest.approx(usual)
    assert found[2]["ndcg@10"] != pytest.approx(usual)
    again = by_intervention(run)
    assert [row["ndcg@10"] for row in again] == [row["ndcg@10"] for row in found]
    assert (run.model.steps, run.model.change) == (2, None)


def test_a_model_without_steps_is_refused(runs: dict[str, Run]) -> None:
    with pytest.raises(ArtefactError, match="holds a sasrec, whose steps cannot be chosen"):
        reasoner(runs["sasrec"])
    with pytest.raises(ArtefactError, match="holds a sasrec"):
        runs["sasrec"].recommend_user("u1", steps=2)
    for ask in (
        lambda: by_steps(runs["plain"], [0, 1]), lambda: by_intervention(runs["plain"]),
        lambda: answers(runs["plain"], torch.tensor([1, 2]), steps=2),
        lambda: runs["plain"].recommend_user("u1", steps=2),
    ):  # fmt: skip
        with pytest.raises(ArtefactError, match="plain was trained with 0 steps and can take none"):
            ask()
    assert len(answers(runs["plain"], torch.tensor([1, 2]))) == 1
    assert runs["plain"].recommend_user("u1", steps=0) == runs["plain"].recommend_user("u1")
    with pytest.raises(DataError, match="steps is -1"):
        runs["lares"].recommend_user("u1", steps=-1)
    for ask in (
        lambda: runs["lares"].recommend_user("u1", steps=10_001), lambda: by_steps(runs["rearec"], [10_001]),
        lambda: answers(runs["lares"], torch.tensor([1, 2]), steps=10_001), lambda: fit(runs["rearec"], most=10_001),
        lambda: settling(runs["rearec"], steps=10_001),
    ):  # fmt: skip
        with pytest.raises(DataError, match="steps is 10001; it has to be a whole number of 10000 or less"):
            ask()


def test_no_more_steps_than_blocks(runs: dict[str, Run], capsys: pytest.CaptureFixture[str]) -> None:
    run = runs["sasrec"]
    assert [step.titles for step in answers(run, torch.tensor([1, 2]), steps=2)] == [
        step.titles for step in answers(run, torch.tensor([1, 2]))
    ]
    assert main(["think", str(run.path), "--user", "u1", "--steps", "3", "--device", "cpu"]) == 2
    assert "takes a step a block and has 2, not 3; ask for 2 at most" in capsys.readouterr().err


@pytest.mark.parametrize("settings", [{}, {"start": "zero", "adapter": "add"}, {"start": "history", "adapter": "add"}])
def test_a_first_step_without_a_thought(
    runs: dict[str, Run], settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """What reads the history alone is left as it is by every intervention, so of one step nothing can be said."""
    run, history = copy.copy(runs["lares"]), torch.tensor([[1, 2], [3, 4], [5, 6]])
    model = type(run.model)(type(run.model.config)(**{**run.model.config.to_dict(), **settings})).eval()
    run.model = model
    for steps in (1, 2):
        moved = []
        for change in INTERVENTIONS.values():
            draws = torch.Generator().manual_seed(0)
            with thinking(model, steps):
                before = model.score(history).detach()
            with thinking(model, steps, lambda fed, by=change, draws=draws: by(fed, draws)):
                moved.append(not torch.allclose(model.score(history).detach(), before, atol=1e-7))
        with thinking(model, steps):
            if any(moved):
                assert changeable(run) == (steps if settings.get("start") == "history" else steps - 1)
            else:
                with pytest.raises(ArtefactError, match="takes 1 step, which reads the history alone"):
                    by_intervention(run)
        assert any(moved) == (steps == 2 or settings.get("start") == "history")


@pytest.mark.parametrize("kind", ["rearec", "lares", "sasrec"])
def test_the_last_answer_is_the_recommendation(runs: dict[str, Run], kind: str) -> None:
    run = runs[kind]
    steps = answers(run, run.history_of("u1"), k=4)
    best = run.recommend_user("u1", k=4)
    assert steps[-1].titles == [item.title for item in best]
    assert steps[-1].scores == pytest.approx([item.score for item in best], abs=1e-5)
    assert steps[0].moved is None
    assert all(step.moved >= 0 for step in steps[1:])
    if kind != "sasrec":
        assert [item.title for item in run.recommend_user("u1", k=4, steps=1)] == steps[1].titles
        with thinking(reasoner(run), 5):
            assert len(run.model.think(torch.tensor([[1, 2]])).states[0]) == 6


def test_a_growing_preference_moves_by_its_probabilities(runs: dict[str, Run]) -> None:
    run = runs["prefergrow"]
    history = run.history_of("u1")
    torch.manual_seed(1)
    steps = answers(run, history, exclude_seen=False)
    torch.manual_seed(1)
    items = run.model.think(history[None, -run.model.config.max_length :]).answers[0].double()
    laws = torch.cat([items, 1 - items.sum(dim=1, keepdim=True)], dim=1).clamp(min=1e-300)  # last: the disliked item's
    expected = [float((a * (a / b).log()).sum()) for a, b in pairwise(laws)]
    assert [step.moved for step in steps[1:]] == pytest.approx(expected)
    assert max(expected) > 0.1


def test_items_that_a_grown_preference_rules_out_are_not_its_best(runs: dict[str, Run]) -> None:
    model, history = runs["prefergrow"].model, torch.tensor([1, 2])
    law = torch.zeros(1, 2, 30)
    law[0, 0], law[0, 1, 7] = 1 / 40, 1.0  # of 30 items and the disliked one; then one item is left
    thought = replace(model.think(history[None]), answers=law)
    run = copy.copy(runs["prefergrow"])
    run.model = SimpleNamespace(config=model.config, device=model.device, think=lambda *_: thought)
    first, last = answers(run, history, k=3)
    assert len(first.titles) == 3
    assert last.scores == [1.0]
    assert 100 < last.moved < float("inf")


def test_thoughts_of_other_weights_do_not_stay(runs: dict[str, Run], tmp_path: Path) -> None:
    run = copy.copy(runs["rearec"])
    run.path = tmp_path
    path = save(run, "valid", {"steps": [{"steps": 0}]}, "one")
    save(run, "valid", {"interventions": [{"thoughts": "zero"}]}, "two")
    kept = json.loads(path.read_text())
    assert (kept["steps"], kept["commands"]) == ([{"steps": 0}], {"steps": "one", "interventions": "two"})
    run.model = copy.deepcopy(run.model)
    with torch.no_grad():
        run.model.embedding.weight.neg_()
    save(run, "valid", {"interventions": []}, "three")
    assert set(json.loads(path.read_text())) == {"model", "weights", "data", "split", "commands", "interventions"}
    path.write_text("{")
    save(run, "valid", {"steps": []}, "four")
    assert json.loads(path.read_text())["commands"] == {"steps": "four"}


def test_from_the_command_line(runs: dict[str, Run], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run, out = runs["lares"], tmp_path / "all.json"
    words = ["evaluate", str(run.path), "--steps", "0,3", "--interventions", "--quiet", "--json", str(out)]
    assert main([*words, "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert "shuffled" in told
    assert "of 2 steps, 1 went on from a changed one" in " ".join(told.split())
    kept = json.loads((run.path / "evaluation" / "test-thoughts.json").read_text())
    assert [row["steps"] for row in kept["steps"]] == [0, 3]
    assert json.loads(out.read_text())["interventions"] == kept["interventions"]
    assert main(["evaluate", str(run.path), "--steps", "1", "--quiet", "--device", "cpu"]) == 0
    assert "changed one" not in capsys.readouterr().out
    both = json.loads((run.path / "evaluation" / "test-thoughts.json").read_text())
    assert [row["steps"] for row in both["steps"]] == [1]
    assert both["interventions"] == kept["interventions"]
    assert set(both["commands"]) == {"steps", "interventions"}
    assert main(["think", str(run.path), "--user", "u1", "-k", "3", "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)
    assert [step["step"] for step in steps] == [0, 1, 2]
    assert main(["think", str(run.path), "--history", "i3, i4", "--steps", "1"]) == 0
    assert "Film" in capsys.readouterr().out
    assert main(["recommend", str(run.path), "--user", "u1", "--steps", "1", "--json"]) == 0
    assert [item["title"] for item in json.loads(capsys.readouterr().out)][:3] == steps[1]["titles"]
    assert main(["evaluate", str(runs["sasrec"].path), "--interventions"]) == 2
    assert "whose steps cannot be chosen" in capsys.readouterr().err
    for words in (["--steps", "0,1"], ["--interventions"]):
        assert main(["evaluate", str(runs["plain"].path), *words]) == 2
        assert "trained with 0 steps" in capsys.readouterr().err
    assert not (runs["plain"].path / "evaluation" / "test.json").exists()
    with pytest.raises(SystemExit):
        main(["evaluate", str(run.path), "--steps", "one"])
    assert "no list of whole numbers" in capsys.readouterr().err
