"""A recipe: one YAML file that names model, data and training, validated into frozen dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from forethought.atomic import atomic_file
from forethought.errors import RecipeError

FROM_DATA = ("num_items", "nonzeros")  # model sizes that the data decides, not the recipe
Metric = Literal[
    "hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20", "mrr@5", "mrr@10", "mrr@20", "accuracy"
]  # fmt: skip
Section = TypeVar("Section", "DataRecipe", "TrainingRecipe", "EvaluationRecipe")


def _within(default: Any, low: float, high: float = float("inf"), below: float = float("inf")) -> Any:
    return field(default=default, metadata={"low": low, "high": high, "below": below})


@dataclass(frozen=True)
class DataRecipe:
    """What is read.

    Attributes:
        path: the folder ``forethought data prepare --out`` wrote.
        targets: train on the item after each of a user's newest ``max_length`` (``all``), only on each user's newest
            (``last``), or on every item that follows a full history, each in a row of its own (``windows``; users too
            short for one give their newest).
    """

    path: str | None = None
    targets: Literal["all", "last", "windows"] = "all"


@dataclass(frozen=True)
class TrainingRecipe:
    """How the weights are found: AdamW on the model's loss.

    Attributes:
        epochs: passes over the training users; ``max_steps`` (optimiser steps), where given, overrides it.
        batch_size: users an optimiser step, over all processes, before accumulation.
        learning_rate, weight_decay, beta1, beta2: of AdamW.
        scheduler: of the learning rate after ``warmup_steps`` linear steps.
        max_grad_norm: gradients are scaled down to this norm; 0 leaves them alone.
        ema_decay: of the exponential moving average that is evaluated and kept; 0 turns it off.
        precision: ``bf16`` runs the forward pass under autocast; ``auto`` does where the device is fast at it.
        gradient_accumulation_steps: batches an optimiser step.
        evaluate_every: ``epoch``, or a number of optimiser steps; a checkpoint is written each time.
        patience: evaluations without a better ``select_by`` before training stops; 0 never stops early.
        select_by: the validation metric that picks the best checkpoint.
        report_to: experiment trackers that transformers knows (``tensorboard``, ``wandb``, ``mlflow`` …).
    """

    epochs: int = _within(100, 1)
    max_steps: int | None = _within(None, 1)
    batch_size: int = _within(256, 1)
    learning_rate: float = _within(1e-3, 0)
    scheduler: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = _within(0, 0)
    weight_decay: float = _within(0.0, 0)
    beta1: float = _within(0.9, 0, below=1)
    beta2: float = _within(0.999, 0, below=1)
    max_grad_norm: float = _within(1.0, 0)
    ema_decay: float = _within(0.0, 0, below=1)
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    gradient_accumulation_steps: int = _within(1, 1)
    evaluate_every: Literal["epoch"] | int = _within("epoch", 1)
    patience: int = _within(10, 0)
    select_by: Metric = "ndcg@10"
    report_to: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvaluationRecipe:
    """How validation ranks.

    Attributes:
        seen: whether items of the history are ``removed`` from the ranking or ``kept``.
        batch_size: histories scored at once.
    """

    seen: Literal["removed", "kept"] = "removed"
    batch_size: int = _within(1024, 1)


@dataclass(frozen=True)
class Recipe:
    """A validated recipe, every default written out.

    Attributes:
        name: how the run is called.
        model: ``type`` and the keys of that model's config.
        post_training: of a second phase that goes on from the best weights of the first, for models that have one;
            with the keys of ``training``, whose ``select_by`` it shares. None leaves it out.
        seed: of weights, batch order and noise.
    """

    name: str
    model: Mapping[str, Any]
    data: DataRecipe = DataRecipe()
    training: TrainingRecipe = TrainingRecipe()
    evaluation: EvaluationRecipe = EvaluationRecipe()
    post_training: TrainingRecipe | None = None
    seed: int = 0

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        config_class: Callable[[str], type[PreTrainedConfig]],
        overrides: Mapping[str, Any] | None = None,
    ) -> Recipe:
        """Read a YAML file.

        Args:
            path: the file.
            config_class: gives the config class of a ``model.type``.
            overrides: values of dotted keys, such as ``{"model.gamma": "0.999"}``; text is converted as YAML would be.

        Raises:
            RecipeError: the file is unreadable, or a key or value does not fit.
        """
        path = Path(path)
        try:
            # utf-8-sig: editors on Windows put a byte-order mark first
            content = yaml.load(path.read_text(encoding="utf-8-sig"), _UniqueKeys)
        except (OSError, UnicodeDecodeError, RecursionError) as error:
            raise RecipeError(f"{path} cannot be read: {error}.") from error
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
            raise RecipeError(f"{path} is not valid YAML{line}: {getattr(error, 'problem', None) or error}.") from error
        if not isinstance(content, Mapping):
            raise RecipeError(f"{path} holds no keys; a recipe has at least 'model: {{type: …}}'.")
        return cls.from_mapping({"name": path.stem, **content}, config_class, overrides, where=str(path))

    @classmethod
    def from_mapping(
        cls,
        content: Mapping[str, Any],
        config_class: Callable[[str], type[PreTrainedConfig]],
        overrides: Mapping[str, Any] | None = None,
        where: str = "the recipe",
    ) -> Recipe:
        """Validate nested keys; ``where`` names their source in messages. Raises and arguments as :meth:`load`."""
        tree = {key: dict(value) if isinstance(value, Mapping) else value for key, value in content.items()}
        sources = _override(tree, overrides or {}, where)
        fields = {entry.name for entry in dataclasses.fields(cls)}
        for key in tree:
            _known(str(key), fields, sources.get(str(key), where))
        reader, second = _Reader(where, sources), tree.get("post_training")
        training = reader.section("training", TrainingRecipe, tree.get("training"))
        if isinstance(second, dict):  # the better phase is kept, so one metric judges both
            second.setdefault("select_by", training.select_by)
            if second["select_by"] != training.select_by:
                raise RecipeError(
                    f"{where}: post_training.select_by is {second['select_by']!r} and training.select_by "
                    f"{training.select_by!r}; the better of the phases is kept, so give both the same."
                )
        return cls(
            name=reader.value("name", str, tree.get("name", "run")),
            model=reader.model(tree.get("model"), config_class),
            data=reader.section("data", DataRecipe, tree.get("data")),
            training=training,
            evaluation=reader.section("evaluation", EvaluationRecipe, tree.get("evaluation")),
            post_training=None if second is None else reader.section("post_training", TrainingRecipe, second),
            seed=reader.value("seed", int, tree.get("seed", 0), low=0, high=2**32 - 1),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain nested values, as they stand in YAML."""
        tree: dict[str, Any] = {
            "name": self.name,
            "seed": self.seed,
            "model": dict(self.model),
            "data": dataclasses.asdict(self.data),
            "training": dataclasses.asdict(self.training),
            "evaluation": dataclasses.asdict(self.evaluation),
        }
        if self.post_training is not None:
            tree["post_training"] = dataclasses.asdict(self.post_training)
        for phase in tree.keys() & {"training", "post_training"}:
            tree[phase]["report_to"] = list(tree[phase]["report_to"])
        return tree

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the resolved recipe as YAML, atomically."""
        with atomic_file(path) as scratch:
            scratch.write_text(yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True), encoding="utf-8")


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that is there twice, where YAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value} is there twice", problem_mark=key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else key)
        return super().construct_mapping(node, deep)


class _Reader:
    """Turns loose values into typed ones, and says which key of which source does not fit."""

    def __init__(self, where: str, sources: Mapping[str, str]) -> None:
        self.where = where
        self.sources = sources

    def value(
        self,
        key: str,
        hint: Any,
        value: Any,
        low: float = float("-inf"),
        high: float = float("inf"),
        below: float = float("inf"),
    ) -> Any:
        from jsonargparse import ArgumentError, ArgumentParser  # not needed to open a finished run's model

        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--value", type=hint)
        source = self.sources.get(key, self.where)
        try:
            if value is None and type(None) not in get_args(hint):
                raise ValueError("empty")
            typed = parser.parse_object({"value": value}).value
            if isinstance(typed, str):
                typed.encode()  # half a character cannot be written
        except (ArgumentError, TypeError, ValueError) as error:
            raise RecipeError(f"{source}: {key} is {value!r}; it has to be {_readable(hint)}.") from error
        if isinstance(typed, float) and not math.isfinite(typed):
            raise RecipeError(f"{source}: {key} is {value!r}; it has to be a finite number.")
        number = isinstance(typed, int | float) and not isinstance(typed, bool)
        if number and not (low <= typed <= high and (typed < below or below == float("inf"))):
            limits = f"at least {low:g}" if high == float("inf") else f"between {low:g} and {high:g}"
            limits += "" if below == float("inf") else f" and below {below:g}"
            raise RecipeError(f"{source}: {key} is {value!r}; it has to be {limits}.")
        return typed

    def section(self, name: str, kind: type[Section], content: Any) -> Section:
        content = self._keys_of(name, content)
        hints = get_type_hints(kind)
        for key in content:
            _known(
                f"{name}.{key}", {f"{name}.{known}" for known in hints}, self.sources.get(f"{name}.{key}", self.where)
            )
        values = {}
        for entry in dataclasses.fields(kind):
            if entry.name in content:
                typed = self.value(f"{name}.{entry.name}", hints[entry.name], content[entry.name], **entry.metadata)
                values[entry.name] = typed
        return kind(**values)

    def model(self, content: Any, config_class: Callable[[str], type[PreTrainedConfig]]) -> dict[str, Any]:
        content = self._keys_of("model", content)
        if not isinstance(content.get("type"), str):
            raise RecipeError(f"{self.where}: model.type is missing; it names the model to train, such as 'sasrec'.")
        kind = content.pop("type")
        try:
            config_type = config_class(kind)
        except RecipeError as error:
            raise RecipeError(f"{self.sources.get('model.type', self.where)}: {error}") from error
        hints: dict[str, Any] = {}
        for ancestor in reversed(config_type.__mro__):
            if issubclass(ancestor, PreTrainedConfig) and ancestor is not PreTrainedConfig:
                hints |= inspect.get_annotations(ancestor, eval_str=True)
        hints = {key: hint for key, hint in hints.items() if key not in FROM_DATA}
        for key in content:
            source = self.sources.get(f"model.{key}", self.where)
            if key in FROM_DATA:
                raise RecipeError(f"{source}: model.{key} is read from the data; remove it.")
            _known(f"model.{key}", {"model.type", *(f"model.{known}" for known in hints)}, source)
        values = {key: self.value(f"model.{key}", hints[key], value) for key, value in content.items()}
        try:
            config = config_type(**values)
        except (StrictDataclassError, ValueError, TypeError) as error:
            reason = str(error.__cause__ or error).strip().splitlines()[-1].strip().rstrip(".")
            raise RecipeError(f"{self.where}: the model section does not fit {kind}: {reason}.") from error
        return {"type": kind, **{key: getattr(config, key) for key in hints}}

    def _keys_of(self, name: str, content: Any) -> dict[str, Any]:
        if content is None:
            return {}
        if not isinstance(content, Mapping):
            raise RecipeError(f"{self.where}: {name} is {content!r}; it has to be a section of keys.")
        return {str(key): value for key, value in content.items()}


def _override(tree: dict[str, Any], overrides: Mapping[str, Any], where: str) -> dict[str, str]:
    """Write dotted keys into the tree; returns where each of them came from."""
    sources = {}
    for dotted, value in overrides.items():
        section, _, key = dotted.partition(".")
        sources[dotted] = sources[section] = f"{where} with --{dotted}"
        if not key:
            tree[section] = value
            continue
        if tree.get(section) is None:
            tree[section] = {}
        if not isinstance(tree[section], dict):
            raise RecipeError(f"{where}: {section} is {tree[section]!r}, so --{dotted} cannot be set in it.")
        tree[section][key] = value
    return sources


def _known(key: str, known: set[str], source: str) -> None:
    if key in known:
        return
    # the part after the dot decides what was meant
    leaves = {name.rpartition(".")[2]: name for name in known}
    close = difflib.get_close_matches(key.rpartition(".")[2], leaves, n=1, cutoff=0.5)
    advice = f"did you mean {leaves[close[0]]}?" if close else f"choose one of {', '.join(sorted(known))}."
    raise RecipeError(f"{source}: there is no key {key}; {advice}")


def _readable(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    if hint in names:
        return names[hint]
    if get_origin(hint) is Literal:
        return " or ".join(repr(choice) for choice in get_args(hint))
    if get_origin(hint) in (tuple, list):
        return f"a list of {_readable(get_args(hint)[0])}"
    return " or ".join(_readable(part) for part in get_args(hint)) or str(hint)
