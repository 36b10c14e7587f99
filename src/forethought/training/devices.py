"""Which device a model runs on."""

from __future__ import annotations

import contextlib
from typing import Literal

import torch

from forethought.errors import RecipeError


def find_device(name: str | None) -> torch.device:
    """The device of that name; by default the accelerator, where there is one.

    Raises:
        RecipeError: this machine has no such device.
    """
    there = torch.accelerator.current_accelerator(check_available=True)
    if name is None:
        return there or torch.device("cpu")
    with contextlib.suppress(RuntimeError):  # not the name of a device at all
        device = torch.device(name)
        known = there is not None and device.type == there.type
        if device.type == "cpu" or (known and (device.index or 0) < torch.accelerator.device_count()):
            return device
    raise RecipeError(f"There is no device {name!r} on this machine; use --device cpu.")


def find_precision(name: Literal["auto", "fp32", "bf16"], device: torch.device) -> Literal["fp32", "bf16"]:
    """What ``auto`` means on a device: ``bf16`` where it has instructions for it, else ``fp32``.

    A processor without them (AVX512-BF16 or AMX on a CPU) computes the same products some forty times slower.
    """
    if name != "auto":
        return name
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "fp32"
