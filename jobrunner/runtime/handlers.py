"""Handlers: the code a worker names, and the check of a payload against its signature.

A handler takes the `RunContext` first, if it wants it, and then payload fields by keyword. The fields are checked
strictly, as JSON: text is no number, an unknown field is refused; a field's type may be anything pydantic can read from
JSON (dataclasses, models, lists, enums, datetimes).
"""

from __future__ import annotations

import contextlib
import inspect
import json
from dataclasses import dataclass, field
from functools import partial, partialmethod
from typing import TYPE_CHECKING, Any

from jobrunner.errors import InvalidPayload, InvalidWorker
from jobrunner.model.worker import Isolation
from jobrunner.runtime.context import RunContext
from jobrunner.runtime.payload_schemas import payload_schema
from jobrunner.runtime.retry_rules import RetryRule

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic import BaseModel

_MOST_PROBLEMS = 5
_MOST_LAYERS = 50  # of decorators; a chain of more would be a circle
_PREFIX = "p_"  # of the model's fields: a payload may have fields that a model of pydantic may not, `schema` or `_id`


@dataclass(frozen=True)
class Handler:
    """A worker's code. `fields` is None when the handler takes any payload (it reads `run.payload` itself).

    `payload_schema` is JSON Schema of what fits the fields, as far as it can say that; empty: any payload.
    """

    label: str
    function: Callable[..., Any]
    is_async: bool
    takes_run: bool
    fields: type[BaseModel] | None
    retry: RetryRule = field(default_factory=RetryRule)
    captures_logs: bool = False
    payload_schema: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def default_isolation(self) -> Isolation:
        """Where the code runs unless told otherwise: `async def` on the loop, `def` in a thread."""
        return Isolation.INLINE if self.is_async else Isolation.THREAD

    def arguments(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments that `payload` gives.

        Raises:
            InvalidPayload: it does not fit; the message names each field that is wrong, and why.
        """
        return {} if self.fields is None else self.values_of(self.check(json.dumps(payload)))

    def values_of(self, model: Any) -> dict[str, Any]:
        """Return the values that `check` has read, by field."""
        if self.fields is None:
            return {}
        known = {name.removeprefix(_PREFIX): getattr(model, name) for name in self.fields.model_fields}
        return {**known, **(model.model_extra or {})}

    def check(self, payload: str) -> Any:
        """Read a payload's JSON text into the model of the fields; None when there are none.

        Raises:
            InvalidPayload: as `arguments`.
        """
        if self.fields is None:
            return None
        import pydantic  # noqa: PLC0415 - a tenth of a second that only checked payloads need

        try:
            return self.fields.model_validate_json(payload, strict=True)
        except pydantic.ValidationError as error:
            raise InvalidPayload(f"{_problems(error)} (the payload does not fit {self.label})") from None

    def has_field(self, name: str) -> bool:
        """Say whether the handler has a parameter of that name."""
        return self.fields is not None and _PREFIX + name in self.fields.model_fields

    def write(self, name: str, value: Any) -> Any:
        """Write a field's value as plain JSON, as its annotation says; raises what a serializer raises."""
        assert self.fields is not None  # noqa: S101 - it has the field
        holder = self.fields.model_construct()
        holder.__dict__.clear()
        holder.__dict__[_PREFIX + name] = value
        written = holder.model_dump(mode="json", by_alias=True, warnings=False)
        return written[name]

    def same_code(self, other: Handler) -> bool:
        """Say whether the other handler is the same function (a module imported twice gives equal code)."""
        mine, theirs = _code_of(self.function), _code_of(other.function)
        return self.label == other.label and mine == theirs


def _code_of(function: Callable[..., Any]) -> object:
    inner = inspect.unwrap(function.func if isinstance(function, partial) else function)
    return getattr(inner, "__code__", inner)


def _problems(error: Any) -> str:
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    shown = []
    for problem in problems[:_MOST_PROBLEMS]:
        where = ".".join(str(part) for part in problem["loc"]) or "payload"
        shown.append(f"{where}: {problem['msg']}")
    more = len(problems) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")


def read_handler(worker: str, function: Callable[..., Any]) -> Handler:
    """Look at a function's signature once, when it is registered.

    Raises:
        InvalidWorker: it is not callable, or its parameters cannot be given from a payload.
    """
    if not callable(function):
        raise InvalidWorker(worker, f"its handler {function!r} is not callable; give a function")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        raise InvalidWorker(worker, f"the signature of {_label(function)} cannot be read; wrap it in a def") from None
    if _is_generator(function):
        raise InvalidWorker(
            worker,
            f"{_label(function)} is a generator (it has a yield), and calling it would run none of its code; "
            "do the work without yield, or loop over it in a def of its own",
        )
    parameters = list(signature.parameters.values())
    takes_run = bool(parameters) and _is_run(function, parameters[0])
    fields = _fields(worker, function, parameters[1:] if takes_run else parameters)
    schema = payload_schema(fields)
    return Handler(_label(function), function, _is_async(function), takes_run, fields, payload_schema=schema)


def _label(function: Callable[..., Any]) -> str:
    inner = function.func if isinstance(function, partial) else function
    name = getattr(inner, "__qualname__", type(inner).__qualname__)
    return f"{getattr(inner, '__module__', '?')}:{name}"


def _is_async(function: Callable[..., Any]) -> bool:
    inner = function.func if isinstance(function, partial) else function
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(getattr(inner, "__call__", None))  # noqa: B004 - an object may be its own coroutine function


def _is_generator(function: Any) -> bool:
    """Say whether calling `function` makes a generator, also through partials, methods, objects and decorators.

    A def that wraps a generator may well run through it: only what it returns tells. `contextlib`'s never do.
    """
    for _ in range(_MOST_LAYERS):
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            return True
        if _is_async(function):
            return False
        if isinstance(function, partial | partialmethod):
            function = function.func
        elif inspect.ismethod(function):
            function = function.__func__
        elif _is_a_layer(function):
            function = function.__wrapped__
        elif inspect.isfunction(function) or inspect.isclass(function) or inspect.isbuiltin(function):
            return False
        else:
            function = getattr(type(function), "__call__", None)  # noqa: B004 - its code is wanted, not whether it has one
    return False


def _is_a_layer(function: Any) -> bool:
    """Say whether `function` does nothing but call what it wraps (`functools.cache`, `contextlib.contextmanager`)."""
    if not callable(getattr(function, "__wrapped__", None)):
        return False
    return not inspect.isfunction(function) or function.__code__.co_filename == contextlib.__file__


def _is_run(function: Callable[..., Any], parameter: inspect.Parameter) -> bool:
    """Say whether a first parameter receives the run: it is annotated so (also in text), or not annotated at all."""
    if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
        return True
    if parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
        return False
    annotation = _resolve(function, parameter.annotation)
    if isinstance(annotation, str):
        return annotation.split(".")[-1].strip("\"'") == "RunContext"
    return annotation is RunContext or annotation is inspect.Parameter.empty


def _fields(worker: str, function: Callable[..., Any], parameters: list[inspect.Parameter]) -> type[BaseModel] | None:
    """Build the model of the payload fields; None when there are none."""
    if not parameters:
        return None
    import pydantic  # noqa: PLC0415 - a tenth of a second that only checked payloads need

    wanted: dict[str, Any] = {}
    extra = "forbid"
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            extra = "allow"
            continue
        if parameter.kind in {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY}:
            raise InvalidWorker(worker, f"{_label(function)} takes {parameter}; payload fields are keyword parameters")
        annotation = _resolve(function, parameter.annotation)
        if isinstance(annotation, str):
            raise InvalidWorker(worker, f"the annotation {annotation!r} of {_label(function)} cannot be read")
        kind = Any if annotation is inspect.Parameter.empty else annotation
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        wanted[_PREFIX + parameter.name] = (kind, default)
    config = pydantic.ConfigDict(extra=extra, alias_generator=lambda name: name.removeprefix(_PREFIX))  # type: ignore[typeddict-item]  # "forbid" or "allow"
    try:
        return pydantic.create_model("Payload", __config__=config, **wanted)
    except Exception as error:  # noqa: BLE001 - pydantic raises many kinds for what it cannot read
        first = str(error).splitlines()[0]
        raise InvalidWorker(worker, f"the parameters of {_label(function)} cannot be read from JSON: {first}") from None


def _resolve(function: Callable[..., Any], annotation: Any) -> Any:
    """Evaluate an annotation that is text; text that cannot be evaluated is returned as it is."""
    if not isinstance(annotation, str):
        return annotation
    inner = inspect.unwrap(function.func if isinstance(function, partial) else function)
    names = dict(getattr(inner, "__globals__", {}))
    code, cells = getattr(inner, "__code__", None), getattr(inner, "__closure__", None)
    if code is not None and cells:
        for name, cell in zip(code.co_freevars, cells, strict=True):
            with contextlib.suppress(ValueError):  # it is empty: the function names what is defined after it
                names[name] = cell.cell_contents
    try:
        return eval(annotation, names)  # noqa: S307 - the annotation is the program's own code
    except Exception:  # noqa: BLE001 - a name that only a type checker knows
        return annotation
