"""How fast and in how much memory states are read, against a loop over Transformers' ``output_hidden_states=True``.

    python benchmarks/capture.py [--threads 1] [--prompts 1000] [--rounds 3] [--json FILE]

In one run, on random Qwen2 models with a small and with a usual vocabulary: the states of every layer at the last
position of each prompt, of 20 to 200 tokens in no order. The loop pads on the left and keeps what capture() keeps; its
batches are those of the original code of reasoning-strength planning (4) or as large as ours (32). capture() also
identifies the model, labels the rows and writes them to disk; its time includes that.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, Qwen2Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from forethought.instruments.capture import Transcript, capture
from forethought.instruments.sites import Site
from measuring import peak_megabytes, seconds
from report import Cell, Result

WIDTH, BLOCKS, BATCH = 128, 6, 32
SITES: list[Site] = [*range(-1, BLOCKS - 1), "norm"]  # what Transformers gives
VOCABULARIES = (298, 32_000)


def loop(model: PreTrainedModel, prompts: list[list[int]], batch_size: int) -> torch.Tensor:
    """float32 ``[L + 1, prompts, d]``, the way it is usually written."""
    found = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        longest = max(map(len, batch))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in batch])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch])
        with torch.no_grad():
            states = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
        found.append(torch.stack([layer[:, -1].float() for layer in states]))
    return torch.cat(found, dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="keep the result here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = Result("Reading states: the last position of each prompt, every layer", options.threads)
    for vocabulary in VOCABULARIES:
        compare(result, vocabulary, options.prompts, options.rounds)
    result.save(options.json)


def compare(result: Result, vocabulary: int, number: int, rounds: int) -> None:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=BLOCKS,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    draw = np.random.default_rng(0)
    prompts = [draw.integers(0, vocabulary, draw.integers(20, 201)).tolist() for _ in range(number)]
    transcripts = [Transcript(prompt, problem=i) for i, prompt in enumerate(prompts)]
    found: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as scratch:

        def ours() -> None:
            out = Path(scratch) / str(time.monotonic_ns())
            states = capture(model, transcripts, SITES, "last-prompt", out, batch_size=BATCH, quiet=True)
            found["ours"] = np.stack([states.at(site) for site in SITES])

        def theirs() -> None:
            found["theirs"] = loop(model, prompts, BATCH).numpy()

        work: dict[str, Callable[[], object]] = {
            "(a) loop, batches of 4": lambda: loop(model, prompts, 4),
            f"(b) loop, batches of {BATCH}": theirs,
            f"capture(), batches of {BATCH}": ours,
        }
        times = seconds(work, rounds, warm_up=0)
        memory = {name: peak_megabytes(call) for name, call in work.items()}
    worst = float(np.abs(found["ours"] - found["theirs"]).max())
    a, b, _ = work
    rows: list[list[Cell]] = [
        [name, times[name], memory[name], times[a] / times[name], times[b] / times[name],
         memory[a] / memory[name], memory[b] / memory[name]]
        for name in work
    ]  # fmt: skip
    result.table(
        f"{number:,} prompts, d {WIDTH}, {BLOCKS} blocks, vocabulary {vocabulary:,}. Goal: a third of the time or "
        f"a tenth of the peak memory of (b). Largest difference of a state: {worst:.1e}.",
        ["", "s", "peak MB", "x faster than (a)", "than (b)", "x less memory than (a)", "than (b)"],
        rows,
    )


if __name__ == "__main__":
    main()
