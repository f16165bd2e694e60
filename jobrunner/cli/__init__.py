"""Floor 7: typer. Arguments in, tables or JSON out, exit codes."""
