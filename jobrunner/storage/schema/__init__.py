"""Migrations, what a schema of ours consists of, and who may use it."""
