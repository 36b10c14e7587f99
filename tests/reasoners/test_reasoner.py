from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from forethought.errors import ArtefactError, RecipeError
from forethought.instruments.phases import Delimiters
from forethought.reasoners.reasoner import Reasoner
from forethought.reasoners.tokenizer import build_tokenizer
from tests.reasoners.tiny import problems, tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    reasoner = tiny(end=4.0, stop=2.0)
    reasoner.model.save_pretrained(path)
    reasoner.tokenizer.save_pretrained(path)
    return path


def test_a_folder_opens_as_what_was_saved(folder: Path) -> None:
    here, there = tiny(end=4.0, stop=2.0), Reasoner.open(folder, device="cpu")
    assert there.delimiters == here.delimiters
    assert there.context == 1024
    assert not there.model.training
    assert there.stops == (there.tokenizer.eos_token_id,)
    prompts = [here.prompt(problem.question) for problem in problems(3)]
    assert prompts == [there.prompt(problem.question) for problem in problems(3)]
    arguments: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.0, "seed": 5}
    assert here.generate(prompts, **arguments) == there.generate(prompts, **arguments)


def test_what_a_thought_stands_between_may_be_token_ids(folder: Path) -> None:
    found = Reasoner.open(folder, device="cpu", delimiters=Delimiters((5,), (6,)))
    assert found.delimiters == Delimiters((5,), (6,))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b"x" * 100),
        ("config.json", b"[]"),
        ("config.json", b"{}"),
        ("config.json", b'{"model_type": "qwen2", "hidden_size": "wide"}'),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"\xff"),
        ("tokenizer_config.json", b"[]"),
    ],
)
def test_a_damaged_folder_is_told_in_a_sentence(folder: Path, tmp_path: Path, file: str, content: bytes) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ArtefactError, match="cannot be opened as a language model") as raised:
        Reasoner.open(tmp_path, device="cpu")
    assert "\n" not in str(raised.value)


def test_there_is_no_such_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ArtefactError, match="no folder"):
        Reasoner.open(tmp_path / "nothing")
    with pytest.raises(RecipeError, match="no device"):
        Reasoner.open(tmp_path, device="abacus")
    # nobody listens there: as without a network, but certainly
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ArtefactError, match=r"someone/some-model cannot be opened.*hub cannot be reached"):
        Reasoner.open("someone/some-model")
    assert "Retrying" not in capfd.readouterr().err  # for most of a minute


def test_a_tokenizer_that_never_ends_a_text_is_refused(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tokenizer = build_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ArtefactError, match="no end-of-text token"):
        Reasoner.open(tmp_path, device="cpu")


def test_a_model_without_the_marks_is_refused(folder: Path) -> None:
    with pytest.raises(ArtefactError, match="has no token <thinking>"):
        Reasoner.open(folder, device="cpu", delimiters=("<thinking>", "</thinking>"))


def test_a_prompt_is_the_template_and_the_newline_after_the_mark() -> None:
    reasoner = tiny()
    ids = reasoner.prompt("sum 1 2", "Be brief.")
    text = reasoner.tokenizer.decode(ids)
    assert text == "<|im_start|>user\nsum 1 2 Be brief.<|im_end|>\n<|im_start|>assistant\n<think>\n"
    asked = Reasoner("x", reasoner.model, reasoner.tokenizer, reasoner.delimiters, r"Use \boxed{}.")
    text = asked.tokenizer.decode(asked.prompt("sum 1 2"))
    assert "user\nsum 1 2\nUse \\boxed{}.<|im_end|>" in text
    assert "\b" not in text  # the original's "\boxed" was a backspace and "oxed"


def test_the_mark_is_added_once_where_the_template_leaves_it_to_the_model() -> None:
    reasoner = tiny()
    for template in (reasoner.tokenizer.chat_template.replace("<think>\\n", ""), None):
        reasoner.tokenizer.chat_template = template
        text = reasoner.tokenizer.decode(reasoner.prompt("sum 1 2"))
        assert text.endswith("\n<think>\n")
        assert text.count("<think>") == 1


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    reasoner = tiny(context=40)
    assert len(reasoner.prompt("sum " + "1 " * 10)) < 40
    with pytest.raises(ArtefactError, match="the context of embedded is 40"):
        reasoner.prompt("sum " + "1 " * 20)
    with pytest.raises(ArtefactError, match="leaves no room"):
        reasoner.generate([[5] * 40], max_new_tokens=3)


def test_a_long_prompt_in_the_batch_takes_no_room_from_the_others() -> None:
    reasoner = tiny(context=40)
    short, long = [5, 6, 7], [5] * 35
    both = reasoner.generate([short, long, short], max_new_tokens=12)
    assert [len(ids) for ids in both] == [12, 5, 12]
    assert both[0] == reasoner.generate([short], max_new_tokens=12)[0]


def test_a_batch_gives_what_single_prompts_give() -> None:
    reasoner = tiny(end=3.0)
    prompts = [reasoner.prompt(problem.question) for problem in problems(4)]
    assert len({len(prompt) for prompt in prompts}) > 1
    single = [reasoner.generate([prompt], max_new_tokens=10)[0] for prompt in prompts]
    assert reasoner.generate(prompts, max_new_tokens=10) == single


def test_draws_are_the_seed_s_and_leave_the_global_ones_alone() -> None:
    reasoner, prompt = tiny(), [[5, 6]]
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    first = reasoner.generate(prompt, max_new_tokens=8, temperature=1.0, seed=3)
    assert torch.equal(torch.rand(3), wanted)
    assert first == reasoner.generate(prompt, max_new_tokens=8, temperature=1.0, seed=3)
    assert first != reasoner.generate(prompt, max_new_tokens=8, temperature=1.0, seed=4)


def test_a_text_ends_at_every_token_that_the_model_was_told_to_end_at() -> None:
    reasoner = tiny(end=30.0)  # says the closing mark and nothing else
    close = reasoner.delimiters.close[0]
    assert reasoner.generate([[5]], max_new_tokens=4) == [[close] * 4]
    reasoner.model.generation_config.eos_token_id = [reasoner.tokenizer.eos_token_id, close]
    assert reasoner.generate([[5]], max_new_tokens=4) == [[close]]


def test_what_else_the_model_came_with_does_not_change_the_distribution() -> None:
    plain, told = tiny(), tiny()
    told.model.generation_config.update(repetition_penalty=5.0, top_k=1, no_repeat_ngram_size=1, min_p=0.9)
    for temperature in (0.0, 1.0):
        arguments: dict[str, Any] = {"max_new_tokens": 12, "temperature": temperature}
        assert told.generate([[5, 6]], **arguments) == plain.generate([[5, 6]], **arguments)


def test_the_length_of_a_thought_counts_generated_tokens_up_to_the_mark() -> None:
    reasoner = tiny()
    close = reasoner.delimiters.close[0]
    assert reasoner.thought([9, 9, close, 9, close]) == (2, True)
    assert reasoner.thought([close]) == (0, True)
    assert reasoner.thought([9, 9]) == (2, False)
    assert reasoner.thought([]) == (0, False)
    several = Reasoner("x", reasoner.model, reasoner.tokenizer, Delimiters((5,), (7, 8)))
    assert several.thought([7, 9, 7, 8, 9]) == (2, True)
    assert several.thought([7, 9, 7]) == (3, False)


def test_generation_keeps_what_it_has_computed() -> None:
    """Without a key-value cache every step would run the whole text again."""
    reasoner, widths = tiny(), []
    vars(reasoner.model.config).pop("use_cache", None)  # as the trainer leaves it
    reasoner.model.generation_config.use_cache = False
    layer = reasoner.model.model.layers[0]
    hook = layer.register_forward_pre_hook(lambda module, inputs: widths.append(inputs[0].shape[1]))
    reasoner.generate([[5, 6, 7]], max_new_tokens=5)
    hook.remove()
    assert widths == [3, 1, 1, 1, 1]
