"""One of the other tools on the job of benchmarks/steering.py; prints JSON. Run by that script, in their environment.

python steering_tools.py repeng|nnsight|transformer_lens JOB.json
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch


def median(call: Callable[[], object], rounds: int) -> float:
    call()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def load(job: dict[str, Any]) -> tuple[Any, Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(job["model"]).float().eval()
    return model, tokenizer, tokenizer(job["texts"], return_tensors="pt", padding=True, add_special_tokens=False)


def options(job: dict[str, Any]) -> dict[str, Any]:
    return {"max_new_tokens": job["tokens"], "min_new_tokens": job["tokens"], "do_sample": False}


def repeng(job: dict[str, Any]) -> dict[str, Any]:
    from repeng import ControlModel, ControlVector

    model, _, batch = load(job)
    batch.pop("token_type_ids", None)
    plain = median(lambda: model.generate(**batch, **options(job)), job["rounds"])
    layers = list(range(model.config.num_hidden_layers))
    wrapped = ControlModel(model, layers)
    draws = torch.Generator().manual_seed(0)
    vectors = {layer: torch.randn(model.config.hidden_size, generator=draws).numpy() for layer in layers}
    wrapped.set_control(ControlVector(model_type=model.config.model_type, directions=vectors), job["strength"])
    steered = median(lambda: wrapped.generate(**batch, **options(job)), job["rounds"])
    return {"how": "ControlModel, every block", "plain": plain, "steered": steered}


def nnsight(job: dict[str, Any]) -> dict[str, Any]:
    from nnsight import LanguageModel

    model, tokenizer, batch = load(job)
    batch.pop("token_type_ids", None)
    plain = median(lambda: model.generate(**batch, **options(job)), job["rounds"])
    wrapped = LanguageModel(model, tokenizer=tokenizer)

    def read() -> None:
        with torch.no_grad(), wrapped.trace(dict(batch)):
            for layer in wrapped.model.layers:
                layer.output[..., -1, :].save()

    return {"how": "trace, every block", "plain": plain, "read": median(read, job["rounds"])}


def transformer_lens(job: dict[str, Any]) -> dict[str, Any]:
    from transformer_lens.model_bridge import TransformerBridge

    model, tokenizer, batch = load(job)
    batch.pop("token_type_ids", None)
    plain = median(lambda: model.generate(**batch, **options(job)), job["rounds"])
    bridge = TransformerBridge.boot_transformers(job["model"], hf_model=model, tokenizer=tokenizer, device="cpu")

    def read() -> None:
        with torch.no_grad():
            bridge.run_with_cache(batch["input_ids"], names_filter=lambda name: name.endswith("hook_resid_post"))

    return {"how": "run_with_cache, every block", "plain": plain, "read": median(read, job["rounds"])}


def main() -> None:
    tool, path = sys.argv[1:]
    with open(path) as file:
        job = json.load(file)
    torch.set_num_threads(job["threads"])
    found = {"repeng": repeng, "nnsight": nnsight, "transformer_lens": transformer_lens}[tool](job)
    print(json.dumps({**found, "version": metadata.version(tool.replace("_", "-"))}))


if __name__ == "__main__":
    main()
