"""What the API does: the verbs of the command line, through the same functions, with the same rows in the audit log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobrunner.errors import InvalidPayload, InvalidSetting, InvalidWorker, Refused, WorkerNotFound
from jobrunner.policy import definitions
from jobrunner.policy.hidden import MASK, restored, still_masked
from jobrunner.policy.near import did_you_mean
from jobrunner.storage import bulk
from jobrunner.storage.reading.hidden import read_hidden
from jobrunner.storage.reading.status import read_worker, require_workers
from jobrunner.storage.reading.traces import read_told
from jobrunner.storage.runs.dead_letters import read_letter
from jobrunner.web.access import Level
from jobrunner.web.answers import Forbidden
from jobrunner.web.api.reads import refuse_hidden

if TYPE_CHECKING:
    from jobrunner.policy.filters import Filter
    from jobrunner.storage.database.dialect import Dialect
    from jobrunner.storage.runs.transaction import AsyncConnection
    from jobrunner.web.api.ask import Ask

_TRIGGER_OPTIONS = ("at", "key", "key_scope", "priority", "force", "on_duplicate", "at_most")


async def enable(ask: Ask) -> dict[str, Any]:
    """`jobrunner admin enable`: zero the failure streak, close the circuit."""
    await ask.desk.require_schema()
    await ask.desk.orchestrator.enable_worker(ask.path["name"], ask.fields["reason"], actor=ask.actor)
    return await _standing(ask)


async def disable(ask: Ask) -> dict[str, Any]:
    """`jobrunner admin disable`: nothing starts until it is enabled; what runs may end."""
    await ask.desk.require_schema()
    await ask.desk.orchestrator.disable_worker(ask.path["name"], ask.fields["reason"], actor=ask.actor)
    return await _standing(ask)


async def pause(ask: Ask) -> dict[str, Any]:
    """`jobrunner admin pause`: for a time, until a time, or until it is resumed."""
    await ask.desk.require_schema()
    await ask.desk.orchestrator.pause_worker(
        ask.path["name"],
        ask.fields["for"],
        until=ask.fields["until"],
        reason=ask.fields["reason"],
        actor=ask.actor,
    )
    return await _standing(ask)


async def resume(ask: Ask) -> dict[str, Any]:
    """`jobrunner admin resume`: end its pause now."""
    await ask.desk.require_schema()
    await ask.desk.orchestrator.resume_worker(ask.path["name"], ask.fields["reason"], actor=ask.actor)
    return await _standing(ask)


async def trigger(ask: Ask) -> dict[str, Any]:
    """`jobrunner trigger`: make a run, now or later; with a key that another run has, that run."""
    name, payload = ask.path["name"], ask.fields["payload"]
    await ask.desk.require_schema()
    if payload is not None:
        payload = await _of_worker(ask, payload)
    options = {option: ask.fields[option] for option in _TRIGGER_OPTIONS}
    options |= {"delay": ask.fields["in"], "caller": ask.trace}
    run_id, is_new = await ask.desk.orchestrator.trigger_told(name, payload, **options)
    return {"run_id": run_id, "worker": name, "is_new": is_new}


async def set_values(ask: Ask) -> dict[str, Any]:
    """`jobrunner admin set`: lay values over what the code says; a deploy does not undo it."""
    values = ask.fields["values"]
    if not values:
        raise InvalidSetting('values names no field; send {"values": {"interval_seconds": 30}}')
    for field in values:
        if field not in definitions.OVERRIDABLE:  # before it becomes the name of an argument
            advice = did_you_mean(field, definitions.OVERRIDABLE)
            raise InvalidWorker(ask.path["name"], f"{field!r} cannot be set; {advice}")
    await ask.desk.require_schema()
    await ask.desk.orchestrator.set_override(ask.path["name"], actor=ask.actor, **values)
    return await _whole(ask)


async def unset_values(ask: Ask) -> dict[str, Any]:
    """`jobrunner admin unset`: the fields are again as the code says."""
    await ask.desk.require_schema()
    await ask.desk.orchestrator.unset_override(ask.path["name"], *ask.fields["fields"], actor=ask.actor)
    return await _whole(ask)


async def cancel(ask: Ask) -> dict[str, Any]:
    """`jobrunner admin cancel`: one that waits ends at once, one that runs is told to stop."""
    await ask.desk.require_schema()
    run = await ask.desk.orchestrator.cancel_run(ask.path["id"], ask.fields["reason"], actor=ask.actor)
    return {"run_id": run.id, "worker": run.worker, "state": run.state}


async def replay(ask: Ask) -> dict[str, Any]:
    """`jobrunner dead-letters replay`: a new run of it, with another payload if one is given."""
    letter_id, payload = ask.path["id"], ask.fields["payload"]
    await ask.desk.require_schema()
    if payload is not None and ask.level < Level.ADMIN:
        async with ask.desk.reading() as conn:
            letter = await read_letter(conn, letter_id)
            fields = (await read_hidden(conn, [letter["worker"]])).get(letter["worker"], ())
        payload = _unmasked(payload, letter["payload"], fields)
    run_id = await ask.desk.orchestrator.replay(letter_id, payload, actor=ask.actor)
    return {"letter_id": letter_id, "run_id": run_id}


async def discard(ask: Ask) -> dict[str, Any]:
    """`jobrunner dead-letters discard`: close it without running anything; it is kept."""
    await ask.desk.require_schema()
    await ask.desk.orchestrator.discard(ask.path["id"], actor=ask.actor)
    return {"letter_id": ask.path["id"], "run_id": None}


async def begin_bulk(ask: Ask) -> dict[str, Any]:
    """`jobrunner bulk cancel / replay / discard`: all that fit a filter; the nodes do it.

    With `dry_run` it is only said how many that are, and the newest are shown; `expected` is then what to send along.
    """
    action, text, expected = ask.fields["action"], ask.fields["filter"], ask.fields["expected"]
    async with ask.desk.database() as db:
        async with db.read() as conn:
            asked = bulk.read_filter(action, text, ask.now)
            await refuse_hidden(ask, conn, asked)
            if asked.payload and action != "cancel" and ask.level < Level.ADMIN:
                await _require_named(conn, db.dialect, asked)
        seen = await bulk.preview(db, action, text, ask.now)
        async with db.read() as conn:
            examples = await ask.shown(conn, seen.examples)
    found = {"action": action, "filter": text, "expected": seen.count}
    if ask.fields["dry_run"]:
        return {**found, "examples": examples}
    if expected is not None and expected != seen.count:
        raise Refused(f"{seen.count} fit now, not {expected}; look at them again (dry_run), then send that number")
    async with ask.desk.writing() as db:
        reason, rate = ask.fields["reason"], ask.fields["rate"]
        bulk_id = await bulk.begin(db, seen, ask.now, ask.actor, reason=reason, rate=rate)
    return await _operation(ask, bulk_id)


async def _require_named(conn: AsyncConnection, dialect: Dialect, asked: Filter) -> None:
    """Pass a search in letters' payloads that names workers which exist: what a removed one hid nobody knows.

    Raises:
        Forbidden: it may find letters of others.
        WorkerNotFound: there is no such worker.
    """
    if not asked.worker or any("*" in name for name in asked.worker):
        raise Forbidden("only an administrator may look into the letters of all workers; name them: worker:NAME")
    await require_workers(conn, dialect, asked.worker)


async def stop_bulk(ask: Ask) -> dict[str, Any]:
    """`jobrunner bulk stop`: what is done stays done."""
    async with ask.desk.writing() as db:
        await bulk.stop(db, ask.path["id"], ask.now, ask.actor)
    return await _operation(ask, ask.path["id"])


async def _operation(ask: Ask, bulk_id: int) -> dict[str, Any]:
    async with ask.desk.reading() as conn:
        return ask.published(await bulk.read_operation(conn, bulk_id))


async def _of_worker(ask: Ask, payload: dict[str, Any]) -> dict[str, Any]:
    """Put back what the worker's own payload hides from this one."""
    if ask.level >= Level.ADMIN:
        return payload
    try:
        async with ask.desk.reading() as conn:
            found = await read_worker(conn, ask.path["name"])
    except WorkerNotFound:  # the trigger says so, or registers it
        return payload
    return _unmasked(payload, found["payload"], tuple(map(str, found["hidden_fields"])))


def _unmasked(payload: dict[str, Any], stored: Any, fields: tuple[str, ...]) -> dict[str, Any]:
    whole = restored(payload, stored, fields)
    left = still_masked(whole, fields)
    if left is not None:
        raise InvalidPayload(f"{left} is {MASK}, as it is shown to who may not see it; give its value, or leave it out")
    return whole


async def _standing(ask: Ask) -> dict[str, Any]:
    """Return how the worker stands now, as `GET /api/workers` shows it."""
    async with ask.desk.database() as db, db.read() as conn:
        (row,) = await read_told(conn, db.dialect, ask.now, ask.path["name"])
    return row


async def _whole(ask: Ask) -> dict[str, Any]:
    """Return the worker with its definition; only an administrator asks for it."""
    async with ask.desk.reading() as conn:
        return await read_worker(conn, ask.path["name"])
