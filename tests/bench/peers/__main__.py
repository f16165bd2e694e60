"""Run a phase of a peer's program, in that peer's environment; print what it returns as one JSON object.

python -m tests.bench.peers PROGRAM PHASE URL '{"jobs": 10000, …}'
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import logging
import sys


def main() -> None:
    program, name, url = sys.argv[1:4]
    options = json.loads(sys.argv[4])
    phase = getattr(importlib.import_module(f"tests.bench.peers.{program}"), name)
    logging.disable(logging.CRITICAL)
    if not inspect.iscoroutinefunction(phase):
        result = phase(url, options)
    elif options.get("uvloop"):
        import uvloop

        result = uvloop.run(phase(url, options))
    else:
        result = asyncio.run(phase(url, options))
    print(json.dumps(result or {}), flush=True)


if __name__ == "__main__":
    main()
