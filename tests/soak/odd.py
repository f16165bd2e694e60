"""Objects that handlers should not return or raise, and sometimes do."""

from __future__ import annotations

from typing import Any


class BadDict(dict):
    def items(self) -> Any:
        raise RuntimeError("no items today")


class BadText(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise ValueError("no text either")

    def encode(self, *arguments: Any, **more: Any) -> bytes:
        raise ValueError("nor bytes")


class BadRepr:
    def __repr__(self) -> str:
        raise KeyError("no name")

    def __iter__(self) -> Any:
        raise KeyError("nothing in it")


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not to be read")

    __repr__ = __str__


class BadArguments(Exception):
    def __getattribute__(self, name: str) -> Any:
        if name == "args":
            raise KeyError("there are none")
        return super().__getattribute__(name)


def _deep() -> Any:
    value: Any = []
    for _ in range(50_000):
        value = [value]
    return value


def _circle() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def _chain() -> BaseException:
    error: BaseException = ValueError("the first")
    for number in range(2_000):
        later = ValueError(f"number {number}")
        later.__cause__ = error
        error = later
    return error


RESULTS = (
    lambda: BadDict(a=1),
    lambda: BadText("x"),
    BadRepr,
    _deep,
    _circle,
    lambda: {"large": "x" * 200_000},
    lambda: {1: 2, (3, 4): {5}},
    lambda: "\ud800 and \0",
    lambda: float("nan"),
    lambda: 10**5000,
)
ERRORS = (
    Unprintable,
    BadArguments,
    _chain,
    lambda: ValueError(BadText("x")),
    lambda: ValueError("x" * 1_000_000),
    lambda: ValueError("\ud800 and \0"),
    lambda: ExceptionGroup("many", [Unprintable(), ValueError(BadRepr())]),
    SystemExit,
    StopIteration,
)
