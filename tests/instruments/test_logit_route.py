"""At the final norm a hook, a bias on the logits and the closed form are one and the same, and end with the thought."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList

from forethought.errors import ArtefactError
from forethought.instruments.logit_route import ThinkingBias, advantage, end_bias, logit_bias, parts
from forethought.instruments.phases import Delimiters
from forethought.instruments.schedules import Budget, Constant, EntropyAdaptive, Ramp, Schedule
from forethought.instruments.steering import Steering

from .thinkers import (
    CLOSE,
    DELIMITERS,
    FAMILIES,
    OPEN,
    SCRIPT,
    VOCABULARY,
    WIDTH,
    Script,
    generate,
    opened,
    prompts,
    reference,
    thinker,
    vectors,
    whole_mask,
)

STRENGTHS = torch.tensor([0.6, 0.0, -0.4])
LENGTHS = [6, 4, 5]
SCHEDULES: list[Schedule] = [
    Constant(),
    Ramp(3, 0.2, 1.4),
    Budget(2, 1.0, -0.5),
    EntropyAdaptive(0.4, 1.0, 8.0, 0.5),
]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    return thinker(request.param)


@pytest.fixture(scope="module")
def qwen() -> Any:
    return thinker("Qwen3")


def biased(model: Any, bias: Tensor, strength: float | Tensor, schedule: Schedule | None = None, **more: Any) -> Any:
    processor = ThinkingBias(bias, strength, DELIMITERS, schedule)
    output = generate(model, logits_processor=[processor, Script(SCRIPT)], **more)
    return output, processor


class Heard(Script):
    """Keeps the logits that reach it, before it makes the text."""

    def __init__(self) -> None:
        super().__init__(SCRIPT)
        self.logits: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.logits.append(scores)
        return super().__call__(input_ids, scores)


def heard(model: Any, *before: Any) -> tuple[Tensor, Tensor]:
    """The text, and the logits that each step chose from; int64 ``[B, T]``, float ``[B, steps, V]``."""
    script = Heard()
    output = generate(model, logits_processor=[*before, script])
    return output.sequences, torch.stack(script.logits, dim=1)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_three_routes_to_the_same_logits(model: Any, schedule: Schedule) -> None:
    vector = vectors("norm")["norm"]
    with Steering({"norm": vector}, STRENGTHS, "think", schedule=schedule).applied(model, DELIMITERS) as applied:
        hooked, by_hook = heard(model)
    processor = ThinkingBias(logit_bias(model, vector), STRENGTHS, DELIMITERS, schedule)
    text, by_bias = heard(model, processor)
    assert torch.equal(hooked, text)
    torch.testing.assert_close(by_hook, by_bias, atol=1e-5, rtol=1e-5)
    assert processor.count.tolist() == applied.count.tolist()
    # the closed form, over the whole text and with nothing of ours in it
    ids = text[:, :-1]
    plain = reference(model, ids, whole_mask(ids), {}, torch.zeros(()))[:, -9:]
    think = opened(ids, whole_mask(ids), LENGTHS, lambda phase, number: phase == "think")[:, -9:]
    if isinstance(schedule, Constant):
        shift = model.lm_head.weight.detach() @ vector
        expected = plain + (think * STRENGTHS[:, None])[..., None] * shift
        torch.testing.assert_close(by_bias, expected, atol=1e-5, rtol=1e-5)
    # what is not thought is what the model says by itself
    torch.testing.assert_close(by_bias[~think], plain[~think], atol=1e-5, rtol=1e-5)


def test_nothing_is_biased_after_the_thought(qwen: Any) -> None:
    bias = torch.linspace(-5, 5, VOCABULARY)
    processor = ThinkingBias(bias, 1.0, DELIMITERS)
    output = generate(qwen, logits_processor=[processor, Script(SCRIPT)])
    ids = output.sequences
    for step in range(9):
        text = ids[:, : 6 + step]
        touched = processor(text, output.logits[step]) != output.logits[step]
        thinking = opened(text, whole_mask(text), LENGTHS, lambda phase, number: phase == "think")[:, -1]
        assert torch.equal(touched.any(dim=1), thinking)
    steps = [4, 5, 9]  # the token that stops is the last thinking one; the second row thinks once more
    assert biased(qwen, bias, 1.0)[1].count.tolist() == steps


def test_no_strength_changes_no_bit(qwen: Any) -> None:
    scores = -torch.zeros(3, VOCABULARY)
    ids = prompts()[0]
    same = ThinkingBias(torch.ones(VOCABULARY), 0.0, DELIMITERS)(ids, scores)
    assert torch.equal(same.view(torch.int32), scores.view(torch.int32))
    rows = ThinkingBias(torch.ones(VOCABULARY), torch.tensor([1.0, 0.0, 0.0]), DELIMITERS)(ids, scores)
    assert torch.equal(rows[1:].view(torch.int32), scores[1:].view(torch.int32))
    assert torch.equal(rows[0], torch.ones(VOCABULARY))


def test_a_bias_on_the_end_shortens_the_thought(qwen: Any) -> None:
    ends = end_bias(DELIMITERS, VOCABULARY)
    assert ends.nonzero().tolist() == [[CLOSE]]
    output = generate(qwen, logits_processor=[ThinkingBias(ends, 50.0, DELIMITERS)])
    assert (output.sequences[:, 6] == CLOSE).all()
    # behind its end the thought is over, and the end as likely as the model finds it
    assert not (output.sequences[:, 7:] == CLOSE).all()
    # a budget lets it think four tokens, and makes it end with the fifth
    processor = ThinkingBias(ends, 50.0, DELIMITERS, Budget(4, before=-1.0, after=1.0))
    output = generate(qwen, logits_processor=[processor])
    assert (output.sequences == CLOSE).int().argmax(dim=1).tolist() == [10, 10, 10]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_rows_are_runs_apart(qwen: Any, schedule: Schedule) -> None:
    bias = logit_bias(qwen, vectors("norm")["norm"])
    _, together = heard(qwen, ThinkingBias(bias, STRENGTHS, DELIMITERS, schedule))
    for row, strength in enumerate(STRENGTHS.tolist()):
        _, apart = heard(qwen, ThinkingBias(bias, strength, DELIMITERS, schedule))
        torch.testing.assert_close(apart[row], together[row], atol=1e-5, rtol=1e-5)


def test_several_samples_of_each_prompt(qwen: Any) -> None:
    bias = 20 * end_bias(DELIMITERS, VOCABULARY)
    processor = ThinkingBias(bias, torch.tensor([0.0, 1.0, -1.0]), DELIMITERS)
    torch.manual_seed(0)
    output = generate(qwen, do_sample=True, num_return_sequences=3, logits_processor=[processor])
    first = output.sequences[:, 6] == CLOSE
    assert first.tolist()[3:] == [True] * 3 + [False] * 3
    assert processor.count.tolist()[:3] == [0, 0, 0]


def test_beams_have_their_prompts_strength(qwen: Any) -> None:
    bias = logit_bias(qwen, vectors("norm")["norm"])
    together = generate(qwen, num_beams=3, logits_processor=[ThinkingBias(bias, STRENGTHS, DELIMITERS, Ramp(4))])
    for row, strength in enumerate(STRENGTHS.tolist()):
        processor = ThinkingBias(bias, strength, DELIMITERS, Ramp(4))
        apart = generate(qwen, num_beams=3, logits_processor=[processor])
        assert torch.equal(apart.sequences[row], together.sequences[row])
    processor = ThinkingBias(bias, STRENGTHS, DELIMITERS, EntropyAdaptive())
    with pytest.raises(ArtefactError, match="beam search moves them"):
        generate(qwen, num_beams=4, logits_processor=[processor])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_a_second_generation_begins_anew(qwen: Any, schedule: Schedule) -> None:
    processor = ThinkingBias(logit_bias(qwen, vectors("norm")["norm"]), STRENGTHS, DELIMITERS, schedule)
    _, first = heard(qwen, processor)
    count = processor.count
    _, second = heard(qwen, processor)
    assert torch.equal(first, second)
    assert torch.equal(count, processor.count)


# ------------------------------------------------------------------------------------------------ the bias


@pytest.mark.parametrize(
    ("family", "more", "multiplier"),
    [("Granite", {"logits_scaling": 4.0}, 0.25), ("Cohere", {"logit_scale": 0.0625}, 0.0625)],
)
def test_logits_that_are_multiplied(family: str, more: dict[str, float], multiplier: float) -> None:
    model, vector = thinker(family, **more), vectors("norm")["norm"]
    bias = logit_bias(model, vector)
    torch.testing.assert_close(bias, multiplier * model.get_output_embeddings().weight.detach() @ vector)
    with Steering({"norm": vector}, STRENGTHS).applied(model):
        hooked = model(*prompts()).logits[:, -1]
    torch.testing.assert_close(
        hooked, model(*prompts()).logits[:, -1] + STRENGTHS[:, None] * bias, atol=1e-5, rtol=1e-5
    )


def test_a_bias_in_half_precision() -> None:
    model, vector = thinker("Llama").bfloat16(), vectors("norm")["norm"]
    torch.testing.assert_close(logit_bias(model, vector), model.lm_head.weight.detach().float() @ vector)


def test_logits_that_are_capped() -> None:
    vector = vectors("norm")["norm"]
    model = thinker("Gemma2", head_dim=8, final_logit_softcapping=30.0)
    with pytest.raises(ArtefactError, match="logits of Gemma2ForCausalLM are not linear"):
        logit_bias(model, vector)
    with Steering({"norm": vector}, 0.5).applied(model) as applied:  # as the sentence says to
        model(*prompts())
    assert applied.total > 0
    model = thinker("Gemma2", head_dim=8, final_logit_softcapping=None)
    torch.testing.assert_close(logit_bias(model, vector), model.lm_head.weight.detach() @ vector)


def test_parts_add_up() -> None:
    bias = torch.randn(VOCABULARY)
    end, rest = parts(bias, DELIMITERS)
    assert torch.equal(end + rest, bias)
    assert end.nonzero().tolist() == [[CLOSE]]
    assert rest[CLOSE] == 0


def test_parts_act_as_the_whole(qwen: Any) -> None:
    bias = logit_bias(qwen, vectors("norm")["norm"])
    _, whole = heard(qwen, ThinkingBias(bias, STRENGTHS, DELIMITERS))
    _, apart = heard(qwen, *(ThinkingBias(part, STRENGTHS, DELIMITERS) for part in parts(bias, DELIMITERS)))
    torch.testing.assert_close(whole, apart)


def test_advantage_is_the_slope_of_the_log_odds() -> None:
    torch.manual_seed(0)
    bias, logits = torch.randn(VOCABULARY, dtype=torch.float64), 3 * torch.randn(5, 2, VOCABULARY, dtype=torch.float64)

    def log_odds(strength: float) -> Tensor:
        chance = (logits + strength * bias).softmax(dim=-1)[..., CLOSE]
        return chance.log() - (1 - chance).log()

    slope = (log_odds(1e-4) - log_odds(-1e-4)) / 2e-4
    torch.testing.assert_close(advantage(bias, logits, DELIMITERS).double(), slope, atol=1e-5, rtol=1e-5)
    # a bias that lifts all tokens alike favours none, whatever its entry at the end
    torch.testing.assert_close(
        advantage(torch.ones(VOCABULARY), logits, DELIMITERS), torch.zeros(5, 2), atol=1e-5, rtol=0
    )
    assert advantage(end_bias(DELIMITERS, VOCABULARY), logits[0, 0], DELIMITERS) == 1


# ------------------------------------------------------------------------------------------------ refused


def test_biases_that_do_not_fit(qwen: Any) -> None:
    with pytest.raises(ArtefactError, match=r"The vector has shape \[7\] and the unembedding is 32 wide"):
        logit_bias(qwen, torch.ones(7))
    with pytest.raises(ArtefactError, match="Qwen3Model has no unembedding"):
        logit_bias(qwen.model, torch.ones(WIDTH))
    training = thinker("Qwen3").train()
    with pytest.raises(ArtefactError, match="evaluation mode"):
        logit_bias(training, torch.ones(WIDTH))
    with pytest.raises(ArtefactError, match=r"this one has shape \[2, 3\]"):
        ThinkingBias(torch.ones(2, 3), 1.0, DELIMITERS)
    with pytest.raises(ArtefactError, match="hold token 99, and the model has only 40 tokens"):
        ThinkingBias(torch.ones(VOCABULARY), 1.0, Delimiters((OPEN,), (99,)))
    with pytest.raises(ArtefactError, match="The strength is not finite"):
        ThinkingBias(torch.ones(VOCABULARY), float("nan"), DELIMITERS)
    with pytest.raises(ArtefactError, match="The bias has 41 entries for 40 logits"):
        biased(qwen, torch.ones(VOCABULARY + 1), 1.0)
    with pytest.raises(ArtefactError, match="The bias has 41 entries for 40 logits"):
        advantage(torch.ones(41), torch.zeros(40), DELIMITERS)
    with pytest.raises(ArtefactError, match="There are 2 strengths for"):
        biased(qwen, torch.ones(VOCABULARY), torch.ones(2))
    four = torch.tensor([[1, 2, OPEN], [2, 3, OPEN], [3, 4, OPEN], [4, 1, OPEN]])
    processor = ThinkingBias(torch.ones(VOCABULARY), torch.tensor([0.0, 3.0]), DELIMITERS)
    with pytest.raises(ArtefactError, match="There are 2 strengths for 4 rows; give one for each row, or one for all"):
        processor(four, torch.zeros(4, VOCABULARY))  # as many rows as two copies of two prompts, and other prompts
    copies = processor(four[[0, 0, 1, 1]], torch.zeros(4, VOCABULARY))
    assert copies[:, 0].tolist() == [0, 0, 3, 3]
    with pytest.raises(ArtefactError, match="The closing delimiter is 2 tokens long"):
        end_bias(Delimiters((OPEN,), (CLOSE, 9)), VOCABULARY)


def test_delimiters_of_several_tokens(qwen: Any) -> None:
    processor = ThinkingBias(torch.ones(VOCABULARY), 1.0, Delimiters((OPEN, 4), (11, 12)))
    scores = torch.zeros(1, VOCABULARY)
    for text, expected in (
        ([9, OPEN, 4, 11], 1.0),
        ([9, OPEN, 4, 12], 1.0),
        ([OPEN, 4, 11, 12], 0.0),
        ([OPEN, 9], 0.0),
    ):
        assert processor(torch.tensor([text]), scores)[0, 0] == expected


def test_it_is_a_logits_processor(qwen: Any) -> None:
    processors = LogitsProcessorList([ThinkingBias(torch.ones(VOCABULARY), 1.0, DELIMITERS)])
    assert torch.equal(processors(prompts()[0], torch.zeros(3, VOCABULARY)), torch.ones(3, VOCABULARY))
