"""What every test shares: one torch thread a worker, and the research data where it is present."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_configure() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of research data sets; never part of the repository."""
    folder = Path(os.environ.get("FORETHOUGHT_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no research data at {folder}; set FORETHOUGHT_DATA to the folder that holds them")
    return folder
