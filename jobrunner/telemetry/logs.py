"""One log line an event, on the logger `jobrunner`."""

from __future__ import annotations

import logging

from jobrunner.model.run import OutcomeKind
from jobrunner.telemetry import events as e

logger = logging.getLogger("jobrunner")


def log_event(event: e.Event) -> None:
    """Write the line of `event`."""
    match event:
        case e.RunStarted(run):
            logger.debug("%s: run %d started, attempt %d", run.worker, run.id, run.attempt)
        case e.RunEnded():
            _log_end(event)
        case e.RunTakenAway(run):
            logger.warning("%s: run %d was taken away meanwhile; its outcome here is not written", run.worker, run.id)
        case e.CircuitOpened(state):
            logger.error("%s: disabled: %s", state.worker, state.disabled_reason)
        case e.NodeStarted(node_id, workers, database):
            logger.info("node %s runs %d workers on %s", node_id[:8], workers, database)
        case e.NodeDraining(node_id, running, seconds):
            logger.info("node %s drains: %d running, at most %g s", node_id[:8], running, seconds)
        case e.NodeStopped(node_id, left_behind):
            said = f"; {left_behind} runs had not ended" if left_behind else ""
            logger.info("node %s stopped%s", node_id[:8], said)
        case e.DatabaseLost(error):
            logger.error("the database is away; running work goes on, outcomes are kept: %s", error)
        case e.DatabaseBack(seconds):
            logger.info("the database is back after %.1f s", seconds)
        case e.NodeLost(node_id, reason):
            logger.warning("node %s is lost (%s); its runs are rescued", node_id[:8], reason)
        case e.Warned(message):
            logger.warning("%s", message)


def _log_end(event: e.RunEnded) -> None:
    run, outcome = event.run, event.outcome
    took = "" if outcome.duration_ms is None else f" in {outcome.duration_ms} ms"
    line = f"{run.worker}: run {run.id} {str(outcome.kind).replace('_', ' ')}{took}"
    if outcome.kind is OutcomeKind.SUCCEEDED:
        logger.info("%s", line)
        return
    why = outcome.error or outcome.reason
    if why:
        named = f"{outcome.error_type}: {why}" if outcome.error_type else why
        line += f" ({named.splitlines()[0][:200]})"
    if event.retry_at is not None:
        line += f"; again at {event.retry_at}"
    elif event.ends_run not in {None, "cancelled"}:
        line += f"; {event.ends_run}, kept as a dead letter"
    logger.warning("%s", line)
