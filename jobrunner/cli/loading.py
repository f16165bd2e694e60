"""Finding the orchestrator that MODULE[:NAME] names on the command line: importing what the user wrote.

Whatever goes wrong in there is told in one line with the place in the user's own code, not as a traceback through ours.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobrunner.errors import ModuleNotUsable
from jobrunner.runtime.orchestrator import WorkerOrchestrator

if TYPE_CHECKING:
    from types import ModuleType

_OURS = Path(__file__).parents[1]


def load_orchestrator(target: str) -> WorkerOrchestrator:
    """Import `MODULE` of `MODULE[:NAME]` from the current folder or the path; return its only orchestrator, or NAME.

    Raises:
        ModuleNotUsable: the module cannot be imported, or does not hold the orchestrator.
    """
    name, _, attribute = target.partition(":")
    _check_name(name)
    module = _import(name)
    return _named(module, attribute) if attribute else _only(module)


def _check_name(name: str) -> None:
    if name.endswith(".py") or "/" in name or "\\" in name:
        dotted = name.removeprefix("./").removesuffix(".py").replace("/", ".").replace("\\", ".")
        raise ModuleNotUsable(f"{name!r} is a file; give the module's name, {dotted.strip('.')}")
    if not name or not all(part.isidentifier() for part in name.split(".")):
        raise ModuleNotUsable(f"{name!r} is no module's name; write MODULE or MODULE:NAME, such as `my_workers`")


def _import(name: str) -> ModuleType:
    here = str(Path.cwd())
    if sys.path[:1] != [here]:
        sys.path.insert(0, here)
    importlib.invalidate_caches()  # the file may be younger than this process
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ModuleNotUsable(f"there is no module {name!r} in {here} or on Python's path") from None
        raise ModuleNotUsable(_cause(name, error)) from error
    except BaseException as error:  # whatever the user's module does, SystemExit too, is told as what it is
        raise ModuleNotUsable(_cause(name, error)) from error


def _cause(name: str, error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"module {name!r} cannot be imported: {error.filename}:{error.lineno}: {error.msg}"
    said = str(error).strip()
    what = type(error).__name__ + (f": {said}" if said else "")
    place = _place(error)
    return f"module {name!r} cannot be imported: {f'{place}: ' if place else ''}{what}"


def _place(error: BaseException) -> str | None:
    """Return file and line of the user's innermost frame: not of Python's import machinery, not of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if not _is_machinery(frame.filename)]
    own = [frame for frame in outside if "site-packages" not in frame.filename] or outside
    return f"{own[-1].filename}:{own[-1].lineno}" if own else None


def _is_machinery(filename: str) -> bool:
    return (
        filename.startswith("<frozen")
        or Path(filename) == Path(importlib.__file__ or "")
        or _OURS in Path(filename).parents
    )


def _named(module: ModuleType, attribute: str) -> WorkerOrchestrator:
    found: Any = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ModuleNotUsable(f"module {module.__name__!r} has no {attribute!r}; {_there_are(module)}") from None
    if not isinstance(found, WorkerOrchestrator):
        kind = type(found).__name__
        raise ModuleNotUsable(
            f"{module.__name__}:{attribute} is no WorkerOrchestrator but of type {kind!r}; {_there_are(module)}"
        )
    return found


def _only(module: ModuleType) -> WorkerOrchestrator:
    names = _orchestrators(module)
    distinct = {id(getattr(module, name)) for name in names}
    if len(distinct) == 1:
        only: WorkerOrchestrator = getattr(module, names[0])
        return only
    if not names:
        raise ModuleNotUsable(
            f"module {module.__name__!r} holds no WorkerOrchestrator; make one at its top level: "
            "orchestrator = WorkerOrchestrator()"
        )
    raise ModuleNotUsable(
        f"module {module.__name__!r} holds several orchestrators: {', '.join(names)}; "
        f"name one, such as {module.__name__}:{names[0]}"
    )


def _orchestrators(module: ModuleType) -> list[str]:
    return [name for name, value in vars(module).items() if isinstance(value, WorkerOrchestrator)]


def _there_are(module: ModuleType) -> str:
    names = _orchestrators(module)
    return f"it holds {', '.join(names)}" if names else "it holds no WorkerOrchestrator"
