"""Means and covariances of states that stream by: nothing but the sums is kept."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from forethought.errors import ArtefactError

Floats = npt.NDArray[np.float64]


@dataclass
class _Group:
    count: int
    mean: Floats  # [d]
    scatter: Floats | None  # [d, d], the sum of (x - mean)(x - mean)'


class Moments:
    """Running mean and covariance of each group of rows, in float64.

    Two parts are merged as Chan, Golub & LeVeque (1979) do, so that no large number is subtracted from another and the
    order of the parts does not matter.

    Args:
        width: d.
        covariance: false keeps means and counts alone; a covariance takes 8 d² bytes a group.
    """

    def __init__(self, width: int, *, covariance: bool = True) -> None:
        self.width = width
        self.covariances = covariance
        self._groups: dict[Hashable, _Group] = {}

    @property
    def groups(self) -> list[Any]:
        """The names of the groups seen, in the order they came."""
        return list(self._groups)

    def add(self, states: npt.ArrayLike, groups: Sequence[Hashable] | npt.NDArray[Any] | None = None) -> None:
        """Take in some rows.

        Args:
            states: ``[rows, d]``, of any float type; converted to float64 here.
            groups: the group of each row, ``[rows]``; None puts all of them into the group None.

        Raises:
            ArtefactError: the width or the number of groups is another.
        """
        rows = np.asarray(states, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.width:
            raise ArtefactError(f"States of shape {rows.shape} were given to moments of width {self.width}.")
        if groups is None:
            self._merge(None, self._of(rows))
            return
        if len(groups) != len(rows):
            raise ArtefactError(f"{len(groups)} groups were given for {len(rows)} rows; give one a row.")
        members: dict[Hashable, list[int]] = {}
        for row, group in enumerate(groups.tolist() if isinstance(groups, np.ndarray) else groups):
            members.setdefault(group, []).append(row)
        for group, chosen in members.items():
            self._merge(group, self._of(rows[chosen]))

    def merge(self, other: Moments) -> None:
        """Take in what another has seen, group by group.

        Raises:
            ArtefactError: its width is another, or only one of the two keeps covariances.
        """
        if (other.width, other.covariances) != (self.width, self.covariances):
            raise ArtefactError(
                f"Moments of width {other.width} cannot be merged into moments of width {self.width}, "
                "nor ones with covariances into ones without."
            )
        for group, part in other._groups.items():
            self._merge(group, part)

    def count(self, group: Hashable = None) -> int:
        """Rows of a group; 0 for one that was never seen."""
        return self._groups[group].count if group in self._groups else 0

    def mean(self, group: Hashable = None) -> Floats:
        """float64 ``[d]``.

        Raises:
            ArtefactError: no row of this group was seen.
        """
        return self._group(group, 1).mean.copy()

    def covariance(self, group: Hashable = None, ddof: int = 1) -> Floats:
        """float64 ``[d, d]``, the sum of squares divided by ``count - ddof``.

        Raises:
            ArtefactError: the group has no more than ``ddof`` rows, or covariances were not kept.
        """
        found = self._group(group, ddof + 1)
        if found.scatter is None:
            raise ArtefactError("These moments keep no covariances; make them with Moments(width, covariance=True).")
        return found.scatter / (found.count - ddof)

    def _group(self, group: Hashable, least: int) -> _Group:
        if self.count(group) < least:
            raise ArtefactError(f"The group {group!r} has {self.count(group)} rows, and {least} are needed.")
        return self._groups[group]

    def _of(self, rows: Floats) -> _Group:
        if not len(rows):
            return _Group(0, np.zeros(self.width), np.zeros((self.width, self.width)) if self.covariances else None)
        mean = rows.mean(axis=0)
        away = rows - mean
        return _Group(len(rows), mean, away.T @ away if self.covariances else None)

    def _merge(self, group: Hashable, part: _Group) -> None:
        if not part.count:
            return
        whole = self._groups.setdefault(group, self._of(np.empty((0, self.width))))
        count = whole.count + part.count
        step = part.mean - whole.mean
        if whole.scatter is not None and part.scatter is not None:
            whole.scatter += part.scatter
            whole.scatter += np.outer(step, step) * (whole.count * part.count / count)
        whole.mean += step * (part.count / count)
        whole.count = count
