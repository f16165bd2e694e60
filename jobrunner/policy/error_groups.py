"""Errors that are the same but for a number, an id or a name: they are told as one. Pure.

`order 17 not found` and `order 18 not found` both become `order … not found`. What is left between the gaps stands in
every error of the group, so that a filter can find them again.
"""

from __future__ import annotations

import re

GAP = "…"
"""What stands in place of what differs."""
_LONGEST_LINE, _LONGEST = 400, 200
_LEAST_LITERAL = 4
"""A shorter text would be found in errors of all kinds."""
_DIFFERS = re.compile(
    r"""
      (?<!\w) (?: '[^']*' | "[^"]*" | `[^`]*` | “[^”]*” | «[^»]*» ) (?!\w)
    | \b 0[xX][0-9a-fA-F]+ \b
    | \b (?=[0-9a-fA-F-]*[0-9]) [0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12} \b
    | \b (?=[0-9a-fA-F]*[0-9]) [0-9a-fA-F]{8,} \b
    | [+-]? \d+ (?: [.,:] \d+ )*
    """,
    re.VERBOSE,
)
_GAPS = re.compile(f"{GAP}{{2,}}")


def normalised(error: str | None) -> str:
    """Return the first line of an error with `GAP` for what differs from one such error to the next; at most 200 long.

    What was normalised stays as it is when that is done again.
    """
    line = next((line.strip() for line in (error or "")[: 10 * _LONGEST_LINE].splitlines() if line.strip()), "")
    line = line[:_LONGEST_LINE]
    while True:  # each turn makes it shorter, or takes a digit out
        shorter = _cut(_GAPS.sub(GAP, _DIFFERS.sub(GAP, _unquoted(line))).strip())
        if shorter == line:
            return line
        line = shorter


def _unquoted(line: str) -> str:
    """Take the quotes from a whole sentence: a `KeyError` says its text so, and that is all that it says."""
    is_sentence = len(line) > 2 and line[0] == line[-1] and line[0] in "'\"" and " " in line[1:-1].strip()
    return line[1:-1].strip() if is_sentence and line[0] not in line[1:-1] else line


def _cut(line: str) -> str:
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1].rstrip()}{GAP}"


def begins_so(error: str | None, shared: str) -> bool:
    """Say whether an error begins as what `normalised` has made of it does, with nothing before."""
    return (error or "").startswith(shared.split(GAP, maxsplit=1)[0])


def filter_of(worker: str, error_type: str | None, error: str, *, starts_so: bool = True) -> str:
    """Return the filter of dead letters that finds a group again: the open ones of its worker with its error.

    Args:
        worker: the worker's name.
        error_type: the type of the group's errors.
        error: what `normalised` has made of them.
        starts_so: each of the errors begins as `error` does, so that type and text can be looked for as one.
    """
    pieces = [piece for text in error.split(GAP) for piece in _printable(text)]
    if error_type is not None and error_type.isprintable():
        begins = f"{error_type}: "
        first = error.split(GAP, maxsplit=1)[0]
        pieces.append(begins + first if starts_so and first.isprintable() else begins)
    longest = max(pieces, key=len, default="")
    found = f"worker:{worker} status:open"
    if len(longest.strip()) < _LEAST_LITERAL:
        return found
    quoted = longest.replace("\\", "\\\\").replace('"', '\\"')
    return f'{found} error:"{quoted}"'


def _printable(text: str) -> list[str]:
    """Return the parts of a text between the characters that a filter does not take."""
    return "".join(c if c.isprintable() else "\n" for c in text).split("\n")
