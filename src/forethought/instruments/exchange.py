"""Directions to and from the files of other programs: npy arrays and GGUF control vectors.

How they count layers, against our sites:

- old RSP arrays, npy ``[L, d]``: row l was added to the *input* of block l, which is site l - 1;
- TPV weights, npy ``[d]``: the output of the final norm, site ``norm``;
- GGUF, ``direction.N``: llama.cpp adds it to the *output* of block N, counted from 0, which is site N. It refuses
  ``direction.0``, so that sites -1, 0 and ``norm`` cannot be steered there (``common_control_vector_load`` and
  ``llama_adapter_cvec`` in its source). repeng counts alike: it reads ``hidden_states[N + 1]``.
"""

from __future__ import annotations

import os
import tokenize
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from forethought.atomic import atomic_file
from forethought.errors import ArtefactError
from forethought.instruments.artefact import Instrument
from forethought.instruments.fingerprint import Identity
from forethought.instruments.sites import Site

_UNKNOWN = "not recorded in the file"
# what numpy raises for files that are no arrays, or broken ones
BROKEN_NPY = (
    OSError, ValueError, TypeError, EOFError, SyntaxError, MemoryError, zipfile.BadZipFile, tokenize.TokenError,
)  # fmt: skip


def import_npy(
    path: str | os.PathLike[str], model: nn.Module | Identity, name: str, *, kind: str = "direction", **described: Any
) -> Instrument:
    """Read an array of the original code: ``[L, d]`` of RSP or ``[d]`` of TPV.

    Args:
        path: the ``.npy`` file, of any float type.
        model: what the array was made on, which the file does not say.
        name: of the instrument.
        kind: of the instrument.
        described: further fields of :class:`~forethought.instruments.artefact.Instrument`, such as ``position``,
            ``units``, ``delimiters``, ``controls``.

    Raises:
        ArtefactError: the file is no such array, or its shape does not fit the model.
    """
    path, identity = Path(path), _identity(model)
    try:
        # somebody else's file: numbers alone, no code, and no memory for more of them than the file has
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except BROKEN_NPY as error:
        raise ArtefactError(f"{path} cannot be read as an npy array of numbers ({error}).") from error
    layers, wide = identity.blocks, identity.width
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.shape not in ((wide,), (layers, wide)):
        found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "several arrays"
        raise ArtefactError(
            f"{path} holds {found}; a direction of {identity.name} has floats of shape [{layers}, {wide}] or [{wide}]."
        )
    rows: dict[Site, npt.NDArray[Any]] = (
        {"norm": array} if array.ndim == 1 else {layer - 1: array[layer] for layer in range(layers)}
    )
    return _instrument(kind, name, rows, identity, path, described)


def export_npy(instrument: Instrument, path: str | os.PathLike[str]) -> None:
    """Write what is steered with as the original code reads it: ``[L, d]`` for blocks, ``[d]`` for the norm; float32.

    Sites that the instrument does not have become rows of zeros.

    Raises:
        ArtefactError: there is nothing to steer with, or the array has no place for a site.
    """
    vectors = instrument.steering()
    if list(vectors) == ["norm"]:
        array = vectors["norm"].numpy()
    else:
        array = np.zeros((instrument.model.blocks, instrument.model.width), dtype=np.float32)
        for site, vector in vectors.items():
            if site == "norm" or site == instrument.model.blocks - 1:
                raise ArtefactError(
                    f"An RSP array holds the inputs of blocks and has no place for site {site!r}; write a GGUF file, "
                    "or keep an instrument without that site."
                )
            array[site + 1] = vector.numpy()
    with atomic_file(path) as scratch, scratch.open("wb") as file:
        np.save(file, array, allow_pickle=False)  # numbers, which anyone can read in the same way


def import_gguf(
    path: str | os.PathLike[str], model: nn.Module | Identity, name: str | None = None, **described: Any
) -> Instrument:
    """Read a control vector of llama.cpp or repeng.

    Args:
        path: the ``.gguf`` file.
        model: what it was made on; the file says only the architecture.
        name: of the instrument; that in the file, or the file's own, where it is not given.
        described: further fields, as in :func:`import_npy`.

    Raises:
        ArtefactError: the package gguf is missing, the file is no control vector, or it does not fit the model.
    """
    gguf, path, identity = _gguf(), Path(path), _identity(model)
    try:
        reader = gguf.GGUFReader(path)
        fields = {key: entry.contents() for key, entry in reader.fields.items()}
        tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ArtefactError(f"{path} cannot be read as GGUF ({error}).") from error
    if fields.get("general.architecture") != "controlvector":
        raise ArtefactError(f"{path} is a GGUF file of {fields.get('general.architecture')!r}, not of 'controlvector'.")
    rows: dict[Site, npt.NDArray[Any]] = {}
    for key, vector in sorted(tensors.items()):
        layer = key.removeprefix("direction.")
        fits = vector.dtype == np.float32 and vector.shape == (identity.width,)
        if not layer.isdecimal() or not 1 <= int(layer) < identity.blocks or not fits:
            raise ArtefactError(
                f"{path} holds {key} of {vector.dtype} {list(vector.shape)}; a control vector for {identity.name} has "
                f"direction.1 to direction.{identity.blocks - 1} of float32 [{identity.width}]."
            )
        rows[int(layer)] = vector
    told = {"units": str(fields["general.description"])} if "general.description" in fields else {}
    return _instrument(
        "direction", name or str(fields.get("general.name", path.stem)), rows, identity, path, told | described
    )


def export_gguf(instrument: Instrument, path: str | os.PathLike[str], *, leave_out: bool = False) -> list[Site]:
    """Write a control vector for llama.cpp, whose ``--control-vector-scaled FILE SCALE`` multiplies it by SCALE.

    Args:
        instrument: what it steers with is written.
        path: the ``.gguf`` file.
        leave_out: drop sites that llama.cpp cannot steer (-1, 0); vectors of zeros are dropped anyway.

    Returns:
        The sites that were left out.

    Raises:
        ArtefactError: the package gguf is missing, or such a site would be lost.
    """
    gguf = _gguf()
    vectors = {site: vector for site, vector in instrument.steering().items() if bool(vector.any())}
    kept = {site: vector for site, vector in vectors.items() if site != "norm" and site >= 1}
    left_out = [site for site in vectors if site not in kept]
    lost = ", ".join(map(str, left_out))
    if not kept or (lost and not leave_out):
        raise ArtefactError(
            f"llama.cpp steers sites 1 to {instrument.model.blocks - 1}, and {instrument.name!r} has "
            f"{lost or 'only zeros'}; choose other sites{', or leave them out' if kept else ''}."
        )
    with atomic_file(path) as scratch:
        writer = gguf.GGUFWriter(scratch, "controlvector")
        writer.add_string("controlvector.model_hint", instrument.model.architecture)
        writer.add_uint32("controlvector.layer_count", len(kept))
        writer.add_name(instrument.name)
        writer.add_description(instrument.units)
        for site, vector in kept.items():
            writer.add_tensor(f"direction.{site}", vector.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return left_out


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ArtefactError(
            "GGUF files need the package gguf; install it with: pip install 'forethought[gguf]'."
        ) from error
    return gguf


def _identity(model: nn.Module | Identity) -> Identity:
    return model if isinstance(model, Identity) else Identity.of(model)


def _instrument(
    kind: str,
    name: str,
    rows: Mapping[Site, npt.NDArray[Any]],
    model: Identity,
    path: Path,
    described: Mapping[str, Any],
) -> Instrument:
    told = {"position": _UNKNOWN, "units": _UNKNOWN, "provenance": {"file": path.name}} | dict(described)
    tensors = {site: {"direction": torch.from_numpy(row.astype(np.float32))} for site, row in rows.items()}
    return Instrument(kind=kind, name=name, tensors=tensors, model=model, **told)
