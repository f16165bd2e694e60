"""`scripts/bench`: how fast jobrunner is, and how fast its peers are at the same work on the same machine.

    __main__       the command line
    cases/         what is measured, one file a case; each returns rows
    product        jobrunner's own nodes: real processes of `jobrunner run`
    contest        peers' programs, each in an environment of its own, and taking turns with them
    peers/         those programs; they know nothing of jobrunner
    stores         databases: a fresh one for every measurement, from a prepared template
    figures        medians with spread, rows with targets; table, Markdown and JSON

Everything runs on this machine over loopback, is bounded in time, and ends only what it started.
"""

from __future__ import annotations
