"""LARES' two phases against their losses written out; what the release gets wrong is not wrong here."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from torch.nn import functional as F

from forethought.cli import main
from forethought.data.dataset import Dataset
from forethought.errors import RecipeError
from forethought.nn import encoder
from forethought.nn.encoder import newest_position
from forethought.recommenders.latent import post_training
from forethought.recommenders.latent.lares import LARES, LARESConfig
from forethought.recommenders.latent.post_training import advantages, divergence, hits, roll_out, thought_loss
from forethought.recommenders.run import Run, train
from forethought.recommenders.thinking import INTERVENTIONS

from ...planted import ring

N = 8
SIZES: dict[str, Any] = {"num_items": N, "max_length": 6, "hidden_size": 8, "num_heads": 2}
HISTORY = torch.tensor([[3, 1, 2, 0, 0], [7, 7, 2, 4, 0], [5, 0, 0, 0, 0], [8, 4, 2, 1, 6]])
ONE = torch.tensor([[0, 0, 3, 0, 0], [0, 0, 0, 5, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 3]])
TARGET = torch.tensor([2, 4, 0, 2])  # of ONE, from 0


def model(**settings: Any) -> LARES:
    torch.manual_seed(0)
    made = LARES(LARESConfig(**SIZES, depth="constant", **settings)).eval()
    with torch.no_grad():
        made.embedding.weight[1:].normal_(std=0.6)
    return made


def states(lares: LARES, history: Tensor = HISTORY, depth: int = 4) -> Tensor:
    return lares.states(history, newest_position(history)[:, None], depth)[:, 0].detach()


def both_ways(one: Tensor, other: Tensor, masked: bool, temperature: float) -> float:
    """In-batch contrast both ways; rows 0 and 3 have one target."""
    total = 0.0
    for a, b in ((one, other), (other, one)):
        logits = F.cosine_similarity(a[:, None], b[None], dim=-1) / temperature if temperature else a @ b.T
        if masked:
            logits[0, 3] = logits[3, 0] = -math.inf
        total += float(F.cross_entropy(logits, torch.arange(4))) / 2
    return total


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("temperature", [0.0, 0.2])
def test_alignments_as_they_are_written(
    masked: bool, temperature: float, tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {"trajectory_weight": 0.3, "step_alignment_weight": 0.7, "mask_false_negatives": masked}
    lares, plain = model(**weights, contrast_temperature=temperature), model()
    lares.observe(tiny)
    other = torch.tensor([[1, 2, 0], [2, 3, 4], [2, 0, 0], [5, 1, 2]])
    monkeypatch.setattr(lares._same_target, "draw", lambda history, target: other)
    monkeypatch.setattr(torch, "randint", lambda low, high, size: torch.tensor(high - 1))  # the last that may be drawn
    own, view = states(lares), states(lares, other)
    expected = float(plain(HISTORY, ONE).loss.detach())
    expected += 0.3 * both_ways(own[:, -1], view[:, -1], masked, temperature)
    expected += 0.7 * both_ways(
        own[:, -1], own[:, -2], masked, temperature
    )  # the release may take the last state, against itself
    assert float(lares(HISTORY, ONE).loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_another_history_with_the_target_needs_the_data() -> None:
    lares = model(trajectory_weight=1.0)
    with pytest.raises(AssertionError, match="observe"):
        lares(HISTORY, ONE)


def test_both_views_of_an_alignment_have_one_depth(tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port lets the second view draw a depth of its own."""
    lares = model(trajectory_weight=1.0)
    lares.observe(tiny)
    depths = iter([3, 2])  # of the main pass and of both views; a third draw would raise
    monkeypatch.setattr(lares, "training_steps", lambda: next(depths))
    taken: list[int] = []
    monkeypatch.setattr(lares, "states", lambda *given: (taken.append(given[2]), LARES.states(lares, *given))[1])
    lares(HISTORY, ONE)
    assert taken == [3, *[2] * 8]  # both views of four rows, a part each


def long_and_short(rows: int = 40) -> Tensor:
    """Histories of 0 to 6 items."""
    torch.manual_seed(1)
    inside = torch.arange(6) < torch.randint(0, 7, (rows, 1))
    return torch.randint(1, N + 1, (rows, 6)) * inside


def test_histories_read_by_length_are_thought_about_as_alone() -> None:
    lares, short, long = model(), HISTORY, long_and_short()
    found = lares._of_any_length([short, long], 3)
    for history, thoughts in zip((short, long), found, strict=True):
        torch.testing.assert_close(thoughts.detach(), states(lares, history, 3))


def test_the_second_phase_does_not_depend_on_the_parts_it_is_computed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    history, target = long_and_short(), torch.arange(40) % N
    monkeypatch.setattr(torch, "randn", torch.zeros)  # the rollouts are one; the distance to the reference is left
    losses = []
    for parts in (1, 7, 40):
        monkeypatch.setattr(encoder, "PARTS", parts)
        lares = model(post_rollouts=3, post_beta=1.0, post_candidates=4).train()
        lares.start_post_training()
        with torch.no_grad():
            lares.embedding.weight[1:] += 0.3 * torch.rand(N, 8)
        losses.append(float(thought_loss(lares, *lares._reference, history, target, 3).detach()))
    assert losses[0] > 1e-5
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-4)


@pytest.mark.parametrize("start", ["history", "zero", "normal", "normal_zero"])
def test_answers_are_the_same_every_time(start: Any) -> None:
    """The release draws the initial state anew for every answer."""
    lares = model(start=start, adapter="add")
    assert torch.equal(lares.score(HISTORY), lares.score(HISTORY))
    alone = torch.cat([lares.score(row[None, : int((row > 0).sum())]) for row in HISTORY])
    torch.testing.assert_close(lares.score(HISTORY), alone)
    lares.config.test_draws = 0
    assert torch.equal(lares.score(HISTORY), lares.score(HISTORY)) == (start != "normal")


def test_answers_are_averaged_over_initial_states() -> None:
    lares, queries = model(start="normal", adapter="add", test_draws=3), []
    for draw in range(3):
        lares.encoder.draw = draw
        queries.append(states(lares)[:, -1])
    lares.encoder.draw = 0
    assert not torch.allclose(queries[0], queries[1])
    torch.testing.assert_close(lares.query(HISTORY), torch.stack(queries).mean(dim=0))


@pytest.mark.parametrize("draws", [1, 3])
def test_a_thought_shows_what_is_answered(draws: int) -> None:
    lares = model(start="normal", adapter="add", test_draws=draws)
    torch.testing.assert_close(lares.think(HISTORY).answers[:, -1], lares.score(HISTORY))


def test_taking_the_thought_away_leaves_the_history() -> None:
    """With T_0 = H and no adapter nothing but the tokens brings the history on."""
    lares = model(steps=3)
    for block in lares.encoder.core:  # the steps add nothing, so nothing is lost with them
        for part in (block.attention.output, block.feed_forward[3]):
            torch.nn.init.zeros_(part.weight)
            torch.nn.init.zeros_(part.bias)
    before = lares.score(HISTORY)
    for intervene in INTERVENTIONS.values():
        lares.change = lambda fed, by=intervene: by(fed, torch.Generator().manual_seed(0))
        torch.testing.assert_close(lares.score(HISTORY), before)
    for settings in ({}, {"start": "zero", "adapter": "residual"}):
        lares = model(steps=3, **settings)
        lares.change = None
        before = lares.score(HISTORY)
        for intervene in INTERVENTIONS.values():
            lares.change = lambda fed, by=intervene: by(fed, torch.Generator().manual_seed(0))
            assert float((lares.score(HISTORY) - before).abs().max().detach()) > 0.01


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("start_std", 0.0, "greater than 0"), ("start_std", math.nan, "greater than 0"),
        ("start_std", math.inf, "greater than 0"), ("start_scale", math.nan, "at least 0"),
        ("post_noise", math.inf, "at least 0"), ("post_beta", math.nan, "at least 0"), ("shallowest", 0, "at least 1"),
    ],
)  # fmt: skip
def test_numbers_that_mean_nothing_are_refused(key: str, value: float, reason: str) -> None:
    with pytest.raises(StrictDataclassError, match=rf"{key} is {value}; it has to be {reason} and finite"):
        LARESConfig(**SIZES, **{key: value})


def test_a_contrast_of_appended_tokens_is_refused() -> None:
    with pytest.raises(StrictDataclassError, match="contrast_weight is of appended tokens"):
        model(contrast_weight=1.0)


def test_a_thought_goes_as_deep_as_it_is_asked_to() -> None:
    lares = model()
    thought = lares.think(HISTORY, 9)
    assert (thought.kind, thought.states.shape) == ("recur", (4, 10, 8))
    for step in (0, 4, 9):
        torch.testing.assert_close(thought.answers[:, step], lares.query(HISTORY, step) @ lares.item_vectors().T)


# -- the second phase


def test_advantages_of_a_group() -> None:
    reward = torch.randn(5, 7, dtype=torch.float64)
    found = advantages(reward)
    torch.testing.assert_close(found.sum(dim=0), torch.zeros(7, dtype=torch.float64))
    expected = (reward - reward.mean(0)) / (reward.std(0, unbiased=True) + 1e-4)
    torch.testing.assert_close(found, expected)
    assert float(advantages(torch.full((4, 3), 0.7)).abs().max()) < 1e-3


def test_divergence_and_hits() -> None:
    log_p = torch.tensor([-1.0, -2.0])
    assert divergence(log_p, log_p).tolist() == [0, 0]
    assert bool((divergence(log_p, log_p.flip(0)) > 0).all())
    far = torch.tensor([-10.0, -200.0], requires_grad=True)
    pull = divergence(far, torch.zeros(2))
    pull.sum().backward()
    assert float(pull[0].detach()) == pytest.approx(math.exp(10) - 11)
    assert bool(pull.isfinite().all())
    assert far.grad.tolist() == pytest.approx([1 - math.exp(10), 1 - math.exp(20)])
    logits = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.2, 0.1]])
    assert hits(logits, torch.tensor([2, 2]), 2).tolist() == [True, False]


def grads(lares: LARES, seed: int = 3) -> tuple[float, dict[str, Tensor]]:
    lares.zero_grad()
    torch.manual_seed(seed)
    loss = lares(HISTORY, ONE).loss
    loss.backward()
    found = {name: own.grad.clone() for name, own in lares.named_parameters() if own.grad is not None}
    return float(loss.detach()), found


@pytest.mark.parametrize("start", ["history", "normal"])
def test_the_reference_under_the_same_noise_is_no_distance_away(start: Any) -> None:
    """In the release the two see different initial states, and the divergence measures those."""
    lares = model(start=start, post_rollouts=4).train()
    lares.start_post_training()
    noise = [torch.randn(4, 4, 5, 8) for _ in range(3)]
    lares.encoder.eval()
    now, before = (roll_out(of, HISTORY, TARGET, noise, 0.1) for of in (lares, *lares._reference))
    assert torch.equal(now.log_p, before.log_p)


@pytest.mark.parametrize("objective", ["thought", "released"])
def test_under_autocast_near_items_do_not_tie(objective: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tie with the target is no item above it, so rounded scores would be hits."""
    lares, met = model(post_objective=objective, post_dropout=0.0).train(), []
    with torch.no_grad():
        lares.embedding.weight[2] = 1.001 * lares.embedding.weight[1]
    lares.start_post_training()
    monkeypatch.setattr(post_training, "hits", lambda *given: met.append(given[0]) or hits(*given))
    with torch.autocast("cpu", torch.bfloat16):
        lares(HISTORY, ONE)
    assert met
    for logits in met:
        assert logits.dtype == torch.float32
        assert bool((logits[..., 0] != logits[..., 1]).all())


@pytest.mark.parametrize("objective", ["thought", "released"])
def test_where_all_rewards_are_equal_only_the_divergence_pulls(objective: Any) -> None:
    for beta in (0.0, 1.0):
        lares = model(post_objective=objective, post_beta=beta, post_dropout=0.0).double().train()
        with torch.no_grad():  # every state is one and the same, so all thoughts are equally good
            lares.encoder.final_norm.weight.zero_()
            lares.encoder.final_norm.bias.normal_()
        lares.start_post_training()
        assert max(float(grad.abs().max()) for grad in grads(lares)[1].values()) == pytest.approx(0, abs=1e-7)
        with torch.no_grad():
            lares.embedding.weight[1:] += 0.1 * torch.randn(N, 8)
        largest = max(float(grad.abs().max()) for grad in grads(lares)[1].values())
        assert (largest > 1e-4) == (beta > 0)


@pytest.mark.parametrize("objective", ["thought", "released"])
@pytest.mark.parametrize("readout", ["last", "mean", "gate", "dual"])
def test_the_reference_is_read_out_as_the_model_is(
    readout: Any, objective: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lares = model(readout=readout, post_objective=objective, post_dropout=0.0).train()
    lares.start_post_training()
    apart: list[Tensor] = []
    monkeypatch.setattr(post_training, "divergence", lambda one, two: apart.append(one - two) or divergence(one, two))
    grads(lares)
    assert max(float(each.detach().abs().max()) for each in apart) == pytest.approx(0, abs=1e-6)


def test_the_thoughts_gradient_is_that_of_its_probability() -> None:
    """Σ z · f / σ and the log-density of the draws have one gradient, at every parameter of the core."""
    lares = model(steps=3).double()
    noise = [torch.randn(2, 4, 5, 8, dtype=torch.float64) for _ in range(3)]
    names = [name for name, _ in lares.named_parameters() if "core." in name]
    parameters = [dict(lares.named_parameters())[name] for name in names]
    found = torch.autograd.grad(roll_out(lares, HISTORY, TARGET, noise, 0.3).score.sum(), parameters)

    position, encoder = newest_position(HISTORY), lares.encoder
    total = torch.zeros(2, dtype=torch.float64)
    for row, length in enumerate((position + 1).tolist()):
        for group in range(2):
            tokens = encoder.encode(lares.embedding(HISTORY[row : row + 1, :length])).tokens
            density = torch.zeros((), dtype=torch.float64)
            for drawn in noise:
                mean = encoder.core[0](tokens)
                tokens = (mean + 0.3 * drawn[group, row, :length]).detach()
                density = density - ((tokens - mean) ** 2).sum() / (2 * 0.3**2)
            total = total + density / (3 * length * 8)
    expected = torch.autograd.grad(total[0], parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_better_thoughts_become_likelier() -> None:
    lares = model(post_rollouts=16, post_noise=0.3, post_beta=0.0, post_candidates=0).train()
    lares.start_post_training()
    optimiser = torch.optim.Adam(lares.parameters(), 3e-3)

    def reward() -> float:
        return float(lares.logits(states(lares)[:, -1]).log_softmax(-1)[range(4), TARGET].mean().detach())

    before = reward()
    for seed in range(60):
        torch.manual_seed(seed)
        optimiser.zero_grad()
        lares(HISTORY, ONE).loss.backward()
        optimiser.step()
    assert reward() > before + 0.1


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_the_released_objective_as_it_is_written(similarity: Any) -> None:
    lares = model(post_objective="released", post_rollouts=3, post_k=3, post_beta=0.5, post_dropout=0.0,
                  post_candidates=0, start="normal", adapter="add", similarity=similarity,
                  temperature=0.3).train()  # fmt: skip
    lares.start_post_training()
    with torch.no_grad():
        lares.embedding.weight[1:] += 0.3 * torch.randn(N, 8)
    found = grads(lares)[0]
    (reference,) = lares._reference
    torch.manual_seed(3)
    torch.multinomial((ONE > 0).float(), 1)
    position, rewards, kls = newest_position(HISTORY)[:, None], [], []

    def scores(of: LARES, seen: Tensor) -> Tensor:
        items = of.embedding.weight[1:]
        if similarity == "cosine":
            return F.cosine_similarity(seen[..., None, :], items, dim=-1) / 0.3
        return seen @ items.T / 0.3

    for _ in range(3):
        now, before = (of.states(HISTORY, position, 4)[:, 0, 1:] for of in (lares, reference))
        log_p, ref = (
            scores(of, seen).log_softmax(-1)[range(4), :, TARGET].detach()
            for of, seen in ((lares, now), (reference, before))
        )
        last = scores(lares, now[:, -1]).detach()
        rewards.append(torch.tensor([float(t in row.topk(3).indices) for t, row in zip(TARGET, last, strict=True)]))
        kls.append(((ref - log_p).exp() - (ref - log_p) - 1).mean(dim=1))
    reward = torch.stack(rewards)
    better = (reward - reward.mean(0)) / (reward.std(0) + 1e-4)
    assert found == pytest.approx(float((0.5 * torch.stack(kls) - better).mean()), abs=1e-5)


@pytest.mark.parametrize("objective", ["thought", "released"])
def test_the_second_phase_rewards_what_is_ranked_by(objective: Any) -> None:
    found = {}
    for readout in ("last", "mean", "gate"):
        lares = model(readout=readout, post_objective=objective, post_candidates=0, post_beta=1.0).train()
        lares.start_post_training()
        with torch.no_grad():
            lares.embedding.weight[1:] += 0.1 * torch.randn(N, 8)
        found[readout], grad = grads(lares)
        assert all(float(grad[name].abs().max()) > 0 for name in grad if "readout_gate" in name)
    assert len({round(loss, 6) for loss in found.values()}) == 3
    for settings in ({}, {"similarity": "cosine", "temperature": 0.3}):
        lares = model(readout="mean", steps=2, **settings)
        noise = [torch.zeros(2, 4, 5, 8) for _ in range(2)]
        rolled = roll_out(lares, HISTORY, TARGET, noise, 0.3)
        for group in range(2):
            torch.testing.assert_close(rolled.logits[group], lares.score(HISTORY))
            torch.testing.assert_close(rolled.log_p[group], lares.score(HISTORY).log_softmax(-1)[range(4), TARGET])


def test_targets_the_reference_never_finds_are_left_out() -> None:
    lares = model(post_candidates=3, post_beta=1.0).train()
    lares.start_post_training()
    with torch.no_grad():
        lares.embedding.weight[1:] += 0.1 * torch.randn(N, 8)
    loss = torch.arange(8.0).view(2, 4)
    before = torch.zeros(2, 4, N)
    before[:, :, :3] = 1.0  # three items above all others
    target = torch.tensor([0, 5, 2, 6])
    assert float(post_training._mean(loss, before, target, lares.config)) == pytest.approx((2 + 4) / 2)


def test_the_second_phase_leaves_nothing_behind(tmp_path: Path) -> None:
    lares = model(dropout=0.5)
    names = set(lares.state_dict())
    lares.start_post_training()
    assert {part.p for part in lares.modules() if hasattr(part, "p")} == {0.1}
    assert set(lares.state_dict()) == names
    lares.end_post_training()
    assert {part.p for part in lares.modules() if hasattr(part, "p")} == {0.5}


RECIPE: dict[str, Any] = {
    "name": "two-phases",
    "model": {"type": "lares", "hidden_size": 8, "steps": 2, "trajectory_weight": 0.1, "step_alignment_weight": 0.1,
              "post_rollouts": 2},
    "training": {"epochs": 2, "batch_size": 64},
    "post_training": {"epochs": 1, "batch_size": 64, "learning_rate": 1e-4},
}  # fmt: skip


def test_both_phases_are_one_recipe(tmp_path: Path) -> None:
    data = ring(users=120, items=30).save(tmp_path / "data")
    recipe = {**RECIPE, "data": {"path": str(data.path)}}
    run = train(recipe, out=tmp_path / "run", device="cpu", quiet=True)
    second = run.info["post_training"]
    assert (second["steps"], second["metric"]) == (2, "ndcg@10")
    assert second["kept"] == (second["after"] > second["before"])
    again = Run.open(tmp_path / "run")
    assert dataclasses.asdict(again.recipe.post_training)["learning_rate"] == 1e-4
    torch.testing.assert_close(again.model.score(HISTORY), run.model.score(HISTORY))

    record = json.loads((tmp_path / "run" / "run.json").read_text())  # as if it had been killed at the very end
    (tmp_path / "run" / "run.json").write_text(json.dumps({**record, "status": "running"}))
    resumed = train(recipe, out=tmp_path / "run", device="cpu", quiet=True, resume=True)
    torch.testing.assert_close(resumed.model.score(HISTORY), run.model.score(HISTORY), atol=0, rtol=0)


def test_the_second_phase_can_be_left_out(tmp_path: Path) -> None:
    data = ring(users=120, items=30).save(tmp_path / "data")
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "data": {"path": str(data.path)}}))
    assert main(["train", str(path), "--out", str(tmp_path / "run"), "--device", "cpu", "--quiet", "--one-phase"]) == 0
    run = Run.open(tmp_path / "run")
    assert run.recipe is not None
    assert run.recipe.post_training is None
    assert "post_training" not in run.info
    assert not (tmp_path / "run" / "post-training").exists()


def test_the_second_phase_can_follow_later(tmp_path: Path) -> None:
    data = ring(users=120, items=30).save(tmp_path / "data")
    recipe = {**RECIPE, "data": {"path": str(data.path)}}
    train({**recipe, "post_training": None}, out=tmp_path / "run", quiet=True).evaluate(bootstrap=0)
    later = train(recipe, out=tmp_path / "run", resume=True, quiet=True)
    at_once = train(recipe, out=tmp_path / "other", quiet=True)
    for name, weights in at_once.model.state_dict().items():
        assert torch.equal(weights, later.model.state_dict()[name]), name
    evaluated = [path.name for path in sorted((tmp_path / "run" / "evaluation").iterdir())]
    assert evaluated == ["valid-ranks.npy", "valid.json"]  # none of the weights that were there before
    same = ("steps", "best_step", "post_training")
    told = [{key: run.info[key] for key in same} for run in (later, at_once)]
    for each in told:
        each["post_training"] = {**each["post_training"], "seconds": None}
    assert told[0] == told[1]
    assert Run.open(tmp_path / "run").recipe.post_training is not None
    with pytest.raises(RecipeError, match=r"was begun with post_training\.epochs 1, not None"):
        train({**recipe, "post_training": None}, out=tmp_path / "run", resume=True, quiet=True)


def test_one_metric_judges_both_phases(tmp_path: Path) -> None:
    data = ring(users=120, items=30).save(tmp_path / "data")
    recipe = {**RECIPE, "data": {"path": str(data.path)}, "training": {"max_steps": 2, "select_by": "hr@20"}}
    run = train(recipe, out=tmp_path / "run", device="cpu", quiet=True)
    second = run.info["post_training"]
    assert second["metric"] == "hr@20"
    for path, phase in ((tmp_path / "run", "before"), (tmp_path / "run" / "post-training", "after")):
        lines = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
        assert max(line["valid/hr@20"] for line in lines if "valid/hr@20" in line) == second[phase]
    with pytest.raises(RecipeError, match=r"post_training\.select_by is 'ndcg@5' and training\.select_by 'hr@20'"):
        train(recipe, overrides={"post_training.select_by": "ndcg@5"}, out=tmp_path / "no")


def test_without_steps_there_is_no_second_phase(tmp_path: Path) -> None:
    data = ring(users=120, items=30).save(tmp_path / "data")
    recipe = {**RECIPE, "data": {"path": str(data.path)}}
    with pytest.raises(RecipeError, match="with 0 steps there is no second phase; give --one-phase"):
        train(recipe, overrides={"model.steps": 0}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_of_one_phase_refuses_a_second(tmp_path: Path) -> None:
    recipe = {"model": {"type": "sasrec"}, "data": {"path": "nowhere"}, "post_training": {"epochs": 1}}
    with pytest.raises(RecipeError, match="a sasrec has no second phase; remove post_training"):
        train(recipe, out=tmp_path / "run")
