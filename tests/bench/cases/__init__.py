"""What is measured, one file a case. Each has a function that takes a `Bench` and returns rows for the table."""

from __future__ import annotations
