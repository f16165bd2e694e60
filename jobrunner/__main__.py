"""`python -m jobrunner`."""

from __future__ import annotations

import sys

from jobrunner.cli.main import main

sys.exit(main())
