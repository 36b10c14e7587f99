"""What steering costs in ``generate``, and what the same job takes in nnsight, TransformerLens and repeng.

    python benchmarks/steering.py [--model embedded] [--tools PYTHON …] [--json FILE]

64 prompts, 100 new tokens each, greedy, on one model: plain, steered by our hooks at the input of every block, and by
a bias on the logits, in turns. Then the same in nnsight, TransformerLens and repeng, each in a process of its own, in
the first Python of ``--tools`` that has it (they want different NumPys): the last-position states of every layer for
the prompts, and the steered generation, each beside a plain ``generate`` of that process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LogitsProcessorList

from forethought.data.problems import draw_problems
from forethought.instruments.capture import Transcript, capture
from forethought.instruments.logit_route import ThinkingBias, end_bias
from forethought.instruments.sites import Site, Stack
from forethought.instruments.steering import Steering
from forethought.reasoners.reasoner import EMBEDDED, Reasoner
from measuring import seconds
from report import Cell, Result

PROMPTS, TOKENS, STRENGTH = 64, 100, 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--tools", type=Path, nargs="*", default=[*Path("build").glob("tools*/bin/python")])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="keep the result here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = Result("Steering, and the same in other tools", options.threads)
    reasoner = Reasoner.open(options.model, device="cpu", dtype="float32")
    model, delimiters = reasoner.model, reasoner.delimiters
    prompts = [reasoner.prompt(problem.question) for problem in draw_problems(PROMPTS, "test", 0)]
    batch = reasoner.tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    generator = torch.Generator().manual_seed(0)
    blocks = len(Stack.of(model))
    vectors: dict[Site, torch.Tensor] = {
        site: torch.randn(model.config.hidden_size, generator=generator) for site in range(-1, blocks - 1)
    }
    bias = ThinkingBias(end_bias(delimiters, model.config.vocab_size), STRENGTH, delimiters)

    def generate(**extra: object) -> None:
        model.generate(**batch, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, **extra)

    def steered(gate: str) -> None:
        with Steering(vectors, STRENGTH, gate=gate).applied(model, delimiters):  # type: ignore[arg-type]
            generate()

    times = seconds(
        {
            "plain": generate,
            "every block, all positions": lambda: steered("all"),
            "every block, while thinking": lambda: steered("think"),
            "bias on the logits": lambda: generate(logits_processor=LogitsProcessorList([bias])),
        },
        options.rounds,
    )
    rows: list[list[Cell]] = [[name, s, f"{s / times['plain'] - 1:+.1%}"] for name, s in times.items()]
    result.table(
        f"{PROMPTS} prompts, {TOKENS} tokens, {blocks} blocks of width {model.config.hidden_size}, key-value cache. "
        "Goal: at most 5 % more than plain.", ["", "s", "more than plain"], rows,
    )  # fmt: skip
    if options.tools:
        others(result, options, reasoner, prompts, generate)
    result.save(options.json)


def others(
    result: Result,
    options: argparse.Namespace,
    reasoner: Reasoner,
    prompts: list[list[int]],
    generate: Callable[[], None],
) -> None:
    """The rows of the other tools, each with the plain generation of its own process."""
    with tempfile.TemporaryDirectory() as scratch:
        transcripts = [Transcript(prompt, problem=index) for index, prompt in enumerate(prompts)]
        sites = Stack.of(reasoner.model).sites()

        def read() -> None:
            capture(
                reasoner.model, transcripts, sites, "last-prompt", Path(scratch) / str(time.monotonic_ns()), quiet=True
            )

        ours = seconds({"plain": generate, "read": read}, options.rounds)
        job = Path(scratch) / "job.json"
        texts = [reasoner.tokenizer.decode(prompt) for prompt in prompts]
        place = str(EMBEDDED) if options.model == "embedded" else options.model
        job.write_text(json.dumps({"model": place, "texts": texts, "tokens": TOKENS, "rounds": options.rounds,
                                   "strength": STRENGTH, "threads": options.threads}))  # fmt: skip
        rows: list[list[Cell]] = [["forethought", "capture, plain generate", ours["read"], ours["plain"], "1.0", "–"]]
        script = Path(__file__).with_name("steering_tools.py")
        for tool in ("repeng", "nnsight", "transformer_lens"):
            for python in options.tools:
                done = subprocess.run([python, script, tool, job], capture_output=True, text=True)
                if done.returncode == 0:
                    break
            if done.returncode != 0:
                print(done.stderr[-1500:], file=sys.stderr)
                rows.append([tool, f"failed: {done.stderr.strip().splitlines()[-1][:60]}", "–", "–", "–", "–"])
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            rows.append([
                f"{tool} {found['version']}", found["how"], found.get("read", "–"), found["plain"],
                found["read"] / ours["read"] if "read" in found else "–",
                f"{found['steered'] / found['plain'] - 1:+.1%}" if "steered" in found else "–",
            ])  # fmt: skip
    result.table(
        "The same prompts and model in other tools, each in a process of its own.",
        ["", "how", "s to read states", "s plain", "x our time to read", "steering, more than plain"], rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
