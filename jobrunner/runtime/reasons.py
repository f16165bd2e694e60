"""Why a switch is turned back: `enable` and `resume` change nothing but say it, so it stands in the audit log alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jobrunner.storage.records.history import storable

if TYPE_CHECKING:
    from jobrunner.policy.switches import Switched
    from jobrunner.storage.workers.switching import Before, Switch


def with_reason(switch: Switch, reason: str | None) -> Switch:
    """Return the switch with `reason` in what the audit log keeps of its turn; without one as it is."""
    said = storable(reason)
    if not said:
        return switch

    def turn(before: Before) -> tuple[Switched, dict[str, Any]]:
        switched, detail = switch.turn(before)
        return switched, {**detail, "reason": said}

    return replace(switch, turn=turn)
