"""One artefact for everything fitted on states: a folder of ``instrument.json`` and ``tensors.safetensors``.

It says which model it was made on, where it reads or writes, at which position, in which units, and what its controls
measured, so that whoever finds it a year later can use it or see why not. Sites are those of
:mod:`~forethought.instruments.sites`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from forethought.atomic import atomic_folder, refuse_existing
from forethought.errors import ArtefactError
from forethought.instruments.fingerprint import Identity, fingerprint, width
from forethought.instruments.phases import Delimiters
from forethought.instruments.sites import Site, Stack, parse_site

FORMAT = "forethought.instrument"
VERSION = 1
CONVENTION = "block-output/1: l is the residual stream after block l, -1 before block 0, norm after the final norm"
MANIFEST = "instrument.json"
TENSORS = "tensors.safetensors"


@dataclass(frozen=True)
class Instrument:
    """Something fitted on the states of a model, ready to be kept and shared.

    Attributes:
        kind: such as ``direction``, ``probe``, ``progress``.
        name: what people call it.
        tensors: of each site, by name; a direction is ``{site: {"direction": [d]}}``, a progress vector
            ``{"norm": {"tpv": [d]}}`` among others.
        model: what it was made on.
        position: where states were read, such as ``last-prompt``.
        units: what a value of 1 means.
        numbers: of each site, by name.
        delimiters: that the model thinks between; None where it made no difference.
        provenance: the command, the data and whatever else it came from; anything JSON can hold.
        controls: what the controls measured; numbers, nested by name, None where a number is undefined.

    Raises:
        ArtefactError: a site that the model does not have, no tensor at all, or values or numbers that are not finite.
    """

    kind: str
    name: str
    tensors: Mapping[Site, Mapping[str, Tensor]]
    model: Identity
    position: str
    units: str
    numbers: Mapping[Site, Mapping[str, float]] = field(default_factory=dict)
    delimiters: Delimiters | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    controls: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        what = f"The instrument {self.name!r}"
        if not any(self.tensors.values()):
            raise ArtefactError(f"{what} has no tensor; fit it before it is kept.")
        for site in (*self.tensors, *self.numbers):
            if site != "norm" and not (isinstance(site, int) and -1 <= site < self.model.blocks):
                raise ArtefactError(
                    f"{what} is for site {site!r}, and {self.model.name} has {self.model.blocks} blocks."
                )
        for site, numbers in self.numbers.items():
            for name, number in numbers.items():
                # beyond a float, as NaN and what is no number are, it could not be used
                if not isinstance(number, int | float) or not abs(number) <= sys.float_info.max:
                    raise ArtefactError(
                        f"{what} has {number!r} for the number {name} at site {site!r}; a finite number belongs there."
                    )
        for site, named in self.tensors.items():
            for name, tensor in named.items():
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    raise ArtefactError(
                        f"{what} holds values that are not finite in {name} at site {site!r}; fit it anew."
                    )

    @property
    def sites(self) -> list[Site]:
        """Where it reads or writes, in the order of the network: numbers as numbers, 10 after 9."""
        return sorted(self.tensors, key=_place)

    def vectors(self, name: str = "direction") -> dict[Site, Tensor]:
        """The tensor of this name at every site that has one, in the order of the network.

        Raises:
            ArtefactError: no site has one.
        """
        found = {site: self.tensors[site][name] for site in self.sites if name in self.tensors[site]}
        if not found:
            raise ArtefactError(f"The {self.kind} {self.name!r} has no tensor {name!r} at any site.")
        return found

    def steering(self) -> dict[Site, Tensor]:
        """What it steers with, float32 ``[d]`` a site, in the order of the network: its direction, or progress vector.

        One at the final norm comes by itself only: it is served as a bias on the logits, beside no others.

        Raises:
            ArtefactError: it holds no such vector, or one of another shape.
        """
        progress = "tpv" in self.tensors.get("norm", {})
        found = self.vectors("tpv" if progress else "direction")
        for site, vector in found.items():
            if vector.shape != (self.model.width,):
                raise ArtefactError(
                    f"The vector of {self.name!r} at site {site} has the shape {list(vector.shape)}; to steer with, it "
                    f"has to be [{self.model.width}]."
                )
        found = {site: vector.detach().to("cpu", torch.float32) for site, vector in found.items()}
        return {site: vector for site, vector in found.items() if site != "norm"} or found

    def check_model(self, model: nn.Module, *, stack: Stack | None = None, force: bool = False) -> None:
        """Refuse a model that this was not made on.

        Args:
            model: what it is to be used with.
            stack: its blocks; found where it is not given.
            force: take a model with other weights; the width and the sites have to fit all the same.

        Raises:
            ArtefactError: the width, a site or the fingerprint does not fit.
        """
        stack = stack or Stack.of(model)
        name = getattr(model, "name_or_path", "") or type(model).__name__
        made = f"The {self.kind} {self.name!r} was made on {self.model.name}"
        wide = width(model, stack)
        if wide != self.model.width:
            raise ArtefactError(f"{made} of width {self.model.width}, and {name} has width {wide}; fit it anew there.")
        missing = [site for site in self.sites if site not in stack.sites()]
        if missing:
            raise ArtefactError(
                f"{made} of {self.model.blocks} blocks, and {name} of {len(stack)} blocks has no site {missing[0]!r}; "
                "fit it anew there."
            )
        theirs = self.model.fingerprint if force else fingerprint(model)
        if theirs != self.model.fingerprint:
            raise ArtefactError(
                f"{made} with the fingerprint {self.model.fingerprint[:12]}, and {name} has {theirs[:12]}: other "
                "weights; fit it anew there, or force it."
            )

    def save(self, path: str | os.PathLike[str], *, replace: bool = False) -> Instrument:
        """Write the folder, whole or not at all, and return it opened.

        Args:
            path: the folder to make.
            replace: another instrument there may give way to it, and nothing else.

        Raises:
            ArtefactError: the place is taken or cannot be written, or JSON has no form for a value.
        """
        path = Path(path)
        if not (replace and _is_instrument(path)):
            refuse_existing(path)
        flat = {
            f"{site}.{name}": tensor.detach().to("cpu").contiguous().clone()  # no two may share memory
            for site in self.sites
            for name, tensor in self.tensors[site].items()
        }
        stored = save_tensors(flat)
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "kind": self.kind,
            "name": self.name,
            "model": asdict(self.model),
            "convention": CONVENTION,
            "sites": self.sites,
            "position": self.position,
            "units": self.units,
            "numbers": {str(site): dict(self.numbers[site]) for site in sorted(self.numbers, key=_place)},
            "delimiters": None if self.delimiters is None else asdict(self.delimiters),
            "provenance": dict(self.provenance),
            "controls": dict(self.controls),
            "digest": hashlib.sha256(stored).hexdigest(),
        }
        try:
            text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
        except (TypeError, ValueError) as error:
            raise ArtefactError(
                f"The instrument {self.name!r} holds what JSON cannot ({error}); write undefined numbers as None."
            ) from error
        with atomic_folder(path, replace=replace) as scratch:
            (scratch / TENSORS).write_bytes(stored)
            (scratch / MANIFEST).write_text(text + "\n", encoding="utf-8")
        return Instrument.open(path)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Instrument:
        """Read a folder that :meth:`save` wrote; tensors in the CPU's memory.

        Raises:
            ArtefactError: the folder is missing, damaged, or of another version.
        """
        path = Path(path)
        file = path / MANIFEST
        if not file.is_file():
            raise ArtefactError(f"{path} is no instrument (no {MANIFEST}); check the path, or fit one.")
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
            written = manifest["format"], manifest["version"]
            if written != (FORMAT, VERSION):
                raise ArtefactError(
                    f"{file} is {written[0]} version {written[1]}; this forethought reads {FORMAT} {VERSION}."
                )
            if manifest["convention"] != CONVENTION:
                raise ArtefactError(f"{file} counts layers by {manifest['convention']!r}, which is not known here.")
            stored = (path / TENSORS).read_bytes()
            if hashlib.sha256(stored).hexdigest() != manifest["digest"]:
                raise ArtefactError(
                    f"{path / TENSORS} does not match its digest; it was damaged or changed, get it anew."
                )
            tensors: dict[Site, dict[str, Tensor]] = {site: {} for site in manifest["sites"]}
            for key, tensor in load_tensors(stored).items():
                site, _, name = key.partition(".")
                tensors[parse_site(site)][name] = tensor
            told = manifest["delimiters"]
            return cls(
                kind=manifest["kind"],
                name=manifest["name"],
                tensors=tensors,
                model=Identity(**manifest["model"]),
                position=manifest["position"],
                units=manifest["units"],
                numbers={parse_site(site): numbers for site, numbers in manifest["numbers"].items()},
                delimiters=None if told is None else Delimiters(tuple(told["open"]), tuple(told["close"])),
                provenance=manifest["provenance"],
                controls=manifest["controls"],
            )
        except ArtefactError as error:
            raise error if str(path) in str(error) else ArtefactError(f"{path} is damaged: {error}") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
            raise ArtefactError(f"{path} is damaged ({type(error).__name__}: {error}); get it anew.") from error


def _place(site: Site) -> float:
    return float("inf") if site == "norm" else float(site)


def _plain(value: Any) -> Any:
    """Numbers of numpy and of torch as Python's own."""
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.ndim == 0):
        return value.item()
    raise TypeError(f"a {type(value).__name__}")


def _is_instrument(path: Path) -> bool:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT
