"""From the arguments of a trigger to the request that storage takes: all that can be refused without a database."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from jobrunner.errors import InvalidPayload, InvalidSetting
from jobrunner.policy import definitions
from jobrunner.policy.arguments import check_flag
from jobrunner.policy.clocks import is_real_time
from jobrunner.policy.duplicates import KEEP, check_duplicate
from jobrunner.policy.durations import read_seconds
from jobrunner.runtime.moments import read_aware
from jobrunner.runtime.payloads import read_payload
from jobrunner.storage.runs.enqueue import WORKERS_OWN, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from jobrunner.runtime.handlers import Handler
    from jobrunner.runtime.options import Seconds

T = TypeVar("T")


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
    on_duplicate: str = KEEP,
    at_most: Seconds | None = None,
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
    if at is not None and not is_real_time(read_aware("at", at)):
        raise InvalidSetting(f"at must lie between 1970 and 9999, not in {at.year}")
    if key_scope not in ("waiting", "live"):
        raise InvalidSetting(f"key_scope {key_scope!r} is neither 'waiting' nor 'live'")
    bound = check_duplicate(on_duplicate, at_most, has_key=key is not None, has_delay=delay is not None)
    level = None if priority is None else int(definitions.parse_priority(name, priority))
    is_forced = check_flag("force", force)
    since = None if delay is None else now
    return Request(
        name,
        payload,
        _due_at(now, at, delay),
        key,
        key_scope,
        level,
        is_forced,
        waits_since=since,
        on_duplicate=on_duplicate,
        at_most=bound,
    )


def read_payloads(payloads: Iterable[dict[str, Any] | None], code: tuple[Handler, dict[str, Any]] | None) -> list[str]:
    """Check the payloads of triggers as `read_request` does each; return them as `enqueue_many` takes them.

    Raises as `each_of`.
    """
    handler = None if code is None else code[0]
    has_own = False

    def read(payload: dict[str, Any] | None) -> str:
        nonlocal has_own
        if payload is not None:
            return read_payload(payload, handler)[1]
        if code is not None and not has_own:
            code[0].arguments(code[1])
        has_own = True
        return WORKERS_OWN

    return each_of(payloads, read)


def each_of(payloads: Iterable[dict[str, Any] | None], read: Callable[[dict[str, Any] | None], T]) -> list[T]:
    """Read each payload of several.

    Raises:
        InvalidPayload: one is no JSON object, too large, or does not fit the handler; the message says which.
        InvalidSetting: they are not several.
    """
    try:
        rest = iter(payloads)
    except TypeError:
        raise InvalidSetting(f"payloads must be several, such as a list of them, not {payloads!r}") from None
    done: list[T] = []
    for payload in rest:
        try:
            done.append(read(payload))
        except InvalidPayload as error:
            number = len(done) + 1
            raise InvalidPayload(f"payload {number} of {number + sum(1 for _ in rest)}: {error}") from None
    return done


def _due_at(now: datetime, at: datetime | None, delay: Seconds | None) -> datetime | None:
    if delay is None:
        return at
    try:
        seconds = read_seconds(delay)
    except InvalidSetting:
        raise InvalidSetting(
            f"delay must be a number of seconds, a timedelta or text such as '5m', not {delay!r}"
        ) from None
    if seconds < 0:
        raise InvalidSetting(f"delay must not be negative: {delay!r}; at names a time that has passed")
    try:
        due_at: datetime | None = now + timedelta(seconds=seconds)
    except OverflowError:
        due_at = None
    if due_at is None or not is_real_time(due_at):
        raise InvalidSetting(f"a delay of {seconds:g} s leads past the year 9999")
    return due_at
