"""Data sets that come with the package."""

from __future__ import annotations

from pathlib import Path

from forethought.errors import DataError

_HERE = Path(__file__).parent


def bundled_path(name: str) -> Path:
    """The folder of a bundled data set.

    Raises:
        DataError: there is none of this name.
    """
    names = sorted(folder.name for folder in _HERE.iterdir() if (folder / "interactions.parquet").is_file())
    if name not in names:
        raise DataError(f"There is no bundled data set {name!r}; choose {', '.join(names)}.")
    return _HERE / name
