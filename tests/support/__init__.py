"""What several test folders share. Import from the module: `from tests.support.postgres import LocalPostgres`."""

from __future__ import annotations
