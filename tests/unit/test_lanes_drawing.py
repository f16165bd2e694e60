"""The lanes as a drawing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree

from jobrunner.policy.forecast import Expected
from jobrunner.policy.upcoming import Upcoming
from jobrunner.policy.zones import zone_of
from jobrunner.storage.reading.lanes import Lane, Span
from jobrunner.web.pages.lanes import Mark, Row, changes, draw, merged, past_marks, planned_mark

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
UTC_ZONE = zone_of("UTC")


def planned(due: datetime | None = NOW + HOUR, starts: datetime | None = None, until=NOW + 24 * HOUR, **more):
    expected = Expected(starts, more.get("why"))
    return planned_mark(Upcoming("a", due, "UTC", more.get("note")), expected, more.get("usual"), until, NOW)


def classes(drawing: str) -> list[str]:
    return [each.get("class", "") for each in ElementTree.fromstring(drawing).iter()]


def test_a_start_on_time_is_as_long_as_usual():
    mark = planned(starts=NOW + HOUR, usual=timedelta(minutes=5))
    assert mark == Mark("starts", NOW + HOUR, NOW + HOUR + timedelta(minutes=5))


def test_a_start_later_than_planned_keeps_its_planned_time_and_says_why():
    mark = planned(starts=NOW + 2 * HOUR, note="DST ends", why="waits for b")
    assert mark == Mark("late", NOW + 2 * HOUR, NOW + 2 * HOUR, "DST ends; waits for b", 1, NOW + HOUR)


def test_what_was_played_and_does_not_start_differs_from_what_was_not_played():
    played, not_played = planned(), planned(until=NOW)
    assert (played and played.kind, not_played and not_played.kind) == ("not", "plan")
    assert planned(due=None) is None


def test_what_is_due_already_is_drawn_now():
    mark = planned(due=NOW - HOUR, starts=NOW)
    assert mark == Mark("starts", NOW, NOW)


def test_what_began_before_the_time_shown_is_cut_and_what_ended_before_it_left_out():
    lane = Lane(
        [Span("succeeded", NOW - 9 * HOUR, NOW - 8 * HOUR, 1), Span("failed", NOW - 7 * HOUR, NOW - 5 * HOUR, 2)]
    )
    (mark,) = past_marks(lane, NOW - 6 * HOUR)
    assert (mark.kind, mark.begins_at, mark.ends_at) == ("failed", NOW - 6 * HOUR, NOW - 5 * HOUR)


def test_neighbours_of_one_kind_are_one_mark_and_counted():
    marks = [Mark("succeeded", NOW + timedelta(seconds=n), NOW + timedelta(seconds=n), f"run {n}") for n in range(60)]
    found = merged(
        [*marks, Mark("failed", NOW + timedelta(seconds=30), NOW + timedelta(seconds=31))], timedelta(minutes=3)
    )
    assert [(mark.kind, mark.count) for mark in found] == [("succeeded", 60), ("failed", 1)]


def test_the_drawing_of_a_busy_lane_is_small():
    marks = [Mark("starts", NOW + timedelta(seconds=n), NOW + timedelta(seconds=n)) for n in range(20_000)]
    assert len(draw([Row("busy", marks)], NOW - 6 * HOUR, NOW, NOW + 24 * HOUR, UTC_ZONE)) < 8_000


def test_each_kind_has_a_shape_of_its_own():
    def shape(kind: str) -> list[tuple[str, str, str | None]]:
        mark = Mark(kind, NOW + HOUR, NOW + 2 * HOUR, "", 1, NOW if kind == "late" else None)
        tree = ElementTree.fromstring(draw([Row("a", [mark])], NOW, NOW, NOW + 24 * HOUR, UTC_ZONE))
        shapes = [(each.tag, each.get("height")) for each in tree.iter() if each.get("class") not in {"axis", None}]
        return [(tag.rpartition("}")[2], str(height), None) for tag, height in shapes]

    kinds = ("succeeded", "failed", "late", "not")
    assert len({str(shape(kind)) for kind in kinds}) == len(kinds)
    hollow = classes(draw([Row("a", [Mark("plan", NOW, NOW + HOUR)])], NOW, NOW, NOW + 24 * HOUR, UTC_ZONE))
    assert "hollow" in hollow


def test_a_change_of_the_clock_is_marked_once_for_each_time_with_its_zones():
    start = datetime(2026, 3, 28, 12, 0, tzinfo=UTC)
    found = changes(start, start + 24 * HOUR, ["Europe/Berlin", "Europe/Paris", "UTC", "no/zone", "America/New_York"])
    assert found == [(datetime(2026, 3, 29, 1, 0, tzinfo=UTC), "DST starts: Europe/Berlin, Europe/Paris")]
    drawing = draw([Row("a")], start, start, start + 24 * HOUR, UTC_ZONE, ["Europe/Berlin"])
    assert "DST starts: Europe/Berlin" in drawing
    assert "change" in classes(drawing)
    assert "change" not in classes(draw([Row("a")], start, start, start + HOUR, UTC_ZONE, ["Europe/Berlin"]))


def test_hostile_names_and_notes_are_text():
    rows = [Row("<script>x</script>", [Mark("late", NOW, NOW, "<b>&\"'")], "</svg>")]
    tree = ElementTree.fromstring(draw(rows, NOW, NOW, NOW + HOUR, UTC_ZONE))
    assert not {each.tag.rpartition("}")[2] for each in tree.iter()} - {"svg", "rect", "line", "text", "title"}


def test_hours_are_named_in_the_zone_of_the_axis():
    berlin = draw([Row("a")], NOW, NOW, NOW + 6 * HOUR, zone_of("Europe/Berlin"))
    assert ">13:00<" in berlin
    assert ">12:00<" not in berlin
