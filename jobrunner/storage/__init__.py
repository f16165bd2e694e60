"""Floor 4: SQLAlchemy Core and Alembic. The only floor that knows SQL."""
