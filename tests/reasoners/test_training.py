from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2ForCausalLM
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.models.auto.tokenization_auto import AutoTokenizer

from forethought.data.problems import FAMILIES, LEVELS, Problem, draw_problems
from forethought.errors import ArtefactError, DataError, RecipeError
from forethought.reasoners import training
from forethought.reasoners.reasoner import Reasoner
from forethought.reasoners.tokenizer import build_tokenizer
from forethought.reasoners.training import (
    MAX_NEW_TOKENS,
    ReasonerConfig,
    Traces,
    build_reasoner,
    config_class,
    measure,
    model_card,
    reasoner_of,
    train_reasoner,
)
from forethought.recipes import SHIPPED
from forethought.recommenders.run import Run
from forethought.training.checkpoints import checkpoints, verify
from forethought.training.recipe import Recipe
from tests.conftest import REPOSITORY
from tests.reasoners.tiny import CONFIG, tiny

TRAINING = {
    "max_steps": 6, "batch_size": 4, "evaluate_every": 2, "select_by": "accuracy", "patience": 0,
    "learning_rate": 3e-3,
}  # fmt: skip
CONTENT: dict[str, Any] = {
    "name": "tiny",
    "model": {"type": "reasoner", "hidden_size": 64, "num_layers": 2, "intermediate_size": 64},
    "training": TRAINING,
}
# kills itself in the fifth step, after the checkpoint of the fourth
KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from tests.reasoners.test_training import shortened, recipe
from forethought.reasoners import training

steps, loss = [], training.ReasonerTrainer.compute_loss
def counted(self, *args, **options):
    steps.append(1)
    if len(steps) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return loss(self, *args, **options)

training.ReasonerTrainer.compute_loss = counted
shortened(training)
training.train_reasoner(recipe(), out=sys.argv[1], device="cpu", threads=1, quiet=True)
"""


def recipe(**changed: Any) -> Recipe:
    dotted = {key.replace("__", "."): value for key, value in changed.items()}
    return Recipe.from_mapping(CONTENT, config_class, dotted)


def shortened(module: Any) -> None:
    """What is measured on the way is not what these tests are about."""
    module.VALIDATION, module.MAX_NEW_TOKENS = 5, 20


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "VALIDATION", 5)
    monkeypatch.setattr(training, "MAX_NEW_TOKENS", 20)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "VALIDATION", 5)
        patch.setattr(training, "MAX_NEW_TOKENS", 20)
        out = tmp_path_factory.mktemp("reasoner") / "run"
        return train_reasoner(recipe(), out=out, device="cpu", quiet=True, problems=30)


# ---------------------------------------------------------------------------------------------------- what is learned


def test_a_row_is_prompt_thought_and_answer_and_only_what_follows_the_prompt_is_learned() -> None:
    traces, tokenizer = Traces(40, seed=1), build_tokenizer()
    batch = traces[np.arange(40)]
    assert batch["history"].dtype == batch["target"].dtype == torch.int64
    brief = 0
    for row in range(40):
        history, target = batch["history"][row].tolist(), batch["target"][row].tolist()
        length = int(traces.lengths[row])
        assert not any(history[length:] + target[length:])
        asked = next(place for place, token in enumerate(target) if token)
        assert all(target[asked:length])  # nothing inside is left out, nor is padding learned
        assert target[asked : length - 1] == history[asked + 1 : length]
        prompt, rest = tokenizer.decode(history[: asked + 1]), tokenizer.decode(target[asked:length])
        assert prompt.startswith("<|im_start|>user\n")
        assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n<think>\n")
        thought, answer = rest.split("</think>\n")
        assert answer.startswith("\\boxed{")
        assert answer.endswith("}<|im_end|>")
        question = prompt.removeprefix("<|im_start|>user\n").split("<|im_end|>")[0]
        if question.endswith(" Be brief."):
            brief += 1
            assert "Wait" not in thought
        assert Problem("", 0, question.removesuffix(" Be brief."), (), "").split == "train"
    assert 0 < brief < 20


def test_the_same_seed_is_the_same_rows_and_the_null_world_has_other_checks() -> None:
    rows, again, other = Traces(50, 3), Traces(50, 3), Traces(50, 4)
    assert torch.equal(rows.items, again.items)
    assert not torch.equal(rows.items[:500], other.items[:500])
    text = [build_tokenizer().decode(found.items.tolist()) for found in (rows, Traces(50, 3, planned=False))]
    assert text[1].count("Wait ") > text[0].count("Wait ")


def test_no_trace_is_longer_than_what_may_be_generated() -> None:
    for planned in (True, False):
        traces = Traces(1500, 0, planned)
        assert int((traces.lengths + 1 - traces.prompts).max()) <= MAX_NEW_TOKENS
        assert int(traces.lengths.max()) < 1024


# ---------------------------------------------------------------------------------------------------- training


def test_a_run_holds_what_a_run_holds(trained: Path) -> None:
    record = json.loads((trained / "run.json").read_text())
    assert (record["status"], record["model"], record["steps"]) == ("finished", "reasoner", 6)
    assert record["problems"] == 24
    assert sorted(path.name for path in trained.iterdir()) == [
        "checkpoints", "evaluation", "log.jsonl", "model", "recipe.yaml", "run.json",
    ]  # fmt: skip
    events = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if "valid/accuracy" in event] == [2, 4, 6]
    assert Recipe.load(trained / "recipe.yaml", config_class) == recipe()
    verify(trained / "model")


def test_the_folder_opens_with_transformers_alone(trained: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(trained / "model")
    tokenizer = AutoTokenizer.from_pretrained(trained / "model")
    assert isinstance(model, Qwen2ForCausalLM)
    config = json.loads((trained / "model" / "config.json").read_text())
    assert config["model_type"] == "qwen2"
    assert config.get("use_cache", True)  # the trainer takes it out
    assert json.loads((trained / "model" / "generation_config.json").read_text()).get("use_cache", True)
    # a class that every version of transformers with fast tokenizers has
    settings = json.loads((trained / "model" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "sum 1 2"}], add_generation_prompt=True, return_tensors="pt"
    )
    out = model.generate(**prompt, max_new_tokens=3, do_sample=False)
    there = Reasoner.open(trained / "model", device="cpu")
    assert (
        out[0, prompt["input_ids"].shape[1] :].tolist()[: len(out)]
        == there.generate([there.prompt("sum 1 2")], max_new_tokens=3)[0][: len(out)]
    )
    assert not list((trained / "model").glob("*.bin"))


def test_the_card_says_what_it_has_to(trained: Path) -> None:
    card = (trained / "model" / "README.md").read_text()
    assert "24 problems made by `forethought.data.problems`" in card
    assert "**Command**: `" in card
    assert "seed 0" in card
    table = [line for line in card.splitlines() if line.startswith("| ")]
    assert len(table) == 2 + len(FAMILIES)
    assert len({line.count("|") for line in table}) == 1
    assert "nan" not in card


def test_a_card_of_few_problems_leaves_open_what_was_not_measured() -> None:
    cell = {
        "family": "sum",
        "level": 4,
        "problems": 2,
        "accuracy": 0.5,
        "ended": 1.0,
        "thinking_tokens": 9.0,
        "checks": 1,
    }
    record = {"parameters": 1, "problems": 9, "command": ["x y"], "seconds": 60.0, "machine": "m", "threads": 1}
    card = model_card(recipe(model__planned=False), record, [cell])
    assert "| sum | – | – | – | 0.500 | – | 9 |" in card
    assert "`'x y'`, 1 minutes on m" in card
    assert "nothing to do with the question" in card
    assert "grows with them" in model_card(recipe(), record, [cell])


@pytest.mark.slow
def test_killed_and_resumed_it_is_the_run_that_would_have_been(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, str(out), str(REPOSITORY)]
    assert subprocess.run(command, timeout=300, capture_output=True).returncode == -signal.SIGKILL
    assert json.loads((out / "run.json").read_text())["status"] == "running"
    assert list(checkpoints(out / "checkpoints"))[-1] == 4
    with pytest.raises(ArtefactError, match="go on with it by --resume"):
        train_reasoner(recipe(), out=out, device="cpu", quiet=True)
    with pytest.raises(RecipeError, match=r"begun with training\.learning_rate"):
        train_reasoner(recipe(training__learning_rate=1e-3), out=out, resume=True, device="cpu", quiet=True)
    train_reasoner(recipe(), out=out, resume=True, device="cpu", quiet=True, problems=30)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (out / "model" / name).read_bytes() == (trained / "model" / name).read_bytes()
    assert (out / "evaluation" / "test.json").read_bytes() == (trained / "evaluation" / "test.json").read_bytes()


def test_a_finished_run_is_left_alone(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "Traces", lambda *given: pytest.fail("nothing is left to do"))
    assert train_reasoner(recipe(), out=trained, resume=True, device="cpu", quiet=True) == trained


def test_other_commands_say_that_it_is_no_recommender(trained: Path) -> None:
    with pytest.raises((ArtefactError, RecipeError, DataError)) as raised:
        Run.open(trained)
    assert "\n" not in str(raised.value)


def test_each_problem_is_seen_once_with_accumulation_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = []

    def counted(number: int, *rest: Any) -> Traces:
        numbers.append(number)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "Traces", counted)
    with pytest.raises(KeyboardInterrupt):
        train_reasoner(recipe(training__gradient_accumulation_steps=3), out=tmp_path / "run", device="cpu")
    assert numbers == [6 * 4 * 3]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(training, "measure", lambda *given, **more: [{"accuracy": 0.0}])
    train_reasoner(recipe(training__max_steps=1), out=tmp_path / "run", device="cpu", quiet=True)
    assert not (tmp_path / "run" / "run.json").exists()
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model__width": 64}, "model.width"),
        ({"model__hidden_size": 100}, "hidden_size is 100; it has to be a multiple of 64"),
        ({"model__num_layers": 0}, "num_layers is 0"),
        ({"model__type": "sasrec"}, "a reasoner's is 'reasoner'"),
        ({"training__stepps": 1}, "training.stepps"),
        ({"training__max_steps": 0}, "max_steps"),
        ({"training__max_steps": None}, "no training.max_steps"),
        ({"training__select_by": "ndcg@10"}, "a reasoner's is accuracy"),
        ({"data__path": "somewhere"}, "makes its own problems"),
        ({"post_training": {"select_by": "accuracy"}}, "a reasoner has no second phase; remove post_training"),
        ({"training__report_to": ["nosuch"]}, "nosuch is not supported"),
    ],
)
def test_a_wrong_recipe_is_told_in_a_sentence(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words) as raised:
        train_reasoner(recipe(**changed), out=tmp_path / "run", device="cpu")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("changed", [{"problems": 0}, {"threads": 0}])
def test_a_wrong_number_is_told_in_a_sentence(tmp_path: Path, changed: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="is 0; it has to be a whole number of 1 or more"):
        train_reasoner(recipe(training__max_steps=1), out=tmp_path / "run", device="cpu", **changed)
    assert not (tmp_path / "run").exists()


def test_the_shipped_recipe_is_one() -> None:
    shipped = Recipe.load(SHIPPED / "reasoner" / "embedded.yaml", config_class)
    assert shipped.training.max_steps
    assert shipped.training.select_by == "accuracy"


# ---------------------------------------------------------------------------------------------------- measuring


def test_validation_keeps_what_it_has_computed(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base trainer switches the key-value cache off for training, and generation must not inherit that."""
    widths: list[int] = []
    validate = training.ReasonerTrainer.validate

    def watched(self: Any) -> dict[str, float]:
        hook = self.model.model.layers[0].register_forward_pre_hook(
            lambda module, inputs: widths.append(inputs[0].shape[1])
        )
        try:
            return validate(self)
        finally:
            hook.remove()

    monkeypatch.setattr(training.ReasonerTrainer, "validate", watched)
    train_reasoner(recipe(training__max_steps=1), out=tmp_path / "run", device="cpu", quiet=True, problems=5)
    assert widths[0] > 1
    assert set(widths[1:]) == {1}


def test_cells_are_means_of_what_was_answered() -> None:
    found = measure(tiny(end=2.0, stop=1.0), "valid", 50, batch_size=7)
    assert [(cell["family"], cell["level"]) for cell in found] == [(f, level) for f in FAMILIES for level in LEVELS]
    assert sum(cell["problems"] for cell in found) == 50
    assert all(0 <= cell["accuracy"] <= cell["ended"] <= 1 for cell in found)
    # the batch is no part of it
    assert found == measure(tiny(end=2.0, stop=1.0), "valid", 50, batch_size=50)


def test_a_reasoner_that_knows_is_right_in_every_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    reasoner = tiny()
    known = {tuple(reasoner.prompt(p.question)): p for p in draw_problems(50, "test", 0, by_text=True)}

    def knows(self: Reasoner, prompts: list[list[int]], **options: Any) -> list[list[int]]:
        found = [known[tuple(prompt)] for prompt in prompts]
        return [self.tokenizer.encode(f"{p.trace(2)}</think>\n\\boxed{{{p.answer}}}<|im_end|>") for p in found]

    monkeypatch.setattr(Reasoner, "generate", knows)
    for cell in measure(reasoner, "test", 50):
        assert (cell["accuracy"], cell["ended"], cell["checks"]) == (1, 1, 2)


def test_the_network_is_the_seed_s_and_as_the_config_says() -> None:
    model = build_reasoner(CONFIG, 1)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), build_reasoner(CONFIG, 1).parameters(), strict=True)
    )
    assert not torch.equal(next(model.parameters()), next(build_reasoner(CONFIG, 2).parameters()))
    assert (model.config.head_dim if hasattr(model.config, "head_dim") else 64) == 64
    assert reasoner_of(model).context == 1024
    two = build_reasoner(ReasonerConfig(hidden_size=128, num_layers=1, intermediate_size=8), 0)
    assert two.config.num_attention_heads == 2


def test_attention_begins_ready_to_copy() -> None:
    """Like finds like and is copied; apart from what tokens are, head h of the first layer looks h + 1 tokens back."""
    model = build_reasoner(ReasonerConfig(), 0)
    for layer in model.model.layers:
        assert torch.equal(layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight)
        assert torch.equal(layer.self_attn.o_proj.weight, 2 * layer.self_attn.v_proj.weight.T)
    first = model.model.layers[0].self_attn
    torch.nn.init.zeros_(first.q_proj.weight)
    torch.nn.init.zeros_(first.k_proj.weight)
    model.set_attn_implementation("eager")
    tokens = torch.randint(40, len(build_tokenizer()), (1, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        attention = model(input_ids=tokens, output_attentions=True).attentions[0][0]
    places = torch.arange(10, 60)
    for head in (0, 1):
        assert torch.equal(attention[head, places].argmax(-1), places - head - 1)
