"""Reading a five-field cron expression, and saying in one line what is wrong with one that is none."""

from __future__ import annotations

from datetime import datetime

from cronsim import CronSim, CronSimError

from jobrunner.errors import InvalidSchedule

_ANY_DAY = datetime(2026, 1, 1)  # noqa: DTZ001 - a wall time
_LONGEST = 500  # characters; keeps every number far below the limit of int()
_LONGEST_SHOWN = 80
_MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_FIELDS = {
    "minute": "0-59",
    "hour": "0-23",
    "day-of-month": "1-31, L (the last) or LW (the last weekday)",
    "month": "1-12 or JAN-DEC",
    "day-of-week": "0-7 (0 and 7 are Sunday) or SUN-SAT",
}


def read_expression(expression: str) -> tuple[str, ...]:
    """Return the five fields: minute, hour, day of month, month, day of week.

    Raises:
        InvalidSchedule: it is no five-field expression; the message is one line that says what to write.
    """
    fields = _five_fields(expression)
    try:
        CronSim(" ".join(fields), _ANY_DAY)
    except CronSimError as error:
        raise InvalidSchedule(_explain(expression, fields, str(error).removeprefix("Bad "))) from None
    return fields


def named(expression: str) -> str:
    """Return how a message names the expression: quoted, on one line, cut where it is long."""
    shown = expression if len(expression) <= _LONGEST_SHOWN else expression[:_LONGEST_SHOWN] + "..."
    return f"cron expression {shown!r}"


def never_fires(expression: str) -> str:
    """Return the message for an expression that names no time there is."""
    return f"{named(expression)} never fires, for there is no such time; change its day, month or hour"


def _five_fields(expression: str) -> tuple[str, ...]:
    """Split an expression of the right shape; what the fields say is not looked at."""
    fields = tuple(expression.split())
    if not fields:
        msg = "the cron expression is empty; write five fields, such as '0 3 * * *' for every day at 03:00"
        raise InvalidSchedule(msg)
    if fields[0].startswith("@"):
        example = _MACROS.get(fields[0].lower(), "0 3 * * *")
        msg = f"{named(expression)} is a macro, which is not supported; write five fields, such as {example!r}"
        raise InvalidSchedule(msg)
    if len(fields) != len(_FIELDS):
        raise InvalidSchedule(_wrong_count(expression, len(fields)))
    if len(expression) > _LONGEST or not expression.isascii():
        msg = f"{named(expression)} is not plain ASCII of at most {_LONGEST} characters; write it so"
        raise InvalidSchedule(msg)
    return fields


def _wrong_count(expression: str, count: int) -> str:
    six = len(_FIELDS) + 1
    hint = "; for seconds use interval_seconds" if count == six else ""
    fields = "1 field" if count == 1 else f"{count} fields"
    return f"{named(expression)} has {fields}; write five: minute, hour, day of month, month, day of week{hint}"


def _explain(expression: str, fields: tuple[str, ...], name: str) -> str:
    """Return the message for an expression in which cronsim finds the field `name` bad."""
    if name not in _FIELDS:
        return f"{named(expression)} cannot be read ({name}); write it as in '0 3 * * *'"
    if name == "day-of-month" and _is_read((*fields[:3], "*", fields[4])):
        return never_fires(expression)  # cronsim blames the day where it is the month that is too short
    field = fields[list(_FIELDS).index(name)]
    return f"{named(expression)}: {field!r} is no {name}; write {_FIELDS[name]}, a list a,b, a range a-b or a step */n"


def _is_read(fields: tuple[str, ...]) -> bool:
    try:
        CronSim(" ".join(fields), _ANY_DAY)
    except CronSimError:
        return False
    return True
