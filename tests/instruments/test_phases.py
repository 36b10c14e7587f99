"""Which positions are prompt, thought and answer: against a walk through the text; delimiters of several tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from forethought.errors import ArtefactError
from forethought.instruments.phases import ANSWER, PAD, PROMPT, THINK, Delimiters, phases

from .thinkers import CLOSE, DELIMITERS, OPEN, by_hand

NAMES = {PAD: "pad", PROMPT: "prompt", THINK: "think", ANSWER: "answer"}


@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.data())
def test_a_walk_through_the_text(ids: list[int], data: st.DataObject) -> None:
    prompt = data.draw(st.integers(1, len(ids)))
    left, right = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
    # padding may be any token, delimiters among them
    padded = torch.tensor([[OPEN] * left + ids + [CLOSE] * right])
    mask = torch.tensor([[0] * left + [1] * len(ids) + [0] * right])
    found = [NAMES[int(phase)] for phase in phases(padded, mask, prompt, DELIMITERS)[0]]
    assert found == ["pad"] * left + by_hand(ids, prompt) + ["pad"] * right


@given(st.lists(st.integers(1, 4), min_size=2, max_size=10), st.data())
def test_what_comes_later_changes_nothing(ids: list[int], data: st.DataObject) -> None:
    prompt = data.draw(st.integers(1, len(ids)))
    text = torch.tensor([ids])
    whole = phases(text, torch.ones_like(text), prompt, DELIMITERS)
    for length in range(1, len(ids) + 1):
        part = phases(text[:, :length], torch.ones_like(text[:, :length]), prompt, DELIMITERS)
        assert torch.equal(part, whole[:, :length])


def test_the_token_that_stops_is_the_last_thinking_one() -> None:
    # prompt 9 <think> | 5 6 </think> 7: positions belong to what they produce
    ids = torch.tensor([[9, OPEN, 5, 6, CLOSE, 7]])
    found = phases(ids, torch.ones_like(ids), torch.tensor([2]), DELIMITERS)
    assert found.tolist() == [[PROMPT, THINK, THINK, THINK, ANSWER, ANSWER]]
    assert found.dtype == torch.int8


def test_thoughts_of_earlier_turns_are_prompt() -> None:
    ids = torch.tensor([[OPEN, 5, CLOSE, 8, OPEN, 6]])
    assert phases(ids, torch.ones_like(ids), 5, DELIMITERS).tolist() == [[PROMPT] * 4 + [THINK, THINK]]


def test_before_any_delimiter_generated_tokens_are_neither() -> None:
    ids = torch.tensor([[5, 6, OPEN, 7]])
    assert phases(ids, torch.ones_like(ids), 1, DELIMITERS).tolist() == [[PROMPT, PROMPT, THINK, THINK]]


def test_delimiters_of_several_tokens() -> None:
    long = Delimiters((7, 8), (7, 9, 9))
    ids = torch.tensor([[7, 8, 5, 7, 9, 9, 5], [5, 7, 9, 8, 7, 8, 7], [7, 7, 8, 9, 7, 9, 9]])
    found = phases(ids, torch.ones_like(ids), 1, long)
    assert found.tolist() == [
        [PROMPT, THINK, THINK, THINK, THINK, ANSWER, ANSWER],
        [PROMPT, PROMPT, PROMPT, PROMPT, PROMPT, THINK, THINK],
        [PROMPT, PROMPT, THINK, THINK, THINK, THINK, ANSWER],
    ]
    # half a delimiter in the padding does not count
    mask = torch.tensor([[0, 1, 1, 1, 1, 1, 1]])
    assert phases(ids[:1], mask, 1, long)[0].tolist() == [PAD, PROMPT, PROMPT, PROMPT, PROMPT, ANSWER, ANSWER]
    # a text shorter than the delimiter
    assert phases(ids[:1, :1], torch.ones(1, 1), 1, long).tolist() == [[PROMPT]]


def tokenizer(*words: str) -> PreTrainedTokenizerFast:
    bare = Tokenizer(WordLevel({word: place for place, word in enumerate(["?", *words])}, unk_token="?"))
    bare.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="?")


def test_delimiters_of_a_tokenizer() -> None:
    assert Delimiters.of(tokenizer("<think>", "</think>")) == Delimiters((1,), (2,))
    assert Delimiters.of(tokenizer("[T]", "[/T]", "a"), "[T]", "[/T]") == Delimiters((1,), (2,))


@pytest.mark.parametrize("words", [("<think>", "b"), ("a", "</think>"), ("a", "b")])
def test_a_tokenizer_without_them(words: tuple[str, str]) -> None:
    # the unknown token is one token too, and would be looked for in vain
    with pytest.raises(ArtefactError, match="has no token <"):
        Delimiters.of(tokenizer(*words))
