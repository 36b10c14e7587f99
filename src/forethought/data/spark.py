"""The cleaning pipeline on Apache Spark: the same ibis expressions, another engine."""

from __future__ import annotations

import os
import warnings
from typing import Any

import ibis
import ibis.expr.types as ir

from forethought.data.workspace import Workspace
from forethought.errors import DataError


def to_spark(table: ir.Table, workspace: Workspace) -> ir.Table:
    """Hand a table over to Spark: the running session, or a local one.

    The files are still read and checked by DuckDB, so every engine sees the same rows in the same order. A log that
    lives on a cluster goes through ``Interactions.from_table`` with an ibis table of that cluster instead.

    Raises:
        DataError: pyspark or Java is missing.
    """
    warnings.filterwarnings("ignore", "PySpark does not yet fully support pandas", FutureWarning)
    handed = workspace.folder / "handed-over.parquet"
    session = _session(os.fspath(workspace.folder))
    table.to_parquet(handed)
    backend: Any = ibis.pyspark.connect(session)
    name = f"forethought_{workspace.folder.name.replace('-', '_')}"
    session.read.parquet(os.fspath(handed)).createOrReplaceTempView(name)
    on_spark: ir.Table = backend.table(name)
    return on_spark


def _session(scratch: str) -> Any:
    try:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise DataError("The engine spark needs pyspark; install it with: pip install 'forethought[spark]'.") from error
    running = SparkSession.getActiveSession()
    if running is not None:
        return running
    settings = {
        "spark.ui.enabled": "false",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.warehouse.dir": scratch,
        "spark.sql.shuffle.partitions": str(os.cpu_count() or 1),
        "spark.log.level": "ERROR",
    }
    builder = SparkSession.builder.master("local[*]").appName("forethought")
    for key, value in settings.items():
        builder = builder.config(key, value)
    try:
        return builder.getOrCreate()
    except (PySparkException, RuntimeError, OSError) as error:
        raise DataError(f"Spark does not start ({str(error).splitlines()[0]}); it needs Java 17 or newer.") from error
