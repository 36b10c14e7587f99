"""An interaction log: read from a file or a table, checked, cleaned, split, and written as a prepared data set."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import ibis.expr.types as ir
import pyarrow as pa

from forethought.data.arguments import check_choice, check_text, check_whole
from forethought.data.assembly import assemble
from forethought.data.bundled import bundled_path
from forethought.data.cleaning import Duplicates, Rules, clean, order_of
from forethought.data.dataset import Dataset, check_place
from forethought.data.detection import item_file, locate
from forethought.data.explaining import explained
from forethought.data.files import header, refuse_twice, require
from forethought.data.items import ItemSource, describe
from forethought.data.layout import lay_out
from forethought.data.reading import Staged, stage
from forethought.data.splitting import SPLITS, Split
from forethought.data.validation import Ids, OnError, canonical
from forethought.data.workspace import Workspace
from forethought.errors import DataError

Engine = Literal["duckdb", "spark"]
Progress = Callable[[str], None]


class Usual(str):
    """A column's name by default, which a named format overrules; the same name given by the user it does not."""


USER, ITEM, TIME = Usual("user"), Usual("item"), Usual("timestamp")


class Interactions:
    """A checked log: who did what when.

    Attributes:
        table: an ibis table with ``user`` and ``item`` (int64 or string) and, where known, ``time`` (int64, Unix
            milliseconds), ``rating`` (float64), ``action`` (string), ``part`` (a given split), ``row`` (int64).
        items: where titles, categories and text of the items are, or None.
        provenance: source, SHA-256, reader, columns and engine, for the manifest.
        dropped: rows left out while reading, by reason.
        files: those of the log; none where it is a table.
    """

    def __init__(
        self,
        table: ir.Table,
        workspace: Workspace,
        provenance: Mapping[str, Any],
        dropped: Mapping[str, int] | None = None,
        items: ItemSource | None = None,
        name: str = "interactions",
        files: Sequence[Path] = (),
    ) -> None:
        self.table = table
        self.workspace = workspace
        self.provenance = dict(provenance)
        self.dropped = dict(dropped or {})
        self.items = items
        self.name = name
        self.files = [Path(os.path.abspath(file)) for file in files]

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str],
        format: str = "auto",
        user_column: str = USER,
        item_column: str = ITEM,
        time_column: str | None = TIME,
        rating_column: str | None = None,
        action_column: str | None = None,
        session_column: str | None = None,
        on_error: OnError = "fail",
        engine: Engine = "duckdb",
        ids: Ids = "auto",
        items: Any = None,
        items_id: str | None = None,
        threads: int | None = None,
    ) -> Interactions:
        """Read a log.

        Args:
            path: a file, a folder that holds a known data set, or ``bundled:NAME``.
            format: one of :data:`forethought.data.formats.FORMATS`, or ``"auto"``.
            user_column, item_column, time_column: names in the file; by default a named format's own, or else ``user``,
                ``item`` and ``timestamp``. ``time_column`` None or ``"none"`` keeps the order of the file.
            rating_column, action_column: read too where given. A named format knows its rating.
            session_column: each session becomes a sequence of its own, called ``user/session``, where a ``/`` of the
                user's is written ``%2F`` and a ``%`` is written ``%25``.
            on_error: ``"fail"`` at the first bad row, or ``"drop"`` and count.
            engine: what cleans and sorts: DuckDB in this process, or Spark.
            ids: ``"text"`` takes ids as text even where they look like numbers.
            items: a file, or a pandas, polars or Arrow table, with one row an item; a named format finds its own.
            items_id: the id column there.
            threads: of DuckDB.

        Raises:
            DataError: what is wrong, in which file, row and column.
        """
        check_choice("on_error", on_error, OnError)
        check_choice("engine", engine, Engine)
        check_choice("ids", ids, Ids)
        source = _item_source(items, items_id)
        given = str(path)
        check_text("path", given)
        if given.startswith("bundled:"):
            folder = bundled_path(given.removeprefix("bundled:"))
            path, rating_column = folder / "interactions.parquet", rating_column or "rating"
            source = source or _item_source(folder / "movies.parquet", None)
        form, files = locate(Path(path), format)
        asked = {
            "user": user_column, "item": item_column, "time": None if time_column == "none" else time_column,
            "rating": rating_column, "action": action_column, "session": session_column,
        }  # fmt: skip
        usual = {role: name for role, name in asked.items() if isinstance(name, Usual)}
        named = {role: name for role, name in asked.items() if name is not None and role not in usual}
        if named and form.table.layout in ("user-item", "user-sequence", "preferdiff"):
            role, column = next(iter(named.items()))
            raise DataError(f"{given}: the lines of {form.name} have no column {column!r}; leave --{role}-column out.")
        columns = {**(form.columns or usual), **named}
        if asked["time"] is None:
            columns.pop("time", None)
        _check_columns(given, columns)
        if form.table.layout == "csv" and form.columns:
            present, _ = header(files[0], form.table)
            optional = set(form.optional) - named.keys()  # what the user names has to be there
            columns = {role: name for role, name in columns.items() if name in present or role not in optional}
        workspace = Workspace(threads=threads)
        with explained(workspace, files[0], form.table):
            staged = stage(workspace, files, form.table, columns, drop=on_error == "drop")
            table, dropped = canonical(staged, workspace.store, on_error, "text" if form.text_ids else ids)
        provenance = {
            "source": given,
            "sha256": {file.name: _sha256(file) for file in files},
            "reader": form.name,
            "columns": dict(staged.columns),
            "engine": engine,
        }
        beside = item_file(form, files[0]) if source is None else None
        if beside is not None:
            source = ItemSource(beside, form.item_table, form.item_columns)
        stem = Path(given.removeprefix("bundled:")).name.removesuffix(".gz")
        name = Path(stem).stem if Path(given).is_file() else stem
        return cls(table, workspace, provenance, dropped, source, name, files)

    @classmethod
    def from_table(
        cls,
        table: Any,
        user_column: str = "user",
        item_column: str = "item",
        time_column: str | None = "timestamp",
        rating_column: str | None = None,
        action_column: str | None = None,
        session_column: str | None = None,
        row_column: str | None = None,
        on_error: OnError = "fail",
        ids: Ids = "auto",
        items: Any = None,
        items_id: str | None = None,
        name: str = "table",
        threads: int | None = None,
    ) -> Interactions:
        """Take a pandas, polars or Arrow table, or any ibis table; arguments as :meth:`read`.

        An ibis table stays where it is: all cleaning runs there. It has no order of its own, so ties in time are broken
        by item id unless ``row_column`` (whole numbers) names an order; its times are Unix numbers or timestamps.

        Raises:
            DataError: what is wrong, in which row and column.
        """
        asked = {
            "user": user_column, "item": item_column, "time": None if time_column == "none" else time_column,
            "rating": rating_column, "action": action_column, "session": session_column, "row": row_column,
        }  # fmt: skip
        columns = {role: column for role, column in asked.items() if column is not None}
        check_choice("on_error", on_error, OnError)
        check_choice("ids", ids, Ids)
        _check_columns(name, columns)
        described = _item_source(items, items_id)
        workspace = Workspace(threads=threads)
        if isinstance(table, ir.Table):
            require(name, table.columns, columns)
            _refuse_zones(table, name, columns.get("time"))
            chosen = table.select(**{role: table[column] for role, column in columns.items()})
            checked, dropped = canonical(Staged(chosen, name, columns, ordered=False), cached, on_error, ids)
        else:
            arrow = _arrow(table, name)
            require(name, arrow.column_names, columns)
            workspace.backend.con.register("raw", arrow.select(list(columns.values())).rename_columns(list(columns)))
            with workspace.limits():
                staged = Staged(workspace.table("raw"), name, columns)
                checked, dropped = canonical(staged, workspace.store, on_error, ids)
        provenance = {"source": name, "sha256": {}, "reader": type(table).__module__.split(".")[0], "columns": columns}
        engine = table.get_backend().name if isinstance(table, ir.Table) else "duckdb"
        provenance["engine"] = engine
        return cls(checked, workspace, provenance, dropped, described, name)

    def __len__(self) -> int:
        return int(self.table.count().to_pyarrow().as_py())

    def close(self) -> None:
        """Remove the scratch folder; the garbage collector does the same."""
        self.workspace.close()

    def prepare(
        self,
        out: str | os.PathLike[str] | None = None,
        *,
        split: Split | None = None,
        min_rating: float | None = None,
        duplicates: Duplicates = "keep",
        k_core: int = 0,
        min_length: int = 0,
        max_length: int | None = None,
        seed: int = 0,
        quantiles: tuple[float, float] | None = None,
        valid_users: int | None = None,
        name: str | None = None,
        replace: bool = False,
        command: str | None = None,
        progress: Progress | None = None,
    ) -> Dataset:
        """Clean, split and write the log.

        Args:
            out: the folder to make; None keeps the data set in memory.
            split: the protocol; by default the split the source came with, or else ``"leave-one-out"``.
            min_rating, duplicates, k_core, min_length, max_length: see :class:`forethought.data.cleaning.Rules`.
            seed: of what is drawn by the split.
            quantiles: of the global-time cuts: shares of the events before each; 0.8 and 0.9 by default.
            valid_users: of leave-one-out, how many users have a validation case; all by default.
            name: what to call the data set.
            replace: overwrite ``out`` where it is an empty folder or a prepared one.
            command: noted in the manifest.
            progress: told what is being done.

        Raises:
            DataError: an argument is no value of its kind, nothing is left, or the split does not fit the data.
            ArtefactError: ``out`` is taken or cannot be written, or the scratch folder (in TMPDIR) is full.
        """
        say = progress or (lambda stage: None)
        if split is not None and split not in SPLITS:
            raise DataError(f"There is no split {split!r}; choose {', '.join(SPLITS)}.")
        check_text("name", name or self.name)
        check_whole("seed", seed)
        if valid_users is not None:
            check_whole("valid_users", valid_users)
        if out is not None:
            described = [] if self.items is None or not isinstance(self.items.source, Path) else [self.items.source]
            advice = "choose another folder or overwrite it with replace=True"
            check_place(out, replace, advice, [*self.files, *described])
        rules = Rules(min_rating, duplicates, k_core, min_length, max_length)
        order, tie_rule = order_of(self.table)
        say("cleaning")
        with self.workspace.limits():
            table, store, drop = self._engine()
            table, report = clean(table, rules, store, drop)
            say("sorting")
            laid = lay_out(table, order, self.workspace.folder)
        say("splitting")
        items, item_report = describe(laid.items, self.items)
        dataset = assemble(
            laid.sequences, laid.users, items, split, seed=seed, quantiles=quantiles, valid_users=valid_users,
            parts=laid.parts, name=name or self.name, tie_rule=tie_rule, rules=report,
            provenance=self._provenance(item_report, command), dropped=self.dropped, actions=laid.actions,
        )  # fmt: skip
        say("writing")
        return dataset if out is None else dataset.save(out, replace=replace)

    def _engine(self) -> tuple[ir.Table, Callable[[ir.Table], ir.Table], Callable[[ir.Table], None]]:
        """The table where it is to be cleaned, how to keep a step and how to forget it."""
        if self.provenance["engine"] == "spark" and self.table.get_backend().name == "duckdb":
            from forethought.data.spark import to_spark

            table = to_spark(self.table, self.workspace)
        else:
            table = self.table
        if table.get_backend() is self.workspace.backend:
            return table, self.workspace.store, self.workspace.drop
        return table, cached, lambda step: None

    def _provenance(self, item_report: Mapping[str, Any], command: str | None) -> dict[str, Any]:
        from importlib.metadata import PackageNotFoundError, version

        try:
            release = version("forethought")
        except PackageNotFoundError:
            release = "source"
        known = {**self.provenance, "forethought": release}
        if item_report:
            known["items"] = dict(item_report)
        if command:
            known["command"] = command
        return known


def cached(step: ir.Table) -> ir.Table:
    """Compute a table and keep it where it lives, until nobody uses it."""
    kept: ir.Table = step.cache()
    return kept


def _item_source(items: Any, items_id: str | None) -> ItemSource | None:
    if items is None:
        if items_id is not None:
            raise DataError(f"{items_id!r} is named for the items' ids, but no item table; give it with --items.")
        return None
    source = Path(items) if isinstance(items, (str, os.PathLike)) else _arrow(items, "the item table")
    if isinstance(source, Path):
        check_text("items", str(source))
    return ItemSource(source, None, None if items_id is None else {"id": items_id})


def _check_columns(name: str, columns: Mapping[str, str]) -> None:
    """Refuse a log without users or items, and one column for two of the roles that say who did what when."""
    for role in ("user", "item"):
        if role not in columns:
            raise DataError(f"{name}: {role}_column is None; name the column of the {role}s.")
    used: dict[str, str] = {}
    for role in ("user", "item", "time", "session"):
        if role in columns and used.setdefault(columns[role], role) != role:
            raise DataError(
                f"{name}: the column {columns[role]!r} is named for the {used[columns[role]]} and for the {role}; "
                f"name another one with --{role}-column."
            )


def _refuse_zones(table: ir.Table, name: str, column: str | None) -> None:
    """Refuse times whose meaning hangs on the time zone of a session that is not ours."""
    kind = None if column is None else table[column].type()
    zoned = kind is not None and kind.is_timestamp() and kind.timezone and table.get_backend().name != "pyspark"
    if kind is not None and (kind.is_string() or zoned):
        raise DataError(
            f"{name}, column {column!r} holds {kind}; in a table of another engine give times as Unix numbers or as "
            "timestamps without a zone (in UTC), so that no session's time zone moves them."
        )


def _arrow(table: Any, name: str) -> pa.Table:
    if isinstance(table, pa.Table):
        refuse_twice(name, table.column_names)
        return table
    if hasattr(table, "collect") and type(table).__module__.startswith("polars"):
        table = table.collect()  # a lazy frame
    refuse_twice(name, [str(column) for column in getattr(table, "columns", [])])
    try:
        if hasattr(table, "to_arrow"):
            return pa.table(table.to_arrow())
        if type(table).__module__.startswith("pandas"):
            return pa.Table.from_pandas(table, preserve_index=False)
        return pa.table(table)
    except (pa.ArrowException, TypeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{name} cannot be taken as a table ({reason}); give each column one type.") from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
