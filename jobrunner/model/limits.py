"""The largest numbers that the database's columns hold."""

from __future__ import annotations

MAX_COUNT = 2**31 - 1
MAX_BIG_COUNT = 2**62
"""Half of what a column of eight bytes holds: a number may be added to another before it is compared."""
