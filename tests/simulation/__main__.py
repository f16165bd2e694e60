"""`python -m tests.simulation --seeds 1000 --start 0`: many lives; a failing seed is named and can be replayed."""

from __future__ import annotations

import argparse
import asyncio
import gc
import shutil
import sys
import tempfile
import time
import traceback
from multiprocessing import Pool
from pathlib import Path

from tests.simulation.judge import live_and_judge


def folder() -> str | None:
    """Memory, where there is a file system in it: what a power cut would do is not the question here."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def one(arguments: tuple[int, str]) -> tuple[int, int, str | None]:
    seed, template = arguments
    gc.collect()  # a life leaves circles behind; looking for them while it goes on takes a tenth of the time
    with tempfile.TemporaryDirectory(dir=folder(), prefix="jobrunner-sim-") as name:
        path = Path(shutil.copyfile(template, Path(name) / "sim.db"))
        try:
            return seed, asyncio.run(live_and_judge(seed, path)).events, None
        except Exception:
            return seed, 0, traceback.format_exc(limit=-4)


def settle() -> None:
    """Keep the collector away from what stays."""
    gc.disable()
    gc.freeze()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    options = parser.parse_args()
    from jobrunner.storage.schema.migrate import upgrade_database

    began, failed, events = time.monotonic(), [], 0
    with tempfile.TemporaryDirectory(dir=folder()) as name:
        template = Path(name) / "template.db"
        upgrade_database(f"sqlite+aiosqlite:///{template}")
        seeds = [(seed, str(template)) for seed in range(options.start, options.start + options.seeds)]
        with Pool(options.jobs, initializer=settle) as pool:
            for done, (seed, count, problem) in enumerate(pool.imap_unordered(one, seeds, chunksize=4), 1):
                events += count
                if problem is not None:
                    failed.append(seed)
                    print(f"seed {seed} fails; replay it with --seeds 1 --start {seed}\n{problem}", flush=True)
                if done % 500 == 0:
                    print(f"{done} seeds, {done / (time.monotonic() - began):.1f} a second", flush=True)
    seconds = time.monotonic() - began
    print(f"{options.seeds} seeds, {events} events, {seconds:.0f} s, {options.seeds / seconds:.1f} seeds a second")
    print(f"failed: {', '.join(map(str, sorted(failed))) or 'none'}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
