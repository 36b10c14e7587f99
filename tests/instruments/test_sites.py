"""Sites are the same places in every network: Transformers' own hidden states say where the hooks are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forethought.errors import ArtefactError
from forethought.instruments.sites import Site, Stack, parse_site
from forethought.recommenders.sasrec import SASRec, SASRecConfig

from .thinkers import FAMILIES, WIDTH, prompts, thinker


class Tuples(nn.Module):
    """Blocks as transformers 4 had them: a tuple whose first is the stream, which may come by keyword."""

    def __init__(self, bare: bool, named: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TupleBlock(bare) for _ in range(3))
        self.final_norm = nn.LayerNorm(4)
        self.named = named

    def forward(self, stream: Tensor) -> Tensor:
        for block in self.blocks:
            output = block(hidden_states=stream) if self.named else block(stream)
            stream = output if isinstance(output, Tensor) else output[0]
            assert isinstance(output, Tensor) or output[1] == "attention"
        norm: Tensor = self.final_norm(stream)
        return norm


class TupleBlock(nn.Module):
    def __init__(self, bare: bool) -> None:
        super().__init__()
        self.linear, self.bare = nn.Linear(4, 4), bare

    def forward(self, hidden_states: Tensor) -> Any:
        stream = hidden_states + self.linear(hidden_states)
        return stream if self.bare else (stream, "attention")


def seen(stack: Stack, model: nn.Module, *args: Any, **keywords: Any) -> dict[Site, Tensor]:
    states: dict[Site, Tensor] = {}
    hooks = [stack.hook(site, lambda stream, site=site: states.update({site: stream})) for site in stack.sites()]
    with torch.no_grad():
        model(*args, **keywords)
    for hook in hooks:
        hook.remove()
    return states


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_are_transformers_hidden_states(family: str) -> None:
    model = thinker(family)
    stack = Stack.of(model)
    assert stack.sites() == [-1, 0, 1, 2, "norm"]
    ids, mask = prompts()
    states = seen(stack, model, input_ids=ids, attention_mask=mask)
    with torch.no_grad():
        hidden = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    for index, site in enumerate([-1, 0, 1, "norm"]):  # the stream after the last block is the one it does not give
        assert torch.equal(states[site], hidden[index]), site
    assert torch.equal(stack.norm(states[2]), hidden[-1])


@pytest.mark.parametrize("bare", [False, True], ids=["tuple", "tensor"])
@pytest.mark.parametrize("named", [False, True], ids=["positional", "keyword"])
def test_blocks_that_give_tuples_and_tensors(bare: bool, named: bool) -> None:
    torch.manual_seed(0)
    model = Tuples(bare, named)
    stack, stream = Stack.of(model), torch.randn(2, 5, 4)
    states = seen(stack, model, stream)
    assert torch.equal(states[-1], stream)
    vector = torch.randn(4)
    for site in stack.sites():
        hook = stack.hook(site, lambda state: state + vector)
        changed = model(stream)
        hook.remove()
        rest = states[site] + vector
        for block in model.blocks[len(model.blocks) if site == "norm" else int(site) + 1 :]:
            rest = block(rest) if bare else block(rest)[0]
        torch.testing.assert_close(changed, rest if site == "norm" else model.final_norm(rest))
    assert torch.equal(model(stream), states["norm"])  # hooks are gone


def test_the_stack_of_a_recommender() -> None:
    model = SASRec(SASRecConfig(num_items=9, max_length=6, hidden_size=8, num_blocks=3))
    stack = Stack.of(model)
    assert list(stack.blocks) == list(model.encoder.blocks)
    assert stack.norm is model.encoder.final_norm


def test_networks_without_blocks_or_norm() -> None:
    with pytest.raises(ArtefactError, match="Linear has no list of blocks"):
        Stack.of(nn.Linear(3, 3))
    stack = Stack([nn.Linear(WIDTH, WIDTH)])
    assert stack.sites() == [-1, 0]
    with pytest.raises(ArtefactError, match="no final norm"):
        stack.check("norm")


@pytest.mark.parametrize("site", [-2, 3, 99, "middle", 1.0, None])
def test_sites_that_do_not_exist(site: Any) -> None:
    with pytest.raises(ArtefactError, match=f"There is no site {site}: the network has 3 blocks"):
        Stack.of(thinker()).hook(site, lambda stream: stream)


def test_sites_as_people_write_them() -> None:
    assert [parse_site(text) for text in ("-1", "0", "12", "norm")] == [-1, 0, 12, "norm"]
    with pytest.raises(ArtefactError, match="'last' is no site"):
        parse_site("last")
