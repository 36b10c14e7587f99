"""Which model a state was read from: its name, its shape and a digest of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
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
    weights = sorted(trunk(model).named_parameters())
    for name, parameter in weights:
        if parameter.is_meta:
            raise ArtefactError(f"The weight {name} of {type(model).__name__} is not loaded; load the model whole.")
    return _digest(text_config(model), weights)


def stored_fingerprint(folder: Path) -> str | None:
    """The :func:`fingerprint` of the model in a folder, from its files alone, for an engine that fuses its weights.

    Returns:
        None where the files do not tell it: they are no safetensors, the model is quantised, Transformers does not know
        it, or names or shapes its weights otherwise than they are stored.
    """
    from safetensors import SafetensorError, safe_open
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception:  # models that are unknown, or come with code of their own, raise as many kinds of errors
        return None
    if getattr(config, "quantization_config", None) is not None:
        return None
    weights = []
    with ExitStack() as opened:
        try:
            files = [opened.enter_context(safe_open(file, framework="pt")) for file in folder.glob("*.safetensors")]
            places = {key: file for file in files for key in file.keys()}  # noqa: SIM118 (it is no dict)
            for name, parameter in sorted(trunk(model).named_parameters()):
                whole = f"{model.base_model_prefix}.{name}"  # as a model with a head stores it
                key = whole if whole in places else name
                if key not in places or tuple(places[key].get_slice(key).get_shape()) != tuple(parameter.shape):
                    return None
                weights.append((name, places[key].get_tensor(key)))
        except (OSError, SafetensorError):
            return None
        return _digest(text_config(model), weights)


def _digest(config: Any, weights: Iterable[tuple[str, Tensor]]) -> str:
    heads = [getattr(config, key, None) for key in _HEADS]
    digest = hashlib.sha256(f"forethought.fingerprint 1 {getattr(config, 'model_type', None)} {heads}\n".encode())
    for name, weight in weights:
        digest.update(f"{name} {tuple(weight.shape)}\n".encode())
        digest.update(_signs(weight.detach()))
    return digest.hexdigest()


def _signs(weight: Tensor) -> bytes:
    flat = weight.reshape(-1)
    stride = max(1, flat.numel() // _SAMPLE)
    stride -= stride % 2 == 0  # an odd one goes through all columns of a matrix
    sample = flat[::stride][:_SAMPLE].cpu()
    if not sample.is_floating_point():
        return sample.contiguous().view(torch.uint8).numpy().tobytes()
    return np.packbits(torch.signbit(sample.float()).numpy()).tobytes()
