"""The rights that a PostgreSQL role needs, as GRANT statements: no more than its purpose asks for.

What a client may say of a run is granted by column: INSERT on all of `runs` would let it claim to be a program of ours
(`is_ours`), and then force runs past all gates. Views need no right on what they show. Whatever triggers of the schema
read (the worker's priority), they read as who enqueues.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from jobrunner.storage.schema.parts import VIEWS
from jobrunner.storage.schema.revisions import VERSION_TABLE
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.claims import claims

if TYPE_CHECKING:
    from collections.abc import Iterator

SAID_BY_CLIENTS = (
    "worker",
    "payload",
    "priority",
    "due_at",
    "scheduled_for",
    "key",
    "key_scope",
    "waits_since",
    "trace_context",
    "limit_key",
    "batch_id",
    "flow_id",
    "step",
)
_SEEN_BY_CLIENTS = ("id", "worker", "key", "key_scope", "first_started_at")
_READ_OF_WORKERS = ("name", "priority", "payload", "payload_schema", "limit_key")
_GIVEN_TO_A_BATCH = ("on_success", "on_failure", "on_finish", "payload", "created_by", "sealed_at")
_CHANGED_BY_OPERATORS = (
    "workers",
    "worker_dependencies",
    "worker_blocks",
    "worker_limits",
    "limits",
    "batches",
    "run_after",
    "worker_state",
    "runs",
    "dead_letters",
    "claims",
    "alert_rules",
    "alerts",
    "alert_deliveries",
    "bulk_operations",
)
_WRITTEN_BY_OPERATORS = ("run_history", "audit_log")
_MADE_SMALL_BY_NODES = ("claims", "worker_state")


class Purpose(StrEnum):
    """What a role is for; each but the first includes the one before it."""

    TRIGGER = "trigger"
    READ = "read"
    OPERATE = "operate"
    NODE = "node"


def grants(database: str, schema: str, role: str, purpose: Purpose) -> list[str]:
    """Return the statements that give `role` what it needs for `purpose`, for the owner of the schema to run."""
    to = f"TO {quoted(role)}"
    rights = [*_rights(quoted(schema), purpose)]
    if purpose is Purpose.NODE:  # for the fast path; everybody has it, unless it was revoked
        rights.append(f"TEMPORARY ON DATABASE {quoted(database)}")
    return [f"GRANT {right} {to};" for right in rights]


def quoted(name: str) -> str:
    """Write a name as PostgreSQL reads it, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def _rights(schema: str, purpose: Purpose) -> Iterator[str]:
    def on(*names: str) -> str:
        return ", ".join(f"{schema}.{name}" for name in names)

    yield f"USAGE ON SCHEMA {schema}"
    if purpose is Purpose.TRIGGER:
        yield f"INSERT ({', '.join(SAID_BY_CLIENTS)}) ON {on('runs')}"
        yield f"SELECT ({', '.join(_SEEN_BY_CLIENTS)}) ON {on('runs')}"
        yield f"SELECT ({', '.join(_READ_OF_WORKERS)}) ON {on('workers')}"
        yield f"SELECT, INSERT ({', '.join(_GIVEN_TO_A_BATCH)}), UPDATE (sealed_at) ON {on('batches')}"
        yield f"INSERT ON {on('run_after')}"
        return
    every_table = [table.name for table in (*t.metadata.sorted_tables, claims)]
    yield f"SELECT ON {on(*every_table, *VIEWS, VERSION_TABLE)}"
    if purpose is Purpose.READ:
        return
    changed = every_table if purpose is Purpose.NODE else _CHANGED_BY_OPERATORS
    yield f"INSERT, UPDATE, DELETE ON {on(*(name for name in changed if name not in _WRITTEN_BY_OPERATORS))}"
    yield f"INSERT{', DELETE' * (purpose is Purpose.NODE)} ON {on(*_WRITTEN_BY_OPERATORS)}"
    if purpose is Purpose.NODE:
        yield f"TRUNCATE ON {on(*_MADE_SMALL_BY_NODES)}"
