from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.auto.tokenization_auto import AutoTokenizer

from forethought.reasoners.tokenizer import BOX, CLOSING, END, OPENING, START, STOP, build_tokenizer

WORDS = (
    OPENING,
    CLOSING,
    BOX,
    "Wait ",
    "sum",
    "collatz",
    " in",
    "user\n",
    "Be brief.",
    "7",
    "  ",
    "\n",
    "é",
    "思",
    "\r",
)


@cache
def tokenizer() -> Any:
    return build_tokenizer()


@given(st.text(st.characters(exclude_categories=["Cs"])) | st.lists(st.sampled_from(WORDS)).map("".join))
def test_any_text_comes_back(text: str) -> None:
    ids = tokenizer().encode(text, add_special_tokens=False)
    assert tokenizer().decode(ids) == text
    assert tokenizer()([text], add_special_tokens=False)["input_ids"] == [ids]
    assert all(0 <= token < len(tokenizer()) for token in ids)


@given(st.text("0123456789", min_size=1), st.sampled_from(["", " ", "sum ", "(", "Wait ", "x"]))
def test_one_digit_is_one_token(digits: str, before: str) -> None:
    ids = tokenizer().encode(before + digits)
    assert [tokenizer().decode([token]) for token in ids[-len(digits) :]] == list(digits)


def test_marks_are_one_token_each_and_padding_is_none_of_the_text() -> None:
    for mark in (END, START, STOP, OPENING, CLOSING, BOX):
        assert len(tokenizer().encode(mark)) == 1
    assert (tokenizer().pad_token_id, tokenizer().eos_token) == (0, STOP)
    assert tokenizer().padding_side == "left"
    # what a thought is told by has to be read in what is decoded
    assert OPENING in tokenizer().decode(tokenizer().encode(f"a{OPENING}b"), skip_special_tokens=True)


def test_the_prompt_ends_after_the_opening_mark() -> None:
    messages = [{"role": "user", "content": "sum 1 2"}]
    text = tokenizer().apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "<|im_start|>user\nsum 1 2<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert tokenizer().apply_chat_template(messages, tokenize=False) == "<|im_start|>user\nsum 1 2<|im_end|>\n"
    ids = tokenizer().apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert tokenizer().decode(ids[-2:]) == "<think>\n"
    assert len(ids) == 13


@pytest.mark.parametrize("text", ["sum 12 3", "a  b\t½ 漢字 🙂\r\n", "Wait 1:82\n</think>\n\\boxed{3}"])
def test_it_is_the_same_after_saving(tmp_path: Path, text: str) -> None:
    tokenizer().save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.encode(text) == tokenizer().encode(text)
    assert again.decode(again.encode(text)) == text
    assert again.chat_template == tokenizer().chat_template
    assert again.get_vocab() == build_tokenizer().get_vocab()
    assert (again.pad_token_id, again.eos_token_id, again.padding_side, again.model_max_length) == (0, 2, "left", 1024)
