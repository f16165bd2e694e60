"""`policy.cron` against an oracle that knows nothing of transitions: it watches the clock on the wall each minute.

The oracle is written from the contract's sentence alone: "A fixed-time entry in a skipped hour runs once right after
the gap, in a repeated hour once, the first time; wildcard entries follow the wall clock." It shares no code with
jobrunner and does not use cronsim.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from jobrunner.errors import InvalidSchedule
from jobrunner.policy import cron

MINUTE = timedelta(minutes=1)
LEAD = timedelta(hours=26)  # the oracle watches so long before it answers, to know what the clock has shown
LENGTH = timedelta(days=2)
ZONES = [
    "UTC",
    "Europe/Berlin",
    "Europe/Dublin",  # winter time is the exception there
    "America/New_York",
    "America/Havana",  # changes at midnight
    "America/Santiago",  # southern, changes at midnight
    "Australia/Lord_Howe",  # half an hour
    "Africa/Casablanca",  # follows Ramadan
    "Asia/Kolkata",
    "Pacific/Chatham",  # changes at 2:45
]


# --- the oracle


@dataclass(frozen=True)
class Field:
    text: str
    values: frozenset[int]

    @property
    def has_star(self) -> bool:
        return self.text.startswith("*")


@dataclass(frozen=True)
class Entry:
    minute: Field
    hour: Field
    day: Field
    month: Field
    weekday: Field

    @property
    def expression(self) -> str:
        return " ".join(field.text for field in (self.minute, self.hour, self.day, self.month, self.weekday))

    @property
    def is_fixed(self) -> bool:
        return not self.minute.has_star and not self.hour.has_star

    def names(self, wall: datetime) -> bool:
        if wall.minute not in self.minute.values or wall.hour not in self.hour.values:
            return False
        day, weekday = (
            wall.day in self.day.values,
            wall.isoweekday() % 7 in {value % 7 for value in self.weekday.values},
        )
        is_day = (day and weekday) if self.day.has_star or self.weekday.has_star else (day or weekday)
        return is_day and wall.month in self.month.values


def watch(zone: ZoneInfo, start: datetime, end: datetime) -> list[tuple[datetime, datetime]]:
    """Return each minute and what the clock shows at it."""
    minutes = int((end - start) / MINUTE) + 1
    instants = [start + MINUTE * number for number in range(minutes)]
    return [(instant, instant.astimezone(zone).replace(tzinfo=None)) for instant in instants]


def oracle(entry: Entry, zone: ZoneInfo, start: datetime, end: datetime) -> list[datetime]:
    """Return the minutes in (start, end] at which the entry fires."""
    shown: set[datetime] = set()
    fired: list[datetime] = []
    before: datetime | None = None
    for instant, wall in watch(zone, start - LEAD, end):
        fires = entry.names(wall) and not (entry.is_fixed and wall in shown)
        if entry.is_fixed and before is not None:
            skipped = before + MINUTE
            while skipped < wall and not fires:
                fires = entry.names(skipped)
                skipped += MINUTE
        if fires and instant > start:
            fired.append(instant)
        shown.add(wall)
        before = wall
    return fired


# --- what is drawn


@lru_cache
def changes(timezone: str) -> list[datetime]:
    """Return the hours of 2024 to 2027 within which the zone's offset changes."""
    zone, hour = ZoneInfo(timezone), datetime(2024, 1, 1, tzinfo=UTC)
    found: list[datetime] = []
    while hour.year < 2028:
        following = hour + timedelta(hours=1)
        if hour.astimezone(zone).utcoffset() != following.astimezone(zone).utcoffset():
            found.append(hour)
        hour = following
    return found


def star(low: int, high: int) -> st.SearchStrategy[Field]:
    steps = st.integers(2, high).map(lambda step: Field(f"*/{step}", frozenset(range(low, high + 1, step))))
    return st.just(Field("*", frozenset(range(low, high + 1)))) | steps


@st.composite
def listed(draw: st.DrawFn, low: int, high: int, common: tuple[int, ...] = ()) -> Field:
    texts, values = [], set()
    number = st.sampled_from(common) | st.integers(low, high) if common else st.integers(low, high)
    for _ in range(draw(st.integers(1, 3))):
        first, last = sorted((draw(number), draw(number)))
        step = draw(st.sampled_from([1, 1, 2, 7]))
        if draw(st.booleans()):
            texts.append(str(first))
            values.add(first)
        elif first < last:
            texts.append(f"{first}-{last}" + (f"/{step}" if step > 1 else ""))
            values.update(range(first, last + 1, step))
        else:
            texts.append(f"{first}-{first}")
            values.add(first)
    return Field(",".join(texts), frozenset(values))


ANY_DAY, ANY_MONTH, ANY_WEEKDAY = (Field("*", frozenset(range(low, high))) for low, high in ((1, 32), (1, 13), (0, 8)))
entries = st.builds(
    Entry,
    listed(0, 59, (0, 15, 30, 45)) | star(0, 59),
    listed(0, 23, (0, 1, 2, 3)) | star(0, 23),
    st.just(ANY_DAY) | st.just(ANY_DAY) | listed(1, 31) | star(1, 31),
    st.just(ANY_MONTH) | st.just(ANY_MONTH) | listed(1, 12),
    st.just(ANY_WEEKDAY) | st.just(ANY_WEEKDAY) | listed(0, 7),
)


@st.composite
def starts(draw: st.DrawFn, timezone: str) -> datetime:
    """Draw a start from which a transition is often not far."""
    anywhere = st.datetimes(datetime(2024, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
    near = changes(timezone)
    if not near or draw(st.integers(0, 9)) == 0:
        return draw(anywhere).replace(second=0, microsecond=0)
    return draw(st.sampled_from(near)) + MINUTE * draw(st.integers(-36 * 60, 120))


cases = st.sampled_from(ZONES).flatmap(lambda name: st.tuples(st.just(name), starts(name)))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def fixed(minute: int, hour: int) -> Entry:
    return Entry(
        Field(f"{minute}", frozenset({minute})), Field(f"{hour}", frozenset({hour})), ANY_DAY, ANY_MONTH, ANY_WEEKDAY
    )


# --- what is claimed


@settings(deadline=None, max_examples=250)
@given(entries, cases)
@example(fixed(30, 2), ("Europe/Berlin", at("2026-03-28T12:00")))
@example(fixed(30, 2), ("Europe/Berlin", at("2026-10-24T12:00")))
@example(fixed(15, 2), ("Australia/Lord_Howe", at("2026-10-03T03:00")))
@example(fixed(45, 1), ("Australia/Lord_Howe", at("2026-04-04T03:00")))
@example(fixed(0, 0), ("America/Havana", at("2026-03-07T12:00")))
def test_cron_fires_when_the_minute_by_minute_oracle_says(entry: Entry, case: tuple[str, datetime]) -> None:
    timezone, start = case
    try:
        cron.check_expression(entry.expression, timezone)
    except InvalidSchedule:
        assume(False)  # such as 31 February
    expected = oracle(entry, ZoneInfo(timezone), start, start + LENGTH)
    found: list[datetime] = []
    instant = start
    while (instant := cron.next_after(entry.expression, timezone, instant)) <= start + LENGTH:
        found.append(instant)
        assert len(found) <= len(expected), "a time too many"
    assert found == expected


@settings(deadline=None, max_examples=150)
@given(entries, cases, st.timedeltas(timedelta(), LENGTH))
def test_from_any_instant_the_neighbours_are_those_of_the_oracle(
    entry: Entry, case: tuple[str, datetime], later: timedelta
) -> None:
    timezone, start = case
    try:
        cron.check_expression(entry.expression, timezone)
    except InvalidSchedule:
        assume(False)
    instant = start + later
    expected = oracle(entry, ZoneInfo(timezone), start, start + LENGTH)
    following = cron.next_after(entry.expression, timezone, instant)
    previous = cron.previous_at_or_before(entry.expression, timezone, instant)
    assert following > instant
    assert previous is not None
    assert previous <= instant
    assert next((time for time in expected if time > instant), None) == (
        following if following <= start + LENGTH else None
    )
    assert next((time for time in reversed(expected) if time <= instant), None) == (
        previous if previous > start else None
    )


@settings(deadline=None, max_examples=300)
@given(
    st.text(alphabet="0123456789*/,-LW# \t@MONFEBx?", max_size=30)
    | st.lists(st.text(alphabet="0159*/,-LW#JANSUN", min_size=1, max_size=6), min_size=5, max_size=5).map(" ".join)
    | st.text(),
    st.sampled_from(ZONES) | st.text(),
)
def test_any_text_is_an_expression_or_one_line_of_refusal(expression: str, timezone: str) -> None:
    instant = datetime(2026, 3, 29, 0, 30, tzinfo=UTC)
    try:
        cron.check_expression(expression, timezone)
    except InvalidSchedule as refusal:
        assert len(str(refusal).splitlines()) == 1
    else:
        following = cron.next_after(expression, timezone, instant)
        assert following > instant
        assert cron.previous_at_or_before(expression, timezone, following) == following
