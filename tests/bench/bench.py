"""One go of the bench: what was asked for, and what all cases share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.bench import contest, product
from tests.bench.contest import Peer
from tests.bench.figures import Figure
from tests.bench.product import Setup
from tests.bench.stores import PostgresStore, Store, open_store


@dataclass
class Bench:
    """What was asked for; stores are opened when first needed and closed with the bench."""

    database: str = "sqlite"
    concurrency: int = 50
    waiting: int = 10_000
    nodes: int = 1
    repeats: int = 3
    synchronous: str = "FULL"
    is_quick: bool = False
    against: tuple[str, ...] = ()
    seconds: float = 0.0
    _stores: dict[str, Store] = field(default_factory=dict)
    _templates: dict[tuple[Any, ...], str] = field(default_factory=dict)

    def store(self, kind: str | None = None) -> Store:
        kind = kind or self.database
        if kind not in self._stores:
            self._stores[kind] = open_store(kind)
        return self._stores[kind]

    @property
    def postgres(self) -> PostgresStore:
        store = self.store("postgres")
        assert isinstance(store, PostgresStore)
        return store

    def setup(self, workers: str = "noop", **more: Any) -> Setup:
        given: dict[str, Any] = {
            "max_concurrent": self.concurrency,
            "synchronous": self.synchronous,
        }
        return Setup(workers, **{**given, **more})

    def template(self, kind: str, setup: Setup, waiting: int) -> str:
        """A prepared database, made once and copied for each measurement."""
        key = ("jobrunner", kind, setup.workers, waiting)
        if key not in self._templates:
            self._templates[key] = product.prepare(self.store(kind), setup, waiting)
        return self._templates[key]

    def peer_template(self, kind: str, peer: Peer, jobs: int) -> str:
        key = ("peer", kind, peer.version, jobs)
        if key not in self._templates:
            url = self.store(kind).create()
            contest.call(peer, "prepare", contest_url(url), {"jobs": jobs}, seconds=300)
            self.store(kind).settle(url)
            self._templates[key] = url
        return self._templates[key]

    def peers(self, kind: str) -> list[Peer]:
        """The peers asked for that know this database and can be had here; of the others it is said why not."""
        usable = []
        for peer in contest.peers(self.against, kind):
            try:
                contest.environment(peer)
                usable.append(peer)
            except RuntimeError as error:
                say(str(error))
        return usable

    def on_copy(self, kind: str, template: str, measure: Callable[[str], Any]) -> Any:
        """Measure on a fresh copy of a template, and drop it."""
        store = self.store(kind)
        url = store.create(template)
        try:
            store.settle(url)
            return measure(url)
        finally:
            store.drop(url)

    def close(self) -> None:
        for store in self._stores.values():
            store.close()


def contest_url(url: str) -> str:
    """How a peer is told where its database is: libpq's URL, or the file."""
    from tests.bench.stores import plain_url

    return plain_url(url)


def figure(name: str, unit: str, samples: list[float]) -> Figure:
    return Figure(name, unit, tuple(samples))


def say(text: str) -> None:
    """Tell on standard error what goes on."""
    print(f"  {text}", file=sys.stderr, flush=True)
