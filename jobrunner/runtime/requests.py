"""From the arguments of a trigger to the request that storage takes: all that can be refused without a database."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from jobrunner.errors import InvalidSetting
from jobrunner.policy import definitions
from jobrunner.policy.clocks import is_real_time
from jobrunner.policy.durations import read_seconds
from jobrunner.runtime.payloads import read_payload
from jobrunner.storage.runs.enqueue import WORKERS_OWN, Request

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from jobrunner.runtime.handlers import Handler
    from jobrunner.runtime.options import Seconds


def read_request(
    name: str,
    payload: dict[str, Any] | None,
    now: datetime,
    code: tuple[Handler, dict[str, Any]] | None,
    *,
    at: datetime | None = None,
    delay: Seconds | None = None,
    key: str | None = None,
    key_scope: str = "waiting",
    priority: int | str | None = None,
    force: bool = False,
) -> Request:
    """Check a trigger. `code` is the worker's handler and its own payload, where this process has them.

    Raises:
        InvalidPayload: the payload is no JSON object, too large, or does not fit the handler.
        InvalidSetting: another argument cannot be used.
    """
    if payload is not None:
        payload, _ = read_payload(payload, None if code is None else code[0])
    elif code is not None:
        code[0].arguments(code[1])
    definitions.check_key(key)
    if at is not None and delay is not None:
        raise InvalidSetting("give at or delay, not both")
    if at is not None and at.tzinfo is None:
        raise InvalidSetting("at must be an aware time; add a time zone")
    if at is not None and not is_real_time(at):
        raise InvalidSetting(f"at must lie between 1970 and 9999, not in {at.year}")
    if key_scope not in {"waiting", "live"}:
        raise InvalidSetting(f"key_scope {key_scope!r} is neither 'waiting' nor 'live'")
    level = None if priority is None else int(definitions.parse_priority(name, priority))
    since = None if delay is None else now
    return Request(name, payload, _due_at(now, at, delay), key, key_scope, level, force, waits_since=since)


def read_payloads(payloads: Iterable[dict[str, Any] | None], code: tuple[Handler, dict[str, Any]] | None) -> list[str]:
    """Check the payloads of triggers as `read_request` does each; return them as `enqueue_many` takes them.

    Raises:
        InvalidPayload: one is no JSON object, too large, or does not fit the handler.
    """
    handler = None if code is None else code[0]
    texts, has_own = [], False
    for payload in payloads:
        if payload is None:
            if code is not None and not has_own:
                code[0].arguments(code[1])
            has_own = True
            texts.append(WORKERS_OWN)
            continue
        texts.append(read_payload(payload, handler)[1])
    return texts


def _due_at(now: datetime, at: datetime | None, delay: Seconds | None) -> datetime | None:
    if delay is None:
        return at
    try:
        seconds = read_seconds(delay)
    except InvalidSetting:
        raise InvalidSetting(
            f"delay must be a number of seconds, a timedelta or text such as '5m', not {delay!r}"
        ) from None
    try:
        due_at: datetime | None = now + timedelta(seconds=seconds)
    except OverflowError:
        due_at = None
    if due_at is None or not is_real_time(due_at):
        raise InvalidSetting(f"a delay of {seconds:g} s leads past the year 9999, or before 1970")
    return due_at
