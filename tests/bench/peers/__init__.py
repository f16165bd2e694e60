"""Programs of the peers: run by the Python of their own environment, never imported by ours."""

from __future__ import annotations
