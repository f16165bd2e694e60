"""Definitions, state, and what operators do with them."""
