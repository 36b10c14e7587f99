"""Which device a model runs on."""

from __future__ import annotations

import contextlib

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
