"""The trainer against a plain loop, and its promises: accumulation, averaging, early stopping, the best weights."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from forethought.data.batches import LengthBuckets, TrainingExamples
from forethought.data.dataset import Dataset
from forethought.errors import ArtefactError, DataError, RecipeError
from forethought.evaluation.metrics import mean_metrics
from forethought.evaluation.ranking import rank_targets
from forethought.recommenders.models import build
from forethought.recommenders.run import train
from forethought.training.checkpoints import checkpoints, seal
from forethought.training.devices import find_precision
from forethought.training.ranking import RankingTrainer
from forethought.training.recipe import Recipe

Change = Callable[..., Recipe]


def fit(recipe: Recipe, data: Dataset, folder: Path, resume: bool = False, **options: Any) -> RankingTrainer:
    trainer = RankingTrainer(build(recipe, data), data, recipe, folder, device="cpu", quiet=True, **options)
    trainer.fit(resume)
    return trainer


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def valid(model: PreTrainedModel, data: Dataset) -> float:
    return mean_metrics(rank_targets(model, data.targets("valid")))["seen_removed"]["ndcg@10"]


def test_it_takes_the_steps_of_a_plain_loop(recipe: Change, data: Dataset, folder: Path):
    chosen = recipe(training__max_grad_norm=0.5, training__weight_decay=0.1, training__scheduler="linear")
    model = build(chosen, data)
    examples = TrainingExamples(data, model.config.max_length)
    buckets = LengthBuckets(examples.lengths, 64, chosen.seed)
    decayed = [p for name, p in model.named_parameters() if "norm" not in name and "bias" not in name]
    rest = [p for name, p in model.named_parameters() if "norm" in name or "bias" in name]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=1e-3, fused=True)
    steps = 3 * len(buckets)
    model.train()
    for step in range(steps):
        if step % len(buckets) == 0:
            buckets.set_epoch(step // len(buckets))
            rows = iter(buckets)
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * (1 - step / steps)
        optimiser.zero_grad()
        model(**examples[next(rows)]).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimiser.step()
    trainer = fit(recipe(**_flat(chosen)), data, folder)
    last = trainer.state.global_step
    assert last == steps
    if trainer.state.best_global_step == last:
        torch.testing.assert_close(weights(trainer.model), weights(model))
    else:
        pytest.fail("the seed is chosen so that the last epoch is the best")


def _flat(recipe: Recipe) -> dict[str, Any]:
    return {f"training__{key}": value for key, value in recipe.to_dict()["training"].items()}


def test_accumulated_batches_make_one_big_batch(recipe: Change, data: Dataset, folder: Path):
    """The small batches hold different numbers of targets, so a mean of their means would differ."""
    big = recipe(training__batch_size=300, training__epochs=4, training__max_grad_norm=0)
    small = recipe(
        training__batch_size=37, training__gradient_accumulation_steps=9, training__epochs=4, training__max_grad_norm=0
    )  # 9 batches of 37 hold all 300 users, as the one batch of 300 does
    one, nine = (fit(each, data, folder / str(number)) for number, each in enumerate((big, small)))
    assert one.state.global_step == nine.state.global_step == 4
    losses = [[entry["loss"] for entry in events(folder / str(number)) if "loss" in entry] for number in (0, 1)]
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for name, value in weights(one.model).items():
        torch.testing.assert_close(value, weights(nine.model)[name], rtol=1e-4, atol=1e-5)


def test_the_best_epoch_is_kept_and_patience_ends_the_run(recipe: Change, data: Dataset, folder: Path):
    # steps this large wander: the best epoch is not the last
    chosen = recipe(training__epochs=60, training__patience=3, training__learning_rate=0.3)
    trainer = fit(chosen, data, folder)
    curve = {entry["step"]: entry["valid/ndcg@10"] for entry in events(folder) if "valid/ndcg@10" in entry}
    best = max(curve, key=lambda step: curve[step])
    assert trainer.state.best_global_step == best
    per_epoch = min(curve)
    assert max(curve) == trainer.state.global_step == best + 3 * per_epoch < 60 * per_epoch
    assert set(checkpoints(folder / "checkpoints")) == {best, max(curve)}
    assert valid(trainer.model, data) == pytest.approx(curve[best], abs=1e-12)


def test_the_average_is_evaluated_kept_and_restored(recipe: Change, data: Dataset, folder: Path):
    class Follow(TrainerCallback):  # type: ignore[misc]
        """The same average, by its definition."""

        average: dict[str, torch.Tensor]

        def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
            self.average = {name: p.detach().clone().double() for name, p in model.named_parameters()}

        def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
            n = state.global_step - 1
            decay = min(0.8, (1 + n) / (10 + n))
            for name, p in model.named_parameters():
                self.average[name] = decay * self.average[name] + (1 - decay) * p.detach().double()

    follow = Follow()
    chosen = recipe(training__ema_decay=0.8, training__evaluate_every=100)
    trainer = fit(chosen, data, folder, callbacks=[follow])
    for name, p in trainer.model.named_parameters():
        torch.testing.assert_close(p.detach().double(), follow.average[name], rtol=1e-5, atol=1e-6)
    logged = [entry["valid/ndcg@10"] for entry in events(folder) if "valid/ndcg@10" in entry]
    assert logged == [pytest.approx(valid(trainer.model, data), abs=1e-12)]  # one evaluation, at the end


class StopError(Exception):
    pass


class StopAt(TrainerCallback):  # type: ignore[misc]
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise StopError


@pytest.mark.parametrize("every", ["epoch", 3])
def test_going_on_gives_the_same_weights_and_the_same_log(
    recipe: Change, data: Dataset, folder: Path, every: str | int
):
    chosen = recipe(
        model__dropout=0.3, model__loss="sampled", training__epochs=4, training__ema_decay=0.9,
        training__gradient_accumulation_steps=2, training__batch_size=30, training__evaluate_every=every,
    )  # fmt: skip
    whole = fit(chosen, data, folder / "whole")
    for step in (4, 5, 13):  # 5 updates an epoch: within an epoch, at its end, again within
        with pytest.raises(StopError):
            fit(chosen, data, folder / "parts", resume=step > 4, callbacks=[StopAt(step)])
    parts = fit(chosen, data, folder / "parts", resume=True)
    for name, value in weights(whole.model).items():
        assert torch.equal(value, weights(parts.model)[name]), name
    timeless = [
        [{key: value for key, value in entry.items() if key != "seconds"} for entry in events(folder / name)]
        for name in ("whole", "parts")
    ]
    assert timeless[0] == timeless[1]


def test_a_run_killed_after_its_last_step_takes_no_other(recipe: Change, data: Dataset, folder: Path):
    chosen = recipe(training__max_steps=3, training__batch_size=30)  # within an epoch
    first = fit(chosen, data, folder)
    before = weights(first.model)
    again = fit(chosen, data, folder, resume=True)
    assert (first.state.global_step, again.state.global_step) == (3, 3)
    assert all(torch.equal(value, before[name]) for name, value in weights(again.model).items())


def test_a_run_stopped_early_and_killed_does_not_go_on(recipe: Change, data: Dataset, folder: Path):
    chosen = recipe(training__epochs=60, training__patience=2, training__learning_rate=0.3)
    first = fit(chosen, data, folder)
    before = weights(first.model)
    again = fit(chosen, data, folder, resume=True)
    assert again.state.global_step == first.state.global_step
    assert all(torch.equal(value, before[name]) for name, value in weights(again.model).items())


def test_damaged_checkpoints_are_refused_and_half_written_ones_ignored(recipe: Change, data: Dataset, folder: Path):
    fit(recipe(training__epochs=2), data, folder)
    newest = list(checkpoints(folder / "checkpoints").values())[-1]
    shutil.copytree(newest, newest.with_name(".checkpoint-999.part"))
    (newest.with_name(".checkpoint-999.part") / "files.json").unlink()
    trainer = fit(recipe(training__epochs=3), data, folder, resume=True)
    newest = checkpoints(folder / "checkpoints")[trainer.state.global_step]
    content = bytearray((newest / "optimizer.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "optimizer.pt").write_bytes(content)
    with pytest.raises(ArtefactError, match=rf"{newest.name} is damaged: optimizer.pt is not what was written. Train"):
        fit(recipe(training__epochs=4), data, folder, resume=True)


def damage(checkpoint: Path) -> None:
    content = bytearray((checkpoint / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (checkpoint / "model.safetensors").write_bytes(content)


def test_a_damaged_best_checkpoint_is_found_before_anything_is_trained(recipe: Change, data: Dataset, folder: Path):
    chosen = recipe(training__epochs=60, training__patience=3, training__learning_rate=0.3)
    first = fit(chosen, data, folder)  # steps this large wander: the best epoch is not the last
    best, last = checkpoints(folder / "checkpoints").values()
    damage(best)

    class Never(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            pytest.fail("it trains")

    sentence = (
        rf"{best.name} is damaged: model.safetensors is not what .* the best so far; train again in another --out"
    )
    with pytest.raises(ArtefactError, match=sentence):
        fit(chosen, data, folder, resume=True, callbacks=[Never()])
    damage(best)  # the same bit again
    damage(last)
    with pytest.raises(
        ArtefactError, match=rf"{last.name} is damaged: .* Remove that folder to go on from {best.name}"
    ):
        fit(chosen, data, folder, resume=True)
    shutil.rmtree(last)
    again = fit(chosen, data, folder, resume=True)
    assert again.state.global_step == first.state.global_step
    assert all(torch.equal(value, weights(first.model)[name]) for name, value in weights(again.model).items())
    shutil.rmtree(best)
    with pytest.raises(ArtefactError, match=rf"{best.name} is damaged: .* It is the best so far"):
        fit(chosen, data, folder, resume=True)


def test_a_checkpoint_of_other_processes_is_refused(recipe: Change, data: Dataset, folder: Path):
    fit(recipe(training__epochs=1), data, folder)
    (checkpoint,) = checkpoints(folder / "checkpoints").values()
    shutil.copy(checkpoint / "rng_state.pth", checkpoint / "rng_state_0.pth")
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_1.pth")  # as two processes leave it
    (checkpoint / "files.json").unlink()
    seal(checkpoint)
    with pytest.raises(
        ArtefactError, match=r"checkpoint-5 was written with processes 2, not 1; start as many or choose"
    ):
        fit(recipe(training__epochs=2), data, folder, resume=True)


@pytest.mark.parametrize(("every", "first"), [("epoch", 5), (3, 3)])
def test_a_run_without_checkpoints_begins_again_only_where_there_were_none(
    recipe: Change, data: Dataset, folder: Path, every: str | int, first: int
):
    chosen = recipe(training__evaluate_every=every)
    with pytest.raises(StopError):
        fit(chosen, data, folder, callbacks=[StopAt(first - 1)])
    with pytest.raises(StopError):  # nothing was kept yet
        fit(chosen, data, folder, resume=True, callbacks=[StopAt(2 * first)])
    kept = checkpoints(folder / "checkpoints")
    assert list(kept)[-1] == 2 * first
    for name, path in kept.items():
        damage(path)
        if name != 2 * first:
            shutil.rmtree(path)
    with pytest.raises(ArtefactError, match=r"is damaged: .* was written. Train again in another --out\."):
        fit(chosen, data, folder, resume=True)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(ArtefactError, match=r"checkpoints has lost its checkpoints; train again in another --out\."):
        fit(chosen, data, folder, resume=True)


def test_bfloat16_trains_and_leaves_a_plain_model(recipe: Change, data: Dataset, folder: Path):
    trainer = fit(recipe(training__precision="bf16", training__epochs=10, training__learning_rate=0.01), data, folder)
    assert "forward" not in vars(trainer.model)  # the wrapper is gone
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    losses = [entry["loss"] for entry in events(folder) if "loss" in entry]
    assert losses[-1] < losses[0] - 0.1


def test_divergence_is_said(recipe: Change, data: Dataset, folder: Path):
    class Break(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
            if state.global_step == 7:
                next(model.parameters()).data.fill_(float("nan"))

    with pytest.raises(RecipeError, match=r"Training diverged: the loss is nan at step 10; lower"):
        fit(recipe(), data, folder, callbacks=[Break()])
    assert list(checkpoints(folder / "checkpoints")) == [5]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), False),  # a tracker's
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), True),
        (OSError("no number"), False),
    ],
)
def test_only_what_is_wrong_with_the_place_is_told_as_such(
    recipe: Change, data: Dataset, folder: Path, error: OSError, told: bool
):
    class Report(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            raise error

    with pytest.raises(ArtefactError if told else type(error)) as caught:
        fit(recipe(), data, folder, callbacks=[Report()])
    if told:
        assert str(caught.value) == f"Cannot write to {folder}: No space left on device; choose another --out."
    else:
        assert caught.value is error


@pytest.mark.parametrize(
    ("words", "told"),
    [("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed", True), ("CUDA out of memory", False)],
)
def test_a_checkpoint_that_fails_for_another_reason_than_its_place(
    recipe: Change, data: Dataset, folder: Path, words: str, told: bool, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(words)

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(ArtefactError if told else RuntimeError, match="Cannot write to" if told else words) as caught:
        fit(recipe(), data, folder)
    assert isinstance(caught.value, ArtefactError) is told


def test_what_cannot_be_done_is_said(recipe: Change, data: Dataset, folder: Path):
    with pytest.raises(RecipeError, match=r"cannot train as recipe small asks: .*nosuch"):
        train(recipe(training__report_to=["nosuch"]), out=folder, device="cpu", quiet=True)
    with pytest.raises(RecipeError, match=r"select_by accuracy, which recommenders are not measured by"):
        train(recipe(training__select_by="accuracy"), out=folder, device="cpu", quiet=True)
    assert not folder.exists()  # so that the mended recipe has its place
    with pytest.raises(RecipeError, match="no device 'cuda:99'"):
        RankingTrainer(build(recipe(), data), data, recipe(), folder, device="cuda:99")


def test_without_validation_cases_the_last_weights_are_kept(recipe: Change, data: Dataset, folder: Path):
    empty = data.targets("valid").positions[:0]
    blind = Dataset(
        data.sequences, data.train_stop, empty, data.targets("test").positions, data.catalog, data.users, data.manifest
    )
    trainer = fit(recipe(training__ema_decay=0.5), blind, folder)
    assert trainer.state.best_global_step is None
    assert trainer.average is not None
    for name, value in trainer.average.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name])
    assert not any("valid/ndcg@10" in entry for entry in events(folder))


def test_nothing_to_learn_is_said(recipe: Change, data: Dataset, folder: Path):
    bare = Dataset(
        data.sequences, data.sequences.offsets[:-1] + 1, data.targets("valid").positions,
        data.targets("test").positions, data.catalog, data.users, data.manifest,
    )  # fmt: skip
    with pytest.raises(DataError, match="nothing to learn"):
        fit(recipe(), bare, folder)


def test_auto_precision_is_what_the_processor_is_fast_at(monkeypatch: pytest.MonkeyPatch):
    cpu = torch.device("cpu")
    for able, expected in (({}, "fp32"), ({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert find_precision("auto", cpu) == expected
        assert find_precision("fp32", cpu) == "fp32"
        assert find_precision("bf16", cpu) == "bf16"
