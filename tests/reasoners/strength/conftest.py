"""A collection in whose prompt states the lengths are planted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from forethought.instruments.capture import Transcript, capture
from forethought.instruments.sites import Stack
from forethought.reasoners.reasoner import Reasoner
from forethought.reasoners.rollouts import LINES, SETTINGS, Rollout, Sampling
from forethought.reasoners.strength.collection import Collection
from tests.reasoners.tiny import problems, tiny

NUMBER, SAMPLES, SITE = 120, 4, 1


def plant(folder: Path, reasoner: Reasoner, *, planted: bool = True, noise: float = 3.0, cap: int = 400) -> Collection:
    """Lengths 30 to 130 along the first principal component of the states after block 1, or along nothing; levels with
    them. A length over the cap is cut off there."""
    asked, random = problems(NUMBER, seed=7), np.random.default_rng(1)
    prompts = [reasoner.prompt(problem.question) for problem in asked]
    transcripts = [Transcript(prompt, problem=index) for index, prompt in enumerate(prompts)]
    states = capture(
        reasoner.model, transcripts, Stack.of(reasoner.model).sites(), "last-prompt", folder / "states",
        delimiters=reasoner.delimiters, quiet=True,
    )  # fmt: skip
    x = states.at(SITE).astype(np.float64)
    x -= x.mean(axis=0)
    rank = (x @ np.linalg.svd(x, full_matrices=False)[2][0]).argsort().argsort() / NUMBER
    if not planted:
        rank = random.permutation(rank)
    levels = 1 + (5 * rank).astype(int)
    asked = [dataclasses.replace(problem, level=int(level)) for problem, level in zip(asked, levels, strict=True)]
    close, lines = reasoner.delimiters.close[0], []
    for index in range(NUMBER):
        for sample in range(SAMPLES):
            length = round(30 + 100 * rank[index] + noise * random.standard_normal())
            ended = length < cap
            thought = [20] * min(length, cap)
            ids = [*thought, close] if ended else thought
            lines.append(
                Rollout(index, sample, prompts[index], ids, len(thought), ended, "1" if ended else None, ended)
            )
    sampling = Sampling(samples=SAMPLES, max_new_tokens=cap, seed=3)
    settings = {
        "format": "forethought rollouts", "version": 1, "model": reasoner.name,
        "fingerprint": states.model.fingerprint, "dtype": "float32",
        "delimiters": dataclasses.asdict(reasoner.delimiters), "instruction": "", "suffix": "",
        "sampling": dataclasses.asdict(sampling), "problems": [dataclasses.asdict(problem) for problem in asked],
    }  # fmt: skip
    (folder / "rollouts").mkdir()
    (folder / "rollouts" / SETTINGS).write_text(json.dumps(settings))
    (folder / "rollouts" / LINES).write_text("".join(json.dumps(dataclasses.asdict(line)) + "\n" for line in lines))
    return Collection.open(folder)


@pytest.fixture(scope="session")
def reasoner() -> Reasoner:
    return tiny(seed=3)


@pytest.fixture(scope="session")
def planted(reasoner: Reasoner, tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return plant(tmp_path_factory.mktemp("planted"), reasoner)


@pytest.fixture(scope="session")
def null(reasoner: Reasoner, tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return plant(tmp_path_factory.mktemp("null"), reasoner, planted=False)
