"""The tokenizer of the embedded reasoner: bytes, a few whole words, and the marks of a chat and of a thought.

Any text can be written in it, one digit is one token, and it is a byte-level BPE with Qwen2's rule of splitting, which
vLLM and llama.cpp know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
OPENING, CLOSING = "<think>", "</think>"
BOX = "\\boxed{"
MAX_LENGTH = 1024  # tokens of prompt, thought and answer together

_WORDS = ("user\n", "assistant\n", "sum", "collatz", "gcd", "chase", "below", " in", "Wait ", "Be brief.", BOX)
SPLIT = (  # Qwen2's
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, made from what stands above: the same each time. Token 0 is the padding."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    merges = [("Ġ", "Ġ")]  # a BPE has to have one; llama.cpp reads none without
    added = [END, START, STOP, OPENING, CLOSING, *_WORDS]
    pieces = [*added, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(merge) for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={piece: number for number, piece in enumerate(pieces)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in (END, START, STOP)])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (OPENING, CLOSING, *_WORDS)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=STOP,
        pad_token=END,
        model_max_length=MAX_LENGTH,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )
    fast.chat_template = _TEMPLATE
    return fast
