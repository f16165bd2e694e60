"""What registering a worker makes of its options, and refuses."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from jobrunner.errors import InvalidPayload, InvalidSetting, InvalidWorker
from jobrunner.model.worker import Dependency, Isolation, WorkerConfig, WorkerExecutionMode
from jobrunner.policy.near import near_name
from jobrunner.runtime import logs
from jobrunner.runtime.executors.process import importable
from jobrunner.runtime.options import in_seconds
from jobrunner.runtime.payloads import write_payload
from jobrunner.runtime.retry_rules import read_retry_rule

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from jobrunner.runtime.handlers import Handler
    from jobrunner.storage.workers.definitions import Registered


def with_code_options(name: str, code: Handler, options: dict[str, Any], *, captures_logs: bool) -> Handler:
    """Take the options that live with the code out of `options`, and return the handler with them."""
    rules = options.pop("retry_on", None), options.pop("retry_delay", None)
    if rules != (None, None):
        code = replace(code, retry=read_retry_rule(name, *rules))
    asked = options.pop("capture_logs", None)
    if asked is not None and not isinstance(asked, bool):
        raise InvalidWorker(name, f"capture_logs must be true or false, not {asked!r}")
    if captures_logs if asked is None else asked:
        logs.see_all()
        code = replace(code, captures_logs=True)
    return code


def normalised(name: str, options: dict[str, Any], code: Handler) -> dict[str, Any]:
    """Let lengths of time be given in several ways, dependencies as names or pairs of fields, a payload in types."""
    options |= {key: in_seconds(name, key, value) for key, value in options.items() if key.endswith("_seconds")}
    if "depends_on" in options:
        given = options["depends_on"]
        if isinstance(given, list | tuple | set | frozenset):
            options["depends_on"] = tuple(_dependency(name, item) for item in given)
    if "payload" in options:
        payload = options["payload"]
        options["payload"] = {} if payload is None else _payload(name, payload, code)
    return options


def _dependency(name: str, given: Any) -> Any:
    edge = Dependency(**given) if isinstance(given, dict) else given
    if not isinstance(edge, Dependency):
        return edge
    return replace(edge, max_age_seconds=in_seconds(name, "max_age_seconds", edge.max_age_seconds))


def _payload(name: str, payload: Any, code: Handler) -> Any:
    try:
        return write_payload(payload, code)[0]
    except InvalidPayload as error:
        raise InvalidWorker(name, str(error)) from None


def check_isolation(config: WorkerConfig, code: Handler) -> None:
    """Refuse an isolation that does not fit the function, and a payload of the worker's own that does not."""
    if config.isolation is Isolation.INLINE and not code.is_async:
        raise InvalidWorker(config.name, "isolation 'inline' needs an async def; a def runs in a 'thread'")
    if config.isolation is Isolation.THREAD and code.is_async:
        raise InvalidWorker(config.name, "isolation 'thread' needs a def; an async def runs 'inline'")
    if config.isolation is Isolation.COMMAND:
        raise InvalidWorker(config.name, "command workers have no Python code; add them with `jobrunner admin add`")
    problem = importable(code.function) if config.isolation is Isolation.PROCESS else None
    if problem is not None:
        raise InvalidWorker(config.name, problem)
    if config.execution_mode is not WorkerExecutionMode.TRIGGERED:
        code.arguments(config.payload)


def chosen_handlers(handlers: Mapping[str, Handler], patterns: Sequence[str]) -> dict[str, Handler]:
    """Return those of `handlers` whose worker a pattern names; with no pattern, all.

    Raises:
        InvalidSetting: a pattern names none: a node that waits for nothing is a mistake in writing.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in handlers):
            near = None if set(pattern) & set("*?[") else near_name(pattern, handlers)
            some = ", ".join([*sorted(handlers)[:5], *["…"][: len(handlers) > 5]]) or "none"
            more = f": {some}" if near is None else f"; did you mean {near!r}?"
            raise InvalidSetting(f"workers: {pattern!r} names none of the workers registered here{more}")
    return {
        name: code
        for name, code in handlers.items()
        if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def warnings_of(registered: Registered) -> Iterator[str]:
    """Yield what an operator should know of definitions that were registered."""
    if registered.kept_newer:
        yield f"a newer version= is registered; its definitions stay: {', '.join(registered.kept_newer)}"
    if registered.unused:
        yield f"overrides that cannot be used are passed over: {', '.join(registered.unused)}"
