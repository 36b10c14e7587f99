from __future__ import annotations

import pytest

from forethought.training.record import told_command


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["forethought", "train", "x", "--out", "/a/b", "--seed", "1"], "forethought train x --out RUN --seed 1"),
        (["forethought", "train", "x", "--out=/a/b"], "forethought train x --out=RUN"),
        (["forethought", "train", "a recipe"], "forethought train 'a recipe'"),
    ],
)
def test_a_command_is_told_without_the_folder_of_this_machine(words: list[str], told: str) -> None:
    assert told_command({"command": words}) == told
