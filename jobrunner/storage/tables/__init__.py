"""The tables as SQLAlchemy Core, their columns' types, and what becomes of a row."""
