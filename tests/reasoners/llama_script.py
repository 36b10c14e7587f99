"""Run in the environment of ``make llama``: a model and a control vector in llama.cpp; prints JSON.

    python llama_script.py MODEL.gguf VECTOR.gguf REQUESTS.json

REQUESTS: ``prompts`` (token ids), ``texts`` to tokenise, ``strengths``, ``tokens`` to generate, ``end`` token.
For every strength: the greedily generated tokens of every prompt, and the logit of ``end`` after the prompt.
"""

from __future__ import annotations

import ctypes
import json
import sys

import gguf
import llama_cpp
import numpy as np


def vectors(path: str, layers: int, width: int) -> np.ndarray:
    """Row l - 1 is added to the output of block l, l from 1, as llama.cpp counts."""
    rows = np.zeros((layers - 1, width), dtype=np.float32)
    for tensor in gguf.GGUFReader(path).tensors:
        rows[int(tensor.name.removeprefix("direction.")) - 1] = tensor.data
    return rows


def main() -> None:
    model_path, vector_path, requests = sys.argv[1:]
    with open(requests) as file:
        wanted = json.load(file)
    model = llama_cpp.Llama(model_path, n_ctx=512, n_threads=1, logits_all=False, verbose=False)
    width, layers = model.n_embd(), llama_cpp.llama_model_n_layer(model.model)
    rows = vectors(vector_path, layers, width)
    apply = getattr(llama_cpp, "llama_set_adapter_cvec", None) or llama_cpp.llama_apply_adapter_cvec
    found = {"texts": [model.tokenize(text.encode(), add_bos=False, special=True) for text in wanted["texts"]]}
    found["runs"] = []
    for strength in wanted["strengths"]:
        data = np.ascontiguousarray(rows * strength)
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        if apply(model.ctx, pointer, data.size, width, 1, layers - 1) != 0:
            raise SystemExit("llama.cpp refused the control vector")
        runs = []
        for prompt in wanted["prompts"]:
            model.reset()
            model.eval(prompt)
            logits = np.array(model.scores[model.n_tokens - 1 : model.n_tokens]).ravel()
            if not logits.size or not logits.any():
                logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(model.ctx), (model.n_vocab(),)).copy()
            first, generated = float(logits[wanted["end"]]), []
            for _ in range(wanted["tokens"]):
                token = int(np.argmax(logits))
                generated.append(token)
                if token == model.token_eos():
                    break
                model.eval([token])
                logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(model.ctx), (model.n_vocab(),)).copy()
            runs.append({"tokens": generated, "end": first})
        found["runs"].append({"strength": strength, "prompts": runs})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
