"""The rules that make a log clean, as ibis expressions: the same on DuckDB, on Spark and in a warehouse.

They run in one declared order: rating threshold, duplicates, k-core, minimum length, maximum length. Each one writes
what it did into the manifest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import ibis
import ibis.expr.types as ir

from forethought.data.arguments import check_whole
from forethought.errors import DataError

Duplicates = Literal["keep", "first", "last", "consecutive", "exact"]
POLICIES: tuple[Duplicates, ...] = ("keep", "first", "last", "consecutive", "exact")
Store = Callable[[ir.Table], ir.Table]
Drop = Callable[[ir.Table], None]


@dataclass(frozen=True)
class Rules:
    """What to leave out.

    Attributes:
        min_rating: events rated lower.
        duplicates: ``keep`` all events; the ``first`` or ``last`` of each user and item; ``consecutive`` repeats
            become one event; ``exact``: same user, item and time become one.
        k_core: users and items with fewer events, again and again until none is left.
        min_length: users with fewer events.
        max_length: all but a user's newest events.
    """

    min_rating: float | None = None
    duplicates: Duplicates = "keep"
    k_core: int = 0
    min_length: int = 0
    max_length: int | None = None

    def __post_init__(self) -> None:
        if self.duplicates not in POLICIES:
            raise DataError(f"There is no duplicate policy {self.duplicates!r}; choose {', '.join(POLICIES)}.")
        check_whole("k_core", self.k_core)
        check_whole("min_length", self.min_length)
        if self.max_length is not None:
            check_whole("max_length", self.max_length, least=1)
        if self.min_rating is not None and not isinstance(self.min_rating, Real):
            raise DataError(f"min_rating is {self.min_rating!r}; it has to be a number.")


def order_of(table: ir.Table) -> tuple[list[str], str]:
    """The columns that put a user's events in order, and the rule in words.

    Time comes first; where times tie, or where there is none, the row in the source decides; a table without an order
    of its own falls back on the item's id.

    Raises:
        DataError: neither time nor row is known.
    """
    if "row" in table.columns and "time" in table.columns:
        return ["time", "row"], "time, then row in the source"
    if "row" in table.columns:
        return ["row"], "row in the source"
    if "time" in table.columns:
        return ["time", "item"], "time, then item id"
    raise DataError("The table has no order: name a column for it with time_column or row_column.")


def clean(table: ir.Table, rules: Rules, store: Store, drop: Drop) -> tuple[ir.Table, list[dict[str, Any]]]:
    """Apply the rules in their order.

    Args:
        table: ``user``, ``item`` and where known ``time``, ``rating``, ``row``; stored, or quick to compute.
        rules: what to leave out.
        store: computes a table and keeps it; called once a rule, and in each round of the k-core.
        drop: forgets a table that ``store`` returned.

    Returns:
        The remaining events, and a manifest entry a rule with users, items and events before and after.
    """
    order, _ = order_of(table)
    report: list[dict[str, Any]] = []
    if rules == Rules():
        return table, report
    counts = count(table)

    def apply(step: Callable[[ir.Table], ir.Table], rule: str, **parameters: Any) -> None:
        nonlocal table, counts
        before, previous = counts, table
        table = store(step(table))
        if report:
            drop(previous)
        counts = count(table)
        report.append({"rule": rule, **parameters, "before": before, "after": counts})

    if rules.min_rating is not None:
        if "rating" not in table.columns:
            raise DataError("A minimum rating needs a rating column; name it with --rating-column.")
        apply(lambda events: events.filter(events.rating >= rules.min_rating), "min_rating", value=rules.min_rating)
    if rules.duplicates != "keep":
        apply(lambda events: without_duplicates(events, rules.duplicates, order), "duplicates", policy=rules.duplicates)
    if rules.k_core > 1:
        apply(lambda events: core(events, rules.k_core, store, drop), "k_core", k=rules.k_core)
    if rules.min_length > 1:
        least = rules.min_length
        apply(lambda events: events.filter(_size(events, "user") >= least), "min_length", value=least)
    if rules.max_length is not None:
        newest = rules.max_length
        apply(lambda events: _newest(events, newest, order), "max_length", value=newest)
    if not counts["events"]:
        last = report[-1]["rule"] if report else "reading"
        raise DataError(f"No event is left after the rule {last!r}; use milder rules.")
    return table, report


def count(table: ir.Table) -> dict[str, int]:
    """Users, items and events of a log."""
    found = table.aggregate(users=table.user.nunique(), items=table.item.nunique(), events=table.count())
    return {name: int(number) for name, number in found.to_pyarrow().to_pylist()[0].items()}


def _size(table: ir.Table, column: str) -> ir.Value:
    """How many events share each event's value of a column."""
    return table.count().over(ibis.window(group_by=column))


def core(table: ir.Table, k: int, store: Store, drop: Drop) -> ir.Table:
    """The greatest part of the log in which every user and every item has k events or more.

    Each round counts only among the users and items that are left, which are all that is kept from round to round.
    """
    left: dict[str, ir.Table] = {}
    sizes = None
    while True:
        for column in ("item", "user"):
            events = table
            for name, ids in left.items():
                events = events.semi_join(ids, name)
            groups = events.group_by(column).aggregate(n=events.count())
            previous = left.get(column)
            left[column] = store(groups.filter(groups.n >= k).select(column))
            if previous is not None:
                drop(previous)
        before, sizes = sizes, [int(ids.count().to_pyarrow().as_py()) for ids in left.values()]
        if sizes == before:  # ids only ever go, so none went
            return table.semi_join(left["item"], "item").semi_join(left["user"], "user")


def without_duplicates(table: ir.Table, policy: Duplicates, order: list[str]) -> ir.Table:
    """Leave out repeats of the same item by the same user."""
    if policy == "consecutive":
        before = table.item.lag().over(ibis.window(group_by="user", order_by=order))
        table = table.mutate(before=before)
        return table.filter(table.before.isnull() | (table.before != table.item)).drop("before")
    group = ["user", "item"]
    if policy == "exact":
        if "time" not in table.columns:
            raise DataError("The duplicate policy exact compares times; name the time column or choose another.")
        group.append("time")
    by = [ibis.desc(name) if policy == "last" else ibis.asc(name) for name in order]
    place = ibis.row_number().over(ibis.window(group_by=group, order_by=by))
    return table.mutate(place=place).filter(lambda event: event.place == 0).drop("place")


def _newest(table: ir.Table, length: int, order: list[str]) -> ir.Table:
    place = ibis.row_number().over(ibis.window(group_by="user", order_by=[ibis.desc(name) for name in order]))
    return table.mutate(place=place).filter(lambda event: event.place < length).drop("place")
