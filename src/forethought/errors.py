"""The errors a user can cause and mend: one sentence each, and exit code 2 on the command line."""

from __future__ import annotations


class ForethoughtError(Exception):
    """Something the user can fix. The message is one sentence: what was found, where, and what to do."""


class DataError(ForethoughtError, ValueError):
    """An input table, file or prepared data folder is not what it has to be."""


class RecipeError(ForethoughtError, ValueError):
    """A recipe or an override has a key or a value that does not fit."""


class ArtefactError(ForethoughtError, ValueError):
    """A run folder, checkpoint or report is missing, damaged or of another version."""
