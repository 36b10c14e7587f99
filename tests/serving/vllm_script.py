"""Starts one vLLM engine, steers it in every way, and writes what came out beside what Transformers says.

Run by ``test_vllm.py`` with the Python that has vLLM: ``vllm_script.py MODEL FOLDER``. The reference is Transformers
with plain hooks, without a cache, written without a line of the code under test.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL, FOLDER = sys.argv[1], Path(sys.argv[2])
STEERING = FOLDER / "steering"
QUESTIONS = ["chase h in jz om ud zy vc sk hl ls", "sum 6 5 3 1", "gcd 2 10", "chase a in ab bc cd"]
TOKENS = 60
BLOCK = 32  # the smallest that the CPU attention knows


class Reference:
    """Transformers, without a cache, with the input of every block moved by plain hooks."""

    def __init__(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(MODEL)
        self.model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, use_cache=False).eval()
        self.opening, self.closing = self.tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
        self.layers, self.width = self.model.config.num_hidden_layers, self.model.config.hidden_size

    def prompt(self, question: str) -> str:
        message = [{"role": "user", "content": question}]
        return str(self.tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False))

    def gates(self, ids: list[int], length: int, phase: str) -> list[bool]:
        """Which positions are steered, by brute force: a position belongs to what it produces."""

        def thinks(position: int) -> bool:
            delimiters = [token for token in ids[: position + 1] if token in (self.opening, self.closing)]
            return bool(delimiters) and delimiters[-1] == self.opening

        return [phase == "all" or (at >= length - 1 and (phase == "generated" or thinks(at))) for at in range(len(ids))]

    @torch.inference_mode()
    def expected(
        self,
        text: str,
        vectors: Any = None,
        strength: Any = 0.0,
        phase: str = "all",
        bias: Any = None,
        alpha: float = 0.0,
    ) -> dict[str, Any]:
        """Greedy text, the log-probabilities of its tokens, and how many positions are to be steered."""
        ids = self.tokenizer(text)["input_ids"]
        length, logprobs, gate = len(ids), [], []
        scale = np.broadcast_to(strength, (self.layers,))

        def mover(layer: int) -> Callable[..., Any]:
            def move(block: Any, args: Any, kwargs: Any) -> Any:
                added = torch.tensor(gate)[None, :, None] * torch.tensor(scale[layer] * vectors[layer]).float()
                return (args[0] + added, *args[1:]), kwargs

            return move

        handles = []
        if vectors is not None:
            for layer, block in enumerate(self.model.model.layers):
                handles.append(block.register_forward_pre_hook(mover(layer), with_kwargs=True))
        while len(ids) < length + TOKENS and (len(ids) == length or ids[-1] != self.tokenizer.eos_token_id):
            gate[:] = self.gates(ids, length, phase)
            logits = self.model(torch.tensor([ids])).logits[0, -1]
            if bias is not None and self.gates(ids, length, "think")[-1]:
                logits = logits + alpha * torch.tensor(bias)
            logprobs.append(float(logits.log_softmax(-1).max()))
            ids.append(int(logits.argmax()))
        for handle in handles:
            handle.remove()
        touched = sum(self.gates(ids[:-1], length, phase)) if vectors is not None and np.any(scale) else 0
        return {"ids": ids[length:], "logprobs": logprobs, "touched": touched, "prompt": length}


def unhook(model: Any) -> None:
    """Make the last block skip its hook, as a runner would that does not call blocks as modules."""
    model.model.layers[-1]._forward_hooks.clear()


def main() -> None:
    import vllm_script  # under a name that vLLM's worker finds it by
    from vllm import LLM, SamplingParams

    STEERING.mkdir()
    reference = Reference()
    layers, width = reference.layers, reference.width
    prompts = [reference.prompt(question) for question in QUESTIONS]
    long_prompt = reference.prompt("sum " + " ".join(str(n % 10) for n in range(70)))
    os.environ["FORETHOUGHT_STEERING"] = f"{STEERING},gone={FOLDER / 'gone.npy'},narrow={FOLDER / 'narrow.npy'}"
    random = np.random.default_rng(0)
    # the stream grows from block to block, so that one size fits none: a fixed part of each block's own
    with torch.inference_mode():
        ids = torch.tensor([reference.tokenizer(prompts[0])["input_ids"]])
        states = reference.model(ids, output_hidden_states=True).hidden_states
    size = [float(state.norm(dim=-1).mean()) for state in states[:layers]]
    draw = random.normal(size=(layers, width)) / np.sqrt(width)
    vectors = (draw * np.array(size)[:, None]).astype(np.float32)
    direction = random.normal(size=width).astype(np.float32)
    bias = (reference.model.lm_head.weight.detach().double().numpy() @ direction.astype(np.float64)).astype(np.float32)
    closing = np.zeros(reference.model.config.vocab_size, np.float32)
    closing[reference.closing] = 1.0
    np.save(STEERING / "first.npy", vectors)
    np.save(FOLDER / "narrow.npy", vectors[:, 1:])
    np.save(STEERING / "direction.npy", direction)
    np.save(STEERING / "closing.npy", closing)
    np.save(STEERING / "pickled.npy", np.array([{}]), allow_pickle=True)

    report: dict[str, Any] = {"errors": [], "questions": QUESTIONS, "prompts": prompts, "closing": reference.closing}
    common = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 8, "logprobs_mode": "processed_logprobs"}
    worker = "forethought.serving.vllm_plugin.SteeringWorker"
    logits = ["forethought.serving.vllm_logits:SteeringLogits"]

    def run(texts: list[str], args: list[Any]) -> list[dict[str, Any]]:
        params = [SamplingParams(temperature=0, max_tokens=TOKENS, logprobs=1, extra_args=each) for each in args]
        outputs = llm.generate(texts, params, use_tqdm=False)
        (counts,) = llm.collective_rpc("steering_counts") if llm is not compiled else ({},)
        result = []
        for output in outputs:
            (out,) = output.outputs
            found = [value for key, value in counts.items() if key.rpartition("-")[0] == output.request_id]
            result.append(
                {
                    "ids": list(out.token_ids),
                    "logprobs": [step[token].logprob for token, step in zip(out.token_ids, out.logprobs, strict=True)],
                    "touched": sum(found),
                    "cached": output.num_cached_tokens,
                }
            )
        return result

    def check(name: str, text: str, args: Any, **how: Any) -> None:
        report[name] = {"vllm": run([text], [args])[0], "transformers": reference.expected(text, **how)}

    def refused(call: Callable[[], object]) -> tuple[str | None, str | None]:
        try:
            call()
            return None, None
        except Exception as error:
            return type(error).__name__, str(error)

    # an engine that compiles the model: hooks would be skipped there, the logit route works
    report["compiled"] = refused(lambda: LLM(MODEL, worker_extension_cls=worker, **common))
    llm = compiled = LLM(MODEL, logits_processors=logits, **common)
    check("compiled direction", prompts[1], {"bias": "direction", "alpha": 1.0}, bias=bias, alpha=1.0)
    check("compiled closing", prompts[1], {"bias": "closing", "alpha": 8.0}, bias=closing, alpha=8.0)
    check("compiled unsteered", prompts[1], None)
    report["compiled steered"] = refused(lambda: run([prompts[0]], [{"steer": "first", "strength": 1}]))
    compiled.llm_engine.engine_core.shutdown()

    llm = LLM(
        MODEL,
        **common,
        enforce_eager=True,
        max_num_batched_tokens=64,  # long prompts come in chunks
        block_size=BLOCK,
        num_gpu_blocks_override=24,  # 768 tokens for eight requests: some are preempted
        enable_prefix_caching=True,
        disable_log_stats=False,
        worker_extension_cls=worker,
        logits_processors=logits,
    )
    check("unsteered", prompts[0], None)
    check("unsteered 1", prompts[1], None)
    check("strength 0", prompts[1], {"steer": "first", "strength": 0})
    for index, strength in enumerate([0.4, -1.0, 0.2]):
        args = {"steer": "first", "strength": strength}
        check(f"steered {strength}", prompts[index], args, vectors=vectors, strength=strength)
    for phase in ("generated", "think"):
        for index, text in enumerate(prompts):
            args = {"steer": "first", "strength": 0.2, "phase": phase}
            check(f"{phase} {index}", text, args, vectors=vectors, strength=0.2, phase=phase)
    each = [0.0, 0.1, -0.4, 0.0, 0.3, 0.2][:layers]
    check("listed", prompts[2], {"steer": "first", "strength": each}, vectors=vectors, strength=each)

    # a prompt of several chunks and blocks, whose cache must not cross from one steering to another
    long = {"steer": "first", "strength": 0.3}
    check("long unsteered", long_prompt, None)
    check("long steered", long_prompt, long, vectors=vectors, strength=0.3)
    check("long steered again", long_prompt, long, vectors=vectors, strength=0.3)
    check("long steered otherwise", long_prompt, {**long, "strength": -0.3}, vectors=vectors, strength=-0.3)
    check("long unsteered again", long_prompt, None)

    # a file that comes, and changes, while the engine runs
    np.save(STEERING / "second.npy", vectors[:, ::-1])
    second = {"steer": "second", "strength": 0.4}
    check("new file", prompts[0], second, vectors=vectors[:, ::-1], strength=0.4)
    np.save(STEERING / "second.npy", -vectors)
    check("changed file", prompts[0], second, vectors=-vectors, strength=0.4)
    from forethought.instruments.artefact import Instrument
    from forethought.instruments.fingerprint import Identity

    kept = {site: {"direction": torch.from_numpy(vectors[site + 1])} for site in range(-1, layers - 1)}
    Instrument("direction", "kept", kept, Identity.of(reference.model), "last-prompt", "state").save(STEERING / "kept")
    check("instrument", prompts[0], {"steer": "kept", "strength": 0.4}, vectors=vectors, strength=0.4)

    # the variables of the paper's code
    os.environ |= {"steering_vector_path": str(STEERING / "first.npy")}
    check("paper's path", prompts[1], {"strength": 0.4}, vectors=vectors, strength=0.4)
    os.environ |= {"steering_strength_list": ",".join(["0.4"] * layers)}
    check("paper's strengths", prompts[1], None, vectors=vectors, strength=0.4)
    for name in ("steering_vector_path", "steering_strength_list"):
        del os.environ[name]

    for alpha in (1.0, -0.5):
        check(f"direction {alpha}", prompts[1], {"bias": "direction", "alpha": alpha}, bias=bias, alpha=alpha)
    for alpha in (3.0, 8.0, -20.0):
        check(f"closing {alpha}", prompts[1], {"bias": "closing", "alpha": alpha}, bias=closing, alpha=alpha)
    both = {"steer": "first", "strength": 0.2, "bias": "closing", "alpha": 4.0}
    check("both", prompts[1], both, vectors=vectors, strength=0.2, bias=closing, alpha=4.0)

    # everything at once, each request another way, twice over: rows move, requests wait, some are preempted
    ways: list[tuple[Any, dict[str, Any]]] = [
        (None, {}),
        ({"steer": "first", "strength": 0.4}, {"vectors": vectors, "strength": 0.4}),
        ({"steer": "first", "strength": -0.4}, {"vectors": vectors, "strength": -0.4}),
        ({"steer": "second", "strength": 0.2}, {"vectors": -vectors, "strength": 0.2}),
        (
            {"steer": "first", "strength": 0.2, "phase": "think"},
            {"vectors": vectors, "strength": 0.2, "phase": "think"},
        ),
        (
            {"steer": "first", "strength": 0.4, "phase": "generated"},
            {"vectors": vectors, "strength": 0.4, "phase": "generated"},
        ),
        ({"bias": "closing", "alpha": 3.0}, {"bias": closing, "alpha": 3.0}),
        (both, {"vectors": vectors, "strength": 0.2, "bias": closing, "alpha": 4.0}),
    ]
    texts = [text for text in [*prompts[:3], long_prompt] for _ in ways]
    together = run(texts, [args for args, _ in ways] * 4)
    alone = [reference.expected(text, **how) for text, (_, how) in zip(texts, ways * 4, strict=True)]
    report["mixed"] = [{"vllm": a, "transformers": b} for a, b in zip(together, alone, strict=True)]
    report["preemptions"] = sum(m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions")

    for args in json.loads((FOLDER / "wrong.json").read_text()):
        report["errors"].append([args, *refused(lambda args=args: run([prompts[0]], [args]))])
    check("after the errors", prompts[0], None)

    llm.apply_model(vllm_script.unhook)
    report["skipped"] = refused(lambda: run([prompts[0]], [{"steer": "first", "strength": 0.4}]))
    (FOLDER / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
