"""When a worker would run first, if somebody enabled it now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobrunner.policy import switches
from jobrunner.storage.reading.status import state_in
from jobrunner.storage.tables.rows import CONFIG_FIELDS, config_or_problem

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime


def with_next_once_enabled(row: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Return a row of `read_worker` with `next_once_enabled`, the next time that enabling it now would set.

    None where it has none (triggered, paused until resumed), is enabled already, or its rows cannot be read.
    """
    state = state_in(row)
    config, problem = config_or_problem([row[field] for field in CONFIG_FIELDS])
    if state is None or state.is_enabled or problem is not None:
        return {**row, "next_once_enabled": None}
    after, _ = switches.enable(state, config, now)
    return {**row, "next_once_enabled": after.next_run_at}
