"""From columns as they were found to columns of one type, every value that does not fit found and counted.

Everything here is an ibis expression: it runs on DuckDB, on Spark, or wherever the table lives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ibis
import ibis.expr.types as ir

from forethought.data.cleaning import Store
from forethought.data.reading import Staged
from forethought.errors import DataError

OnError = Literal["fail", "drop"]
Ids = Literal["auto", "text"]
Profile = Mapping[str, Any]
# A number is a time in the unit its size gives away: seconds reach 10^11 in the year 5138, ms reach it in 1973.
_UNITS = (
    ("seconds", 1e11, 1e3),
    ("milliseconds", 1e14, 1.0),
    ("microseconds", 1e17, 1e-3),
    ("nanoseconds", 1e20, 1e-6),
)  # name, size where it ends, milliseconds
_IDS = "whole numbers or text"
_HOLDS = {
    "user": _IDS, "item": _IDS, "session": _IDS, "rating": "numbers",
    "time": "Unix numbers, days as 20240501, ISO 8601 text or timestamps",
}  # fmt: skip
# no other zone has a name here: DuckDB would read the later times that have none in the zone of an earlier row
_ISO = (
    r"^\d{4}-\d{2}-\d{2}(( +|T)\d{1,2}:[0-9:.]*"
    r"(Z| UTC|[+-](0\d|1[0-5])(:?[0-5]\d){0,2})?)? *$"
)
_OFFSET = r":.*[+-]"
_NO_SECONDS = r"^([^:]*:\d{2})((?:Z| UTC|[+-]).*)$"  # with a zone DuckDB wants them
_HUGE = r"^-?[1-9]\d{18,}$"
_AS_TEXT = "(use --ids text to take all ids as text)"


@dataclass(frozen=True)
class Check:
    """One thing that may be wrong with a value.

    Attributes:
        role: user, item, time, rating, action or session.
        reason: how the manifest counts it.
        bad: true where it is wrong, never null.
        value: the column, to be quoted in the message.
        says: the message after "column 'user', row 3: ".
    """

    role: str
    reason: str
    bad: ir.BooleanValue
    value: ir.Value
    says: str


def canonical(
    staged: Staged, store: Store, on_error: OnError = "fail", ids: Ids = "auto"
) -> tuple[ir.Table, dict[str, int]]:
    """The log with one type a column, stored, and how many rows were left out for which reason.

    Args:
        staged: the log as found.
        store: computes a table and keeps it.
        on_error: ``"fail"`` raises at the first row that does not fit, ``"drop"`` leaves such rows out and counts them.
        ids: ``"auto"`` makes int64 of a column of whole numbers and refuses one that is mostly numbers with some text
            between; ``"text"`` takes every id as text.

    Returns:
        A table with ``user`` and ``item`` (int64 or string), ``time`` (int64, Unix milliseconds), ``rating`` (float64),
        ``action``, ``part`` (string) and ``row`` (int64), as far as the source has them.

    Raises:
        DataError: a value does not fit, or no row is left.
    """
    table = staged.table
    profile = _profile(staged)
    if not profile["rows"]:
        _refuse_all(staged, staged.rejected())
        raise DataError(f"{staged.source} holds no events; it needs at least one row.")
    values: dict[str, ir.Value] = {name: table[name] for name in ("part", "row") if name in table.columns}
    checks: list[Check] = []
    for role in ("user", "item", "session", "time", "rating", "action"):
        if role in table.columns:
            convert = {"time": _time, "rating": _rating, "action": _text}.get(role)
            value, found = convert(table, role, profile) if convert else _identity(table, role, profile, ids)
            values[role] = value
            checks.extend(found)
    if "session" in values:  # each session is a sequence of its own; user a/b's c is not user a's b/c
        user = values["user"].cast("string").replace("%", "%25").replace("/", "%2F")
        values["user"] = user + "/" + values.pop("session").cast("string")
    if checks:  # the number of the first check that a row fails
        values["failed"] = ibis.cases(*((check.bad, number) for number, check in enumerate(checks)))
    typed = store(table.select(**values))
    if staged.ordered and "row" not in typed.columns:
        typed = typed.mutate(row=typed.rowid())
    if not checks:
        return typed, staged.rejected()
    dropped = _refuse(staged, typed, checks, on_error)
    if sum(dropped.values()) == profile["rows"]:
        _refuse_all(staged, {**staged.rejected(), **dropped})
    return typed.filter(typed.failed.isnull()).drop("failed"), {**staged.rejected(), **dropped}


def _refuse_all(staged: Staged, dropped: Mapping[str, int]) -> None:
    """Refuse a log of which nothing is left, where rows were dropped."""
    if dropped:
        reasons = ", ".join(f"{count} for {reason}" for reason, count in dropped.items())
        raise DataError(f"{staged.source} has no usable row: all were dropped ({reasons}); mend the file.")


def _profile(staged: Staged) -> Profile:
    """What the types of the columns are decided on and which checks can fail at all, in one pass.

    Raises:
        DataError: a column holds values of a type that is none for its role.
    """
    table = staged.table
    wanted: dict[str, ir.Value] = {"rows": table.count()}
    for role in table.columns:
        column = table[role]
        if role in ("part", "row"):
            continue
        kind = column.type()
        identifies = role in ("user", "item", "session")
        fits = role == "action" or kind.is_string() or kind.is_numeric() or (identifies and kind.is_uuid())
        fits = fits or (role == "time" and (kind.is_timestamp() or kind.is_date()))
        if not fits:
            raise DataError(
                f"{staged.source}, column {staged.columns[role]!r} holds {kind}; it has to hold {_HOLDS[role]}."
            )
        wanted[f"{role} given"] = _given(column).sum()
        if identifies:
            if kind.is_string():
                wanted[f"{role} whole"] = _whole(column).sum()
                wanted[f"{role} least"] = column.try_cast("int64").min()
            elif kind.is_numeric():
                wanted[f"{role} least"] = column.min()
        if role == "rating":
            wanted["rating number"] = _finite(column, 1e30).notnull().sum()
        elif role == "time" and (kind.is_string() or kind.is_numeric()):
            number = _finite(column)
            wanted["time number"] = number.notnull().sum()
            for (unit, _, _), inside in zip(_UNITS, _in_unit(number), strict=True):
                wanted[f"time {unit}"] = inside.sum()
            wanted["time days"] = _day(number).notnull().sum()
    counts: dict[str, Any] = table.aggregate(**wanted).to_pyarrow().to_pylist()[0]
    return {name: count or 0 for name, count in counts.items()}


def _refuse(staged: Staged, typed: ir.Table, checks: list[Check], on_error: OnError) -> dict[str, int]:
    """Count the rows that fail, each under its first check; raise where they may not be dropped."""
    failing = typed.filter(typed.failed.notnull())
    wanted: dict[str, ir.Value] = {"count": failing.count()}
    if "row" in failing.columns:
        wanted["row"] = failing.row.min()
    found = failing.group_by("failed").aggregate(**wanted).to_pyarrow().to_pylist()
    if found and on_error == "fail":
        first = min(found, key=lambda failure: (failure.get("row", 0), failure["failed"]))
        check, earlier = checks[first["failed"]], checks[: first["failed"]]
        bad = check.bad
        for other in earlier:
            bad = bad & ~other.bad
        rows = staged.table.filter(bad & (staged.table.row == first["row"]) if "row" in staged.table.columns else bad)
        value = rows.select(value=check.value).limit(1).to_pyarrow().to_pylist()[0]["value"]
        others = f" ({first['count'] - 1} more like it)" if first["count"] > 1 else ""
        raise DataError(
            f"{staged.source}, {staged.place(first.get('row'))}, column {staged.columns[check.role]!r}: "
            f"{check.says.format(value=repr(value))}{others}; "
            "mend the file, or use --on-error drop to leave such rows out and count them."
        )
    counts = {failure["failed"]: failure["count"] for failure in found}
    return {f"{checks[number].role}: {checks[number].reason}": counts[number] for number in sorted(counts)}


def _given(column: ir.Value) -> ir.BooleanValue:
    """True where there is a value: not null, not the empty text, not NaN."""
    given = column.notnull()
    if column.type().is_string():
        given = given & (column != "").fill_null(False)
    elif column.type().is_floating():
        given = given & ~column.isnan().fill_null(False)
    return given


def _whole(column: ir.Value) -> ir.BooleanValue:
    """True where a text is a whole number as a program writes it: no sign +, no zeros in front."""
    number = column.try_cast("int64")
    return (number.cast("string") == column).fill_null(False)


def _missing(table: ir.Table, role: str, profile: Profile) -> list[Check]:
    if profile[f"{role} given"] == profile["rows"]:
        return []
    return [Check(role, "missing", ~_given(table[role]), table[role], "the value is missing")]


def _identity(table: ir.Table, role: str, profile: Profile, ids: Ids) -> tuple[ir.Value, list[Check]]:
    column = table[role]
    kind = column.type()
    checks = _missing(table, role, profile)
    if kind.is_uuid():
        return column.cast("string"), checks
    if kind.is_string():
        whole, given = profile[f"{role} whole"], profile[f"{role} given"]
        if ids == "text" or 2 * whole < given:
            return column, checks
        if whole < given:
            huge = column.re_search(_HUGE).fill_null(False) & ~_whole(column)
            checks.append(Check(role, "too large", huge, column, f"{{value}} is beyond 64 bits {_AS_TEXT}"))
            says = f"{{value}} is no whole number although most ids here are {_AS_TEXT}"
            checks.append(Check(role, "mixed types", _given(column) & ~_whole(column), column, says))
    elif kind.is_floating():
        broken = _given(column) & (column.try_cast("int64").cast("float64") != column).fill_null(True)
        checks.append(Check(role, "mixed types", broken, column, "{value} is no whole number"))
    elif kind.is_decimal():
        broken = (column % 1 != 0).fill_null(False)
        checks.append(Check(role, "mixed types", broken, column.cast("string"), "{value} is no whole number"))
    number = column if kind.is_signed_integer() else column.try_cast("int64")
    if profile[f"{role} least"] < 0:
        says = "the id {value} is negative, which mostly marks a missing one"
        checks.append(Check(role, "negative", (number < 0).fill_null(False), number, says))
    if ids == "text" and kind.is_decimal():
        return column.cast("string").re_replace(r"\.0*$", ""), checks
    if ids == "text" and kind.is_unsigned_integer():
        return column.cast("string"), checks
    if not kind.is_string() and not kind.is_signed_integer():
        value = column.cast("string") if kind.is_decimal() else column
        says = "{value} is beyond 64 bits" if ids == "text" else f"{{value}} is beyond 64 bits {_AS_TEXT}"
        checks.append(Check(role, "too large", _given(column) & number.isnull(), value, says))
    number = number.cast("int64")
    return number.cast("string") if ids == "text" else number, checks


def _finite(column: ir.Value, limit: float = _UNITS[-1][1]) -> ir.Value:
    """The number a value stands for, null where it is none or is ``limit`` or more in size."""
    number = column.cast("float64") if column.type().is_numeric() else column.try_cast("float64")
    return ibis.ifelse(number.abs() < limit, number, ibis.null("float64"))


def _in_unit(number: ir.Value) -> list[ir.BooleanValue]:
    size, lower, inside = number.abs(), -1.0, []
    for _, upper, _ in _UNITS:
        inside.append(((size >= lower) & (size < upper)).fill_null(False))
        lower = upper
    return inside


def _day(number: ir.Value) -> ir.Value:
    """The numbers that read as a day of 1970 to 2099, as 20240501 does, int64, and null for others; as Unix seconds all
    are of August 1970."""
    whole = ibis.ifelse(number.between(19_700_101, 20_991_231), number, ibis.null("float64")).cast("int64")
    fits = (whole == number) & (whole // 100 % 100).between(1, 12) & (whole % 100).between(1, 31)
    return ibis.ifelse(fits, whole, ibis.null("int64"))


def _time(table: ir.Table, role: str, profile: Profile) -> tuple[ir.Value, list[Check]]:
    column = table[role]
    kind = column.type()
    checks = _missing(table, role, profile)
    if kind.is_timestamp() or kind.is_date():
        milliseconds = _milliseconds(column.try_cast("timestamp"))  # null where it is infinity
        says = "{value} is beyond the times that can be kept"
        bad = _given(column) & milliseconds.isnull()
        checks.append(Check(role, "unparsable time", bad, column.cast("string"), says))
        return milliseconds, checks
    number = _finite(column)
    given, numbers = profile["time given"], profile["time number"]
    if 2 * profile["time days"] > given:
        text = _day(number).cast("string")
        dashed = text.substr(0, 4) + "-" + text.substr(4, 2) + "-" + text.substr(6, 2)
        day = dashed.try_cast("date")  # a 31st of June is none
        says = "{value} is no day although most times here are days written as 20240501"
        checks.append(Check(role, "unparsable time", _given(column) & day.isnull(), column, says))
        return _milliseconds(day.cast("timestamp")), checks
    if kind.is_numeric() or 2 * numbers >= given:
        most = max(range(len(_UNITS)), key=lambda unit: profile[f"time {_UNITS[unit][0]}"])
        unit, _, factor = _UNITS[most]
        if numbers < given:
            says = "{value} is no time although most here are Unix numbers"
            checks.append(Check(role, "unparsable time", _given(column) & number.isnull(), column, says))
        if profile[f"time {unit}"] < numbers:
            says = f"{{value}} is not in {unit} as most times here are"
            checks.append(Check(role, "mixed time units", number.notnull() & ~_in_unit(number)[most], column, says))
        number = ibis.ifelse(_in_unit(number)[most], number, ibis.null("float64"))
        return (number * factor).round().cast("int64"), checks
    looks = column.re_search(_ISO).fill_null(False)
    full = column.re_extract(_NO_SECONDS, 1) + ":00" + column.re_extract(_NO_SECONDS, 2)
    text = ibis.ifelse(looks, ibis.ifelse(column.re_search(_NO_SECONDS), full, column), ibis.null("string"))
    away = ibis.ifelse(text.re_search(_OFFSET), text, ibis.null("string"))
    zoned, unzoned = away.try_cast("timestamp('UTC')").cast("timestamp"), text.try_cast("timestamp")
    moment = ibis.ifelse(away.notnull(), zoned, unzoned)
    says = (
        "{value} is no time; use Unix seconds, Unix milliseconds or ISO 8601, in UTC (2024-05-01T12:00:00Z) or with an "
        "offset (2024-05-01T14:00:00+02:00)"
    )
    checks.append(Check(role, "unparsable time", _given(column) & moment.isnull(), column, says))
    return _milliseconds(moment), checks


def _milliseconds(moment: ir.Value) -> ir.Value:
    return moment.truncate("s").epoch_seconds().cast("int64") * 1000 + moment.millisecond()


def _rating(table: ir.Table, role: str, profile: Profile) -> tuple[ir.Value, list[Check]]:
    column = table[role]
    number = _finite(column, 1e30)
    checks = _missing(table, role, profile)
    if profile["rating number"] < profile["rating given"]:
        unread = _given(column) & number.isnull()
        checks.append(Check(role, "unparsable rating", unread, column, "{value} is no number"))
    return number, checks


def _text(table: ir.Table, role: str, profile: Profile) -> tuple[ir.Value, list[Check]]:
    return table[role].cast("string"), _missing(table, role, profile)
