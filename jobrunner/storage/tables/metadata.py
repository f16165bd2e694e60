"""What all our tables share: the schema's name, the names of their constraints and indexes, the database's clock."""

from __future__ import annotations

import sqlalchemy as sa

from jobrunner.storage.tables.types import Now

SCHEMA_TOKEN = "jobrunner"  # noqa: S105 - no secret: a name the engine translates

metadata = sa.MetaData(
    schema=SCHEMA_TOKEN,
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    },
)
NOW = Now()
