"""One log record an event, on the logger `jobrunner`: a line of text, and the event's fields as `extra`."""

from __future__ import annotations

import logging

from jobrunner.model.run import OutcomeKind
from jobrunner.policy.words import counted, show_time
from jobrunner.telemetry import events as e
from jobrunner.telemetry.event_fields import fields_of

logger = logging.getLogger("jobrunner")


def log_event(event: e.Event) -> None:
    """Write the line of `event`."""
    if isinstance(event, e.Timed):
        return  # for who counts
    if isinstance(event, e.RunStarted) and not logger.isEnabledFor(logging.DEBUG):
        return  # once a run: even finding out what to say costs
    if isinstance(event, e.RunEnded):
        _log_end(event)
    elif isinstance(event, e.NodeCrashed):
        said = "node %s stops: a bug in it, or a damaged database"
        logger.critical(said, event.node_id[:8], exc_info=event.error, extra=fields_of(event))
    else:
        level, line = _line(event)
        if logger.isEnabledFor(level):
            logger.log(level, "%s", line, extra=fields_of(event))


def _line(event: e.Event) -> tuple[int, str]:  # noqa: C901 - one case an event, each a line
    match event:
        case e.RunStarted(run):
            return logging.DEBUG, f"{run.worker}: run {run.id} started, attempt {run.attempt}"
        case e.RunTakenAway(run):
            return logging.WARNING, f"{run.worker}: run {run.id} was taken away; its outcome here is not written"
        case e.CircuitOpened(state):
            return logging.ERROR, f"{state.worker}: disabled: {state.disabled_reason}"
        case e.NodeStarted(node_id, workers, database):
            return logging.INFO, f"node {node_id[:8]} runs {counted(workers, 'worker')} on {database}"
        case e.NodeDraining(node_id, running, seconds):
            return logging.INFO, f"node {node_id[:8]} drains: {running} running, at most {seconds:g} s"
        case e.NodeStopped(node_id, left_behind):
            said = f"; {counted(left_behind, 'run')} had not ended" if left_behind else ""
            return logging.INFO, f"node {node_id[:8]} stopped{said}"
        case e.DatabaseLost(error):
            return logging.ERROR, f"the database is away; running work goes on, outcomes are kept: {error}"
        case e.DatabaseBack(seconds):
            return logging.INFO, f"the database is back after {seconds:.1f} s"
        case e.NodeLost(node_id, reason):
            return logging.WARNING, f"node {node_id[:8]} is lost ({reason}); its runs are rescued"
        case e.LoopBlocked(seconds, workers):
            code = f"the code of {'one of ' * (len(workers) > 1)}{', '.join(workers)}"
            said = "nothing else of this node goes on meanwhile; make it a def, or let a thread do what blocks"
            return logging.WARNING, f"the event loop has been blocked for {seconds:.1f} s by {code}: {said}"
        case e.Warned(message):
            return logging.WARNING, message
        case _:
            return logging.DEBUG, repr(event)


def _log_end(event: e.RunEnded) -> None:
    run, outcome = event.run, event.outcome
    if outcome.kind is OutcomeKind.SUCCEEDED and not logger.isEnabledFor(logging.INFO):
        return
    took = "" if outcome.duration_ms is None else f" in {outcome.duration_ms} ms"
    line = f"{run.worker}: run {run.id} {str(outcome.kind).replace('_', ' ')}{took}"
    if outcome.kind is OutcomeKind.SUCCEEDED:
        logger.info("%s", line, extra=fields_of(event))
        return
    why = outcome.error or outcome.reason
    if why:
        named = f"{outcome.error_type}: {why}" if outcome.error_type else why
        line += f" ({named.splitlines()[0][:200]})"
    if event.retry_at is not None and event.retry_at <= outcome.finished_at:
        line += "; again as soon as may be"
    elif event.retry_at is not None:
        line += f"; again at {show_time(event.retry_at, event.timezone)}"
    elif event.ends_run not in {None, "cancelled"}:
        line += f"; {event.ends_run}, kept as a dead letter"
    logger.warning("%s", line, extra=fields_of(event))
