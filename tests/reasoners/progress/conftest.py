"""A small random reasoner whose thoughts end by themselves, its rollouts, and rollouts that were planted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from forethought.data.problems import Problem, draw_problems
from forethought.instruments.fingerprint import fingerprint
from forethought.reasoners.progress.generation import Generations
from forethought.reasoners.progress.preparation import Prepared
from forethought.reasoners.progress.trained import Trained
from forethought.reasoners.progress.training import Report, train
from forethought.reasoners.reasoner import Reasoner
from forethought.reasoners.rollouts import LINES, SETTINGS, Rollout, Sampling
from forethought.reasoners.tokenizer import build_tokenizer
from tests.reasoners.tiny import CONFIG, drawn

SAMPLING = Sampling(3, 60, 1.0, 1.0, 7, 16)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model on disk: every state has the same large first entry, by which two tokens are made likely."""
    model = drawn(CONFIG, 3)
    tokenizer = build_tokenizer()
    with torch.no_grad():
        head = model.lm_head.weight.detach().clone()
        model.get_input_embeddings().weight[:, 0] = 2.0
        head[:, 0] = 0.0
        head[tokenizer.convert_tokens_to_ids("</think>"), 0] = 2.2
        head[tokenizer.eos_token_id, 0] = 1.6
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(head)
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def reasoner(folder: Path) -> Reasoner:
    return Reasoner.open(folder, device="cpu")


@pytest.fixture(scope="session")
def problems() -> list[Problem]:
    return draw_problems(40, "test", 0)


@pytest.fixture(scope="session")
def generated(reasoner: Reasoner, problems: list[Problem], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thoughts whose ends nothing foretells."""
    out = tmp_path_factory.mktemp("generated") / "progress"
    Generations.collect(out, reasoner, problems, SAMPLING)
    return out


def plant(reasoner: Reasoner, problems: list[Problem], out: Path, *, garbled: set[int] = frozenset()) -> Path:  # type: ignore[assignment]
    """Rollouts whose tokens say how much of the thought is over: the tenth of it, as a digit, again and again.

    Those of the problems ``garbled`` say nothing.
    """
    digits = reasoner.tokenizer.encode("0123456789", add_special_tokens=False)
    close, stop = reasoner.delimiters.close, reasoner.tokenizer.eos_token_id
    random, lines = np.random.default_rng(0), []
    for index, problem in enumerate(problems):
        for sample in range(2):
            length = int(random.integers(12, 60))
            ids = [digits[10 * j // length] for j in range(1, length)]
            if index in garbled:
                ids = [digits[int(place)] for place in np.random.default_rng(index).integers(0, 10, len(ids))]
            rollout = Rollout(
                index, sample, reasoner.prompt(problem.question), [*ids, *close, stop], len(ids), True, None, False
            )
            lines.append(json.dumps(dataclasses.asdict(rollout)) + "\n")
    settings = {
        "format": "forethought rollouts", "version": 1, "model": reasoner.name,
        "fingerprint": fingerprint(reasoner.model), "delimiters": dataclasses.asdict(reasoner.delimiters),
        "instruction": "", "suffix": "", "sampling": dataclasses.asdict(Sampling(2, 80, 0.6, 0.95, 0, 16)),
        "problems": [dataclasses.asdict(problem) for problem in problems],
    }  # fmt: skip
    folder = out / f"rollouts-00000-{len(problems):05d}"
    folder.mkdir(parents=True)
    (folder / SETTINGS).write_text(json.dumps(settings))
    (folder / LINES).write_text("".join(lines))
    return out


@pytest.fixture(scope="session")
def planted(reasoner: Reasoner, problems: list[Problem], tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    out = plant(reasoner, problems, tmp_path_factory.mktemp("planted") / "progress")
    return Prepared.make(Generations.open(out), reasoner, out)


@pytest.fixture(scope="session")
def learned(planted: Prepared) -> tuple[Trained, Report]:
    return train(planted)


@pytest.fixture(scope="session")
def trained(planted: Prepared, learned: tuple[Trained, Report], reasoner: Reasoner) -> Trained:
    """The same from disk."""
    states = planted.states()
    made = dict(planted.settings)
    learned[0].save(planted.place.parent, states.model, states.delimiters, made, {})
    return Trained.open(planted.place.parent, reasoner)[0]
