"""The reasoner that comes along is what its model card says."""

from __future__ import annotations

import re

import numpy as np
import pytest
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.models.auto.tokenization_auto import AutoTokenizer

from forethought.reasoners.reasoner import EMBEDDED, Reasoner
from forethought.reasoners.training import measure
from forethought.training.checkpoints import verify


def test_it_is_small_whole_and_opens_without_us() -> None:
    verify(EMBEDDED)
    assert (EMBEDDED / "model.safetensors").stat().st_size <= 12_000_000
    model, tokenizer = AutoModelForCausalLM.from_pretrained(EMBEDDED), AutoTokenizer.from_pretrained(EMBEDDED)
    assert 1_000_000 <= model.num_parameters() <= 4_000_000
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "gcd 84 36"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    said = tokenizer.decode(model.generate(**asked, max_new_tokens=200, do_sample=False)[0])
    assert "</think>\n\\boxed{12}" in said


@pytest.mark.slow
def test_it_is_as_right_as_its_card_says() -> None:
    cells = measure(Reasoner.open(device="cpu"), "test", 1000)

    def accuracy(*levels: int) -> float:
        rows = [(cell["accuracy"], cell["problems"]) for cell in cells if cell["level"] in levels]
        return float(np.average([right for right, _ in rows], weights=[number for _, number in rows]))

    assert accuracy(1, 2, 3, 4, 5) >= 0.85
    assert accuracy(1, 2, 3) >= 0.95
    card = re.search(r"problems: ([.\d]+); over levels 1 to 3: ([.\d]+)\.\n", (EMBEDDED / "README.md").read_text())
    assert card is not None
    told = [float(number) for number in card.groups()]
    assert [accuracy(1, 2, 3, 4, 5), accuracy(1, 2, 3)] == pytest.approx(told, abs=0.005)  # another processor may round
