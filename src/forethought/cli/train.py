"""``forethought train``: a recipe becomes a run folder."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any


def register(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser(
        "train",
        parents=[common],
        allow_abbrev=False,
        help="train the model of a recipe",
        usage="forethought train RECIPE [--data.path DATA] [--out RUN] [--resume] [--section.key VALUE …]",
        description="Train the model of a recipe, keep the weights best on the validation part, and print the run "
        "folder on the last line. RECIPE is a YAML file or the name of a recipe that comes with forethought. Every key "
        "of the recipe can be overridden: --model.dropout 0.2 --data.targets last --training.learning_rate 1e-3",
    )
    parser.add_argument("recipe", metavar="RECIPE")
    parser.add_argument("--out", metavar="RUN", help="the run folder; by default a new one under runs/")
    parser.add_argument("--name", help="how the run is called; by default as the recipe")
    parser.add_argument("--resume", action="store_true", help="go on with --out where it was stopped")
    parser.add_argument(
        "--one-phase", action="store_true", help="leave out post_training; a later --resume without this adds it"
    )
    parser.set_defaults(run=run, takes_overrides=True)


def run(options: argparse.Namespace) -> None:
    from forethought.recipes import model_type, recipe_path

    # set by 'accelerate launch --num_processes N', which still starts one process where it finds no GPU and no MPI
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        print(
            "forethought: accelerate started one process only; for N on a CPU use "
            "'torchrun --nproc-per-node N -m forethought train …'.",
            file=sys.stderr,
        )
    overrides = options.overrides if options.name is None else {**options.overrides, "name": options.name}
    if options.one_phase:
        overrides = {**overrides, "post_training": None}
    keywords = {
        "out": options.out,
        "resume": options.resume,
        "seed": options.seed,
        "device": options.device,
        "threads": options.threads,
        "quiet": options.quiet,
        "overrides": overrides,
    }
    recipe = recipe_path(options.recipe)
    if model_type(recipe) == "reasoner":
        from forethought.reasoners.training import train_reasoner

        folder = train_reasoner(recipe, **keywords)
    else:
        from forethought.recommenders.run import train

        folder = train(recipe, **keywords).path
    if os.environ.get("RANK", "0") == "0":  # the last of several processes to end must not be the one that tells
        print(folder)
