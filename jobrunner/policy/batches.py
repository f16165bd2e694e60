"""Batches: what follows when members have ended. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

ON_SUCCESS, ON_FAILURE, ON_FINISH = "on_success", "on_failure", "on_finish"
FIELD = "batch_id"
"""The field of a callback's payload that names its batch."""


@dataclass(frozen=True, slots=True)
class BatchFacts:
    """A batch that has not finished, its row locked."""

    sealed_at: datetime | None
    failed_at: datetime | None
    has_live: bool
    has_failed: bool
    """A member is known to have ended otherwise than well."""


@dataclass(frozen=True, slots=True)
class BatchMoves:
    """What happens to a batch: whether it fails, whether it finishes, and what is called, in this order."""

    fails: bool = False
    finishes: bool = False
    calls: tuple[str, ...] = ()


def move(facts: BatchFacts) -> BatchMoves:
    """Decide what follows for a batch: it fails once, and finishes once."""
    fails = facts.has_failed and facts.failed_at is None
    finishes = facts.sealed_at is not None and not facts.has_live
    calls: tuple[str, ...] = (ON_FAILURE,) if fails else ()
    if finishes:
        is_good = not fails and facts.failed_at is None
        calls += (ON_SUCCESS, ON_FINISH) if is_good else (ON_FINISH,)
    return BatchMoves(fails, finishes, calls)


def state_of(row: Mapping[str, Any]) -> str:
    """Say how a batch stands: `open`, `sealed`, or it has `finished` or `failed`. One that fails may still be open."""
    if row["finished_at"] is not None:
        return "finished" if row["failed_at"] is None else "failed"
    return "open" if row["sealed_at"] is None else "sealed"


def callback_payload(
    batch_id: int, given: Mapping[str, Any], own: Mapping[str, Any], schema: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the payload of a callback: the batch's, or if that is empty the worker's own, and the batch's id.

    Without the id where the handler's `schema` takes named fields only, and it is none of these.
    """
    payload = dict(given or own)
    is_closed = schema.get("additionalProperties") is False
    if not is_closed or FIELD in schema.get("properties", {}):
        payload[FIELD] = batch_id
    return payload


def why_open(row: Mapping[str, Any]) -> str | None:
    """Say why a batch has not finished: `live` members, or a worker that it calls and that is `unknown`."""
    if row["finished_at"] is not None:
        return None
    if row["sealed_at"] is None:
        return f"batch {row['id']} is not sealed"
    if row["live"]:
        return "not all of its members have ended"
    if row["unknown"] is not None:
        return f"it calls worker {row['unknown']!r}, which is not in the database"
    return "it is about to finish"
