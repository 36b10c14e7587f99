"""Which model a state was read from: its name, its shape and a digest of its weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from forethought.errors import ArtefactError
from forethought.instruments.sites import Stack

_SAMPLE = 4096  # weights of each tensor
_HEADS = ("num_attention_heads", "num_key_value_heads")  # what shapes do not tell


@dataclass(frozen=True)
class Identity:
    """A model as an artefact remembers it.

    Attributes:
        name: where it was loaded from, or its class.
        architecture: the config's ``model_type``, such as ``qwen2``, or its class.
        fingerprint: as :func:`fingerprint`.
        width: of the residual stream, d.
        blocks: their number, L.
    """

    name: str
    architecture: str
    fingerprint: str
    width: int
    blocks: int

    @classmethod
    def of(cls, model: nn.Module, stack: Stack | None = None) -> Identity:
        """Identify a model; it takes as long as :func:`fingerprint`.

        Raises:
            ArtefactError: the model has no blocks, or does not tell its width, or its weights are not loaded.
        """
        stack = stack or Stack.of(model)
        kind = type(model).__name__
        return cls(
            name=str(getattr(model, "name_or_path", "") or kind),
            architecture=str(getattr(text_config(model), "model_type", "") or kind),
            fingerprint=fingerprint(model),
            width=width(model, stack),
            blocks=len(stack),
        )


def trunk(model: nn.Module) -> nn.Module:
    """The network without its heads: what turns tokens into states."""
    model = getattr(model, "_orig_mod", model)  # torch.compile wraps
    prefix = getattr(model, "base_model_prefix", "")
    inner = getattr(model, prefix, None) if prefix else None
    return inner if isinstance(inner, nn.Module) else model


def text_config(model: nn.Module) -> Any:
    """The config of the part of the model that reads text; None where there is no config."""
    config = getattr(model, "config", None)
    chosen: Any = getattr(config, "get_text_config", None)
    return config if chosen is None else chosen()


def width(model: nn.Module, stack: Stack) -> int:
    """d, the width of the residual stream.

    Raises:
        ArtefactError: neither a config nor a final norm tells it.
    """
    told = getattr(text_config(model), "hidden_size", None)
    weight = getattr(stack.norm, "weight", None)
    if isinstance(told, int):
        return told
    if isinstance(weight, Tensor):
        return weight.shape[-1]
    raise ArtefactError(
        f"{type(model).__name__} does not tell its width; give it a config with hidden_size or a Stack with a norm."
    )


def fingerprint(model: nn.Module) -> str:
    """A digest that tells one model from another, whatever number type it was loaded in and whatever head it has.

    It covers the names and shapes of all weights of the :func:`trunk`, the number of attention heads, and the **signs**
    of up to 4,096 evenly spaced weights of every tensor. A sign is all that a cast to float32, bfloat16 or float16
    never changes, and training flips some of the thousands. Weights quantised to whole numbers give another
    fingerprint; a model that differs in magnitudes alone, or in its head, has the same.

    Returns:
        SHA-256, 64 hexadecimal digits. A model of any size takes well under a second.

    Raises:
        ArtefactError: a weight is not loaded.
    """
    config = text_config(model)
    heads = [getattr(config, key, None) for key in _HEADS]
    digest = hashlib.sha256(f"forethought.fingerprint 1 {getattr(config, 'model_type', None)} {heads}\n".encode())
    for name, parameter in sorted(trunk(model).named_parameters()):
        if parameter.is_meta:
            raise ArtefactError(f"The weight {name} of {type(model).__name__} is not loaded; load the model whole.")
        digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
        digest.update(_signs(parameter.detach()))
    return digest.hexdigest()


def _signs(weight: Tensor) -> bytes:
    flat = weight.reshape(-1)
    stride = max(1, flat.numel() // _SAMPLE)
    stride -= stride % 2 == 0  # an odd one goes through all columns of a matrix
    sample = flat[::stride][:_SAMPLE].cpu()
    if not sample.is_floating_point():
        return sample.contiguous().view(torch.uint8).numpy().tobytes()
    return np.packbits(torch.signbit(sample.float()).numpy()).tobytes()
