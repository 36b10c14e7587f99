"""Where recipes are: a file of the user's, or one of those that come with forethought."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import yaml

from forethought.errors import RecipeError

_PACKAGE = Path(__file__).resolve().parent
SHIPPED = next(
    # A wheel carries the recipes inside the package; in a checkout they stand at the top of the repository.
    (folder for folder in (_PACKAGE / "recipes", _PACKAGE.parents[1] / "recipes") if folder.is_dir()),
    _PACKAGE / "recipes",
)


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with forethought, such as ``prefergrow/beauty-hybrid``, sorted."""
    return sorted(path.relative_to(SHIPPED).with_suffix("").as_posix() for path in SHIPPED.rglob("*.yaml"))


def recipe_path(name: str | os.PathLike[str]) -> Path:
    """The file of a recipe, given as a path or as the name of one that comes with forethought.

    Args:
        name: a path to a YAML file, or a shipped name with or without ``.yaml`` and a leading ``recipes/``.

    Raises:
        RecipeError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    # the recipes to begin with come first
    known = sorted(shipped_recipes(), key=lambda shipped: not shipped.endswith(("/default", "/demo")))
    short = path.with_suffix("") if path.suffix in {".yaml", ".yml"} else path
    shipped = short.as_posix().removeprefix("recipes/")
    if shipped in known:
        return SHIPPED / f"{shipped}.yaml"
    near = [candidate for candidate in known if Path(shipped).name in candidate]
    near = near or difflib.get_close_matches(shipped, known, n=3, cutoff=0.5) or known
    raise RecipeError(
        f"There is no recipe file {os.fspath(name)!r}, and none of that name comes with forethought; "
        f"try {', '.join(near[:6])}."
    )


def model_type(path: Path) -> str | None:
    """The ``model.type`` of a recipe; None where the file does not say, which reading it in full will explain."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        return str(content["model"]["type"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        return None
