"""A reasoning language model with its tokenizer: the embedded one, or any of Transformers by name or path."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from forethought.errors import ArtefactError
from forethought.instruments.fingerprint import text_config
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
        delimiters: tuple[str, str] | Delimiters = ("<think>", "</think>"),
        instruction: str = "",
    ) -> Reasoner:
        """Load a reasoner.

        Args:
            name: ``embedded``, a folder, or a name on the Hugging Face hub. Code that comes with a model is never run.
            device: ``cpu``, ``cuda`` …; by default the accelerator, where there is one.
            dtype: ``auto`` as the weights are stored, or ``float32``, ``bfloat16``, ``float16``.
            delimiters: what opens and closes a thought, as text or as token ids.
            instruction: added to every question.

        Raises:
            ArtefactError: there is no such model, it cannot be loaded, or its tokenizer lacks the delimiters.
        """
        if not str(name).strip():
            raise ArtefactError("The model has no name; give embedded, a folder, or a name on the hub.")
        place = EMBEDDED if str(name) == "embedded" else Path(name) if Path(name).is_dir() else str(name)
        chosen = find_device(device)
        there = isinstance(place, Path) or not _on_the_hub(place)
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, padding_side="left", local_files_only=there)
            model = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, local_files_only=there)
        except Exception as error:  # damaged files of every kind raise as many kinds of errors, and plain Exception
            told = [line for line in map(str.strip, str(error).splitlines()) if line]
            reason = ": ".join([type(error).__name__, *told[:1]]).rstrip(".:")
            if there and not isinstance(place, Path):
                reason = "it is no folder, it was not fetched before, and the hub cannot be reached"
            raise ArtefactError(f"{name} cannot be opened as a language model: {reason}.") from error
        if tokenizer.eos_token_id is None:
            raise ArtefactError(f"The tokenizer of {name} has no end-of-text token, so that no answer would ever end.")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        between = delimiters if isinstance(delimiters, Delimiters) else Delimiters.of(tokenizer, *delimiters)
        model.name_or_path = str(name)  # that is what instruments call it, and not where it lies on this machine
        return cls(str(name), model.to(chosen).eval(), tokenizer, between, instruction)

    @property
    def context(self) -> int:
        """Positions the model can read, prompt and thought and answer together."""
        told = getattr(text_config(self.model), "max_position_embeddings", None)
        return int(told or self.tokenizer.model_max_length)

    @property
    def stops(self) -> tuple[int, ...]:
        """The tokens that end a text: the tokenizer's, and those that the model was told to generate up to."""
        told = self.model.generation_config.eos_token_id if self.model.generation_config is not None else None
        more = told if isinstance(told, list) else [] if told is None else [told]
        return tuple(dict.fromkeys([int(self.tokenizer.eos_token_id), *map(int, more)]))

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

        Nothing but these arguments decides: penalties and filters that come with the model are put aside.

        Args:
            prompts: token ids of each.
            max_new_tokens: at most so many more, and never beyond the context; a prompt with less room than that is
                continued apart, so that the others keep theirs.
            temperature: 0 is greedy.
            top_p: nucleus of the sampling.
            seed: of the sampling.
            options: for ``model.generate``, such as a ``logits_processor``.

        Returns:
            The generated ids of each prompt, up to and with the end-of-text token, where it came.

        Raises:
            ArtefactError: a prompt leaves no room in the context.
        """
        rooms = [min(max_new_tokens, self.context - len(prompt)) for prompt in prompts]
        if min(rooms) < 1:
            raise ArtefactError(
                f"A prompt of {max(map(len, prompts))} tokens leaves no room in the context of {self.name}, which is "
                f"{self.context}; shorten it or take a model that reads more."
            )
        if len(set(rooms)) > 1:
            found: dict[int, list[int]] = {}
            for room in sorted(set(rooms), reverse=True):
                rows = [row for row, own in enumerate(rooms) if own == room]
                part = self.generate(
                    [prompts[row] for row in rows], max_new_tokens=room, temperature=temperature, top_p=top_p,
                    seed=seed, **options,
                )  # fmt: skip
                found |= dict(zip(rows, part, strict=True))
            return [found[row] for row in range(len(prompts))]
        width = max(len(prompt) for prompt in prompts)
        pad, stops = self.tokenizer.pad_token_id, self.stops
        ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0, "min_p": None}
        with torch.random.fork_rng(devices=[self.model.device] if self.model.device.type == "cuda" else []):
            torch.manual_seed(seed)
            out = self.model.generate(
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                max_new_tokens=rooms[0],
                pad_token_id=pad,
                eos_token_id=list(stops),
                use_cache=True,
                repetition_penalty=1.0,
                no_repeat_ngram_size=0,
                **(sampling if temperature > 0 else {"do_sample": False}),
                **options,
            )
        rows = out[:, width:].tolist()
        ends = [next((place + 1 for place, token in enumerate(row) if token in stops), len(row)) for row in rows]
        return [row[:end] for row, end in zip(rows, ends, strict=True)]


def _on_the_hub(name: str) -> bool:
    """Whether the hub answers, asked once: Transformers asks many times, for minutes, where there is no network.

    Raises:
        ArtefactError: the name cannot be one on the hub, and there is no folder of it.
    """
    try:
        HfApi().model_info(name, timeout=10)
    except HFValidationError:
        raise ArtefactError(f"There is no folder {name!r}, and no model on the hub can have that name.") from None
    except HfHubHTTPError:
        return True  # it answered; what it has against the name is told when the files are asked for
    except Exception:  # no network, or told not to use it; what was fetched before can be opened still
        return False
    return True
