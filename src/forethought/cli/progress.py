"""``forethought progress``: read how much of a thought is over, watch it as a loading bar, and hurry it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from forethought.cli.strength import add_made_here, add_model, command, made_here, open_model, steps_of

SEED = 42  # of the published scripts


def register(subparsers: Any, common: argparse.ArgumentParser) -> None:
    from forethought.cli import whole

    parser = subparsers.add_parser(
        "progress",
        help="watch how much of a thought is over, and hurry it",
        description="Thinking progress (Eisenstadt, Zimerman & Wolf 2025): generate thoughts, prepare their states, "
        "train what reads progress from them, overclock with it, and watch a model think behind a loading bar. One "
        "folder holds it all. Flags may be written with - or, as in the published scripts, with _.",
    )
    step = steps_of(parser, common)
    sub = step("generate", "sample thoughts about problems", generate)
    _flag(sub, "out", "output_dir", required=True, metavar="DIR", help="the folder; given again, it goes on")
    add_model(sub)
    _dataset(sub)
    sub.add_argument("--start", type=int, default=0, metavar="N", help="the first problem (default 0)")
    sub.add_argument("--end", type=int, metavar="N", help="the problem after the last (default: to the end)")
    _flag(
        sub, "generations_per_problem", "samples", type=int, default=5, metavar="N", help="thoughts a problem (5)",
    )  # fmt: skip
    _length(sub)
    _sampling(sub, 0.6, 0.95)
    _flag(sub, "prompt_template", metavar="TEXT", help="what is asked, with {problem} where the question stands")

    sub = step("prepare", "read the states that produced the thinking tokens, and split by problem", prepare)
    _folder(sub, "of 'generate', or of 'forethought strength collect'")
    _flag(sub, "out", "output_dir", metavar="DIR", help="where the states go; by default the same folder")
    add_model(sub, default=None)
    _flag(
        sub, "train_split_ratio", type=float, metavar="A",
        help="of the problems (default 0.8); a collection keeps the parts that it has",
    )  # fmt: skip
    _flag(sub, "end_of_thinking_token", metavar="TOKEN", help="the same as the second of --think")

    sub = step("train", "fit what reads progress, beside its baselines, and test it", train)
    _folder(sub, "of 'prepare'")
    _flag(sub, "out", "output_dir", metavar="DIR", help="where the results go; by default the same folder")
    sub.add_argument("--epsilon", type=float, default=1e-10, help="ridge of the raw vector (default 1e-10)")
    sub.add_argument("--level", type=float, metavar="A", help="of the intervals (default 0.9, less for few problems)")

    sub = step("intervene", "overclock: choose α on some problems, test it on others", intervene)
    _folder(sub, "of 'train'")
    _flag(sub, "intervention_vector_path", metavar="DIR", help="instead: the tpv folder in it")
    add_model(sub, default=None)
    _hidden(sub, "--model_name_or_path", "--model-name-or-path", dest="model")
    _hidden(sub, "--torch_dtype", "--torch-dtype", dest="dtype")
    _hidden(sub, "--tokenizer_name_or_path", "--tokenizer-name-or-path", dest="tokenizer")
    _flag(sub, "out", "output_generations_dir", metavar="DIR", help="where results go; by default in the same folder")
    _flag(sub, "task_name", default="intervene", metavar="NAME", help="folder of the results in it (intervene)")
    _dataset(sub, "by default the test problems of 'prepare'")
    _flag(sub, "problem_start_idx", type=whole, metavar="N", help="the first problem of --dataset")
    _flag(sub, "problem_end_idx", type=whole, metavar="N", help="the problem after its last")
    sub.add_argument(
        "--alpha", type=float, nargs="+", default=[], metavar="α",
        help="one to test, several to choose from; by default, of either sign, those that move the model by 0.01 to 1 "
        "nats a token",
    )  # fmt: skip
    _flag(sub, "max_loss", type=float, default=0.01, metavar="A", help="accuracy given up at most (0.01)")
    sub.add_argument("--random", type=whole, default=1, metavar="N", help="random biases beside (default 1)")
    _flag(sub, "generations_per_problem", "samples", type=int, default=1, metavar="N", help="thoughts a problem (1)")
    _length(sub)
    _sampling(sub, None, None)

    sub = step("watch", "watch a model think, behind a loading bar or as a stream for a page", watch)
    sub.add_argument("question", nargs="?", help="the question; not with --sse")
    sub.add_argument(
        "--progress", metavar="DIR", help="a folder of 'forethought progress train'; by default the embedded reasoner's"
    )
    add_model(sub, default=None)
    sub.add_argument("--sse", type=int, metavar="PORT", help="serve a page and events on this port; 0 for any free")
    sub.add_argument("--source", choices=("position", "tpv", "gru"), help="read this instead of what training chose")
    sub.add_argument("--alpha", type=float, default=0.0, metavar="α", help="overclock while watching (default 0)")
    _flag(sub, "max_seconds", type=float, default=600.0, metavar="S", help="cut a thought off after (default 600)")
    _length(sub)
    _sampling(sub, None, None, batches=False)


def generate(options: argparse.Namespace) -> None:
    from forethought.reasoners.progress.generation import Generations, default_length
    from forethought.reasoners.rollouts import Sampling

    reasoner = open_model(options)
    problems = _problems(options)
    sampling = Sampling(
        options.generations_per_problem, _given(options.max_new_tokens, default_length(reasoner)),
        _temperature(options, 0.6), options.top_p, _seed(options), options.batch_size,
    )  # fmt: skip
    found = Generations.collect(
        options.out, reasoner, problems, sampling, start=options.start, end=options.end,
        template=options.prompt_template or "", quiet=options.quiet,
    )  # fmt: skip
    ended = [rollout.thinking_tokens for rollout in found.rollouts if rollout.ended]
    mean = f", those of {sum(ended) / len(ended):.1f} tokens on average" if ended else ""
    print(
        f"{len(found.problems)} problems, {len(found.rollouts)} thoughts, {len(ended)} of which ended within "
        f"{sampling.max_new_tokens} tokens{mean}.\n{options.out}"
    )


def prepare(options: argparse.Namespace) -> None:
    from forethought.reasoners.progress.generation import Generations
    from forethought.reasoners.progress.preparation import Prepared

    folder = _place(options)
    generations = Generations.open(folder)
    if options.end_of_thinking_token:
        options.think = [(options.think or ["<think>"])[0], options.end_of_thinking_token]
    found = Prepared.make(
        generations, open_model(options, generations.settings), options.out or folder,
        train_split_ratio=options.train_split_ratio, seed=_seed(options), command=command(), quiet=options.quiet,
    )  # fmt: skip
    print("\n".join([*found.told(), str(options.out or folder)]))


def train(options: argparse.Namespace) -> None:
    import torch

    from forethought.reasoners.progress import figures, tables, training
    from forethought.reasoners.progress.preparation import Prepared
    from forethought.reasoners.strength.analysis import clean
    from forethought.reasoners.strength.tables import save, show

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    folder = _place(options)
    prepared, out = Prepared.open(folder), Path(options.out or folder)
    trained, report = training.train(
        prepared, epsilon=options.epsilon, level=options.level, seed=_seed(options), device=options.device or "cpu"
    )
    states = prepared.states()
    out.mkdir(parents=True, exist_ok=True)
    prepared.save(out)
    made = {**prepared.settings, **prepared.provenance}
    made["command"] = f"{made['command']}; {command()}"
    trained.save(out, states.model, states.delimiters, made, clean(report.rows))
    figures.draw_thoughts(report, out / "thoughts.png")
    figures.draw_deciles(report, out / "deciles.png")
    save(out / "progress.json", tables.progress_document(trained, report, prepared, command()))
    show(*tables.readers(report), tables.families(report))
    print("\n".join([*prepared.told(), tables.told(trained, report), str(out)]))


def intervene(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from forethought.data.problems import read_problems
    from forethought.errors import ArtefactError, DataError
    from forethought.reasoners.progress import figures, overclocking, tables
    from forethought.reasoners.progress.intervention import WHOLE
    from forethought.reasoners.progress.preparation import Prepared
    from forethought.reasoners.progress.trained import Trained
    from forethought.reasoners.strength import tables as strength_tables
    from forethought.reasoners.strength.figures import draw_frontier

    if options.intervention_vector_path:
        given = Path(options.intervention_vector_path)
        options.input_dir = given.parent if given.name == "tpv" else given
    first, end = options.problem_start_idx, options.problem_end_idx
    if options.dataset is None and (first, end) != (None, None):
        raise DataError("--problem_start_idx and --problem_end_idx count the problems of --dataset; name it too.")
    folder = _place(options)
    prepared = Prepared.open(folder)
    if options.tokenizer not in (None, options.model or prepared.settings["model"]):
        raise ArtefactError(f"The tokenizer is the model's own; leave {options.tokenizer} out.")
    reasoner = open_model(options, prepared.settings)
    trained, _ = Trained.open(folder, reasoner)
    if options.dataset:
        problems = read_problems(options.dataset)
        numbers = list(range(len(problems)))[first:end]
        tested = [problems[number] for number in numbers]
        if not tested:
            raise ArtefactError(f"{options.dataset} has {len(problems)} problems and none in the range asked for.")
        overclocking.refuse_learned(prepared, tested)
    else:
        numbers, tested = prepared.parts["test"], prepared.part("test")
    before = prepared.sampling
    sampling = replace(
        before, samples=options.generations_per_problem,
        max_new_tokens=_given(options.max_new_tokens, before.max_new_tokens),
        temperature=_temperature(options, before.temperature), top_p=_given(options.top_p, before.top_p),
        batch_size=options.batch_size, seed=_given(options.seed, before.seed),
    )  # fmt: skip
    out = Path(options.out or folder) / options.task_name
    out.mkdir(parents=True, exist_ok=True)
    parts = {"validation": prepared.part("validation"), "test": tested}
    planned = overclocking.plan(
        prepared, trained, reasoner, parts, alphas=options.alpha, randoms=options.random, seed=_seed(options)
    )
    print(tables.vectors(trained, planned))
    strength_tables.show(tables.foretold(planned))
    if planned.note:
        print(planned.note)
    found = overclocking.overclock(
        reasoner, parts, sampling, planned, out, max_loss=options.max_loss, quiet=options.quiet
    )
    chosen = found.choices[WHOLE]
    knob = next(knob for knob in planned.knobs["test"] if knob.name == WHOLE)
    overclocking.write_generations(
        out / "generations.jsonl", reasoner, tested, numbers, sampling, knob,
        chosen.value if chosen.knob == WHOLE else 0.0,
    )  # fmt: skip
    strength_tables.save(out / "intervene.json", tables.overclocked_document(found, planned, command()))
    draw_frontier(found.outcomes["test"], out / "frontier.png", found.choices["best"].tested)
    figures.draw_parts(found.outcomes["test"], out / "parts.png")
    strength_tables.show(strength_tables.outcomes(found.outcomes["test"]), strength_tables.choices(found.choices))
    print(out)


def watch(options: argparse.Namespace) -> int:
    from forethought.errors import ArtefactError, DataError
    from forethought.reasoners.progress.bar import show
    from forethought.reasoners.progress.trained import EMBEDDED, Trained
    from forethought.reasoners.progress.watching import Watcher
    from forethought.reasoners.rollouts import Sampling

    if (options.question is None) == (options.sse is None):
        raise DataError("Give either a question, or --sse PORT to serve a page.")
    if options.progress is None and options.model not in (None, "embedded"):
        raise ArtefactError(
            f"How {options.model} progresses has to be learned first; name a folder of 'forethought progress train' "
            "on it with --progress."
        )
    options.path = options.progress or EMBEDDED
    trained, kept = Trained.open(options.path)
    try:
        before = Sampling(**kept.provenance["sampling"])
    except (KeyError, TypeError) as error:
        raise ArtefactError(
            f"{Path(options.path) / 'tpv'} does not say in provenance.sampling how its thoughts were sampled "
            f"({type(error).__name__}: {error}); train it anew."
        ) from error
    reasoner = open_model(options, dict(kept.provenance) | {"fingerprint": kept.model.fingerprint})
    watcher = Watcher(
        reasoner, trained, options.source, _given(options.max_new_tokens, before.max_new_tokens),
        _temperature(options, before.temperature), _given(options.top_p, before.top_p), _seed(options),
        options.alpha, options.max_seconds,
    )  # fmt: skip
    if options.sse is None:
        ending = show(watcher.stream(options.question), watcher.why())
        return 0 if ending is not None else 1
    from forethought.reasoners.progress.stream import ProgressServer

    server = ProgressServer(watcher, options.sse)
    print(f"{watcher.why()}\n{server.url} until ctrl-C", flush=True)
    server.serve()
    return 0


def _flag(sub: argparse.ArgumentParser, *names: str, **how: Any) -> None:
    """An option under one name or several, with - and with _."""
    spelled = [f"--{text}" for name in names for text in dict.fromkeys((name.replace("_", "-"), name))]
    sub.add_argument(*spelled, dest=names[0], **how)


def _hidden(sub: argparse.ArgumentParser, *names: str, dest: str) -> None:
    """Another spelling, of the published scripts."""
    sub.add_argument(*names, dest=dest, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    if dest == "tokenizer":
        sub.set_defaults(tokenizer=None)


def _folder(sub: argparse.ArgumentParser, told: str) -> None:
    sub.add_argument("path", nargs="?", metavar="DIR", help=f"a folder {told}")
    _flag(sub, "input_dir", metavar="DIR", help="the same")


def _dataset(sub: argparse.ArgumentParser, told: str = "by default problems made here") -> None:
    sub.add_argument("--dataset", metavar="FILE", help=f"JSON lines with question, answer, level; {told}")
    if told == "by default problems made here":
        add_made_here(sub)


def _length(sub: argparse.ArgumentParser) -> None:
    _flag(
        sub, "max_new_tokens", type=int, metavar="N",
        help="thought and answer together; by default half the context, 4096 at most, or as it was generated",
    )  # fmt: skip


def _sampling(
    sub: argparse.ArgumentParser, temperature: float | None, top_p: float | None, batches: bool = True
) -> None:
    told = "" if temperature is None else f" (default {temperature})"
    _flag(
        sub, "do_sample", nargs="?", type=_truth, const=True, default=None, metavar="True|False",
        help="false is greedy, the same as a temperature of 0",
    )  # fmt: skip
    sub.add_argument("--temperature", type=float, default=temperature, metavar="T", help=f"of the sampling{told}")
    _flag(sub, "top_p", type=float, default=top_p, metavar="P", help="nucleus of the sampling")
    if batches:
        _flag(sub, "batch_size", type=int, default=64, metavar="N", help="thoughts at once (default 64)")


def _truth(text: str) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text} is neither True nor False")
    return known[text.lower()]


def _temperature(options: argparse.Namespace, default: float) -> float:
    """What was asked for; ``--do_sample False`` is 0, and ``--do_sample`` where 0 was the default is 0.6."""
    if options.do_sample is False:
        return 0.0
    asked: float | None = options.temperature
    if asked is None:
        return 0.6 if options.do_sample and default == 0 else default
    return asked


def _given(value: Any, default: Any) -> Any:
    """What was asked for, 0 too; otherwise the default."""
    return default if value is None else value


def _seed(options: argparse.Namespace) -> int:
    return int(_given(options.seed, SEED))


def _place(options: argparse.Namespace) -> Path:
    """The folder to work on."""
    from forethought.errors import DataError

    given = [place for place in (options.path, options.input_dir) if place]
    if len(given) != 1:
        raise DataError("Name the folder to work on, once.")
    options.path = given[0]
    return Path(given[0])


def _problems(options: argparse.Namespace) -> list[Any]:
    """Of the file, or made here: as many as are asked for, and at least up to the end of the range.

    Those made here are of the validation part, so that what is learned from them can be tested on the problems of
    ``forethought strength collect``.
    """
    from forethought.data.problems import draw_problems, read_problems

    number, families = made_here(options, "--dataset", options.dataset)
    if options.dataset:
        return read_problems(options.dataset)
    return list(draw_problems(max(number, options.end or 0), "valid", 0, families=families))
