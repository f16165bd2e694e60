"""A decision of the audit log in words: what was done, before and after the worker's name. Pure.

The log's detail is a document that programs wrote, and that anybody with a shell of the database may have changed: what
is not as it should be is left out, and stands in the detail.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from jobrunner.policy.words import counted, some_of

if TYPE_CHECKING:
    from collections.abc import Mapping

_FAR = 9000
_LONGEST = 300


@dataclass(frozen=True, slots=True)
class Deed:
    """What was done: `before` the worker's name, and `after` it."""

    before: str
    after: str = ""

    def told(self, worker: str | None) -> str:
        """Return it as a sentence without a subject; a deed that is of no worker says so by itself."""
        if worker is None:
            return f"{self.before.removesuffix(' of')}{self.after}"
        return f"{self.before} {worker}{self.after}"


_PLAIN = {
    "enable": "enabled",
    "disable": "disabled",
    "resume": "resumed",
    "add": "added",
    "remove": "removed",
    "close": "closed the circuit of",
}


def tell_deed(action: str, detail: Any) -> Deed:
    """Return in words what an entry of the log says was done."""
    said: Mapping[str, Any] = detail if isinstance(detail, dict) else {}
    if action in _PLAIN:
        return Deed(_PLAIN[action], _because(said))
    tell = _TELLERS.get(action)
    return Deed(action.replace("_", " ")) if tell is None else tell(said)


def _because(said: Mapping[str, Any]) -> str:
    reason = said.get("reason")
    return f": {_short(reason)}" if reason else ""


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _moment(value: Any) -> str:
    try:
        moment = datetime.fromisoformat(str(value)).astimezone(UTC)
    except (ValueError, OverflowError):
        return _short(value)
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _pause(said: Mapping[str, Any]) -> Deed:
    until = str(said.get("until") or "")
    is_far = until[:4].isdigit() and int(until[:4]) >= _FAR
    so_long = " until it is resumed" if is_far or not until else f" until {_moment(until)}"
    return Deed("paused", so_long + _because(said))


def _fields(said: Mapping[str, Any]) -> str:
    old, new = ({} if not isinstance(said.get(key), dict) else said[key] for key in ("old", "new"))
    changes = [
        f"{name} from {_value(old.get(name))} to {_value(new.get(name))}"
        for name in sorted(old.keys() | new.keys(), key=str)
        if old.get(name) != new.get(name)
    ]
    return some_of(changes, 4)


def _value(value: Any) -> str:
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    text = "nothing" if value is None else str(whole)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _set(said: Mapping[str, Any]) -> Deed:
    changes = _fields(said)
    return Deed("changed", f": {changes}" if changes else "")


def _unset(said: Mapping[str, Any]) -> Deed:
    changes = _fields(said)
    return Deed("took back what was set of", f": {changes}" if changes else "")


def _trip(said: Mapping[str, Any]) -> Deed:
    return Deed("opened the circuit of", _because(said))


def _probe(said: Mapping[str, Any]) -> Deed:
    return Deed("let a probe through of", f", run {_short(said['run_id'])}" if "run_id" in said else "")


def _cancel(said: Mapping[str, Any]) -> Deed:
    state = " while it ran" if said.get("state") in {"running", "stopping"} else " before it ran"
    return Deed(f"cancelled run {_short(said.get('run_id', '?'))} of", state + _because(said))


def _replay(said: Mapping[str, Any]) -> Deed:
    edited = ", with another payload" if said.get("is_edited") else ""
    letter, run = (_short(said.get(key, "?")) for key in ("letter_id", "run_id"))
    return Deed(f"replayed letter {letter} of", f" as run {run}{edited}")


def _discard(said: Mapping[str, Any]) -> Deed:
    return Deed(f"discarded letter {_short(said.get('letter_id', '?'))} of")


def _node_lost(said: Mapping[str, Any]) -> Deed:
    node, host, pid = (_short(said.get(key, "?")) for key in ("node_id", "hostname", "pid"))
    return Deed(f"declared node {node[:8]} lost ({host}, process {pid}){_because(said)}")


def _clock(said: Mapping[str, Any]) -> Deed:
    seconds = said.get("seconds")
    by = f" by {abs(seconds):g} s" if isinstance(seconds, int | float) else ""
    way = "forward" if isinstance(seconds, int | float) and seconds > 0 else "back"
    was, new = _moment(said.get("was", "?")), _moment(said.get("said", "?"))
    return Deed(
        f"noted that the clock of node {_short(said.get('node_id', '?'))[:8]} was set {way}{by}: {was} to {new}"
    )


def _bulk(said: Mapping[str, Any]) -> Deed:
    number = _short(said.get("bulk_id", "?"))
    if "filter" not in said:
        done = said.get("done")
        told = f": {done:,} were done" if isinstance(done, int) else ""
        return Deed(f"ended bulk operation {number} ({_short(said.get('state', '?'))}){told}")
    expected = said.get("expected")
    many = f", {counted(expected, 'row')}" if isinstance(expected, int) else ""
    what = f"{_short(said.get('action', '?'))} of all that fit {_short(said['filter']) or 'no filter'}"
    return Deed(f"began bulk operation {number}: {what}{many}{_because(said)}")


def _upgrade(said: Mapping[str, Any]) -> Deed:
    return Deed("upgraded the database's schema", _because(said))


def _alert_add(said: Mapping[str, Any]) -> Deed:
    kinds = said.get("kinds")
    of = f" for {some_of([str(kind) for kind in kinds], 4)}" if isinstance(kinds, list) else ""
    return Deed(f"added the alert rule {_short(said.get('name', '?'))}{of}")


def _alert_remove(said: Mapping[str, Any]) -> Deed:
    dropped = said.get("dropped")
    lost = f"; {counted(dropped, 'message')} that waited went with it" if isinstance(dropped, int) and dropped else ""
    return Deed(f"removed the alert rule {_short(said.get('name', '?'))}{lost}")


def _limit_set(said: Mapping[str, Any]) -> Deed:
    name, changes = _short(said.get("limit", "?")), _fields(said)
    made = "made" if said.get("is_new") else "changed"
    return Deed(f"{made} the limit {name}" + (f": {changes}" if changes else "") + _because(said))


def _limit_unset(said: Mapping[str, Any]) -> Deed:
    name, changes = _short(said.get("limit", "?")), _fields(said)
    return Deed(f"took back what was set of the limit {name}" + (f": {changes}" if changes else "") + _because(said))


_TELLERS = {
    "pause": _pause,
    "set": _set,
    "unset": _unset,
    "trip": _trip,
    "probe": _probe,
    "cancel": _cancel,
    "replay": _replay,
    "discard": _discard,
    "node_lost": _node_lost,
    "clock": _clock,
    "bulk": _bulk,
    "upgrade": _upgrade,
    "alert_add": _alert_add,
    "alert_remove": _alert_remove,
    "limit_set": _limit_set,
    "limit_unset": _limit_unset,
}
