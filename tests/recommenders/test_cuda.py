"""On a GPU: every model as on the CPU, every command, and a run that goes on. Skipped where there is none."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from forethought import train
from forethought.cli import main
from forethought.data.dataset import Dataset
from forethought.evaluation.ranking import rank_targets
from forethought.recommenders.base import Recommender, newest
from forethought.recommenders.counting import CountingRecommender
from forethought.recommenders.models import build, read_recipe
from forethought.training.ranking import RankingTrainer
from tests.planted import ring
from tests.training.test_trainer import StopAt, StopError

from .test_contract import CASES, HISTORY, NUM_ITEMS, model  # noqa: F401  # a fixture

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
SMALL = {"model.hidden_size": 16, "training.max_steps": 60, "training.epochs": 100, "training.batch_size": 64}
RECIPES = ["sasrec/demo", "rearec/beauty-erl", "rearec/beauty-prl", "rearec/beauty-contrast", "lares/beauty",
           "prefergrow/demo", "prefergrow/beauty-adaptive"]  # fmt: skip


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring().save(tmp_path_factory.mktemp("data") / "ring")


@pytest.mark.parametrize("model", CASES, indirect=True)
def test_every_model_answers_as_on_the_cpu(model: Recommender) -> None:  # noqa: F811
    there, history = copy.deepcopy(model).to("cuda"), newest(HISTORY, 4)
    assert_close(there.score(history.to("cuda")).cpu(), model.score(history), rtol=1e-4, atol=1e-4)
    own, other = model.recommend(HISTORY, k=3), there.recommend(HISTORY.to("cuda"), k=3)
    assert_close(other.scores.cpu(), own.scores, rtol=1e-4, atol=1e-4)
    thought, here = there.think(history.to("cuda")), model.think(history)
    assert thought.states.shape == here.states.shape
    assert torch.equal(thought.mask.cpu(), here.mask)


@pytest.mark.parametrize("model", CASES, indirect=True)
def test_every_model_learns_there(model: Recommender) -> None:  # noqa: F811
    if isinstance(model, CountingRecommender):
        pytest.skip("counting is no training")
    history = newest(HISTORY, 4).to("cuda")
    target = torch.where(history > 0, history % NUM_ITEMS + 1, 0)
    model.to("cuda").train()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)

    def mean_loss() -> float:
        torch.manual_seed(1)
        with torch.no_grad():
            return sum(model(history, target).loss.item() for _ in range(30)) / 30

    before = mean_loss()
    for _ in range(60):
        optimiser.zero_grad()
        model(history, target).loss.backward()
        optimiser.step()
    assert mean_loss() < before


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_run_is_trained_and_judged_alike(name: str, precision: str, data: Dataset, tmp_path: Path) -> None:
    second = {"post_training.epochs": 1, "post_training.precision": precision} if name.startswith("lares") else {}
    changes = {**SMALL, **second, "data.path": str(data.path), "training.precision": precision}
    run = train(name, out=tmp_path / "run", device="cuda", quiet=True, overrides=changes)
    assert (run.info["device"], run.info["precision"]) == ("cuda", precision)
    assert torch.cuda.get_device_name() in run.info["machine"]
    targets = data.targets("test")
    there = rank_targets(run.model.to("cuda"), targets)
    here = rank_targets(run.model.to("cpu"), targets)
    assert np.mean(there.expected == here.expected) > 0.99  # near ties may turn
    losses = [json.loads(line).get("loss") for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(loss) for loss in losses if loss is not None)


def test_every_command_takes_the_device(data: Dataset, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    words = [word for key, value in SMALL.items() for word in (f"--{key}", str(value))]
    assert main(["train", "lares/beauty", "--one-phase", "--data.path", str(data.path), "--out", run, *words]) == 0
    for command in (
        ["evaluate", run, "--split", "test", "--steps", "0,1,2"],
        ["evaluate", run, "--split", "test", "--interventions"],
        ["recommend", run, "--history", "i1,i2,i3"],
        ["think", run, "--history", "i1,i2,i3"],
        ["dial", run],
        ["probe", run],
    ):
        assert main([*command, "--device", "cuda", "--quiet"]) == 0, command


@pytest.mark.parametrize("name", ["sasrec/demo", "rearec/beauty-prl"])
def test_going_on_there_gives_the_run_that_would_have_been(name: str, data: Dataset, tmp_path: Path) -> None:
    chosen = read_recipe(name, {**SMALL, "data.path": str(data.path), "training.precision": "fp32"})

    def fit(folder: Path, resume: bool = False, stop: int | None = None) -> RankingTrainer:
        stops = [StopAt(stop)] if stop else []
        trainer = RankingTrainer(
            build(chosen, data), data, chosen, tmp_path / folder, device="cuda", quiet=True, callbacks=stops
        )
        trainer.fit(resume)
        return trainer

    whole = fit(Path("whole"))
    for step in (12, 33):
        with pytest.raises(StopError):
            fit(Path("parts"), resume=step > 12, stop=step)
    parts = fit(Path("parts"), resume=True)
    histories = torch.arange(1, 41, device="cuda").view(8, 5)
    # Sums on a GPU have no fixed order, and what has no gradient, as a bias of keys, is moved by rounding alone: what
    # the weights come to is compared.
    assert_close(whole.model.eval().score(histories), parts.model.eval().score(histories), rtol=1e-2, atol=1e-2)
    assert whole.state.global_step == parts.state.global_step == SMALL["training.max_steps"]
