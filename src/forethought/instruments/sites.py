"""Where in a network a state is read or written: one convention for every model.

A *site* is a place on the residual stream: a whole number l from 0 to L - 1 is the stream **after block l**, -1 is the
stream before block 0 (the embeddings), and ``"norm"`` is what the final norm makes of the last block's. Transformers'
``hidden_states[i]`` is site i - 1, but for the last, which is ``"norm"``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from forethought.errors import ArtefactError

Site = int | Literal["norm"]

Change = Callable[[Tensor], Tensor | None]


@dataclass(frozen=True)
class Stack:
    """The blocks of a network, one after another on one residual stream, and the norm after the last.

    Attributes:
        blocks: in order; each takes the stream and gives it back, as a tensor or first in a tuple.
        norm: the final norm; None where there is none.
    """

    blocks: Sequence[nn.Module]
    norm: nn.Module | None = None

    @classmethod
    def of(cls, model: nn.Module) -> Stack:
        """Find the blocks of any decoder or encoder: the largest list of modules of one class, and the norm beside it.

        Raises:
            ArtefactError: the model has no list of blocks; give a Stack of your own.
        """
        decoder = getattr(model, "get_decoder", lambda: None)()
        found: tuple[int, nn.Module, nn.ModuleList] | None = None
        for parent in (decoder if isinstance(decoder, nn.Module) else model).modules():
            for child in parent.children():
                if isinstance(child, nn.ModuleList) and len({type(block) for block in child}) == 1:
                    size = sum(parameter.numel() for parameter in child.parameters())
                    if found is None or size > found[0]:
                        found = (size, parent, child)
        if found is None:
            raise ArtefactError(f"{type(model).__name__} has no list of blocks to read; name them with Stack(blocks).")
        _, parent, blocks = found
        children = list(parent.children())
        after = [child for child in children[children.index(blocks) + 1 :] if "norm" in type(child).__name__.lower()]
        return cls(tuple(blocks), after[0] if after else None)

    def __len__(self) -> int:
        return len(self.blocks)

    def sites(self) -> list[Site]:
        """All of them in order: -1, 0 … L - 1, and ``"norm"`` where there is one."""
        return [*range(-1, len(self)), *(["norm"] if self.norm is not None else [])]

    def check(self, site: Site) -> None:
        """Refuse a site that this network does not have.

        Raises:
            ArtefactError: the network has no such block, or no final norm.
        """
        if site == "norm" and self.norm is None:
            raise ArtefactError("The network has no final norm to read or steer; choose a block.")
        if site != "norm" and not (isinstance(site, int) and -1 <= site < len(self)):
            raise ArtefactError(
                f"There is no site {site}: the network has {len(self)} blocks, so sites are -1 (the embeddings), "
                f"0 to {len(self) - 1} and 'norm'."
            )

    def hook(self, site: Site, change: Change, *, first: bool = False) -> RemovableHandle:
        """Call ``change`` with the stream at a site, float ``[batch, positions, width]``, in every forward pass.

        Args:
            site: where.
            change: returns what the network is to go on with, or None to leave the stream alone.
            first: go before the hooks that are there already, so that all who read see what the network goes on with.

        Returns:
            A handle; ``remove()`` takes the hook away.

        Raises:
            ArtefactError: as :meth:`check`.
        """
        self.check(site)
        if site == -1:
            return self.blocks[0].register_forward_pre_hook(_before(change), with_kwargs=True, prepend=first)
        module = self.norm if site == "norm" else self.blocks[site]
        assert module is not None  # checked above
        return module.register_forward_hook(_after(change), prepend=first)


def parse_site(text: str) -> Site:
    """A site as people write it: ``-1``, ``0`` …, ``norm``.

    Raises:
        ArtefactError: the text is neither.
    """
    if text == "norm":
        return "norm"
    try:
        return int(text)
    except ValueError:
        message = f"{text!r} is no site; write -1 for the embeddings, the number of a block, or norm."
        raise ArtefactError(message) from None


def _after(change: Change) -> Callable[..., Any]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        # blocks gave a tuple until transformers 4, and give the bare tensor since
        stream = output if isinstance(output, Tensor) else output[0]
        changed = change(stream)
        if changed is None:
            return None
        return changed if isinstance(output, Tensor) else (changed, *output[1:])

    return hook


def _before(change: Change) -> Callable[..., Any]:
    def hook(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        named = "hidden_states" in keywords
        changed = change(keywords["hidden_states"] if named else inputs[0])
        if changed is None:
            return None
        return (inputs, {**keywords, "hidden_states": changed}) if named else ((changed, *inputs[1:]), keywords)

    return hook
