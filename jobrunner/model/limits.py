"""The largest numbers that the database's columns hold, and may."""

from __future__ import annotations

LONGEST_SECONDS = 100 * 366 * 86400.0
"""A hundred years: no time span may be longer, so that a time and a span can always be added."""
MAX_COUNT = 2**31 - 1
MAX_BIG_COUNT = 2**62
"""Half of what a column of eight bytes holds: a number may be added to another before it is compared."""
