"""Training of the embedded reasoner from nothing, on problems and worked traces made on the spot."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from forethought.atomic import atomic_folder
from forethought.data.arguments import MOST_THREADS, check_whole
from forethought.data.batches import gather_rows
from forethought.data.problems import BRIEF, FAMILIES, LEVELS, Split, draw_problem, draw_problems
from forethought.errors import RecipeError
from forethought.instruments.phases import Delimiters
from forethought.reasoners.reasoner import Reasoner
from forethought.reasoners.rollouts import Sampling, roll_out
from forethought.reasoners.tokenizer import BOX, MAX_LENGTH, STOP, build_tokenizer
from forethought.training.checkpoints import seal
from forethought.training.devices import find_device
from forethought.training.recipe import Recipe
from forethought.training.record import (
    check_same,
    is_main_process,
    new_record,
    now,
    read_record,
    recording,
    run_folder,
    told_command,
    write_record,
)
from forethought.training.trainer import Trainer, check_trackers

transformers.utils.logging.disable_progress_bar()

HEAD = 64  # width of an attention head; vLLM's kernels for processors know 32, 64 and more
COPYING = 2.0  # how much of what attention finds is written to the residual stream at first
SHARPNESS = 5.0  # of the heads that look back at first: one token off scores 3.4 less
BRIEF_SHARE = 0.1  # of the problems, which ask for no checks and get none
VALIDATION = 100  # problems solved at each validation
MAX_NEW_TOKENS = 448  # no trace that was learned from is longer


@strict
class ReasonerConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers is only partly annotated
    """What a recipe says of the reasoner: a Qwen2 of this shape, and what its traces are like.

    Attributes:
        hidden_size: width of the residual stream, a multiple of 64, the width of a head.
        num_layers: blocks.
        intermediate_size: width inside the feed-forward parts.
        planned: the number of checks in a trace depends on the problem; false makes the null reasoner, whose checks
            have nothing to do with the question.
    """

    model_type = "reasoner"

    hidden_size: int = 128
    num_layers: int = 6
    intermediate_size: int = 384
    planned: bool = True

    def validate_sizes(self) -> None:
        """Refuse what no network can be made of."""
        if self.hidden_size < HEAD or self.hidden_size % HEAD:
            raise ValueError(f"hidden_size is {self.hidden_size}; it has to be a multiple of {HEAD}")
        for key in ("num_layers", "intermediate_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}; it has to be at least 1")


def config_class(kind: str) -> type[PreTrainedConfig]:
    """The config of ``model.type: reasoner``.

    Raises:
        RecipeError: another type.
    """
    if kind != "reasoner":
        raise RecipeError(f"model.type is {kind!r}; a reasoner's is 'reasoner'.")
    return ReasonerConfig


def build_reasoner(config: ReasonerConfig, seed: int) -> Qwen2ForCausalLM:
    """The untrained network, ready to copy; its weights depend on the seed.

    Looking up in the question what a step needs takes two layers that fit together: one that tells each token what
    stands before it, and one that finds where the like of the present token stood. From independent weights that takes
    longer than all the rest of the training. So attention begins with keys equal to queries, which finds what is alike,
    and with outputs that undo the value, which copies: mimetic initialization (Trockman and Kolter, arXiv 2305.09828)
    with the signs that text wants. The heads of the first layer are drawn, besides, to the last token, the one before
    it, and so on.
    """
    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    heads = config.hidden_size // HEAD
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=MAX_LENGTH,
            tie_word_embeddings=True,
            # the usual 0.02 is for wider networks: here it leaves attention flat, and learning takes twice as long
            initializer_range=config.hidden_size**-0.5,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    with torch.no_grad():
        for layer in model.model.layers:
            attention = layer.self_attn
            attention.k_proj.weight.copy_(attention.q_proj.weight)
            attention.o_proj.weight.copy_(COPYING * attention.v_proj.weight.T)
        first = model.model.layers[0].self_attn
        heads_of = (first.q_proj.bias.split(HEAD), first.k_proj.bias.split(HEAD))
        for distance, (query, key) in enumerate(zip(*heads_of, strict=True), start=1):
            _look_back(query, key, model.model.rotary_emb.inv_freq, distance)
    return model


def _look_back(query: Tensor, key: Tensor, frequencies: Tensor, distance: int) -> None:
    """Set a head's biases so that its score is the largest ``distance`` tokens back, whatever the tokens are.

    The score of two positions d apart is then SHARPNESS^2 sum cos(f (d - distance)) / sqrt(HEAD), over the faster half
    of the rotary frequencies f.
    """
    half, fast = HEAD // 2, HEAD // 4
    angles = distance * frequencies[:fast]
    key[:fast] = SHARPNESS
    query[:fast] = SHARPNESS * angles.cos()
    query[half : half + fast] = -SHARPNESS * angles.sin()


class Traces:
    """Problems with worked traces as training rows; the same for the same seed.

    A batch is ``{"history": int64 [B, L], "target": int64 [B, L]}`` as for a recommender: tokens padded on the right
    with 0, and the token after each, 0 inside the prompt, which nobody has to predict.

    Args:
        number: of rows, each a problem of its own.
        seed: of the draws.
        planned: see :class:`ReasonerConfig`.
    """

    def __init__(self, number: int, seed: int, planned: bool = True) -> None:
        random = np.random.default_rng((seed, 0))
        tokenizer = build_tokenizer()
        prompts, rests = [], []
        for _ in range(number):
            family, level = FAMILIES[random.integers(len(FAMILIES))], int(random.choice(LEVELS))
            problem = draw_problem(family, level, "train", random)
            brief = random.random() < BRIEF_SHARE
            checks = 0 if brief else problem.draw_checks(random, planned)
            question = f"{problem.question} {BRIEF}" if brief else problem.question
            prompts.append([{"role": "user", "content": question}])
            rests.append(f"{problem.trace(checks)}</think>\n{BOX}{problem.answer}}}{STOP}")
        texts = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, tokenize=False)
        heads = tokenizer(texts, add_special_tokens=False)["input_ids"]
        tails = tokenizer(rests, add_special_tokens=False)["input_ids"]
        lengths = np.array([len(head) + len(tail) for head, tail in zip(heads, tails, strict=True)])
        self.starts = torch.from_numpy(np.cumsum(lengths) - lengths)
        self.lengths = torch.from_numpy(lengths - 1)  # the last token has none after it
        self.prompts = torch.tensor([len(head) for head in heads])
        flat = [token for head, tail in zip(heads, tails, strict=True) for part in (head, tail) for token in part]
        self.items = torch.tensor(flat, dtype=torch.int16)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> dict[str, Tensor]:
        index = torch.as_tensor(rows)
        starts, lengths = self.starts[index], self.lengths[index]
        target = gather_rows(self.items, starts + 1, lengths)
        asked = torch.arange(target.shape[1]) >= self.prompts[index, None] - 1
        return {"history": gather_rows(self.items, starts, lengths), "target": torch.where(asked, target, 0)}


class ReasonerTrainer(Trainer):
    """Trains a reasoner on traces, selected by the share of validation problems it solves."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        target = inputs["target"]
        outputs = model(input_ids=inputs["history"], use_cache=False)
        number = target.count_nonzero() if num_items_in_batch is None else num_items_in_batch
        loss = F.cross_entropy(outputs.logits.flatten(0, 1).float(), target.flatten(), ignore_index=0, reduction="sum")
        loss = loss / number * self.args.world_size
        return (loss, outputs) if return_outputs else loss

    def validate(self) -> dict[str, float]:
        """``{"accuracy": …}`` at temperature 0."""
        self.model.eval()
        cells = measure(reasoner_of(self.model), "valid", VALIDATION)
        self.model.train()
        return {"accuracy": float(np.mean([cell["accuracy"] for cell in cells]))}


def reasoner_of(model: PreTrainedModel) -> Reasoner:
    """A network of :func:`build_reasoner` with its tokenizer."""
    tokenizer = build_tokenizer()
    return Reasoner("embedded", model, tokenizer, Delimiters.of(tokenizer))


def measure(
    reasoner: Reasoner, split: Split, number: int, *, seed: int = 0, suffix: str = "", batch_size: int = 125
) -> list[dict[str, Any]]:
    """Solve held-out problems at temperature 0, other questions by their text, as they are split.

    Returns:
        A cell for each family and level: ``family``, ``level``, ``problems``, ``accuracy``, ``ended`` (the share of
        thoughts that were closed), ``thinking_tokens`` and ``checks`` (means).
    """
    # a batch takes as long as its longest thought, so those that may be alike go together
    problems = sorted(draw_problems(number, split, seed, by_text=True), key=lambda each: (each.family, each.level))
    cells: dict[tuple[str, int], list[tuple[bool, bool, int, int]]] = {}
    sampling = Sampling(samples=1, max_new_tokens=MAX_NEW_TOKENS, temperature=0.0, batch_size=batch_size)
    for batch in roll_out(reasoner, problems, sampling, suffix=suffix):
        for rollout in batch:
            problem, thinking = problems[rollout.problem], rollout.thinking_tokens
            checks = reasoner.tokenizer.decode(rollout.ids[:thinking]).count("Wait ")
            row = (rollout.correct, rollout.ended, thinking, checks)
            cells.setdefault((problem.family, problem.level), []).append(row)
    return [
        {"family": family, "level": level, "problems": len(found)}
        | dict(zip(("accuracy", "ended", "thinking_tokens", "checks"), np.mean(found, axis=0).tolist(), strict=True))
        for (family, level), found in sorted(cells.items(), key=lambda cell: (FAMILIES.index(cell[0][0]), cell[0][1]))
    ]


def train_reasoner(
    recipe: str | os.PathLike[str] | Recipe,
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    seed: int | None = None,
    device: str | None = None,
    threads: int | None = None,
    quiet: bool = False,
    overrides: Mapping[str, Any] | None = None,
    problems: int = 1000,
) -> Path:
    """Train a reasoner as a recipe says, measure it on held-out problems, and write a run folder.

    So many problems are drawn that each is seen once: ``training.max_steps`` times ``training.batch_size``, times
    ``training.gradient_accumulation_steps``.

    Args:
        recipe: a YAML file with ``model.type: reasoner``, or a :class:`Recipe`.
        out: the run folder; by default a new one under ``runs/``.
        resume: go on with ``out`` where it was stopped; the result is the one of an uninterrupted run.
        seed: in place of the recipe's.
        device: ``cpu``, ``cuda`` …; by default the accelerator, where there is one.
        threads: of torch on the CPU.
        quiet: no progress bar.
        overrides: values of dotted keys.
        problems: solved at the end for ``evaluation/test.json`` and the model card.

    Returns:
        The run folder; ``model/`` in it opens with ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        RecipeError, ArtefactError: recipe or run folder are not what they have to be.
        DataError: a number is none that fits.
    """
    changed = {**(overrides or {}), **({} if seed is None else {"seed": seed})}
    if isinstance(recipe, Recipe):
        recipe = Recipe.from_mapping(recipe.to_dict(), config_class, changed) if changed else recipe
    else:
        recipe = Recipe.load(recipe, config_class, changed)
    steps, settings = recipe.training.max_steps, {k: v for k, v in recipe.model.items() if k != "type"}
    if steps is None:
        raise RecipeError(f"Recipe {recipe.name} has no training.max_steps, which says how many problems are drawn.")
    if recipe.training.select_by != "accuracy":
        raise RecipeError(
            f"Recipe {recipe.name} has training.select_by {recipe.training.select_by}; a reasoner's is accuracy."
        )
    if recipe.post_training is not None:
        raise RecipeError(f"Recipe {recipe.name}: a reasoner has no second phase; remove post_training.")
    if recipe.data.path is not None:
        raise RecipeError(f"Recipe {recipe.name} names data.path, and a reasoner makes its own problems; leave it out.")
    check_trackers(recipe)
    check_whole("problems", problems, least=1)
    if threads is not None:
        check_whole("threads", threads, least=1, most=MOST_THREADS)
        torch.set_num_threads(threads)
    number = steps * recipe.training.batch_size * recipe.training.gradient_accumulation_steps
    fingerprint = f"traces-{number}-{recipe.seed}"
    record = new_record(recipe, fingerprint, "held-out problems", find_device(device)) | {"problems": number}
    folder = run_folder(recipe, out, resume)
    if resume and (folder / "recipe.yaml").is_file():
        before, begun = read_record(folder), Recipe.load(folder / "recipe.yaml", config_class)
        if not check_same(folder, begun, recipe, before, record):
            return folder
        record["started"] = before["started"]
    config = ReasonerConfig(**settings)
    model = build_reasoner(config, recipe.seed)
    record["parameters"] = model.num_parameters()
    with recording(folder, record, recipe):
        examples = Traces(number, recipe.seed, config.planned)
        trainer = ReasonerTrainer(model, examples, recipe, folder, validates=True, device=device, quiet=quiet)
        trainer.fit(resume)
        record |= {"seconds": trainer.seconds, "steps": trainer.state.global_step}
        record["best_step"] = trainer.state.best_global_step
        model.eval()
        if is_main_process():
            cells = measure(reasoner_of(model), "test", problems)
            with atomic_folder(folder / "evaluation", replace=True) as scratch:
                (scratch / "test.json").write_text(json.dumps({"cells": cells}, indent=2) + "\n")
            with atomic_folder(folder / "model", replace=True) as scratch:
                _save(model, scratch, recipe, record, cells)
            write_record(folder, record | {"status": "finished", "finished": now()})
    return folder


def _save(
    model: Qwen2ForCausalLM, folder: Path, recipe: Recipe, record: Mapping[str, Any], cells: list[dict[str, Any]]
) -> None:
    model.config.use_cache = True
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    # the class of that name is in every version of transformers that reads tokenizer.json
    settings.write_text(settings.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    (folder / "README.md").write_text(model_card(recipe, record, cells), encoding="utf-8")
    seal(folder)


def model_card(recipe: Recipe, record: Mapping[str, Any], cells: list[dict[str, Any]]) -> str:
    """What the weights are, what they learned from, how they were made and what they can do, in Markdown."""
    known = {(cell["family"], cell["level"]): cell for cell in cells}
    rows = []
    for family in FAMILIES:
        shown = [f"{known[family, n]['accuracy']:.3f}" if (family, n) in known else "–" for n in LEVELS]
        tokens = _mean([cell for cell in cells if cell["family"] == family], "thinking_tokens")
        rows.append(f"| {family} | {' | '.join(shown)} | {tokens:.0f} |")
    total, low = _mean(cells, "accuracy"), _mean([cell for cell in cells if cell["level"] <= 3], "accuracy")
    number, minutes = sum(cell["problems"] for cell in cells), record["seconds"] / 60
    planned = recipe.model.get("planned", True)
    checks = "that grows with them" if planned else "that has nothing to do with the question (the null reasoner)"
    return f"""\
---
license: apache-2.0
library_name: transformers
---

# The embedded reasoner

A Qwen2 of {record["parameters"]:,} parameters, trained from nothing to solve five families of small problems by
thinking between `<think>` and `</think>` and answering in `\\boxed{{}}`. It is what forethought's instruments are tried
on where nothing can be downloaded. It knows nothing else.

- **Data**: {record["problems"]:,} problems made by `forethought.data.problems`, each with its necessary steps and
  a random number of redundant checks {checks}. One in ten asks to be brief and has no checks.
  Problems are split by a hash of the question's text; none of those below was trained on. Of the 2,948 `collatz`
  questions of the test part, 2,921 share trace and answer with a question of the training part: the same start under
  another bound.
- **Command**: `{told_command(record)}`, {minutes:.0f} minutes on {record["machine"]} with \
{record["threads"]} threads, seed {recipe.seed}.
- **Accuracy** at temperature 0 over {number:,} held-out problems: {total:.3f}; over levels 1 to 3: {low:.3f}.

| Family | {" | ".join(f"Level {level}" for level in LEVELS)} | Thinking tokens |
| --- | {" | ".join(["---:"] * (len(LEVELS) + 1))} |
{chr(10).join(rows)}
"""


def _mean(cells: list[dict[str, Any]], key: str) -> float:
    """Over all problems of the cells; NaN where there are none."""
    weights = [cell["problems"] for cell in cells]
    return float(np.average([cell[key] for cell in cells], weights=weights)) if cells else float("nan")
