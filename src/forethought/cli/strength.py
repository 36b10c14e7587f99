"""``forethought strength``: predict, explain and change how long a language model thinks."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

STRENGTHS = [-0.2, -0.15, -0.1, -0.05, 0.05, 0.1, 0.15, 0.2]  # of the RSP paper


def register(subparsers: Any, common: argparse.ArgumentParser) -> None:
    from forethought.cli import whole

    parser = subparsers.add_parser(
        "strength",
        help="predict and steer how long a language model thinks",
        description="Reasoning strength (Sheng et al. 2025): collect rollouts and prompt states, see whether the "
        "states tell how long the model will think, find the direction of difficulty, steer along it, and choose a "
        "setting that saves tokens. Every claim stands beside its controls.",
    )
    step = steps_of(parser, common)
    sub = step("collect", "sample answers to problems and read the states at the ends of the prompts", collect)
    sub.add_argument("--out", required=True, metavar="DIR", help="the folder; given again, it goes on")
    add_model(sub)
    sub.add_argument(
        "--problems", metavar="FILE", help="JSON lines with question, answer, level; by default problems made here"
    )
    add_made_here(sub)
    add_sampling(sub, 8)

    sub = step("analyse", "fit length probes and difficulty directions, beside their controls", analyse)
    _folder(sub, model=False)
    sub.add_argument("--kind", choices=("ridge", "lasso", "quantile", "tobit"), default="ridge", help="of the probe")
    sub.add_argument("--permutations", type=int, default=200, metavar="N", help="of every null (default 200)")

    sub = step("steer", "think under a range of strengths, with random directions beside", steer)
    _folder(sub)
    sub.add_argument("--vectors", metavar="DIR", help="a direction; by default that of 'analyse'")
    sub.add_argument("--strengths", type=float, nargs="+", default=STRENGTHS, metavar="λ")
    sub.add_argument("--random", type=whole, default=2, metavar="N", help="random directions beside (default 2)")
    sub.add_argument("--samples", type=int, default=1, metavar="N", help="answers a problem (default 1)")

    sub = step("overthink", "detect before the first token which thoughts will be the longest", overthink)
    _folder(sub, model=False)
    sub.add_argument("--share", type=float, default=0.25, help="of problems that count as overthought (default 0.25)")

    sub = step("efficient", "choose a setting that saves tokens, on problems that are not tested on", efficient)
    _folder(sub)
    sub.add_argument("--max-loss", type=float, default=0.01, metavar="A", help="accuracy given up at most (0.01)")
    sub.add_argument("--budget", type=float, metavar="TOKENS", help="instead: the most accurate within so many tokens")
    sub.add_argument("--vectors", metavar="DIR", help="a direction; by default that of 'analyse'")
    sub.add_argument("--progress", metavar="DIR", help="a folder of 'forethought progress train', to overclock with")
    sub.add_argument("--brief", default="Be brief.", metavar="TEXT", help="what asks for short thoughts")
    sub.add_argument("--samples", type=int, default=1, metavar="N", help="answers a problem (default 1)")


def steps_of(
    parser: argparse.ArgumentParser, common: argparse.ArgumentParser
) -> Callable[..., argparse.ArgumentParser]:
    """How to add a step to a command: ``step(name, what it does, the function that does it)``."""
    steps = parser.add_subparsers(dest="step", metavar="STEP", required=True)

    def step(name: str, text: str, run: Any) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = steps.add_parser(
            name, parents=[common], allow_abbrev=False, help=text, description=text[0].upper() + text[1:] + "."
        )
        sub.set_defaults(run=run)
        return sub

    return step


def _folder(sub: argparse.ArgumentParser, model: bool = True) -> None:
    sub.add_argument("path", metavar="DIR", help="a folder of 'forethought strength collect'")
    if model:
        add_model(sub, default=None)


def add_model(sub: argparse.ArgumentParser, default: str | None = "embedded") -> None:
    told = "by default the embedded reasoner" if default else "by default that of the collection"
    sub.add_argument("--model", default=default, help=f"a folder or a name on the hub; {told}")
    sub.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    sub.add_argument(
        "--think", nargs=2, metavar=("OPEN", "CLOSE"), help="what a thought stands between (<think> </think>)"
    )
    sub.add_argument("--instruction", default="", help="added to every question")


def add_made_here(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--number", type=int, metavar="N", help="of problems made here (default 300)")
    sub.add_argument("--family", action="append", help="of problems made here; several times for several")


def made_here(options: argparse.Namespace, flag: str, file: str | None) -> tuple[int, tuple[Any, ...]]:
    """How many problems to make, and of which families; neither may be asked for beside a file of problems."""
    from forethought.data.problems import FAMILIES
    from forethought.errors import DataError

    if file and (options.number is not None or options.family):
        raise DataError(f"--number and --family are of problems made here, and {flag} names {file}; leave one out.")
    return 300 if options.number is None else options.number, tuple(options.family or FAMILIES)


def add_sampling(sub: argparse.ArgumentParser, samples: int) -> None:
    sub.add_argument("--samples", type=int, default=samples, metavar="N", help=f"answers a problem ({samples})")
    sub.add_argument("--max-new-tokens", type=int, default=512, metavar="N")
    sub.add_argument("--temperature", type=float, default=0.6)
    sub.add_argument("--top-p", type=float, default=0.95)
    sub.add_argument("--batch-size", type=int, default=64, metavar="N")


def open_model(options: argparse.Namespace, settings: dict[str, Any] | None = None) -> Any:
    import torch

    from forethought.errors import ArtefactError
    from forethought.instruments.fingerprint import fingerprint
    from forethought.instruments.phases import Delimiters
    from forethought.reasoners.reasoner import Reasoner
    from forethought.training.memory import keep_freed_memory

    keep_freed_memory()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    name = options.model if options.model is not None else (settings or {}).get("model", "embedded")
    instruction = options.instruction or (settings or {}).get("instruction", "")
    told = (settings or {}).get("delimiters", {})
    between = Delimiters(*(tuple(told[end]) for end in ("open", "close"))) if told else ("<think>", "</think>")
    between = tuple(options.think) if options.think else between
    reasoner = Reasoner.open(
        name, device=options.device, dtype=options.dtype, delimiters=between, instruction=instruction
    )
    if settings is not None and fingerprint(reasoner.model) != settings["fingerprint"]:
        raise ArtefactError(f"{name} is not the model that {options.path} was collected with; name that with --model.")
    return reasoner


def collect(options: argparse.Namespace) -> None:
    from forethought.data.problems import draw_problems, read_problems
    from forethought.reasoners.rollouts import Sampling
    from forethought.reasoners.strength.collection import Collection

    seed = options.seed or 0
    number, families = made_here(options, "--problems", options.problems)
    if options.problems:
        problems = read_problems(options.problems)
    else:
        problems = draw_problems(number, "test", seed, families=families)
        if len(problems) < number:
            print(f"forethought: there are only {len(problems)} different problems to draw.", file=sys.stderr)
    sampling = Sampling(
        options.samples, options.max_new_tokens, options.temperature, options.top_p, seed, options.batch_size
    )
    found = Collection.collect(options.out, open_model(options), problems, sampling, quiet=options.quiet)
    rollouts = found.rollouts.rollouts
    tokens, censored = found.lengths()
    print(
        f"{len(problems)} problems, {tokens.size} rollouts: {tokens.mean():.1f} thinking tokens on average, "
        f"{sum(rollout.correct for rollout in rollouts) / tokens.size:.1%} correct."
    )
    if censored.any():
        print(
            f"{int(censored.sum())} thoughts ({censored.mean():.1%}) were not closed within {sampling.max_new_tokens} "
            "tokens, the context or the text; their lengths count as lower bounds and their answers as wrong."
        )
    if not any(rollout.answer for rollout in rollouts):
        print("No answer stood in a box; ask for it, such as with --instruction 'Put the final answer in \\boxed{}.'")
    print(found.path)


def analyse(options: argparse.Namespace) -> None:
    from forethought.reasoners.strength import analysis, tables
    from forethought.reasoners.strength.collection import Collection

    found = Collection.open(options.path)
    result = analysis.analyse(found, kind=options.kind, permutations=options.permutations, seed=options.seed or 0)
    out = analysis.save(result, found, found.path / "analysis", command())
    tables.show(tables.sites(result), tables.controls(result), tables.families(result))
    if result.probe.kind != options.kind:
        print(
            f"The probe is a tobit, not the {options.kind} asked for: {result.controls['censored']:.1%} of the "
            "thoughts were cut off, and only a tobit takes their lengths for lower bounds."
        )
    print(out)


def steer(options: argparse.Namespace) -> None:
    from forethought.reasoners.strength import figures, knobs, sweep, tables
    from forethought.reasoners.strength.collection import Collection

    found = Collection.open(options.path)
    reasoner = open_model(options, found.rollouts.settings)
    vectors = _vectors(options, found, reasoner)
    problems = [found.problems[index] for index in found.part("test")]
    turned = [
        knobs.direction_knob("direction", reasoner, vectors, options.strengths),
        *knobs.random_knobs(reasoner, vectors, options.strengths, options.random, options.seed or 0),
    ]
    sampling = sweep.with_samples(tables.sampling_of(found), options.samples)
    out = found.path / "steer"
    out.mkdir(exist_ok=True)
    outcomes = sweep.turn(reasoner, problems, sampling, turned, cache=out / "outcomes.jsonl", quiet=options.quiet)
    strengths = sorted({0.0, *options.strengths})
    drawn = knobs.random_vectors(vectors, options.random, options.seed or 0)
    steered = {"direction": vectors} | {f"random {place}": control for place, control in enumerate(drawn, start=1)}
    logits = {name: sweep.end_logits(reasoner, problems, along, strengths) for name, along in steered.items()}
    tables.save(out / "steer.json", {"command": command(), "outcomes": sweep.document(outcomes), "logits": logits})
    figures.draw_sweep(outcomes, logits, out / "steer.png")
    tables.show(tables.outcomes(outcomes))
    print(out)


def _vectors(options: argparse.Namespace, found: Any, reasoner: Any) -> Any:
    from forethought.errors import ArtefactError
    from forethought.reasoners.strength.analysis import steering_vectors

    made = found.path / "analysis" / "direction"
    if options.vectors is None and not made.is_dir():
        raise ArtefactError(
            f"{found.path} has no direction yet; make it with 'forethought strength analyse {found.path}' (it takes "
            "problems of two levels), or name one with --vectors."
        )
    return steering_vectors(Path(options.vectors or made), reasoner)


def overthink(options: argparse.Namespace) -> None:
    from forethought.reasoners.strength import overthink as detection
    from forethought.reasoners.strength import tables
    from forethought.reasoners.strength.collection import Collection

    found = Collection.open(options.path)
    result = detection.detect(found, share=options.share, seed=options.seed or 0)
    out = detection.save(result, found, found.path / "overthink", command())
    tables.show(tables.detector(result))
    print(out)


def efficient(options: argparse.Namespace) -> None:
    from forethought.errors import ArtefactError, DataError
    from forethought.instruments.artefact import Instrument
    from forethought.instruments.logit_route import logit_bias
    from forethought.instruments.transcripts import Transcript
    from forethought.reasoners.progress.intervention import alpha_grid
    from forethought.reasoners.progress.overclocking import refuse_learned
    from forethought.reasoners.progress.preparation import Prepared
    from forethought.reasoners.strength import figures, knobs, sweep, tables
    from forethought.reasoners.strength.collection import Collection
    from forethought.reasoners.strength.ready import fit_ready, ready_knob

    found = Collection.open(options.path)
    if options.progress:
        refuse_learned(Prepared.open(options.progress), [found.problems[index] for index in found.part("test")])
    reasoner = open_model(options, found.rollouts.settings)
    vectors = _vectors(options, found, reasoner)
    out = found.path / "efficient"
    out.mkdir(exist_ok=True)
    seed = options.seed or 0
    mean = float(found.lengths()[0][found.part("fit")].mean())
    turned = [
        knobs.direction_knob("direction", reasoner, vectors, [-4, -2, -1, -0.5, -0.2, 0.2, 0.5, 1]),
        *knobs.random_knobs(reasoner, vectors, [-2, -1], 1, seed),
        knobs.end_knob(reasoner, [-1, 0.5, 1, 2, 3, 4, 6, 8]),
        knobs.budget_knob(reasoner, [max(int(mean * share), 1) for share in (0.4, 0.6, 0.8, 1.0, 1.3, 1.6)]),
        knobs.brief_knob(options.brief),
    ]
    ready = None
    try:
        ready = fit_ready(found, reasoner, out / f"cuts-{seed}", seed=seed)
        turned.append(ready_knob(reasoner, ready, [0.5, 0.7, 0.8, 0.9, 0.95, 0.98]))
    except DataError as error:  # a model that is always right, or never
        print(f"forethought: without the knob that ends thoughts whose answer is ready: {error}", file=sys.stderr)
    if options.progress:
        overclock = Instrument.open(Path(options.progress) / "tpv")
        overclock.check_model(reasoner.model)
        theta = overclock.steering().get("norm")
        if theta is None:
            raise ArtefactError(f"{options.progress} has no vector after the final norm; train it at the site norm.")
        thoughts = [
            Transcript(rollout.prompt, rollout.ids, problem=rollout.problem)
            for rollout in found.rollouts.rollouts
            if rollout.sample == 0 and rollout.ended and rollout.problem in set(found.part("choose").tolist())
        ]
        alphas = alpha_grid(reasoner, thoughts, logit_bias(reasoner.model, theta))
        turned.append(knobs.norm_knob("overclocking", reasoner, theta, alphas))
    sampling = sweep.with_samples(tables.sampling_of(found), options.samples)
    outcomes = {
        part: sweep.turn(
            reasoner, [found.problems[index] for index in found.part(part)], sampling, turned,
            cache=out / f"{part}.jsonl", quiet=options.quiet,
        )
        for part in ("choose", "test")
    }  # fmt: skip
    choices = sweep.choose(outcomes["choose"], outcomes["test"], max_loss=options.max_loss, budget=options.budget)
    tables.save(
        out / "efficient.json",
        {
            "command": command(),
            "ready": {"site": ready.site, **ready.numbers} if ready is not None else None,
            "outcomes": {part: sweep.document(done) for part, done in outcomes.items()},
            "choices": tables.choices_document(choices),
        },
    )
    figures.draw_frontier(outcomes["test"], out / "frontier.png", choices["best"].tested)
    tables.show(tables.outcomes(outcomes["test"]), tables.choices(choices))
    print(out)


def command() -> str:
    return shlex.join(["forethought", *sys.argv[1:]])
