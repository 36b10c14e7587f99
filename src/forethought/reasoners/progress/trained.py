"""Everything that reads progress, as it is kept: the linear probes and meters in ``tpv/``, the GRU in ``gru/``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from forethought.errors import ArtefactError
from forethought.instruments.artefact import Instrument
from forethought.instruments.fingerprint import Identity
from forethought.instruments.phases import Delimiters
from forethought.instruments.progress import ProgressProbe
from forethought.instruments.progress_baselines import PositionBaseline
from forethought.instruments.progress_gru import ProgressGRU
from forethought.reasoners.progress.meters import Floats, Meter, Needle
from forethought.reasoners.reasoner import Reasoner

EMBEDDED = Path(__file__).with_name("embedded")  # of the reasoner that comes along
Source = Literal["position", "tpv", "gru"]
SOURCES: tuple[Source, ...] = ("position", "tpv", "gru")
NAMES: dict[Source, str] = {"position": "position", "tpv": "TPV, centred", "gru": "GRU"}
UNITS = "progress, 0 at the beginning of a thought and 1 at its end; as a steering vector, 1 adds the vector as it is"
_GRU = "gru."


@dataclass(frozen=True)
class Trained:
    """What ``forethought progress train`` makes.

    Attributes:
        tpv: the linear probe with an intercept, each thought counting once.
        raw: the paper's: no intercept, each token counting once.
        gru: the recurrent reading.
        position: the mean progress at each token index.
        meters: of each source, calibrated.
        source: which of them a bar shows: the best on problems held out, or the position alone where none beats it.
    """

    tpv: ProgressProbe
    raw: ProgressProbe
    gru: ProgressGRU
    position: PositionBaseline
    meters: dict[Source, Meter]
    source: Source

    def predict(self, source: Source, states: Tensor) -> Floats:
        """Raw progress of one whole thought, states float ``[N, d]``; float64 ``[N]``."""
        if source == "position":
            return self.position.predict(len(states))
        return self.tpv.predict(states) if source == "tpv" else self.gru.predict(states)

    def needle(self, source: Source | None = None, device: Any = "cpu") -> Needle:
        """A meter at the beginning of a thought, on the source that was chosen or on another."""
        source = source or self.source
        return Needle(self.meters[source], self._reader(source, device))

    def save(
        self, folder: Path, model: Identity, delimiters: Delimiters | None, provenance: dict[str, Any], controls: Any
    ) -> None:
        """Write ``tpv/`` and ``gru/`` into a folder; those that are there give way.

        Raises:
            ArtefactError: the place cannot be written.
        """
        tensors = {
            "tpv": torch.from_numpy(self.tpv.weight).float(),
            "raw": torch.from_numpy(self.raw.weight).float(),
            "position.table": torch.from_numpy(self.position.table),
        }
        numbers = {
            "tpv.bias": self.tpv.bias, "tpv.ridge": self.tpv.ridge, "raw.ridge": self.raw.ridge,
            "source": float(SOURCES.index(self.source)),
        }  # fmt: skip
        for source in SOURCES:
            more_tensors, more_numbers = self.meters[source].state(source)
            tensors |= more_tensors
            numbers |= more_numbers
        Instrument(
            "progress", "thinking progress", {"norm": tensors}, model, "think", UNITS, {"norm": numbers}, delimiters,
            provenance, controls,
        ).save(folder / "tpv", replace=True)  # fmt: skip
        weights = {f"{_GRU}{name}": tensor for name, tensor in self.gru.state_dict().items()}
        Instrument(
            "progress-gru", "thinking progress", {"norm": weights}, model, "think", UNITS, {}, delimiters, provenance,
            controls,
        ).save(folder / "gru", replace=True)  # fmt: skip

    @classmethod
    def open(cls, folder: str | os.PathLike[str], reasoner: Reasoner | None = None) -> tuple[Trained, Instrument]:
        """Read what :meth:`save` wrote.

        Args:
            folder: that holds ``tpv/`` and ``gru/``.
            reasoner: refuse to read progress of another than it was made on.

        Returns:
            The readers, and the instrument that says where they come from.

        Raises:
            ArtefactError: it is missing or damaged, or was made on another model.
        """
        folder = Path(folder)
        if not (folder / "tpv").is_dir():
            raise ArtefactError(f"{folder} holds no trained progress; make it with 'forethought progress train'.")
        kept, recurrent = Instrument.open(folder / "tpv"), Instrument.open(folder / "gru")
        if reasoner is not None:
            kept.check_model(reasoner.model)
        if recurrent.model.fingerprint != kept.model.fingerprint:
            raise ArtefactError(f"{folder} holds a probe and a GRU of two models; train it anew.")
        try:
            tensors, numbers, width = kept.tensors["norm"], kept.numbers["norm"], kept.model.width
            for name in ("tpv", "raw"):
                if tensors[name].shape != (width,):
                    raise ValueError(f"{name} has the shape {list(tensors[name].shape)}, not {[width]}")
            if numbers["source"] not in range(len(SOURCES)):
                raise ValueError(f"source is {numbers['source']}, and there are 0 to {len(SOURCES) - 1}")
            weights = {name.removeprefix(_GRU): tensor.float() for name, tensor in recurrent.tensors["norm"].items()}
            with torch.device("meta"):  # whatever sizes a file may tell, no memory beyond what its tensors take
                gru = ProgressGRU(width, weights["gru.weight_ih_l0"].shape[1], weights["gru.weight_hh_l0"].shape[1])
            gru.load_state_dict(weights, assign=True)
            found = cls(
                ProgressProbe(tensors["tpv"].double().numpy(), numbers["tpv.bias"], numbers["tpv.ridge"]),
                ProgressProbe(tensors["raw"].double().numpy(), 0.0, numbers["raw.ridge"]),
                gru.eval(),
                PositionBaseline(tensors["position.table"].double().numpy()),
                {source: Meter.from_state(source, tensors, numbers) for source in SOURCES},
                SOURCES[int(numbers["source"])],
            )
        except (KeyError, IndexError, ValueError, TypeError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ArtefactError(f"{folder} is damaged ({type(error).__name__}: {reason}); train it anew.") from error
        return found, kept

    def _reader(self, source: Source, device: Any) -> Callable[[Tensor], float]:
        if source == "position":
            place = iter(range(10**9))
            table = self.position.table
            return lambda state: float(table[min(next(place), len(table) - 1)])
        if source == "tpv":
            weight = torch.from_numpy(np.asarray(self.tpv.weight)).float().to(device)
            return lambda state: float(state.float() @ weight) + self.tpv.bias
        return _Recurrent(self.gru.to(device))


class _Recurrent:
    """The GRU with its memory of one thought."""

    def __init__(self, gru: ProgressGRU) -> None:
        self.gru = gru
        self.memory: Tensor | None = None

    @torch.no_grad()
    def __call__(self, state: Tensor) -> float:
        progress, self.memory = self.gru.step(state[None].to(self.gru.head.weight), self.memory)
        return float(progress[0])
