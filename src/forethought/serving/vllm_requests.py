"""What a vLLM request may ask of steering: its keys, the files they name, and the checks before the engine sees it.

A request says it in ``SamplingParams(extra_args=…)``, or in ``vllm_xargs`` of the OpenAI-compatible server:

========== =======================================================================================================
steer      name of a file of steering vectors, added to the residual stream
strength   λ, which the vectors are multiplied by: one number, or one for the input of each block
phase      ``all`` positions (the default, as in the reasoning-strength paper), those that produce ``generated``
           tokens, or those that ``think``; a position belongs to the token that it produces
bias       name of a file with one number a token, or one direction of the final norm; added to the logits
alpha      what the bias is multiplied by
bias_phase ``think`` (the default) or ``generated``
========== =======================================================================================================

Requests carry **names**, never paths: a path from the network would let a client read files. The environment says what
the names mean: ``FORETHOUGHT_STEERING=short=/srv/short.npy,/srv/steering`` names a file, and a folder of which every
file may be named, also those that come later; a file that is given no name is called as it is.
``steering_vector_path`` and ``steering_strength_list`` do what they did in the code of the reasoning-strength paper:
the first is the file called ``default``, the second steers with it every request that does not say otherwise.
``FORETHOUGHT_DELIMITERS`` is ``<think>,</think>`` unless it says otherwise.

A file is ``.npy``, or the folder of an :class:`~forethought.instruments.artefact.Instrument`. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from forethought.errors import ArtefactError, RecipeError
from forethought.instruments.artefact import MANIFEST, Instrument
from forethought.instruments.exchange import BROKEN_NPY
from forethought.instruments.fingerprint import stored_fingerprint
from forethought.instruments.phases import Delimiters

Array = npt.NDArray[np.float32]

KEY = "forethought"  # where the checked order travels in extra_args

PHASES = ("all", "generated", "think")
_LARGEST = float(np.finfo(np.float32).max)

# the variables of the paper's code
ORIGINAL_FILE, ORIGINAL_STRENGTHS = "steering_vector_path", "steering_strength_list"


@dataclass(frozen=True)
class Engine:
    """What a request is checked against.

    Attributes:
        model: folder or hub name of the model.
        layers: number of blocks L. width: of the residual stream, d. vocabulary: columns of the logits.
        hooks: the residual stream can be steered. logits: the logits can be.
        revision: of the model on the hub; None for the newest.
    """

    model: str
    layers: int
    width: int
    vocabulary: int
    hooks: bool
    logits: bool
    revision: str | None = None


@dataclass(frozen=True)
class Order:
    """One request's steering, checked: plain values, which travel with it to the workers.

    Attributes:
        prompt: number of tokens of the prompt. thinking: whether it ends inside a thought.
        opening, closing: ids of the delimiters; -1 where no phase asks for them.
        vector: file of the steering vectors, "" for none. strength: λ of the sites -1 … L - 1. phase: see above.
        bias: file of the bias, "" for none. alpha: its factor. bias_phase: see above.
        vector_stamp, bias_stamp: when the files were written; a file that changes is read again.
    """

    prompt: int
    thinking: bool = False
    opening: int = -1
    closing: int = -1
    vector: str = ""
    vector_stamp: int = 0
    strength: tuple[float, ...] = ()
    phase: str = "all"
    bias: str = ""
    bias_stamp: int = 0
    alpha: float = 0.0
    bias_phase: str = "think"

    def salt(self) -> str | None:
        """What keeps the key-value cache of this steering apart from every other; None where the cache is not touched.

        Phases begin where the prompt ends, so that its length is part of them: a longer prompt with the same beginning
        must not take over positions that were steered as generated ones.
        """
        if not self.vector:
            return None
        where = [self.phase] if self.phase == "all" else [self.phase, self.prompt]
        text = json.dumps([self.vector, self.vector_stamp, self.strength, *where])
        return f"{KEY}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    def wire(self) -> dict[str, Any]:
        """As what the engine's messages can carry."""
        return {**asdict(self), "strength": list(self.strength)}

    @classmethod
    def of(cls, extra_args: Mapping[str, Any] | None) -> Order | None:
        """The order that travels in a request's ``extra_args``, if there is one."""
        wire = (extra_args or {}).get(KEY)
        return None if wire is None else cls(**{**wire, "strength": tuple(wire["strength"])})


def order(
    args: Mapping[str, Any], prompt: Sequence[int] | None, length: int, engine: Engine, tokenizer: Any
) -> Order | None:
    """Check what a request asks for.

    Args:
        args: the request's ``extra_args``.
        prompt: its token ids; None where it came as embeddings.
        length: tokens of the prompt.
        engine: what it is asked of.
        tokenizer: of the model; None where the engine has none.

    Returns:
        The order; None where nothing is to be steered, which strength 0 means too.

    Raises:
        RecipeError: a key has a value that does not fit.
        ArtefactError: a file is unknown, missing or of another model; the engine was not started for steering.
    """
    name, strength = args.get("steer"), args.get("strength")
    if name is None and strength is None and _original() and os.environ.get(ORIGINAL_STRENGTHS):
        strength = _listed(os.environ[ORIGINAL_STRENGTHS])
    if name is None and strength is not None:
        if not _original():
            raise RecipeError("The request gives a strength, but no vector to steer with; name one with steer.")
        name = "default"
    if name is not None and strength is None:
        raise RecipeError(f"The request steers with {name!r}, but gives no strength; say how much, 0 for nothing.")
    if args.get("bias") is None and args.get("alpha") is not None:
        raise RecipeError("The request gives alpha, but no bias to multiply by it; name one with bias.")
    if args.get("bias") is not None and args.get("alpha") is None:
        raise RecipeError(f"The request names the bias {args['bias']!r}, but no alpha; say how much, 0 for nothing.")

    found: dict[str, Any] = {}
    if name is not None:
        file, stamp = resolve(name)
        site_strength = _strength(strength, engine.layers)
        phase = _phase("phase", args.get("phase", "all"), PHASES)
        if not engine.hooks:
            raise ArtefactError(
                "This engine cannot steer the residual stream; start it with enforce_eager and "
                "worker_extension_cls='forethought.serving.vllm_plugin.SteeringWorker'."
            )
        vectors(file, stamp, engine.layers, engine.width)
        check_weights(file, stamp, engine)
        if any(site_strength):
            found |= {"vector": file, "vector_stamp": stamp, "strength": site_strength, "phase": phase}
    if args.get("bias") is not None:
        file, stamp = resolve(args["bias"])
        alpha = _number("alpha", args["alpha"])
        phase = _phase("bias_phase", args.get("bias_phase", "think"), PHASES[1:])
        if not engine.logits:
            raise ArtefactError(
                "This engine cannot steer the logits; start it with "
                "logits_processors=['forethought.serving.vllm_logits:SteeringLogits']."
            )
        token_bias(file, stamp, engine.width, engine.vocabulary, engine.model)
        check_weights(file, stamp, engine)
        if alpha:
            found |= {"bias": file, "bias_stamp": stamp, "alpha": alpha, "bias_phase": phase}
    if not found:
        return None
    if "think" in (found.get("phase"), found.get("bias_phase")):
        found |= _delimiters(prompt, tokenizer)
    return Order(prompt=length, **found)


def resolve(name: Any) -> tuple[str, int]:
    """The file that a name stands for, and when it was written, in nanoseconds.

    Raises:
        ArtefactError: the name stands for nothing, or for a file that is not there. What is said of a file, here and
            below, is its name without its folder: clients of a server read it.
    """
    known = _known()
    if not isinstance(name, str) or name not in known:
        names = f"known are {', '.join(sorted(known))}" if known else "none is known"
        raise ArtefactError(
            f"There is no steering file called {name!r}, {names}; whoever starts the engine names files and folders in "
            "FORETHOUGHT_STEERING."
        )
    path = known[name]
    file = path / MANIFEST if path.is_dir() else path
    if not file.is_file():
        raise ArtefactError(f"The steering file {path.name}, called {name!r}, is not there.")
    return str(path.resolve()), file.stat().st_mtime_ns


def _known() -> dict[str, Path]:
    """The files and folders that requests may name."""
    known = {"default": Path(_original())} if _original() else {}
    for entry in filter(None, os.environ.get("FORETHOUGHT_STEERING", "").split(",")):
        name, equals, path = (part.strip() for part in entry.partition("="))
        if equals:
            known[name] = Path(path)
            continue
        file = Path(name)
        for each in file.iterdir() if file.is_dir() and not (file / MANIFEST).is_file() else [file]:
            if each.suffix == ".npy" or (each / MANIFEST).is_file():
                known[each.name.removesuffix(".npy")] = each
    return known


@lru_cache(maxsize=32)
def vectors(file: str, stamp: int, layers: int, width: int) -> Array:
    """The steering vectors of a file, for the sites -1 (the embeddings), 0 … L - 1 (after each block).

    An array ``[L, d]`` holds the input of each block, as the reasoning-strength release writes it, and so the sites
    -1 … L - 2.

    Returns:
        float32 ``[L + 1, d]``.

    Raises:
        ArtefactError: the file cannot be read, or is of another model.
    """
    needed = f"the model has {layers} blocks of width {width}; take vectors made from this model."
    rows = np.zeros((layers + 1, width), np.float32)
    if Path(file).is_dir():
        instrument = _instrument(file)
        if (instrument.model.blocks, instrument.model.width) != (layers, width):
            made = f"{instrument.model.blocks} blocks of width {instrument.model.width}"
            raise ArtefactError(f"The {instrument.kind} {instrument.name!r} is for {made}, but {needed}")
        for site, vector in instrument.steering().items():
            if site == "norm":
                raise ArtefactError(f"{instrument.name!r} is for the final norm; name it with bias, not with steer.")
            rows[site + 1] = vector.numpy()
        return rows
    array = _array(file)
    if array.shape != (layers, width):
        raise ArtefactError(f"The steering vectors in {Path(file).name} are {list(array.shape)}, but {needed}")
    rows[:-1] = array
    return rows


@lru_cache(maxsize=32)
def token_bias(file: str, stamp: int, width: int, vocabulary: int, model: str) -> Array:
    """What a file adds to the logits: one number a token, or one direction ``[d]`` times the unembedding matrix.

    A direction added after the final norm is exactly this constant bias, so nothing inside the model has to change. A
    model that scales its logits, or caps them, needs one number a token: what
    :func:`~forethought.instruments.logit_route.logit_bias` finds.

    Returns:
        float32 ``[vocabulary]``.

    Raises:
        ArtefactError: the file cannot be read or is of another model; the model has no plain unembedding matrix.
    """
    if Path(file).is_dir():
        instrument = _instrument(file)
        steering = instrument.steering()
        if "norm" not in steering:
            raise ArtefactError(f"{instrument.name!r} is for blocks, not for the final norm; name it with steer.")
        array = steering["norm"].numpy()
    else:
        array = _array(file)
    if array.shape == (vocabulary,):
        return array
    if array.shape != (width,):
        raise ArtefactError(
            f"The bias in {Path(file).name} is {list(array.shape)}, but the model has {vocabulary} tokens and width "
            f"{width}; give one number a token, or one direction of that width."
        )
    matrix = _unembedding(model)
    if tuple(matrix.shape) != (vocabulary, width):
        raise ArtefactError(
            f"The unembedding matrix is {list(matrix.shape)}, not {[vocabulary, width]}; give one number a token."
        )
    product: Array = (matrix.float() @ torch.from_numpy(array)).numpy()
    return product


@lru_cache(maxsize=32)
def check_weights(file: str, stamp: int, engine: Engine) -> None:
    """Refuse an instrument that was made on other weights than the engine's model has, where its files tell them.

    vLLM fuses the weights that it loads, so that they have no fingerprint; and an array does not know its model.

    Raises:
        ArtefactError: the fingerprints differ.
    """
    if not Path(file).is_dir():
        return
    instrument, found = _instrument(file), _fingerprint(engine.model, engine.revision)
    made = instrument.model.fingerprint
    if found is not None and found != made:
        raise ArtefactError(
            f"The {instrument.kind} {instrument.name!r} was made on a model with the fingerprint {made[:12]}, and this "
            f"one has {found[:12]}: other weights; make it anew from this model."
        )


@lru_cache(maxsize=4)
def _fingerprint(model: str, revision: str | None) -> str | None:
    folder = _folder(model, revision)
    return None if folder is None else stored_fingerprint(folder)


def _folder(model: str, revision: str | None = None) -> Path | None:
    """Where the model's own files are; None where they are not on this machine."""
    from huggingface_hub import snapshot_download

    if Path(model).is_dir():
        return Path(model)
    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        return None


def _instrument(folder: str) -> Instrument:
    try:
        return Instrument.open(folder)
    except ArtefactError as error:  # which tells the whole path
        raise ArtefactError(str(error).replace(folder, Path(folder).name)) from error


def _array(file: str) -> Array:
    """An npy array, float32. Raises ArtefactError where it cannot be read or is not finite."""
    try:
        # mapped first, so that a header that promises more than the file has takes no memory
        array = np.array(np.load(file, mmap_mode="r", allow_pickle=False), np.float32)
    except BROKEN_NPY as error:
        raise ArtefactError(f"The steering file {Path(file).name} is no npy array of numbers ({error}).") from error
    if not np.isfinite(array).all():
        raise ArtefactError(f"The steering file {Path(file).name} holds values that are not finite; make it anew.")
    return array


def _unembedding(model: str) -> Tensor:
    """The matrix from the final norm to the logits ``[vocabulary, d]``, from the model's own files."""
    from safetensors import safe_open

    folder = _folder(model)
    if folder is None:
        raise ArtefactError("The model's own files are not on this machine; give one number a token.")
    # a tied model stores it only once, as the embeddings
    for ending in ("lm_head.weight", "embed_tokens.weight"):
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 (it is no dict)
                    if key.endswith(ending):
                        matrix: Tensor = tensors.get_tensor(key)
                        return matrix
    raise ArtefactError("The model stores no plain unembedding matrix; give one number a token.")


def _delimiters(prompt: Sequence[int] | None, tokenizer: Any) -> dict[str, Any]:
    """The delimiters, and whether the prompt ends inside a thought: its last delimiter decides."""
    if prompt is None or tokenizer is None:
        raise RecipeError("The phase think needs the prompt's tokens and a tokenizer; choose all or generated.")
    opening, _, closing = os.environ.get("FORETHOUGHT_DELIMITERS", "<think>,</think>").partition(",")
    delimiters = Delimiters.of(tokenizer, opening, closing)
    ids = (delimiters.open[0], delimiters.close[0])
    last = next((token for token in reversed(prompt) if token in ids), None)
    return {"opening": ids[0], "closing": ids[1], "thinking": last == ids[0]}


def _strength(value: Any, layers: int) -> tuple[float, ...]:
    """λ of every site, from one number or one a block (its input) or a site."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return (_number("strength", value),) * (layers + 1)
    if len(value) not in (layers, layers + 1):
        raise RecipeError(
            f"strength lists {len(value)} numbers and the model has {layers} blocks; give one, or one each."
        )
    each = tuple(_number("strength", number) for number in value)
    return each if len(each) == layers + 1 else (*each, 0.0)


def _number(key: str, value: Any) -> float:
    # beyond a float32 it would be infinite where it is used, and infinity times zero is NaN
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        shown = "too large" if isinstance(value, int) and not isinstance(value, bool) else repr(value)
        raise RecipeError(f"{key} is {shown}, which is no finite number; write it as a number, such as -0.2.")
    return float(value)


def _phase(key: str, value: Any, choices: Sequence[str]) -> str:
    if value not in choices:
        raise RecipeError(f"{key} is {value!r}; choose {', '.join(choices[:-1])} or {choices[-1]}.")
    return str(value)


def _original() -> str:
    """The file that the paper's own variable names; "" for none, which its scripts call Empty."""
    path = os.environ.get(ORIGINAL_FILE, "")
    return "" if path == "Empty" else path


def _listed(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise RecipeError(f"{ORIGINAL_STRENGTHS} is {text!r}; it has to be numbers between commas.") from None
