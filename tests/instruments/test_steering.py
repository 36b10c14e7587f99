"""Steering does what it says and nothing else: against logits of whole texts computed in the plainest way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, T5Config, T5ForConditionalGeneration

from forethought.errors import ArtefactError
from forethought.instruments.phases import Delimiters
from forethought.instruments.schedules import Budget, Constant, EntropyAdaptive, Ramp, relative_entropy
from forethought.instruments.sites import Site, Stack
from forethought.instruments.steering import Steering
from forethought.recommenders.sasrec import SASRec, SASRecConfig

from .thinkers import (
    CLOSE,
    DELIMITERS,
    EOS,
    FAMILIES,
    NEWLINE,
    PAD,
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

STRENGTHS = torch.tensor([0.5, -0.3, 0.2])
LENGTHS = [6, 4, 5]  # of the prompts
Walk = Callable[[str, int], bool]
GATES: dict[str, tuple[dict[str, Any], Walk]] = {
    "all": ({}, lambda phase, number: True),
    "prompt": ({"gate": "prompt"}, lambda phase, number: number < 0),
    "generated": ({"gate": "generated"}, lambda phase, number: number >= 0),
    "think": ({"gate": "think"}, lambda phase, number: phase == "think"),
    "answer": ({"gate": "answer"}, lambda phase, number: phase == "answer"),
    "window": ({"window": (2, 5)}, lambda phase, number: 2 <= number < 5),
    "open window": ({"gate": "think", "window": (1, None)}, lambda phase, number: phase == "think" and number >= 1),
}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    return thinker(request.param)


@pytest.fixture(scope="module")
def qwen() -> Any:
    return thinker("Qwen3")


def logits_of(output: Any) -> Tensor:
    """What the model itself gave at each step; float ``[B, steps, V]``."""
    return torch.stack(output.logits, dim=1)


def expect(model: Any, output: Any, steered: dict[Site, Tensor], scale: Tensor) -> None:
    """The logits at each step are those of the whole text with ``scale`` × vector added at its positions."""
    found = logits_of(output)
    ids = output.sequences[:, :-1]
    whole = reference(model, ids, whole_mask(ids), steered, scale)
    torch.testing.assert_close(found, whole[:, -found.shape[1] :], atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------------------ gates and the cache


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("gate", GATES)
def test_gates(model: Any, gate: str, cache: bool) -> None:
    keywords, walk = GATES[gate]
    steered = vectors(-1, 1, "norm")
    with Steering(steered, STRENGTHS, **keywords).applied(model, DELIMITERS) as applied:
        output = generate(model, use_cache=cache)
    ids = output.sequences[:, :-1]
    where = opened(ids, whole_mask(ids), LENGTHS, walk)
    expect(model, output, steered, where * STRENGTHS[:, None])
    # the steering is there to be seen
    assert not torch.allclose(logits_of(output), logits_of(generate(model, use_cache=cache)), atol=1e-2)
    assert applied.count.tolist() == where.sum(dim=1).tolist()
    assert applied.count.dtype == torch.int64
    assert applied.total == int(where.sum())


def test_after_a_token(qwen: Any) -> None:
    steered = vectors(0)
    with Steering(steered, 0.4, after=CLOSE).applied(qwen) as applied:
        output = generate(qwen)
    ids = output.sequences[:, :-1]
    where = (ids == CLOSE).cumsum(dim=1) > 0
    expect(qwen, output, steered, where * 0.4)
    assert applied.count.tolist() == where.sum(dim=1).tolist() == [5, 6, 0]


def test_nothing_is_steered_after_the_thought(qwen: Any) -> None:
    # at the norm nothing of the past is carried on, so logits behind </think> are those of an unsteered model
    with Steering(vectors("norm"), 5.0, gate="think").applied(qwen, DELIMITERS):
        steered = generate(qwen)
    ids = steered.sequences
    plain = reference(qwen, ids[:, :-1], whole_mask(ids[:, :-1]), {}, torch.zeros(()))[:, -9:]
    difference = (logits_of(steered) - plain).abs().amax(dim=-1) > 1e-4
    thinking = opened(ids[:, :-1], whole_mask(ids[:, :-1]), LENGTHS, GATES["think"][1])[:, -9:]
    assert torch.equal(difference, thinking)
    # the first row: steps 0 to 3 decide its three thinking tokens and to stop
    assert difference[0].tolist() == [True] * 4 + [False] * 5


@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_a_prompt_read_in_pieces(qwen: Any, chunk: int) -> None:
    steered = vectors(-1, 2)
    for gate in ("prompt", "generated", "think"):
        keywords, walk = GATES[gate]
        with Steering(steered, STRENGTHS, **keywords).applied(qwen, DELIMITERS) as applied:
            output = generate(qwen, prefill_chunk_size=chunk)
        ids = output.sequences[:, :-1]
        where = opened(ids, whole_mask(ids), LENGTHS, walk)
        expect(qwen, output, steered, where * STRENGTHS[:, None])
        assert applied.count.tolist() == where.sum(dim=1).tolist()


def test_a_cache_of_fixed_size(qwen: Any) -> None:
    # generate turns the mask into another form for it, in which padding is not to be read off
    for gate in ("all", "think"):
        steered, (keywords, walk) = vectors(1), GATES[gate]
        with Steering(steered, STRENGTHS, **keywords).applied(qwen, DELIMITERS) as applied:
            output = generate(qwen, cache_implementation="static")
        ids = output.sequences[:, :-1]
        where = opened(ids, whole_mask(ids), LENGTHS, walk)
        expect(qwen, output, steered, where * STRENGTHS[:, None])
        assert applied.count.tolist() == where.sum(dim=1).tolist()


def test_a_generation_loop_of_ones_own(qwen: Any) -> None:
    steered, (ids, mask) = vectors(0, "norm"), prompts()
    tokens = torch.randint(5, VOCABULARY, (3, 4), generator=torch.Generator().manual_seed(0))
    tokens[1, 1] = CLOSE
    found, cache = [], None
    with torch.no_grad(), Steering(steered, STRENGTHS, gate="think").applied(qwen, DELIMITERS) as applied:
        for step in range(4):
            output = qwen(input_ids=ids[:, -1:] if step else ids, attention_mask=mask, past_key_values=cache,
                          position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0)[:, -1 if step else 0 :])  # fmt: skip
            cache = output.past_key_values
            found.append(output.logits[:, -1])
            ids, mask = (
                torch.cat([ids, tokens[:, step : step + 1]], dim=1),
                torch.cat([mask, mask.new_ones(3, 1)], dim=1),
            )
    where = opened(ids[:, :-1], mask[:, :-1], LENGTHS, GATES["think"][1])
    whole = reference(qwen, ids[:, :-1], mask[:, :-1], steered, where * STRENGTHS[:, None])
    torch.testing.assert_close(torch.stack(found, dim=1), whole[:, -4:], atol=1e-5, rtol=1e-5)
    assert applied.count.tolist() == where.sum(dim=1).tolist()


def test_a_text_that_is_only_read(qwen: Any) -> None:
    ids = generate(qwen).sequences
    mask, steered = whole_mask(ids), vectors(1)
    where = opened(ids, mask, LENGTHS, GATES["think"][1])
    expected = reference(qwen, ids, mask, steered, where * 0.3)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    steering = Steering(steered, 0.3, gate="think")
    with torch.no_grad():
        for length in (torch.tensor(LENGTHS), 6 - mask[:, :6].eq(0).sum(dim=1)):
            with steering.applied(qwen, DELIMITERS, prompt_length=length):
                torch.testing.assert_close(qwen(ids, mask, positions).logits, expected, atol=1e-5, rtol=1e-5)
        # where nothing is said, all that is read is prompt, but for what its last position produces
        with steering.applied(qwen, DELIMITERS) as applied:
            qwen(ids, mask)
    assert applied.count.tolist() == [0, 0, 1]


def test_the_decoder_called_by_itself(qwen: Any) -> None:
    ids, mask = prompts()
    with torch.no_grad(), Steering(vectors(-1), 1.0).applied(qwen) as applied:
        inner = qwen.model(input_ids=ids, attention_mask=mask).last_hidden_state
        outer = qwen(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(inner, outer)
    assert applied.count.tolist() == LENGTHS  # left padding is not touched
    assert applied.total == 2 * sum(LENGTHS)


# ------------------------------------------------------------------------------------------------ rows


def test_left_padded_rows_are_single_runs(model: Any) -> None:
    steering = Steering(vectors(0, "norm"), 0.4, gate="think")
    with steering.applied(model, DELIMITERS) as applied:
        batch = generate(model)
        counts = applied.count
        ids, _ = prompts()
        for row, length in enumerate(LENGTHS):
            text = ids[row : row + 1, -length:]
            single = generate(
                model, input_ids=text, attention_mask=torch.ones_like(text),
                logits_processor=[Script(SCRIPT[row : row + 1], length)],
            )  # fmt: skip
            assert torch.equal(single.sequences[0], batch.sequences[row, 6 - length :])
            torch.testing.assert_close(logits_of(single)[0], logits_of(batch)[row], atol=1e-5, rtol=1e-5)
            assert applied.count[0] == counts[row]


def test_a_strength_a_row_is_runs_apart(model: Any) -> None:
    steered = vectors(-1, 0, 1, 2)
    with Steering(steered, STRENGTHS, gate="generated").applied(model):
        together = generate(model)
    for row, strength in enumerate(STRENGTHS.tolist()):
        with Steering(steered, strength, gate="generated").applied(model):
            apart = generate(model)
        assert torch.equal(apart.sequences[row], together.sequences[row])
        torch.testing.assert_close(logits_of(apart)[row], logits_of(together)[row], atol=1e-5, rtol=1e-5)


def test_several_samples_of_each_prompt(qwen: Any) -> None:
    steered = vectors(1)
    strength = torch.tensor([0.0, 0.6, -0.6])
    torch.manual_seed(0)
    with Steering(steered, strength, gate="think").applied(qwen, DELIMITERS) as applied:
        output = generate(qwen, do_sample=True, num_return_sequences=2, top_k=0)
    ids = output.sequences[:, :-1]
    assert len(ids) == 6
    assert not torch.equal(ids[0], ids[1])
    where = opened(ids, whole_mask(ids), [length for length in LENGTHS for _ in "ab"], GATES["think"][1])
    expect(qwen, output, steered, where * strength.repeat_interleave(2)[:, None])
    assert applied.count.tolist() == [0, 0, *where.sum(dim=1).tolist()[2:]]


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
def test_beam_search(qwen: Any, cache: bool) -> None:
    # the third row thinks freely, so that beams which close their thought change places with others
    def search(strength: float | Tensor) -> Any:
        with Steering(steered, strength, gate="think").applied(qwen, DELIMITERS):
            return generate(
                qwen, num_beams=4, num_return_sequences=2, logits_processor=[], use_cache=cache, eos_token_id=None,
            )  # fmt: skip

    close = qwen.lm_head.weight[CLOSE].detach()
    steered = {1: vectors(1)[1], "norm": 2 * close / close.norm()}
    strength = torch.tensor([0.5, 0.0, 0.8])
    output = search(strength)
    ids = output.sequences
    assert (ids[:, 6:-1] == CLOSE).any()
    lengths = [length for length in LENGTHS for _ in "ab"]
    where = opened(ids[:, :-1], whole_mask(ids[:, :-1]), lengths, GATES["think"][1])
    whole = reference(
        qwen, ids[:, :-1], whole_mask(ids[:, :-1]), steered, where * strength.repeat_interleave(2)[:, None]
    )
    of_tokens = whole[:, -9:].log_softmax(dim=-1).gather(-1, ids[:, -9:, None])[..., 0]
    torch.testing.assert_close(output.sequences_scores, of_tokens.sum(dim=1) / 9, atol=1e-5, rtol=1e-5)
    for row in range(3):
        assert torch.equal(search(float(strength[row])).sequences[2 * row : 2 * row + 2], ids[2 * row : 2 * row + 2])


def test_rows_that_have_ended_are_not_steered(qwen: Any) -> None:
    script = [{2: EOS}, {0: CLOSE, 4: EOS}, {8: EOS}]
    with Steering(vectors(0), 0.1, gate="generated").applied(qwen) as applied:
        output = generate(qwen, logits_processor=[Script(script)], eos_token_id=EOS)
    assert output.sequences[0, -1] == PAD
    assert applied.count.tolist() == [3, 5, 9]


def test_the_end_of_an_earlier_turn_ends_nothing(qwen: Any) -> None:
    ids, mask = prompts()
    ids[:, 3] = EOS
    with Steering(vectors(0), 0.1).applied(qwen) as applied:
        generate(qwen, input_ids=ids, attention_mask=mask, eos_token_id=EOS)
    assert applied.count.tolist() == [14, 12, 13]


def test_texts_after_one_another(qwen: Any) -> None:
    ids, mask = prompts()
    with torch.no_grad(), Steering(vectors(0), 0.1, gate="prompt").applied(qwen) as applied:
        qwen(ids, mask)
        assert applied.count.tolist() == [5, 3, 4]
        qwen.generate(ids[:2], attention_mask=mask[:2], max_new_tokens=3)
        assert applied.count.tolist() == [5, 3]
        qwen(ids[2:, 1:])
    assert applied.count.tolist() == [4]
    assert applied.total == 12 + 8 + 4


# ------------------------------------------------------------------------------------------------ nothing


@pytest.mark.parametrize("strength", [0.0, -0.0, torch.zeros(3)])
def test_no_strength_changes_no_bit(model: Any, strength: float | Tensor) -> None:
    plain = generate(model)
    with Steering(vectors(-1, 0, 1, 2, "norm"), strength).applied(model) as applied:
        steered = generate(model)
    assert torch.equal(steered.sequences, plain.sequences)
    assert same_bits(logits_of(steered), logits_of(plain))
    assert applied.count.tolist() == [0, 0, 0]


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))  # 0 and -0 are two


def test_a_row_without_strength_changes_no_bit(model: Any) -> None:
    plain = generate(model)
    with Steering(vectors(-1, 1, "norm"), torch.tensor([0.3, 0.0, 0.5])).applied(model) as applied:
        steered = generate(model)
    assert same_bits(logits_of(steered)[1], logits_of(plain)[1])
    assert not torch.allclose(logits_of(steered)[0], logits_of(plain)[0])
    assert applied.count.tolist()[1] == 0


def test_minus_zero_stays_minus_zero() -> None:
    network = nn.Module()
    network.blocks = nn.ModuleList([nn.Identity(), nn.Identity()])
    stack, stream = Stack(list(network.blocks)), -torch.zeros(2, 3, 4)
    network.forward = lambda state: stack.blocks[1](stack.blocks[0](state))  # type: ignore[method-assign]
    with Steering({0: torch.ones(4)}, torch.tensor([0.0, 1.0])).applied(network, stack=stack):
        found = network(stream)
    assert same_bits(found[0], stream[0])
    assert torch.equal(found[1], torch.ones(3, 4))


def test_only_the_named_sites_are_touched(qwen: Any) -> None:
    # every layer was always steered in RSP's code, whatever its flag said
    ids, mask = prompts()
    with torch.no_grad():
        plain = qwen(ids, mask, output_hidden_states=True).hidden_states
        for site in (0, 1):
            with Steering(vectors(site), 1.0).applied(qwen):
                found = qwen(ids, mask, output_hidden_states=True).hidden_states
            for index in range(site + 1):
                assert torch.equal(found[index], plain[index])
            shift = (found[site + 1] - plain[site + 1])[mask.bool()]
            torch.testing.assert_close(shift, vectors(site)[site].expand_as(shift), atol=1e-5, rtol=1e-5)
            assert torch.equal(found[site + 1][mask == 0], plain[site + 1][mask == 0])
        assert torch.equal(qwen(ids, mask, output_hidden_states=True).hidden_states[-1], plain[-1])


def test_a_window_counts_in_the_text_and_not_in_the_piece(qwen: Any) -> None:
    # with a cache each piece is one position long; counted in pieces, this window would never open
    for cache in (True, False):
        with Steering(vectors(1), 0.7, window=(3, 6)).applied(qwen) as applied:
            generate(qwen, use_cache=cache)
        assert applied.count.tolist() == [3, 3, 3]


def test_guidance_is_refused(qwen: Any) -> None:
    with Steering(vectors(0)).applied(qwen, must_touch=False):
        with pytest.raises(ArtefactError, match=r"guidance_scale is 1.5: classifier-free guidance reads a second text"):
            generate(qwen, guidance_scale=1.5)
        with pytest.raises(ArtefactError, match="guidance_scale is 2"):
            generate(qwen, generation_config=GenerationConfig(guidance_scale=2.0))
        generate(qwen, guidance_scale=1.0)


def test_steering_that_does_nothing_is_refused(qwen: Any) -> None:
    with (
        pytest.raises(ArtefactError, match=r"Nothing was steered at site 0, norm: .* the gate 'all'"),
        Steering(vectors(0, "norm")).applied(qwen),
    ):
        pass
    with (
        pytest.raises(ArtefactError, match="no position passed the gate 'answer'"),
        Steering(vectors(0), gate="answer").applied(qwen, DELIMITERS),
    ):
        qwen(prompts()[0])
    with (
        pytest.raises(ArtefactError, match="no position passed the gate 'all' with its window"),
        Steering(vectors(0), window=(20, None)).applied(qwen),
    ):
        generate(qwen)
    with Steering(vectors(0), gate="answer").applied(qwen, DELIMITERS, must_touch=False) as applied:
        qwen(prompts()[0])
    assert applied.total == 0


def test_a_site_that_did_not_run_is_refused() -> None:
    blocks = [nn.Linear(4, 4), nn.Linear(4, 4)]
    with (
        pytest.raises(ArtefactError, match="Nothing was steered at site 1:"),
        Steering({0: torch.ones(4), 1: torch.ones(4)}).applied(nn.Sequential(*blocks), stack=Stack(blocks)),
    ):
        blocks[0](torch.zeros(1, 1, 4))


def test_hooks_go_whatever_happens(qwen: Any) -> None:
    before, hooks = logits_of(generate(qwen)), hooks_of(qwen)
    with pytest.raises(KeyError, match="mine"), Steering(vectors(0), 1.0).applied(qwen):
        raise KeyError("mine")
    with pytest.raises(TypeError), Steering(vectors(0), 1.0).applied(qwen):
        qwen.generate(prompts()[0], max_new_tokens="many")
    assert not any(name in vars(qwen) for name in ("generate", "prepare_inputs_for_generation"))
    assert hooks_of(qwen) == hooks
    assert torch.equal(logits_of(generate(qwen)), before)


def hooks_of(model: nn.Module) -> list[Any]:
    return [list(hooks) for module in model.modules() for hooks in (module._forward_hooks, module._forward_pre_hooks)]


def test_a_failed_pass_is_forgotten(qwen: Any) -> None:
    ids, mask = prompts()
    with torch.no_grad(), Steering(vectors(0), 1.0).applied(qwen) as applied:
        with pytest.raises(IndexError):
            qwen(torch.full_like(ids, VOCABULARY + 1), mask)
        qwen.model(input_ids=ids[:, 2:], attention_mask=mask[:, 2:])
    assert applied.count.tolist() == [4, 4, 4]


def test_steerings_add_up(qwen: Any) -> None:
    a, b = vectors(0, 1), {1: vectors(2)[2]}
    with Steering(a, 0.3, gate="think").applied(qwen, DELIMITERS), Steering(b, STRENGTHS).applied(qwen):
        output = generate(qwen)
    assert "generate" not in vars(qwen)
    ids = output.sequences[:, :-1]
    mask = whole_mask(ids)
    think = opened(ids, mask, LENGTHS, GATES["think"][1])
    hook = Stack.of(qwen).hook(1, lambda stream: stream + (mask * STRENGTHS[:, None])[..., None] * b[1])
    expect(qwen, output, a, think * 0.3)
    hook.remove()


# ------------------------------------------------------------------------------------------------ schedules


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
def test_a_ramp(qwen: Any, cache: bool) -> None:
    steered = vectors(0)
    with Steering(steered, STRENGTHS, schedule=Ramp(4, 0.5, 2.0)).applied(qwen):
        output = generate(qwen, use_cache=cache)
    ids = output.sequences[:, :-1]
    steps = torch.tensor([0.5] * 6 + [0.875, 1.25, 1.625] + [2.0] * 5)
    expect(qwen, output, steered, steps * whole_mask(ids) * STRENGTHS[:, None])


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("schedule", [Budget(2), Budget(2, before=0.0, after=1.5), Budget(0)])
def test_a_budget(qwen: Any, cache: bool, schedule: Budget) -> None:
    steered = vectors(0)
    with Steering(steered, 0.5, gate="think", schedule=schedule).applied(qwen, DELIMITERS, must_touch=False):
        output = generate(qwen, use_cache=cache)
    ids = output.sequences[:, :-1]
    think = opened(ids, whole_mask(ids), LENGTHS, GATES["think"][1])
    spent = think.long().cumsum(dim=1) - 1 >= schedule.tokens
    expect(qwen, output, steered, 0.5 * think * torch.where(spent, schedule.after, schedule.before))
    # a second thought goes on with what the first has left
    assert think[1].tolist() == [False] * 5 + [True] * 3 + [False] * 3 + [True] * 2 + [False]


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
def test_more_where_the_model_was_sure(qwen: Any, cache: bool) -> None:
    steered, schedule = vectors(0, "norm"), EntropyAdaptive(base=0.3, span=0.8, steepness=9.0, middle=0.6)
    with Steering(steered, STRENGTHS, gate="generated", schedule=schedule).applied(qwen):
        output = generate(qwen, use_cache=cache)
    # the entropy of each step, already steered, weighs the next; the first has none before it
    before = torch.stack([relative_entropy(logits) for logits in output.logits[:-1]], dim=1)
    alpha = 0.3 + 0.8 * (1 - torch.sigmoid(9.0 * (before - 0.6)))
    scale = torch.cat([torch.zeros(3, 5), torch.full((3, 1), 1.1), alpha], dim=1)
    expect(qwen, output, steered, scale * STRENGTHS[:, None])
    assert float(alpha.max() - alpha.min()) > 0.1


def test_relative_entropy() -> None:
    logits = torch.tensor([[0.0] * 8, [50.0] + [-float("inf")] * 7, [0.0, 0.0] + [-float("inf")] * 6])
    torch.testing.assert_close(relative_entropy(logits), torch.tensor([1.0, 0.0, 1 / 3]))


def test_entropy_needs_a_row_to_follow(qwen: Any) -> None:
    steering = Steering(vectors(0), 0.5, schedule=EntropyAdaptive())
    ids, mask = prompts()
    for cache in (True, False):
        with pytest.raises(ArtefactError, match="beam search moves them"), steering.applied(qwen):
            generate(qwen, num_beams=4, use_cache=cache, logits_processor=[])
    with pytest.raises(ArtefactError, match="it cannot weigh a given text"), steering.applied(qwen, prompt_length=3):
        qwen(ids, mask)


# ------------------------------------------------------------------------------------------------ dose


def test_dose() -> None:
    steered: dict[Site, Tensor] = {
        "norm": torch.tensor([0.0, 2.0]), 1: torch.tensor([0.0, 4.0]), 0: torch.tensor([3.0, 0.0])
    }  # fmt: skip
    dose = Steering(steered, -0.5).dose()
    assert dose.sites == (0, 1, "norm")
    assert dose.each.tolist() == [1.5, 2.0, 1.0]
    assert dose.cumulative.tolist() == [1.5, 2.5, 1.0]  # 3 and 4 at a right angle; the norm is in a space of its own
    assert float(dose.total) == 2.5
    rows = Steering(steered, torch.tensor([1.0, -2.0])).dose()
    assert rows.each.tolist() == [[3.0, 4.0, 2.0], [6.0, 8.0, 4.0]]
    assert rows.total.tolist() == [5.0, 10.0]
    assert float(Steering({"norm": steered["norm"]}, 3.0).dose().total) == 6.0


def test_one_site_with_the_dose_of_all(qwen: Any) -> None:
    everywhere = Steering(vectors(-1, 0, 1, 2), -0.2)
    single = Steering(vectors(1), -1.0).with_dose(everywhere.dose().total)
    assert isinstance(single.strength, float)
    assert single.strength < 0
    torch.testing.assert_close(single.dose().total, everywhere.dose().total)
    rows = Steering(vectors(1), torch.tensor([1.0, -1.0])).with_dose(torch.tensor([2.0, 0.0]))
    assert rows.dose().total.tolist() == pytest.approx([2.0, 0.0])
    with pytest.raises(ArtefactError, match="add up to nothing"):
        Steering({0: torch.ones(3), 1: -torch.ones(3)}).with_dose(1.0)


def test_the_dose_is_what_the_stream_receives() -> None:
    # without anything between the sites, the stream carries exactly the running sum
    blocks = [nn.Identity() for _ in range(4)]
    steering = Steering(vectors(-1, 0, 1, 2, 3), 0.7)
    with steering.applied(nn.Sequential(*blocks), stack=Stack(blocks)):
        found = nn.Sequential(*blocks)(torch.zeros(1, 1, WIDTH))
    assert float(found.norm()) == pytest.approx(float(steering.dose().total), rel=1e-6)


# ------------------------------------------------------------------------------------------------ other networks


def recommender(blocks: int, norm: str) -> SASRec:
    torch.manual_seed(0)
    config = SASRecConfig(num_items=12, max_length=6, hidden_size=8, num_blocks=blocks, norm=norm)  # type: ignore[arg-type]
    return SASRec(config).eval()


@pytest.mark.parametrize("norm", ["pre", "original"])
@pytest.mark.parametrize("blocks", [1, 3])
def test_a_recommender(blocks: int, norm: str) -> None:
    model, history = recommender(blocks, norm), torch.tensor([[1, 2, 3, 0], [4, 5, 0, 0]])
    vector, strength = torch.randn(8), torch.tensor([0.5, 0.0])
    with torch.no_grad():
        plain = model.score(history)
        # after the norm a score is an inner product, so the shift is known
        with Steering({"norm": vector}, strength).applied(model) as applied:
            steered = model.score(history)
        torch.testing.assert_close(steered[0], plain[0] + 0.5 * model.item_vectors() @ vector, atol=1e-5, rtol=1e-5)
        assert same_bits(steered[1], plain[1])
        assert applied.count.tolist() == [1, 0]  # the last block goes on with the newest position alone
        with Steering({-1: vector}, strength).applied(model) as applied:
            first = model.score(history)
        assert same_bits(first[1], plain[1])
        assert applied.count.tolist() == [4, 0]
        states = model.embedding(history) * model.encoder.scale + model.encoder.positions[:4] + 0.5 * vector
        for block in model.encoder.blocks:
            states = block(states)
        newest = model.encoder.final_norm(states)[0, 2]
        torch.testing.assert_close(first[0], model.item_vectors() @ newest, atol=1e-5, rtol=1e-5)
        # the loss comes through forward, which has no input_ids either
        with Steering({0: vector}, 0.3).applied(model) as applied:
            model(history, torch.tensor([[2, 3, 4, 0], [5, 6, 0, 0]]))
            model.score(history)
        assert applied.total > 2


def test_a_recommender_has_no_phases() -> None:
    model, history = recommender(2, "pre"), torch.tensor([[1, 2, 3]])
    for keywords in ({"gate": "generated"}, {"window": (0, 3)}, {"after": 4}, {"schedule": Ramp(3)}):
        with (
            pytest.raises(ArtefactError, match="called without input_ids is steered at all positions alike"),
            Steering({0: torch.ones(8)}, **keywords).applied(model),
        ):
            model.score(history)
    with (
        pytest.raises(ArtefactError, match="There are 3 strengths for 1 rows"),
        Steering({0: torch.ones(8)}, torch.ones(3)).applied(model),
    ):
        model.score(history)


def test_a_vector_can_be_learned(qwen: Any) -> None:
    vector = torch.zeros(WIDTH).add_(1e-3).requires_grad_()
    with Steering({1: vector}, gate="think").applied(qwen, DELIMITERS):
        for _ in range(2):
            qwen(*prompts()).logits[:, -1, CLOSE].sum().backward()
    assert vector.grad is not None
    assert bool(vector.grad.abs().sum() > 0)


def test_half_precision() -> None:
    model = thinker("Llama").bfloat16()
    with Steering(vectors(0, "norm"), STRENGTHS).applied(model):
        assert model(*prompts()).logits.dtype == torch.bfloat16


def test_embeddings_in_place_of_ids(qwen: Any) -> None:
    ids, mask = prompts()
    embeddings = qwen.get_input_embeddings()(ids).detach()
    given = {"input_ids": None, "inputs_embeds": embeddings, "attention_mask": mask, "logits_processor": []}
    steering = Steering(vectors(1), 0.4, gate="generated")
    with steering.applied(qwen) as applied:
        found = generate(qwen, **given)
        assert applied.count.tolist() == [9, 9, 9]
        expected = generate(qwen, logits_processor=[])
    torch.testing.assert_close(logits_of(found), logits_of(expected), atol=1e-5, rtol=1e-5)
    with (
        pytest.raises(ArtefactError, match="needs token ids, and the model was given embeddings"),
        Steering(vectors(1), gate="think").applied(qwen, DELIMITERS),
    ):
        generate(qwen, **given)


# ------------------------------------------------------------------------------------------------ refused


def test_a_cache_that_was_filled_before(qwen: Any) -> None:
    ids, mask = prompts()
    text = torch.cat([ids, torch.full((3, 1), 9)], dim=1)
    with torch.no_grad():
        cache = qwen(ids, mask).past_key_values
        with (
            pytest.raises(ArtefactError, match="The cache holds 6 positions that were filled before"),
            Steering(vectors(0)).applied(qwen),
        ):
            qwen(text[:, -1:], whole_mask(text), past_key_values=cache)
        # generate holds the whole text, so that all is known but what was done in the cache
        cache = qwen(ids, mask).past_key_values
        with Steering(vectors(0), 0.1, gate="think").applied(qwen, DELIMITERS) as applied:
            qwen.generate(text, attention_mask=whole_mask(text), past_key_values=cache, max_new_tokens=4)
    assert applied.count.tolist() == [4, 4, 4]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"vectors": {}}, "needs a vector at one site or more"),
        ({"vectors": {0: torch.ones(3), 1: torch.ones(4)}}, "all of one dimension and one width"),
        ({"vectors": {0: torch.ones(2, 3)}}, "needs a vector at one site or more"),
        ({"vectors": {0: torch.tensor([1.0, float("nan")])}}, "not finite"),
        ({"vectors": {0: torch.zeros(3)}}, "All steering vectors are zero"),
        ({"strength": float("inf")}, "The strength is not finite"),
        ({"strength": torch.ones(2, 2)}, r"The strength has shape \[2, 2\]"),
        ({"gate": "thinking"}, "There is no gate 'thinking'; choose one of all, prompt, generated, think, answer"),
        ({"window": (3, 3)}, r"The window \(3, 3\) holds no generated token"),
        ({"window": (-1, None)}, "holds no generated token"),
        ({"window": (0, 0)}, "holds no generated token"),
    ],
)
def test_specifications_that_say_nothing(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtefactError, match=message):
        Steering(**{"vectors": {0: torch.ones(3)}, **keywords})


def test_schedules_that_say_nothing() -> None:
    with pytest.raises(ArtefactError, match="A ramp over 0 tokens"):
        Ramp(0)
    with pytest.raises(ArtefactError, match="A budget of -1 thinking tokens"):
        Budget(-1)
    assert Constant() == Constant()


def test_an_encoder_decoder() -> None:
    model = T5ForConditionalGeneration(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2))
    ids, steering = torch.tensor([[3, 4, 5]]), Steering({0: torch.ones(8)}, gate="generated")
    with pytest.raises(ArtefactError, match="has two streams"), steering.applied(model):
        pass
    with torch.no_grad(), steering.applied(model.decoder) as applied:
        model(input_ids=ids, decoder_input_ids=ids[:, :2])
    assert applied.count.tolist() == [1]


def test_steering_that_does_not_fit_the_model(qwen: Any) -> None:
    def run(steering: Steering, delimiters: Delimiters | None = None, **keywords: Any) -> None:
        with steering.applied(qwen, delimiters, **keywords):
            qwen(*prompts())

    before = hooks_of(qwen)
    for site in (3, -2):
        with pytest.raises(ArtefactError, match=f"There is no site {site}: the network has 3 blocks"):
            run(Steering(vectors(site)))
    with pytest.raises(ArtefactError, match="The vector at site 1 has 7 entries and the stream of this model 32"):
        run(Steering(vectors(1, width=7)))
    with pytest.raises(ArtefactError, match="There are 2 strengths for 3 rows"):
        run(Steering(vectors(1), torch.ones(2)))
    with pytest.raises(ArtefactError, match="There are 2 prompt lengths for 3 rows"):
        run(Steering(vectors(1)), prompt_length=torch.ones(2))
    for keywords in ({"gate": "think"}, {"gate": "answer"}, {"schedule": Budget(3)}):
        with pytest.raises(ArtefactError, match="needs to know where it begins and ends; give delimiters"):
            run(Steering(vectors(1), **keywords))
    with pytest.raises(ArtefactError, match="hold token 151649, and the model has only 40 tokens"):
        run(Steering(vectors(1), gate="think"), Delimiters((NEWLINE,), (151649,)))
    assert hooks_of(qwen) == before
