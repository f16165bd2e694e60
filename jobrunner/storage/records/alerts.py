"""Incidents that arise in the transaction that causes them, and the messages of incidents.

Who writes an event (a dead letter, a circuit that opens or closes, a lost node) calls `arise` in the same transaction:
the incident and its first messages are there if, and only if, the event is. Without a rule that is one statement on an
empty table, asked only after an end that is no success. Incidents are written in the order of subject and kind, after
the locks of `worker_state`; so do all who write several, and none waits for another in a circle.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.model.alerts import AlertKind, AlertRule, Happened, MessageKind
from jobrunner.model.limits import MAX_BIG_COUNT
from jobrunner.model.run import EndsRun
from jobrunner.policy.alerts import together, wants
from jobrunner.policy.words import counted, first_line
from jobrunner.storage.database.rowsets import built_once
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.alert_tables import IS_OPEN

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.model.run import Run
    from jobrunner.policy.transitions import Finish
    from jobrunner.storage.database.dialect import Dialect

LONGEST_SUMMARY = 500


async def arise(conn: AsyncConnection, dialect: Dialect, happened: Sequence[Happened]) -> None:
    """Open an incident for what happened, or count it in the open one, and write to whom it is new."""
    if not happened:
        return
    rules = await read_rules(conn)
    wanted = [each for each in happened if any(wants(rule, each.kind, each.worker) for rule in rules)]
    messages = []
    for each, count, first_at in together(wanted):
        alert_id, is_new = await _note_incident(conn, dialect, each, count, first_at)
        if is_new:
            told = [rule.name for rule in rules if wants(rule, each.kind, each.worker)]
            messages += [message_row(alert_id, rule, MessageKind.OPEN, count, each.at) for rule in told]
    await write_messages(conn, dialect, messages)


async def _note_incident(
    conn: AsyncConnection, dialect: Dialect, what: Happened, count: int, first_at: datetime
) -> tuple[int, bool]:
    """Open an incident, or count `what` in the open one; return its id, and whether it is new."""
    alert_id, total = (await conn.execute(_upsert(dialect), _row(what, count, first_at))).one()
    return alert_id, total == count


async def open_incident(conn: AsyncConnection, dialect: Dialect, what: Happened) -> int | None:
    """Open an incident of something that lasts; return its id, or None if one is open."""
    a = t.alerts
    insert = dialect.insert(a).on_conflict_do_nothing(
        index_elements=[a.c.kind, a.c.subject], index_where=sa.text(IS_OPEN)
    )
    row = (await conn.execute(insert.returning(a.c.id), _row(what, 1, what.at))).first()
    return None if row is None else row.id


def _row(what: Happened, count: int, first_at: datetime) -> dict[str, Any]:
    return {
        "kind": str(what.kind),
        "worker": what.worker,
        "subject": what.subject,
        "opened_at": first_at,
        "last_at": what.at,
        "closed_at": what.at if what.kind is AlertKind.CLOSED else None,  # over as soon as it is told
        "count": count,
        "summary": what.summary[:LONGEST_SUMMARY],
        "detail": dict(what.detail),
    }


@built_once
def _upsert(dialect: Dialect) -> Any:
    a = t.alerts
    insert = dialect.insert(a)
    new = insert.excluded
    latest = sa.case((new.last_at > a.c.last_at, new.last_at), else_=a.c.last_at)
    # What was kept through an outage, or comes from another clock, may have happened before what is written already.
    earliest = sa.case((new.opened_at < a.c.opened_at, new.opened_at), else_=a.c.opened_at)
    # A count that was written by hand must not keep the end of a run from being written.
    most: sa.ColumnElement[int] = sa.literal_column(str(MAX_BIG_COUNT // 2))
    total = sa.case((a.c.count < most, a.c.count + new.count), else_=a.c.count)
    return insert.on_conflict_do_update(
        index_elements=[a.c.kind, a.c.subject],
        index_where=sa.text(IS_OPEN),
        set_={
            "count": total,
            "opened_at": earliest,
            "last_at": latest,
            "detail": new.detail,
            "clear_since": sa.null(),
        },
    ).returning(a.c.id, a.c.count)


def message_row(alert_id: int, rule: str, message: MessageKind, count: int, at: datetime) -> dict[str, Any]:
    """Build one `alert_deliveries` row, to be sent from `at` on."""
    return {
        "alert_id": alert_id,
        "rule": rule,
        "message": str(message),
        "idempotency_key": str(uuid.uuid4()),
        "count": count,
        "created_at": at,
        "next_at": at,
    }


async def write_messages(conn: AsyncConnection, dialect: Dialect, rows: Sequence[dict[str, Any]]) -> None:
    """Put messages into the outbox; one that is there is not put there twice."""
    if rows:
        await conn.execute(dialect.insert(t.alert_deliveries).on_conflict_do_nothing(), list(rows))


async def read_rules(conn: AsyncConnection) -> list[AlertRule]:
    """Return all rules, in the order of names."""
    r = t.alert_rules
    columns = (r.c.name, r.c.kinds, r.c.workers, r.c.channel, r.c.repeat_seconds, r.c.backlog_runs)
    return [rule_of(dict(row._mapping)) for row in await conn.execute(sa.select(*columns).order_by(r.c.name))]


def rule_of(row: Mapping[str, Any]) -> AlertRule:
    """Make a rule of its row; of kinds that this release does not know nothing is told."""
    known = {str(kind): kind for kind in AlertKind}
    given = row["kinds"] if isinstance(row["kinds"], list) else []
    kinds = frozenset(known[kind] for kind in given if isinstance(kind, str) and kind in known)
    channel = row["channel"] if isinstance(row["channel"], dict) else {}
    return AlertRule(row["name"], kinds, row["workers"], channel, row["repeat_seconds"], row["backlog_runs"])


def happened_at_ends(written: Iterable[tuple[Run, Finish]]) -> list[Happened]:
    """Return what of the ends of attempts opens incidents: dead letters, and circuits that open or close."""
    found = []
    for run, decided in written:
        if decided.has_letter:
            found.append(_letter(run, decided))
        for audit in decided.audits:
            kind = {"trip": AlertKind.TRIPPED, "close": AlertKind.CLOSED}.get(audit.action)
            if kind is not None:
                found.append(_switched(kind, run, decided, str(audit.detail["reason"])))
    return found


def _letter(run: Run, decided: Finish) -> Happened:
    outcome = decided.outcome
    after = "" if decided.ends_run is EndsRun.DISCARDED else f" after {counted(run.attempt, 'attempt')}"
    why = first_line(outcome.error or str(outcome.kind).replace("_", " "))
    named = f"{outcome.error_type}: {why}" if outcome.error_type else why
    summary = f"run {run.id} of {run.worker} was given up{after}: {named}"
    detail = {"run_id": run.id}
    return Happened(AlertKind.DEAD_LETTER, run.worker, run.worker, outcome.finished_at, summary, detail)


def _switched(kind: AlertKind, run: Run, decided: Finish, reason: str) -> Happened:
    what = "opened" if kind is AlertKind.TRIPPED else "closed"
    summary = f"the circuit of {run.worker} {what}: {reason}"
    return Happened(kind, run.worker, run.worker, decided.outcome.finished_at, summary, {"run_id": run.id})


def circuit_closed(worker: str, actor: str, at: datetime) -> Happened:
    """What an operator's `enable` of a worker is, whose circuit was open."""
    return Happened(AlertKind.CLOSED, worker, worker, at, f"the circuit of {worker} closed: {actor} enabled it")


def node_lost(node_id: str, hostname: str, pid: int, at: datetime, reason: str) -> Happened:
    """What the loss of a node is."""
    summary = f"node {node_id[:8]} on {hostname} (process {pid}) was lost: {reason}"
    return Happened(AlertKind.NODE_LOST, hostname, None, at, summary, {"node_id": node_id, "hostname": hostname})
