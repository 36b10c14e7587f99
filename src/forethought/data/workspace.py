"""Where a log is worked on: an embedded DuckDB file in a scratch folder, with a bounded memory."""

from __future__ import annotations

import contextlib
import os
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import ibis
import ibis.expr.types as ir

from forethought.data.arguments import MOST_THREADS, check_whole
from forethought.errors import ArtefactError

MEMORY = 512  # MB
MEMORY_A_THREAD = 128  # MB; with less DuckDB gives up on sorts and joins that it could spill


class Workspace:
    """DuckDB and a scratch folder; what does not fit into ``memory`` lives there. It goes away with its owner.

    Args:
        memory: MB that DuckDB may hold in memory; by default 512, or 128 a thread where that is more.
        threads: DuckDB's threads; by default one a core, up to 8.

    Raises:
        DataError: ``threads`` is no number of threads.
        ArtefactError: there is no room for the scratch folder.
    """

    def __init__(self, memory: int | None = None, threads: int | None = None) -> None:
        if threads is not None:
            check_whole("threads", threads, least=1, most=MOST_THREADS)
        scratch = tempfile.TemporaryDirectory(prefix="forethought-", ignore_cleanup_errors=True)
        self.folder = Path(scratch.name)
        threads = threads or min(os.cpu_count() or 1, 8)
        options = {
            "threads": threads,
            "memory_limit": f"{memory or max(MEMORY, MEMORY_A_THREAD * threads)}MB",
            "temp_directory": os.fspath(self.folder / "spill"),
        }
        with self.limits():
            self.backend: Any = ibis.duckdb.connect(self.folder / "work.duckdb", **options)
        self.sql("SET TimeZone = 'UTC'")  # a time without a zone means UTC, whatever the machine's zone
        self._tables = 0
        self.close = weakref.finalize(self, _close, self.backend, scratch)

    def sql(self, query: str, parameters: list[Any] | None = None) -> list[tuple[Any, ...]]:
        """Run DuckDB SQL; rows of the answer."""
        rows: list[tuple[Any, ...]] = self.backend.con.execute(query, parameters or []).fetchall()
        return rows

    def table(self, name: str) -> ir.Table:
        """The table of that name in this workspace's DuckDB."""
        table: ir.Table = self.backend.table(name)
        return table

    def store(self, expression: ir.Table) -> ir.Table:
        """Compute a table and keep it, on disk and compressed, its rows in order."""
        self._tables += 1
        table: ir.Table = self.backend.create_table(f"step_{self._tables}", expression)
        return table

    @contextlib.contextmanager
    def limits(self) -> Iterator[None]:
        """Say in one sentence that memory or the scratch folder ran out.

        Raises:
            ArtefactError: they did.
        """
        try:
            yield
        except (duckdb.Error, OSError) as error:
            if isinstance(error, duckdb.Error) and not self.ran_out(error):
                raise
            reason = str(error).splitlines()[0]
            place = self.folder.parent
            raise ArtefactError(
                f"Working space ran out ({reason}); free some in {place} or set TMPDIR to a larger disk."
            ) from error

    def ran_out(self, error: duckdb.Error) -> bool:
        """Whether memory or the scratch folder ran out, and not a file of the user's is wrong."""
        ours = (str(self.folder / name) in str(error) for name in ("work", "spill"))
        return isinstance(error, duckdb.OutOfMemoryException) or any(ours)

    def drop(self, table: ir.Table) -> None:
        """Forget a table that :meth:`store` returned."""
        self.sql(f"DROP TABLE {table.get_name()}")


def _close(backend: Any, scratch: tempfile.TemporaryDirectory[str]) -> None:
    backend.disconnect()
    scratch.cleanup()
