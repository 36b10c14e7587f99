"""A reasoning language model with its tokenizer: the embedded one, or any of Transformers by name or path."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from forethought.errors import ArtefactError
from forethought.instruments.phases import Delimiters
from forethought.training.devices import find_device

transformers.utils.logging.disable_progress_bar()

EMBEDDED = Path(__file__).with_name("embedded")


@dataclass(frozen=True)
class Reasoner:
    """A causal language model, its tokenizer, and the tokens its thoughts stand between.

    Attributes:
        name: as it was asked for.
        model: in evaluation mode.
        tokenizer: padding on the left.
        delimiters: of a thought.
        instruction: added to every question, on a line of its own; none for the embedded reasoner.
    """

    name: str
    model: PreTrainedModel
    tokenizer: Any
    delimiters: Delimiters
    instruction: str = ""

    @classmethod
    def open(
        cls,
        name: str | os.PathLike[str] = "embedded",
        *,
        device: str | None = None,
        dtype: str = "auto",
        delimiters: tuple[str, str] = ("<think>", "</think>"),
        instruction: str = "",
    ) -> Reasoner:
        """Load a reasoner.

        Args:
            name: ``embedded``, a folder, or a name on the Hugging Face hub. Code that comes with a model is never run.
            device: ``cpu``, ``cuda`` …; by default the accelerator, where there is one.
            dtype: ``auto`` as the weights are stored, or ``float32``, ``bfloat16``, ``float16``.
            delimiters: what opens and closes a thought.
            instruction: added to every question.

        Raises:
            ArtefactError: there is no such model, it cannot be loaded, or its tokenizer lacks the delimiters.
        """
        place = EMBEDDED if str(name) == "embedded" else name
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, padding_side="left")
            model = AutoModelForCausalLM.from_pretrained(place, dtype=dtype)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise ArtefactError(f"{name} cannot be opened as a language model: {reason}.") from error
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return cls(
            str(name),
            model.to(find_device(device)).eval(),
            tokenizer,
            Delimiters.of(tokenizer, *delimiters),
            instruction,
        )

    @property
    def context(self) -> int:
        """Positions the model can read, prompt and thought and answer together."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or self.tokenizer.model_max_length)

    def prompt(self, question: str, suffix: str = "") -> list[int]:
        """Token ids up to where the thought begins.

        Args:
            question: the user's message.
            suffix: added to it after a space, such as ``Be brief.``

        Raises:
            ArtefactError: the prompt fills the context.
        """
        content = "\n".join(part for part in (f"{question} {suffix}".strip(), self.instruction) if part)
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        else:
            text = content + "\n"
        opening = self.tokenizer.decode(list(self.delimiters.open))
        if opening not in text.rstrip()[-2 * len(opening) :]:  # templates that leave it to the model
            text += f"{opening}\n"
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=not self.tokenizer.chat_template)
        if len(ids) >= self.context:
            raise ArtefactError(
                f"The prompt {question[:40]!r}… is {len(ids)} tokens long and the context of {self.name} is "
                f"{self.context}; shorten it or take a model that reads more."
            )
        return ids

    def thought(self, ids: Sequence[int]) -> tuple[int, bool]:
        """Of generated ids: how many tokens were thought before the mark that closes a thought, and whether it came."""
        close = self.delimiters.close
        for start in range(len(ids) - len(close) + 1):
            if tuple(ids[start : start + len(close)]) == close:
                return start, True
        return len(ids), False

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        **options: Any,
    ) -> list[list[int]]:
        """Continue prompts, one batch.

        Args:
            prompts: token ids of each.
            max_new_tokens: at most so many more, and never beyond the context.
            temperature: 0 is greedy.
            top_p: nucleus of the sampling.
            seed: of the sampling.
            options: for ``model.generate``, such as a ``logits_processor``.

        Returns:
            The generated ids of each prompt, up to and with the end-of-text token, where it came.
        """
        width = max(len(prompt) for prompt in prompts)
        pad, stop = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        with torch.random.fork_rng(devices=[self.model.device] if self.model.device.type == "cuda" else []):
            torch.manual_seed(seed)
            out = self.model.generate(
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                max_new_tokens=min(max_new_tokens, self.context - width),
                pad_token_id=pad,
                eos_token_id=stop,
                **(sampling if temperature > 0 else {"do_sample": False}),
                **options,
            )
        rows = out[:, width:].tolist()
        return [row[: row.index(stop) + 1] if stop in row else row for row in rows]
