"""`python -m jobrunner`."""

from __future__ import annotations

from jobrunner.cli.main import main

main()
